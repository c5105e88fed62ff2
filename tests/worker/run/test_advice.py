"""What a report recommends, as a table: the facts, and the sentence that they lead to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.page.reports import ENGINE

from kubequant.api.contract import RunReport, Usage
from kubequant.api.enums import Method
from kubequant.api.problems import parse
from kubequant_worker.advice import FEW_BITS, INSTEAD, advised, recommendations
from kubequant_worker.expectations import EXPECTATIONS, expectation

OUT = {"model": {"uri": "hf://owner/name"}, "output": {"uri": "s3://bucket/a"}}
MIB = 2**20


def report(method: str, variants: list[dict[str, Any]], **changes: Any) -> RunReport:
    settings = {**OUT, "method": method, "device": "CPU", **changes.pop("settings", {})}
    value = {
        "digest": "9f2c41aa",
        "outcome": "Published",
        "exitCode": 0,
        "settings": settings,
        "variants": [
            {"method": method, "name": method, "bitsPerWeight": "4", **one} for one in variants
        ],
        **changes,
    }
    return parse(RunReport, value, local=True)


def rise(percent: str, error: str = "0.1") -> dict[str, str]:
    return {"perplexityIncreasePercent": percent, "perplexityIncreaseStandardError": error}


@dataclass(frozen=True)
class Case:
    id: str
    variants: list[dict[str, Any]]
    says: list[str]
    """The beginning, up to the colon, and the action of each recommendation, in order."""
    method: str = "GGUF"
    changes: dict[str, Any] = field(default_factory=dict)


BUNDLED = {"role": "calibration", "bundled": True, "tokens": 4096}
GATE = {"gate": 0, "variant": "GPTQ", "metric": "PerplexityIncreasePercent", "max": "2.0"}

SIZE_GATE = {"gate": 0, "variant": "GPTQ", "metric": "SizeReductionPercent", "min": "70"}
TWO_GPUS = [{"name": "L4", "memoryBytes": 24_576 * MIB}] * 2


def learned(won: str, *losses: float, **more: Any) -> dict[str, Any]:
    """Return a student whose loss was this in each quarter of the steps."""
    points = [
        {"step": n + 1, "loss": f"{losses[n // 4]}", "divergence": "1", "hardLoss": "1"}
        for n in range(4 * len(losses))
    ]
    return {
        "bitsPerWeight": None,
        "sizeReductionPercent": "37.5",
        "distillationDetail": {
            "steps": 400,
            "points": points,
            "untrained": {"perplexityReductionPercent": won},
        },
        **more,
    }


QUANTIZE = "Distill has weights of 16 bits: quantize it, with this artifact as spec.model.uri."
ZEROS = {"askedPercent": "50", "percent": "50"}

CASES = [
    Case("nothing measured, nothing to say", [{"name": "Q4_K_M", "sizeBytes": 100}], []),
    Case(
        "a student that learned all it could, and is near: to be quantized",
        [learned("91.2", 8, 4, 3, 2.99, **rise("12"))],
        [QUANTIZE],
        method="Distill",
    ),
    Case(
        "a student whose loss was still falling",
        [learned("91.2", 8, 4, 3, 2.7, **rise("12"))],
        [
            (
                "Distill: the loss was still falling at the end (by 10.0 % over the last quarter "
                "of the steps): set spec.distill.steps above 400."
            ),
            QUANTIZE,
        ],
        method="Distill",
    ),
    *(
        Case(
            f"a student hardly better than untrained ({won} %)",
            [learned(won, 8, 4, 3, 2.7, **rise("900"))],
            [
                (
                    f"Distill: training hardly helped (perplexity {words} than the untrained "
                    "student's): set spec.distill.steps above 400, or a higher learningRate."
                ),
                QUANTIZE,
            ],
            method="Distill",
        )
        for won, words in (("4.2", "4.2 % lower"), ("-3", "no lower"))
    ),
    Case(
        "a student that is no smaller than its teacher",
        [learned("91.2", 8, 4, 3, 2.99, sizeReductionPercent="-4", **rise("12"))],
        [
            (
                "Distill takes as much room as its teacher or more (-4 % smaller): keep fewer "
                "layers (spec.distill.student.keepLayers), or name a smaller student."
            )
        ],
        method="Distill",
    ),
    Case(
        "a student that learned all it could, and is far",
        [learned("91.2", 8, 4, 3, 2.99, **rise("40"))],
        [
            (
                "Distill is far from its teacher (perplexity +40 % ± 0.1) and learns no more: keep "
                "more layers (spec.distill.student.keepLayers), or give more text in "
                "spec.calibration.dataset."
            ),
            QUANTIZE,
        ],
        method="Distill",
    ),
    Case(
        "a student that missed its gate is not published, and so nothing to quantize",
        [learned("91.2", 8, 4, 3, 2.99, **rise("40"))],
        [
            (
                "Distill is far from its teacher (perplexity +40 % ± 0.1) and learns no more: keep "
                "more layers (spec.distill.student.keepLayers), or give more text in "
                "spec.calibration.dataset."
            ),
        ],
        method="Distill",
        changes={"outcome": "Failed", "exitCode": 20},
    ),
    Case(
        "a student with too few points to tell a trend",
        [learned("91.2", **rise("12"))],
        [QUANTIZE],
        method="Distill",
    ),
    Case(
        "the smaller of two within 2 % is the one to serve",
        [
            {"name": "Q5_K_M", "sizeBytes": 120, **rise("0.4")},
            {"name": "Q4_K_M", "sizeBytes": 100, **rise("1.9")},
        ],
        [
            (
                "Serve Q4_K_M: of it and Q5_K_M it is the smallest that stays within 2 % of the "
                "original's perplexity (+1.9 % ± 0.1)."
            )
        ],
    ),
    Case(
        "the larger where the smaller is beyond 2 %",
        [
            {"name": "Q5_K_M", "sizeBytes": 120, **rise("0.4")},
            {"name": "Q4_K_M", "sizeBytes": 100, **rise("2.1", "0.2")},
        ],
        [
            (
                "Serve Q5_K_M: of it and Q4_K_M it is the smallest that stays within 2 % of the "
                "original's perplexity (+0.4 % ± 0.1)."
            )
        ],
    ),
    Case(
        "the larger where a gate does not hold for the smaller",
        [
            {"name": "Q5_K_M", "sizeBytes": 120, **rise("0.4")},
            {"name": "Q4_K_M", "sizeBytes": 100, "gatesPassed": False, **rise("0.9")},
        ],
        [
            (
                "Serve Q5_K_M: of it and Q4_K_M it is the smallest that stays within 2 % of the "
                "original's perplexity (+0.4 % ± 0.1)."
            )
        ],
    ),
    Case(
        "none within 2 %: the nearest, and the next type",
        [
            {"name": "Q3_K_S", "sizeBytes": 80, **rise("4.5")},
            {"name": "Q3_K_L", "sizeBytes": 100, **rise("3.5")},
        ],
        [
            (
                "No variant stays within 2 % of the original's perplexity; Q3_K_L is nearest "
                "(+3.5 % ± 0.1): make Q4_K_M."
            )
        ],
    ),
    Case(
        "a type that is worse than usual: the next one",
        [{"name": "Q4_K_M", **rise("4.1", "0.3")}],
        [
            (
                "Q4_K_M is worse than usual (perplexity +4.1 % ± 0.3, where very "
                "good is usual): make "
                "Q5_K_M."
            )
        ],
    ),
    Case(
        "few bits without an importance matrix",
        [{"name": "Q3_K_M", **rise("12")}],
        [
            (
                "Q3_K_M is worse than usual (perplexity +12 % ± 0.1, where fair is usual): set "
                "spec.gguf.importanceMatrix: true."
            )
        ],
    ),
    Case(
        "few bits with one",
        [{"name": "Q3_K_M", **rise("12")}],
        ["Q3_K_M is worse than usual (perplexity +12 % ± 0.1, where fair is usual): make Q4_K_M."],
        changes={"settings": {"gguf": {"types": ["Q3_K_M"], "importanceMatrix": True}}},
    ),
    Case(
        "worse than usual, but within its error",
        [{"name": "Q4_K_M", **rise("2.1", "0.3")}],
        [],
    ),
    Case(
        "INT4 worse than usual: GPTQ",
        [rise("4.5")],
        [
            (
                "INT4 is worse than usual (perplexity +4.5 % ± 0.1, where 2-3 % "
                "worse is usual): take "
                "method GPTQ, which makes up for each column's error."
            )
        ],
        method="INT4",
    ),
    Case(
        "GPTQ worse than usual: AWQ",
        [rise("4.5")],
        [
            (
                "GPTQ is worse than usual (perplexity +4.5 % ± 0.1, where under 2 % "
                "worse is usual): "
                "take method AWQ, which usually loses less at the same bits, or bits: 8."
            )
        ],
        method="GPTQ",
    ),
    Case(
        "GPTQ worse than usual on bundled text: text of one's own",
        [rise("4.5")],
        [
            (
                "GPTQ is worse than usual (perplexity +4.5 % ± 0.1, where under 2 % "
                "worse is usual): "
                "calibrate with text of your own in spec.calibration.dataset."
            ),
            (
                "The text that comes with kubequant was used (4096 tokens); text of "
                "your own domain in "
                "spec.calibration.dataset says more about your use."
            ),
        ],
        method="GPTQ",
        changes={"datasets": [BUNDLED]},
    ),
    Case(
        "GPTQ in 8 bits worse than usual: look at the task",
        [{"bitsPerWeight": "8", **rise("3")}],
        [
            (
                "GPTQ is worse than usual (perplexity +3 % ± 0.1, where under 1 % "
                "worse is usual): see "
                "in spec.evaluation.benchmarks whether your task feels it."
            )
        ],
        method="GPTQ",
    ),
    Case(
        "INT8 worse than usual: leave the activations",
        [{"bitsPerWeight": "8", "setting": "8 bits, WeightAndActivation", **rise("3")}],
        [
            (
                "INT8 is worse than usual (perplexity +3 % ± 0.1, where under 1 % "
                "worse is usual): set "
                "spec.int8.scheme: WeightOnly, which leaves the activations as they are."
            )
        ],
        method="INT8",
    ),
    Case(
        "slower on a CPU",
        [{"speedup": "0.62", "speedupStandardError": "0.02"}],
        [
            (
                "GPTQ is slower than the original (0.62 times its tokens per "
                "second): take GGUF, whose "
                "runtime computes with quantized weights on a CPU."
            )
        ],
        method="GPTQ",
    ),
    Case(
        "slower on a GPU",
        [{"speedup": "0.62"}],
        [
            (
                "GPTQ is slower than the original (0.62 times its tokens per "
                "second): serve it by a "
                "runtime with a kernel for this format, like vLLM, and measure there."
            )
        ],
        method="GPTQ",
        changes={"settings": {"device": "GPU"}},
    ),
    Case(
        "a slow level of GGUF",
        [{"name": "Q3_K_S", "speedup": "0.9"}],
        [
            (
                "Q3_K_S is slower than the original (0.9 times its tokens per "
                "second): take Q4_0 or Q8_0, which are fastest to compute with."
            )
        ],
    ),
    Case(
        "a fast level of GGUF that is slow here",
        [{"name": "Q4_0", "speedup": "0.9"}],
        [
            (
                "Q4_0 is slower than the original (0.9 times its tokens per second): take Q8_0, "
                "which is fastest to compute with."
            )
        ],
    ),
    Case(
        "all fast levels slow here",
        [{"name": name, "speedup": "0.9"} for name in ("Q4_0", "Q8_0")],
        [
            (
                f"{name} is slower than the original (0.9 times its tokens per second): measure on "
                "the processor that will serve it, whose instructions decide the speed."
            )
            for name in ("Q4_0", "Q8_0")
        ],
    ),
    *(
        Case(
            f"a {kind} model that is slower on a {device}",
            [{"speedup": "0.9"}],
            [
                (
                    f"{method} is slower than the original (0.9 times its tokens per second): "
                    f"{why}, so quantize it{how}."
                )
            ],
            method=method,
            changes={"settings": {"device": device}},
        )
        for device, how in (("CPU", " by method GGUF"), ("GPU", ""))
        for kind, method, why in (
            ("pruned", "Prune", "zeros are computed with like other weights"),
            ("distilled", "Distill", "it is not quantized yet"),
        )
    ),
    *(
        Case(
            f"a size {where} its bound by little",
            [{}],
            [f"GPTQ: the gate on SizeReductionPercent {says}."],
            method="GPTQ",
            changes={"gates": [{**SIZE_GATE, "value": value, "margin": margin, "passed": passed}]},
        )
        for where, value, margin, passed, says in (
            (
                "within",
                "71",
                "1",
                True,
                (
                    "holds by 1, within 2 % of its bound: leave it room, since another revision of "
                    "the model may be beyond"
                ),
            ),
            (
                "beyond",
                "69.5",
                "-0.5",
                False,
                (
                    "does not hold by 0.5, within 2 % of its bound: relax it by that much, or take "
                    "another setting"
                ),
            ),
        )
    ),
    Case(
        "a size far from its bound",
        [{}],
        [],
        method="GPTQ",
        changes={"gates": [{**SIZE_GATE, "value": "72", "margin": "2", "passed": True}]},
    ),
    Case(
        "slower within the error",
        [{"name": "Q4_0", "speedup": "0.98", "speedupStandardError": "0.02"}],
        [],
    ),
    Case(
        "too large for the machine",
        [
            {"name": "Q8_0", "sizeBytes": 800 * MIB, "peakMemoryBytes": 1200 * MIB},
            {"name": "Q4_0", "sizeBytes": 400 * MIB, "peakMemoryBytes": 700 * MIB},
        ],
        [
            (
                "Q8_0 takes 1200 MiB, more than the memory of this machine or container of 1024 "
                "MiB: take Q4_0."
            )
        ],
        changes={"environment": {"memoryBytes": 1024 * MIB}},
    ),
    Case(
        "what GPUs may be used for is no bound on a CPU",
        [{"name": "Q8_0", "sizeBytes": 800 * MIB, "peakMemoryBytes": 1200 * MIB}],
        [],
        changes={"settings": {"memory": {"maxGPUMemory": "1Gi"}}},
    ),
    Case(
        "too large for what the manifest allows of the GPU",
        [{"sizeBytes": 800 * MIB, "peakMemoryBytes": 1200 * MIB}],
        [
            (
                "GPTQ takes 1200 MiB, more than spec.memory.maxGPUMemory of 1024 MiB: take a "
                "setting with fewer bits."
            )
        ],
        method="GPTQ",
        changes={"settings": {"device": "GPU", "memory": {"maxGPUMemory": "1Gi"}}},
    ),
    Case(
        "not too large for two GPUs together",
        [{"sizeBytes": 30_000 * MIB, "peakMemoryBytes": 41_000 * MIB}],
        [],
        method="GPTQ",
        changes={"settings": {"device": "GPU"}, "environment": {"gpus": TWO_GPUS}},
    ),
    Case(
        "too large for two GPUs together",
        [{"sizeBytes": 30_000 * MIB, "peakMemoryBytes": 51_000 * MIB}],
        [
            (
                "GPTQ takes 51000 MiB, more than the memory of the 2 GPUs of 49152 MiB: take a "
                "setting with fewer bits."
            )
        ],
        method="GPTQ",
        changes={"settings": {"device": "GPU"}, "environment": {"gpus": TWO_GPUS}},
    ),
    Case(
        "too large for the GPU, and nothing smaller there",
        [{"sizeBytes": 30_000 * MIB}],
        [
            (
                "GPTQ takes 30000 MiB, more than the memory of the GPU of 24576 MiB: "
                "take a setting "
                "with fewer bits."
            )
        ],
        method="GPTQ",
        changes={
            "settings": {"device": "GPU"},
            "environment": {"gpus": [{"name": "L4", "memoryBytes": 24_576 * MIB}]},
        },
    ),
    Case(
        "embeddings that are half of the file",
        [
            {
                "name": "Q4_K_M",
                "sizeBytes": 200,
                "embeddingBytes": 100,
                "sizeReductionPercent": "55.5",
            }
        ],
        [
            (
                "Embeddings and output matrix are 50 % of Q4_K_M, so it saves 55.5 % "
                "of the size: set "
                "spec.gguf.tokenEmbeddingType and outputTensorType to a smaller type."
            )
        ],
    ),
    Case(
        "a run that failed serves nothing: what held can be made alone",
        [
            {"name": "Q8_0", "sizeBytes": 200, "gatesPassed": True, **rise("0.1")},
            {"name": "Q2_K", "sizeBytes": 100, "gatesPassed": False, **rise("7.1")},
        ],
        [
            (
                "All gates hold for Q8_0: leave Q2_K out, or name with variant in each gate what "
                "it is for."
            )
        ],
        changes={"outcome": "Failed", "exitCode": 11},
    ),
    Case(
        "a pruned model that was not published",
        [{"setting": "50 % zeros, SparseGPT", "sparsityDetail": ZEROS, **rise("1.9")}],
        [],
        method="Prune",
        changes={"outcome": "Failed", "exitCode": 11},
    ),
    Case(
        "a pruned model that lost little",
        [{"setting": "50 % zeros, SparseGPT", "sparsityDetail": ZEROS, **rise("1.9")}],
        [
            (
                "Prune has 50 % zeros and takes as much room as the original: quantize it, with "
                "this artifact as spec.model.uri: s3://bucket/a/9f2c41aa/."
            )
        ],
        method="Prune",
        changes={"artifact": {"uri": "s3://bucket/a/9f2c41aa/", "manifestSha256": "0" * 64}},
    ),
    *(
        Case(
            f"a pruned model that lost much by {setting}",
            [{"setting": setting, "sparsityDetail": {**ZEROS, **more}, **rise("21.6")}],
            [
                (
                    "Prune: without 50 % of the weights perplexity rose by more than 2 % "
                    f"(+21.6 % ± 0.1): {action}."
                ),
                (
                    "Prune has 50 % zeros and takes as much room as the original: quantize it, "
                    "with this artifact as spec.model.uri."
                ),
            ],
            method="Prune",
        )
        for setting, more, action in (
            ("Magnitude", {}, "take algorithm SparseGPT, which makes up for what it drops"),
            (
                "two of every four, SparseGPT",
                {"twoOfFour": True},
                "take pattern Unstructured, which drops what matters least",
            ),
            ("50 % zeros, SparseGPT", {}, "set spec.prune.sparsity below 0.5"),
        )
    ),
    Case(
        "a TensorRT engine",
        [{"engineDetail": ENGINE, **rise("0.1")}],
        [
            (
                "TensorRT serves on NVIDIA L4 with TensorRT-LLM 1.2.1 alone, 8 requests at once: "
                "ask for such nodes with nodeSelector nvidia.com/gpu.product: NVIDIA-L4."
            )
        ],
        method="TensorRT",
        changes={"settings": {"device": "GPU"}},
    ),
    Case(
        "a checkpoint for TensorRT-LLM",
        [{**rise("0.1")}],
        [
            (
                "TensorRT is a checkpoint without an engine: where TensorRT engines serve, set "
                "spec.tensorRT.build: Engine, and gpuProduct to the GPU that will."
            )
        ],
        method="TensorRT",
        changes={"settings": {"tensorRT": {"build": "Checkpoint"}}},
    ),
    Case(
        "embeddings of a checkpoint",
        [{"sizeBytes": 200, "embeddingBytes": 160, "sizeReductionPercent": "40"}],
        [
            (
                "Embeddings and output matrix are 80 % of GPTQ, so it saves 40 % of the size: take "
                "method GGUF, which quantizes them too."
            )
        ],
        method="GPTQ",
    ),
    Case(
        "large embeddings that cost nothing of what is usual",
        [{"name": "Q4_K_M", "sizeBytes": 200, "embeddingBytes": 100, "sizeReductionPercent": "74"}],
        [],
    ),
    Case(
        "a gate that holds by less than two errors",
        [rise("1.9", "0.3")],
        [
            (
                "GPTQ: the gate on PerplexityIncreasePercent holds by 0.1 with a "
                "standard error of 0.3, "
                "so another measurement could turn it: measure more text with "
                "spec.evaluation.perplexity.maxTokens."
            )
        ],
        method="GPTQ",
        changes={
            "gates": [
                {
                    **GATE,
                    "value": "1.9",
                    "standardError": "0.3",
                    "margin": "0.1",
                    "certain": False,
                    "passed": True,
                }
            ]
        },
    ),
    Case(
        "a gate that surely holds",
        [rise("1", "0.1")],
        [],
        method="GPTQ",
        changes={
            "gates": [
                {
                    **GATE,
                    "value": "1",
                    "standardError": "0.1",
                    "margin": "1",
                    "certain": True,
                    "passed": True,
                }
            ]
        },
    ),
    Case(
        "a gate on speed that fails within the error",
        [{}],
        [
            (
                "GPTQ: the gate on Speedup does not hold by 0.05 with a standard error of 0.1, so "
                "another measurement could turn it: raise spec.evaluation.performance.repetitions."
            )
        ],
        method="GPTQ",
        changes={
            "gates": [
                {
                    **GATE,
                    "metric": "Speedup",
                    "min": "1.5",
                    "value": "1.45",
                    "standardError": "0.1",
                    "margin": "-0.05",
                    "certain": False,
                    "passed": False,
                }
            ]
        },
    ),
    Case(
        "bundled text in both roles",
        [{}],
        [
            (
                "The text that comes with kubequant was used (6144 tokens); text of "
                "your own domain in "
                "spec.calibration.dataset and spec.evaluation.perplexity.dataset "
                "says more about your "
                "use."
            )
        ],
        method="AWQ",
        changes={"datasets": [BUNDLED, {"role": "evaluation", "bundled": True, "tokens": 2048}]},
    ),
    Case(
        "text of one's own",
        [{}],
        [],
        method="AWQ",
        changes={"datasets": [{"role": "calibration", "uri": "hf://a/b", "tokens": 4096}]},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_facts_lead_to_a_sentence_with_its_number_and_one_action(case: Case) -> None:
    found = advised(report(case.method, case.variants, **case.changes), {})

    assert list(found.recommendations) == case.says


def test_the_usage_shown_is_the_recommended_variants() -> None:
    made = report(
        "GGUF",
        [
            {"name": "Q5_K_M", "sizeBytes": 120, **rise("0.4")},
            {"name": "Q4_K_M", "sizeBytes": 100, **rise("1.9")},
        ],
    )
    usage = {name: Usage(runtime="llama.cpp", command=name) for name in ("Q5_K_M", "Q4_K_M")}
    found = advised(made, usage)

    assert found.recommended == "Q4_K_M"
    assert found.usage == usage["Q4_K_M"]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        pytest.param(
            {"method": "GPTQ", "bitsPerWeight": "4", "sizeReductionPercent": "70", **rise("1.5")},
            ("75", "2", "under 2 % worse", ()),
            id="as usual, a few points less",
        ),
        pytest.param(
            {"method": "GPTQ", "bitsPerWeight": "4", "sizeReductionPercent": "62", **rise("4.1")},
            (
                "75",
                "2",
                "under 2 % worse",
                (
                    "62 % smaller, where about 75 % is usual",
                    "perplexity +4.1 % ± 0.1, where at most +2 % is usual",
                ),
            ),
            id="short in both",
        ),
        pytest.param(
            {"method": "BitsAndBytes", "bitsPerWeight": "8", **rise("9")},
            ("50", None, "", ()),
            id="no quality known",
        ),
    ],
)
def test_what_is_expected_stands_beside_what_was_measured(
    variant: dict[str, Any], expected: tuple[str, str | None, str, tuple[str, ...]]
) -> None:
    made = report(variant["method"], [variant]).variants[0]
    found = expectation(made)

    assert found is not None
    assert expected == (
        found.size_reduction_percent,
        found.most_perplexity_increase_percent,
        found.quality,
        found.shortfalls,
    )


def test_what_nobody_expects_has_no_expectation() -> None:
    assert expectation(report("Prune", [{"bitsPerWeight": None}]).variants[0]) is None


def test_more_bits_are_expected_to_lose_less() -> None:
    bounds = [
        (usual.size_reduction_percent, usual.most_increase_percent)
        for (method, _), usual in EXPECTATIONS.items()
        if method.value == "GGUF" and usual.most_increase_percent is not None
    ]

    assert bounds == sorted(bounds, reverse=True)


@pytest.mark.parametrize("key", INSTEAD, ids=lambda key: f"{key[0]} in {key[1]} bits")
def test_every_method_that_another_does_better_than_is_told_so(key: tuple[Method, str]) -> None:
    method, bits = key
    far = str(10 * (EXPECTATIONS[key].most_increase_percent or 0))

    variant = {"bitsPerWeight": bits, **rise(far)}
    found = recommendations(report(method, [variant], settings={"device": "GPU"}))

    assert [sentence for sentence in found if sentence.endswith(f": {INSTEAD[key]}.")]


@pytest.mark.parametrize("level", sorted(FEW_BITS))
def test_every_level_of_few_bits_is_told_of_the_importance_matrix(level: str) -> None:
    far = str(10 * (EXPECTATIONS[Method.GGUF, level].most_increase_percent or 0))

    (found,) = recommendations(report("GGUF", [{"name": level, **rise(far)}]))

    assert found.endswith(": set spec.gguf.importanceMatrix: true.")


def test_recommendations_are_bounded_whatever_was_found() -> None:
    many = [{"name": f"Q{n}", "speedup": "0.5", "sizeBytes": 2**40} for n in range(16)]

    assert len(recommendations(report("GGUF", many))) <= 16
