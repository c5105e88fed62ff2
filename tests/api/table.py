"""The columns of the table in `cases`: what good and bad manifests are, and how one is written."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import yaml

SMALLEST: dict[str, Any] = {
    "apiVersion": "kubequant.dev/v1alpha1",
    "kind": "QuantizationJob",
    "metadata": {"name": "tiny"},
    "spec": {
        "model": {"uri": "hf://owner/name"},
        "method": "GGUF",
        "output": {"uri": "s3://bucket/prefix"},
    },
}

REMOVED = "(removed)"
"""In a change: the field is taken out of the manifest."""


class Server(StrEnum):
    """How an API server answers to a bad manifest. It writes a map's key as `labels[team]`."""

    SAYS_IT = "says our sentence, by a CEL rule"
    REFUSES = "refuses it, by the structural schema and in words of its own"
    LETS_PASS = "lets it pass: no schema can say it, so models and controller hold it"


@dataclass(frozen=True)
class Good:
    """A manifest that is taken: the smallest, with `spec` (YAML, without its braces) laid over."""

    id: str
    spec: str
    local_only: bool = False
    """Taken on this machine; a cluster refuses it."""

    @property
    def change(self) -> dict[str, Any]:
        return flow(self.spec)

    @property
    def manifest(self) -> dict[str, Any]:
        return with_spec(self.change)


@dataclass(frozen=True)
class Bad:
    """A manifest that is refused, with the path and the beginning of the sentence that says why."""

    id: str
    spec: str
    path: str
    sentence: str
    server: Server = Server.SAYS_IT
    name: str = "tiny"

    @property
    def manifest(self) -> dict[str, Any]:
        return merged(with_spec(flow(self.spec)), {"metadata": {"name": self.name}})


def flow(text: str) -> dict[str, Any]:
    """Return the object that a YAML flow mapping without its braces describes."""
    return dict(yaml.safe_load("{" + text + "}"))


def with_spec(change: dict[str, Any]) -> dict[str, Any]:
    """Return the smallest manifest with `change` laid over its spec."""
    return merged(SMALLEST, {"spec": change})


def merged(base: Any, change: Any) -> Any:
    """Return `base` with `change` laid over it: objects field by field, everything else whole."""
    if not isinstance(change, dict):
        return deepcopy(change)
    result = deepcopy(base) if isinstance(base, dict) else {}
    for name, value in change.items():
        if value == REMOVED:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
