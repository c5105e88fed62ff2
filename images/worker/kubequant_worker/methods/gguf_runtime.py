"""The parent's half of the llama.cpp engine: the child's handle, and the `Runtime` of evaluation.

llama.cpp is not imported here; it lives in the child (`gguf_engine`).
"""

from __future__ import annotations

import mmap
import os
from importlib.metadata import version
from typing import TYPE_CHECKING

from kubequant_worker.methods.child import Child
from kubequant_worker.methods.child_runtime import ChildRuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from kubequant_worker.evaluation.runtime import TokenArray

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
        return self.start()

    def start(self) -> Child:
        """Start the child if it does not run, and return it; its imports begin at once."""
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


class LlamaRuntime(ChildRuntime):
    """One GGUF model loaded in the engine's child. Implements `evaluation.runtime.Runtime`."""

    def __init__(
        self, engine: LlamaEngine, path: Path, context_length: int = 0, *, alone: bool = False
    ) -> None:
        """Load `path` for windows of up to `context_length` tokens (0: the model's own context).

        An engine that is this model's `alone` ends with it.
        """
        self._alone = alone
        facts = engine.child.call("open", str(path))
        super().__init__(engine, facts, name=engine_name(), context_length=context_length)

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        if self._alone:
            self._open = False
            self.engine.close()
        else:
            super().close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free the model; a process of its own has nobody else to end it."""
        if exc_type is None or self._alone:
            self.close()

    def collect(
        self,
        windows: Sequence[TokenArray],
        path: Path,
        *,
        datasets: Sequence[str],
        on_tokens: Callable[[int], None],
    ) -> int:
        """Write the importance matrix over `windows` to `path`; return how many weights it has."""
        arguments = (list(windows), str(path), list(datasets), self.context_length)
        return int(self.engine.child.call("collect", *arguments, on_event=on_tokens))
