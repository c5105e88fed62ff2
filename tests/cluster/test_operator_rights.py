"""What a user who may only create QuantizationJobs reaches through the operator: nothing more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.cluster.watched import acts, condition, digest_of, manifest
from tests.controller.builders import published

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster.operator_program import OperatorProgram
    from tests.cluster.watched import Namespace
    from tests.testbed.access import Access


@pytest.fixture
def user(team: Namespace, cluster: Access) -> Path:
    """A kubeconfig of someone with `kubequant-edit` in the team's namespace and nothing else."""
    words = ("create", "rolebinding", "edits", "--clusterrole=kubequant-edit", "--user=ada")
    cluster.kubectl(*words, f"--namespace={team.name}")
    return cluster.kubeconfig_for_user("ada")


def applied(
    cluster: Access, user: Path, team: Namespace, spec: str
) -> subprocess.CompletedProcess[str]:
    """Apply a manifest as the user."""
    words = ("apply", "-f", "-", f"--namespace={team.name}")
    return cluster.kubectl(*words, input=json.dumps(manifest(spec)), kubeconfig=user, check=False)


def test_such_a_user_gets_a_run_and_may_neither_make_pods_nor_read_secrets(
    team: Namespace, cluster: Access, user: Path
) -> None:
    assert applied(cluster, user, team, acts(message=published(digest_of()))).returncode == 0
    team.reaches("Published")
    for verb, kind in (("create", "pods"), ("create", "jobs"), ("get", "secrets")):
        words = ("auth", "can-i", verb, kind, f"--namespace={team.name}")
        assert cluster.kubectl(*words, kubeconfig=user, check=False).stdout.strip() == "no"
    status = ("patch", "qj", "tiny", "--subresource=status", "--type=merge")
    forged = ("--patch", '{"status": {"phase": "Failed"}}', f"--namespace={team.name}")
    refused = cluster.kubectl(*status, *forged, kubeconfig=user, check=False)
    assert "forbidden" in refused.stderr.lower()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param("pod: {image: evil/image}", 'unknown field "spec.pod.image"', id="an image"),
        pytest.param("image: evil/image", 'unknown field "spec.image"', id="an image at the top"),
        pytest.param(
            "pod: {volumes: [{name: root, hostPath: {path: /}}]}",
            'unknown field "spec.pod.volumes"',
            id="a volume of the host",
        ),
        pytest.param(
            "pod: {env: [{name: KUBEQUANT_RUN, value: '{}'}]}", "KUBEQUANT_", id="a name of ours"
        ),
        pytest.param(
            "pod: {env: [{name: KEY, valueFrom: {secretKeyRef: {name: s, key: k}}}]}",
            'unknown field "spec.pod.env[0].valueFrom"',
            id="a variable from a secret",
        ),
        pytest.param(
            "output: {secretRef: {name: s, namespace: kube-system}}",
            'unknown field "spec.output.secretRef.namespace"',
            id="a secret of another namespace",
        ),
        pytest.param("model: {uri: file:///etc}", "file://", id="a file of the node"),
    ],
)
def test_what_the_api_does_not_offer_the_server_refuses(
    team: Namespace, cluster: Access, user: Path, spec: str, words: str
) -> None:
    refused = applied(cluster, user, team, spec)
    assert refused.returncode != 0
    assert words in refused.stderr


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param("model: {trustRemoteCode: true}", "spec.model.trustRemoteCode", id="code"),
        pytest.param("model: {allowPickle: true}", "spec.model.allowPickle", id="pickles"),
        pytest.param(
            "pod: {serviceAccountName: builder}", "spec.pod.serviceAccountName", id="an account"
        ),
        pytest.param(
            "pod: {env: [{name: LD_PRELOAD, value: /scratch/evil.so}]}",
            "LD_PRELOAD",
            id="code by a variable",
        ),
        pytest.param(
            "pod: {annotations: {iam.amazonaws.com/role: admin}}",
            "spec.pod.annotations: iam.amazonaws.com/role is not among",
            id="a cloud role by an annotation",
        ),
        pytest.param(
            "pod: {labels: {azure.workload.identity/use: 'true'}}",
            "spec.pod.labels: azure.workload.identity/use is not among",
            id="a cloud identity by a label",
        ),
        pytest.param(
            "output: {secretRef: {name: s3-writer}}, "
            "pod: {env: [{name: AWS_ENDPOINT_URL, value: 'http://evil'}]}",
            "AWS_ENDPOINT_URL",
            id="credentials to another server",
        ),
    ],
)
def test_what_the_administrator_did_not_allow_is_a_condition_with_a_sentence(
    team: Namespace, cluster: Access, user: Path, spec: str, words: str
) -> None:
    assert applied(cluster, user, team, spec).returncode == 0
    status = team.reaches("NotPermitted")
    assert words in condition(status, "Failed")["message"]
    assert status["failure"]["advice"]
    assert not team.jobs()


@pytest.fixture
def generous(operator: OperatorProgram) -> Iterator[None]:
    """The operator, whose administrator allows what these tests ask for."""
    operator.stop()
    operator.start(
        ALLOWED_SERVICE_ACCOUNTS="cloud",
        ALLOWED_ANNOTATIONS="example.com/*",
        ALLOWED_LABELS="azure.workload.identity/use",
        ALLOW_REMOTE_CODE="yes",
        ALLOW_PICKLE="yes",
    )
    yield
    operator.stop()
    operator.start()


@pytest.mark.usefixtures("generous")
def test_a_service_account_that_is_listed_is_the_pods_and_its_token_is_not_there(
    team: Namespace, cluster: Access, user: Path
) -> None:
    # By the account, its label and its annotation a cloud's webhook would give the pod an identity.
    cluster.kubectl("create", "serviceaccount", "cloud", f"--namespace={team.name}")
    pod = (
        "serviceAccountName: cloud, labels: {azure.workload.identity/use: 'true'}, "
        "annotations: {example.com/audience: sts}"
    )
    does = acts(message=published(digest_of())).removeprefix("pod: {")
    assert applied(cluster, user, team, f"pod: {{{pod}, {does}").returncode == 0
    team.reaches("Published")
    (made,) = team.pods()
    assert made["spec"]["serviceAccountName"] == "cloud"
    assert made["spec"]["automountServiceAccountToken"] is False
    assert made["metadata"]["labels"]["azure.workload.identity/use"] == "true"
    assert made["metadata"]["annotations"]["example.com/audience"] == "sts"


@pytest.mark.usefixtures("generous")
def test_what_the_administrator_allows_such_a_user_gets(
    team: Namespace, cluster: Access, user: Path
) -> None:
    spec = "model: {trustRemoteCode: true, allowPickle: true}"
    whole = f"{spec}, {acts(message=published(digest_of(spec)))}"
    assert applied(cluster, user, team, whole).returncode == 0
    assert team.reaches("Published")["run"]["digest"] == digest_of(spec)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        pytest.param(
            "labels: {kubequant.dev/name: other}",
            "spec.pod.labels: must not",
            id="a label of ours",
        ),
        pytest.param(
            "annotations: {container.apparmor.security.beta.kubernetes.io/worker: unconfined}",
            "spec.pod.annotations: must not",
            id="an annotation of Kubernetes",
        ),
    ],
)
def test_what_no_schema_can_refuse_the_operator_does(
    team: Namespace, cluster: Access, user: Path, part: str, words: str
) -> None:
    assert applied(cluster, user, team, f"pod: {{{part}}}").returncode == 0
    status = team.reaches("InvalidSpec")
    assert words in condition(status, "Failed")["message"]
    assert not team.jobs()
