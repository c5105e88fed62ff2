"""What one process made of many cases, and what another measured of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Made:
    """The folder that holds each case's checkpoint, what was said of it, and its numbers."""

    folder: Path
    same: dict[str, str]
    """Cases that another one made already, by their names."""
    said: dict[str, dict[str, Any]]
    numbers: dict[str, dict[str, float]]

    def artifact(self, case: str) -> Path:
        return self.folder / self.same.get(case, case) / "artifact"

    def weights(self, case: str) -> str:
        return hashlib.sha256((self.artifact(case) / "model.safetensors").read_bytes()).hexdigest()

    def config(self, case: str) -> dict[str, Any]:
        content = json.loads((self.artifact(case) / "config.json").read_text())
        found: dict[str, Any] = content["quantization_config"]
        return found
