"""The methods: what each must be able to do, and the literal table of where each is implemented.

One module per method, in it one class per engine. An engine's library is imported only inside its
own modules, so importing this one costs nothing and works in every image. Adding an engine is a
line in `METHODS` and one in `kubequant.api.engines`, which says what Auto prefers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, Self, cast

from kubequant.api.engines import (
    ACCELERATE,
    AUTO,
    AUTO_AWQ,
    AUTO_GPTQ,
    AUTO_ROUND,
    BITS_AND_BYTES,
    ENGINES,
    GPTQ_MODEL,
    LLAMA_CPP,
    LLM_COMPRESSOR,
    MODEL_OPT,
    ONNX_RUNTIME,
    TORCH,
    TORCH_AO,
    candidates,
    engine_choice,
)
from kubequant.api.enums import Method
from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from kubequant.api.contract import EngineDetail
    from kubequant.api.engines import EngineChoice
    from kubequant.api.spec import QuantizationJobSpec
    from kubequant.api.status import Usage
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.runtime import Runtime
    from kubequant_worker.methods.distillation import Distillation
    from kubequant_worker.methods.sparsity import Sparsity
    from kubequant_worker.sources import FetchedModel
    from kubequant_worker.stores import Checkpoints

METHODS: dict[tuple[Method, str], str] = {
    (Method.GGUF, LLAMA_CPP): "kubequant_worker.methods.gguf:GGUFQuantizer",
    (Method.INT8, LLM_COMPRESSOR): "kubequant_worker.methods.int8:LLMCompressorINT8",
    (Method.INT8, TORCH_AO): "kubequant_worker.methods.int8:TorchAOINT8",
    (Method.INT8, ONNX_RUNTIME): "kubequant_worker.methods.int8:ONNXRuntimeINT8",
    (Method.INT4, LLM_COMPRESSOR): "kubequant_worker.methods.int4:LLMCompressorINT4",
    (Method.INT4, AUTO_ROUND): "kubequant_worker.methods.int4:AutoRoundINT4",
    (Method.FP8, LLM_COMPRESSOR): "kubequant_worker.methods.fp8:LLMCompressorFP8",
    (Method.GPTQ, LLM_COMPRESSOR): "kubequant_worker.methods.gptq:LLMCompressorGPTQ",
    (Method.AWQ, LLM_COMPRESSOR): "kubequant_worker.methods.awq:LLMCompressorAWQ",
    (Method.GPTQ, GPTQ_MODEL): "kubequant_worker.methods.gptq:GPTQModelGPTQ",
    (Method.AWQ, GPTQ_MODEL): "kubequant_worker.methods.awq:GPTQModelAWQ",
    (Method.BITS_AND_BYTES, BITS_AND_BYTES): (
        "kubequant_worker.methods.bits_and_bytes:BitsAndBytesQuantizer"
    ),
    (Method.PRUNE, LLM_COMPRESSOR): "kubequant_worker.methods.prune:LLMCompressorPrune",
    (Method.PRUNE, TORCH): "kubequant_worker.methods.prune:TorchPrune",
    (Method.GPTQ, AUTO_GPTQ): "kubequant_worker.methods.gptq:AutoGPTQGPTQ",
    (Method.AWQ, AUTO_AWQ): "kubequant_worker.methods.awq:AutoAWQAWQ",
    (Method.DISTILL, ACCELERATE): "kubequant_worker.methods.distill:Distiller",
    (Method.TENSOR_RT, MODEL_OPT): "kubequant_worker.methods.tensorrt:ModelOptTensorRT",
}
LIBRARIES: dict[str, str] = {
    LLAMA_CPP: "llama_cpp",
    LLM_COMPRESSOR: "llmcompressor",
    GPTQ_MODEL: "gptqmodel",
    TORCH_AO: "torchao",
    ONNX_RUNTIME: "onnxruntime",
    BITS_AND_BYTES: "bitsandbytes",
    AUTO_ROUND: "auto_round",
    # torch is everywhere; what loads, spills and saves around it is not.
    TORCH: "llmcompressor",
    AUTO_GPTQ: "auto_gptq",
    AUTO_AWQ: "awq",
    ACCELERATE: "accelerate",
    MODEL_OPT: "modelopt",
}
"""The module by which an image is known to hold an engine."""
GUESTS: dict[str, str] = {AUTO_ROUND: LLM_COMPRESSOR}
"""Engines that another's library brings along, in a version that is not the one used here."""


