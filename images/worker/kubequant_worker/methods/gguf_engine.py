"""The child process that holds llama.cpp: `python -m kubequant_worker.methods.gguf_engine`.

It answers one request after another: quantize a file, load a model, tokenize, score windows,
generate, time itself, collect an importance matrix. Rows of logits go to the parent through shared
memory, in slots, so that the parent works on one batch while the next is computed. The parent's
half is `gguf_runtime`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as lib
import numpy as np

from kubequant_worker.methods.child import Parent, serve
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
    from kubequant_worker.evaluation.runtime import Generation, TokenArray
    from kubequant_worker.methods.child import Operation

SLOTS = MOST_LANES * SLOTS_PER_LANE


class Engine:
    """The operations of the child, one model loaded at a time."""

    def __init__(self, parent: Parent, *, memory_descriptor: int, threads: int) -> None:
        """Answer to `parent`, with logits in the memory of `memory_descriptor`."""
        self._parent = parent
        self._descriptor = memory_descriptor
        self._threads = threads
        self._log = Log()
        self._model: LoadedModel | None = None
        self._loaded_in: Loaded | None = None
        self._shared: mmap.mmap | None = None

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {
            "open": self.open,
            "close": self.close,
            "tokenize": self.tokenize,
            "score": self.score,
            "generate": self.generate,
            "complete": self.complete,
            "perform": self.perform,
            "collect": self.collect,
            "quantize": self.quantize,
        }

    def open(self, path: str) -> dict[str, object]:
        """Load a model and return what a runtime has to know of it."""
        self.close()
        self._loaded_in = Loaded()
        model = LoadedModel(Path(path), threads=self._threads, log=self._log)
        self._loaded_in.finish()
        self._model = model
        rows = batch_tokens(model.vocabulary_size)
        size = SLOTS * rows * model.vocabulary_size * 4
        os.ftruncate(self._descriptor, size)
        self._shared = mmap.mmap(self._descriptor, size)
        return {
            "vocabulary_size": model.vocabulary_size,
            "context_length": model.context_length,
            "bos_token": model.bos_token,
            "prefix_token": model.prefix_token,
            "chat_template": model.chat_template,
            "slots": (SLOTS, rows, model.vocabulary_size),
        }

    def close(self) -> None:
        """Free the model, if one is loaded."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise RuntimeError("no model is loaded")
        return self._model

    def tokenize(self, texts: Sequence[str], special: bool) -> list[TokenArray]:  # noqa: FBT001 - crosses a pipe
        """Return the ids of each text."""
        return [self._loaded().tokenize(text, special=special) for text in texts]

    def generate(self, prompts: Sequence[str], most: int) -> list[Generation]:
        """Return the greedy continuations."""
        return self._loaded().generate(prompts, most)

    def complete(
        self, starts: Sequence[TokenArray], most: int, stops: Sequence[str]
    ) -> list[Generation]:
        """Return the greedy continuations of token ids."""
        return self._loaded().complete(starts, most, stops)

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

        The parent answers each batch when it is done with it; a slot is written again only after
        that.
        """
        model, shared = self._loaded(), self._shared
        if shared is None:
            raise RuntimeError("no memory is shared")
        rows_per_slot = batch_tokens(model.vocabulary_size)
        slots = np.ndarray(
            (SLOTS, rows_per_slot, model.vocabulary_size), np.float32, memoryview(shared)
        )
        lanes = lane_count(model, windows)
        if lanes > 1:
            longest = max(len(window) for window in windows)
            with Lanes(model, lanes, longest) as side_by_side:
                used = slots[: SLOTS_PER_LANE * lanes]
                side_by_side.score(windows, used, self._parent.event, self._parent.receive)
            return
        waiting = 0
        for number, (spans, rows) in enumerate(model.decode_windows(windows)):
            if waiting == SLOTS:
                self._parent.receive()
                waiting -= 1
            np.copyto(slots[number % SLOTS, : len(rows)], rows)
            self._parent.event(number % SLOTS, spans)
            waiting += 1
        for _ in range(waiting):
            self._parent.receive()

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
