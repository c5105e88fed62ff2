"""The child process that holds llama.cpp: `python -m kubequant_worker.methods.gguf_engine`.

It answers one request after another: quantize a file, load a model, tokenize, score windows,
generate, time itself, collect an importance matrix. Rows of logits go to the parent through shared
memory, in slots, so that the parent works on one batch while the next is computed. The parent's
half is `gguf_runtime`.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import llama_cpp.llama_cpp as lib

from kubequant_worker.methods.child import Parent, serve
from kubequant_worker.methods.child_server import ModelServer
from kubequant_worker.methods.gguf_context import batch_tokens
from kubequant_worker.methods.gguf_imatrix import Collector, column_weights, write_matrix
from kubequant_worker.methods.gguf_lanes import (
    MOST_LANES,
    SLOTS_PER_LANE,
    Lanes,
    lane_count,
)
from kubequant_worker.methods.gguf_llama import LoadedModel, Log
from kubequant_worker.methods.gguf_quantize import quantize
from kubequant_worker.methods.gguf_speed import LlamaSubject
from kubequant_worker.methods.stopwatch import Loaded, measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant_worker.evaluation.performance import Samples, Trial
    from kubequant_worker.evaluation.runtime import TokenArray
    from kubequant_worker.methods.child import Operation


class Engine(ModelServer[LoadedModel]):
    """The operations of the child, one model loaded at a time."""

    SLOTS: ClassVar[int] = MOST_LANES * SLOTS_PER_LANE

    def __init__(self, parent: Parent, *, memory_descriptor: int, threads: int) -> None:
        """Answer to `parent`, with logits in the memory of `memory_descriptor`."""
        super().__init__(parent, memory_descriptor=memory_descriptor)
        self._threads = threads
        self._log = Log()
        self._loaded_in: Loaded | None = None

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {
            **super().operations(),
            "open": self.open,
            "collect": self.collect,
            "quantize": self.quantize,
        }

    def open(self, path: str) -> dict[str, Any]:
        """Load a model and return what a runtime has to know of it."""
        self.close()
        self._loaded_in = Loaded()
        model = LoadedModel(Path(path), threads=self._threads, log=self._log)
        self._loaded_in.finish()
        return self._serve(model, rows=batch_tokens(model.vocabulary_size))

    def close(self) -> None:
        """Free the model, if one is loaded."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def perform(self, trial: Trial) -> Samples:
        """Time the model, telling the parent of each step."""
        if self._loaded_in is None:
            raise RuntimeError("no model is loaded")
        with LlamaSubject(self._loaded(), trial) as subject:
            return measure(
                subject,
                trial,
                loaded=self._loaded_in,
                threads=self._threads,
                on_step=self._parent.event,
            )

    def score(self, windows: Sequence[TokenArray]) -> None:
        """Put the logits of all windows, batch by batch, into the slots, and tell the parent.

        Windows that fit one batch are computed side by side, in lanes with slots of their own.
        """
        model = self._loaded()
        lanes = lane_count(model, windows)
        if lanes > 1:
            longest = max(len(window) for window in windows)
            with Lanes(model, lanes, longest) as side_by_side:
                used = self._shared()[: SLOTS_PER_LANE * lanes]
                side_by_side.score(windows, used, self._parent.event, self._parent.receive)
            return
        self._hand_over(model.decode_windows(windows))

    def collect(
        self, windows: Sequence[TokenArray], path: str, datasets: Sequence[str], chunk_tokens: int
    ) -> int:
        """Write the importance matrix over `windows` to `path`; return how many entries it has."""
        library = ctypes.CDLL(str(Path(lib.__file__).parent / "lib" / "libggml-base.so"))
        collector = Collector(library)
        callback = lib.ggml_backend_sched_eval_callback(collector)
        # The batches' logits are computed and dropped: without them the last block would see only
        # one token of each batch, since llama.cpp computes there only what an output needs.
        for spans, _ in self._loaded().decode_windows(windows, eval_callback=callback):
            if collector.error is not None:
                raise collector.error
            self._parent.event(sum(count for _, _, count in spans))
        if collector.error is not None:
            raise collector.error
        write_matrix(
            Path(path),
            collector.sums,
            collector.counts,
            datasets=datasets,
            chunks=len(windows),
            chunk_tokens=chunk_tokens,
        )
        return len(collector.sums)

    def quantize(  # noqa: PLR0917 - arguments cross a pipe by position
        self,
        source: str,
        target: str,
        file_type: int,
        output_type: int | None,
        embedding_type: int | None,
        matrix: str | None,
        low_memory: bool,  # noqa: FBT001 - crosses a pipe by position
    ) -> None:
        """Write `source` at another level to `target`, telling the parent of each tensor begun."""
        quantize(
            Path(source),
            Path(target),
            file_type=file_type,
            output_type=output_type,
            embedding_type=embedding_type,
            importance=column_weights(Path(matrix)) if matrix else None,
            threads=self._threads,
            low_memory=low_memory,
            log=self._log,
            on_tensor=self._parent.event,
        )


def main() -> None:
    """Serve until the parent is gone. Arguments: socket, parent's pid, shared memory, threads."""
    descriptor, threads = int(sys.argv[3]), int(sys.argv[4])

    def operations(parent: Parent) -> Mapping[str, Operation]:
        return Engine(parent, memory_descriptor=descriptor, threads=threads).operations()

    serve(sys.argv[1:], operations)


if __name__ == "__main__":
    main()