STUDENT = "student/"
"""What stands before the names of a student's files where they are listed beside the model's."""
CHECKPOINTED = frozenset({Method.DISTILL})
"""The methods that leave checkpoints, from which a killed run's successor goes on."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run will take, known before anything is fetched.

    `scratch_bytes` counts the fetched model, everything made from it and what measuring keeps.
    Below `memory_bytes` the run cannot end well; below `comfortable_memory_bytes` it works, but
    weights are read from disk again and again. `memory_advice` and `gpu_memory_advice` are
    sentences on what would need less.
    """

    scratch_bytes: int
    memory_bytes: int
    comfortable_memory_bytes: int
    gpu_memory_bytes: int = 0
    memory_advice: str = ""
    gpu_memory_advice: str = ""

    def with_memory(self, more_bytes: int) -> Needs:
        """Return these needs with so much more memory, for what runs beside the method."""
        return replace(
            self,
            memory_bytes=self.memory_bytes + more_bytes,
            comfortable_memory_bytes=self.comfortable_memory_bytes + more_bytes,
        )


@dataclass(frozen=True, slots=True)
class Workspace:
    """What a method works on and where.

    `model` holds the fetched files, and `student` those of a student that the spec names; `scratch`
    is the method's own folder; what is written under `artifact` is published. `name` is the stem of
    the published files. `fetched` says what was fetched, by role, once it was; in `checkpoints` a
    method leaves what a later attempt goes on from.
    """

    spec: QuantizationJobSpec
    model: Path
    scratch: Path
    artifact: Path
    name: str
    threads: int
    student: Path | None = None
    fetched: Mapping[str, FetchedModel] = field(default_factory=dict)
    checkpoints: Checkpoints | None = None


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

    `files` are relative to the artifact folder; `size_bytes` counts the weights only, and
    `embedding_bytes` those of the token embeddings and the output matrix among them; `sparsity` is
    what a pruned model's files hold of zeros, `distillation` how a student learned, `engine` what a
    TensorRT-LLM engine was built for. `before` is the same model before it learned, which is
    measured too and not published. What is not `timed` is measured by what stands in for its
    runtime, whose speed says nothing.
    """

    name: str
    files: tuple[Path, ...]
    size_bytes: int
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    embedding_bytes: int | None = None
    sparsity: Sparsity | None = None
    distillation: Distillation | None = None
    before: Baseline | None = None
    engine: EngineDetail | None = None
    timed: bool = True


class Quantizer(Protocol):
    """One method at work on one model, in the order of the methods below. A context manager.

    Either `baseline` and `check_baseline` come first or, on a run that tries another setting,
    `follow`.

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

    def follow(self, earlier: Quantizer) -> None:
        """Take over what another quantizer of the same model found out, instead of `baseline`.

        Called before anything else, with what measured the original in the same runtime; `earlier`
        is closed afterwards, and that ends nothing that was taken over.
        """

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

    def open_alone(self, of: Baseline | ProducedVariant) -> Runtime:
        """Load the original or a variant, for its own context, in a process that did nothing else.

        Every other model's process is ended first, and this one ends when the runtime is closed.
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


def installed_engines() -> frozenset[str]:
    """Return the engines whose libraries this image holds; imports none of them."""
    there = {name for name, module in LIBRARIES.items() if find_spec(module) is not None}
    return frozenset(name for name in there if GUESTS.get(name) not in there)


def quantizer(spec: QuantizationJobSpec) -> tuple[type[Quantizer], EngineChoice]:
    """Return the class that does `spec`, whose module is imported now, and why it is this one.

    Raises:
        BadRequestError: No engine of this version does it, or this image does not hold it.
    """
    there = installed_engines()
    choice = engine_choice(spec, there)
    if choice is None:
        raise _unavailable(spec, there)
    module, _, attribute = METHODS[spec.method, choice.name].partition(":")
    return cast("type[Quantizer]", getattr(import_module(module), attribute)), choice


def _unavailable(spec: QuantizationJobSpec, there: frozenset[str]) -> BadRequestError:
    """Return the sentence for a spec that no engine here does."""
    named = getattr(spec.parameters(), "engine", AUTO)
    asked = f"{spec.method}" + (f" with engine {named}" if named != AUTO else "")
    fitting = candidates(spec)
    if not fitting:
        known = [engine.name for engine in ENGINES.get(spec.method, ())]
        does = f"; of {spec.method} it has {', '.join(known)}" if known else ""
        return BadRequestError(
            f"spec.method: this version does not do {asked} on a {spec.effective_device()}{does}",
            reason=FailureReason.UNSUPPORTED_MODEL,
        )
    by_name = [e.name for e in ENGINES[spec.method] if e.by_name_only and e.name in there]
    named_only = f", or name {by_name[0]}, which Auto never takes" if by_name else ""
    return BadRequestError(
        f"spec.method: {asked} is done by {fitting[0].name}, which is not in this worker; it holds "
        f"{', '.join(sorted(there)) or 'no engine'}",
        reason=FailureReason.UNSUPPORTED_MODEL,
        advice="install kubequant with that engine in an environment of its own (README.md, The "
        f"command){named_only}",
    )
