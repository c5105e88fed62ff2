"""The parent's half of measuring with transformers: one child for each model that is opened.

torch and transformers are not imported here; they live in the child (`transformers_child`).
"""

from __future__ import annotations

import mmap
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

from kubequant_worker.methods.child import Child
from kubequant_worker.methods.child_runtime import ChildRuntime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MODULE = "kubequant_worker.methods.transformers_child"


def runtime_name() -> str:
    """Return the library that measures and its version."""
    return f"transformers {version('transformers')}"


class TransformersEngine:
    """A child that will hold one model, started at once: importing torch takes seconds."""

    def __init__(
        self,
        threads: int,
        *,
        gpus: bool = False,
        module: str = _MODULE,
        engine: str = "transformers",
    ) -> None:
        """Compute with `threads` threads, and on a GPU only with `gpus`.

        `module` holds the child, whose operations are `transformers_child`'s, and `engine` is its
        name.
        """
        self._descriptor = os.memfd_create("kubequant-logits")
        self._child: Child | None = Child(
            module,
            engine=engine,
            threads=threads,
            arguments=(str(self._descriptor), str(threads)),
            pass_fds=(self._descriptor,),
            gpus=gpus,
        )

    @property
    def child(self) -> Child:
        """Return the child.

        Raises:
            RuntimeError: It was closed.
        """
        if self._child is None:
            raise RuntimeError("the model's process has ended")
        return self._child

    def shared_memory(self) -> mmap.mmap:
        """Return the memory that the child writes logits to, at its present size."""
        size = os.fstat(self._descriptor).st_size
        return mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)

    def close(self) -> None:
        """End the child; a second call does nothing."""
        if self._child is not None:
            self._child.close()
            self._child = None
            os.close(self._descriptor)


class TransformersRuntime(ChildRuntime):
    """One checkpoint in a process of its own. Implements `evaluation.runtime.Runtime`."""

    def __init__(
        self,
        engine: TransformersEngine,
        path: Path,
        loading: Mapping[str, Any],
        context_length: int = 0,
    ) -> None:
        """Load the checkpoint in `path`, for windows of up to `context_length` tokens.

        `loading` are the fields of `transformers_model.Loading`. `engine` is this runtime's alone
        and ends with it.
        """
        facts = engine.child.call("open", str(path), dict(loading))
        name = self.described(loading)
        super().__init__(engine, facts, name=name, context_length=context_length)
        self._path = path

    @classmethod
    def described(cls, loading: Mapping[str, Any]) -> str:
        """Return what measures, and how the model is loaded."""
        return f"{runtime_name()} in {loading['dtype']} on {loading['device']}"

    def is_of(self, path: Path) -> bool:
        """Say whether this is the checkpoint in `path`, and still loaded."""
        return self._open and path == self._path

    def with_context(self, context_length: int) -> Self:
        """Serve windows of up to another length from now on, and return itself."""
        self._context_length = min(context_length or self._trained_length, self._trained_length)
        return self

    def close(self) -> None:
        """End the process that holds the model; a second call does nothing."""
        self._open = False
        self.engine.close()
