"""The methods: what each must be able to do, and the literal table of where each is implemented.

One module per method. A method's library is imported only inside that method's own modules, so
importing this one costs nothing and works in every image. Adding a method is one line in `METHODS`
and one module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, Self, cast

from kubequant.api.contract import FailureReason
from kubequant.api.spec import Method, QuantizationJobSpec
from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from kubequant.api.status import Usage
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.runtime import Runtime

METHODS: dict[Method, str] = {
    Method.GGUF: "kubequant_worker.methods.gguf:GGUFQuantizer",
}


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run will take, known before anything is fetched.

    `scratch_bytes` counts the fetched model, everything made from it and what measuring keeps.
    Below `memory_bytes` the run cannot end well; below `comfortable_memory_bytes` it works, but
    weights are read from disk again and again.
    """

    scratch_bytes: int
    memory_bytes: int
    comfortable_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Workspace:
    """What a method works on and where.

    `model` holds the fetched files; `scratch` is the method's own folder; what is written under
    `artifact` is published. `name` is the stem of the published files.
    """

    spec: QuantizationJobSpec
    model: Path
    scratch: Path
    artifact: Path
    name: str
    threads: int


@dataclass(frozen=True, slots=True)
class Baseline:
    """The original in the form that the measuring runtime loads, like the BF16 GGUF."""

    name: str
    path: Path
    size_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProducedVariant:
    """One quantized model.

    `files` are relative to the artifact folder; `size_bytes` counts the weights only.
    """

    name: str
    files: tuple[Path, ...]
    size_bytes: int
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


class Quantizer(Protocol):
    """One method at work on one model, in the order of the methods below. A context manager.

    Everything long-running counts on the `Meter` it gets (a `StageProgress`, or a `Portion` of
    one), in units that it sets itself with `set_total`, and can be interrupted by an exception
    raised in the calling thread, which must be the main thread: children die with the thread that
    started them.
    """

    @classmethod
    def needs(cls, spec: QuantizationJobSpec, files: Mapping[str, int]) -> Needs:
        """Return what the run will take.

        From the listing (file name to bytes) and the parameters alone.

        Raises:
            BadRequestError: The parameters ask for what this method or this model cannot give.
        """

    @classmethod
    def engine(cls) -> str:
        """Return the engine and its version, like "llama.cpp (llama-cpp-python 0.3.36)"."""

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return whether this spec's parameters make the method read calibration text."""

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to work in `workspace`; starts nothing."""

    def baseline(self, meter: Meter) -> Baseline:
        """Make the original measurable (GGUF: convert it), once.

        Raises:
            BadRequestError: The engine does not know this architecture or tokenizer.
        """

    def check_baseline(self, meter: Meter) -> tuple[str, ...]:
        """Compare the baseline with the model as it was fetched and return warnings.

        Raises:
            BadRequestError: Making the baseline lost something.
        """

    def variants(self, calibration: TextSet | None, meter: Meter) -> Iterator[ProducedVariant]:
        """Produce the variants one by one; `calibration` is there where `calibrates` says so."""

    def calibration_tokens(self) -> int:
        """Return how many tokens of the calibration text were read, 0 before `variants` did."""

    def shared_files(self) -> tuple[Path, ...]:
        """Return what is published beside the variants and belongs to all.

        Relative to the artifact folder.
        """

    def verify(self, produced: ProducedVariant, meter: Meter) -> tuple[str, ...]:
        """Load the variant in the engine that will serve it, generate, and return warnings.

        Raises:
            BadRequestError: It does not load, or what it computes are not numbers.
        """

    def open_runtime(self, of: Baseline | ProducedVariant, context_length: int) -> Runtime:
        """Load the original or a variant for windows of up to `context_length` tokens.

        0 means the model's own context. One model is loaded at a time: the one before is freed.
        """

    def usage(self, produced: ProducedVariant) -> Usage:
        """Return how to serve the variant, started in a folder that holds its files."""

    def close(self) -> None:
        """End what was started; a second call does nothing."""

    def __enter__(self) -> Self:
        """Return itself; may start what takes long to start. The model need not be there yet."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the quantizer."""


def quantizer(method: Method) -> type[Quantizer]:
    """Return the class that implements `method`, importing its library's module now.

    Raises:
        BadRequestError: This worker does not hold the method.
    """
    target = METHODS.get(method)
    if target is None:
        known = ", ".join(sorted(known.value for known in METHODS))
        raise BadRequestError(
            f"spec.method: {method.value} is not in this worker, which holds {known}",
            reason=FailureReason.UNSUPPORTED_MODEL,
        )
    module, _, attribute = target.partition(":")
    return cast("type[Quantizer]", getattr(import_module(module), attribute))
