"""The test bed's own promises: a pod pulls from the registry, finds Services and reaches us."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.testbed.access import kubequant_in_use
from tests.testbed.processes import Processes, S3Server, start_s3
from tests.testbed.scratch import compiled_go, scratch_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.testbed.access import Access

# Asks for every address it is given, with the pod's token where it is the API server's.
PROBE = """package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	folder := "/var/run/secrets/kubernetes.io/serviceaccount/"
	authority, _ := os.ReadFile(folder + "ca.crt")
	token, _ := os.ReadFile(folder + "token")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	http.DefaultTransport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: roots}
	for _, address := range os.Args[1:] {
		request, _ := http.NewRequest("GET", address, nil)
		if strings.HasPrefix(address, "https:") {
			request.Header.Set("Authorization", "Bearer "+string(token))
		}
		answer, problem := http.DefaultClient.Do(request)
		if problem != nil {
			fmt.Println(address, problem)
			os.Exit(1)
		}
		text, _ := io.ReadAll(answer.Body)
		words := strings.Join(strings.Fields(string(text)), " ")
		fmt.Println(address, answer.StatusCode, words)
	}
}
"""
SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@pytest.fixture(scope="module")
def image(cluster: Access, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The probe, pushed to the registry."""
    folder = tmp_path_factory.mktemp("probe")
    pushed = scratch_image(compiled_go(folder, "probe", PROBE))
    return pushed.push(cluster.registry, "testbed/probe")


@pytest.fixture
def s3_outside(cluster: Access, tmp_path: Path) -> Iterator[S3Server]:
    """An S3 server of this machine, which listens towards pods."""
    processes = Processes(tmp_path)
    yield start_s3(processes, tmp_path / "s3", cluster.host_address)
    processes.stop()


def probe(image: str, *addresses: str) -> dict[str, Any]:
    container = {"name": "probe", "image": image, "args": addresses, "securityContext": SECURITY}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe"},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


def test_a_pod_pulls_its_image_and_reaches_api_server_and_s3_by_service_name(
    cluster: Access, namespace: str, image: str, s3_outside: S3Server
) -> None:
    store = cluster.expose(namespace, "s3", 9000, s3_outside.port)
    pod = probe(image, "https://kubernetes.default.svc/api", store)
    cluster.kubectl("create", f"--namespace={namespace}", "-f", "-", input=json.dumps(pod))

    log = finished_log(cluster, namespace, "probe")

    by_api_server, by_store = log.splitlines()
    assert by_api_server.startswith("https://kubernetes.default.svc/api 200 ")
    assert '"APIVersions"' in by_api_server
    assert by_store.startswith(f"{store} 403 ")
    assert "<Code>AccessDenied</Code>" in by_store


def test_a_pod_that_asks_for_more_than_restricted_is_refused(
    cluster: Access, namespace: str, image: str
) -> None:
    pod = probe(image)
    del pod["spec"]["securityContext"]
    words = ("create", f"--namespace={namespace}", "-f", "-")
    done = cluster.kubectl(*words, input=json.dumps(pod), check=False)

    assert done.returncode
    assert 'violates PodSecurity "restricted:latest"' in done.stderr


def test_a_kubeconfig_of_a_user_speaks_for_that_user(control_plane: Access) -> None:
    user = control_plane.kubeconfig_for_user("jane", ("authors", "readers"))

    assert who(control_plane, user) == ("jane", {"authors", "readers", "system:authenticated"})


def test_a_kubeconfig_of_a_service_account_speaks_for_that_account(
    control_plane: Access, namespace: str
) -> None:
    account = control_plane.kubeconfig_for_service_account(namespace, "default")
    name, groups = who(control_plane, account)

    assert name == f"system:serviceaccount:{namespace}:default"
    assert f"system:serviceaccounts:{namespace}" in groups


def who(control_plane: Access, kubeconfig: Path) -> tuple[str, set[str]]:
    """Return the name and the groups that the API server knows someone by."""
    shown = control_plane.kubectl("auth", "whoami", "-o=json", kubeconfig=kubeconfig).stdout
    user = json.loads(shown)["status"]["userInfo"]
    return user["username"], set(user["groups"])


def finished_log(cluster: Access, namespace: str, pod: str) -> str:
    """Return what a pod wrote once it ended; fail with its state where it does not."""
    place = f"--namespace={namespace}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        phase = cluster.kubectl("get", "pod", pod, place, "-o=jsonpath={.status.phase}").stdout
        if phase in {"Succeeded", "Failed"}:
            return cluster.kubectl("logs", pod, place).stdout
        time.sleep(0.2)
    raise AssertionError(cluster.kubectl("describe", "pod", pod, place).stdout)


def test_a_cluster_where_an_operator_is_installed_is_said_to_be_in_use(
    control_plane: Access,
) -> None:
    labels = {"app.kubernetes.io/name": "kubequant"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "a", "image": "a"}]},
    }
    installed = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "somebodys", "namespace": "default", "labels": labels},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    }
    control_plane.apply(installed)
    try:
        words = kubequant_in_use(control_plane)
    finally:
        control_plane.kubectl("delete", "deployment", "somebodys", "--namespace=default")
    assert "Deployment default/somebodys" in words
    assert "Deployment" not in kubequant_in_use(control_plane)
