"""docs/guide.md and its picture are true to the tables that decide."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from kubequant.api.auto import CHOICES
from kubequant.api.engines import ENGINES
from kubequant.api.enums import Method
from kubequant.api.params import DEFAULT_GGUF_TYPES
from kubequant_worker.advice import WITHIN_PERCENT
from kubequant_worker.expectations import EXPECTATIONS

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text()
PICTURE = ROOT / "docs" / "choosing.svg"


def script() -> ModuleType:
    """Return docs/choosing.py, which is a script and no module of a package."""
    specification = importlib.util.spec_from_file_location("choosing", ROOT / "docs/choosing.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def rows() -> dict[str, list[str]]:
    """Return the rows of the guide's tables by their first cell."""
    lines = re.findall(r"^\| (.*) \|$", GUIDE, re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r" ?\|", line)] for line in lines]
    return {one[0]: one[1:] for one in cells}


def test_the_picture_is_what_the_table_of_auto_says() -> None:
    assert PICTURE.read_text() == script().picture(), "run `make generate` and commit"


@pytest.mark.parametrize("goal", CHOICES)
def test_the_picture_has_a_leaf_for_every_goal(goal: tuple[str, str]) -> None:
    choosing = script()
    texts = {one.text for one in ET.parse(PICTURE).iter("{http://www.w3.org/2000/svg}text")}

    assert {choosing.made(*goal), choosing.HARDWARE[goal[0]][0]} <= texts
    assert texts & {goal[1], "any"}


def test_the_picture_names_itself_and_has_colours_for_both_themes() -> None:
    root = ET.parse(PICTURE).getroot()

    assert root.get("role") == "img"
    assert root[0].tag.endswith("title")
    assert "prefers-color-scheme: dark" in PICTURE.read_text()


@pytest.mark.parametrize(
    "key", [key for key in EXPECTATIONS if key[0] is Method.GGUF], ids=lambda key: key[1]
)
def test_what_the_guide_promises_of_a_gguf_type_is_what_a_report_expects(
    key: tuple[Method, str],
) -> None:
    usual = EXPECTATIONS[key]

    assert rows()[f"GGUF {key[1]}"][:2] == [f"{usual.size_reduction_percent:g} %", usual.quality]


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ("INT8", (Method.INT8, "8")),
        ("AWQ, 4 bits", (Method.AWQ, "4")),
        ("GPTQ, 4 bits", (Method.GPTQ, "4")),
        ("INT4", (Method.INT4, "4")),
    ],
)
def test_what_the_guide_promises_of_a_method_is_what_a_report_expects(
    row: str, key: tuple[Method, str]
) -> None:
    size, quality = rows()[row][:2]

    assert size == f"about {EXPECTATIONS[key].size_reduction_percent:g} %"
    assert EXPECTATIONS[key].quality.startswith(quality)


def test_what_gguf_does_by_default_is_what_the_guide_says() -> None:
    first, second = DEFAULT_GGUF_TYPES

    assert f"a run makes {first} and {second} and measures both" in GUIDE
    assert f"perplexity rose by at most {WITHIN_PERCENT:g} %" in GUIDE.replace("\n", " ")


@pytest.mark.parametrize("method", ENGINES)
def test_the_guide_says_when_to_take_each_method(method: Method) -> None:
    assert re.search(rf"\b{method}\b", GUIDE)


def test_the_guide_is_two_pages() -> None:
    words = [word for word in GUIDE.split() if word.strip("|-")]

    assert len(words) < 1000
