"""Each method on a model of about 300 million parameters against the engine's documented script.

    python -m tests.bench.bench_methods [--pairs N] [--layers N] [ROW ...]

Both run in the environment of the method's image, on the same random model, with the same
parameters and the same token ids, one after another, in pairs. Compared is the quantizing itself,
from loading the model to the saved checkpoint: of ours, the stage Quantizing of the report; of the
script, from loading to saved. Importing the engine is in neither: ours does it while the model is
fetched. Fetching, measuring, verifying and publishing are ours alone, and left out. With
fewer layers the model is smaller, and the figures say less: that is to try whether a row runs.

Memory is the peak, while it quantizes, of the whole tree of processes (ours: the command, the
worker and the engine's child) and of the engine's process alone, as `tree_memory` samples it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from safetensors import safe_open
from tests.bench.tree_memory import TreePeak
from tests.worker.environments import interpreter, variables
from tests.worker.methods.conftest import TINY
from tests.worker.methods.models import random_llama
from transformers import AutoTokenizer

from kubequant_worker.datasets import Role, bundled_text, calibration_samples
from kubequant_worker.methods.cpu import thread_count
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPTS = Path(__file__).parent / "scripts"
MOST = 1.05
# What takes seconds varies by more of itself.
PAIRS_OF_SECONDS = 3
LAYERS = 26
# With all layers 294 million parameters in their linear modules, and 4 million in the embeddings.
MODEL = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
}
CALIBRATION = {"samples": 8, "sequenceLength": 128}
ITERATIONS = 4


# Packed, in 8 bits, in the formats gptq and awq, and torchao's.
_WEIGHT = re.compile(r"^model\.layers\..*_proj\.(_weight_qdata|q?weight|weight_packed)$")


@dataclass(frozen=True)
class Row:
    """One method by one engine: the image, our spec, and the engine's documented script."""

    image: str
    script: str
    spec: dict[str, Any]
    variables: dict[str, str] = field(default_factory=dict)
    """What the script is told beside its words."""
    numbers: int = 1
    """How many numbers it prints at its end, the last of them the seconds."""
    layers: int = LAYERS
    """Of the model: fewer where all of them would take hours on a CPU."""
    pairs: int = 1
    """How often each side runs."""


