"""Method Distill: a smaller model, the student, learns to predict what the original predicts.

The student is the teacher without some of its layers, or a model that the spec names. It is
trained in a child (`distill_child`) on the text of spec.calibration, and measured before and after.
From the checkpoints that it leaves beside the artifact's place a killed run's successor goes on.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import numpy as np

from kubequant.api.enums import Device, Offload
from kubequant.api.fields import quantity_bytes
from kubequant_worker.errors import BadRequestError, InterruptedRunError, WorkerError
from kubequant_worker.methods import STUDENT, Baseline, Needs
from kubequant_worker.methods.bounds import (
    BESIDE_ACTIVATIONS,
    GPU_CONTEXT_BYTES,
    LIBRARIES_BYTES,
    kept_logits_bytes,
)
from kubequant_worker.methods.checkpoint_check import Reference, judge_saved
from kubequant_worker.methods.checkpoint_files import is_passenger
from kubequant_worker.methods.checkpoint_keeper import CheckpointKeeper
from kubequant_worker.methods.child import ChildFailedError
from kubequant_worker.methods.distill_context import common_context, context_note
from kubequant_worker.methods.distill_identity import identity, is_of
from kubequant_worker.methods.distillation import Distillation
from kubequant_worker.methods.engine import EngineQuantizer
from kubequant_worker.methods.precision import stored_dtype
from kubequant_worker.methods.student_layers import Cut, cut_of, make_student
from kubequant_worker.sources.model_folder import model_config, require_unquantized
from kubequant_worker.sources.selection import is_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kubequant.api.params import DistillParameters
    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.runtime import FloatRows
    from kubequant_worker.methods import ProducedVariant, Workspace
    from kubequant_worker.methods.child import Child
    from kubequant_worker.methods.transformers_runtime import TransformersRuntime

_log = logging.getLogger(__name__)
UNTRAINED: Final = "untrained"
# All weights keep the bits that they have.
BITS: Final = 16
# Of a weight that learns, in bytes: itself, its gradient and two means of it, in float32.
_LEARNING: Final = 16
# Of it in a checkpoint: itself and the two means.
_KEPT: Final = 12
# What lies between a model's layers while a sequence goes through, and both models' logits.
_ACTIVATION_BYTES: Final = 1 << 30
# What saving is of the stage, against one for training.
_SAVING_SHARE: Final = 0.02
_SMALLER: Final = "A student with fewer layers (spec.distill.student.keepLayers) takes less."
# How long the last checkpoint may take after a SIGTERM: the supervisor kills after seven seconds.
LAST_SECONDS: Final = 4.5


def asked_of(spec: QuantizationJobSpec) -> DistillParameters:
    """Return the method's parameters with their defaults."""
    return cast("DistillParameters", spec.parameters())


