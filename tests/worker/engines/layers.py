"""Makes a model of another's first layers: trained weights, a fraction of the work."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def first_layers(source: Path, folder: Path, count: int) -> Path:
    """Copy a model of one weight file without its layers from `count` on, and return the copy."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - imports torch

    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    kept = {
        name: tensor
        for name, tensor in load_file(path).items()
        if (found := re.search(r"\.layers\.(\d+)\.", name)) is None or int(found[1]) < count
    }
    save_file(kept, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps({**config, "num_hidden_layers": count})
    (folder / "config.json").write_text(text)
    return folder
