"""Makes variants, measures them and holds them against the gates, until all hold or none is left.

Which setting is tried next is `escalation`'s; where the gates may not fail, there is one attempt.
The original is neither fetched nor measured again: a quantizer of another setting follows the one
before, and the examination keeps what it found.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kubequant.api.enums import OnGateFailure
from kubequant.api.gating import gate_sentence, listed
from kubequant.api.outcome import Stage
from kubequant_worker import ladder
from kubequant_worker.datasets import Role
from kubequant_worker.errors import BadRequestError, GateFailedError
from kubequant_worker.escalation import may_help
from kubequant_worker.evaluation.gates import Candidate, gate_results
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.methods import Needs, quantizer
from kubequant_worker.record import SENTENCE_CHARACTERS, MeasuredVariant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager, ExitStack

    from kubequant.api.contract import GateResult
    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.escalation import Escalation, Slot
    from kubequant_worker.examination import Examination
    from kubequant_worker.ladder import Rung
    from kubequant_worker.methods import Quantizer, Workspace
    from kubequant_worker.progress import StageProgress
    from kubequant_worker.record import Record
    from kubequant_worker.texts import Texts

    Course = tuple[type[Quantizer], QuantizationJobSpec]
    """What a run may come to do, and by which class."""
    OpenStage = Callable[[Stage, float], AbstractContextManager[StageProgress]]


class Attempts:
    """The attempts of one run. `record` always holds what stands at the moment."""

    def __init__(
        self,
        workspace: Workspace,
        escalation: Escalation,
        record: Record,
        texts: Texts,
        examination: Examination,
        *,
        stage: OpenStage,
        on_timed: Callable[[Quantizer], None],
    ) -> None:
        """Work in `workspace`; `on_timed` hears of each attempt that was verified and timed."""
        self._work = workspace
        self._spec = workspace.spec
        self._escalation = escalation
        self._record = record
        self._texts = texts
        self._examination = examination
        self._stage = stage
        self._on_timed = on_timed
        self._made: dict[str, MeasuredVariant] = {}

    def carry_out(self, engine: Quantizer, opened: ExitStack) -> Quantizer:
        """Make what the spec asks for by `engine`, and more careful settings where gates fail.

        Returns the quantizer that was at work last; those after the first are opened in `opened`.

        Raises:
            GateFailedError: Gates do not hold, and nothing is to be published then.
        """
        self._make(engine, self._spec, self._escalation.standing)
        while not self._holds():
            while waiting := self._waiting():
                engine = self._next(engine, waiting, opened)
        if self._record.steps:
            self._remove_all_but(engine, {rung.key for rung in self._escalation.standing})
        return engine

    def _waiting(self) -> tuple[Rung, ...]:
        return tuple(one for one in self._escalation.standing if one.key not in self._made)

    def _make(self, engine: Quantizer, spec: QuantizationJobSpec, rungs: Sequence[Rung]) -> None:
        """Quantize, verify and measure one setting, or several types of one conversion."""
        standing = {rung.key for rung in self._escalation.standing}
        kept = [variant for key, variant in self._made.items() if key in standing]
        made = self._quantized(engine, spec, rungs, kept)
        self._record.engine = engine.engine()
        self._record.method = spec.method
        with self._stage(Stage.VERIFYING, len(made)) as progress:
            for variant in made:
                portion = Portion(progress, 1)
                variant.notes += engine.verify(variant.produced, portion)
                variant.usage = engine.usage(variant.produced)  # seen now, if it loads there
                portion.finish()
        if self._examination.finds_anything:
            self._evaluate(engine, made)
        else:
            self._on_timed(engine)
        self._made |= {rung.key: variant for rung, variant in zip(rungs, made, strict=True)}

    def _evaluate(self, engine: Quantizer, made: Sequence[MeasuredVariant]) -> None:
        with self._stage(Stage.EVALUATING, 1 + len(made)) as progress:
            portion = Portion(progress, 1)
            self._examination.speeds(engine, made, portion)
            portion.finish()
            # Not before: an upload takes processor and memory from what is being timed.
            self._on_timed(engine)
            for variant in made:
                portion = Portion(progress, 1)
                self._examination.variant(engine, variant, portion)
                portion.finish()

    def _quantized(
        self,
        engine: Quantizer,
        spec: QuantizationJobSpec,
        rungs: Sequence[Rung],
        kept: Sequence[MeasuredVariant],
    ) -> list[MeasuredVariant]:
        made: list[MeasuredVariant] = []
        with self._stage(Stage.QUANTIZING, 0) as progress:
            calibrates = type(engine).calibrates(spec)
            calibration = self._texts.calibration() if calibrates else None
            produced = engine.variants(calibration, progress)
            for rung, one in zip(rungs, produced, strict=True):
                variant = MeasuredVariant(
                    one,
                    usage=engine.usage(one),
                    method=rung.method,
                    setting=ladder.setting(self._spec, rung),
                    bits=ladder.bits(self._spec, rung),
                )
                made.append(variant)
                self._record.variants = [*kept, *made]
            if calibration is not None:
                tokens = engine.calibration_tokens()
                self._record.note_dataset(self._texts.reported(Role.CALIBRATION, tokens=tokens))
        return made

    def _next(self, engine: Quantizer, waiting: Sequence[Rung], opened: ExitStack) -> Quantizer:
        """Try the next setting; one that cannot be made is passed over, with its reason."""
        try:
            spec = ladder.spec_of(self._spec, waiting)
            method, _ = quantizer(spec)
            follower = method(replace(self._work, spec=spec))
            follower.follow(engine)
            engine.close()
            self._remove_all_but(engine, self._may_stand())
            engine = opened.enter_context(follower)
            self._make(engine, spec, waiting)
        except BadRequestError as error:
            unmade = {rung.key for rung in waiting}
            lost = [slot for slot in self._escalation.slots if slot.standing.key in unmade]
            for slot in lost:
                self._note_step(slot, [error.message])
            self._climb(lost, [error.message])
        return engine

    def _may_stand(self) -> set[str]:
        return {key for key in self._made if self._escalation.may_stand(key)}

    def _remove_all_but(self, engine: Quantizer, keys: set[str]) -> None:
        """Remove from the artifact what is of no variant in `keys`, nor of all."""
        kept = set(engine.shared_files())
        for key in keys:
            kept |= set(self._made[key].produced.files)
        folder = self._work.artifact
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if path.relative_to(folder) not in kept:
                path.unlink()

    def _holds(self) -> bool:
        """Hold what stands against the gates; climb where one does not hold, and say False then.

        Raises:
            GateFailedError: A ladder has ended.
        """
        if not self._spec.gates:
            return True
        with self._stage(Stage.GATING, 0):
            while True:
                results = self._results()
                missed = [
                    (slot, gates)
                    for slot in self._escalation.slots
                    if (gates := self._escalation.missed(slot, results))
                ]
                if not missed or self._spec.on_gate_failure is OnGateFailure.PUBLISH:
                    break
                failed = list(dict.fromkeys(gate_sentence(g) for _, gates in missed for g in gates))
                if self._spec.on_gate_failure is OnGateFailure.ESCALATE:
                    for slot, gates in missed:
                        self._note_step(slot, [gate_sentence(one) for one in gates])
                hopeless = [slot for slot, gates in missed if not any(map(may_help, gates))]
                self._climb([slot for slot, _ in missed], failed, hopeless)
                if self._waiting():
                    return False
            self._record.warnings += [gate_sentence(one) for one in results if not one.passed]
            for slot in self._escalation.slots:
                if slot.escalated:
                    self._note_step(slot, [])
                    self._record.reasons.append(_escalated(self._spec, slot))
        return True

    def _results(self) -> tuple[GateResult, ...]:
        """Return every gate's result for what stands, and keep it in the record."""
        rungs = self._escalation.standing
        self._record.variants = [self._made[rung.key] for rung in rungs]
        for variant in self._record.variants:
            variant.in_place_of = self._escalation.in_place_of(variant.produced.name)
        candidates = [
            Candidate(
                rung.variant,
                self._record.estimates(self._made[rung.key]),
                self._escalation.stands_for(rung.variant),
            )
            for rung in rungs
        ]
        results = gate_results(self._spec.gates, candidates)
        self._record.note_gates(results)
        return results

    def _note_step(self, slot: Slot, missed: Sequence[str]) -> None:
        self._record.note_step(
            slot.asked,
            slot.standing,
            ladder.setting(self._spec, slot.standing),
            self._made.get(slot.standing.key),
            missed,
        )

    def _climb(
        self, slots: Sequence[Slot], failed: Sequence[str], hopeless: Sequence[Slot] = ()
    ) -> None:
        """Let the next rung stand in each of `slots`.

        Raises:
            GateFailedError: One of them has none, or is among the `hopeless`, which none can help.
        """
        climbs = self._spec.on_gate_failure is OnGateFailure.ESCALATE
        ended = [_tried(self._spec, slot) for slot in slots if not slot.rest]
        vain = [_in_vain(self._spec, slot) for slot in hopeless if slot.rest]
        if ended or vain:
            advice = (
                "take a more careful setting, relax spec.gates, or set spec.onGateFailure: "
                "Escalate, which tries more careful settings by itself"
            )
            if climbs:
                advice = "relax spec.gates, or take another method or model"
            raise GateFailedError(
                listed([*([*vain, *ended] if climbs else []), *failed], SENTENCE_CHARACTERS),
                advice=advice,
            )
        for slot in slots:
            slot.advance()


