"""Whole runs of Distill: a student beats its untrained self, and a killed run's successor goes on.

Runs are killed as a pod is: all of its processes at once, by SIGKILL, or told to stop by SIGTERM.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.worker.engines.runs import kubequant, program
from tests.worker.environments import interpreter, variables
from tests.worker.methods.models import random_gpt2, random_llama
from tests.worker.run.documents import assert_documents_are_sound
from tests.worker.run.manifests import TINY, manifest

from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.testbed.hub import Hub
    from tests.testbed.storage import Bucket

STEPS = 60
LEARNING = {
    "student": {"keepLayers": 2},
    "steps": STEPS,
    "learningRate": "0.002",
    "batchSize": 4,
}
EVALUATION = {
    "perplexity": {"maxTokens": 4096, "contextLength": 256},
    "generations": {"prompts": ["def read("], "maxNewTokens": 8},
    "skip": ["Performance"],
}


def written(folder: Path, name: str = "student", distill: Any = LEARNING, **spec: Any) -> Path:
    """Write a manifest of method Distill."""
    return manifest(
        folder,
        name,
        **{
            "method": "Distill",
            "device": "CPU",
            "distill": distill,
            "calibration": {"sequenceLength": 128},
            "evaluation": EVALUATION,
            **spec,
        },
    )


def detail(report: dict[str, Any]) -> dict[str, Any]:
    (variant,) = report["variants"]
    found: dict[str, Any] = variant["distillationDetail"]
    return found


@dataclass(frozen=True)
class Run:
    """A run that was let finish."""

    artifact: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("whole")
    code, report, error = kubequant("transformers", written(folder))
    assert code == 0, error
    (artifact,) = (folder / "out" / "student").iterdir()
    return Run(artifact, report)


def test_a_student_beats_its_untrained_self_and_the_report_says_by_how_much(whole: Run) -> None:
    (variant,) = whole.report["variants"]
    untrained = detail(whole.report)["untrained"]
    before, after = float(untrained["perplexity"]), float(variant["perplexity"])
    apart, near = float(untrained["meanKLDivergence"]), float(variant["meanKLDivergence"])

    assert float(whole.report["original"]["perplexity"]) < after < 0.5 * before
    assert near < 0.5 * apart
    assert float(untrained["perplexityReductionPercent"]) == pytest.approx(
        100 * (1 - after / before), abs=0.01
    )
    assert float(untrained["divergenceReductionPercent"]) == pytest.approx(
        100 * (1 - near / apart), abs=0.01
    )
    for name in ("report.html", "README.md"):
        assert f"{before:.2f} untrained, {after:.2f} trained" in (whole.artifact / name).read_text()


def test_the_student_is_smaller_and_is_made_of_the_layers_that_were_asked_for(whole: Run) -> None:
    (variant,) = whole.report["variants"]
    config = json.loads((whole.artifact / "config.json").read_text())
    original = {span.name: span for span in read_header(TINY / "model.safetensors")}
    made = {span.name: span for span in read_header(whole.artifact / "model.safetensors")}

    assert variant["setting"] == f"2 layers, {STEPS} steps, temperature 2"
    assert 30 < float(variant["sizeReductionPercent"]) < 50
    assert (detail(whole.report)["keptLayers"], detail(whole.report)["teacherLayers"]) == (
        [0, 3],
        4,
    )
    assert config["num_hidden_layers"] == 2
    assert config["dtype"] == "bfloat16"
    assert {name: span.dtype for name, span in made.items()} == {
        name: original[name].dtype for name in made
    }


def test_what_was_published_is_measured_the_same_by_other_code(whole: Run) -> None:
    pairs = {"student": [str(TINY), str(whole.artifact)]}
    found = program("transformers", "load_checkpoints", given=pairs)["student"]

    assert 0.05 < found["divergence"] < float(detail(whole.report)["untrained"]["meanKLDivergence"])


def test_the_curve_is_bounded_falls_and_has_all_its_numbers(whole: Run) -> None:
    points = detail(whole.report)["points"]

    assert [point["step"] for point in points] == list(range(1, STEPS + 1))
    assert float(points[-1]["loss"]) < 0.7 * float(points[0]["loss"])
    for point in points:
        parts = 0.9 * float(point["divergence"]) + 0.1 * float(point["hardLoss"])
        assert float(point["loss"]) == pytest.approx(parts, abs=1e-5)
    assert max(float(point["learningRate"]) for point in points) == pytest.approx(0.002)
    assert detail(whole.report)["tokens"] == STEPS * 4 * 128


def test_the_page_draws_the_curve(whole: Run) -> None:
    page = (whole.artifact / "report.html").read_text()

    assert "How it learned" in page
    assert 'aria-label="Loss, nats a token. loss: from' in page
    assert 'aria-label="Learning rate. ' in page


def test_page_and_card_are_sound(whole: Run) -> None:
    assert_documents_are_sound(whole.artifact)


def test_nothing_is_left_of_the_checkpoints_and_nothing_names_them(whole: Run) -> None:
    beside = whole.artifact.parent
    manifest_text = (whole.artifact / "manifest.json").read_text()

    assert [path.name for path in beside.iterdir()] == [whole.artifact.name]
    assert "checkpoint" not in manifest_text


class Started:
    """A run that goes on while a test looks at it, and that the test ends."""

    def __init__(self, path: Path, **more: str) -> None:
        self._process = subprocess.Popen(
            [interpreter("transformers"), "-m", "kubequant.cli", "run", "--json", path],
            env={**variables(), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, is_so: Callable[[], object], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self._process.poll() is None, self._process.communicate()[1][-4000:]
            assert time.monotonic() < deadline, "it takes too long"
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill all of its processes at once."""
        alive = [self._process, *psutil.Process(self._process.pid).children(recursive=True)]
        for one in alive:
            one.kill()
        self._process.communicate()

    def stop(self) -> tuple[int, dict[str, Any]]:
        """Ask it to stop as Kubernetes does; return exit code and report."""
        self._process.terminate()
        out, _ = self._process.communicate(timeout=60)
        return self._process.returncode, json.loads(out)

    def end(self) -> None:
        if self._process.poll() is None:
            self.kill()


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    runs: list[Started] = []

    def started(path: Path, **more: str) -> Started:
        runs.append(Started(path, **more))
        return runs[-1]

    yield started
    for one in runs:
        one.end()