class Distiller(EngineQuantizer):
    """Distills by torch and accelerate."""

    LIBRARY: ClassVar[str] = "accelerate"
    CHILD_MODULE: ClassVar[str] = "kubequant_worker.methods.distill_child"

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to work in `workspace`; starts nothing."""
        super().__init__(workspace)
        self._cut: Cut | None = None
        self._width = self._context = 0
        self._contexts: dict[str, int] = {}
        self._distillation: Distillation | None = None

    @classmethod
    def engine(cls) -> str:
        """Return the engine and its version, and torch's."""
        return f"{super().engine()}, torch {version('torch')}"

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return that text is read: the student learns from it."""
        del spec
        return True

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a weight has: as many as before."""
        del spec
        return BITS

    @classmethod
    def needs(cls, spec: QuantizationJobSpec, files: Mapping[str, int]) -> Needs:
        """Return what the run will take, taking the weights for 16 bits wide.

        The student's files are those below `STUDENT`; without any it is taken for its teacher.

        Raises:
            BadRequestError: Weights are to be spilled.
        """
        if spec.memory.offload is not Offload.NONE:
            raise BadRequestError(
                f"spec.memory.offload: {spec.memory.offload} is not possible with method Distill, "
                "which trains and so holds both models in memory; remove it, or set "
                "spec.memory.lowMemory, which takes one sequence at a time"
            )
        sizes = {name: size for name, size in files.items() if is_weights(name)}
        teacher = sum(size for name, size in sizes.items() if not name.startswith(STUDENT))
        student = sum(size for name, size in sizes.items() if name.startswith(STUDENT)) or teacher
        weights = student // 2
        learning = _LEARNING * weights + _ACTIVATION_BYTES
        on_gpu = spec.effective_device() is Device.GPU
        # A GPU's checkpoints pass through the processor's memory.
        taught = int(BESIDE_ACTIVATIONS * teacher)
        beside = _KEPT * weights + taught
        memory = LIBRARIES_BYTES + (beside if on_gpu else learning + 2 * teacher)
        kept_logits = kept_logits_bytes(teacher + student)
        return Needs(
            # The student before and after, and three checkpoints: gone on from, kept, and next.
            scratch_bytes=sum(files.values()) + 3 * student + 3 * _KEPT * weights + kept_logits,
            memory_bytes=memory,
            comfortable_memory_bytes=memory,
            gpu_memory_bytes=GPU_CONTEXT_BYTES + learning + taught if on_gpu else 0,
            memory_advice=_SMALLER,
            gpu_memory_advice=f"{_SMALLER} spec.device: CPU needs no GPU." if on_gpu else "",
        )

    def baseline(self, meter: Meter) -> Baseline:
        """Look at both checkpoints, make the student where it is made of the teacher, compare.

        Raises:
            BadRequestError: The student does not fit the teacher.
        """
        found = super().baseline(meter)
        self._make_student()
        trusted = self._spec.model.trust_remote_code
        paths = (str(self._work.model), str(self._student))
        kept = self._cut.kept if self._cut is not None else None
        told = self._started_child().call("compare", *paths, kept, trusted)
        self._width, self._contexts = told["width"], told["contexts"]
        self._context = common_context(self._spec, **self._contexts)
        return found

    def check_baseline(self, meter: Meter) -> tuple[str, ...]:
        """Keep the original's logits of a short text, and tell where a context is shorter."""
        note = context_note(**self._contexts)
        return (*super().check_baseline(meter), *([note] if note else []))

    def open_runtime(
        self, of: Baseline | ProducedVariant, context_length: int
    ) -> TransformersRuntime:
        """Load a model for windows that both teacher and student take."""
        return super().open_runtime(of, min(context_length or self._context, self._context))

    @property
    def _student(self) -> Path:
        """Return the folder of the student as it is before it learns."""
        if self._spec.student_source() is not None and self._work.student is not None:
            return self._work.student
        return self._work.scratch / UNTRAINED

    def _make_student(self) -> None:
        """Write the student that is made of the teacher's layers, whole enough to be loaded."""
        if self._spec.student_source() is not None:
            require_unquantized(self._student, "spec.distill.student")
            return
        student = asked_of(self._spec).student
        teacher = self._work.model
        self._cut = cut_of(model_config(teacher), student.keep_layers if student else None)
        trusted = self._spec.model.trust_remote_code
        count = self._cut.teacher_layers
        lists = self._started_child().call("layers", str(teacher), count, trusted)
        make_student(teacher, self._student, self._cut, lists)
        for path in sorted(teacher.rglob("*")):
            relative = path.relative_to(teacher)
            target = self._student / relative
            if path.is_file() and is_passenger(path.name) and path.name != "config.json":
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    def loading(self) -> dict[str, Any]:
        """Return how to load a checkpoint here: with no more rows of logits than both models have.

        A family's models are often padded to different widths.
        """
        return {**super().loading(), "vocabulary_size": self._width or None}

    def _engine_loading(self) -> dict[str, Any]:
        """Return how the teacher is loaded: whole, on the one device."""
        return {**self.loading(), "most_bytes": None}

    def _longest(self, context_length: int) -> int:
        """Return how long a sequence may be: both models read it."""
        return min(context_length, self._context)

    def _wanted_samples(self, whole: int) -> int:
        """Return how many sequences to take of so many: all of them."""
        return max(1, whole)

    def _made_of(self) -> Path:
        return self._student

    def _published_type(self) -> str:
        return stored_dtype(self._student)

    def produce_with(
        self, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[str, ...]:
        """Train the student, write its checkpoint, and return notes."""
        if calibration is None:
            raise RuntimeError("a student learns from text")
        meter.advance(0, "reading the text")
        samples = self._calibration_file(child, calibration)
        job, started_at = self._training_job(samples)
        with CheckpointKeeper(self._work.checkpoints) as keeper:
            told = self._trained(child, job, keeper, _Steps(meter, job["steps"], started_at))
            keeper.finish()
        if job["resume"]:
            Path(job["resume"]).unlink()
        tokens = told["steps"] * job["batch"] * told["sequence_length"]
        self._distillation = Distillation(
            cut=self._cut,
            steps=told["steps"],
            sequences=told["sequences"],
            sequence_length=told["sequence_length"],
            tokens=tokens,
            sequences_at_once=told["sequences_at_once"],
            precision=told["precision"],
            resumed_at=tuple(told["resumed_at"]),
            points=tuple(told["points"]),
        )
        return (*_notes(self._distillation, job["batch"]), *keeper.troubles)

    def _training_job(self, samples: Path) -> tuple[dict[str, Any], int]:
        """Return what the child is told, and the step that it begins at."""
        asked, work = asked_of(self._spec), self._work
        folder = work.scratch / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        key = identity(
            asked,
            seed=self._spec.calibration.seed,
            samples=samples,
            models={role: one.files for role, one in work.fetched.items()},
        )
        found = None
        if work.checkpoints is not None:
            found = work.checkpoints.newest(folder, lambda path: is_of(path, key))
        most = self._spec.memory.max_gpu_memory
        job = {
            **self.job(samples),
            # What is saved is the student, and not its teacher's likeness.
            "stored": self._published_type(),
            "student": str(self._student),
            "width": self._width,
            "steps": asked.steps,
            "batch": asked.batch_size,
            "temperature": float(asked.temperature),
            "hard_weight": float(asked.hard_label_weight),
            "learning_rate": float(asked.learning_rate),
            "low_memory": self._spec.memory.low_memory,
            "gpu_bytes": None if most is None else quantity_bytes(most),
            "checkpoints": str(folder),
            "checkpoint_seconds": asked.checkpoint_seconds,
            "identity": key,
            "resume": str(found[1]) if found else None,
        }
        return job, found[0] if found else 0

    def _trained(
        self, child: Child, job: dict[str, Any], keeper: CheckpointKeeper, steps: _Steps
    ) -> dict[str, Any]:
        """Let the child train, and see to its checkpoints; return what it tells at its end.

        Raises:
            InterruptedRunError: SIGTERM came; a last checkpoint was kept if there was time.
        """

        def heard(kind: str, *values: Any) -> None:
            if kind == "step":
                steps.count(*values)
            elif kind == "checkpoint":
                keeper.offer(Path(values[1]), values[0])
            else:
                steps.saving()

        try:
            return cast("dict[str, Any]", child.call("quantize", job, on_event=heard))
        except InterruptedRunError as error:
            _keep_last(child, keeper)
            kept = keeper.kept_step
            raise InterruptedRunError(
                f"{error.message}; the next attempt goes on from "
                f"{f'the checkpoint of step {kept}' if kept else 'the last checkpoint, if any'}"
            ) from error

    def variants(self, calibration: TextSet | None, meter: Meter) -> Iterator[ProducedVariant]:
        """Produce the one variant, the trained student, with the untrained one to measure it by."""
        for one in super().variants(calibration, meter):
            before = Baseline(UNTRAINED, self._student, one.size_bytes)
            yield replace(one, before=before, distillation=self._distillation)

    def _judged(self, reference: Reference, computed: FloatRows) -> list[str]:
        """Hold the student against what was trained.

        It need not be the teacher's likeness: how far it is from that is measured.
        """
        expected = np.load(self.expected_logits)[:, : self._width]
        return [judge_saved(Reference(reference.ids, expected), expected, computed)]


class _Steps:
    """Counts a training's steps on a meter: this attempt's alone, so that its ETA is true."""

    def __init__(self, meter: Meter, steps: int, started_at: int) -> None:
        self._meter = meter
        self._steps = steps
        self._left = max(1, steps - started_at)
        self._resumed = f", gone on from step {started_at}" if started_at else ""
        meter.set_total(1 + _SAVING_SHARE)
        meter.advance(0, f"loading both models{self._resumed}")

    def count(self, step: int, loss: float, divergence: float, hard: float) -> None:
        del divergence, hard
        words = f"step {step} of {self._steps}: loss {loss:.3f}{self._resumed}"
        self._meter.advance(1 / self._left, words)

    def saving(self) -> None:
        self._meter.advance(0, "saving")


def _keep_last(child: Child, keeper: CheckpointKeeper) -> None:
    """Let the child leave a last checkpoint, and keep it, if both are done in time.

    One that is not whole by then does not exist, and what was kept before stays.
    """
    child.send("stop")
    try:
        for message in child.messages_within(LAST_SECONDS / 2):
            if message[:2] == ("event", "checkpoint"):
                keeper.offer(Path(message[3]), message[2])
            elif message[0] != "event":
                break
    except (WorkerError, ChildFailedError, OSError, EOFError, ValueError):
        _log.warning("there is no last checkpoint: the signal cut a message in two")
    keeper.finish(LAST_SECONDS / 2)


def _notes(found: Distillation, batch: int) -> Iterator[str]:
    if found.cut is not None:
        kept = ", ".join(map(str, found.cut.kept))
        yield (
            f"the student was made of {len(found.cut.kept)} of the teacher's "
            f"{found.cut.teacher_layers} layers ({kept}, counted from 0)"
        )
    once = found.sequences_at_once
    parts = "" if once >= batch else f", {once} at once, their gradients added up"
    yield (
        f"trained for {found.steps} steps of {batch} sequences{parts}, each of "
        f"{found.sequence_length} tokens, in {found.precision}; the text has {found.sequences} "
        f"such sequences, so it was read {found.steps * batch / found.sequences:.1f} times"
    )
    if found.resumed_at:
        yield f"gone on from checkpoints at step {', '.join(map(str, found.resumed_at))}"
