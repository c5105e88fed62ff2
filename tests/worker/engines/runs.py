"""Starts the programs of this folder, and the worker, in an image's environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.worker.environments import interpreter, variables

HERE = Path(__file__).parent


def program(
    environment: str, name: str, *words: str | Path, given: object, seconds: int = 500
) -> Any:
    """Run a program of this folder with `given` as JSON, and return the JSON that it prints."""
    done = subprocess.run(
        [interpreter(environment), HERE / f"{name}.py", *words],
        env=variables(),
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def kubequant(
    environment: str, *words: str | Path, gpus: bool = False, **also: str
) -> tuple[int, dict[str, Any], str]:
    """Run `kubequant run --json` with these words; return exit code, report and standard error.

    Without `gpus` it sees none; `also` are variables beside the usual ones.
    """
    given = variables() | also
    if gpus:
        del given["CUDA_VISIBLE_DEVICES"]
    done = subprocess.run(
        [interpreter(environment), "-m", "kubequant.cli", "run", "--json", *words],
        env=given,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr
