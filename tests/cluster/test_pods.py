"""The whole road on a real cluster: install.yaml, a manifest, real images, an artifact in S3.

The operator runs as a pod from its own image, the worker as a pod from the GGUF image; the artifact
is downloaded with a client that shares nothing with ours, and measured by other code.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.cluster.operator_program import DEPLOY
from tests.cluster.watched import Namespace
from tests.testbed.images import build_image, push_image
from tests.testbed.processes import start_s3
from tests.testbed.storage import client_for
from tests.worker.run.gates import CASES, TASKS, of_metrics

from kubequant.api.digest import run_digest
from kubequant.api.enums import Metric
from kubequant.api.resource import read_manifest
from kubequant.controller.catalog import ImageKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.testbed.access import Access
    from tests.testbed.api import Api
    from tests.testbed.processes import Processes, S3Server
    from tests.worker.run.gates import GateCase

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "tiny-llama"
SYSTEM = "--namespace=kubequant-system"
CONTEXT, TOKENS = 512, 8176
S3_PORT = 9000
SECONDS = 300
# The images that run here: to push all of them would take minutes, and tens of gigabytes.
WORKERS = (ImageKey.GGUF, ImageKey.LLMCOMPRESSOR, ImageKey.GPTQMODEL, ImageKey.TRANSFORMERS)
# The first test's time includes images that nobody has built here yet.
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def s3_for_pods(
    cluster: Access, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> S3Server:
    """An S3 server that pods reach."""
    return start_s3(processes, tmp_path_factory.mktemp("s3"), cluster.host_address)


@pytest.fixture(scope="module")
def installed(cluster: Access, definition: str) -> Iterator[str]:
    """deploy/install.yaml with our images where this cluster finds them; the Deployment's name."""
    assert definition
    operator = push_image(build_image("operator"), cluster.registry)
    workers = {key: push_image(build_image(key), cluster.registry) for key in WORKERS}
    objects = list(yaml.safe_load_all((DEPLOY / "install.yaml").read_text()))
    (deployment,) = (one for one in objects if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["image"] = operator
    images = {"name": "KUBEQUANT_OPERATOR_IMAGES", "value": json.dumps(workers)}
    container["env"] = [*container["env"], images]
    cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", "-", input=yaml.safe_dump_all(objects)
    )
    name = deployment["metadata"]["name"]
    try:
        cluster.kubectl("rollout", "status", f"deployment/{name}", SYSTEM, "--timeout=100s")
        yield name
    finally:
        # The rights stay: other tests run the operator with them.
        cluster.kubectl("delete", "deployment", name, SYSTEM, "--wait=true")


