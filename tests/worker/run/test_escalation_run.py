"""Whole runs whose gates do not hold at first: what is tried, what is published, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from tests.worker.methods.damage import swapped, zeroed
from tests.worker.run.manifests import Ended, command, environment, files_below, kubequant, manifest

from kubequant.api.contract import RunRequest
from kubequant.api.engines import LLAMA_CPP
from kubequant.api.enums import Method
from kubequant.api.outcome import ExitCode
from kubequant.api.resource import read_manifest
from kubequant_worker.layout import Layout
from kubequant_worker.methods import METHODS, ProducedVariant
from kubequant_worker.methods.gguf import GGUFQuantizer
from kubequant_worker.progress import Progress
from kubequant_worker.run import Run
from kubequant_worker.runner import answered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter

SHORT = {"perplexity": {"maxTokens": 1024}, "skip": ["Generations", "Performance"]}
KL = "MeanKLDivergence"


def escalating(folder: Path, types: list[str], gates: list[dict[str, Any]]) -> Path:
    return manifest(
        folder, gguf={"types": types}, gates=gates, evaluation=SHORT, onGateFailure="Escalate"
    )


def steps(ended: Ended) -> list[tuple[str, str, bool]]:
    return [
        (one["inPlaceOf"], one["variant"], one["gatesPassed"]) for one in ended.report["escalation"]
    ]


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """One run in which two types fail, one of them into the other: (folder, how it ended)."""
    folder = tmp_path_factory.mktemp("climbed")
    gates = [
        {"metric": KL, "max": "0.1"},
        # Q4_0 is far from it, and so is Q5_0, which the manifest makes too and which may.
        {"metric": KL, "max": "0.0005", "variant": "Q4_0"},
    ]
    ended = kubequant("run", escalating(folder, ["Q4_0", "Q5_0"], gates), "--json")
    assert ended.code == 0, ended.err
    return folder, ended


def test_every_step_is_told_with_what_it_missed(climbed: tuple[Path, Ended]) -> None:
    _, ended = climbed
    first, second, last = ended.report["escalation"]

    assert steps(ended) == [
        ("Q4_0", "Q4_0", False),
        ("Q4_0", "Q5_0", False),
        ("Q4_0", "Q8_0", True),
    ]
    assert first["missed"].startswith(f"spec.gates[1]: Q4_0: {KL} is 0.0")
    assert "at most 0.0005: does not hold, by 0.0" in second["missed"]
    assert float(first["meanKLDivergence"]) > float(second["meanKLDivergence"]) > 0.0005
    assert float(last["meanKLDivergence"]) < 0.0005
    assert first["method"] == "GGUF"


def test_what_is_published_holds_and_names_whose_place_it_took(
    climbed: tuple[Path, Ended],
) -> None:
    folder, ended = climbed
    artifact = f"tiny/{ended.report['digest']}"
    files = files_below(folder / "out")
    listed = {one["path"] for one in json.loads(files[f"{artifact}/manifest.json"])["files"]}

    assert {name.removeprefix(f"{artifact}/") for name in files} == {*listed, "manifest.json"}
    assert {name for name in listed if name.endswith(".gguf")} == {
        "tiny-Q8_0.gguf",
        "tiny-Q5_0.gguf",
    }
    assert [(v["name"], v["inPlaceOf"], v["gatesPassed"]) for v in ended.report["variants"]] == [
        ("Q8_0", ["Q4_0"], True),
        ("Q5_0", [], True),
    ]


def test_the_original_was_fetched_and_measured_once(climbed: tuple[Path, Ended]) -> None:
    _, ended = climbed
    stages = [one["stage"] for one in ended.report["stages"]]

    assert stages.count("Fetching") == stages.count("Measuring") == 1
    # Q5_0 was there already, so that only Q8_0 was made anew.
    assert stages.count("Quantizing") == 2


def test_report_and_provenance_name_what_was_done_really(climbed: tuple[Path, Ended]) -> None:
    folder, ended = climbed
    files = files_below(folder / "out" / "tiny" / ended.report["digest"])
    definition = json.loads(files["provenance.json"])["predicate"]["buildDefinition"]

    assert definition["externalParameters"]["gguf"]["types"] == ["Q4_0", "Q5_0"]
    made = {one["variant"]: one["inPlaceOf"] for one in definition["internalParameters"]["made"]}
    assert made == {"Q8_0": ["Q4_0"], "Q5_0": []}
    assert len(definition["internalParameters"]["escalation"]) == 3
    assert "Q8_0 stands in place of Q4_0" in ended.report["resolved"]["reason"]


def test_gates_that_hold_at_once_leave_nothing_to_tell(tmp_path: Path) -> None:
    path = escalating(tmp_path, ["Q8_0"], [{"metric": KL, "max": "0.1"}])
    ended = kubequant("run", path, "--json")

    assert ended.code == 0, ended.err
    assert ended.report["escalation"] == []
    assert ended.report["gates"][0]["certain"] is True


def test_a_ladder_that_ends_fails_with_every_step_and_leaves_the_report(tmp_path: Path) -> None:
    path = escalating(tmp_path, ["Q6_K"], [{"metric": KL, "max": "0.0000001"}])
    for _ in range(2):  # the second run of the same digest writes over what the first left
        ended = kubequant("run", path, "--json")

        assert ended.code == 11
        assert steps(ended) == [("Q6_K", "Q6_K", False), ("Q6_K", "Q8_0", False)]
        message = ended.report["failure"]["message"]
        assert message.startswith("Q6_K: Q6_K, Q8_0 were tried, and there the ladder ends; ")
        assert "spec.gates[0]: Q8_0: MeanKLDivergence is " in message
        left = files_below(tmp_path / "out")
        beside = f"tiny/{ended.report['digest']}.failed"
        assert set(left) == {f"{beside}/report.json", f"{beside}/report.html"}
        address = ended.report["failure"]["reportUri"]
        assert Path(address.removeprefix("file://")).is_file()
        told = json.loads(left[f"{beside}/report.json"])
        assert (told["outcome"], len(told["escalation"])) == ("Failed", 2)


def test_a_gate_that_more_bits_only_miss_by_more_ends_the_run_at_once(tmp_path: Path) -> None:
    path = escalating(tmp_path, ["Q4_0"], [{"metric": "SizeReductionPercent", "min": "90"}])
    ended = kubequant("run", path, "--json")

    assert ended.code == 11
    assert steps(ended) == [("Q4_0", "Q4_0", False)]
    message = ended.report["failure"]["message"]
    assert message.startswith(
        "Q4_0: a more careful setting than Q4_0 cannot hold what does not hold, so none is tried; "
        "spec.gates[0]: Q4_0: SizeReductionPercent is "
    )


def test_a_run_killed_in_the_middle_of_an_escalation_leaves_no_manifest(tmp_path: Path) -> None:
    path = escalating(tmp_path, ["Q2_K"], [{"metric": KL, "max": "0.0005"}])
    log = tmp_path / "log"
    with log.open("w") as out:
        run = subprocess.Popen(
            command("run", path), env=environment(), stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 280
        # The second time that it quantizes, the first setting has failed its gates.
        while log.read_text().count('"stage": "Quantizing", "percent": 0') < 2:
            assert run.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
    finally:
        for pid in _descendants(run.pid):
            os.kill(pid, signal.SIGKILL)
        run.wait()

    assert not [name for name in files_below(tmp_path / "out") if "manifest" in name]
    assert not [name for name in files_below(tmp_path / "out") if name.endswith(".gguf")]


def _descendants(pid: int) -> list[int]:
    parent = psutil.Process(pid)
    return [pid, *(child.pid for child in parent.children(recursive=True))]


class Broken(GGUFQuantizer):
    """Writes files whose first layer is zeros, as a broken engine would."""

    damage = staticmethod(zeroed)

    def variants(self, calibration: TextSet | None, meter: Meter) -> Iterator[ProducedVariant]:
        for made in super().variants(calibration, meter):
            self.damage(self._work.artifact / made.files[0])
            yield made


class Unverified(Broken):
    """The same, where verifying would see nothing."""

    def verify(self, produced: ProducedVariant, meter: Meter) -> tuple[str, ...]:  # noqa: ARG002
        return ()


class Shuffled(Broken):
    """Writes files whose first and last layer have each other's weights."""

    damage = staticmethod(swapped)