def test_a_killed_run_is_gone_on_with_and_ends_as_if_it_had_not_been(
    whole: Run, tmp_path: Path, start: Callable[..., Started]
) -> None:
    path = written(tmp_path, distill={**LEARNING, "checkpointSeconds": 1})
    beside = tmp_path / "out" / "student"
    first = start(path)
    first.wait_for(lambda: list(beside.glob("*.checkpoints/step-*.safetensors")))
    first.kill()
    kept = [int(one.name[5:14]) for one in beside.glob("*.checkpoints/step-*.safetensors")]
    assert not list(beside.glob("*/manifest.json"))

    code, report, error = kubequant("transformers", path)

    assert code == 0, error
    found, uninterrupted = detail(report), detail(whole.report)
    assert found["resumedAt"] == [max(kept)]
    assert 0 < max(kept) < STEPS
    last, expected = found["points"][-1], uninterrupted["points"][-1]
    assert float(last["loss"]) == pytest.approx(float(expected["loss"]), rel=0.01)
    assert float(report["variants"][0]["perplexity"]) == pytest.approx(
        float(whole.report["variants"][0]["perplexity"]), rel=0.01
    )
    assert [point["step"] for point in found["points"]] == list(range(1, STEPS + 1))
    (artifact,) = beside.iterdir()
    assert (artifact / "manifest.json").is_file()