# gptqmodel waits for itself with fewer workers.
_TWO_WORKERS = {"GPTQMODEL_CPU_WORKERS": "2"}
# Parameters that differ from the scripts' own defaults are set in both.
ROWS = {
    "INT8 by llmcompressor": Row(
        "llmcompressor", "quantize_llmcompressor",
        {"method": "INT8", "int8": {"engine": "LLMCompressor"}},
        numbers=2,
    ),
    "INT4 by llmcompressor": Row(
        "llmcompressor", "quantize_llmcompressor", {"method": "INT4"}, numbers=2,
        pairs=PAIRS_OF_SECONDS,
    ),
    "FP8 by llmcompressor": Row(
        "llmcompressor", "quantize_llmcompressor", {"method": "FP8"}, numbers=2,
        pairs=PAIRS_OF_SECONDS,
    ),
    "GPTQ by llmcompressor": Row(
        "llmcompressor", "quantize_llmcompressor",
        {"method": "GPTQ", "gptq": {"engine": "LLMCompressor", "trueSequential": False}},
        numbers=2,
    ),
    "AWQ by llmcompressor": Row(
        "llmcompressor", "quantize_llmcompressor",
        {"method": "AWQ", "awq": {"engine": "LLMCompressor"}},
        numbers=2,
    ),
    "GPTQ by gptqmodel": Row(
        "gptqmodel", "quantize_gptqmodel",
        {"method": "GPTQ", "gptq": {"engine": "GPTQModel"}},
        _TWO_WORKERS,
    ),
    "AWQ by gptqmodel": Row(
        "gptqmodel", "quantize_gptqmodel",
        {"method": "AWQ", "awq": {"engine": "GPTQModel"}},
        _TWO_WORKERS,
        layers=2,  # the search for the best clip: minutes for each layer
    ),
    "INT8 by torchao": Row(
        "transformers", "quantize_transformers",
        {"method": "INT8", "int8": {"engine": "TorchAO"}},
        pairs=PAIRS_OF_SECONDS,
    ),
    "BitsAndBytes in 4 bits": Row(
        "transformers", "quantize_transformers",
        {"method": "BitsAndBytes", "bitsAndBytes": {"bits": 4}},
        pairs=PAIRS_OF_SECONDS,
    ),
    "INT4 by auto-round": Row(
        "auto-round", "quantize_auto_round",
        {"method": "INT4", "int4": {"rounding": "Tuned", "iterations": ITERATIONS}},
        {"ITERATIONS": str(ITERATIONS)},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one side took, and the folder that it wrote."""

    seconds: float
    peak_bytes: int
    engine_bytes: int
    """The peak of the largest process, which is the engine's."""
    folder: Path
    looking_seconds: float = 0.0
    """What looking at the quantized model takes beside: the script's sample generation where it has
    one, our stage Verifying."""


def ours(row: Row, model: Path, folder: Path) -> Measured:
    """Run `kubequant run` and return what its stage Quantizing took."""
    document = {
        "apiVersion": "kubequant.dev/v1alpha1",
        "kind": "QuantizationJob",
        "metadata": {"name": "bench"},
        "spec": {
            "model": {"uri": f"file://{model}"},
            "device": "CPU",
            "calibration": CALIBRATION,
            "evaluation": {"skip": ["Perplexity", "Generations", "Performance"]},
            "output": {"uri": f"file://{folder / 'out'}"},
            **row.spec,
        },
    }
    manifest = folder / "manifest.yaml"
    manifest.write_text(yaml.safe_dump(document))
    command = [interpreter(row.image), "-m", "kubequant.cli", "run", manifest]
    stage = ""
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=variables(), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        peak = TreePeak(process.pid, lambda: stage == "Quantizing")
        peak.start()
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if line.startswith("{"):
                    stage = json.loads(line)["stage"]
        peak.stop()
    if process.wait() != 0:
        raise SystemExit(log.read_text()[-4000:])
    artifact = next((folder / "out" / "bench").iterdir())
    stages = json.loads((artifact / "report.json").read_text())["stages"]
    seconds = {one["stage"]: float(one["seconds"]) for one in stages}
    return Measured(
        seconds["Quantizing"], peak.highest, peak.largest, artifact, seconds["Verifying"]
    )


def theirs(row: Row, model: Path, samples: Path, folder: Path) -> Measured:
    """Run the engine's script and return what it took."""
    target, log = folder / "target", folder / "log"
    words = [row.spec["method"], model, samples, target]
    command = [interpreter(row.image), SCRIPTS / f"{row.script}.py", *words]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), **row.variables}
    threads = {"OMP_NUM_THREADS": str(thread_count())}
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            env={**variables(), **offline, **threads},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
        )
        peak = TreePeak(process.pid)
        peak.start()
        out, _ = process.communicate()
        peak.stop()
    if process.returncode != 0:
        raise SystemExit(log.read_text()[-4000:])
    written = next(target.rglob("config.json")).parent
    *looking, seconds = map(float, out.splitlines()[-row.numbers :])
    return Measured(seconds, peak.highest, peak.largest, written, sum(looking))


def calibration_file(folder: Path) -> Path:
    """Write the token ids that ours draws from the bundled text, shape (samples, length)."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts = bundled_text(Role.CALIBRATION).documents
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    drawn = calibration_samples(
        np.concatenate([np.array(part, np.int32) for part in ids]),
        samples=CALIBRATION["samples"],
        length=CALIBRATION["sequenceLength"] - 1,
        seed=0,
        bundled=True,
    )
    bos = np.full((len(drawn), 1), tokenizer.bos_token_id, np.int32)
    path = folder / "samples.npy"
    np.save(path, np.concatenate([bos, drawn], axis=1))
    return path


def quantized_bytes(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the bytes of each quantized weight of the layers, under its format's own name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:  # type: ignore[no-untyped-call]
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                if _WEIGHT.search(name):
                    content = tensors.get_tensor(name).contiguous().view(-1)
                    found[name] = content.view(torch.uint8).numpy()
    return found


def compile_packages(image: str) -> None:
    """Compile an environment, as its image does: else whoever runs first compiles for both."""
    python = interpreter(image)
    packages = python.parents[1] / "lib"
    # Some packages hold files for other Pythons, which this one does not compile.
    subprocess.run(
        [python, "-m", "compileall", "-q", "-j", "0", packages], check=False, capture_output=True
    )


def parameters(model: Path) -> int:
    """Return how many numbers a checkpoint holds."""
    spans = (span for path in model.glob("*.safetensors") for span in read_header(path))
    return sum(math.prod(span.shape) for span in spans)


def alike(one: Path, other: Path) -> float:
    """Return which share of the quantized weights' bytes both wrote alike."""
    first, second = quantized_bytes(one), quantized_bytes(other)
    if not first or first.keys() != second.keys():
        raise SystemExit(f"not the same modules: {sorted(first.keys() ^ second.keys())[:4]}")
    same = sum(int((content == second[name]).sum()) for name, content in first.items())
    return same / sum(content.size for content in first.values())