class ShuffledUnverified(Unverified):
    """The same, where verifying would see nothing."""

    damage = staticmethod(swapped)


@pytest.mark.parametrize(
    ("kind", "code", "reason"),
    [
        pytest.param("Broken", 10, "VerificationFailed", id="zeroed, seen when it is verified"),
        pytest.param("Unverified", 11, "GateFailed", id="zeroed, else seen by the gates"),
        pytest.param("Shuffled", 10, "VerificationFailed", id="shuffled, seen when verified"),
        pytest.param("ShuffledUnverified", 11, "GateFailed", id="shuffled, else by the gates"),
    ],
)
def test_a_broken_model_is_never_published_as_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int, reason: str
) -> None:
    monkeypatch.setitem(METHODS, (Method.GGUF, LLAMA_CPP), f"{__name__}:{kind}")
    gates = [{"metric": "PerplexityIncreasePercent", "max": "2.0"}]
    body = yaml.safe_load(escalating(tmp_path, ["Q8_0"], gates).read_text())
    spec = read_manifest(body, local=True).spec
    request = RunRequest.model_validate(
        {"name": "tiny", "digest": "0123abcd", "spec": spec}, context={"local": True}
    )
    layout = Layout.from_environment({"KUBEQUANT_SCRATCH": str(tmp_path / "scratch")})
    (tmp_path / "scratch").mkdir()

    report = answered(Run(request, layout, Progress()), layout)

    assert report.exit_code == ExitCode(code)
    assert report.failure is not None
    assert report.failure.reason.value == reason
    assert set(files_below(tmp_path / "out")) == {
        "tiny/0123abcd.failed/report.html", "tiny/0123abcd.failed/report.json",
    }  # fmt: skip
