"""What a run measures, on which text, and what must hold before anything is published."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StrictBool, StrictInt, StrictStr

from kubequant.api.base import Model, Pattern, Rule
from kubequant.api.data import Dataset, TaskFiles
from kubequant.api.enums import Measurement, Metric
from kubequant.api.fields import DecimalText
from kubequant.api.params import GGUFType

SequenceLength = Annotated[StrictInt, Field(ge=16, le=1_048_576)]
Seed = Annotated[StrictInt, Field(ge=0, le=4_294_967_295)]


TaskName = Annotated[
    StrictStr,
    Field(min_length=1, max_length=128),
    Pattern("[A-Za-z0-9][-A-Za-z0-9_.]*", "the name of a task, like hellaswag"),
]


BENCHMARKED = frozenset({Metric.BENCHMARK_SCORE, Metric.BENCHMARK_CHANGE})
"""The metrics of which there is one for each task of `evaluation.benchmarks`."""

MEASURED_BY = {
    Metric.PERPLEXITY: Measurement.PERPLEXITY,
    Metric.PERPLEXITY_INCREASE_PERCENT: Measurement.PERPLEXITY,
    Metric.MEAN_KL_DIVERGENCE: Measurement.PERPLEXITY,
    Metric.TOP_TOKEN_AGREEMENT_PERCENT: Measurement.PERPLEXITY,
    Metric.TOKENS_PER_SECOND: Measurement.PERFORMANCE,
    Metric.SPEEDUP: Measurement.PERFORMANCE,
    Metric.PEAK_MEMORY_BYTES: Measurement.PERFORMANCE,
}
"""Which measurement gives a metric; sizes are always known."""


class Calibration(Model):
    """The text that methods learn their scales from."""

    dataset: Dataset | None = None
    """The text to calibrate with; where absent, text that comes with kubequant."""
    samples: Annotated[StrictInt, Field(ge=1, le=65_536)] = 128
    """How many sequences to take; method Distill reads all of the text."""
    sequence_length: SequenceLength = 2048
    """How many tokens a sequence has, as far as the model's context allows."""
    seed: Seed = 0
    """The seed by which sequences are drawn."""
    apply_chat_template: StrictBool = False
    """Write each sample as a chat, by the template of the model's tokenizer."""


class PerplexityEvaluation(Model):
    """Perplexity, divergence and agreement over one stream of tokens, the same for both models."""

    dataset: Dataset | None = None
    """The text to measure on; where absent, text that comes with kubequant. Never the
    calibration's."""
    context_length: SequenceLength = 2048
    """How many tokens a window has, as far as the model's context allows."""
    max_tokens: Annotated[StrictInt, Field(ge=256, le=16_777_216)] = 65_536
    """How many tokens to measure at most."""


class Generations(Model):
    """Greedy texts of original and variant, side by side."""

    prompts: Annotated[
        tuple[Annotated[StrictStr, Field(min_length=1, max_length=2048)], ...], Field(max_length=16)
    ] = ()
    """The prompts to continue; where empty, prompts that come with kubequant."""
    max_new_tokens: Annotated[StrictInt, Field(ge=1, le=1024)] = 50
    """How many tokens to generate at most."""


class Benchmark(Model):
    """One task of the lm-evaluation-harness."""

    task: TaskName
    """The task's name, like hellaswag."""
    few_shot: Annotated[StrictInt, Field(ge=0, le=64)] = 0
    """How many solved examples stand before each question."""
    limit: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    """How many questions to ask; where absent, all."""


class Performance(Model):
    """Speed and memory, as the median of repetitions after a warm-up."""

    prompt_tokens: Annotated[StrictInt, Field(ge=1, le=131_072)] = 512
    """How many tokens the prompt has."""
    new_tokens: Annotated[StrictInt, Field(ge=1, le=16_384)] = 128
    """How many tokens to generate."""
    repetitions: Annotated[StrictInt, Field(ge=1, le=100)] = 3
    """How often to measure."""
    batch_sizes: Annotated[
        tuple[Annotated[StrictInt, Field(ge=2, le=256)], ...], Field(max_length=8)
    ] = (2, 4, 8)
    """How many texts to continue at once, where the runtime computes several at a time; each size
    is measured by itself, after one text alone."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="must name each size once",
            holds=lambda p: len(set(p.batch_sizes)) == len(p.batch_sizes),
            cel="!has(self.batchSizes) || self.batchSizes.all(one, "
            "self.batchSizes.exists_one(other, other == one))",
            field="batchSizes",
        ),
    )


class Evaluation(Model):
    """What is measured on the original and on every variant."""

    perplexity: PerplexityEvaluation = PerplexityEvaluation()
    """Perplexity, divergence and top-token agreement."""
    generations: Generations = Generations()
    """Greedy texts, side by side."""
    benchmarks: Annotated[tuple[Benchmark, ...], Field(max_length=16)] = ()
    """Tasks of the lm-evaluation-harness; none unless named."""
    task_files: TaskFiles | None = None
    """A folder with tasks of your own, or with the harness's tasks and their data where no network
    reaches the Hub; its names come before the harness's own."""
    performance: Performance = Performance()
    """Speed and memory."""
    skip: Annotated[tuple[Measurement, ...], Field(max_length=3)] = ()
    """Measurements to leave out."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="must name each measurement once",
            holds=lambda e: len(set(e.skip)) == len(e.skip),
            cel="!has(self.skip) || self.skip.all(one, self.skip.exists_one(other, other == one))",
            field="skip",
        ),
        Rule(
            message="must name each task once",
            holds=lambda e: len({b.task for b in e.benchmarks}) == len(e.benchmarks),
            cel="!has(self.benchmarks) || self.benchmarks.all(one, "
            "self.benchmarks.exists_one(other, other.task == one.task))",
            field="benchmarks",
        ),
        Rule(
            message="is only for benchmarks; name its tasks there or remove it",
            holds=lambda e: e.task_files is None or bool(e.benchmarks),
            cel="!has(self.taskFiles) || (has(self.benchmarks) && size(self.benchmarks) > 0)",
            field="taskFiles",
        ),
    )


class Gate(Model):
    """One condition on a measured number; the artifact is published only if all hold."""

    metric: Metric
    """The number that is held, a field of status.variants."""
    max: DecimalText | None = None
    """The largest value that passes, as a decimal number in quotes."""
    min: DecimalText | None = None
    """The smallest value that passes, as a decimal number in quotes."""
    variant: GGUFType | None = None
    """For method GGUF only: the type that the gate is for, or what takes its place when
    onGateFailure is Escalate; where absent, every type."""
    task: TaskName | None = None
    """For BenchmarkScore and BenchmarkChange only: the task of evaluation.benchmarks."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="needs max or min",
            holds=lambda g: g.max is not None or g.min is not None,
            cel="has(self.max) || has(self.min)",
        ),
        Rule(
            message="must not be larger than max",
            holds=lambda g: g.max is None or g.min is None or float(g.min) <= float(g.max),
            cel="!has(self.max) || !has(self.min) || double(self.min) <= double(self.max)",
            field="min",
        ),
        Rule(
            message="is for BenchmarkScore and BenchmarkChange, which need it: name a task of "
            "evaluation.benchmarks, or leave it out with another metric",
            holds=lambda g: (g.metric in BENCHMARKED) == (g.task is not None),
            cel="self.metric in ['BenchmarkScore', 'BenchmarkChange'] == has(self.task)",
            field="task",
        ),
    )
