"""The parent's half of the llama.cpp engine: the child's handle, and the `Runtime` of evaluation.

llama.cpp is not imported here; it lives in the child (`gguf_engine`).
"""

from __future__ import annotations

import mmap
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Self, cast

import numpy as np

from kubequant_worker.evaluation.runtime import Generation, LogitRows, TokenArray
from kubequant_worker.methods.child import Child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

_MODULE = "kubequant_worker.methods.gguf_engine"


def engine_name() -> str:
    """Return the engine and its version."""
    return f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})"


class LlamaEngine:
    """The child that holds llama.cpp, started when first needed, killed by `close`."""

    def __init__(self, threads: int) -> None:
        """Compute with `threads` threads."""
        self._threads = threads
        self._child: Child | None = None
        self._descriptor = -1

    @property
    def child(self) -> Child:
        """Return the child, started now if it does not run."""
        if self._child is None:
            self._descriptor = os.memfd_create("kubequant-logits")
            self._child = Child(
                _MODULE,
                engine="llama.cpp",
                threads=self._threads,
                arguments=(str(self._descriptor), str(self._threads)),
                pass_fds=(self._descriptor,),
            )
        return self._child

    def shared_memory(self) -> mmap.mmap:
        """Return the memory that the child writes logits to, at its present size."""
        size = os.fstat(self._descriptor).st_size
        return mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)

    def quantize(
        self,
        source: Path,
        target: Path,
        *,
        file_type: int,
        output_type: int | None,
        embedding_type: int | None,
        matrix: Path | None,
        low_memory: bool,
        on_tensor: Callable[[int, int, str], None],
    ) -> None:
        """Write `source` at another level to `target`; errors as `Child.call`."""
        arguments = (str(source), str(target), file_type, output_type, embedding_type)
        last = (str(matrix) if matrix else None, low_memory)
        self.child.call("quantize", *arguments, *last, on_event=on_tensor)

    def close(self) -> None:
        """End the child; a second call does nothing."""
        if self._child is not None:
            self._child.close()
            self._child = None
            os.close(self._descriptor)


class LlamaRuntime:
    """One GGUF model loaded in the engine's child. Implements `evaluation.runtime.Runtime`."""

    def __init__(self, engine: LlamaEngine, path: Path, context_length: int = 0) -> None:
        """Load `path` for windows of up to `context_length` tokens (0: the model's own context)."""
        self._engine = engine
        facts = engine.child.call("open", str(path))
        self._vocabulary_size = int(facts["vocabulary_size"])
        trained = int(facts["context_length"])
        self._context_length = min(context_length, trained) if context_length else trained
        self._bos_token = cast("int | None", facts["bos_token"])
        self._chat_template = cast("str | None", facts["chat_template"])
        self._slot_shape = tuple(int(part) for part in facts["slots"])
        self._memory = engine.shared_memory()
        self._open = True

    @property
    def name(self) -> str:
        """Return the engine and its version."""
        return engine_name()

    @property
    def vocabulary_size(self) -> int:
        """Return the width of a row of logits."""
        return self._vocabulary_size

    @property
    def context_length(self) -> int:
        """Return the longest window that this runtime measures."""
        return self._context_length

    @property
    def bos_token(self) -> int | None:
        """Return the id that opens every text, None where the tokenizer adds none."""
        return self._bos_token

    @property
    def chat_template(self) -> str | None:
        """Return the chat template that the file carries."""
        return self._chat_template

    def tokenize(self, texts: Sequence[str], *, special: bool = False) -> list[TokenArray]:
        """Return each text's ids, nothing added; see `Runtime.tokenize`."""
        return cast("list[TokenArray]", self._engine.child.call("tokenize", list(texts), special))

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Generation]:
        """Return the greedy continuation of each prompt."""
        generated = self._engine.child.call("generate", list(prompts), max_new_tokens)
        return cast("list[Generation]", generated)

    def collect(
        self,
        windows: Sequence[TokenArray],
        path: Path,
        *,
        datasets: Sequence[str],
        on_tokens: Callable[[int], None],
    ) -> int:
        """Write the importance matrix over `windows` to `path`; return how many weights it has."""
        arguments = (list(windows), str(path), list(datasets), self._context_length)
        return int(self._engine.child.call("collect", *arguments, on_event=on_tokens))

    def logits(self, windows: Sequence[TokenArray]) -> Iterator[LogitRows]:
        """Yield the logits of every token of every window; see `Runtime.logits`."""
        slots = np.ndarray(self._slot_shape, np.float32, memoryview(self._memory))
        child = self._engine.child
        finished = False
        try:
            for slot, spans in child.events("score", list(windows)):
                at = 0
                for window, first, count in spans:
                    yield LogitRows(window, first, slots[slot, at : at + count])
                    at += count
                child.send("done")
            finished = True
        finally:
            if not finished:
                # The child waits in the middle of a batch: there is no way back but a new one.
                self._engine.close()
                self._open = False

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        if self._open:
            self._open = False
            self._engine.child.call("close")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free the model, or leave it to the child's end where the run is being interrupted."""
        if exc_type is None:
            self.close()
