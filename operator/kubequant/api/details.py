"""What a report holds of each measurement: how it was taken, and how sure it is.

Part of `report`, which says where each stands.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool, StrictStr

from kubequant.api.base import Model
from kubequant.api.fields import ByteCount, MeasuredDecimal, Sentence, ShortText
from kubequant.api.status import Count

GeneratedText = Annotated[StrictStr, Field(max_length=65_536)]


class PerplexityDetail(Model):
    """How a perplexity was measured, and how sure it is."""

    standard_error: MeasuredDecimal | None = None
    """The standard error of the perplexity."""
    tokens: Count = 0
    """How many tokens were predicted."""
    windows: Count = 0
    """In how many windows of context_length tokens."""
    context_length: Count = 0
    """How many tokens a window had."""
    mean_log_likelihood: MeasuredDecimal | None = None
    """Mean log-likelihood per token, in nats; perplexity is exp(-mean)."""
    window_losses: Annotated[tuple[MeasuredDecimal, ...], Field(max_length=4096)] = ()
    """The original's loss in each window, in nats, for later runs to take; empty for variants, and
    where there are more windows."""


class DivergenceDetail(Model):
    """How the divergence from the original was measured."""

    tokens: Count = 0
    """Over how many tokens both models' distributions were compared."""
    standard_error: MeasuredDecimal | None = None
    """The standard error of the mean divergence, in nats."""
    median: MeasuredDecimal | None = None
    """The median divergence, in nats."""
    percentile99: MeasuredDecimal | None = None
    """The divergence that one token of a hundred exceeds, in nats."""
    maximum: MeasuredDecimal | None = None
    """The largest divergence, in nats."""
    top_token_agreement_standard_error: MeasuredDecimal | None = None
    """The standard error of topTokenAgreementPercent, in percent."""


class BatchThroughput(Model):
    """How many tokens come out in all where several texts are continued at once."""

    batch_size: Count
    """How many texts at once."""
    tokens_per_second: MeasuredDecimal | None = None
    """Generated tokens per second of all texts together: the median of the repetitions."""
    tokens_per_second_deviation: MeasuredDecimal | None = None
    """The standard deviation of tokensPerSecond over the repetitions."""


class PerformanceDetail(Model):
    """Speed and memory of one model in a process of its own: medians of repetitions.

    A warm-up comes first and is not counted. Deviations are standard deviations over the
    repetitions, absent where there was one only.
    """

    prompt_tokens: Count = 0
    """How many tokens the prompt had, as far as the model's context allows."""
    new_tokens: Count = 0
    """How many tokens were generated after the first, whatever they were."""
    repetitions: Count = 0
    """How often it was measured."""
    tokens_per_second_deviation: MeasuredDecimal | None = None
    """The standard deviation of tokensPerSecond."""
    prompt_tokens_per_second: MeasuredDecimal | None = None
    """Prompt tokens per second."""
    prompt_tokens_per_second_deviation: MeasuredDecimal | None = None
    """The standard deviation of promptTokensPerSecond."""
    first_token_seconds: MeasuredDecimal | None = None
    """From the prompt's text to its first new token."""
    first_token_seconds_deviation: MeasuredDecimal | None = None
    """The standard deviation of firstTokenSeconds."""
    load_seconds: MeasuredDecimal | None = None
    """How long loading the model took, once; its files had been read before in this run, and what
    fits in memory comes from the page cache."""
    batches: Annotated[tuple[BatchThroughput, ...], Field(max_length=8)] = ()
    """Throughput of several texts at once, in the order of performance.batchSizes."""
    peak_resident_memory_bytes: ByteCount | None = None
    """The most memory that the process had resident, the mapped file of a GGUF included, before
    batches were measured."""
    library_memory_bytes: ByteCount | None = None
    """How much of it the process held before it loaded the model: the interpreter and libraries."""
    peak_gpu_memory_bytes: ByteCount | None = None
    """The most GPU memory that the process had reserved, before batches were measured."""
    cpu_percent: MeasuredDecimal | None = None
    """The processor time that the process got of its threads' while it was measured; far below 100
    on a CPU, other work took part of the machine."""
    threads: Count = 0
    """How many threads computed."""
    device: ShortText = ""
    """The processor's or the GPU's name."""
    runtime: ShortText = ""
    """What computed, with its version."""
    process_id: Count = 0
    """The process that was measured; no other model was loaded in it."""
    meanwhile: Sentence = ""
    """What else of the run was at work meanwhile."""
    notes: Annotated[tuple[Sentence, ...], Field(max_length=16)] = ()
    """What was measured otherwise than asked, like a shorter prompt."""


class BenchmarkDetail(Model):
    """One metric of one benchmark in full: both values with their errors, and how it was asked."""

    task: Annotated[StrictStr, Field(min_length=1, max_length=128)]
    """The task's name."""
    metric: Annotated[StrictStr, Field(max_length=64)] = ""
    """The task's metric, and after a comma its filter."""
    higher_is_better: StrictBool | None = None
    """Whether a larger value is the better one; absent where the task does not say."""
    original: MeasuredDecimal | None = None
    """The original's value, in the metric's own unit."""
    original_standard_error: MeasuredDecimal | None = None
    """The standard error of the original's value; absent where the harness knows none."""
    quantized: MeasuredDecimal | None = None
    """The variant's value."""
    quantized_standard_error: MeasuredDecimal | None = None
    """The standard error of the variant's value; absent where the harness knows none."""
    samples: Count = 0
    """How many questions were asked."""
    few_shot: Count = 0
    """How many solved examples stood before each."""
    version: Annotated[StrictStr, Field(max_length=32)] = ""
    """The task's version."""


