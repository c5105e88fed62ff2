"""What the Hugging Face Hub reads at the head of a model card.

Names and forms are those of huggingface_hub's ModelCardData
(https://github.com/huggingface/hub-docs/blob/main/modelcard.md). What the source's own card says of
its licence and languages is passed on, since a derived model is under the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from kubequant.api.engines import ENGINES
from kubequant.api.enums import Method
from kubequant_worker.page.tables import method_name
from kubequant_worker.serving import served_variant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import EvalResult, ModelCardData

    from kubequant.api.contract import DatasetReport, RunReport, VariantReport

HUB_SCHEME: Final = "hf://"
TASK: Final = "text-generation"
# What these make is no quantized model; the Hub's tree of models calls it a finetune.
_NOT_QUANTIZED: Final = frozenset({Method.PRUNE, Method.DISTILL})
# ending of a weights file -> the library that the Hub shows code for
_LIBRARIES: Final = {".gguf": "gguf", ".onnx": "onnx"}
_BITS: Final = {Method.INT4: 4, Method.INT8: 8, Method.FP8: 8}


def card_metadata(report: RunReport) -> ModelCardData:
    """Return the metadata of the artifact's card."""
    from huggingface_hub import ModelCardData  # noqa: PLC0415 - slow, and only a card needs it

    source = report.source
    card = source.card if source else None
    results = list(_results(report))
    known: dict[str, Any] = {
        "license": (card.license or None) if card else None,
        "license_name": (card.license_name or None) if card else None,
        "license_link": (card.license_link or None) if card else None,
        "language": list(card.languages) or None if card else None,
        "library_name": _library(report),
        "pipeline_tag": (card.pipeline_tag if card else "") or TASK,
        "tags": _tags(report),
        "datasets": _calibration_datasets(report) or None,
    }
    if source and source.uri.startswith(HUB_SCHEME):
        bases = [source.uri, *([report.student.uri] if report.student else [])]
        names = [uri.removeprefix(HUB_SCHEME) for uri in bases if uri.startswith(HUB_SCHEME)]
        known["base_model"] = names if len(names) > 1 else names[0]
        known["base_model_relation"] = (
            "finetune" if _method(report) in _NOT_QUANTIZED else "quantized"
        )
    if results:
        known |= {"model_name": report.name or "quantized", "eval_results": results}
    return ModelCardData(**{name: value for name, value in known.items() if value is not None})


def _method(report: RunReport) -> Method | None:
    name = method_name(report)
    return Method(name) if name in set(Method) else None


def _library(report: RunReport) -> str:
    if _method(report) is Method.TENSOR_RT:  # transformers would take its checkpoint for another
        return "tensorrt"
    paths = [file.path for one in report.variants for file in one.files]
    fitting = (name for end, name in _LIBRARIES.items() if any(p.endswith(end) for p in paths))
    return next(fitting, "transformers")


def _tags(report: RunReport) -> list[str]:
    """Return the method, the number of bits and the format as the Hub writes them, then ours."""
    method = _method(report)
    tags = [method.value.lower()] if method else []
    if bits := _bits(report, method):
        tags.append(f"{bits}-bit")
    engine = _letters(report.resolved.engine) if report.resolved else ""
    tags += [
        one.writes.lower()
        for one in (ENGINES.get(method, ()) if method else ())
        if _letters(one.name) in engine and re.fullmatch("[A-Za-z0-9-]+", one.writes)
    ]
    quantized = [] if method in _NOT_QUANTIZED else ["quantized"]
    return list(dict.fromkeys([*tags, *quantized, "kubequant"]))


def _bits(report: RunReport, method: Method | None) -> int | None:
    """Return the bits of a weight where they are whole: those made, else those asked for."""
    served = served_variant(report)
    made = served.bits_per_weight if served else None
    if made is not None:
        return int(float(made)) if float(made).is_integer() else None
    asked = getattr(report.settings.parameters(), "bits", None) if report.settings else None
    return asked or (_BITS.get(method) if method else None)


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _calibration_datasets(report: RunReport) -> list[str]:
    """Return the Hub's datasets that calibrated, without what follows owner and name."""
    used = [one.uri for one in report.datasets if one.role == "calibration"]
    names = (uri.removeprefix(HUB_SCHEME) for uri in used if uri.startswith(HUB_SCHEME))
    return list(dict.fromkeys("/".join(name.split("/")[:2]) for name in names))


def _results(report: RunReport) -> Iterator[EvalResult]:
    """Yield perplexity and benchmarks of every variant, for the card's model-index."""
    from huggingface_hub import EvalResult  # noqa: PLC0415 - as above

    text = next((one for one in report.datasets if one.role == "evaluation"), None)
    for variant in report.variants:
        if variant.perplexity is not None:
            yield EvalResult(
                task_type=TASK,
                metric_type="perplexity",
                metric_name=f"Perplexity ({variant.name})",
                metric_value=float(variant.perplexity),
                **_dataset(text),
            )
        for task, metric, value in _benchmarks(variant):
            yield EvalResult(
                task_type=TASK,
                dataset_type=task,
                dataset_name=task,
                metric_type=metric or "score",
                metric_name=f"{metric or 'score'} ({variant.name})",
                metric_value=float(value),
            )


def _benchmarks(variant: VariantReport) -> Iterator[tuple[str, str, str]]:
    for one in variant.benchmark_details or variant.benchmarks:
        if one.quantized is not None:
            yield one.task, one.metric, one.quantized


def _dataset(text: DatasetReport | None) -> dict[str, Any]:
    """Return how the Hub names the text that perplexity was measured on."""
    if text is not None and text.uri.startswith(HUB_SCHEME):
        name = "/".join(text.uri.removeprefix(HUB_SCHEME).split("/")[:2])
        named = {"dataset_type": name, "dataset_name": name}
        return {**named, "dataset_revision": text.revision} if text.revision else named
    told = text.uri if text is not None and text.uri else "text that comes with kubequant"
    return {"dataset_type": "text", "dataset_name": told}