def measured(row: Row, model: Path, samples: Path, pairs: int) -> str:
    """Return a row's figures, medians of the pairs."""
    found: list[tuple[Measured, Measured]] = []
    shares = []
    for number in range(pairs):
        folder = Path(tempfile.mkdtemp(prefix="kubequant-bench-"))
        try:
            for name in ("ours", "theirs"):
                (folder / name).mkdir()
            sides: dict[str, Measured] = {}
            for name in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
                if name == "ours":
                    sides[name] = ours(row, model, folder / name)
                else:
                    sides[name] = theirs(row, model, samples, folder / name)
            found.append((sides["ours"], sides["theirs"]))
            shares.append(alike(sides["ours"].folder, sides["theirs"].folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def ratio(of: Callable[[Measured], float]) -> float:
        return statistics.median(of(our) / of(their) for our, their in found)

    our, their = found[-1]
    looking = ""
    if their.looking_seconds:
        whole = ratio(lambda one: one.seconds + one.looking_seconds)
        looking = (
            f", and with the look at what was made **{whole:.2f}** (our stage Verifying "
            f"{our.looking_seconds:.1f} s, its sample generation {their.looking_seconds:.1f} s)"
        )
    return (
        f"time **{ratio(lambda one: one.seconds):.2f}** ({our.seconds:.1f} s against "
        f"{their.seconds:.1f} s){looking}; memory **{ratio(lambda one: one.peak_bytes):.2f}** "
        f"({our.peak_bytes / 1e6:.0f} MB against {their.peak_bytes / 1e6:.0f} MB), the engine's "
        f"process alone **{ratio(lambda one: one.engine_bytes):.2f}**; "
        f"{100 * min(shares):.1f} % of the weights' bytes are the same"
    )


def main() -> None:
    """Measure the rows named (default: all); print a JSON object at the end."""
    parser = argparse.ArgumentParser(description="Hold each method against its engine's script.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--pairs", type=int, help="runs of each side")
    parser.add_argument("--layers", type=int, help="of the model; fewer to try")
    asked = parser.parse_args()
    names = asked.rows or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory(prefix="kubequant-bench-") as temporary:
        folder = Path(temporary)
        models: dict[int, Path] = {}
        samples = calibration_file(folder)
        for image in sorted({ROWS[name].image for name in names}):
            compile_packages(image)
        figures = {}
        for name in names:
            row = ROWS[name]
            layers, pairs = asked.layers or row.layers, asked.pairs or row.pairs
            if layers not in models:
                target = folder / f"model-{layers}"
                models[layers] = random_llama(target, **MODEL, num_hidden_layers=layers)
            count = f"{pairs} pairs" if pairs > 1 else "one pair"
            millions = parameters(models[layers]) / 1e6
            label = f"{name} ({count}, {millions:.0f} million parameters)"
            print(f"measuring {label}", file=sys.stderr, flush=True)
            figures[label] = measured(row, models[layers], samples, pairs)
            print(figures[label], file=sys.stderr, flush=True)
    result = {
        "name": (
            "Each method on a random model against the engine's own documented script with the "
            "same parameters and token ids, both on this CPU in float32 (medians where there are "
            "several pairs): from loading the model to the saved checkpoint, and the peak "
            "anonymous memory of the whole tree of processes meanwhile"
        ),
        "target": f"time and memory at most {MOST} each",
        "figures": figures,
        "note": (
            "Ours is the stage Quantizing of a run's report; fetching, measuring, verifying and "
            "publishing are left out, and the engines' imports on both sides. Ours also tokenizes "
            "the text and, by llmcompressor, keeps what the quantized model computes to verify the "
            "saved one by: seconds that show where a method takes no more than seconds. Its tree "
            "has two processes more, the command and the worker. llmcompressor's documented "
            "scripts generate a sample before they save (20 tokens here); with that stands our "
            "stage Verifying, which loads the saved file in a process of its own, compares its "
            "logits and generates too. gptqmodel's search for AWQ's scales works on the weights "
            "themselves where it counts on a copy, of float32 on a CPU, so that each try ruins the "
            "next: ours gives it the copy, and writes other bytes."
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
