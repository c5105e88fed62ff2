"""What is measured of the original and of every variant, and what that left for the next.

The order of the stages is `run`'s; how a number is computed stands in `evaluation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kubequant.api.enums import Measurement
from kubequant_worker.benchmarks.score import pairs
from kubequant_worker.datasets import Role, bundled_text
from kubequant_worker.evaluation.baseline import baseline_digest, earlier_losses, taken_original
from kubequant_worker.evaluation.generations import DEFAULT_PROMPTS, side_by_side
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.evaluation.performance import Trial, performance
from kubequant_worker.evaluation.perplexity import measure_original, measure_variant, windows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.benchmarks.harness import Harness
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.performance import Performance
    from kubequant_worker.evaluation.perplexity import Original, Windows
    from kubequant_worker.evaluation.runtime import Generation, Runtime
    from kubequant_worker.methods import Baseline, ProducedVariant, Quantizer
    from kubequant_worker.record import MeasuredVariant, Record
    from kubequant_worker.texts import Texts


# Enough text for a prompt; a longer one is made by saying it again.
_TIMED_DOCUMENTS = 16


class Examination:
    """Measures the original once, then each variant against it; what is found goes to a record."""

    def __init__(
        self,
        spec: QuantizationJobSpec,
        record: Record,
        texts: Texts,
        harness: Harness,
        scratch: Path,
        *,
        earlier: Iterable[tuple[str, bytes]] = (),
    ) -> None:
        """Prepare to measure what `spec` asks for, with the original's logits in `scratch`.

        `earlier` are reports (address, content) of other runs, looked at where they may spare work.
        """
        self._spec = spec
        self._earlier = earlier
        self._record = record
        self._texts = texts
        self._harness = harness
        self._logits = scratch / "logits.f16"
        self._original: tuple[Windows, Original] | None = None
        self._written: list[Generation] = []
        self._baseline: Baseline | None = None

    def measures(self, measurement: Measurement) -> bool:
        """Return whether the spec leaves a measurement in."""
        return measurement not in self._spec.evaluation.skip

    @property
    def finds_anything(self) -> bool:
        """Return whether there is anything to hold a variant against."""
        timed = self.measures(Measurement.PERFORMANCE)
        asked = timed or self._harness.is_asked
        return asked or self._original is not None or bool(self._written)

    def original(self, engine: Quantizer, baseline: Baseline, meter: Meter) -> None:
        """Measure the original but for its speed, in the form that the engine's runtime loads."""
        self._baseline = baseline
        with engine.open_runtime(baseline, self._context_length) as runtime:
            # A runtime that names the type of the numbers need not be told it again.
            form = "" if baseline.name in runtime.name.split() else f", {baseline.name}"
            self._record.runtime = f"{runtime.name}{form}"
            streamed, asked = self._portions(meter)
            if self.measures(Measurement.PERPLEXITY):
                self._original = self._measure_original(runtime, streamed)
            streamed.finish()
            if self.measures(Measurement.GENERATIONS):
                self._written = self._generate(runtime)
            if self._harness.is_asked:
                self._record.original_scores = self._harness.ask(runtime, asked)
            asked.finish()

    def variant(self, engine: Quantizer, variant: MeasuredVariant, meter: Meter) -> None:
        """Measure a variant but for its speed against the original.

        What it was before it learned comes first, where it learned.
        """
        before = variant.produced.before
        if before is not None and self._original is not None:
            meter.set_total(2)
            portion, meter = Portion(meter, 1), Portion(meter, 1)
            cut, original = self._original
            portion.set_total(cut.scored_tokens)
            with engine.open_runtime(before, self._context_length) as runtime:
                found = measure_variant(runtime, cut, original, meter=portion)
            variant.comparison_before = found
            portion.finish()
        with engine.open_runtime(variant.produced, self._context_length) as runtime:
            streamed, asked = self._portions(meter)
            if self._original is not None:
                cut, original = self._original
                streamed.set_total(cut.scored_tokens)
                variant.comparison = measure_variant(runtime, cut, original, meter=streamed)
            streamed.finish()
            if self._written:
                texts = side_by_side(self._prompts, self._written, self._generate(runtime))
                self._record.note_generations(variant, texts)
            if self._harness.is_asked:
                scores = self._harness.ask(runtime, asked)
                variant.benchmarks = pairs(self._record.original_scores, scores)
            asked.finish()

    def _portions(self, meter: Meter) -> tuple[Portion, Portion]:
        """Return the shares of the token stream and of the benchmarks in a model's measuring."""
        meter.set_total(1)
        share = 0.5 if self._harness.is_asked else 1.0
        return Portion(meter, share), Portion(meter, 1 - share)

    def speeds(self, engine: Quantizer, variants: Sequence[MeasuredVariant], meter: Meter) -> None:
        """Time the original and every variant, one after another, each in a process of its own.

        All in one go, so that what else the machine does is much the same for each. The caller sees
        to it that this run does nothing else meanwhile. What was timed before is not timed again.
        """
        if self._baseline is None or not self.measures(Measurement.PERFORMANCE):
            return
        waiting = [one for one in variants if one.performance is None and one.produced.timed]
        first = self._record.original_performance is None
        meter.set_total(1)
        share = 1 / max(1, len(waiting) + first)
        if first:
            found = self._timed(engine, self._baseline, Portion(meter, share))
            self._record.original_performance = found
        for variant in waiting:
            portion = Portion(meter, share)
            variant.performance = self._timed(engine, variant.produced, portion)

    def _timed(
        self, engine: Quantizer, model: Baseline | ProducedVariant, meter: Portion
    ) -> Performance:
        asked = self._spec.evaluation.performance
        trial = Trial(
            text="\n\n".join(bundled_text(Role.MEASUREMENT).documents[:_TIMED_DOCUMENTS]),
            prompt_tokens=asked.prompt_tokens,
            new_tokens=asked.new_tokens,
            repetitions=asked.repetitions,
            batch_sizes=asked.batch_sizes,
        )
        meter.set_total(trial.steps)
        with engine.open_alone(model) as runtime:
            samples = runtime.perform(
                trial, lambda step: meter.advance(1, f"speed of {model.name}: {step}")
            )
            found = performance(samples, runtime.name)
        meter.finish()
        return found

    @property
    def _context_length(self) -> int:
        return self._spec.evaluation.perplexity.context_length

    def _measure_original(self, runtime: Runtime, meter: Meter) -> tuple[Windows, Original]:
        text = self._texts.evaluation()
        asked = self._spec.evaluation.perplexity
        stream = np.concatenate(
            [np.empty(0, np.int32), *runtime.tokenize(text.documents, special=text.templated)]
        )
        cut = windows(
            stream,
            context_length=min(asked.context_length, runtime.context_length),
            bos_token=runtime.bos_token,
            max_tokens=asked.max_tokens,
        )
        original = self._taken(runtime, cut, meter)
        if original is None:
            meter.set_total(cut.scored_tokens)
            original = measure_original(runtime, cut, keep=self._logits, meter=meter)
        self._record.context_length = cut.context_length
        self._record.original_perplexity = original.perplexity
        reported = self._texts.reported(Role.MEASUREMENT, tokens=cut.scored_tokens)
        self._record.datasets.append(reported)
        return cut, original

    def _taken(self, runtime: Runtime, cut: Windows, meter: Meter) -> Original | None:
        """Take the original's losses of an earlier run, where there is one that measured the same.

        None where there is not, or where its losses do not come out again.
        """
        source = self._record.source
        if source is None:
            return None
        digest = baseline_digest(source.files, cut, self._record.runtime)
        self._record.baseline_sha256 = digest
        found = earlier_losses(self._earlier, digest, len(cut.inputs))
        if found is None:
            return None
        original = taken_original(runtime, cut, found, keep=self._logits, meter=meter)
        if original is not None:
            self._record.taken_from = found.uri
        return original

    def _generate(self, runtime: Runtime) -> list[Generation]:
        return runtime.generate(self._prompts, self._spec.evaluation.generations.max_new_tokens)

    @property
    def _prompts(self) -> tuple[str, ...]:
        return self._spec.evaluation.generations.prompts or DEFAULT_PROMPTS
