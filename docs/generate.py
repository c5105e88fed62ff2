"""Writes the parts of documents that follow from tables in the code or from measured figures.

README.md and docs/methods.md hold them between `<!-- begin NAME -->` and `<!-- end NAME -->`. Part
of `make generate`; a test compares what is committed. The figures are docs/methods-measured.json,
written by `python -m tests.bench.methods_table`.

Usage: python docs/generate.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from kubequant.api.base import camel
from kubequant.api.engines import AUTO, ENGINES
from kubequant.api.spec import MEMBERS, Device, Method
from kubequant.api.summaries import SUMMARIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic.fields import FieldInfo

    from kubequant.api.engines import Engine

ROOT = Path(__file__).resolve().parents[1]
MEASURED = "docs/methods-measured.json"
DOCUMENTS = ("README.md", "docs/methods.md")
ABSENT = "-"
_MIB = 2**20


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def methods() -> str:
    """Return the README's table: a row for each method and engine, the default engine first."""
    rows: list[tuple[str, ...]] = []
    for method in Method:
        engines = ENGINES.get(method, ())
        for engine in engines:
            first = engine is engines[0]
            name = f"[{method}](docs/methods.md#{method.lower()})" if first else ""
            rows.append((name, SUMMARIES[method] if first else "", *_engine_cells(method, engine)))
        if not engines:
            where = "by goal" if method is Method.AUTO else "not in this version"
            rows.append((str(method), SUMMARIES[method], where, ABSENT, ABSENT, ABSENT))
    head = ("method", "what", "engine", "quantizes on", "writes", "loaded by")
    return table(head, rows)


def _engine_cells(method: Method, engine: Engine) -> tuple[str, ...]:
    preferred = [device.value for device in Device if _preferred(method, device) is engine]
    chosen = "engine" in MEMBERS[method][1].model_fields
    alone = len(ENGINES[method]) == 1 or not preferred or not chosen
    auto = "" if alone else f" ({AUTO} on a {' and a '.join(preferred)})"
    if engine.when is not None:
        parameter, values = engine.when
        auto = f" (`{parameter}: {', '.join(values)}`)"
    devices = ", ".join(device.value for device in Device if device in engine.devices)
    return f"{engine.name}{auto}", devices, engine.writes, engine.served_by


def _preferred(method: Method, device: Device) -> Engine | None:
    """Return the engine that Auto takes on a device."""
    able = [engine for engine in ENGINES[method] if device in engine.devices]
    return min(able, key=lambda engine: device not in engine.auto_on, default=None)


def parameters(method: Method) -> str:
    """Return the table of a method's parameters."""
    member, kind = MEMBERS[method]
    rows = [
        (f"`{field.alias or camel(name)}`", _default(field), _choices(field), _one_line(field))
        for name, field in kind.model_fields.items()
    ]
    return f"`spec.{camel(member)}`:\n\n" + table(("parameter", "default", "one of", "what"), rows)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=False)
    if value is None:
        return ABSENT
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _choices(field: FieldInfo) -> str:
    words = get_args(field.annotation)
    if type(None) in words:
        words = get_args(words[0])
    plain = words and all(isinstance(word, str | int) for word in words)
    return ", ".join(f"`{word}`" for word in words) if plain else ABSENT


def _one_line(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def measured() -> str:
    """Return the table of figures, a row for each manifest and variant."""
    engines = {
        (method.value, engine.name): engine
        for method in Method
        for engine in ENGINES.get(method, ())
    }
    order = list(engines)
    runs = sorted(
        _runs().items(),
        key=lambda pair: (order.index((pair[1]["method"], pair[1]["engine"])), pair[0]),
    )
    rows = [
        _row(name, run, variant, engines[run["method"], run["engine"]])
        for name, run in runs
        for variant in run["variants"]
    ]
    head = (
        "method", "engine", "device", "manifest", "size before", "after", "smaller",
        "perplexity before", "after", "change", "mean KL divergence", "who loads it",
    )  # fmt: skip
    return table(head, rows)


def _runs() -> dict[str, dict[str, Any]]:
    """Return what was measured, by the names of the manifests."""
    kept: dict[str, dict[str, Any]] = json.loads((ROOT / MEASURED).read_text(encoding="utf-8"))
    return kept


def _row(
    name: str, run: dict[str, Any], variant: dict[str, Any], engine: Engine
) -> tuple[str, ...]:
    method = run["method"] + (f" {variant['name']}" if len(run["variants"]) > 1 else "")
    return (
        method,
        engine.name,
        run["device"],
        f"[{name}](../examples/{name})",
        f"{run['original']['sizeBytes'] / _MIB:.2f} MiB",
        f"{variant['sizeBytes'] / _MIB:.2f} MiB",
        f"{float(variant['sizeReductionPercent']):.1f} %",
        f"{float(run['original']['perplexity']):.2f}",
        f"{float(variant['perplexity']):.2f}",
        f"{float(variant['perplexityIncreasePercent']):+.2f} %",
        f"{float(variant['meanKLDivergence']):.5f}",
        engine.served_by,
    )


def versions() -> str:
    """Return what the figures were measured with, a row for each manifest."""
    rows = [
        (f"[{name}](../examples/{name})", run["by"], run["runtime"], run["machine"], run["date"])
        for name, run in sorted(_runs().items())
    ]
    return table(("manifest", "quantized by", "measured by", "machine", "date"), rows)


def part(name: str) -> str:
    """Return the text of one generated part by its name."""
    kind, _, method = name.partition(" ")
    if kind == "parameters":
        return parameters(Method(method))
    return {"methods": methods, "measured": measured, "versions": versions}[kind]()


def generated(document: str) -> str:
    """Return a document with its generated parts as they are now."""

    def replaced(found: re.Match[str]) -> str:
        return f"<!-- begin {found[1]} -->\n{part(found[1])}\n<!-- end {found[1]} -->"

    text = (ROOT / document).read_text(encoding="utf-8")
    return re.sub(r"<!-- begin (.+) -->\n.*?<!-- end \1 -->", replaced, text, flags=re.DOTALL)


def main() -> None:
    """Write every document that differs, and say which."""
    for name in DOCUMENTS:
        text = generated(name)
        if (ROOT / name).read_text(encoding="utf-8") != text:
            (ROOT / name).write_text(text, encoding="utf-8")
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
