"""Method Auto on a laptop: resolved as in a cluster; of two types the measured one is advised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.worker.run.manifests import kubequant, manifest

from kubequant.api.auto import CHOICES

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("hardware", "priority"), CHOICES)
def test_a_goal_becomes_on_a_laptop_what_it_becomes_in_a_cluster(
    tmp_path: Path, hardware: str, priority: str
) -> None:
    # What the operator makes of each row is tested in tests/controller/test_status.py.
    goal = {"hardware": hardware, "priority": priority}
    nowhere = {"uri": f"file://{tmp_path / 'nowhere'}"}
    path = manifest(tmp_path, method="Auto", goal=goal, model=nowhere)

    ended = kubequant("run", path, "--json")

    method, device = CHOICES[hardware, priority].method.value, ended.report["resolved"]["device"]
    assert ended.code in {10, 12}
    assert ended.report["resolved"]["method"] == method
    assert device == ("GPU" if hardware == "GPU" else "CPU")
    reason = ended.report["resolved"]["reason"]
    assert reason.startswith(f"Auto for {hardware} and {priority} is {method}: ")


def test_both_types_of_a_row_are_made_and_one_is_recommended_by_what_was_measured(
    tmp_path: Path,
) -> None:
    goal = {"hardware": "CPU", "priority": "Balanced"}
    path = manifest(
        tmp_path,
        method="Auto",
        goal=goal,
        evaluation={"perplexity": {"maxTokens": 1024}, "skip": ["Generations", "Performance"]},
    )

    ended = kubequant("run", path, "--json")

    assert ended.code == 0, ended.err
    assert [variant["name"] for variant in ended.report["variants"]] == ["Q4_K_M", "Q5_K_M"]
    rises = {
        variant["name"]: float(variant["perplexityIncreasePercent"])
        for variant in ended.report["variants"]
    }
    within = [name for name, rise in rises.items() if rise <= 2]
    assert ended.report["recommended"] == within[0]
    assert ended.report["recommendations"][0].startswith(f"Serve {within[0]}: ")
    assert ended.report["usage"]["command"] == f"llama-server -m tiny-{within[0]}.gguf"
