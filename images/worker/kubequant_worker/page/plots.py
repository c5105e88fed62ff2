"""Plots as inline SVG, by matplotlib, which is imported nowhere else.

What comes out has real text, no fixed colour (the page's own variables, so that one drawing serves
light and dark) and no identifier that could stand twice on a page. Whatever a label holds is shown
as it is: names come from a report, which is a claim.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

_SVG: Final = "http://www.w3.org/2000/svg"
_XLINK: Final = "{http://www.w3.org/1999/xlink}href"
# matplotlib wants colours, the page has variables: each stands for one and is replaced afterwards.
_INK, _MUTED, _LINE, _BEFORE, _AFTER, _BACK = (f"#00000{digit}" for digit in range(1, 7))
_VARIABLES: Final = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _BEFORE: "var(--before)",
    _AFTER: "var(--accent)",
    _BACK: "var(--paper)",
}
_WIDTH: Final = 340
_ROW: Final = 26
_LABEL: Final = 92
_VALUE: Final = 84
_FONT: Final = 12
_LONGEST_LABEL: Final = 15
# How many times the smallest the largest is where an axis grows by factors.
_FACTORS: Final = 20
# So many pixels apart, two points cannot both have a label of their own.
_NEAR: Final = 20
_SETTINGS: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kubequant",
    # A "$" in a name is a "$", not a formula.
    "text.parse_math": False,
    "font.size": _FONT,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a chart: whose it is, the number as drawn and as written, and its error."""

    label: str
    value: float
    text: str
    error: float = 0.0
    is_original: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a scatter plot, with the letter by which the table beside names it."""

    key: str
    x: float
    y: float
    is_optimal: bool
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot over a common axis: its name and its points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Return horizontal bars from zero, one below the other, each with its number at its end."""
    with _figure(len(rows) * _ROW) as (figure, out):
        axes = figure.add_axes(_box(len(rows) * _ROW))
        top = max((max(row.value, 0.0) for row in rows), default=0.0) or 1.0
        axes.set_xlim(0, top)
        _rows(axes, rows)
        for place, row in enumerate(rows):
            colour = _BEFORE if row.is_original else _AFTER
            axes.barh(place, max(row.value, 0.0), height=0.62, color=colour, linewidth=0)
            axes.annotate(
                row.text, (max(row.value, 0.0), place), xytext=(6, 0),
                textcoords="offset points", va="center", annotation_clip=False,
            )  # fmt: skip
        axes.axvline(0, color=_LINE, linewidth=1)
        axes.set_axis_off()
    return _inline(out, title, _description(rows))


