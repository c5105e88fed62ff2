"""A child process that does an engine's work for us, and the messages between the two.

An engine in C may abort the whole process, hold memory until exit, and keep the interpreter from
seeing a signal for minutes. In a child none of that reaches the worker: an abort becomes a sentence
with the child's last lines, memory goes back to the system, and a SIGTERM to the worker ends the
child at once, whatever it computes.

The parent's half (`Child`) and the child's half (`serve`) live here; what is computed does not.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import DISK_FULL, BadRequestError, MemoryExhaustedError
from kubequant_worker.parent import die_with

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from types import FrameType

# (kind, *values). From the child: "event" while it works, then one of "result", "refused",
# "memory", "disk" or "failed". To the child: (operation, arguments).
Message: TypeAlias = tuple[Any, ...]
Operation: TypeAlias = Callable[..., object]

_TAIL_LINES = 12
# No engine needs these, and what a model's own code cannot see it cannot leak.
_SECRET_PREFIXES = ("AWS_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "KUBEQUANT_")
_SETTINGS = {
    # How long OpenMP's threads spin at a barrier before they sleep. By default for milliseconds,
    # which on a machine with other work makes two threads eight times slower than one (and
    # generation a hundred times).
    "GOMP_SPINCOUNT": "1000",
    "GGML_NO_BACKTRACE": "1",  # else an abort starts a debugger
    # gptqmodel waits for itself with fewer than two workers, and compiles what images cannot.
    "GPTQMODEL_CPU_WORKERS": "2",
    "GPTQMODEL_DISABLE_GPTQ_CUDA": "1",
    "GPTQMODEL_DISABLE_PACK_EXT": "1",
    "GPTQ_TORCH_TRITON_DEQUANT": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Libraries compile parts of themselves where they find a C++ compiler: seconds at each start,
    # other roundings, and in an image that has none an error each time.
    "TORCHDYNAMO_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_FULL_WORDS = re.compile(
    rf"[(]os error ({'|'.join(map(str, sorted(DISK_FULL)))})[)]|[0-9]+ requested and [0-9]+ written"
)
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# Where engines work, on a laptop as in a pod. The folder that a user is in may be a model's, and
# torch loads a libcuda.so.1 from there: a library beside it has an empty entry in its RUNPATH.
WORKING_FOLDER = "/"


# What third-party code raises where it does not know a model; anything else ends the child.
_FORESEEABLE = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


class ChildFailedError(RuntimeError):
    """The child ended, or its work raised, in a way that no one foresaw; holds its last lines."""


class Child:
    """One child process, started at once, used by one thread, killed by `close`.

    It must be started from a thread that outlives it (the main thread): the kernel's "die with the
    parent" counts the starting thread as the parent.
    """

    def __init__(
        self,
        module: str,
        *,
        engine: str,
        threads: int,
        arguments: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        gpus: bool = False,
        online: bool = False,
    ) -> None:
        """Start `python -m module FD PARENT-PID *arguments`.

        `engine` names it in sentences for users. Without `gpus` it sees none, since a library may
        take one that is there though the spec asks for a CPU. Unless it is `online`, it does not
        ask the Hub for anything; a token it never gets.
        """
        self._engine = engine
        ours, theirs = socket.socketpair()
        # Not a pipe: the child may write without end, and nobody reads until something went wrong.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                # -P keeps the working directory, which may be a model's, out of the import path.
                [sys.executable, "-P", "-m", module, str(descriptor), str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=WORKING_FOLDER,
                env=child_environment(threads, os.environ, gpus=gpus, online=online),
                pass_fds=(descriptor, *pass_fds),
            )
        self._connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Return the child's process id."""
        return self._process.pid

    def send(self, *message: object) -> None:
        """Send a message; a child that is gone is noticed by the next `receive`."""
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return

    def events(self, operation: str, *arguments: object) -> Generator[Message, None, object]:
        """Ask for `operation` and yield its events; the generator's return value is the result.

        Raises:
            BadRequestError: The child refused, with a sentence for the user.
            MemoryExhaustedError: An allocation failed there, or the kernel killed it.
            OSError: The disk is full (errno ENOSPC).
            ChildFailedError: Anything else, with the child's last lines.
        """
        self.send(operation, arguments)
        return (yield from self._answers())

    def _answers(self) -> Generator[Message, None, object]:
        while True:
            message = self._receive()
            kind, values = message[0], message[1:]
            if kind == "event":
                yield values
            elif kind == "result":
                result: object = values[0]
                return result
            else:
                self._raise(kind, values)

    def call(
        self, operation: str, *arguments: object, on_event: Callable[..., None] | None = None
    ) -> Any:
        """Ask for `operation`, hand each event to `on_event`, and return the result.

        Raises as `events`.
        """
        return self.begin(operation, *arguments, on_event=on_event)()

    def begin(
        self, operation: str, *arguments: object, on_event: Callable[..., None] | None = None
    ) -> Callable[[], Any]:
        """Ask for `operation` and return what waits for its end as `call` does, and answers."""
        self.send(operation, arguments)

        def wait() -> Any:
            answers = self._answers()
            while True:
                try:
                    event = next(answers)
                except StopIteration as stop:
                    return stop.value
                if on_event is not None:
                    on_event(*event)

        return wait

    def messages_within(self, seconds: float) -> Iterator[Message]:
        """Yield what the child still says, each as it comes, for at most so many seconds.

        For a call that an exception has cut short. Raises as `events` where the child is gone.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and self._connection.poll(left):
            yield self._receive()

    def close(self) -> None:
        """Kill the child and wait for it; a second call does nothing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._connection.close()
        self._log.close()

    def tail(self) -> str:
        """Return the last lines that the child wrote to its standard output and error."""
        return last_lines(self._log)

    def _receive(self) -> Message:
        try:
            return cast("Message", self._connection.recv())
        except (EOFError, ConnectionResetError):
            self._raise_gone()

    def _raise_gone(self) -> NoReturn:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            raise MemoryExhaustedError(
                f"{self._engine} was killed by the kernel, most likely because the memory limit "
                "was reached",
                advice="give the pod more memory (spec.pod.resources.limits.memory), or set "
                "spec.memory.lowMemory",
            )
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        raise ChildFailedError(f"{self._engine} ended {how}; its last lines:\n{self.tail()}")

    def _raise(self, kind: str, values: Sequence[Any]) -> NoReturn:
        if kind == "refused":
            message, reason, advice = values
            raise BadRequestError(message, reason=FailureReason(reason), advice=advice)
        if kind == "memory":
            raise MemoryExhaustedError(f"{self._engine}: {values[0]}")
        if kind == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), values[0])
        raise ChildFailedError(f"{self._engine} failed; its last lines:\n{values[0]}")


