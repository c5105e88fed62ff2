"""What a user asks for: `spec` of a QuantizationJob, with the rules that hold between its parts.

The parts themselves stand in `data`, `params`, `evaluation` and `pod`; their names can be had from
here too.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import Field, StrictBool, StrictInt

from kubequant.api.base import Model, Rule, camel
from kubequant.api.choices import Goal, Memory
from kubequant.api.data import Dataset, ModelSource, Output, OutputS3Options, S3Options, SecretRef
from kubequant.api.enums import Device, Measurement, Method, OnGateFailure
from kubequant.api.evaluation import (
    MEASURED_BY,
    Benchmark,
    Calibration,
    Evaluation,
    Gate,
    Generations,
    Performance,
    PerplexityEvaluation,
)
from kubequant.api.params import (
    DEFAULT_GGUF_TYPES,
    AWQParameters,
    BitsAndBytesParameters,
    DistillParameters,
    FP8Parameters,
    GGUFParameters,
    GPTQParameters,
    INT4Parameters,
    INT8Parameters,
    MethodParameters,
    PruneParameters,
)
from kubequant.api.pod import Pod
from kubequant.api.tensorrt import TensorRTParameters

__all__ = [
    "MEMBERS",
    "Benchmark",
    "Calibration",
    "Dataset",
    "Evaluation",
    "Gate",
    "Generations",
    "Goal",
    "Memory",
    "ModelSource",
    "Output",
    "OutputS3Options",
    "Performance",
    "PerplexityEvaluation",
    "Pod",
    "QuantizationJobSpec",
    "S3Options",
    "SecretRef",
]


MEMBERS: Final[dict[Method, tuple[str, type[MethodParameters]]]] = {
    Method.INT8: ("int8", INT8Parameters),
    Method.INT4: ("int4", INT4Parameters),
    Method.FP8: ("fp8", FP8Parameters),
    Method.GPTQ: ("gptq", GPTQParameters),
    Method.AWQ: ("awq", AWQParameters),
    Method.BITS_AND_BYTES: ("bits_and_bytes", BitsAndBytesParameters),
    Method.GGUF: ("gguf", GGUFParameters),
    Method.PRUNE: ("prune", PruneParameters),
    Method.DISTILL: ("distill", DistillParameters),
    Method.TENSOR_RT: ("tensor_rt", TensorRTParameters),
}
"""The member of the spec that each method reads, as attribute and type."""

_DEVICES: Final[dict[Method, Device]] = {
    Method.INT8: Device.GPU,
    Method.INT4: Device.CPU,
    Method.FP8: Device.GPU,
    Method.GPTQ: Device.GPU,
    Method.AWQ: Device.GPU,
    Method.BITS_AND_BYTES: Device.GPU,
    Method.GGUF: Device.CPU,
    Method.PRUNE: Device.GPU,
    Method.DISTILL: Device.GPU,
    Method.TENSOR_RT: Device.GPU,
}
_ENGINE_DEVICES: Final[dict[str, Device]] = {
    "TorchAO": Device.CPU,
    "ONNXRuntime": Device.CPU,
    "AutoRound": Device.GPU,
}


def _only_for(member: str, method: Method) -> Rule:
    alias = camel(member)
    return Rule(
        message=f"is only for method {method}; remove it or set method: {method}",
        holds=lambda s: getattr(s, member) is None or s.method is method,
        cel=f"!has(self.{alias}) || self.method == '{method}'",
        field=alias,
    )


def _not_local(field: str, guard: str, uri: str) -> Rule:
    def holds(spec: QuantizationJobSpec) -> bool:
        place = {
            "model.uri": spec.model,
            "distill.student.uri": spec.student_source(),
            "calibration.dataset.uri": spec.calibration.dataset,
            "evaluation.perplexity.dataset.uri": spec.evaluation.perplexity.dataset,
            "evaluation.taskFiles.uri": spec.evaluation.task_files,
            "output.uri": spec.output,
        }[field]
        return place is None or not place.uri.startswith("file://")

    return Rule(
        message="must not be a file:// address, which only a run on your own machine can read; "
        "use s3://, pvc:// or, for models and datasets, hf://",
        holds=holds,
        cel=f"{guard}!self.{uri}.startsWith('file://')",
        field=field,
        in_cluster=True,
    )


def _same_text(spec: QuantizationJobSpec) -> bool:
    learned, measured = spec.calibration.dataset, spec.evaluation.perplexity.dataset
    return learned is not None and measured is not None and learned.is_same_text(measured)


def _skipped_gate(measurement: Measurement) -> Rule:
    metrics = [metric.value for metric, by in MEASURED_BY.items() if by is measurement]
    return Rule(
        message=f"must not hold what evaluation.skip leaves out: {measurement} gives "
        + ", ".join(metrics),
        holds=lambda s: (
            measurement not in s.evaluation.skip
            or not any(gate.metric in metrics for gate in s.gates)
        ),
        cel="!has(self.gates) || !has(self.evaluation) || !has(self.evaluation.skip) "
        f"|| !('{measurement}' in self.evaluation.skip) "
        f"|| !self.gates.exists(gate, gate.metric in {metrics})",
        field="gates",
    )


_DEFAULT_TYPES: Final = [kind.value for kind in DEFAULT_GGUF_TYPES]
_HAS_CALIBRATION_TEXT: Final = "has(self.calibration) && has(self.calibration.dataset)"
_HAS_MEASURED_TEXT: Final = (
    "has(self.evaluation) && has(self.evaluation.perplexity) "
    "&& has(self.evaluation.perplexity.dataset)"
)
_SAME_TEXT: Final = " && ".join(
    f"{one} == {other}"
    for one, other in zip(
        *(
            (
                f"({text}.uri.endsWith('/') ? {text}.uri : {text}.uri + '/')",
                # Optional values (`?.`) have no size that the server's cost estimate could use.
                f"(has({text}.split) ? {text}.split : 'train')",
                f"(has({text}.revision) ? {text}.revision : 'main')",
            )
            for text in ("self.calibration.dataset", "self.evaluation.perplexity.dataset")
        ),
        strict=True,
    )
)


def _gates_name_types(spec: QuantizationJobSpec) -> bool:
    types = (spec.gguf or GGUFParameters()).types
    return spec.method is not Method.GGUF or all(
        gate.variant is None or gate.variant in types for gate in spec.gates
    )


def _gates_name_tasks(spec: QuantizationJobSpec) -> bool:
    tasks = {benchmark.task for benchmark in spec.evaluation.benchmarks}
    return all(gate.task is None or gate.task in tasks for gate in spec.gates)


class QuantizationJobSpec(Model):
    """What to quantize, how, on which text, what must hold, and where the artifact goes."""

    model: ModelSource
    """The model to quantize."""
    method: Method
    """How to quantize. Auto chooses by goal."""
    int8: INT8Parameters | None = None
    """Parameters of method INT8; only with that method."""
    int4: INT4Parameters | None = None
    """Parameters of method INT4; only with that method."""
    fp8: FP8Parameters | None = None
    """Parameters of method FP8; only with that method."""
    gptq: GPTQParameters | None = None
    """Parameters of method GPTQ; only with that method."""
    awq: AWQParameters | None = None
    """Parameters of method AWQ; only with that method."""
    bits_and_bytes: BitsAndBytesParameters | None = None
    """Parameters of method BitsAndBytes; only with that method."""
    gguf: GGUFParameters | None = None
    """Parameters of method GGUF; only with that method."""
    prune: PruneParameters | None = None
    """Parameters of method Prune; only with that method."""
    distill: DistillParameters | None = None
    """Parameters of method Distill; only with that method."""
    tensor_rt: TensorRTParameters | None = None
    """Parameters of method TensorRT; only with that method."""
    goal: Goal | None = None
    """What method Auto chooses by; only with that method."""
    device: Device | None = None
    """What to compute on; where absent, a GPU, but a CPU for GGUF, for INT4 with rounding Nearest,
    for engine TorchAO or ONNXRuntime; with method Auto what goal.hardware names."""
    memory: Memory = Memory()
    """What the engine may spill, and where."""
    calibration: Calibration = Calibration()
    """The text that methods learn their scales from."""
    evaluation: Evaluation = Evaluation()
    """What is measured on the original and on every variant."""
    gates: Annotated[tuple[Gate, ...], Field(max_length=16)] = ()
    """Conditions on the measured numbers; the artifact is published only if all hold."""
    on_gate_failure: OnGateFailure = OnGateFailure.FAIL
    """When a gate does not hold: Fail, Publish (and say so), Escalate to a more careful setting."""
    output: Output
    """Where the artifact is published, under <uri>/<name>/<digest>/."""
    pod: Pod = Pod()
    """Overrides for the worker's pod."""
    suspend: StrictBool = False
    """Hold the run: its pod is stopped, or not started yet."""
    backoff_limit: Annotated[StrictInt, Field(ge=0, le=10)] = 2
    """How often a run is tried again after failures that a retry may heal."""
    active_deadline_seconds: Annotated[StrictInt, Field(ge=60, le=2_592_000)] = 86_400
    """How long a run may take once its pod runs, over all attempts since a queue last held it."""
    pending_deadline_seconds: Annotated[StrictInt, Field(ge=60, le=2_592_000)] = 3600
    """How long a pod may wait for its node, volumes and image; time in a queue does not count."""
    ttl_seconds_after_finished: Annotated[StrictInt, Field(ge=0, le=31_536_000)] | None = None
    """Delete the QuantizationJob this long after it finished; where absent, never. The artifact
    stays."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _not_local("model.uri", "", "model.uri"),
        _not_local(
            "distill.student.uri",
            "!has(self.distill) || !has(self.distill.student) "
            "|| !has(self.distill.student.uri) || ",
            "distill.student.uri",
        ),
        _not_local(
            "calibration.dataset.uri", f"!({_HAS_CALIBRATION_TEXT}) || ", "calibration.dataset.uri"
        ),
        _not_local(
            "evaluation.perplexity.dataset.uri",
            f"!({_HAS_MEASURED_TEXT}) || ",
            "evaluation.perplexity.dataset.uri",
        ),
        _not_local(
            "evaluation.taskFiles.uri",
            "!has(self.evaluation) || !has(self.evaluation.taskFiles) || ",
            "evaluation.taskFiles.uri",
        ),
        _not_local("output.uri", "", "output.uri"),
        *(_only_for(member, method) for method, (member, _) in MEMBERS.items()),
        Rule(
            message="is required when method is Auto: say hardware and priority",
            holds=lambda s: s.method is not Method.AUTO or s.goal is not None,
            cel="self.method != 'Auto' || has(self.goal)",
            field="goal",
        ),
        Rule(
            message="is only for method Auto; remove it or set method: Auto",
            holds=lambda s: s.method is Method.AUTO or s.goal is None,
            cel="self.method == 'Auto' || !has(self.goal)",
            field="goal",
        ),
        Rule(
            message="must be GPU: TensorRT builds its engine on the GPU that will serve it; set "
            "tensorRT.build: Checkpoint to stop before",
            holds=lambda s: (
                s.method is not Method.TENSOR_RT
                or s.device is not Device.CPU
                or not (s.tensor_rt or TensorRTParameters()).builds_engine
            ),
            cel="self.method != 'TensorRT' || !has(self.device) || self.device != 'CPU' "
            "|| (has(self.tensorRT) && self.tensorRT.build == 'Checkpoint')",
            field="device",
        ),
        Rule(
            message="must not be less than tensorRT.tensorParallel: each part of a layer has a GPU "
            "of its own; raise it, or remove it",
            holds=lambda s: s.pod.gpu is None or s.pod.gpu.count >= s.least_gpus(),
            cel="!has(self.tensorRT) || !has(self.tensorRT.tensorParallel) || !has(self.pod) "
            "|| !has(self.pod.gpu) || self.pod.gpu.count >= self.tensorRT.tensorParallel",
            field="pod.gpu.count",
        ),
        Rule(
            message="must not name another nvidia.com/gpu.product than tensorRT.gpuProduct, which "
            "alone is needed",
            holds=lambda s: s.tensor_rt is None or s.tensor_rt.agrees_with(s.pod.node_selector),
            cel=None,
            field="pod.nodeSelector",
        ),
        Rule(
            message="must be CPU with engine ONNXRuntime, which quantizes for processors",
            holds=lambda s: (
                s.int8 is None or s.int8.engine != "ONNXRuntime" or s.device is not Device.GPU
            ),
            cel="!has(self.int8) || self.int8.engine != 'ONNXRuntime' || !has(self.device) || "
            "self.device != 'GPU'",
            field="device",
        ),
        Rule(
            message="must be GPU with engine AutoGPTQ, which refuses a CPU",
            holds=lambda s: (
                s.gptq is None or s.gptq.engine != "AutoGPTQ" or s.device is not Device.CPU
            ),
            cel="!has(self.gptq) || self.gptq.engine != 'AutoGPTQ' || !has(self.device) "
            "|| self.device != 'CPU'",
            field="device",
        ),
        Rule(
            message="must not be the text of calibration.dataset: what calibrates never measures; "
            "name another dataset or split",
            holds=lambda s: not _same_text(s),
            cel=f"!({_HAS_CALIBRATION_TEXT} && {_HAS_MEASURED_TEXT} && {_SAME_TEXT})",
            field="evaluation.perplexity.dataset",
        ),
        _skipped_gate(Measurement.PERPLEXITY),
        _skipped_gate(Measurement.PERFORMANCE),
        Rule(
            message="must name a variant only with method GGUF, whose types the spec names",
            holds=lambda s: s.method is Method.GGUF or all(g.variant is None for g in s.gates),
            cel="self.method == 'GGUF' || !has(self.gates) "
            "|| self.gates.all(gate, !has(gate.variant))",
            field="gates",
        ),
        Rule(
            message="must name only variants that gguf.types makes",
            holds=_gates_name_types,
            cel="self.method != 'GGUF' || !has(self.gates) || self.gates.all(gate, "
            "!has(gate.variant) || (has(self.gguf) ? gate.variant in self.gguf.types "
            f": gate.variant in {_DEFAULT_TYPES}))",
            field="gates",
        ),
        Rule(
            message="must name only tasks that evaluation.benchmarks lists",
            holds=_gates_name_tasks,
            cel="!has(self.gates) || self.gates.all(gate, !has(gate.task) || "
            "(has(self.evaluation) && has(self.evaluation.benchmarks) && "
            "self.evaluation.benchmarks.exists(one, one.task == gate.task)))",
            field="gates",
        ),
    )

    def parameters(self) -> MethodParameters:
        """Return the parameters of the method with every default filled in.

        Raises:
            ValueError: the method is Auto, which has none until `auto.resolve` chose.
        """
        if self.method is Method.AUTO:
            raise ValueError("method Auto has no parameters; resolve it first")
        member, kind = MEMBERS[self.method]
        written = getattr(self, member) or kind()
        on_cpu = self.effective_device() is Device.CPU
        effective: MethodParameters = written.effective(on_cpu=on_cpu)
        return effective

    def student_source(self) -> ModelSource | None:
        """Return where a ready student of method Distill is, None where none is named."""
        student = self.distill.student if self.distill else None
        return student.source() if student else None

    def least_gpus(self) -> int:
        """Return how many GPUs a run on GPUs needs."""
        return (self.tensor_rt.tensor_parallel or 1) if self.tensor_rt is not None else 1

    def effective_device(self) -> Device:
        """Return the device as written, or what the engine, the method or the goal needs."""
        if self.device is not None:
            return self.device
        if self.method is Method.AUTO:
            on_gpu = self.goal is not None and self.goal.hardware == "GPU"
            return Device.GPU if on_gpu else Device.CPU
        written = getattr(self, MEMBERS[self.method][0])
        engine = getattr(written, "engine", "Auto")
        if self.method is Method.INT4 and getattr(written, "rounding", "Nearest") == "Tuned":
            return Device.GPU
        return _ENGINE_DEVICES.get(engine, _DEVICES[self.method])
