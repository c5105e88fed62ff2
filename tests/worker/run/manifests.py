"""Makers of manifests for whole runs, and the command that runs them as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
TINY = ROOT / "examples" / "models" / "tiny-llama"
# As the installed command, which does not look for modules in the working folder either.
COMMAND = [sys.executable, "-P", "-m", "kubequant.cli"]
SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """The report that `--json` printed."""
        value: dict[str, Any] = json.loads(self.out)
        return value


def manifest(folder: Path, name: str = "tiny", **spec: Any) -> Path:
    """Write a small, quick manifest into `folder`, with `spec` over its defaults, and return it.

    The method's member is among the defaults for GGUF alone.
    """
    content = {
        "apiVersion": "kubequant.dev/v1alpha1",
        "kind": "QuantizationJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": f"file://{TINY}"},
            "method": "GGUF",
            "gguf": {"types": ["Q8_0", "Q2_K"]},
            "evaluation": {
                "perplexity": {"maxTokens": 2048},
                "generations": {"prompts": ["def read("], "maxNewTokens": 8},
                "performance": {
                    "promptTokens": 32,
                    "newTokens": 8,
                    "repetitions": 2,
                    "batchSizes": [2],
                },
            },
            "output": {"uri": f"file://{folder / 'out'}"},
            **spec,
        },
    }
    if content["spec"]["method"] != "GGUF" and "gguf" not in spec:
        del content["spec"]["gguf"]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def environment(**extra: str) -> dict[str, str]:
    """Return an environment without anybody's cloud credentials, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HF_"))}
    return {**kept, "AWS_EC2_METADATA_DISABLED": "true", "HF_HUB_OFFLINE": "0", **extra}


def command(*words: str | Path) -> list[str]:
    """Return the command line of `kubequant` with these words."""
    return [*COMMAND, *map(str, words)]


def kubequant(*words: str | Path, cwd: Path | None = None, **extra: str) -> Ended:
    """Run `kubequant` with these words and `extra` variables in a folder, and wait for its end."""
    done = subprocess.run(
        command(*words),
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def files_below(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder` with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
