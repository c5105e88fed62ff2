"""The document of GPU results is there and leaves no engine out, run or not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.api.cases import SMALLEST
from tests.gpu.cases import CASES, Case
from tests.gpu.document import NEVER, NOT_RUN, document

from kubequant.api.engines import ENGINES, engine_choice
from kubequant.api.enums import Device
from kubequant.api.resource import read_manifest

DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu-results.md"


def rows() -> set[tuple[str, str]]:
    found = re.findall(r"^\| (\w+) \| (\w+) \| ", DOCUMENT.read_text(), re.MULTILINE)
    return {row for row in found if row[0] != "method"}


def test_the_document_lists_every_engine_that_works_on_a_gpu() -> None:
    expected = {
        (method.value, engine.name)
        for method, engines in ENGINES.items()
        for engine in engines
        if Device.GPU in engine.devices
    }
    assert expected
    assert rows() == expected == {(case.method.value, case.engine) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_is_a_spec_that_its_engine_does(case: Case) -> None:
    spec = {**SMALLEST["spec"], **case.spec(device="GPU", small=False)}
    choice = engine_choice(read_manifest({**SMALLEST, "spec": spec}).spec)

    assert choice is not None
    assert choice.name == case.engine


def test_a_document_without_a_run_says_so() -> None:
    text = document(None, [])

    assert NEVER in text
    assert text.count(NOT_RUN) == len(CASES)


def test_the_committed_document_says_when_it_was_run_or_that_it_was_not() -> None:
    text = DOCUMENT.read_text()

    assert (NEVER in text) != bool(re.search(r"^Run on \d{4}-\d\d-\d\d on ", text, re.MULTILINE))