def dots(title: str, rows: Sequence[Bar], *, zero: bool) -> str:
    """Return one point a row with its standard error to both sides, over a common axis.

    With `zero` a line is drawn there, to which the points are held.
    """
    axis = 24
    height = len(rows) * _ROW + axis
    with _figure(height) as (figure, out):
        axes = figure.add_axes(_box(height, below=axis))
        ends = [end for row in rows for end in (row.value - row.error, row.value + row.error)]
        low, high = min([*ends, *([0.0] if zero else [])]), max([*ends, *([0.0] if zero else [])])
        margin = (high - low) * 0.08 or abs(high) * 0.02 or 1.0
        axes.set_xlim(low - margin, high + margin)
        _rows(axes, rows)
        if zero:
            axes.axvline(0, color=_MUTED, linewidth=1, dashes=(3, 3))
        for place, row in enumerate(rows):
            colour = _BEFORE if row.is_original else _AFTER
            axes.errorbar(
                row.value, place, xerr=row.error or None, fmt="o", color=colour,
                markersize=6, elinewidth=1.5, capsize=3.5,
            )  # fmt: skip
            axes.annotate(
                row.text, (1, place), xytext=(8, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", annotation_clip=False,
            )  # fmt: skip
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", labelsize=_FONT - 1, length=3)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return _inline(out, title, _description(rows))


def scatter(title: str, points: Sequence[Point], *, x: str, y: str, description: str) -> str:
    """Return points with letters, and a line through those that no other is better than in both.

    Where the largest is many times the smallest, y grows by factors, so that the small ones part.
    """
    width, height = 400, 320
    with _figure(height, width) as (figure, out):
        axes = figure.add_axes((58 / width, 46 / height, 1 - 76 / width, 1 - 62 / height))
        lowest, highest = min(p.y for p in points), max(p.y for p in points)
        if lowest > 0 and highest > _FACTORS * lowest:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6f}".rstrip("0").rstrip("."))
            axes.minorticks_off()
        else:
            axes.axhline(0, color=_LINE, linewidth=1, zorder=0)
            axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", nbins=5)
        best = sorted((p for p in points if p.is_optimal), key=lambda p: (p.x, p.y))
        axes.plot([p.x for p in best], [p.y for p in best], color=_AFTER, linewidth=1.2, zorder=1)
        for point in points:
            colour = _AFTER if point.is_optimal else _BEFORE
            axes.errorbar(
                point.x, point.y, yerr=point.error or None, fmt="o", color=colour,
                markersize=7, elinewidth=1, capsize=3, zorder=2,
            )  # fmt: skip
        axes.margins(0.12)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        places = axes.transData.transform([(point.x, point.y) for point in points])
        for letters, point in _labels(points, [(px, py) for px, py in places]):
            axes.annotate(
                letters, (point.x, point.y), xytext=(7, 7), textcoords="offset points",
                ha="left", va="bottom", color=_INK, fontsize=_FONT, zorder=3,
            )  # fmt: skip
    return _inline(out, title, description)


def _labels(
    points: Sequence[Point], places: Sequence[tuple[float, float]]
) -> Iterator[tuple[str, Point]]:
    """Yield each label with the point beside which it stands; near points share one."""
    left = list(range(len(points)))
    while left:
        first = left[0]
        near = [n for n in left if math.dist(places[n], places[first]) < _NEAR]
        left = [n for n in left if n not in near]
        # Beside the one that is farthest to the right and on top, so that it covers none of them.
        corner = max(near, key=lambda n: sum(places[n]))
        yield ", ".join(points[n].key for n in near), points[corner]


def lines(title: str, series: Sequence[Line], *, x: str) -> str:
    """Return lines over a common axis, from zero, each told apart by its dashes and in a legend.

    A value that rises far above the others, as a loss does at the start, is cut off at the top.
    """
    height = 240
    top = _top(series)
    with _figure(height) as (figure, out):
        axes = figure.add_axes((52 / _WIDTH, 44 / height, 1 - 64 / _WIDTH, 1 - 76 / height))
        styles = (("solid", _AFTER), ("dashed", _BEFORE), ("dotted", _INK))
        for line, (style, colour) in zip(series, styles, strict=False):
            # A page has no clip paths, which would need names, to keep a line below the top.
            y = [min(value, top) for value in line.y]
            axes.plot(line.x, y, color=colour, linestyle=style, linewidth=1.6, label=line.label)
        axes.set_ylim(0, top)
        axes.locator_params(nbins=5)
        axes.tick_params(labelsize=_FONT - 1, length=3)
        axes.set_xlabel(x)
        if len(series) > 1:
            axes.legend(
                frameon=False, fontsize=_FONT - 1, loc="lower left", bbox_to_anchor=(-0.03, 1),
                ncols=len(series), columnspacing=1.2, handlelength=1.8,
            )  # fmt: skip
    ends = (f"{one.label}: from {one.y[0]:.4g} to {one.y[-1]:.4g}" for one in series)
    return _inline(out, title, "; ".join(ends))


