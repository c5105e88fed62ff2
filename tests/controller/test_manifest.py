"""The Job of a run: the whole of it as golden files, and what must hold for every one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubernetes.aio.client import V1Job
from tests.api.good import GOOD
from tests.controller.builders import SETTINGS, START
from tests.controller.golden import FOLDER, LISTED, SPECS, generated, order_of

from kubequant.api.contract import RunRequest
from kubequant.api.enums import Method
from kubequant.api.pod import ResourceRequirements
from kubequant.controller.manifest import as_body, template_digest, worker_job

ORDERS = {name: order_of(spec, LISTED) for name, spec in SPECS.items()}


def body_of(spec: str = "", **settings: Any) -> dict[str, Any]:
    changed = SETTINGS.model_copy(update=settings)
    return as_body(worker_job(order_of(spec, changed), changed))


def pod_of(body: dict[str, Any]) -> dict[str, Any]:
    return dict(body["spec"]["template"]["spec"])


def container_of(body: dict[str, Any]) -> dict[str, Any]:
    return dict(pod_of(body)["containers"][0])


@pytest.mark.parametrize("name", sorted(generated()))
def test_a_job_is_what_the_golden_file_says(name: str) -> None:
    assert (FOLDER / name).read_text() == generated()[name]


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(generated())


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_job_reads_back_as_it_was_written(order: Any) -> None:
    body = as_body(worker_job(order, SETTINGS))
    read = V1Job.model_validate(body)
    assert as_body(read) == body
    assert json.loads(json.dumps(body)) == body


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_pod_is_restricted_and_has_no_token(order: Any) -> None:
    pod = pod_of(as_body(worker_job(order, SETTINGS)))
    container = pod["containers"][0]
    security = container["securityContext"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    kinds = {next(key for key in volume if key != "name") for volume in pod["volumes"]}
    assert kinds <= {"emptyDir", "ephemeral", "persistentVolumeClaim", "secret"}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_requests_are_always_set(order: Any) -> None:
    resources = container_of(as_body(worker_job(order, SETTINGS)))["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"])
    assert set(resources.get("limits", {})) <= set(resources["requests"])


def test_what_the_worker_is_told_is_read_by_the_worker() -> None:
    body = body_of("evaluation: {generations: {prompts: ['costs $(HOME) or $5?']}}")
    env = {item["name"]: item["value"] for item in container_of(body)["env"]}
    # The kubelet makes one $ of two, and looks for $(NAME) otherwise.
    assert "$$(HOME)" in env["KUBEQUANT_RUN"]
    request = RunRequest.from_json(env["KUBEQUANT_RUN"].replace("$$", "$"))
    assert request.spec.evaluation.generations.prompts == ("costs $(HOME) or $5?",)
    assert request.spec.method is Method.GGUF
    assert request.image == container_of(body)["image"]
    assert body["metadata"]["name"] == f"tiny-{request.digest}"


def test_the_worker_is_told_no_name_of_a_secret() -> None:
    text = json.dumps(container_of(body_of("model: {secretRef: {name: my-token}}"))["env"])
    assert "my-token" not in text


def test_a_secret_is_mounted_with_its_known_keys_and_none_must_be_there() -> None:
    body = body_of("model: {secretRef: {name: my-token}}")
    volume = next(v for v in pod_of(body)["volumes"] if v["name"] == "credentials-model")
    assert volume["secret"]["secretName"] == "my-token"
    assert volume["secret"]["optional"] is True
    assert [item["key"] for item in volume["secret"]["items"]] == [
        "HF_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    ]
    mount = next(m for m in container_of(body)["volumeMounts"] if m["name"] == volume["name"])
    assert mount["readOnly"] is True
    assert mount["mountPath"] == "/var/run/kubequant/credentials/model"


@pytest.mark.parametrize(
    ("student", "mounts"),
    [
        pytest.param("uri: 'pvc://students/small'", {"/volumes/students"}, id="a claim"),
        pytest.param(
            "uri: 'hf://owner/small', secretRef: {name: my-token}",
            {"/var/run/kubequant/credentials/student"},
            id="a Secret",
        ),
    ],
)
def test_a_student_s_claim_and_secret_are_mounted_for_reading(
    student: str, mounts: set[str]
) -> None:
    body = body_of(f"method: Distill, distill: {{student: {{{student}}}}}")
    found = {one["mountPath"]: one.get("readOnly") for one in container_of(body)["volumeMounts"]}
    assert dict.fromkeys(mounts, True).items() <= found.items()
    assert "my-token" not in json.dumps(container_of(body)["env"])


def test_a_claim_has_one_volume_and_is_read_only_unless_it_is_written() -> None:
    read_only = "model: {uri: 'pvc://models/a'}, calibration: {dataset: {uri: 'pvc://models/b'}}"
    (claim,) = [v for v in pod_of(body_of(read_only))["volumes"] if "persistentVolumeClaim" in v]
    assert claim["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    written = body_of("model: {uri: 'pvc://models/a'}, output: {uri: 'pvc://models/b'}")
    (claim,) = [v for v in pod_of(written)["volumes"] if "persistentVolumeClaim" in v]
    assert claim["persistentVolumeClaim"] == {"claimName": "models"}
    (mount,) = [m for m in container_of(written)["volumeMounts"] if m["name"] == claim["name"]]
    assert mount == {"name": claim["name"], "mountPath": "/volumes/models"}


DEFAULTS = ResourceRequirements(
    requests={"cpu": "2", "memory": "8Gi"}, limits={"cpu": "4", "memory": "8Gi"}
)


@pytest.mark.parametrize(
    ("spec", "requests", "limits"),
    [
        pytest.param(
            "",
            {"cpu": "2", "memory": "8Gi"},
            {"cpu": "4", "memory": "8Gi"},
            id="the administrator's defaults where the spec is silent",
        ),
        pytest.param(
            "pod: {resources: {requests: {memory: 32Gi}}}",
            {"cpu": "2", "memory": "32Gi"},
            {"cpu": "4"},
            id="no default limit below what is asked for",
        ),
        pytest.param(
            "pod: {resources: {limits: {memory: 32Gi}}}",
            {"cpu": "2", "memory": "32Gi"},
            {"cpu": "4", "memory": "32Gi"},
            id="a limit is requested too",
        ),
        pytest.param(
            "method: GPTQ",
            {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"},
            {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "1"},
            id="one GPU where the device is one",
        ),
        pytest.param(
            "method: GPTQ, pod: {resources: {limits: {amd.com/gpu: '2'}}}",
            {"cpu": "2", "memory": "8Gi", "amd.com/gpu": "2"},
            {"cpu": "4", "memory": "8Gi", "amd.com/gpu": "2"},
            id="no other GPU beside the one that is named",
        ),
        pytest.param(
            "method: TensorRT, tensorRT: {tensorParallel: 4}",
            {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "4"},
            {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "4"},
            id="a GPU for each part of an engine",
        ),
        pytest.param(
            "method: TensorRT, tensorRT: {build: Checkpoint}, device: CPU",
            {"cpu": "2", "memory": "8Gi"},
            {"cpu": "4", "memory": "8Gi"},
            id="no GPU for a checkpoint that is made on a CPU",
        ),
    ],
)
def test_resources(spec: str, requests: dict[str, str], limits: dict[str, str]) -> None:
    body = body_of(spec, cpu_resources=DEFAULTS, gpu_resources=DEFAULTS)
    assert container_of(body)["resources"] == {"requests": requests, "limits": limits}


@pytest.mark.parametrize(
    ("spec", "selector"),
    [
        pytest.param("method: TensorRT", None, id="any node for an engine of any GPU"),
        pytest.param(
            "method: TensorRT, tensorRT: {gpuProduct: NVIDIA-L4}",
            {"nvidia.com/gpu.product": "NVIDIA-L4"},
            id="a node with the GPU that an engine is for",
        ),
        pytest.param(
            "method: TensorRT, tensorRT: {gpuProduct: NVIDIA-L4}, pod: {nodeSelector: {zone: a}}",
            {"zone": "a", "nvidia.com/gpu.product": "NVIDIA-L4"},
            id="beside what the user asks of a node",
        ),
    ],
)
def test_an_engine_is_built_on_the_gpu_that_it_is_for(
    spec: str, selector: dict[str, str] | None
) -> None:
    assert pod_of(body_of(spec)).get("nodeSelector") == selector


@pytest.mark.parametrize(
    ("spec", "is_another"),
    [
        ("activeDeadlineSeconds: 60", False),
        ("pendingDeadlineSeconds: 60", False),
        ("ttlSecondsAfterFinished: 60", False),
        ("suspend: true", False),
        ("backoffLimit: 3", True),
        ("pod: {nodeSelector: {zone: a}}", True),
        ("gguf: {types: [Q8_0]}", True),
    ],
)
def test_the_template_digest_tells_what_a_job_is_made_from(spec: str, *, is_another: bool) -> None:
    digests = [worker_job(order_of(one), SETTINGS).spec for one in ("", spec)]
    first, second = (template_digest(one) for one in digests if one)
    assert (first != second) is is_another


def test_the_cluster_may_choose_the_user() -> None:
    security = pod_of(body_of(run_as_user=0))["securityContext"]
    assert security == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.mark.parametrize(
    "good",
    [one for one in GOOD if not one.local_only and "GGUF" in str(one.manifest["spec"])],
    ids=lambda one: one.id,
)
def test_every_good_manifest_makes_a_job(good: Any) -> None:
    spec = good.spec
    allowed = {
        "allowed_service_accounts": ("worker",),
        "allowed_env": ("HF_ENDPOINT",),
        "allowed_annotations": (*SETTINGS.allowed_annotations, "example.com/*"),
    }
    if good.manifest["spec"]["method"] != "GGUF":
        return
    body = body_of(spec, **allowed)
    assert as_body(V1Job.model_validate(body)) == body
    assert START