def _label(spec: QuantizationJobSpec, rung: Rung) -> str:
    words = ladder.setting(spec, rung)
    return words if words.startswith(rung.variant) else f"{rung.variant} ({words})"


def _tried(spec: QuantizationJobSpec, slot: Slot) -> str:
    names = ", ".join(_label(spec, rung) for rung in (*slot.tried, slot.standing))
    return (
        f"{slot.asked}: {names} were tried, and there the ladder ends"
        if slot.escalated
        else f"{slot.asked}: this image has no more careful setting than {names}"
    )


def _in_vain(spec: QuantizationJobSpec, slot: Slot) -> str:
    return (
        f"{slot.asked}: a more careful setting than {_label(spec, slot.standing)} cannot hold what "
        "does not hold, so none is tried"
    )


def _escalated(spec: QuantizationJobSpec, slot: Slot) -> str:
    return (
        f"{_label(spec, slot.standing)} stands in place of {_label(spec, slot.tried[0])}, for "
        "which gates do not hold."
    )


def possible_courses(spec: QuantizationJobSpec, escalation: Escalation) -> Iterator[Course]:
    """Return all that a run may come to do: what the spec asks for, and each rung above it.

    Raises:
        BadRequestError: The spec itself asks for what this image does not do.
    """
    yield quantizer(spec)[0], spec
    rungs = escalation.possible
    if rungs and rungs[0].types:
        # All types may come to lie side by side.
        everything = {rung.key: rung for rung in (*escalation.standing, *rungs)}
        yield quantizer(spec)[0], ladder.spec_of(spec, tuple(everything.values()))
        return
    for rung in rungs:
        other = ladder.spec_of(spec, [rung])
        yield quantizer(other)[0], other


def largest_needs(courses: Iterable[Course], files: Mapping[str, int]) -> Needs:
    """Return what the most demanding course takes; `files` are the model's, by name to bytes.

    Raises:
        BadRequestError: The first course, which is the spec itself, is refused.
    """
    first, *others = courses
    needs = first[0].needs(first[1], files)
    for method, spec in others:
        try:
            other = method.needs(spec, files)
        except BadRequestError:
            continue  # it will be passed over, with its sentence
        needs = Needs(
            scratch_bytes=max(needs.scratch_bytes, other.scratch_bytes),
            memory_bytes=max(needs.memory_bytes, other.memory_bytes),
            comfortable_memory_bytes=max(
                needs.comfortable_memory_bytes, other.comfortable_memory_bytes
            ),
            gpu_memory_bytes=max(needs.gpu_memory_bytes, other.gpu_memory_bytes),
            memory_advice=needs.memory_advice,
            gpu_memory_advice=needs.gpu_memory_advice,
        )
    return needs