@dataclass(frozen=True)
class Team:
    """A namespace with a bucket, a model in it and a Secret for both."""

    namespace: Namespace
    cluster: Access
    s3: Any
    bucket: str
    endpoint: str

    def folder(self, path: str) -> dict[str, Any]:
        """Return how a manifest names a folder or file of the bucket."""
        place = {"endpoint": self.endpoint, "region": "us-east-1"}
        return {
            "uri": f"s3://{self.bucket}/{path}",
            "s3": place,
            "secretRef": {"name": "s3-writer"},
        }

    def manifest(self, **spec: Any) -> dict[str, Any]:
        """Return examples/gguf-s3.yaml for this bucket; another method without its `gguf`."""
        body: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "gguf-s3.yaml").read_text())
        if spec.get("method", "GGUF") != "GGUF":
            del body["spec"]["gguf"]
        body["spec"] |= {
            "model": self.folder("tiny-llama"),
            "output": self.folder("out"),
            "evaluation": {
                "perplexity": {
                    "dataset": self.folder("held-out.txt"),
                    "contextLength": CONTEXT,
                    "maxTokens": TOKENS,
                },
                "generations": {"maxNewTokens": 8},
            },
            "pod": {"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}},
            **spec,
        }
        return body

    def apply(self, body: dict[str, Any]) -> str:
        """Apply a manifest as a person does; return the resource's name."""
        words = ("apply", "-f", "-", f"--namespace={self.namespace.name}")
        self.cluster.kubectl(*words, input=json.dumps(body))
        return str(body["metadata"]["name"])

    def wait(self, name: str) -> dict[str, Any]:
        """Wait as a person does; return the status."""
        where = f"--namespace={self.namespace.name}"
        for _ in range(SECONDS // 60):
            words = ("wait", "--for=condition=Complete", f"qj/{name}", where, "--timeout=60s")
            if self.cluster.kubectl(*words, check=False).returncode == 0:
                return self.namespace.status(name)
            status = self.namespace.status(name)
            assert status.get("phase") != "Failed", status
        raise AssertionError(self.cluster.kubectl("describe", "qj", name, where).stdout)


@pytest.fixture
def team(
    installed: str, cluster: Access, api: Api, namespace: str, s3_for_pods: S3Server
) -> Iterator[Team]:
    assert installed
    server = s3_for_pods
    client = client_for(server.endpoint, server.access_key, server.secret_key)
    bucket = f"{namespace}-models"
    client.create_bucket(Bucket=bucket)
    for file in sorted(MODEL.iterdir()):
        client.upload_file(str(file), bucket, f"tiny-llama/{file.name}")
    client.put_object(Bucket=bucket, Key="held-out.txt", Body=_held_out().encode())
    endpoint = cluster.expose(namespace, "s3", S3_PORT, server.port)
    keys = (f"AWS_ACCESS_KEY_ID={server.access_key}", f"AWS_SECRET_ACCESS_KEY={server.secret_key}")
    literal = [f"--from-literal={key}" for key in keys]
    where = f"--namespace={namespace}"
    cluster.kubectl("create", "secret", "generic", "s3-writer", *literal, where)
    yield Team(Namespace(api, namespace), cluster, client, bucket, endpoint)
    client.close()


def _held_out() -> str:
    """Return English that is no part of what the model was trained on: this project's own."""
    documents = ("README.md", "CONTRIBUTING.md", "images/README.md", "docs/benchmarks.md")
    return "\n\n".join((ROOT / name).read_text() for name in documents) * 2


def downloaded(team: Team, status: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Download an artifact and hold every file against its manifest, as a user would."""
    bucket, _, prefix = status["artifact"]["uri"].removeprefix("s3://").partition("/")
    content = team.s3.get_object(Bucket=bucket, Key=f"{prefix}manifest.json")["Body"].read()
    assert hashlib.sha256(content).hexdigest() == status["artifact"]["manifestSha256"]
    files = {}
    for entry in json.loads(content)["files"]:
        path = folder / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        team.s3.download_file(bucket, prefix + entry["path"], str(path))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        files[entry["path"]] = path
    listed = team.s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert {entry["Key"].removeprefix(prefix) for entry in listed} == {*files, "manifest.json"}
    return files


def by_other_code(model: Path, text: Path) -> float:
    """Return the perplexity as a person computes it with llama-cpp-python."""
    command = [sys.executable, "-m", "tests.bench.by_hand", "perplexity"]
    done = subprocess.run(
        [*command, str(model), str(text), str(TOKENS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def test_a_manifest_becomes_an_artifact_that_is_what_its_status_says(
    team: Team, tmp_path: Path
) -> None:
    body = team.manifest()
    name = team.apply(body)
    status = team.wait(name)
    digest = run_digest(read_manifest(body).spec)
    assert status["run"]["digest"] == digest
    assert status["artifact"]["uri"] == f"s3://{team.bucket}/out/{name}/{digest}/"
    files = downloaded(team, status, tmp_path)
    text = tmp_path / "held-out.txt"
    text.write_text(_held_out())
    assert [variant["name"] for variant in status["variants"]] == ["Q5_K_M", "Q4_K_M"]
    for variant in status["variants"]:
        file = files[variant["uri"].rpartition("/")[2]]
        assert variant["gatesPassed"] is True
        assert hashlib.sha256(file.read_bytes()).hexdigest() == variant["sha256"]
        assert float(variant["perplexity"]) == pytest.approx(by_other_code(file, text), rel=0.005)
    words = team.cluster.kubectl("describe", "qj", name, f"--namespace={team.namespace.name}")
    assert "Published" in words.stdout


def test_an_operator_pod_that_is_killed_in_the_middle_of_a_run_changes_nothing(
    team: Team, tmp_path: Path
) -> None:
    name = team.apply(team.manifest(gguf={"types": ["Q8_0"]}))
    team.namespace.reaches("Running", name=name, seconds=120)
    label = "--selector=app.kubernetes.io/component=operator"
    words = ("delete", "pod", label, SYSTEM, "--grace-period=0", "--force")
    team.cluster.kubectl(*words)
    status = team.wait(name)
    assert status["run"]["attempts"] == 1
    assert len(team.namespace.jobs()) == 1
    files = downloaded(team, status, tmp_path)
    (variant,) = status["variants"]
    text = tmp_path / "held-out.txt"
    text.write_text(_held_out())
    measured = by_other_code(files[variant["uri"].rpartition("/")[2]], text)
    assert float(variant["perplexity"]) == pytest.approx(measured, rel=0.005)


def test_the_same_manifest_applied_after_its_resource_was_deleted_publishes_nothing_again(
    team: Team,
) -> None:
    body = team.manifest(gguf={"types": ["Q8_0"]})
    name = team.apply(body)
    first = team.wait(name)
    where = f"--namespace={team.namespace.name}"
    team.cluster.kubectl("delete", "qj", name, where)
    team.apply(body)
    status = team.namespace.reaches("AlreadyPublished", name=name, seconds=120)
    assert status["artifact"] == first["artifact"]
    assert status["variants"], "the numbers of the artifact that is there"


@pytest.mark.parametrize(
    ("asked", "image", "engine", "words"),
    [
        pytest.param(
            {"method": "AWQ"},
            "gptqmodel",
            "gptqmodel",
            {"quant_method": "awq", "version": "gemm"},
            id="AWQ",
        ),
    ],
)
def test_a_method_with_another_image_runs_as_a_pod_of_that_image(  # noqa: PLR0917 - a table's row
    team: Team,
    tmp_path: Path,
    asked: dict[str, Any],
    image: str,
    engine: str,
    words: dict[str, str],
) -> None:
    body = team.manifest(
        device="CPU",
        calibration={"samples": 16, "sequenceLength": 256},
        gates=[{"metric": "PerplexityIncreasePercent", "max": "10.0"}],
        **asked,
    )
    status = team.wait(team.apply(body))
    assert f"/{image}:" in status["resolved"]["image"]
    assert status["resolved"]["engine"].startswith(engine)
    files = downloaded(team, status, tmp_path)
    written = json.loads(files["config.json"].read_text())["quantization_config"]
    assert {name: written[name] for name in words} == words
    (variant,) = status["variants"]
    assert variant["gatesPassed"] is True
    assert float(variant["sizeReductionPercent"]) > 50


def gated(team: Team, name: str, spec: dict[str, Any]) -> str:
    """Apply a manifest with gates on every metric; return its name."""
    for file in (path for path in TASKS.rglob("*") if path.is_file()):
        team.s3.upload_file(str(file), team.bucket, f"tasks/{file.relative_to(TASKS)}")
    evaluation = {**spec["evaluation"], "taskFiles": team.folder("tasks")}
    body = team.manifest(**{**spec, "evaluation": evaluation})
    body["metadata"]["name"] = name
    return team.apply(body)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_gates_of_every_metric_hold_fail_and_let_a_run_escalate_in_pods(
    team: Team, tmp_path: Path, case: GateCase
) -> None:
    # Side by side: most of such a short run is one thread's imports.
    gated(team, "escalating", case.escalating())
    gated(team, "failing", case.failing())

    status = team.wait("escalating")
    (variant,) = status["variants"]
    first, second = status["escalation"]
    assert f"/{case.image}:" in status["resolved"]["image"]
    assert status["resolved"]["engine"].startswith(case.engine)
    assert (first["setting"], second["setting"]) == case.settings
    assert (first["gatesPassed"], second["gatesPassed"]) == (False, True)
    assert first["missed"].startswith(
        f"spec.gates[0]: {first['variant']}: {next(iter(case.between))}"
    )
    assert "does not hold, by " in first["missed"]
    assert variant["gatesPassed"] is True
    files = downloaded(team, status, tmp_path)
    held = of_metrics(json.loads(files["report.json"].read_text())["gates"])
    assert {metric for metric, one in held.items() if one["passed"]} == set(Metric)
    if case.format:
        config = json.loads(files["config.json"].read_text())
        assert config["quantization_config"]["quant_method"] == case.format

    status = team.namespace.reaches("GateFailed", name="failing", seconds=SECONDS)
    (variant,) = status["variants"]
    failure, folder = status["failure"], f"out/failing/{status['run']['digest']}.failed/"
    assert status["phase"] == "Failed"
    assert "artifact" not in status
    assert variant["gatesPassed"] is False
    assert failure["message"].startswith(f"spec.gates[0]: {variant['name']}: SizeBytes is ")
    assert ": does not hold, by " in failure["message"]
    assert failure["reportUri"] == f"s3://{team.bucket}/{folder}report.json"
    listed = team.s3.list_objects_v2(Bucket=team.bucket, Prefix="out/failing/")["Contents"]
    assert {one["Key"] for one in listed} == {f"{folder}report.json", f"{folder}report.html"}
    told = json.loads(
        team.s3.get_object(Bucket=team.bucket, Key=f"{folder}report.json")["Body"].read()
    )
    missed = of_metrics(told["gates"])
    assert set(missed) == set(Metric)
    assert all(not one["passed"] and float(one["margin"]) < 0 for one in missed.values())


def test_a_student_learns_in_a_pod_and_goes_on_in_another_when_that_is_killed(
    team: Team, tmp_path: Path
) -> None:
    learning = {"student": {"keepLayers": 2}, "steps": 150, "learningRate": "0.002"}
    body = team.manifest(
        method="Distill",
        device="CPU",
        distill={**learning, "batchSize": 4, "checkpointSeconds": 1},
        calibration={"sequenceLength": 128},
        gates=[],
    )
    name = team.apply(body)
    where = f"--namespace={team.namespace.name}"

    def keys(part: str) -> list[str]:
        listed = team.s3.list_objects_v2(Bucket=team.bucket, Prefix="out/").get("Contents", ())
        return [entry["Key"] for entry in listed if part in entry["Key"]]

    deadline = time.monotonic() + SECONDS
    while not keys(".checkpoints/step-"):
        status = team.namespace.status(name)
        assert status.get("phase") not in {"Failed", "Succeeded"}, status
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    first = team.namespace.status(name)["run"]["podName"]
    team.cluster.kubectl("delete", "pod", first, where, "--grace-period=0", "--force")

    status = team.wait(name)
    assert status["run"]["podName"] != first
    assert "/transformers:" in status["resolved"]["image"]
    assert status["resolved"]["engine"].startswith("accelerate")
    files = downloaded(team, status, tmp_path)
    (variant,) = json.loads(files["report.json"].read_text())["variants"]
    detail = variant["distillationDetail"]
    assert detail["resumedAt"][0] > 0
    assert float(variant["perplexity"]) < 0.7 * float(detail["untrained"]["perplexity"])
    assert float(variant["sizeReductionPercent"]) > 30
    assert keys(".checkpoints/") == []


def test_a_model_is_pruned_in_one_pod_and_quantized_in_the_next(team: Team, tmp_path: Path) -> None:
    short = {"device": "CPU", "calibration": {"samples": 16, "sequenceLength": 256}}
    first = team.manifest(method="Prune", gates=[], **short)
    pruned = team.wait(team.apply(first))
    assert "/llmcompressor:" in pruned["resolved"]["image"]
    assert pruned["resolved"]["engine"].startswith("llmcompressor")
    report = json.loads(downloaded(team, pruned, tmp_path / "pruned")["report.json"].read_text())
    assert float(report["variants"][0]["sparsityDetail"]["percent"]) == pytest.approx(50, abs=0.1)

    second = team.manifest(method="INT4", gates=[], **short)
    second["metadata"]["name"] = "pruned-int4"
    second["spec"]["model"]["uri"] = pruned["artifact"]["uri"].rstrip("/")
    quantized = team.wait(team.apply(second))
    files = downloaded(team, quantized, tmp_path / "quantized")
    told = json.loads(files["provenance.json"].read_text())["predicate"]["buildDefinition"]
    assert [one["method"] for one in told["internalParameters"]["before"]] == ["Prune"]
    assert [one["method"] for one in told["internalParameters"]["made"]] == ["INT4"]
