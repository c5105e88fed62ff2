"""The worker as a pod starts it: environment in, exit code and termination message out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from tests.worker.run.manifests import SECRET, environment, files_below, manifest

from kubequant.api.contract import LIMIT_BYTES, RunReport, decode_termination

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WORKER = [sys.executable, "-m", "kubequant_worker"]
DIGEST = "0123abcd"


class Pod:
    """One worker process with the folders that a pod would mount."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        """Lay out `folder` and write the request; `start` starts."""
        self.folder = folder
        self.termination = folder / "termination-log"
        self.scratch = folder / "scratch"
        content = yaml.safe_load(manifest(folder, **spec).read_text())
        request = {
            "namespace": "team",
            "name": "tiny",
            "digest": DIGEST,
            "spec": content["spec"],
            "image": "registry.example/kubequant-gguf:1",
        }
        self.variables = environment(
            KUBEQUANT_RUN=json.dumps(request),
            KUBEQUANT_SCRATCH=str(self.scratch),
            KUBEQUANT_CREDENTIALS=str(folder / "credentials"),
            KUBEQUANT_TERMINATION_LOG=str(self.termination),
        )
        self.process: subprocess.Popen[str] | None = None
        self.out, self.err = folder / "stdout", folder / "stderr"

    def start(self) -> subprocess.Popen[str]:
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                WORKER, env=self.variables, stdout=out, stderr=err, text=True
            )
        return self.process

    def run(self) -> int:
        return self.start().wait(timeout=300)

    def report(self) -> RunReport:
        message = self.termination.read_text()
        assert len(message.encode()) <= LIMIT_BYTES
        return decode_termination(message)

    def wait_for(self, what: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.err.read_text()
            assert self.process is not None
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.02)

    def in_stage(self, stage: str) -> bool:
        return f'"stage": "{stage}"' in self.out.read_text()

    def descendants(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def runner(self) -> psutil.Process:
        """The process that the run takes place in."""
        return next(p for p in self.descendants() if "kubequant_worker.runner" in p.cmdline())


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Callable[..., Pod]]:
    made: list[Pod] = []

    def make(**spec: Any) -> Pod:
        made.append(Pod(tmp_path, **spec))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            for process in (*one.descendants(), psutil.Process(one.process.pid)):
                process.kill()
            one.process.wait(timeout=10)


def test_a_run_leaves_its_report_in_the_termination_message(pod: Callable[..., Pod]) -> None:
    one = pod(gguf={"types": ["Q4_0"]})

    assert one.run() == 0

    report = one.report()
    assert (report.outcome, report.digest, report.namespace) == ("Published", DIGEST, "team")
    assert report.resolved is not None
    assert report.resolved.image == "registry.example/kubequant-gguf:1"
    assert [variant.name for variant in report.variants] == ["Q4_0"]
    assert report.artifact is not None
    assert report.artifact.uri.endswith(f"/out/tiny/{DIGEST}/")


def test_each_stage_is_logged_as_one_json_line_with_percent_and_eta(
    pod: Callable[..., Pod],
) -> None:
    one = pod(gguf={"types": ["Q4_0"]})
    assert one.run() == 0

    lines = [json.loads(line) for line in one.out.read_text().splitlines()]
    stages = list(dict.fromkeys(line["stage"] for line in lines))

    assert stages == [
        "Preflight", "Fetching", "Measuring", "Quantizing", "Verifying", "Evaluating",
        "Publishing", "Reporting",
    ]  # fmt: skip
    for stage in stages:
        percents = [line["percent"] for line in lines if line["stage"] == stage]
        assert percents[0] == 0
        assert percents[-1] == 100
        assert percents == sorted(percents)
        assert len(percents) <= 11
    under_way = [line for line in lines if 0 < line["percent"] < 100]
    assert under_way
    assert all("etaSeconds" in line for line in under_way)


@pytest.mark.parametrize(
    ("request_json", "said"),
    [
        pytest.param("", "is not JSON", id="no request at all"),
        pytest.param("{}", "name: is required", id="an empty request"),
        pytest.param(
            '{"name": "x", "digest": "0123abcd", "spec": {}, "speed": 1}',
            "speed: is not a field",
            id="a field that this worker does not know",
        ),
    ],
)
def test_a_request_that_cannot_be_read_is_refused(
    pod: Callable[..., Pod], request_json: str, said: str
) -> None:
    one = pod()
    one.variables["KUBEQUANT_RUN"] = request_json

    assert one.run() == 10
    assert said in one.termination.read_text()
    assert said in one.err.read_text()


@pytest.mark.parametrize("stage", ["Measuring", "Evaluating"])
def test_sigterm_ends_within_ten_seconds_without_a_manifest(
    pod: Callable[..., Pod], stage: str
) -> None:
    one = pod(evaluation={"perplexity": {"maxTokens": 65536}})
    process = one.start()
    one.wait_for(lambda: one.in_stage(stage))
    descendants = one.descendants()

    process.send_signal(signal.SIGTERM)
    started = time.monotonic()

    assert process.wait(timeout=10) == 30
    assert time.monotonic() - started < 10
    report = one.report()
    assert report.failure is not None
    assert (report.failure.reason, report.failure.retryable) == ("Interrupted", True)
    assert "manifest.json" not in " ".join(files_below(one.folder / "out"))
    assert [p for p in descendants if p.is_running() and p.status() != "zombie"] == []


def test_a_run_that_does_not_hear_sigterm_is_killed_and_still_answered_for(
    pod: Callable[..., Pod],
) -> None:
    one = pod(evaluation={"perplexity": {"maxTokens": 65536}})
    process = one.start()
    one.wait_for(lambda: one.in_stage("Evaluating"))
    one.runner().suspend()

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=10) == 30
    report = one.report()
    assert report.failure is not None
    assert report.failure.reason == "Interrupted"


@pytest.mark.parametrize(
    ("number", "code", "reason", "said"),
    [
        pytest.param(
            signal.SIGKILL, 21, "OutOfMemory", "lack of memory", id="killed, as for memory"
        ),
        pytest.param(signal.SIGABRT, 1, "InternalError", "died of SIGABRT", id="an abort in C"),
    ],
)
def test_a_run_that_dies_without_a_report_is_answered_for(
    pod: Callable[..., Pod], number: int, code: int, reason: str, said: str
) -> None:
    one = pod()
    process = one.start()
    one.wait_for(lambda: one.in_stage("Measuring"))
    descendants = one.descendants()

    one.runner().send_signal(number)

    assert process.wait(timeout=30) == code
    report = one.report()
    assert report.failure is not None
    assert report.failure.reason == reason
    assert said in report.failure.message
    time.sleep(0.2)
    assert [p for p in descendants if p.is_running() and p.status() != "zombie"] == []


def test_a_bug_leaves_its_traceback_in_the_log_and_its_last_lines_in_the_message(
    pod: Callable[..., Pod],
) -> None:
    one = pod()
    # A file where the run wants a folder is nothing that a run foresees.
    one.scratch.mkdir()
    (one.scratch / "method").write_text("")

    assert one.run() == 1
    report = one.report()
    assert report.failure is not None
    assert report.failure.reason == "InternalError"
    assert "FileExistsError" in report.failure.message
    assert "Traceback" in one.err.read_text()


def test_secrets_are_in_no_log_report_or_traceback(pod: Callable[..., Pod]) -> None:
    # The secret is part of a path, so that both the sentence and the traceback would hold it.
    one = pod()
    folder = one.folder / "credentials" / "output"
    folder.mkdir(parents=True)
    (folder / "AWS_SECRET_ACCESS_KEY").write_text(f"{SECRET}\n")
    one.scratch = one.folder / SECRET
    one.scratch.mkdir()
    (one.scratch / "method").write_text("")
    one.variables["KUBEQUANT_SCRATCH"] = str(one.scratch)

    assert one.run() == 1

    said = one.err.read_text() + one.out.read_text() + one.termination.read_text()
    assert "[redacted]" in said
    assert SECRET not in said
    assert "[redacted]" in one.report().to_json()["failure"]["message"]
