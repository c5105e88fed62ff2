"""What report.html shows beside its tables, as values that its template lays out.

Every part is made from the RunReport alone and is empty where its numbers were not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from kubequant.api.outcome import Outcome
from kubequant_worker import readable
from kubequant_worker.page.difference import Marked, marked
from kubequant_worker.page.tables import NOT_MEASURED, is_timed, method_name, setting
from kubequant_worker.serving import served_variant

if TYPE_CHECKING:
    from kubequant.api.contract import RunReport

# The documents that are published after the report is written, or hold it.
DOCUMENTS: Final = (
    ("README.md", "model card"),
    ("report.json", "every number, and the texts"),
    ("provenance.json", "in-toto statement: sources, parameters, versions"),
    ("manifest.json", "size and SHA-256 of every file, these documents included"),
)


@dataclass(frozen=True, slots=True)
class Tile:
    """One number of the headline."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """A variant's text beside the original's."""

    name: str
    text: Marked
    verdict: str
    is_degenerate: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and how each model went on."""

    prompt: str
    original: str
    original_is_degenerate: bool
    variants: tuple[Written, ...]


@dataclass(frozen=True, slots=True)
class File:
    """A file with the address that leads to it from the page's own folder."""

    path: str
    href: str
    size: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the gates, in a word for a badge: good, bad or none."""

    kind: str
    text: str


def verdict(report: RunReport) -> Verdict:
    """Return whether the artifact holds what was asked of it."""
    if report.outcome is Outcome.FAILED:
        reason = report.failure.reason.value if report.failure else "failed"
        return Verdict("bad", f"Run failed: {reason}")
    failed = sum(not gate.passed for gate in report.gates)
    if not report.gates:
        return Verdict("none", "No gates were set")
    if failed:
        return Verdict("bad", f"{failed} of {len(report.gates)} gates do not hold")
    return Verdict("good", "All gates hold" if len(report.gates) > 1 else "The gate holds")


def tiles(report: RunReport) -> tuple[Tile, ...]:
    """Return the headline's numbers, those of the variant to serve."""
    variant = served_variant(report)
    if variant is None:
        return ()
    original = report.original
    before = readable.size(original.size_bytes if original else None)
    after = readable.size(variant.size_bytes)
    error = variant.perplexity_increase_standard_error
    change = readable.percent(variant.perplexity_increase_percent, 2, sign=True)
    speed = readable.rate(variant.tokens_per_second)
    was = readable.rate(original.tokens_per_second if original else None)
    sizes = f"{before} → {after}" if before and after else after
    zeros = variant.sparsity_detail
    return (
        Tile("Method", method_name(report), setting(report, variant) or variant.name),
        Tile("Zeros", readable.percent(zeros.percent), f"{sizes}, no smaller")
        if zeros
        else Tile(
            "Smaller by", readable.percent(variant.size_reduction_percent) or NOT_MEASURED, sizes
        ),
        Tile(
            "Perplexity change",
            change or NOT_MEASURED,
            f"± {readable.decimal(error)} standard error" if change and error else "",
        ),
        Tile(
            "Same top token",
            readable.percent(variant.top_token_agreement_percent) or NOT_MEASURED,
            "as the original",
        ),
        Tile(
            "Generation",
            readable.times(variant.speedup) or (f"{speed} tok/s" if speed else NOT_MEASURED),
            f"{was} → {speed} tokens/s" if was and speed else "",
        ),
    )


def prompts(report: RunReport) -> tuple[Prompt, ...]:
    """Return the generated texts by prompt, the variants' marked where they part."""
    found: dict[str, Prompt] = {}
    for one in report.variants:
        for text in one.generations:
            _, quantized = marked(text.original, text.quantized)
            equal = text.first_difference is None
            written = Written(
                name=one.name,
                text=quantized,
                verdict="the same text"
                if equal
                else f"differs from token {text.first_difference} on",
                is_degenerate=text.degenerate,
            )
            known = found.get(text.prompt)
            earlier = known.variants if known else ()
            found[text.prompt] = Prompt(
                text.prompt, text.original, text.original_degenerate, (*earlier, written)
            )
    return tuple(found.values())


