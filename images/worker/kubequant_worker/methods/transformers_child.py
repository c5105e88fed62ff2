"""The child that holds one checkpoint: `python -m kubequant_worker.methods.transformers_child`.

It loads one model, once: a checkpoint that is measured after another gets a process that has never
seen the other. Rows of logits go to the parent through shared memory, in slots, so that the parent
works on one piece while the next is computed. The parent's half is `transformers_runtime`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from kubequant_worker.methods import remote_code
from kubequant_worker.methods.child import Parent, serve
from kubequant_worker.methods.child_server import ModelServer
from kubequant_worker.methods.stopwatch import measure
from kubequant_worker.methods.transformers_model import CheckpointModel, Loading
from kubequant_worker.methods.transformers_speed import CheckpointSubject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant_worker.evaluation.performance import Samples, Trial
    from kubequant_worker.evaluation.runtime import TokenArray
    from kubequant_worker.methods.child import Operation


class Engine(ModelServer[CheckpointModel]):
    """The operations of the child; what kind of model it holds may be another (`onnx_child`)."""

    MODEL: ClassVar[type[CheckpointModel]] = CheckpointModel

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {**super().operations(), "open": self.open}

    def open(self, path: str, loading: Mapping[str, object]) -> dict[str, Any]:
        """Load the model and return what a runtime has to know of it."""
        if self._model is not None:
            raise RuntimeError("this process has loaded a model already")
        how = Loading(**loading)  # type: ignore[arg-type] # crosses a pipe as a mapping
        remote_code.decide(trusted=how.trust_remote_code)
        model = self.MODEL(Path(path), how)
        return self._serve(model, rows=model.piece_rows)

    def close(self) -> None:
        """Do nothing: the parent ends this process to free the model."""

    def perform(self, trial: Trial) -> Samples:
        """Time the model, telling the parent of each step."""
        model = self._loaded()
        return measure(
            CheckpointSubject(model),
            trial,
            loaded=model.loaded,
            threads=torch.get_num_threads(),
            on_step=self._parent.event,
        )

    def score(self, windows: Sequence[TokenArray]) -> None:
        """Put the logits of all windows, piece by piece, into the slots, and tell the parent."""
        model = self._loaded()
        self._hand_over(
            ([(window, first, len(rows))], rows)
            for window, tokens in enumerate(windows)
            for first, rows in model.rows(tokens)
        )


def main(kind: type[Engine] = Engine) -> None:
    """Serve until the parent is gone. Arguments: socket, parent's pid, shared memory, threads."""
    descriptor, threads = int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)

    def operations(parent: Parent) -> Mapping[str, Operation]:
        return kind(parent, memory_descriptor=descriptor).operations()

    serve(sys.argv[1:], operations)


if __name__ == "__main__":
    main()
