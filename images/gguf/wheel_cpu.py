"""Which of llama.cpp's CPU kernels this processor can run: the wheel holds them several times.

`wheel.py` builds the kernels once for any x86-64 of the last ten years (AVX2) and again for each of
`VARIANTS`, and copies this file into the wheel as `llama_cpp/_cpu.py`, which the package imports
first. The variant that fits is loaded before llama.cpp asks for its kernels, and the dynamic loader
takes a library that is there already for one of the same name. Standard library only.

KUBEQUANT_LLAMA_CPU names a variant instead, or "baseline" for none: to compare, or to reproduce
numbers of an older processor.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

AVX512 = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})
# Name (as llama.cpp calls it), the processor's flags it needs, and CMake's words; the best first.
VARIANTS: tuple[tuple[str, frozenset[str], tuple[str, ...]], ...] = (
    (
        "zen4",
        AVX512 | {"avx512vbmi", "avx512_vnni", "avx512_bf16"},
        ("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"),
    ),
    ("icelake", AVX512 | {"avx512vbmi", "avx512_vnni"}, ("AVX512", "AVX512_VBMI", "AVX512_VNNI")),
    ("cascadelake", AVX512 | {"avx512_vnni"}, ("AVX512", "AVX512_VNNI")),
    ("skylakex", AVX512, ("AVX512",)),
)
CHOICE = "KUBEQUANT_LLAMA_CPU"
FOLDER = "cpu"
LIBRARY = "libggml-cpu.so.0"


def fitting(flags: frozenset[str]) -> str:
    """Return the best variant for a processor with these flags, or "" where only AVX2 is left."""
    return next((name for name, needed, _ in VARIANTS if needed <= flags), "")


def flags_here() -> frozenset[str]:
    """Return the flags of this machine's processor as Linux lists them; none where it does not."""
    if platform.machine() != "x86_64":
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(found.partition(":")[2].split())


def load(libraries: Path) -> str:
    """Load the variant below `libraries` for this processor and return its name, "" for none."""
    name = os.environ.get(CHOICE) or fitting(flags_here())
    path = libraries / FOLDER / name / LIBRARY
    if not name or name == "baseline" or not path.is_file():
        return ""
    ctypes.CDLL(str(path))
    return name


def loaded() -> str:
    """Return the file of the kernels that this process has loaded, "" before llama.cpp is."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith("libggml-cpu.so"):
            return path
    return ""
