"""Takes a training's checkpoints to the store while the training goes on, one after another."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Self

from kubequant_worker.errors import WorkerError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from kubequant_worker.stores import Checkpoints


class CheckpointKeeper:
    """Keeps the files that it is offered. A context manager; used by one thread."""

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        """Keep in `checkpoints`; None, where a run has no such place, keeps nothing."""
        self._checkpoints = checkpoints
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._waiting: list[Future[None]] = []
        self.kept_step = 0
        """The step of the last checkpoint that was kept, 0 before there is one."""
        self.troubles: list[str] = []

    def offer(self, path: Path, step: int) -> None:
        """Begin to keep the file at `path` and return at once; it is gone when that is done."""
        self._waiting.append(self._pool.submit(self._keep, path, step))

    def finish(self, seconds: float | None = None) -> None:
        """Wait until all is dealt with, for at most so many seconds."""
        for one in wait(self._waiting, timeout=seconds).done:
            one.result()

    def _keep(self, path: Path, step: int) -> None:
        try:
            if self._checkpoints is not None:
                self._checkpoints.keep(path, step)
                self.kept_step = step
        except WorkerError as error:
            # The training is worth more than the checkpoint; the next one may be kept.
            self.troubles.append(f"the checkpoint of step {step} was not kept: {error.message}")
        finally:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for what is under way, unless the run ends by an exception."""
        self._pool.shutdown(wait=exc_type is None, cancel_futures=exc_type is not None)
