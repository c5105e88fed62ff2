"""What one process made of many cases, and what another measured of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Made:
    """The folder that holds each case's checkpoint, what was said of it, and its numbers."""

    folder: Path
    said: dict[str, dict[str, Any]]
    numbers: dict[str, dict[str, float]]
    same: dict[str, str] = field(default_factory=dict)
    """Cases that another one made already, by their names."""

    def artifact(self, case: str) -> Path:
        return self.folder / self.same.get(case, case) / "artifact"

    def weights(self, case: str) -> str:
        return hashlib.sha256((self.artifact(case) / "model.safetensors").read_bytes()).hexdigest()

    def config(self, case: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.artifact(case) / "config.json").read_text())
        return found

    def quantization(self, case: str) -> dict[str, Any]:
        found: dict[str, Any] = self.config(case)["quantization_config"]
        return found

    def types(self, case: str) -> dict[str, str]:
        files = self.artifact(case).glob("*.safetensors")
        return {span.name: span.dtype for path in files for span in read_header(path)}
