"""The child that measures where transformers is from before version 5.

`python -m kubequant_worker.methods.legacy_runtime_child`. The transformers there has no kernels for
packed weights, which are unpacked first; everything else is `transformers_child`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kubequant_worker.methods.packed_weights import unpacked
from kubequant_worker.methods.transformers_child import Engine, main
from kubequant_worker.methods.transformers_model import CheckpointModel

if TYPE_CHECKING:
    from kubequant_worker.methods.transformers_model import Loading


class UnpackedModel(CheckpointModel):
    """A loaded checkpoint whose weights may have been packed, in the gptq or the awq format."""

    def _prepare(self, path: Path, loading: Loading) -> None:
        """Unpack to where weights may be spilled, which is no part of loading a model."""
        super()._prepare(path, loading)
        self._unpacked = unpacked(path, Path(loading.spill) / "unpacked")

    def _load(self, path: Path, loading: Loading) -> Any:
        """Return the model of the plain weights."""
        del path
        return super()._load(self._unpacked, loading)


class LegacyRuntimeChild(Engine):
    """The operations of the child."""

    MODEL: ClassVar[type[CheckpointModel]] = UnpackedModel


if __name__ == "__main__":
    main(LegacyRuntimeChild)
