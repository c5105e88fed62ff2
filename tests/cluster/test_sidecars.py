"""A container that somebody injects into the worker's pod, as a service mesh does, and that stays.

A MutatingAdmissionPolicy of the API server stands where a mesh has a webhook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.cluster.watched import acts, condition, digest_of
from tests.controller.builders import failed, published

from kubequant.api.outcome import ExitCode, FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.watched import Body, Namespace
    from tests.testbed.access import Access

# The container is the stand-in worker again; it needs the variable of a run and goes on for long.
INJECTING = """
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {{name: "{namespace}"}}
spec:
  matchConstraints:
    resourceRules:
    - {{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}}
  failurePolicy: Fail
  reinvocationPolicy: Never
  mutations:
  - patchType: JSONPatch
    jsonPatch:
      expression: |
        [JSONPatch{{op: "add", path: "/spec/containers/-", value: Object.spec.containers{{
          name: "mesh-proxy",
          image: "{image}",
          env: [
            Object.spec.containers.env{{name: "KUBEQUANT_RUN", value: "none"}},
            Object.spec.containers.env{{name: "ACT_SECONDS", value: "900"}}
          ],
          securityContext: Object.spec.containers.securityContext{{
            allowPrivilegeEscalation: false,
            readOnlyRootFilesystem: true,
            capabilities: Object.spec.containers.securityContext.capabilities{{drop: ["ALL"]}}
          }}
        }}}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {{name: "{namespace}"}}
spec:
  policyName: "{namespace}"
  matchResources:
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: "{namespace}"}}}}
"""
PROBE: Body = {
    "metadata": {"generateName": "probe-"},
    "spec": {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "probe",
                "image": "none",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    },
}


@pytest.fixture
def meshed(team: Namespace, cluster: Access, actor: str) -> Iterator[Namespace]:
    """The team's namespace, where a container that never ends by itself is added to each pod."""
    text = INJECTING.format(namespace=team.name, image=actor)
    try:
        cluster.kubectl("apply", "--filename=-", input=text)
        # The server takes a moment to see a policy, and lets pods pass without it until then.
        where = f"/api/v1/namespaces/{team.name}/pods"
        team.wait(
            lambda: team.api.request("POST", where, PROBE, dryRun="All").object(),
            lambda pod: len(pod["spec"]["containers"]) > 1,
        )
        yield team
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "--filename=-", input=text)


def running_beside(team: Namespace) -> str:
    """Wait until the operator says that the worker has ended and another has not; return that."""

    def told(status: Body) -> bool:
        return "still run" in condition(status, "Reconciling").get("message", "")

    return str(condition(team.wait(team.status, told), "Reconciling")["message"])


def test_a_result_is_taken_though_another_container_never_ends(meshed: Namespace) -> None:
    meshed.apply(acts(message=published(digest_of())))
    assert "other containers of the pod still run: mesh-proxy" in running_beside(meshed)
    status = meshed.reaches("Published", seconds=100)
    assert status["artifact"]["uri"] == f"s3://bucket/prefix/tiny/{digest_of()}/"
    assert status["run"]["attempts"] == 1
    meshed.wait(meshed.jobs, lambda jobs: not jobs)
    meshed.wait(meshed.pods, lambda pods: not pods, seconds=60)


def test_a_failure_is_taken_though_another_container_never_ends(meshed: Namespace) -> None:
    # Kubernetes counts the pod as running, so that it is not tried again: the status says why.
    words = "the hub did not answer"
    message = failed(digest_of(), ExitCode.UNAVAILABLE, FailureReason.UNAVAILABLE, words)
    meshed.apply(acts(message=message, exit=str(int(ExitCode.UNAVAILABLE))))
    assert "mesh-proxy" in running_beside(meshed)
    status = meshed.reaches("BackoffLimitExceeded", seconds=100)
    assert status["run"]["attempts"] == 1
    assert status["failure"]["reason"] == "Unavailable"
    message = condition(status, "Failed")["message"]
    assert message.startswith(
        "The run was not tried again, since other containers of the pod (mesh-"
    )
    assert message.endswith(f"The last: Unavailable: {words}")
    meshed.wait(meshed.pods, lambda pods: not pods, seconds=60)
