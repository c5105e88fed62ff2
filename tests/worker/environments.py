"""The images' Python environments, in which tests run the worker as a pod would."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def interpreter(name: str) -> Path:
    """Return the interpreter of images/<name>'s environment, made now where it is not there."""
    if name == "gguf":  # llama.cpp's wheel is built, by `make setup`, for the tests' own one
        return Path(sys.executable)
    command = [sys.executable, str(ROOT / "images" / "environment.py"), name]
    # What it says goes past pytest's capture, so that a long download is seen while it runs.
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=sys.__stderr__, text=True
    )
    return Path(done.stdout.strip())


def variables() -> dict[str, str]:
    """Return the environment variables with which an image's interpreter finds this checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HF_", "PYTHON"))}
    folders = (ROOT / "operator", ROOT / "images" / "worker", ROOT)
    # A machine's own GPU is left alone: what needs one is marked `gpu`.
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "default"}
    # What libraries would compile at its first use takes minutes, and an image cannot; and threads
    # that spin while they wait are slow where others work too.
    quick = {"TORCHDYNAMO_DISABLE": "1", "GOMP_SPINCOUNT": "1000"}
    return {**kept, **hidden, **quick, "PYTHONPATH": os.pathsep.join(map(str, folders))}