def _top(series: Sequence[Line]) -> float:
    """Return the upper end of the axis: the highest value that is not one of the very first."""
    later = [value for line in series for value in line.y[len(line.y) // 20 :]]
    return 1.1 * max(later, default=1.0) or 1.0


@contextmanager
def _figure(height: float, width: float = _WIDTH) -> Iterator[tuple[Figure, io.BytesIO]]:
    """Give a figure of so many CSS pixels to draw on, and what holds its SVG after the block."""
    import matplotlib as mpl  # noqa: PLC0415 - heavy, and only a page needs it
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    out = io.BytesIO()
    with mpl.rc_context():
        # Neither the user's matplotlibrc nor the working folder's, which may be a model's, counts.
        mpl.rcdefaults()
        mpl.rcParams.update(cast("Any", _SETTINGS))
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        yield figure, out
        with warnings.catch_warnings():
            # A browser has the glyphs that the font for measuring text lacks.
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(
                out,
                format="svg",
                transparent=True,
                metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
            )


def _box(height: float, *, below: float = 0) -> tuple[float, float, float, float]:
    """Return the axes' place: labels to the left, numbers to the right."""
    return (
        _LABEL / _WIDTH, below / height, 1 - (_LABEL + _VALUE) / _WIDTH, 1 - below / height,
    )  # fmt: skip


def _rows(axes: Any, rows: Sequence[Bar]) -> None:
    """Put the rows' names to the left, the first on top."""
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    for place, row in enumerate(rows):
        axes.annotate(
            short(row.label), (0, place), xytext=(-_LABEL, 0),
            xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", color=_MUTED if row.is_original else _INK, annotation_clip=False,
        )  # fmt: skip


def short(label: str) -> str:
    """Return a label that fits, without what no document may hold."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in label)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"


def _description(rows: Sequence[Bar]) -> str:
    return "; ".join(f"{row.label}: {row.text}" for row in rows)


def _inline(out: io.BytesIO, title: str, description: str) -> str:
    """Return matplotlib's drawing as an element for a page.

    Named for those who do not see it, sized by the page, and without matplotlib's identifiers.
    """
    ET.register_namespace("", _SVG)
    root = ET.fromstring(out.getvalue())  # noqa: S314 - matplotlib wrote it a moment ago
    for child in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(child)
    width, height = root.get("viewBox", f"0 0 {_WIDTH} 0").split()[2:]
    root.attrib = {
        "viewBox": root.get("viewBox", ""),
        "width": width,
        "height": height,
        "role": "img",
        "aria-label": _printable(f"{title}. {description}"),
        "focusable": "false",
    }
    heading, told = ET.Element(f"{{{_SVG}}}title"), ET.Element(f"{{{_SVG}}}desc")
    heading.text, told.text = _printable(title), _printable(description)
    root[:0] = [heading, told]
    _expand_uses(root)
    for element in root.iter():
        element.attrib.pop("id", None)
        if element.get("clip-path"):
            element.attrib.pop("clip-path")
        style = element.get("style")
        if style is not None:
            element.set("style", _restyled(style))
    for parent in list(root.iter()):
        for child in parent.findall(f"{{{_SVG}}}defs"):
            parent.remove(child)
    return ET.tostring(root, encoding="unicode")


def _expand_uses(root: ET.Element) -> None:
    """Put a copy of each shared shape where it is used, so that no identifier is needed."""
    shapes = {f"#{e.get('id')}": e for e in root.iter() if e.get("id")}
    for parent in list(root.iter()):
        for index, child in enumerate(list(parent)):
            shape = shapes.get(child.get(_XLINK, ""))
            if child.tag == f"{{{_SVG}}}use" and shape is not None:
                copy = ET.Element(f"{{{_SVG}}}path", {"d": shape.get("d", "")})
                copy.set("style", f"{shape.get('style', '')}; {child.get('style', '')}")
                copy.set("transform", f"translate({child.get('x', 0)} {child.get('y', 0)})")
                parent[index] = copy


def _restyled(style: str) -> str:
    for colour, variable in _VARIABLES.items():
        style = style.replace(colour, variable)
    # The page's own font, in the size that the drawing was laid out for.
    style = re.sub(r"font-family: [^;]*;\s*", "", style)
    return re.sub(r"font: (?:\S+ )*?([0-9.]+px)[^;]*", r"font-size: \1", style)


def _printable(text: str) -> str:
    return "".join(_characters(text))


def _characters(text: str) -> Iterator[str]:
    """Yield what XML can hold of a text."""
    for character in text:
        yield character if character.isprintable() else " "
