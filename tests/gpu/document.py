"""The document of what was measured on a GPU. Pure: values in, text out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.gpu.cases import CASES, Case

HEAD = """# Results on a GPU

Written by `make gpu-check` ([CONTRIBUTING.md](../CONTRIBUTING.md)). Each engine quantizes a random
Llama with layers of real width by `kubequant run`, what comes out is served, and both are measured.
The weights are random, so perplexity says nothing here: the divergence from the original, over the
same tokens, does.
"""
NEVER = (
    "It has not been run on a GPU yet: none was at hand, and nothing here says that any works\n"
    "on one. `make test` runs every engine on a CPU but AutoGPTQ, which refuses one: of that it\n"
    "runs the loop, with tensors on a CPU in the GPU's place. Of TensorRT it makes checkpoints\n"
    "and what engines are built of: no engine was built, nor NVIDIA's TensorRT-LLM started."
)
COLUMNS = (
    "method", "engine", "outcome", "size", "mean KL", "same token", "quantizing", "GPU memory",
    "served by",
)  # fmt: skip
NOT_RUN = "not run"


@dataclass(frozen=True)
class Result:
    """What came of one case; `outcome` is "passed", or why not."""

    case: Case
    outcome: str
    report: dict[str, Any] = field(default_factory=dict)
    peak_bytes: int | None = None
    served: str = ""


@dataclass(frozen=True)
class Machine:
    """Where it ran, when, and the model's shape."""

    device: str
    date: str
    model: str
    versions: tuple[str, ...] = ()


def document(machine: Machine | None, results: list[Result]) -> str:
    """Return the document; without a machine it says that nothing was run."""
    rows = [_row(result) for result in results]
    rows += [
        (case.method.value, case.engine, NOT_RUN, *[""] * (len(COLUMNS) - 3))
        for case in CASES
        if case not in [result.case for result in results]
    ]
    lines = [HEAD, _where(machine), "", _line(COLUMNS), _line(("---",) * len(COLUMNS))]
    return "\n".join([*lines, *map(_line, rows), *_versions(machine)]) + "\n"


def _where(machine: Machine | None) -> str:
    if machine is None:
        return NEVER
    return f"Run on {machine.date} on {machine.device}, with {machine.model}."


def _versions(machine: Machine | None) -> list[str]:
    found = machine.versions if machine else ()
    return ["", "Versions:", "", *(f"- {line}" for line in found)] if found else []


def _row(result: Result) -> tuple[str, ...]:
    case, report = result.case, result.report
    start = (case.method.value, case.engine, result.outcome)
    if not report.get("variants"):
        return (*start, *[""] * (len(COLUMNS) - 3))
    variant = report["variants"][0]
    seconds = {one["stage"]: float(one["seconds"]) for one in report["stages"]}
    peak = "" if result.peak_bytes is None else f"{result.peak_bytes / 2**30:.1f} GiB"
    return (
        *start,
        f"{variant['sizeBytes'] / 2**20:.0f} MiB",
        str(variant.get("meanKLDivergence", "")),
        f"{variant.get('topTokenAgreementPercent', '')} %",
        f"{seconds['Quantizing']:.0f} s",
        peak,
        result.served,
    )


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
