"""A source that kubequant made tells its steps, and whatever else lies there tells none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.table import merged
from tests.page.reports import whole_report

from kubequant.api.contract import EarlierStep
from kubequant.api.enums import Method
from kubequant_worker.provenance import statement
from kubequant_worker.sources.lineage import LARGEST_BYTES, PROVENANCE, earlier_steps

if TYPE_CHECKING:
    from pathlib import Path

    from kubequant.api.contract import RunReport

PRUNED = whole_report(Method.PRUNE)
STEP = EarlierStep(
    method="Prune",
    setting="4 bits in groups of 128",
    run="9f2c41aa",
    uri=PRUNED.settings.model.uri if PRUNED.settings else "",
)


def beside(folder: Path, report: RunReport) -> Path:
    (folder / PROVENANCE).write_bytes(statement(report))
    return folder


def test_a_step_is_told_as_its_own_run_wrote_it(tmp_path: Path) -> None:
    assert earlier_steps(beside(tmp_path, PRUNED)) == (STEP,)


def test_the_steps_of_a_source_are_handed_on_in_their_order(tmp_path: Path) -> None:
    source = PRUNED.source
    assert source is not None
    second = whole_report(Method.GPTQ).model_copy(
        update={"source": source.model_copy(update={"steps": (STEP,)})}
    )

    told = earlier_steps(beside(tmp_path, second))

    assert [step.method for step in told] == ["Prune", "GPTQ"]
    assert told[0] == STEP


def test_several_variants_of_a_run_are_one_step(tmp_path: Path) -> None:
    (step,) = earlier_steps(beside(tmp_path, whole_report(Method.GGUF)))

    assert step.setting.count("about 4 bits") == 4


def changed(**parts: Any) -> bytes:
    return json.dumps(merged(json.loads(statement(PRUNED)), parts)).encode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"predicate": {"buildDefinition": 3}}', id="a number"),
        pytest.param(
            changed(predicate={"buildDefinition": {"buildType": "https://example.com"}}),
            id="another program's",
        ),
        pytest.param(
            changed(predicate={"buildDefinition": {"internalParameters": {"digest": 7}}}),
            id="a digest that is none",
        ),
        pytest.param(
            changed(predicate={"buildDefinition": {"internalParameters": {"before": [{"x": 1}]}}}),
            id="a step of other words",
        ),
        pytest.param(b" " * (LARGEST_BYTES + 1), id="too large"),
    ],
)
def test_what_is_no_provenance_of_ours_tells_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PROVENANCE).write_bytes(content)

    assert earlier_steps(tmp_path) == ()


def test_a_folder_without_provenance_has_no_steps(tmp_path: Path) -> None:
    assert earlier_steps(tmp_path) == ()