class ModuleSparsity(Model):
    """One pruned module."""

    module: Annotated[StrictStr, Field(min_length=1, max_length=253)]
    """Its name."""
    weights: Count
    """How many weights it has."""
    zeros: Count
    """How many of them are zero."""
    percent: MeasuredDecimal
    """The same in percent."""


class SparsityDetail(Model):
    """The zeros of a pruned model, counted in its saved files."""

    asked_percent: MeasuredDecimal
    """How many percent of the weights were to be dropped."""
    percent: MeasuredDecimal
    """How many percent of the weights of all pruned modules are zero."""
    two_of_four: StrictBool = False
    """Whether of every four weights in a row of these modules at least two are zero."""
    module_count: Count = 0
    """How many modules were pruned."""
    modules: Annotated[tuple[ModuleSparsity, ...], Field(max_length=4096)] = ()
    """The modules; of more than fit, those farthest from what was asked for."""


class TrainingPoint(Model):
    """One point of a training curve: means over the steps since the point before."""

    step: Count
    """The last of these steps."""
    loss: MeasuredDecimal
    """The loss: the weighted sum of the next two."""
    divergence: MeasuredDecimal
    """The divergence from the teacher at the temperature, times the temperature's square."""
    hard_loss: MeasuredDecimal
    """The negative log-likelihood of the text itself, in nats per token."""
    learning_rate: MeasuredDecimal | None = None
    """The learning rate of the last of these steps."""


class UntrainedStudent(Model):
    """The student before it learned, measured as the variant was."""

    perplexity: MeasuredDecimal | None = None
    """Perplexity over the evaluation text."""
    perplexity_standard_error: MeasuredDecimal | None = None
    """Its standard error."""
    perplexity_increase_percent: MeasuredDecimal | None = None
    """How much higher it is than the original's."""
    mean_kl_divergence: MeasuredDecimal | None = None
    """Mean divergence of its next-token distributions from the original's, in nats."""
    top_token_agreement_percent: MeasuredDecimal | None = None
    """How often both find the same token most likely."""
    perplexity_reduction_percent: MeasuredDecimal | None = None
    """How much lower the trained student's perplexity is."""
    divergence_reduction_percent: MeasuredDecimal | None = None
    """How much smaller the trained student's mean divergence is."""


class DistillationDetail(Model):
    """How a student learned from its teacher."""

    kept_layers: Annotated[tuple[Count, ...], Field(max_length=1024)] = ()
    """Which of the teacher's layers the student was made of; empty where it is another model."""
    teacher_layers: Count = 0
    """How many layers the teacher has; 0 where the student is another model."""
    steps: Count
    """How many optimizer steps were taken."""
    sequences: Count = 0
    """How many different sequences of text there were."""
    sequence_length: Count = 0
    """How many tokens each had."""
    tokens: ByteCount = 0
    """How many tokens were seen, those seen again counted again."""
    sequences_at_once: Count = 0
    """How many sequences went through the models together; the rest of a step was accumulated."""
    precision: ShortText = ""
    """The type that products were computed in."""
    resumed_at: Annotated[tuple[Count, ...], Field(max_length=64)] = ()
    """The steps at which an attempt went on from an earlier one's checkpoint."""
    points: Annotated[tuple[TrainingPoint, ...], Field(max_length=256)] = ()
    """The training curve."""
    untrained: UntrainedStudent | None = None
    """The student before it learned; absent where perplexity was not measured."""


class EngineDetail(Model):
    """What a TensorRT-LLM engine was built on, by what, and for how much: it serves nothing else.

    By the engine's own config and the words of the library that built it.
    """

    gpu: Annotated[ShortText, Field(min_length=1)]
    """The GPU that built it, by its driver's name."""
    gpu_product: Annotated[StrictStr, Field(max_length=63)] = ""
    """The same as nodes are labelled: the value of nvidia.com/gpu.product."""
    compute_capability: Annotated[StrictStr, Field(max_length=16)]
    """The GPU's architecture, like 9.0."""
    gpu_memory_bytes: ByteCount | None = None
    """How much memory the GPU has."""
    driver: Annotated[StrictStr, Field(max_length=64)] = ""
    """The version of NVIDIA's driver."""
    cuda: Annotated[StrictStr, Field(max_length=64)] = ""
    """The version of CUDA."""
    tensorrt: Annotated[StrictStr, Field(max_length=64)] = ""
    """The version of TensorRT."""
    tensorrt_llm: Annotated[StrictStr, Field(max_length=64)]
    """The version of TensorRT-LLM, which alone serves it."""
    precision: Annotated[StrictStr, Field(max_length=16)]
    """The type of weights and products."""
    max_batch_size: Count
    """The most requests that it serves at once."""
    max_input_length: Count
    """The most tokens of a prompt."""
    max_output_length: Count
    """The most tokens of an answer."""
    tensor_parallel: Count = 1
    """Over how many GPUs each layer is split."""


class Generation(Model):
    """One prompt, continued greedily by the original and by the variant."""

    prompt: GeneratedText
    """The prompt."""
    original: GeneratedText = ""
    """What the original wrote."""
    quantized: GeneratedText = ""
    """What the variant wrote."""
    first_difference: Count | None = None
    """The index of the first generated token that differs; absent where none does."""
    degenerate: StrictBool = False
    """Whether the variant's text is empty, loops or is gibberish."""
    degenerate_reason: Sentence = ""
    """What is wrong with the text."""
    original_degenerate: StrictBool = False
    """Whether the original's text is degenerate too, which is not the quantization's fault."""