def last_lines(log: IO[bytes]) -> str:
    """Return the last lines of a log that a child wrote."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 16384))
    lines = log.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join([line.rstrip() for line in lines if line.strip()][-_TAIL_LINES:])


def child_environment(
    threads: int, ours: Mapping[str, str], *, gpus: bool, online: bool
) -> dict[str, str]:
    """Return the child's environment: ours without secrets, with `threads` threads."""
    kept = {name: value for name, value in ours.items() if not name.startswith(_SECRET_PREFIXES)}
    if folders := kept.get("PYTHONPATH"):  # which is taken from our folder, not from the child's
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, folders.split(os.pathsep)))
    hidden = {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
    offline = {} if online else _OFFLINE
    return {**kept, **_SETTINGS, **offline, **hidden, "OMP_NUM_THREADS": str(threads)}


class Parent:
    """The child's view of the parent: takes requests, reports events."""

    def __init__(self, connection: Connection) -> None:
        """Speak over `connection`."""
        self._connection = connection

    def event(self, *values: object) -> None:
        """Tell the parent something while working."""
        self._connection.send(("event", *values))

    def receive(self) -> Message:
        """Return the parent's next message; raises EOFError where it is gone."""
        return cast("Message", self._connection.recv())

    def has_said(self) -> bool:
        """Say whether a message waits to be received."""
        return self._connection.poll(0)

    def answer(self, *message: object) -> None:
        """End a request."""
        self._connection.send(message)


def serve(
    arguments: Sequence[str], operations: Callable[[Parent], Mapping[str, Operation]]
) -> None:
    """Be the child: answer the parent's requests by `operations` until it is gone.

    `arguments` are the program's: the socket's descriptor and the parent's process id come first.
    """
    descriptor, parent_pid = int(arguments[0]), int(arguments[1])
    die_with(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _leave)
    parent = Parent(Connection(descriptor))
    table = operations(parent)
    while True:
        try:
            operation, values = parent.receive()
        except (EOFError, ConnectionResetError):
            _leave()
        parent.answer(*_answer(table[operation], values))


def _answer(operation: Operation, values: Sequence[object]) -> Message:
    """Return the message that ends a request: its result, or what went wrong as a value."""
    try:
        return ("result", operation(*values))
    except BadRequestError as error:
        return ("refused", error.message, error.reason.value, error.advice)
    except MemoryError as error:
        return ("memory", str(error) or "an allocation failed")
    except Exception as error:
        if _tells_of_a_full_disk(error):
            return ("disk", getattr(error, "filename", None) or "")
        if isinstance(error, _FORESEEABLE):
            return ("failed", _traceback(error))
        raise


def _tells_of_a_full_disk(error: BaseException) -> bool:
    """Say whether an exception means that the disk is full, by its number or by its words.

    safetensors raises an exception of its own, whose text alone holds Rust's words, and numpy an
    OSError without a number.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK_FULL
    return _FULL_WORDS.search(str(error)) is not None


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-_TAIL_LINES:])


def _leave(_signal: int = 0, _frame: FrameType | None = None) -> NoReturn:
    # Tearing down torch or a loaded model takes seconds and saves nothing.
    os._exit(0)
