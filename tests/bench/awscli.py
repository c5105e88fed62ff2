"""The peer of two benchmarks: the AWS command line, installed once into the cache folder."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.testbed.tools import cache_folder

if TYPE_CHECKING:
    from pathlib import Path

AWSCLI = "awscli==1.46.3"


def aws_program() -> Path:
    """Return the peer's program, installed once into the cache folder."""
    folder = cache_folder() / AWSCLI.replace("==", "-")
    program = folder / "bin" / "aws"
    if not program.is_file():
        print(f"installing {AWSCLI} into {folder}", file=sys.stderr, flush=True)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", str(folder)], check=True)
        python = str(folder / "bin" / "python")
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, AWSCLI], check=True)
    return program
