"""Manifests whose gates hold every metric: some that turn when a run escalates, some in vain.

One table for both ways to run, by `kubequant run` and as a pod, so that neither is tested less.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubequant.api.enums import Metric
from kubequant.api.evaluation import BENCHMARKED

TASKS = Path(__file__).parents[1] / "benchmarks" / "tasks"
TASK = "python_words"
# Short: what is measured here is whether gates see it.
EVALUATION: dict[str, Any] = {
    "perplexity": {"maxTokens": 2048},
    "performance": {"promptTokens": 16, "newTokens": 8, "repetitions": 2, "batchSizes": []},
    "benchmarks": [{"task": TASK}],
    "skip": ["Generations"],
}
CALIBRATION = {"samples": 8, "sequenceLength": 128}

# Bounds that any model holds, and bounds that none does.
HOLDS: dict[Metric, dict[str, str]] = {
    Metric.SIZE_BYTES: {"max": "100000000"},
    Metric.SIZE_REDUCTION_PERCENT: {"min": "10"},
    Metric.PERPLEXITY: {"max": "100"},
    Metric.PERPLEXITY_INCREASE_PERCENT: {"max": "50"},
    Metric.MEAN_KL_DIVERGENCE: {"max": "5"},
    Metric.TOP_TOKEN_AGREEMENT_PERCENT: {"min": "20"},
    Metric.TOKENS_PER_SECOND: {"min": "0.001"},
    Metric.SPEEDUP: {"min": "0.001"},
    Metric.PEAK_MEMORY_BYTES: {"max": "100000000000"},
    Metric.BENCHMARK_SCORE: {"min": "0"},
    Metric.BENCHMARK_CHANGE: {"min": "-1"},
}
FAILS: dict[Metric, dict[str, str]] = {
    Metric.SIZE_BYTES: {"max": "1000"},
    Metric.SIZE_REDUCTION_PERCENT: {"min": "99"},
    Metric.PERPLEXITY: {"max": "1"},
    Metric.PERPLEXITY_INCREASE_PERCENT: {"max": "-50"},
    Metric.MEAN_KL_DIVERGENCE: {"max": "0"},
    Metric.TOP_TOKEN_AGREEMENT_PERCENT: {"min": "101"},
    Metric.TOKENS_PER_SECOND: {"min": "1000000000"},
    Metric.SPEEDUP: {"min": "1000000"},
    Metric.PEAK_MEMORY_BYTES: {"max": "1000"},
    Metric.BENCHMARK_SCORE: {"min": "2"},
    Metric.BENCHMARK_CHANGE: {"min": "2"},
}


@dataclass(frozen=True)
class GateCase:
    """A setting of a method whose ladder has a next one, and bounds that lie between the two.

    `image` holds its engine; `engine` is how the report names that, and `format` the quant_method
    of what is published. `settings` are the two, in a report's words.
    """

    method: str
    image: str
    engine: str
    spec: dict[str, Any]
    settings: tuple[str, str]
    between: dict[Metric, dict[str, str]]
    format: str = ""

    def escalating(self) -> dict[str, Any]:
        """Return the spec that holds its gates after one step, those in `between` not before."""
        bounds = {**self.between, **{m: b for m, b in HOLDS.items() if m not in self.between}}
        return self._spec(bounds, "Escalate")

    def failing(self) -> dict[str, Any]:
        """Return the spec of which no gate holds."""
        return self._spec(FAILS, "Fail")

    def _spec(self, bounds: dict[Metric, dict[str, str]], otherwise: str) -> dict[str, Any]:
        gates = [
            {"metric": metric.value, **bound, **({"task": TASK} if metric in BENCHMARKED else {})}
            for metric, bound in bounds.items()
        ]
        return {
            "method": self.method,
            "device": "CPU",
            "calibration": CALIBRATION,
            "evaluation": EVALUATION,
            "gates": gates,
            "onGateFailure": otherwise,
            **self.spec,
        }


CASES = (
    GateCase(
        "GGUF",
        "gguf",
        "llama.cpp",
        {"gguf": {"types": ["Q2_K"]}},
        ("Q2_K", "Q3_K_M"),
        {
            Metric.MEAN_KL_DIVERGENCE: {"max": "0.04"},
            Metric.TOP_TOKEN_AGREEMENT_PERCENT: {"min": "85"},
            Metric.PERPLEXITY_INCREASE_PERCENT: {"max": "4"},
            Metric.SIZE_REDUCTION_PERCENT: {"max": "77"},
        },
    ),
    GateCase(
        "GPTQ",
        "llmcompressor",
        "llmcompressor",
        {"gptq": {"bits": 3, "trueSequential": False}},
        ("3 bits, groups of 128", "4 bits, groups of 128"),
        {Metric.MEAN_KL_DIVERGENCE: {"max": "0.01"}},
        format="compressed-tensors",
    ),
    GateCase(
        "BitsAndBytes",
        "transformers",
        "bitsandbytes",
        {"bitsAndBytes": {"bits": 4}},
        ("4 bits, NF4", "8 bits"),
        {Metric.MEAN_KL_DIVERGENCE: {"max": "0.002"}},
        format="bitsandbytes",
    ),
    GateCase(
        "INT8",
        "transformers",
        "torchao",
        {},
        ("8 bits, WeightAndActivation", "8 bits, WeightOnly"),
        {Metric.MEAN_KL_DIVERGENCE: {"max": "0.0003"}},
        format="torchao",
    ),
)


def of_metrics(gates: list[dict[str, Any]]) -> dict[Metric, dict[str, Any]]:
    """Return the results of gates by their metric, each of which stands there once."""
    found = {Metric(one["metric"]): one for one in gates}
    assert len(found) == len(gates)
    return found
