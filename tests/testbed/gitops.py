"""How Argo CD and Flux see resources, by their own code: `tools/gitops`."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.testbed.tools import tool

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PATCH = Path(__file__).parents[2] / "deploy" / "argocd" / "health-patch.yaml"
"""What an administrator merges into Argo CD's ConfigMap."""


@dataclass(frozen=True)
class Judgement:
    """What the two say of one resource, each with its message."""

    argocd: str
    flux: str
    argocd_message: str
    flux_message: str


def judged(resources: Sequence[dict[str, Any]], patch: Path = PATCH) -> list[Judgement]:
    """Return what both say of each resource; they know nothing of the ones before."""
    done = subprocess.run(
        [tool("gitops"), patch],
        input=json.dumps(resources),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [
        Judgement(one["argocd"], one["flux"], one["argocdMessage"], one["fluxMessage"])
        for one in json.loads(done.stdout)
    ]


def turns(words: Iterable[str]) -> list[str]:
    """Return the words without those that say what the one before said."""
    found: list[str] = []
    for word in words:
        if found[-1:] != [word]:
            found.append(word)
    return found
