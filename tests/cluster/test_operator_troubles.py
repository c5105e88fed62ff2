"""What goes wrong on a real cluster, and what the status then says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.cluster.watched import acts, condition, digest_of, manifest
from tests.controller.builders import failed, published

from kubequant.api.outcome import ExitCode, FailureReason

if TYPE_CHECKING:
    from tests.cluster.watched import Body, Namespace
    from tests.testbed.access import Access
    from tests.testbed.cluster import Cluster


def said(code: ExitCode, reason: FailureReason, words: str) -> str:
    """Return the spec of a stand-in that ends as a worker which reports a failure."""
    return acts(message=failed(digest_of(), code, reason, words), exit=str(int(code)))


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        pytest.param(
            ExitCode.BAD_REQUEST,
            FailureReason.UNSUPPORTED_MODEL,
            "model.uri: no converter for FancyForCausalLM",
            id="what the worker cannot do",
        ),
        pytest.param(
            ExitCode.GATE_FAILED,
            FailureReason.GATE_FAILED,
            "gates: PerplexityIncreasePercent of Q4_K_M is 7.3, at most 2.0",
            id="a gate that does not hold",
        ),
        pytest.param(
            ExitCode.ACCESS,
            FailureReason.ACCESS_DENIED,
            "output.uri: s3://bucket/prefix: access denied",
            id="a bucket without access",
        ),
    ],
)
def test_a_failure_that_another_pod_cannot_mend_is_not_tried_again(
    team: Namespace, code: ExitCode, reason: FailureReason, words: str
) -> None:
    team.apply(said(code, reason, words))
    status = team.reaches(reason.value)
    assert status["phase"] == "Failed"
    assert status["failure"]["message"] == words
    assert status["failure"]["exitCode"] == int(code)
    assert status["failure"]["retryable"] is False
    assert status["run"]["attempts"] == 1
    assert condition(status, "Stalled")["status"] == "True"
    assert len(team.pods()) == 1
    (event,) = team.wait(lambda: team.events(reason.value), bool)
    assert event["type"] == "Warning"
    assert words in event["note"]


def test_what_a_retry_may_mend_is_tried_again_until_the_backoff_limit(team: Namespace) -> None:
    words = "the store answered 503"
    spec = said(ExitCode.UNAVAILABLE, FailureReason.UNAVAILABLE, words)
    team.apply(f"backoffLimit: 1, {spec}")
    retrying = team.reaches("Retrying")
    assert retrying["failure"]["message"] == words
    assert condition(retrying, "Reconciling")["message"].startswith("Attempt 1 of 2 failed")
    status = team.reaches("BackoffLimitExceeded", seconds=90)
    assert status["run"]["attempts"] == 2
    assert words in condition(status, "Failed")["message"]


def test_a_pod_that_is_killed_without_a_report_shows_its_last_lines(team: Namespace) -> None:
    team.apply(f"backoffLimit: 0, {acts(print='layer 14 of 32', exit='137')}")
    failure = team.reaches("BackoffLimitExceeded")["failure"]
    assert failure["exitCode"] == 137
    assert "layer 14 of 32" in failure["message"]


def test_a_container_that_takes_too_much_memory_is_told_so(team: Namespace) -> None:
    team.apply(acts(megabytes="500"))
    status = team.reaches("OutOfMemory")
    assert status["failure"]["reason"] == "OutOfMemory"
    assert "64Mi" in status["failure"]["message"]
    assert status["run"]["attempts"] == 1, "another pod of the same size is of no use"


def _one_pod(team: Namespace) -> str:
    (pod,) = team.wait(team.pods, lambda pods: len(pods) == 1)
    return str(pod["metadata"]["name"])


def test_a_pod_that_is_deleted_is_run_again_and_does_not_count(team: Namespace) -> None:
    message = published(digest_of())
    team.apply(f"backoffLimit: 0, {acts(message=message, seconds='10')}")
    team.reaches("Running")
    team.delete_pod(_one_pod(team))
    status = team.reaches("Published")
    assert status["run"]["attempts"] == 2
    assert "failure" not in status


def test_a_pod_that_is_evicted_is_run_again_and_does_not_count(team: Namespace) -> None:
    message = published(digest_of())
    team.apply(f"backoffLimit: 0, {acts(message=message, seconds='10', stubborn='yes')}")
    team.reaches("Running")
    name = _one_pod(team)
    eviction: Body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": team.name},
        "deleteOptions": {"gracePeriodSeconds": 1},
    }
    where = f"/api/v1/namespaces/{team.name}/pods/{name}/eviction"
    team.api.request("POST", where, eviction).object()
    team.reaches("Disrupted", "Pending", "Running")
    status = team.reaches("Published")
    assert status["run"]["attempts"] == 2


@pytest.mark.own_cluster
def test_a_pod_on_a_node_that_does_not_answer_is_said_to_be_on_one(
    team: Namespace, cluster: Cluster
) -> None:
    team.apply(f"backoffLimit: 0, {acts(message=published(digest_of()), seconds='5')}")
    team.reaches("Running")
    cluster.stop("kubelet")
    try:
        where = f"/api/v1/namespaces/{team.name}/pods/{_one_pod(team)}"
        team.api.request("DELETE", where, {"gracePeriodSeconds": 1}).object()
        message = condition(team.reaches("Disrupted"), "Ready")["message"]
        assert "on node node-1 is being deleted. Another follows when it is gone" in message
        words = "its node does not answer, or a finalizer keeps the pod"
        team.wait(
            lambda: condition(team.status(), "Ready")["message"],
            lambda message: words in message,
            seconds=90,
        )
    finally:
        cluster.start("kubelet")
    assert team.reaches("Published", seconds=180)["phase"] == "Succeeded"


def test_a_job_that_is_deleted_by_hand_is_made_again(team: Namespace) -> None:
    team.apply(acts(seconds="60"))
    team.reaches("Running")
    before = team.job()["metadata"]
    team.delete_job(before["name"])

    def is_another(jobs: list[Body]) -> bool:
        return [job["metadata"]["uid"] for job in jobs] not in ([], [before["uid"]])

    team.wait(team.jobs, is_another)
    team.reaches("Running")


def test_a_job_of_that_name_of_somebody_else_is_left_alone(team: Namespace) -> None:
    name = f"tiny-{digest_of()}"
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "suspend": True,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "other", "image": "other"}],
                }
            },
        },
    }
    where = f"/apis/batch/v1/namespaces/{team.name}/jobs"
    uid = team.api.request("POST", where, job).object()["metadata"]["uid"]
    team.apply(acts(seconds="60"))
    status = team.reaches("JobNameTaken")
    assert name in condition(status, "Stalled")["message"]
    assert team.job()["metadata"]["uid"] == uid


def test_a_pod_that_no_node_takes_shows_the_schedulers_reason_and_an_edit_mends_it(
    team: Namespace,
) -> None:
    team.apply(
        "pod: {nodeSelector: {disk: fast}, "
        f"env: [{{name: ACT_MESSAGE, value: '{published(digest_of())}'}}]}}"
    )
    status = team.reaches("Unschedulable")
    assert "didn't match Pod's node affinity/selector" in condition(status, "Ready")["message"]
    assert status["phase"] == "Pending"
    (event,) = team.wait(lambda: team.events("Unschedulable"), bool)
    assert event["type"] == "Warning"
    where = f"/apis/kubequant.dev/v1alpha1/namespaces/{team.name}/quantizationjobs/tiny"
    patch = [{"op": "remove", "path": "/spec/pod/nodeSelector"}]
    team.api.request("PATCH", where, patch, "application/json-patch+json").object()
    team.reaches("Published")


def test_a_gpu_that_no_node_has_is_said_so(team: Namespace) -> None:
    team.apply("method: INT8")
    message = condition(team.reaches("Unschedulable"), "Ready")["message"]
    assert "Insufficient nvidia.com/gpu" in message


def test_a_namespace_that_forbids_the_job_says_so_in_the_servers_words(
    team: Namespace, cluster: Access
) -> None:
    quota = ("create", "quota", "none", "--hard=count/jobs.batch=0", f"--namespace={team.name}")
    cluster.kubectl(*quota)
    team.wait(
        lambda: team.api.request("GET", f"/api/v1/namespaces/{team.name}/resourcequotas/none"),
        lambda answer: "hard" in answer.object().get("status", {}),
    )
    team.apply()
    status = team.reaches("JobRejected")
    assert "exceeded quota: none" in condition(status, "Ready")["message"]


def quota_on_pods(team: Namespace, cluster: Access) -> None:
    """Let the namespace take Jobs and no pod."""
    quota = ("create", "quota", "none", "--hard=pods=0", f"--namespace={team.name}")
    cluster.kubectl(*quota)
    team.wait(
        lambda: team.api.request("GET", f"/api/v1/namespaces/{team.name}/resourcequotas/none"),
        lambda answer: "hard" in answer.object().get("status", {}),
    )


def test_a_namespace_that_forbids_the_pod_says_so_in_the_servers_words(
    team: Namespace, cluster: Access
) -> None:
    quota_on_pods(team, cluster)
    team.apply(acts(message=published(digest_of())))
    status = team.reaches("PodRejected")
    message = condition(status, "Ready")["message"]
    assert f'pods "tiny-{digest_of()}-…" is forbidden: exceeded quota: none' in message
    assert (status["phase"], len(team.jobs()), team.pods()) == ("Pending", 1, [])
    (event,) = team.wait(lambda: team.events("PodRejected"), bool)
    assert event["type"] == "Warning"
    assert "exceeded quota: none" in event["note"]
    cluster.kubectl("delete", "quota", "none", f"--namespace={team.name}")
    team.reaches("Published", seconds=120)


def test_a_priority_class_that_is_not_there_is_said_and_an_edit_mends_it(team: Namespace) -> None:
    team.apply("pod: {priorityClassName: high}")
    message = condition(team.reaches("PodRejected"), "Ready")["message"]
    assert "no PriorityClass with name high was found" in message
    team.change(f"pod: {{priorityClassName: '', {acts(message=published(digest_of()))[6:-1]}}}")
    team.reaches("Published")


def test_both_deadlines_end_a_run(team: Namespace) -> None:
    team.apply(f"activeDeadlineSeconds: 60, {acts(seconds='600')}", name="slow")
    team.apply("pendingDeadlineSeconds: 60, pod: {nodeSelector: {disk: fast}}", name="lost")
    slow = team.reaches("DeadlineExceeded", name="slow", seconds=100)
    assert "activeDeadlineSeconds 60" in slow["failure"]["message"]
    lost = team.reaches("PendingDeadlineExceeded", name="lost", seconds=100)
    assert "didn't match Pod's node affinity/selector" in lost["failure"]["message"]
    team.wait(team.jobs, lambda jobs: not jobs, seconds=60)


def test_a_resource_of_a_newer_version_is_a_condition_and_no_crash(
    team: Namespace, cluster: Access, definition: str
) -> None:
    where = (
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/backoffLimit/maximum"
    )

    def allow(limit: int) -> None:
        patch = f'[{{"op": "replace", "path": "{where}", "value": {limit}}}]'
        cluster.kubectl("patch", definition, "--type=json", f"--patch={patch}")

    allow(1000)
    try:
        body = team.wait(
            lambda: team.api.request(
                "POST",
                f"/apis/kubequant.dev/v1alpha1/namespaces/{team.name}/quantizationjobs",
                manifest("backoffLimit: 500"),
            ),
            lambda answer: answer.status == 201,
        )
        assert body.object()["spec"]["backoffLimit"] == 500
        status = team.reaches("InvalidSpec")
        assert "spec.backoffLimit" in condition(status, "Failed")["message"]
        assert not team.jobs()
        team.apply(acts(message=published(digest_of())), name="other")
        team.reaches("Published", name="other")
    finally:
        team.delete()
        allow(10)