def performance_facts(report: RunReport) -> str:
    """Return on what and how speed was measured, in sentences; "" where it was of no model."""
    models = (*report.variants, *((report.original,) if report.original else ()))
    detail = next((one.performance_detail for one in models if one.performance_detail), None)
    if detail is None:
        return ""
    facts = (
        detail.device,
        detail.runtime,
        f"{detail.threads} threads" if detail.threads else "",
        f"{detail.prompt_tokens} prompt tokens" if detail.prompt_tokens else "",
        f"{detail.new_tokens} new tokens" if detail.new_tokens else "",
        f"{detail.repetitions} repetitions" if detail.repetitions else "",
    )
    return " ".join(filter(None, (f"{', '.join(filter(None, facts))}.", detail.meanwhile)))


def untimed(report: RunReport) -> str:
    """Return a sentence on the models whose speed was not measured, "" where all were."""
    names = [one.name for one in report.variants if not is_timed(one)]
    if not names:
        return ""
    timed = len(names) < len(report.variants) or performance_facts(report)
    return f"Speed and memory were not measured{' of ' + ', '.join(names) if timed else ''}."


def files(report: RunReport) -> tuple[File, ...]:
    """Return the files with links that lead into the page's own folder, whatever they are named."""
    listed = report.files or tuple(file for one in report.variants for file in one.files)
    return tuple(
        File(f.path, f"./{quote(f.path)}", readable.size(f.size_bytes), f.sha256) for f in listed
    )


def notes(report: RunReport) -> tuple[str, ...]:
    """Return what a reader should know: the run's warnings, then each variant's notes."""
    return (
        *report.warnings,
        *(f"{variant.name}: {note}" for variant in report.variants for note in variant.notes),
    )


def shortfalls(report: RunReport) -> tuple[str, ...]:
    """Return where measured numbers fall short of what is usual."""
    return tuple(
        f"{one.name}: {sentence}"
        for one in report.variants
        if one.expected
        for sentence in one.expected.shortfalls
    )


def earlier(report: RunReport) -> tuple[str, ...]:
    """Return the steps that made the source, each as words."""
    steps = report.source.steps if report.source else ()
    return tuple(
        f"{one.method}{f' ({one.setting})' if one.setting else ''} of {one.uri}"
        f"{f', run {one.run}' if one.run else ''}"
        for one in steps
    )


def engines(report: RunReport) -> tuple[str, ...]:
    """Return what each engine was built on and for, in words."""
    details = (one.engine_detail for one in report.variants)
    return tuple(
        f"{one.gpu}, compute capability {one.compute_capability}, driver {one.driver}; "
        f"TensorRT-LLM {one.tensorrt_llm}, TensorRT {one.tensorrt}, CUDA {one.cuda}; at most "
        f"{one.max_batch_size} requests of {one.max_input_length:,} tokens in and "
        f"{one.max_output_length:,} out, over {one.tensor_parallel} GPU"
        f"{'' if one.tensor_parallel == 1 else 's'}"
        for one in details
        if one is not None
    )


def facts(report: RunReport) -> tuple[tuple[str, str], ...]:
    """Return how the run was done, as names and values."""
    source, resolved, place = report.source, report.resolved, report.environment
    found = [("Source", source.uri), ("Revision", source.revision)] if source else []
    found += [("Made before", step) for step in earlier(report)]
    if report.student:
        found += [("Student", report.student.uri), ("Its revision", report.student.revision)]
    if source and source.architecture:
        found.append(("Architecture", source.architecture))
    if resolved:
        found += [("Engine", resolved.engine), ("Why", resolved.reason)]
    found += [("Built for", built) for built in engines(report)]
    if report.original:
        found.append(("Measured by", report.original.runtime))
    for text in report.datasets:
        told = text.uri or "the text that comes with kubequant"
        found.append((f"Text for {text.role}", f"{told}, {text.tokens:,} tokens"))
    if place:
        gpus = ", ".join(gpu.name for gpu in place.gpus)
        found += [
            ("Processor", f"{place.cpu}, {place.threads} threads" if place.threads else place.cpu),
            ("GPU", gpus),
            ("Image", place.image),
            ("Versions", ", ".join(f"{lib.name} {lib.version}" for lib in place.versions)),
        ]
    if report.stages:
        spent = (f"{one.stage} {readable.seconds(one.seconds)}" for one in report.stages)
        found.append(("Time", ", ".join(spent)))
    found.append(("Run", report.digest))
    if report.finished_at:
        found.append(("Finished", f"{report.finished_at:%Y-%m-%d %H:%M} UTC"))
    return tuple((name, value) for name, value in found if value)
