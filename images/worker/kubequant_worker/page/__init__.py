"""report.html: one file that shows a report to a person, and needs nothing else.

No script, font or style comes from elsewhere, and the page forbids itself to load any. It is made
from the RunReport alone, so it can be made again from report.json. Names, prompts and generated
texts are untrusted: Jinja2 escapes all that a template does not mark as ours.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kubequant import __version__
from kubequant_worker.page import charts, method_tables, tables, view
from kubequant_worker.page.gates import gates_table
from kubequant_worker.page.plots import scatter
from kubequant_worker.serving import commands, served_variant

if TYPE_CHECKING:
    from kubequant.api.contract import RunReport
    from kubequant_worker.comparison import Comparison

PAGE_NAME = "report.html"


def report_page(report: RunReport) -> bytes:
    """Return report.html for what `report` says."""
    return _rendered(
        "report.html.j2",
        report=report,
        method=tables.method_name(report),
        verdict=view.verdict(report),
        tiles=view.tiles(report),
        served=served_variant(report),
        tables=tables,
        gates=gates_table(report),
        method_tables=method_tables,
        view=view,
        quality_charts=charts.quality_charts(report),
        training_charts=charts.training_charts(report),
        performance_charts=charts.performance_charts(report),
        commands=commands(report),
    )


def comparison_page(comparison: Comparison) -> bytes:
    """Return a page that lays several reports side by side, with size against quality."""
    plotted = comparison.points()
    drawing = None
    if plotted:
        x, y = comparison.axes()
        drawing = scatter(
            f"{y} against {x}", plotted, x=x, y=y,
            description="The letters are those of the table; the line joins the best trade-offs.",
        )  # fmt: skip
    return _rendered(
        "comparison.html.j2",
        comparison=comparison,
        drawing=drawing,
        rows=tables.comparison_table(comparison),
    )


def _rendered(name: str, **values: Any) -> bytes:
    return _templates().get_template(name).render(**values).encode("utf-8", "replace")


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("kubequant_worker.page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    # Only what we drew ourselves is ever marked as safe.
    environment.filters["drawn"] = Markup
    environment.filters["capitalize_first"] = lambda text: f"{text[:1].upper()}{text[1:]}"
    environment.globals["version"] = __version__
    return environment
