"""The words that a spec chooses by: the method, the device, what is measured and gated.

Enums only, like `outcome`: what needs a word and no model, an engine's child above all, imports it
from here without pydantic and every model of the API.
"""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """The methods, and Auto, which chooses one of them by a goal."""

    INT8 = "INT8"
    INT4 = "INT4"
    FP8 = "FP8"
    GPTQ = "GPTQ"
    AWQ = "AWQ"
    BITS_AND_BYTES = "BitsAndBytes"
    GGUF = "GGUF"
    PRUNE = "Prune"
    DISTILL = "Distill"
    TENSOR_RT = "TensorRT"
    AUTO = "Auto"


class Device(StrEnum):
    """What a run computes on."""

    GPU = "GPU"
    CPU = "CPU"


class Offload(StrEnum):
    """Where weights may go that do not fit."""

    NONE = "None"
    CPU = "CPU"
    DISK = "Disk"


class Measurement(StrEnum):
    """What is measured unless `evaluation.skip` names it."""

    PERPLEXITY = "Perplexity"
    GENERATIONS = "Generations"
    PERFORMANCE = "Performance"


class Metric(StrEnum):
    """What a gate can hold: the numbers of status.variants, their fields in CamelCase."""

    SIZE_BYTES = "SizeBytes"
    SIZE_REDUCTION_PERCENT = "SizeReductionPercent"
    PERPLEXITY = "Perplexity"
    PERPLEXITY_INCREASE_PERCENT = "PerplexityIncreasePercent"
    MEAN_KL_DIVERGENCE = "MeanKLDivergence"
    TOP_TOKEN_AGREEMENT_PERCENT = "TopTokenAgreementPercent"  # noqa: S105 - tokens of text
    TOKENS_PER_SECOND = "TokensPerSecond"
    SPEEDUP = "Speedup"
    PEAK_MEMORY_BYTES = "PeakMemoryBytes"
    BENCHMARK_SCORE = "BenchmarkScore"
    """The variant's value of the task that the gate names."""
    BENCHMARK_CHANGE = "BenchmarkChange"
    """By how much the variant's value is better than the original's; negative where it is worse."""


class OnGateFailure(StrEnum):
    """What happens to a run whose gates do not hold."""

    FAIL = "Fail"
    PUBLISH = "Publish"
    ESCALATE = "Escalate"
