"""Benchmarks in the legacy images: the harness beside a transformers before version 5."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.worker.benchmarks.test_harness import ASKED, LOADING, TASKS, own_files, spec
from tests.worker.engines.runs import program
from tests.worker.evaluation.meters import Recorder
from tests.worker.methods.conftest import TINY

from kubequant_worker.benchmarks.harness import Harness
from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime

if TYPE_CHECKING:
    from kubequant_worker.benchmarks.score import Score

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> list[Score]:
    """The scores by the transformers of this environment, which is of version 5."""
    harness = Harness(spec(*ASKED), tmp_path_factory.mktemp("here"), threads=1)
    harness.look_up(own_files().configs)
    harness.load(lambda _: None)
    with TransformersRuntime(TransformersEngine(2), TINY, LOADING) as runtime:
        found = harness.ask(runtime, Recorder())
    harness.close()
    return found


@pytest.mark.parametrize("image", ["gptq-legacy", "awq-legacy"])
def test_an_older_transformers_answers_benchmarks_as_the_newer_one_does(
    image: str, here: list[Score], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(image)
    given = {"asked": ASKED, "tasks": str(TASKS)}
    found = program(image, "benchmark_scores", TINY, folder, given=given)

    assert [(task, metric, count) for task, metric, _, count in found] == [
        (one.task, one.metric, one.samples) for one in here
    ]
    for one, (_, _, value, _) in zip(here, found, strict=True):
        assert value == pytest.approx(one.value, rel=1e-4), one
