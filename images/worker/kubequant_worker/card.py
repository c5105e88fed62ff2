"""The artifact's README.md: a Hugging Face model card with the numbers and how to load the files.

The metadata at its head is what the Hub reads (https://huggingface.co/docs/hub/model-cards); what
it holds is decided in `card_metadata`. Here stand the words below it, made from the report alone.
Whatever is not ours is written so that Markdown takes it for text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kubequant_worker import readable
from kubequant_worker.card_metadata import card_metadata
from kubequant_worker.page import method_tables, tables
from kubequant_worker.page.gates import gates_table
from kubequant_worker.page.view import earlier, engines, notes, performance_facts, shortfalls
from kubequant_worker.serving import commands, served_variant

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kubequant.api.contract import RunReport
    from kubequant_worker.page.tables import Table


def model_card(report: RunReport) -> bytes:
    """Return README.md for what `report` says was made."""
    parts = [
        f"---\n{card_metadata(report).to_yaml(line_break=chr(10)).strip()}\n---",
        f"# {_text(report.name)}",
        _summary(report),
        "## Files",
        _files(report),
        "## What was lost",
        *_quality(report),
    ]
    if tables.has_speed(report):
        parts += ["## What was won", *_speed(report)]
    parts += ["## How to load it", *_usage(report), "## How it was made", _origin(report)]
    if found := notes(report):
        parts += ["## Worth knowing", _list(found)]
    if report.recommendations:
        parts += ["## Next", _list(report.recommendations)]
    return ("\n\n".join(parts) + "\n").encode("utf-8", "replace")


def _summary(report: RunReport) -> str:
    source = _code(report.source.uri) if report.source else "its original"
    engine = f" with {_text(report.resolved.engine)}" if report.resolved else ""
    served = served_variant(report)
    several = len(report.variants) > 1 and served is not None and served.name == report.recommended
    recommended = (
        f" Of its files, {_text(served.name)} is recommended." if several and served else ""
    )
    made = f"{tables.method_name(report)}{engine}"
    return (
        f"Made from {source} by {made}, measured against the original on the same tokens."
        f"{recommended} [report.html](report.html) shows all of it in a browser; `manifest.json` "
        "has the SHA-256 of every file, `report.json` every number and the texts side by side, "
        "`provenance.json` where it all came from."
    )


def _files(report: RunReport) -> str:
    original = report.original.size_bytes if report.original else None
    rows = (
        (
            _text(one.name),
            ", ".join(_code(file.path) for file in one.files),
            readable.size(one.size_bytes),
            f"{percent} smaller"
            if (percent := readable.percent(one.size_reduction_percent))
            else "",
        )
        for one in report.variants
    )
    table = _table(("variant", "file", "size", "than the original"), rows)
    told = f"\n\nThe original's weights take {readable.size(original)}." if original else ""
    return f"{table}{told}"


def _quality(report: RunReport) -> Iterable[str]:
    quality = tables.quality_table(report)
    yield from _markdown(quality) if quality else ("Not measured.",)
    detail = report.original.perplexity_detail if report.original else None
    if quality and report.original and detail:
        used = [one for one in report.datasets if one.role == "evaluation"]
        texts = ", ".join(_text_name(one.uri) for one in used) or "a text"
        yield (
            f"Measured on {texts}: {detail.tokens} tokens in windows of {detail.context_length}, "
            f"by {_text(report.original.runtime)}."
        )
    yield from _markdown(tables.expectation_table(report))
    if short := shortfalls(report):
        yield _list(short)
    yield from _markdown(method_tables.sparsity_table(report))
    if learned := method_tables.trainings(report):
        yield "How it learned:"
        yield _list(learned)
    yield from _markdown(tables.benchmarks_table(report))
    yield from _markdown(gates_table(report))


def _speed(report: RunReport) -> Iterable[str]:
    yield from _markdown(tables.performance_table(report))
    if facts := performance_facts(report):
        yield f"Measured on {_text(facts)}"


def _text_name(uri: str) -> str:
    return _code(uri) if uri else "the text that comes with kubequant"


def _usage(report: RunReport) -> Iterable[str]:
    found = commands(report)
    if not found:
        yield "See the library's documentation."
        return
    yield "In the folder of these files."
    for one in found:
        yield f"With {_text(one.runtime)}:"
        yield _block(one.text)


def _origin(report: RunReport) -> str:
    lines = []
    if report.source:
        revision = f" at commit {_code(report.source.revision)}" if report.source.revision else ""
        count = len(report.source.files)
        lines.append(f"Source: {_code(report.source.uri)}{revision}, {count} files")
        lines += [f"Before, by its own provenance: {_text(one)}" for one in earlier(report)]
    if report.student:
        told = f" at commit {_code(report.student.revision)}" if report.student.revision else ""
        lines.append(f"Student before it learned: {_code(report.student.uri)}{told}")
    lines += [f"The engine serves only where it was built: {_text(one)}" for one in engines(report)]
    for dataset in report.datasets:
        digest = f", SHA-256 `{dataset.sha256}`" if dataset.sha256 else ""
        lines.append(
            f"Text for {dataset.role}: {_text_name(dataset.uri)}, {dataset.tokens} tokens{digest}"
        )
    lines.append(f"Run `{report.digest}` of kubequant, {report.finished_at}")
    return "\n".join(f"- {line}" for line in lines)


def _markdown(table: Table) -> Iterable[str]:
    """Yield a table under its caption, and nothing for an empty one."""
    if table:
        yield f"{table.caption}:"
        yield _table(table.head, (tuple(map(_text, row.cells)) for row in table.rows))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [" | ".join(row) for row in (head, tuple("---" for _ in head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _text(words: str) -> str:
    """Return words as Markdown shows them, in one line, whatever they hold."""
    line = " ".join(words.split())
    return re.sub(r"[\\`*\[\]<>|]", lambda sign: f"\\{sign[0]}", line).replace("\\<", "&lt;")


def _code(words: str) -> str:
    """Return words as code in one line; a sign that would end it is left out."""
    line = " ".join(words.split()).replace("`", "").replace("|", "\\|")
    return f"`{line}`" if line else ""


def _block(text: str) -> str:
    """Return a block of code behind a fence that its text cannot close."""
    runs = re.findall("`+", text)
    fence = "`" * max(3, *(len(run) + 1 for run in runs), 3)
    return f"{fence}\n{text}\n{fence}"
