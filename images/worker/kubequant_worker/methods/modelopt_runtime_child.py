"""The child that measures ModelOpt's checkpoints, and their originals, by transformers.

`python -m kubequant_worker.methods.modelopt_runtime_child`. What is quantized is read by our own
reader first (`modelopt_weights`), since transformers takes the stored numbers for weights;
everything else is `transformers_child`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from kubequant_worker.methods.modelopt_weights import plain
from kubequant_worker.methods.transformers_child import Engine, main
from kubequant_worker.methods.transformers_model import CheckpointModel

if TYPE_CHECKING:
    from kubequant_worker.methods.transformers_model import Loading


class PlainModel(CheckpointModel):
    """A loaded checkpoint whose weights may have been quantized by ModelOpt."""

    def _prepare(self, path: Path, loading: Loading) -> None:
        """Make the weights plain, in the working space: no part of loading a model."""
        super()._prepare(path, loading)
        folder = Path(loading.spill) / "plain"
        self._plain = plain(path, folder, getattr(torch, loading.dtype))

    def _load(self, path: Path, loading: Loading) -> Any:
        """Return the model of the plain weights, which rounds inputs as the quantized one does."""
        del path
        model = super()._load(self._plain.folder, loading)
        self._plain.attach(model)
        return model


class ModelOptRuntimeChild(Engine):
    """The operations of the child."""

    MODEL: ClassVar[type[CheckpointModel]] = PlainModel


if __name__ == "__main__":
    main(ModelOptRuntimeChild)