def test_on_sigterm_a_last_checkpoint_is_left_in_the_bucket(
    tmp_path: Path, bucket: Bucket, start: Callable[..., Started]
) -> None:
    place = {"endpoint": bucket.server.endpoint, "region": "us-east-1"}
    keys = {
        "AWS_ACCESS_KEY_ID": bucket.server.access_key,
        "AWS_SECRET_ACCESS_KEY": bucket.server.secret_key,
    }
    path = written(
        tmp_path,
        distill={**LEARNING, "steps": 5000, "checkpointSeconds": 2},
        output={"uri": f"s3://{bucket.name}/out", "s3": place},
    )

    def checkpoints() -> list[int]:
        keys = [key for key in bucket.keys("out/student/") if ".checkpoints/step-" in key]
        return [int(key.rpartition("/step-")[2][:9]) for key in keys]

    run = start(path, **keys)
    run.wait_for(checkpoints)
    before = max(checkpoints())
    time.sleep(0.5)
    code, report = run.stop()

    assert (code, report["failure"]["reason"]) == (30, "Interrupted")
    left = checkpoints()
    assert max(left) > before
    assert f"goes on from the checkpoint of step {max(left)}" in report["failure"]["message"]
    assert len(left) <= 2
    assert bucket.unfinished() == []
    assert not [key for key in bucket.keys("out/") if key.endswith("manifest.json")]


