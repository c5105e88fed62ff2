"""Gates on every metric in whole runs: seen to hold, to fail and to let a run escalate."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.worker.engines.runs import kubequant
from tests.worker.run.gates import CASES, FAILS, HOLDS, TASKS, GateCase, of_metrics
from tests.worker.run.manifests import files_below, manifest

from kubequant.api.enums import Metric

if TYPE_CHECKING:
    from pathlib import Path

    Ended = tuple[int, dict[str, Any], str]


@dataclass(frozen=True)
class Runs:
    """Two runs of a case: one that escalates, and one of which no gate holds."""

    case: GateCase
    folder: Path
    escalated: Ended
    failed: Ended


def written(folder: Path, name: str, spec: dict[str, Any]) -> Path:
    """Write a manifest of just this spec."""
    path = manifest(folder, name, **spec)
    content = yaml.safe_load(path.read_text())
    content["spec"]["evaluation"]["taskFiles"] = {"uri": f"file://{TASKS}"}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.method)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Both runs of each case, side by side: most of such a short run is one thread's imports."""
    case: GateCase = request.param
    folder = tmp_path_factory.mktemp(case.method.lower())
    paths = [
        written(folder, "escalated", case.escalating()),
        written(folder, "failed", case.failing()),
    ]
    with ThreadPoolExecutor(len(paths)) as pool:
        escalated, failed = pool.map(lambda path: kubequant(case.image, path), paths)
    return Runs(case, folder, escalated, failed)


def test_every_metric_is_held() -> None:
    assert set(HOLDS) == set(FAILS) == set(Metric)


def test_gates_of_every_metric_hold_after_one_step(runs: Runs) -> None:
    code, report, error = runs.escalated
    assert code == 0, error
    results = of_metrics(report["gates"])
    (variant,) = report["variants"]

    assert set(results) == set(Metric)
    assert all(one["passed"] for one in results.values())
    assert all(float(one["margin"]) >= 0 for one in results.values())
    assert variant["gatesPassed"] is True
    assert variant["setting"] == runs.case.settings[1]


def test_the_step_before_says_which_gates_did_not_hold_and_by_how_much(runs: Runs) -> None:
    _, report, error = runs.escalated
    first, second = report["escalation"]
    turned, *others = runs.case.between
    stages = [one["stage"] for one in report["stages"]]

    assert (first["setting"], second["setting"]) == runs.case.settings, error
    assert (first["gatesPassed"], second["gatesPassed"]) == (False, True)
    assert first["missed"].startswith(f"spec.gates[0]: {first['variant']}: {turned} is ")
    assert "does not hold, by " in first["missed"]
    shown = first["missed"].count("spec.gates[")
    assert shown + int((first["missed"].split("; and ")[1:] or ["0 more"])[0].split()[0]) == (
        1 + len(others)
    )
    assert stages.count("Fetching") == stages.count("Measuring") == 1
    assert stages.count("Quantizing") == stages.count("Verifying") == 2


def test_gates_of_every_metric_fail_and_nothing_is_published_but_the_report(runs: Runs) -> None:
    code, report, error = runs.failed
    assert code == 11, error
    failure, left = report["failure"], files_below(runs.folder / "out" / "failed")
    beside = f"{report['digest']}.failed"

    assert failure["reason"] == "GateFailed"
    assert failure["message"].startswith(f"spec.gates[0]: {report['variants'][0]['name']}: ")
    assert ": does not hold, by " in failure["message"]
    assert len(failure["message"]) <= 1024
    assert set(left) == {f"{beside}/report.json", f"{beside}/report.html"}
    told = json.loads(left[f"{beside}/report.json"])
    results = of_metrics(told["gates"])
    assert set(results) == set(Metric)
    assert not any(one["passed"] for one in results.values())
    assert all(float(one["margin"]) < 0 for one in results.values())
    assert b"Run failed: GateFailed" in left[f"{beside}/report.html"]
