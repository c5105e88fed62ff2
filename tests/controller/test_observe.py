"""What is read from bodies, also where a pod lies, a body is old, new or half there."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.controller.builders import START, at, failed, published, resource_body
from tests.controller.world import World

from kubequant.api.outcome import ExitCode, FailureReason
from kubequant.controller.failures import ADVICE, failure_of, worker_said
from kubequant.controller.observe import observe, read_job, read_pod, read_resource
from kubequant.controller.pods import PodState, PodView
from kubequant.controller.reasons import Reason

DIGEST = "9f2c41aa"


def pod_body(status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "creationTimestamp": at(START), **metadata},
        "spec": {"containers": [{"name": "worker"}], "nodeName": "node-1"},
        "status": status,
    }


def container(state: dict[str, Any], name: str = "worker") -> dict[str, Any]:
    return {
        "name": name,
        "image": "i",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    terminated = {"exitCode": code, "message": message, "reason": reason, "finishedAt": at(START)}
    phase = "Failed" if code else "Succeeded"
    return {"phase": phase, "containerStatuses": [container({"terminated": terminated})]}


def disruption(reason: str, status: str = "True") -> dict[str, Any]:
    return {"type": "DisruptionTarget", "status": status, "reason": reason, "message": "m"}


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available",
}


@pytest.mark.parametrize(
    ("status", "state", "why"),
    [
        pytest.param({}, PodState.PENDING, "", id="a pod that nobody has looked at"),
        pytest.param({"phase": "Pending", "conditions": None, "containerStatuses": None},
                     PodState.PENDING, "", id="lists that are null"),
        pytest.param({"phase": "Pending", "conditions": [UNSCHEDULABLE]},
                     PodState.UNSCHEDULABLE, "0/3 nodes are available", id="no node takes it"),
        pytest.param({"phase": "Pending", "containerStatuses": [
            container({"waiting": {"reason": "ContainerCreating"}})]},
            PodState.PENDING, "ContainerCreating", id="its container is being created"),
        *(pytest.param({"phase": "Pending", "containerStatuses": [
            container({"waiting": {"reason": reason, "message": "m"}})]},
            PodState.IMAGE_NOT_FOUND, f"{reason}: m", id=f"its image cannot be had: {reason}")
          for reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")),
        pytest.param({"phase": "Pending", "containerStatuses": [
            container({"waiting": {"reason": "CreateContainerConfigError", "message": "m"}})]},
            PodState.CANNOT_START, "CreateContainerConfigError: m", id="it cannot be created"),
        pytest.param({"phase": "Running", "containerStatuses": [
            container({"running": {"startedAt": at(START)}})]},
            PodState.RUNNING, "", id="it runs"),
        pytest.param({**ended(0), "phase": "Running"}, PodState.WORKER_ENDED,
                     "none that it names", id="its worker ended, and its phase says it later"),
        pytest.param({"phase": "Running", "containerStatuses": [
            container({"terminated": {"exitCode": 10}}),
            container({"running": {"startedAt": at(START)}}, name="proxy")]},
            PodState.WORKER_ENDED, "proxy", id="its worker ended and another goes on"),
        pytest.param(ended(0), PodState.SUCCEEDED, "", id="it ended well"),
        pytest.param(ended(10), PodState.FAILED, "", id="it failed"),
        pytest.param(ended(30), PodState.DISRUPTED, "the worker was told to stop",
                     id="it was told to stop"),
        *(pytest.param({**ended(137), "conditions": [disruption(reason)]},
                       PodState.DISRUPTED, f"{reason}: m", id=f"it was disrupted: {reason}")
          for reason in ("EvictionByEvictionAPI", "PreemptionByScheduler", "DeletionByPodGC",
                         "DeletionByTaintManager", "TerminationByKubelet")),
        pytest.param({**ended(137), "conditions": [disruption("x", "False")]},
                     PodState.FAILED, "", id="a disruption that did not come to pass"),
        pytest.param({"phase": "Failed", "reason": "NodeLost", "message": "m"},
                     PodState.FAILED, "NodeLost: m", id="it failed without a container"),
        pytest.param({"phase": "Failed", "containerStatuses": [
            container({"terminated": {"exitCode": 0}}, name="sidecar")]},
            PodState.FAILED, "", id="another container's end is not the worker's"),
    ],
)  # fmt: skip
def test_a_pod_is_in_one_state(status: dict[str, Any], state: PodState, why: str) -> None:
    pod = read_pod(pod_body(status))
    assert (pod.state, pod.why) == (state, why)


def test_fields_of_a_newer_server_are_passed_over() -> None:
    body = pod_body({"phase": "Running", "mood": {"good": True}}, colour="red")
    assert read_pod({**body, "spec": {**body["spec"], "warp": 9}}).name == "p"


def told(message: str, code: int = 0) -> PodView:
    return read_pod(pod_body(ended(code, message)))


BOMB = "z:" + base64.b85encode(zlib.compress(b" " * 50_000_000, 9)).decode()


@pytest.mark.parametrize(
    ("message", "code", "problem"),
    [
        pytest.param("", 0, "left no report", id="nothing"),
        pytest.param("Killed\n", 1, "left no report", id="the end of a log"),
        pytest.param("z:%%%", 0, "damaged", id="damaged"),
        pytest.param(BOMB[:4096], 0, "cut, damaged", id="a bomb, cut"),
        pytest.param(BOMB, 0, "longer than 4096", id="a bomb"),
        pytest.param("z:" + base64.b85encode(zlib.compress(b"[" * 200_000)).decode(), 0,
                     "is no report", id="brackets without end"),
        pytest.param("[" * 4000, 0, "is no report", id="plain brackets"),
        pytest.param("x" * 100_000, 0, "longer than 4096", id="far too long"),
        pytest.param("null", 0, "is no report", id="null"),
        pytest.param('{"digest": 1e999}', 0, "is no report", id="numbers that are none"),
        pytest.param(published("00000000"), 0, "another run", id="a report of another run"),
        pytest.param(published(DIGEST), 1, "exit code", id="a success that Kubernetes denies"),
        pytest.param(
            failed(DIGEST, ExitCode.UNAVAILABLE, FailureReason.UNAVAILABLE, "m"),
            10, "exit code", id="an exit code that is another"),
    ],
)  # fmt: skip
def test_a_report_is_not_believed_when_it_cannot_be(message: str, code: int, problem: str) -> None:
    said = worker_said(told(message, code), DIGEST)
    assert said.report is None
    assert problem in said.problem
    assert len(said.problem) < 600


@given(st.text(max_size=5000), st.integers(-(2**31), 2**31))
def test_any_message_and_any_exit_code_make_a_failure(message: str, code: int) -> None:
    failure = failure_of(told(message, code or 1), DIGEST)
    assert len(failure.message) <= 1024
    assert "\x00" not in failure.message
    # The status that holds it can be written and read.
    assert type(failure).model_validate_json(failure.model_dump_json()) == failure


def test_a_token_in_the_last_lines_is_not_shown() -> None:
    failure = failure_of(told("Traceback: bad token hf_abcdefghijklmnop\x1b[0m", 1), DIGEST)
    assert "hf_abcdefghijklmnop" not in failure.message
    assert "hf_…" in failure.message
    assert "\x1b" not in failure.message


@pytest.mark.parametrize(
    ("code", "reason", "is_retryable"),
    [
        (1, FailureReason.INTERNAL_ERROR, True),
        (10, FailureReason.INVALID_SPEC, False),
        (11, FailureReason.GATE_FAILED, False),
        (12, FailureReason.ACCESS_DENIED, False),
        (20, FailureReason.UNAVAILABLE, True),
        (21, FailureReason.OUT_OF_MEMORY, False),
        (137, FailureReason.INTERRUPTED, True),
        (139, FailureReason.INTERNAL_ERROR, True),
    ],
)
def test_an_exit_code_without_a_report(
    code: int, reason: FailureReason, *, is_retryable: bool
) -> None:
    failure = failure_of(told("", code), DIGEST)
    assert (failure.reason, failure.retryable) == (reason, is_retryable)
    assert failure.exit_code == code


def test_a_pod_cannot_make_its_failure_worth_another_try() -> None:
    message = failed(DIGEST, ExitCode.BAD_REQUEST, FailureReason.INVALID_SPEC, "m")
    claimed = json.loads(message)
    claimed["failure"]["retryable"] = True
    assert not failure_of(told(json.dumps(claimed), 10), DIGEST).retryable


def test_every_failure_has_advice_and_is_a_reason() -> None:
    assert set(ADVICE) == set(FailureReason)
    assert {reason.value for reason in FailureReason} <= {reason.value for reason in Reason}


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({"phase": "Flying"}, id="an unknown word"),
        pytest.param("none", id="no object"),
        pytest.param({"conditions": [{}]}, id="a condition without anything"),
        pytest.param({"history": [{"digest": "x"}] * 99}, id="too much"),
        pytest.param(None, id="nothing"),
    ],
)
def test_a_status_that_cannot_be_read_is_none(status: Any) -> None:
    assert read_resource({**resource_body(), "status": status}).status is None


def test_a_status_with_fields_of_a_newer_version_is_read() -> None:
    body = {**resource_body(), "status": {"observedGeneration": 3, "mood": "good"}}
    status = read_resource(body).status
    assert status
    assert status.observed_generation == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"spec": None}, "spec"),
        ({"spec": {"method": "Magic"}}, "spec.method: must be one of"),
        ({"apiVersion": "kubequant.dev/v9"}, "apiVersion"),
    ],
)
def test_a_resource_that_cannot_be_read_says_why(change: dict[str, Any], sentence: str) -> None:
    resource = read_resource({**resource_body(), **change})
    assert resource.spec is None
    assert any(sentence in str(problem) for problem in resource.problems)


def test_jobs_and_pods_belong_by_uid_and_not_by_name() -> None:
    world = World()
    world.settle()
    jobs = [read_job(body) for body in world.jobs.values()]
    pods = [read_pod(body) for body in world.pods.values()]
    body = resource_body()
    mine = observe(read_resource(body), jobs, pods)
    assert (len(mine.jobs), len(mine.strangers), len(mine.pods)) == (1, 0, 1)
    body["metadata"]["uid"] = "resource-2"
    theirs = observe(read_resource(body), jobs, pods)
    assert (len(theirs.jobs), len(theirs.strangers), len(theirs.pods)) == (0, 1, 0)