def test_checkpoints_of_another_text_are_not_gone_on_from(
    tmp_path: Path, start: Callable[..., Started]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes a dull student. " * 2000)
    path = written(
        tmp_path,
        distill={**LEARNING, "steps": 40, "checkpointSeconds": 1},
        calibration={"sequenceLength": 64, "dataset": {"uri": f"file://{text}"}},
    )
    first = start(path)
    first.wait_for(lambda: list((tmp_path / "out").rglob("step-*.safetensors")))
    first.kill()
    text.write_text("Another text at the same address, to learn from. " * 2000)

    code, report, error = kubequant("transformers", path, "--work-dir", tmp_path / "work")

    assert code == 0, error
    assert detail(report)["resumedAt"] == []
    log = (tmp_path / "work" / "worker.log").read_text()
    assert "is of other work and is not gone on from" in log
    assert not list((tmp_path / "out").rglob("*.checkpoints"))


def test_a_student_of_its_own_is_fetched_taught_and_named_everywhere(tmp_path: Path) -> None:
    own = random_llama(
        tmp_path / "own", stored="float16", hidden_size=128, num_attention_heads=2, vocab_size=2112,
    )  # fmt: skip
    path = written(
        tmp_path,
        distill={"student": {"uri": f"file://{own}"}, "steps": 30, "learningRate": "0.003"},
    )
    code, report, error = kubequant("transformers", path)
    assert code == 0, error
    (artifact,) = (tmp_path / "out" / "student").iterdir()
    provenance = json.loads((artifact / "provenance.json").read_text())["predicate"]
    named = {one["name"] for one in provenance["buildDefinition"]["resolvedDependencies"]}
    config = json.loads((artifact / "config.json").read_text())

    assert {"model/model.safetensors", "student/model.safetensors"} <= named
    assert report["student"]["uri"] == f"file://{own}"
    assert report["variants"][0]["setting"] == "a student of its own, 30 steps, temperature 2"
    assert (config["hidden_size"], config["vocab_size"]) == (128, 2112)
    assert config["dtype"] == "float16"
    spans = read_header(artifact / "model.safetensors")
    assert {span.dtype for span in spans} == {"F16"}
    assert "keptLayers" not in {k: v for k, v in detail(report).items() if v}
    assert float(detail(report)["untrained"]["perplexityReductionPercent"]) > 50
    assert f"file://{own}" in (artifact / "README.md").read_text()


@pytest.mark.parametrize("student_from", ["hf", "s3"])
def test_teacher_and_student_come_each_from_a_place_of_its_own(
    tmp_path: Path, hub: Hub, bucket: Bucket, student_from: str
) -> None:
    files = {path.name: path.read_bytes() for path in TINY.iterdir()}
    repository = hub.add("team/model", files, token="token-of-the-hub")
    for name, content in files.items():
        bucket.put(f"model/{name}", content)
    secrets = {
        "HF_TOKEN": "token-of-the-hub",
        "AWS_ACCESS_KEY_ID": bucket.server.access_key,
        "AWS_SECRET_ACCESS_KEY": bucket.server.secret_key,
    }
    places: dict[str, dict[str, Any]] = {
        "hf": {"uri": "hf://team/model"},
        "s3": {
            "uri": f"s3://{bucket.name}/model",
            "s3": {"endpoint": bucket.server.endpoint, "region": "us-east-1"},
        },
    }
    student = places.pop(student_from)
    ((_, teacher),) = places.items()
    learning = {**LEARNING, "student": student, "steps": 2}
    path = written(tmp_path, model=teacher, distill=learning)

    code, report, error = kubequant("transformers", path, HF_ENDPOINT=hub.endpoint, **secrets)

    assert code == 0, error
    assert (report["source"]["uri"], report["student"]["uri"]) == (teacher["uri"], student["uri"])
    revisions = {report["source"].get("revision", ""), report["student"].get("revision", "")}
    assert revisions == {"", repository.commit}
    assert not [secret for secret in secrets.values() if secret in error + json.dumps(report)]


def test_a_student_that_knows_fewer_positions_is_taught_and_measured_on_those(
    tmp_path: Path,
) -> None:
    teacher = random_gpt2(tmp_path / "teacher", positions=128)
    path = written(
        tmp_path,
        distill={"student": {"uri": f"file://{random_gpt2(tmp_path / 'own')}"}, "steps": 2},
        model={"uri": f"file://{teacher}"},
        calibration={},
        evaluation={**EVALUATION, "perplexity": {"maxTokens": 1024}},
    )

    code, report, error = kubequant("transformers", path)

    assert code == 0, error
    assert detail(report)["sequenceLength"] == 64
    assert report["original"]["perplexityDetail"]["contextLength"] == 64
    said = (
        "The teacher's context has 128 tokens and the student's has 64 tokens: texts of at most 64 "
        "are trained on and measured."
    )
    assert said in report["warnings"]


@pytest.mark.parametrize(
    ("distill", "spec", "sentence", "advice"),
    [
        pytest.param(
            "another vocabulary",
            {},
            "spec.distill.student: the student's vocabulary is not the teacher's",
            "take a student of the teacher's own family",
            id="a student that does not fit the teacher's tokenizer",
        ),
        pytest.param(
            {"student": {"keepLayers": 4}},
            {},
            "spec.distill.student.keepLayers: 4 of 4 layers are no smaller model",
            "set spec.distill.student.keepLayers below 4",
            id="as many layers as the teacher has",
        ),
        pytest.param(
            LEARNING,
            {"memory": {"offload": "Disk"}},
            "spec.memory.offload: Disk is not possible with method Distill",
            "",
            id="weights spilled while training",
        ),
    ],
)
def test_what_cannot_be_taught_is_refused_before_the_weights_are_fetched(
    distill: Any, spec: dict[str, Any], sentence: str, advice: str, tmp_path: Path
) -> None:
    if isinstance(distill, str):
        distill = {"student": {"uri": f"file://{random_gpt2(tmp_path / 'gpt2')}"}}
    work = tmp_path / "work"
    path = written(tmp_path, distill=distill, **spec)
    code, report, _ = kubequant("transformers", path, "--work-dir", work)

    assert code == 10
    assert sentence in report["failure"]["message"]
    assert advice in report["failure"]["advice"]
    assert list(work.rglob("*.safetensors")) == []
