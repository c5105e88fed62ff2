"""Plots: real text, the page's own colours, nothing that a name could break."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest
from tests.page.hostile import TEXTS

from kubequant_worker.page.plots import Bar, Line, Point, bars, dots, lines, scatter

ROWS = (
    Bar("original", 22.5, "22.50", 0.9, is_original=True),
    Bar("Q4_K_M", 22.7, "22.70", 0.9),
    Bar("Q2_K", 24.2, "24.20", 1.0),
)
DRAWN = {
    "bars": bars("Size", ROWS),
    "dots": dots("Perplexity", ROWS, zero=False),
    "change": dots("Change", ROWS, zero=True),
    "lines": lines(
        "Loss", [Line("loss", [1, 2, 3], [9, 2, 1]), Line("hard", [1, 2, 3], [4, 3, 3])], x="step"
    ),
    "scatter": scatter(
        "Size", [Point("A", 1, 2, is_optimal=True), Point("B", 2, 3, is_optimal=False)],
        x="size", y="loss", description="two",
    ),
}  # fmt: skip


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("svg", DRAWN.values(), ids=DRAWN)
def test_a_plot_has_no_colour_no_font_and_no_identifier_of_its_own(svg: str) -> None:
    assert re.findall(r"#[0-9a-fA-F]{3,8}", svg) == []
    assert "font-family" not in svg
    assert "DejaVu" not in svg
    assert re.findall(r"\b(?:xlink:)?(?:id|href|clip-path)=", svg) == []
    assert "var(--accent)" in svg


@pytest.mark.parametrize("svg", DRAWN.values(), ids=DRAWN)
def test_a_plot_names_itself(svg: str) -> None:
    root = ET.fromstring(svg)

    assert root.get("role") == "img"
    assert root.get("aria-label", "").startswith(("Size. ", "Perplexity. ", "Change. ", "Loss. "))
    assert root[0].tag.endswith("title")
    assert root[1].tag.endswith("desc")


def test_a_line_that_begins_far_above_the_others_does_not_flatten_them() -> None:
    y = [1000.0, *(2.0 for _ in range(60))]
    ticks = [float(one) for one in texts(lines("Loss", [Line("loss", range(61), y)], x="step"))
             if one.replace(".", "").isdigit() and float(one) != 0]  # fmt: skip

    assert 0 < min(ticks) <= 1


def test_labels_and_numbers_are_text() -> None:
    assert {"original", "Q4_K_M", "Q2_K", "22.50", "24.20"} <= set(texts(DRAWN["bars"]))
    assert {"A", "B", "size", "loss"} <= set(texts(DRAWN["scatter"]))
    assert {"loss", "hard", "step"} <= set(texts(DRAWN["lines"]))


@pytest.mark.parametrize("name", [*TEXTS, "$", "\\", "x" * 63, "\ud800"])
def test_a_label_is_shown_as_it_is_whatever_it_holds(name: str) -> None:
    svg = bars("Size", [Bar(name, 1.0, "1")])
    label = texts(svg)[0]

    assert len(label) <= 15
    expected = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    assert label in {expected, f"{expected[:14]}…"}


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([0.0], id="nothing"),
        pytest.param([0.0, 0.0], id="nothing twice"),
        pytest.param([1e14, 1e-9], id="far apart"),
        pytest.param([-3.0, 5.0], id="both signs"),
        pytest.param([7.0, 7.0], id="equal"),
    ],
)
def test_any_numbers_can_be_drawn(values: list[float]) -> None:
    rows = [Bar(str(n), value, str(value)) for n, value in enumerate(values)]

    assert ET.fromstring(bars("Any", rows)) is not None
    assert ET.fromstring(dots("Any", rows, zero=True)) is not None
    assert ET.fromstring(dots("Any", rows, zero=False)) is not None


def test_a_longer_bar_is_a_larger_number() -> None:
    shapes = re.findall(
        r'd="M ([0-9.]+) [0-9.]+ \s*L ([0-9.]+) [^"]*"[^>]*style="fill: var\(--(\w+)\)',
        DRAWN["bars"].replace("\n", " "),
    )
    lengths = [(float(end) - float(start), colour) for start, end, colour in shapes]

    assert [colour for _, colour in lengths] == ["before", "accent", "accent"]
    assert lengths[0][0] == pytest.approx(lengths[2][0] * 22.5 / 24.2, rel=1e-3)


def scattered(*points: tuple[str, float, float]) -> list[str]:
    made = [Point(key, x, y, is_optimal=True) for key, x, y in points]
    return texts(scatter("Size", made, x="size", y="loss", description="some"))


def test_points_on_nearly_one_spot_share_a_label() -> None:
    words = scattered(("A", 1, 0.2), ("B", 1.001, 0.2), ("C", 5, 0.3))

    assert {"A, B", "C"} <= set(words)
    assert not {"A", "B"} & set(words)


def test_losses_of_other_orders_are_parted_by_factors() -> None:
    words = scattered(("A", 1, 0.2), ("B", 2, 0.004), ("C", 3, 0.0003))

    assert {"A", "B", "C", "0.001", "0.01", "0.1"} <= set(words)
    # No factor leads to zero and beyond.
    assert "0.0" in scattered(("A", 1, 0.2), ("B", 2, 0.12), ("C", 3, -0.05))


def test_a_matplotlibrc_in_the_working_folder_does_not_change_a_plot() -> None:
    # It is read when matplotlib is imported, and `usetex` would start latex.
    with mpl.rc_context({"text.usetex": True, "lines.linewidth": 9, "axes.grid": True}):
        drawn = bars("Size", ROWS)

    assert drawn == DRAWN["bars"]
