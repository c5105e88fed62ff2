"""transformers' logits that a conversion to GGUF is checked against, and when they are computed.

Beside the conversion, in a child of their own, where memory holds both; else after it, in the child
that converted. `gguf_check` judges them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from kubequant_worker.errors import MemoryExhaustedError
from kubequant_worker.methods.child import ChildFailedError
from kubequant_worker.methods.gguf_check import CHECK_TEXT
from kubequant_worker.methods.memory import available_bytes
from kubequant_worker.sources.selection import is_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kubequant_worker.evaluation.runtime import FloatRows
    from kubequant_worker.methods.gguf_convert import Converter
    from kubequant_worker.methods.gguf_file import GGUFHeader

# torch, transformers and the interpreter of one child.
_LIBRARIES_BYTES: Final = 1 << 30
# What a conversion holds, over the bytes that it reads at once.
_CONVERSION_FACTOR: Final = 1.2
# Float32 and what computing over a short text adds.
_BYTES_PER_WEIGHT: Final = 4.5
# Of a weight in a checkpoint; one that is wider only makes for more room.
_LEAST_WEIGHT_BYTES: Final = 2


def conversion_bytes(weights: int) -> int:
    """Return the memory that a conversion takes which holds so many bytes of weights at once."""
    return int(_LIBRARIES_BYTES + _CONVERSION_FACTOR * weights)


class ReferenceLogits:
    """The logits over the check's text in the file `target`, shape (tokens, vocabulary)."""

    def __init__(self, target: Path, start_child: Callable[[], Converter]) -> None:
        """Prepare to compute with a child that `start_child` starts; starts nothing."""
        self._target = target
        self._start_child = start_child
        self._child: Converter | None = None
        self._wait: Callable[[], list[int]] | None = None
        self.warnings: tuple[str, ...] = ()
        """Why there are none."""

    def prepare(self) -> None:
        """Start the child, whose imports take seconds, where memory is ample."""
        if available_bytes() >= 4 * _LIBRARIES_BYTES:
            self._child = self._start_child()

    def begin(self, model: Path) -> None:
        """Begin to compute, where memory holds it beside the conversion of the whole model."""
        if self._child is None:
            return
        size = sum(path.stat().st_size for path in model.iterdir() if is_weights(path.name))
        reference = _LIBRARIES_BYTES + _BYTES_PER_WEIGHT * size / _LEAST_WEIGHT_BYTES
        if conversion_bytes(size) + reference > available_bytes():
            self.close()
        else:
            self._wait = self._child.begin_reference(model, CHECK_TEXT, self._target)

    def finish(self, model: Path, converter: Converter, header: GGUFHeader) -> list[int] | None:
        """Return the text's token ids, or None where the model could not be computed.

        What was not begun is computed by `converter`, which is done with its own work.
        """
        weights = sum(int(np.prod(tensor.shape)) for tensor in header.tensors)
        needed, free = int(_BYTES_PER_WEIGHT * weights) + _LIBRARIES_BYTES, available_bytes()
        if self._wait is None and needed > free:
            sizes = f"{needed >> 20} MiB of memory in float32, and {free >> 20} MiB are free"
            why = f"the conversion was not checked against transformers: that takes about {sizes}"
            self.warnings = (why,)
            return None
        try:
            wait = self._wait or converter.begin_reference(model, CHECK_TEXT, self._target)
            return wait()
        except (ChildFailedError, MemoryExhaustedError) as error:
            last = str(error).strip().splitlines()[-1]
            self.warnings = (
                f"the conversion was not checked: transformers does not run the model ({last})",
            )
            return None
        finally:
            self.close()

    def logits(self) -> FloatRows:
        """Return what was computed."""
        found: FloatRows = np.load(self._target)
        return found

    def close(self) -> None:
        """End the child; a second call does nothing."""
        if self._child is not None:
            self._child.close()
        self._child = self._wait = None
