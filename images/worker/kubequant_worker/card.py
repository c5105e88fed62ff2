"""The artifact's README.md: a Hugging Face model card with the numbers and how to load the files.

The metadata at its head is what the Hub reads (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kubequant.api.contract import PerformanceDetail, RunReport, VariantReport
    from kubequant.api.status import Original

HUB_SCHEME = "hf://"
MIB = 2**20


def model_card(report: RunReport) -> bytes:
    """Return README.md for what `report` says was made."""
    parts = [
        _metadata(report),
        f"# {report.name}",
        _summary(report),
        "## Files",
        _files(report),
        "## What was lost",
        _quality(report),
        *_speed(report),
        *_benchmarks(report),
        "## How to load it",
        _usage(report),
        "## How it was made",
        _origin(report),
    ]
    notes = [f"{variant.name}: {note}" for variant in report.variants for note in variant.notes]
    if notes or report.warnings:
        parts += ["## Worth knowing", _list([*report.warnings, *notes])]
    if report.recommendations:
        parts += ["## Next", _list(report.recommendations)]
    return ("\n\n".join(parts) + "\n").encode()


def _metadata(report: RunReport) -> str:
    method = report.settings.method.value if report.settings else ""
    head: dict[str, object] = {}
    uri = report.source.uri if report.source else ""
    if uri.startswith(HUB_SCHEME):
        head["base_model"] = uri.removeprefix(HUB_SCHEME)
        head["base_model_relation"] = "quantized"
    head["library_name"] = "gguf" if method == "GGUF" else "transformers"
    head["pipeline_tag"] = "text-generation"
    head["tags"] = [method.lower(), "quantized", "kubequant"]
    return f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---"


def _summary(report: RunReport) -> str:
    method = report.settings.method.value if report.settings else "a method"
    source = report.source.uri if report.source else "its original"
    return (
        f"Made from `{source}` by {method}"
        f"{f' with {report.resolved.engine}' if report.resolved else ''}, measured against the "
        "original on the same tokens. `manifest.json` has the SHA-256 of every file, "
        "`report.json` every number and the texts side by side, `provenance.json` where it all "
        "came from."
    )


def _files(report: RunReport) -> str:
    original = report.original.size_bytes if report.original else None
    rows = [
        (v.name, _file_name(v), _mib(v.size_bytes), _percent(v.size_reduction_percent, "smaller"))
        for v in report.variants
    ]
    table = _table(("variant", "file", "size", "than the original"), rows)
    return f"{table}\n\nThe original's weights take {_mib(original)}." if original else table


def _quality(report: RunReport) -> str:
    original = report.original
    if original is None or original.perplexity is None:
        return "Not measured."
    detail = original.perplexity_detail
    error = f" ± {detail.standard_error}" if detail else ""
    rows = [("original", f"{original.perplexity}{error}", "", "", "")]
    rows += [
        (
            v.name,
            f"{v.perplexity or ''}"
            + (f" ± {v.perplexity_detail.standard_error}" if v.perplexity_detail else ""),
            _signed(v.perplexity_increase_percent),
            v.mean_kl_divergence or "",
            _percent(v.top_token_agreement_percent, ""),
        )
        for v in report.variants
    ]
    head = ("", "perplexity", "change", "mean KL divergence", "same top token")
    how = (
        f"{detail.tokens} tokens in windows of {detail.context_length}, by {original.runtime}; "
        "± is one standard error."
        if detail
        else ""
    )
    texts = ", ".join(_text_name(d.uri) for d in report.datasets if d.role == "evaluation")
    return f"{_table(head, rows)}\n\nMeasured on {texts or 'a text'}: {how}"


def _speed(report: RunReport) -> list[str]:
    """Return the section on speed and memory, or nothing where none was measured."""
    original = report.original
    detail = original.performance_detail if original else None
    if original is None or detail is None:
        return []
    rows = [
        ("original", *_speed_cells(original, detail), ""),
        *(
            (v.name, *_speed_cells(v, v.performance_detail), _times(v))
            for v in report.variants
            if v.performance_detail is not None
        ),
    ]
    head = (
        "", "generated tokens/s", "prompt tokens/s", "first token", "peak memory",
        "than the original",
    )  # fmt: skip
    how = (
        f"A prompt of {detail.prompt_tokens} tokens and {detail.new_tokens} new ones, one text at "
        f"a time, on {detail.device} with {detail.threads} threads; medians of "
        f"{detail.repetitions} repetitions after a warm-up, each model in a process of its own; ± "
        "is one standard deviation, of a speedup one standard error. Batches, load times and what "
        "else was at work are in `report.json`."
    )
    return ["## How fast it is", f"{_table(head, rows)}\n\n{how}"]


def _speed_cells(
    numbers: Original | VariantReport, detail: PerformanceDetail | None
) -> tuple[str, str, str, str]:
    if detail is None:
        return ("", "", "", "")
    seconds = detail.first_token_seconds
    return (
        _with_error(numbers.tokens_per_second, detail.tokens_per_second_deviation),
        _with_error(detail.prompt_tokens_per_second, detail.prompt_tokens_per_second_deviation),
        "" if seconds is None else f"{float(seconds):.3g} s",
        _mib(numbers.peak_memory_bytes),
    )


def _times(variant: VariantReport) -> str:
    if variant.speedup is None:
        return ""
    return f"{_with_error(variant.speedup, variant.speedup_standard_error)} times as fast"


def _with_error(value: str | None, error: str | None) -> str:
    """Return a number with as many digits as its error leaves meaning, and the error."""
    if value is None:
        return ""
    if error is None or not float(error):
        return f"{float(value):.3g}"
    places = max(0, 1 - math.floor(math.log10(float(error))))
    return f"{float(value):.{places}f} ± {float(error):.{places}f}"


def _benchmarks(report: RunReport) -> list[str]:
    """Return the section on benchmarks, or nothing where none was asked."""
    rows = [
        (
            one.task,
            one.metric,
            variant.name,
            _with_error(one.original, one.original_standard_error),
            _with_error(one.quantized, one.quantized_standard_error),
            str(one.samples),
            str(one.few_shot),
        )
        for variant in report.variants
        for one in variant.benchmark_details
    ]
    if not rows:
        return []
    head = ("task", "metric", "variant", "original", "quantized", "questions", "solved examples")
    how = "By the lm-evaluation-harness; ± is one standard error, where it knows one."
    return ["## Benchmarks", f"{_table(head, rows)}\n\n{how}"]


def _text_name(uri: str) -> str:
    return f"`{uri}`" if uri else "the text that comes with kubequant"


def _usage(report: RunReport) -> str:
    if report.usage is None:
        return "See the library's documentation."
    return f"With {report.usage.runtime}:\n\n```\n{report.usage.command}\n```"


def _origin(report: RunReport) -> str:
    lines = []
    if report.source:
        revision = f" at commit `{report.source.revision}`" if report.source.revision else ""
        lines.append(f"Source: `{report.source.uri}`{revision}, {len(report.source.files)} files")
    for dataset in report.datasets:
        digest = f", SHA-256 `{dataset.sha256}`" if dataset.sha256 else ""
        lines.append(
            f"Text for {dataset.role}: {_text_name(dataset.uri)}, {dataset.tokens} tokens{digest}"
        )
    lines.append(f"Run `{report.digest}` of kubequant, {report.finished_at}")
    return _list(lines)


def _file_name(variant: VariantReport) -> str:
    return ", ".join(f"`{file.path}`" for file in variant.files)


def _mib(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / MIB:.1f} MiB"


def _percent(value: str | None, word: str) -> str:
    return "" if value is None else f"{float(value):.1f} % {word}".strip()


def _signed(value: str | None) -> str:
    return "" if value is None else f"{float(value):+.3g} %"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [" | ".join(row) for row in (head, tuple("---" for _ in head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
