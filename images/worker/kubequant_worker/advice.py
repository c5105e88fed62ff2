"""What a report recommends: from what was measured, each a sentence with its number and one action.

Pure: a report in, recommendations out. The expectations stand in `expectations`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Device, Method, Metric
from kubequant.api.fields import quantity_bytes
from kubequant.api.gating import shown
from kubequant.api.outcome import Outcome
from kubequant.api.params import GGUFType
from kubequant.api.tensorrt import GPU_PRODUCT_LABEL
from kubequant_worker.advice_distill import distilled
from kubequant_worker.expectations import expectation, is_surely_worse, rise_text, usual
from kubequant_worker.ladder import NEXT_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kubequant.api.contract import GateResult, RunReport, Usage, VariantReport

# The rise of perplexity, in percent, within which the smaller variant is the one to serve.
WITHIN_PERCENT: Final = 2.0
# From this share on, the embeddings decide the size and not the method.
EMBEDDING_SHARE: Final = 0.4
# Within so many percent of a bound, a number that has no error is worth a word: it is about what
# another revision of a model, or another reading of its memory, differs by.
NEAR_PERCENT: Final = 2
# The levels of GGUF that are fastest to compute with.
FAST_LEVELS: Final = (GGUFType.Q4_0, GGUFType.Q8_0)
_MOST: Final = 16
_LONGEST: Final = 1024
_MIB: Final = 2**20
FEW_BITS: Final = frozenset({"Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L"})
"""The levels of GGUF for which an importance matrix comes before more bits."""

# The roles of texts as reports name them, each with the field that names the text.
DATASET_FIELDS: Final = {
    "calibration": "spec.calibration.dataset",
    "evaluation": "spec.evaluation.perplexity.dataset",
}

INSTEAD: Final[dict[tuple[Method, str], str]] = {
    (Method.INT4, "4"): "take method GPTQ, which makes up for each column's error",
    (Method.GPTQ, "4"): "take method AWQ, which usually loses less at the same bits, or bits: 8",
    (Method.GPTQ, "3"): "set spec.gptq.bits: 4",
    (Method.GPTQ, "2"): "set spec.gptq.bits: 4",
    (Method.AWQ, "4"): "take method INT8, or GPTQ with bits: 8",
    (Method.BITS_AND_BYTES, "4"): "take method AWQ, which calibrates, or bits: 8",
    (Method.INT8, "8"): "set spec.int8.scheme: WeightOnly, which leaves the activations as they "
    "are",
    (Method.FP8, "8"): "take method INT8 with scheme WeightOnly",
    (Method.TENSOR_RT, "4"): "set spec.tensorRT.precision: FP8",
}
"""What does better than a method with so many bits, where that is worse than usual."""


def advised(report: RunReport, usage: Mapping[str, Usage | None]) -> RunReport:
    """Return a report with expectations beside its numbers, and what they recommend.

    `usage` says how each variant is served, by name; the report's is the recommended one's.
    """
    variants = tuple(
        one.model_copy(update={"expected": expectation(one)}) for one in report.variants
    )
    report = report.model_copy(update={"variants": variants})
    best = recommended(report)
    return report.model_copy(
        update={
            "recommended": best.name if best else "",
            "recommendations": recommendations(report),
            "usage": (usage.get(best.name) if best else None) or report.usage,
        }
    )


def recommended(report: RunReport) -> VariantReport | None:
    """Return the variant to serve, where there are several to choose from and they are published.

    The smallest that holds its gates and whose perplexity rose by at most 2 %; where none stays
    within that, the one whose perplexity rose least.
    """
    measured = [
        one
        for one in report.variants
        if one.perplexity_increase_percent is not None and one.gates_passed is not False
    ]
    if len(report.variants) == 1 or not measured or report.outcome is Outcome.FAILED:
        return None
    within = [one for one in measured if _rise(one) <= WITHIN_PERCENT]
    if within:
        return min(within, key=lambda one: one.size_bytes or 0)
    return min(measured, key=_rise)


def recommendations(report: RunReport) -> tuple[str, ...]:
    """Return what would do better, the most important first."""
    sentences = [
        *_which(report),
        *_quality(report),
        *_pruned(report),
        *distilled(report),
        *_engine(report),
        *_gates(report),
        *_speed(report),
        *_fit(report),
        *_embeddings(report),
        *_texts(report),
    ]
    cut = (s if len(s) <= _LONGEST else f"{s[: _LONGEST - 1]}…" for s in sentences)
    return tuple(dict.fromkeys(cut))[:_MOST]


def _which(report: RunReport) -> Iterator[str]:
    held = [one.name for one in report.variants if one.gates_passed]
    missed = [one.name for one in report.variants if one.gates_passed is False]
    if report.outcome is Outcome.FAILED and held and missed:
        yield (
            f"All gates hold for {', '.join(held)}: leave {', '.join(missed)} out, or name with "
            "variant in each gate what it is for."
        )
    best = recommended(report)
    if best is None:
        return
    others = ", ".join(one.name for one in report.variants if one is not best)
    if _rise(best) <= WITHIN_PERCENT:
        yield (
            f"Serve {best.name}: of it and {others} it is the smallest that stays within "
            f"{WITHIN_PERCENT:g} % of the original's perplexity ({rise_text(best)})."
        )
        return
    follows = _next_type(best)
    more = f"make {follows}" if follows else "take a setting with more bits"
    yield (
        f"No variant stays within {WITHIN_PERCENT:g} % of the original's perplexity; {best.name} "
        f"is nearest ({rise_text(best)}): {more}."
    )


def _quality(report: RunReport) -> Iterator[str]:
    for variant in report.variants:
        found = usual(variant)
        if found is not None and is_surely_worse(variant):
            yield (
                f"{variant.name} is worse than usual (perplexity {rise_text(variant)}, where "
                f"{found.quality} is usual): {_more_careful(report, variant)}."
            )


def _more_careful(report: RunReport, variant: VariantReport) -> str:
    """Return the one action against a quality that is worse than usual."""
    if any(text.role == "calibration" and text.bundled for text in report.datasets):
        return f"calibrate with text of your own in {DATASET_FIELDS['calibration']}"
    gguf = report.settings.gguf if report.settings else None
    if variant.name in FEW_BITS and not (gguf and gguf.importance_matrix):
        return "set spec.gguf.importanceMatrix: true"
    if follows := _next_type(variant):
        return f"make {follows}"
    done_already = variant.method is Method.INT8 and "WeightOnly" in variant.setting
    if variant.method and not done_already:
        instead = INSTEAD.get((variant.method, variant.bits_per_weight or ""))
        if instead:
            return instead
    return "see in spec.evaluation.benchmarks whether your task feels it"


def _pruned(report: RunReport) -> Iterator[str]:
    """Yield what to do with a pruned model, whose file is no smaller and which may have lost."""
    for variant in report.variants:
        detail = variant.sparsity_detail
        if detail is None:
            continue
        asked = detail.asked_percent
        if variant.perplexity_increase_percent is not None and _rise(variant) > WITHIN_PERCENT:
            action = f"set spec.prune.sparsity below {float(asked) / 100:g}"
            if "SparseGPT" not in variant.setting:
                action = "take algorithm SparseGPT, which makes up for what it drops"
            elif detail.two_of_four:
                action = "take pattern Unstructured, which drops what matters least"
            yield (
                f"{variant.name}: without {shown(detail.percent)} % of the weights perplexity rose "
                f"by more than {WITHIN_PERCENT:g} % ({rise_text(variant)}): {action}."
            )
        if report.outcome is Outcome.FAILED:
            continue
        place = f": {report.artifact.uri}" if report.artifact else ""
        yield (
            f"{variant.name} has {shown(detail.percent)} % zeros and takes as much room as the "
            f"original: quantize it, with this artifact as spec.model.uri{place}."
        )


def _engine(report: RunReport) -> Iterator[str]:
    """Yield where an engine serves, and what would serve a checkpoint faster."""
    for variant in report.variants:
        built = variant.engine_detail
        if built is not None:
            yield (
                f"{variant.name} serves on {built.gpu} with TensorRT-LLM {built.tensorrt_llm} "
                f"alone, {built.max_batch_size} requests at once: ask for such nodes with "
                f"nodeSelector {GPU_PRODUCT_LABEL}: {built.gpu_product}."
            )
        elif variant.method is Method.TENSOR_RT:
            yield (
                f"{variant.name} is a checkpoint without an engine: where TensorRT engines serve, "
                "set spec.tensorRT.build: Engine, and gpuProduct to the GPU that will."
            )


def _gates(report: RunReport) -> Iterator[str]:
    for gate in report.gates:
        if gate.value is None:
            continue
        verdict = f"{'holds' if gate.passed else 'does not hold'} by {_distance(gate)}"
        if gate.certain is False:
            yield (
                f"{gate.variant}: the gate on {gate.metric} {verdict} with a "
                f"standard error of {shown(gate.standard_error or '0')}, so another "
                f"measurement could turn it: {_surer(gate)}."
            )
        elif gate.certain is None and _is_near(gate, gate.value):
            yield (
                f"{gate.variant}: the gate on {gate.metric} {verdict}, within "
                f"{NEAR_PERCENT} % of its bound: {_room_for(gate)}."
            )


def _is_near(gate: GateResult, value: str) -> bool:
    bounds = (Decimal(bound) for bound in (gate.min, gate.max) if bound is not None)
    return any(100 * abs(Decimal(value) - bound) <= NEAR_PERCENT * abs(bound) for bound in bounds)


def _room_for(gate: GateResult) -> str:
    """Return what to do about a number without an error that is near its bound."""
    if gate.metric == Metric.PEAK_MEMORY_BYTES:
        return "leave it room, since the peak is one reading and another run's may be beyond"
    if gate.metric not in {Metric.SIZE_BYTES, Metric.SIZE_REDUCTION_PERCENT}:
        return _surer(gate)
    if gate.passed:
        return "leave it room, since another revision of the model may be beyond"
    return "relax it by that much, or take another setting"


def _distance(gate: GateResult) -> str:
    return shown((gate.margin or "0").removeprefix("-"))


def _surer(gate: GateResult) -> str:
    if gate.task:
        return "ask more questions in spec.evaluation.benchmarks"
    if gate.metric in {"TokensPerSecond", "Speedup"}:
        return "raise spec.evaluation.performance.repetitions"
    return "measure more text with spec.evaluation.perplexity.maxTokens"


def _speed(report: RunReport) -> Iterator[str]:
    slower = [one for one in report.variants if _is_slower(one)]
    for variant in slower:
        yield (
            f"{variant.name} is slower than the original ({shown(variant.speedup or '')} times its "
            f"tokens per second): {_faster(report, variant, {one.name for one in slower})}."
        )


def _is_slower(variant: VariantReport) -> bool:
    """Say whether a variant is slower than the original beyond two standard errors."""
    if variant.speedup is None:
        return False
    return float(variant.speedup) + 2 * float(variant.speedup_standard_error or 0) < 1


def _faster(report: RunReport, variant: VariantReport, slower: set[str]) -> str:
    """Return what would be faster than `variant`; `slower` were all found to be slow."""
    on_gpu = report.settings is not None and report.settings.device is Device.GPU
    if variant.method is Method.GGUF:
        levels = [level for level in FAST_LEVELS if level not in slower]
        return (
            f"take {' or '.join(levels)}, which {'is' if len(levels) == 1 else 'are'} fastest to "
            "compute with"
            if levels
            else "measure on the processor that will serve it, whose instructions decide the speed"
        )
    if variant.method in {Method.PRUNE, Method.DISTILL}:
        zeros = variant.method is Method.PRUNE
        why = "zeros are computed with like other weights" if zeros else "it is not quantized yet"
        how = "" if on_gpu else " by method GGUF"
        return f"{why}, so quantize it{how}"
    if on_gpu:
        return "serve it by a runtime with a kernel for this format, like vLLM, and measure there"
    return "take GGUF, whose runtime computes with quantized weights on a CPU"


def _fit(report: RunReport) -> Iterator[str]:
    room = _room(report)
    if room is None:
        return
    most, named = room
    fitting = [one for one in report.variants if 0 < _memory(one) <= most]
    for variant in report.variants:
        needed = _memory(variant)
        if needed <= most:
            continue
        best = max(fitting, key=_memory, default=None)
        fewer = "quantize it" if variant.sparsity_detail else "take a setting with fewer bits"
        action = f"take {best.name}" if best else fewer
        yield (
            f"{variant.name} takes {needed / _MIB:.0f} MiB, more than {named} of "
            f"{most / _MIB:.0f} MiB: {action}."
        )


def _room(report: RunReport) -> tuple[int, str] | None:
    """Return the memory that is to serve the model, and what says so."""
    settings, environment = report.settings, report.environment
    if settings is None:
        return None
    if settings.device is Device.GPU:
        gpus = environment.gpus if environment else ()
        # What a model takes is told of all GPUs together, and what may be used of each.
        if settings.memory.max_gpu_memory is not None:
            allowed = quantity_bytes(settings.memory.max_gpu_memory) * max(1, len(gpus))
            return allowed, "spec.memory.maxGPUMemory"
        found = [gpu.memory_bytes for gpu in gpus if gpu.memory_bytes]
        named = "the GPU" if len(found) == 1 else f"the {len(found)} GPUs"
        return (sum(found), f"the memory of {named}") if found else None
    if environment is None or environment.memory_bytes is None:
        return None
    return environment.memory_bytes, "the memory of this machine or container"


def _memory(variant: VariantReport) -> int:
    return variant.peak_memory_bytes or variant.size_bytes or 0


def _embeddings(report: RunReport) -> Iterator[str]:
    for variant in report.variants:
        size, embedding = variant.size_bytes or 0, variant.embedding_bytes or 0
        short = variant.expected is not None and any(
            "smaller" in sentence for sentence in variant.expected.shortfalls
        )
        if not size or embedding < EMBEDDING_SHARE * size or not short:
            continue
        action = (
            "set spec.gguf.tokenEmbeddingType and outputTensorType to a smaller type"
            if variant.method is Method.GGUF
            else "take method GGUF, which quantizes them too"
        )
        yield (
            f"Embeddings and output matrix are {100 * embedding / size:.0f} % of {variant.name}, "
            f"so it saves {float(variant.size_reduction_percent or 0):.3g} % of the size: {action}."
        )


def _texts(report: RunReport) -> Iterator[str]:
    bundled = [text for text in report.datasets if text.bundled]
    if not bundled:
        return
    fields = " and ".join(DATASET_FIELDS[text.role] for text in bundled)
    tokens = sum(text.tokens for text in bundled)
    yield (
        f"The text that comes with kubequant was used ({tokens} tokens); text of your own domain "
        f"in {fields} says more about your use."
    )


def _rise(variant: VariantReport) -> float:
    return float(variant.perplexity_increase_percent or 0)


def _next_type(variant: VariantReport) -> GGUFType | None:
    known = variant.name in set(GGUFType) and variant.method is Method.GGUF
    return NEXT_TYPE[GGUFType(variant.name)] if known else None
