"""The documents for users: every reason is explained, and every manifest in them is valid.

That links lead somewhere is tested in `test_house`, for all documents at once.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml

from kubequant import __version__
from kubequant.api.resource import QuantizationJob, read_manifest
from kubequant.controller.environment import variable
from kubequant.controller.reasons import Reason
from kubequant.controller.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
QUICKSTART = ROOT / "docs" / "quickstart.md"

# What documents show beside our own resource.
OTHERS = ("kustomize.toolkit.fluxcd.io/v1",)


def manifests(document: Path) -> list[str]:
    """Return the blocks of a document that are marked as YAML."""
    return re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def entries() -> dict[str, str]:
    """Return what troubleshooting.md says under each heading of a reason."""
    parts = re.split(r"^#{2,3} ", TROUBLESHOOTING.read_text(), flags=re.MULTILINE)[1:]
    pairs = (part.partition("\n") for part in parts)
    return {heading.strip(): text.strip() for heading, _, text in pairs}


def headings(level: int) -> list[str]:
    """Return the headings of one level in troubleshooting.md."""
    return re.findall(rf"^{'#' * level} (.+)$", TROUBLESHOOTING.read_text(), re.MULTILINE)


def test_every_reason_has_one_entry_in_the_order_of_the_enum() -> None:
    assert headings(3) == [reason.value for reason in Reason]


def test_no_heading_stands_twice() -> None:
    assert [name for name, times in Counter(headings(2) + headings(3)).items() if times > 1] == []


@pytest.mark.parametrize("reason", Reason)
def test_an_entry_says_something_and_stays_short(reason: Reason) -> None:
    lines = entries()[reason.value].splitlines()

    # The last entry of a group is followed by the next group's heading, which is none of its text.
    assert 2 <= len(lines) <= 6


@cache
def sentences() -> tuple[str, ...]:
    """Return every text in the sources, what is filled in as a blank sign."""
    found = []
    for path in (*ROOT.glob("operator/**/*.py"), *ROOT.glob("images/worker/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (one.value if isinstance(one, ast.Constant) else "_" for one in node.values)
                found.append("".join(map(str, parts)))
    return tuple(found)


def messages() -> list[str]:
    """Return the words of messages that troubleshooting.md quotes in its tables."""
    cells = re.findall(r"^\| (`.*?) \|", TROUBLESHOOTING.read_text(), re.MULTILINE)
    return [quoted for cell in cells for quoted in re.findall("`(.*?)`", cell)]


@pytest.mark.parametrize("message", messages())
def test_a_message_that_is_explained_is_one_that_the_code_writes(message: str) -> None:
    assert any(message in sentence for sentence in sentences())


def test_messages_about_benchmarks_and_gates_are_explained() -> None:
    assert len(messages()) > 18


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_manifest_in_a_document_is_valid(document: Path) -> None:
    for block in manifests(document):
        for body in yaml.safe_load_all(block):
            if body["apiVersion"] not in OTHERS:
                assert isinstance(read_manifest(body), QuantizationJob)


def test_the_quickstart_has_a_manifest() -> None:
    assert len(manifests(QUICKSTART)) == 1


def test_the_images_that_the_quickstart_loads_are_of_this_version() -> None:
    named = re.findall(r"kubequant/(operator|gguf):(\d[\w.]*)", QUICKSTART.read_text())

    assert sorted(named) == [("gguf", __version__), ("operator", __version__)]


@pytest.mark.parametrize("document", [QUICKSTART, TROUBLESHOOTING], ids=lambda path: path.name)
def test_each_setting_that_a_document_names_exists(document: Path) -> None:
    words = re.findall(r"(?:KUBEQUANT_OPERATOR_|…)([A-Z_]+[A-Z])", document.read_text())
    known = {variable(field).removeprefix("KUBEQUANT_OPERATOR_") for field in Settings.model_fields}

    assert words
    assert {word.partition("__")[0] for word in words} - known == set()
