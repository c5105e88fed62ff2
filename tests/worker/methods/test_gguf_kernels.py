"""llama.cpp's CPU kernels: the wheel holds them for several processors and loads what fits."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.worker.methods.conftest import Made

ROOT = Path(__file__).parents[3]
CHOICE = runpy.run_path(str(ROOT / "images" / "gguf" / "wheel_cpu.py"))
NAMES = [name for name, _, _ in CHOICE["VARIANTS"]]
HERE = CHOICE["flags_here"]()
HASWELL = frozenset(["fma", "avx", "avx2", "f16c", "bmi2"])
SKYLAKE = HASWELL | frozenset(["avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"])
CASCADE_LAKE = SKYLAKE | {"avx512_vnni"}
ICE_LAKE = CASCADE_LAKE | {"avx512vbmi", "avx512_vbmi2"}
GENOA = ICE_LAKE | {"avx512_bf16"}
ALDER_LAKE = HASWELL | {"avx_vnni"}
SCORE = """
import json, sys
import llama_cpp
from llama_cpp._cpu import loaded
llama = llama_cpp.Llama(sys.argv[1], n_ctx=256, logits_all=True, verbose=False, n_threads=1)
llama.eval(llama.tokenize(b"def read(path):\\n    with open(path) as file:\\n"))
print(json.dumps({"loaded": loaded(), "logits": llama.scores[: llama.n_tokens].tolist()}))
"""


def scored(path: Path, variant: str) -> dict[str, Any]:
    """Return the logits of one text, computed in a new process by the kernels named."""
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(path)],
        env={**os.environ, "KUBEQUANT_LLAMA_CPU": variant},
        check=True,
        capture_output=True,
        text=True,
    )
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (frozenset[str](), ""),
        (HASWELL, ""),
        (ALDER_LAKE, ""),
        (SKYLAKE, "skylakex"),
        (CASCADE_LAKE, "cascadelake"),
        (ICE_LAKE, "icelake"),
        (GENOA, "zen4"),
        (GENOA - {"avx512vl"}, ""),
    ],
)
def test_a_processor_gets_what_it_can_run(flags: frozenset[str], name: str) -> None:
    assert CHOICE["fitting"](flags) == name


def test_the_wheel_holds_every_variant() -> None:
    folder = Path(llama_cpp.__file__).parent / "lib" / CHOICE["FOLDER"]

    held = {path.parent.name for path in folder.glob(f"*/{CHOICE['LIBRARY']}")}
    assert held == set(NAMES)


def test_this_processor_computes_with_what_fits_it(every_type: Made) -> None:
    path = every_type.work.artifact / "tiny-Q8_0.gguf"

    loaded = Path(scored(path, "")["loaded"])

    assert loaded.parent.name == (CHOICE["fitting"](HERE) or "lib")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "BF16"])
def test_all_kernels_compute_the_same(every_type: Made, kind: str) -> None:
    path = every_type.work.artifact / f"tiny-{kind}.gguf"
    plain = scored(path, "baseline")
    expected = np.array(plain["logits"])
    runs = {name for name, needed, _ in CHOICE["VARIANTS"] if needed <= HERE}

    assert Path(plain["loaded"]).parent.name == "lib"
    for name in runs:
        other = scored(path, name)
        assert Path(other["loaded"]).parent.name == name
        got = np.array(other["logits"])
        assert got.shape == expected.shape
        assert (got.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
        assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
