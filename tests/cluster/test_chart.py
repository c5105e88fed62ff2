"""The chart on a real cluster, by helm and the operator's own image: from install to uninstall."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.cluster.leads import lead_of, until_allowed
from tests.cluster.operator_program import DEPLOY, SMALL
from tests.cluster.watched import Namespace, acts, digest_of
from tests.controller.builders import published
from tests.testbed.images import build_image, push_image
from tests.testbed.tools import tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.testbed.access import Access
    from tests.testbed.api import Api

# The first that builds the operator's image here waits for it.
pytestmark = [pytest.mark.usefixtures("definition"), pytest.mark.timeout(1800)]

OWN = {
    "watch.scope": "Release",
    "crds.install": False,
    "rbac.clusterRoles": False,
    "operator.resources.requests": {"cpu": "10m", "memory": "64Mi"},
}


@pytest.fixture
def helm(cluster: Access, namespace: str) -> Iterator[Callable[..., str]]:
    """helm, as somebody who administers the namespace and nothing else of the cluster."""
    cluster.kubectl("apply", "-f", str(DEPLOY / "namespaced" / "administrator.yaml"))
    lead = lead_of(cluster, namespace)
    where = (f"--namespace={namespace}", f"--as={lead}")
    until_allowed(cluster, "bind", "clusterroles/kubequant-operator", *where)

    def run(*words: str) -> str:
        access = (f"--kubeconfig={cluster.kubeconfig}", f"--kube-as-user={lead}")
        done = subprocess.run(
            [tool("helm"), *words, *access, f"--namespace={namespace}"],
            capture_output=True,
            text=True,
            check=False,
        )
        pods = ("logs", "--selector=app.kubernetes.io/name=kubequant", f"--namespace={namespace}")
        assert done.returncode == 0, done.stderr + cluster.kubectl(*pods, check=False).stdout
        return done.stdout

    yield run
    cluster.kubectl("delete", "clusterrole", "kubequant-install")


def test_a_namespaces_administrator_installs_changes_and_removes_an_operator(
    helm: Callable[..., str], cluster: Access, api: Api, namespace: str, actor: str
) -> None:
    image = push_image(build_image("operator"), cluster.registry)
    repository, _, tag = image.rpartition(":")
    team = Namespace(api, namespace)
    settings = {
        "images": {"gguf": actor},
        "allowedEnv": ["ACT_*"],
        "cpuResources": SMALL,
        "logFormat": "Text",
    }
    values = {**OWN, "image.repository": repository, "image.tag": tag}
    values |= {f"settings.{name}": value for name, value in settings.items()}
    sets = [f"--set-json={name}={json.dumps(value)}" for name, value in values.items()]
    chart = str(DEPLOY / "chart")

    said = helm("install", "kubequant", chart, *sets, "--wait", "--timeout=100s")
    assert f"watches the namespace {namespace}" in said
    team.apply(acts(message=published(digest_of())))
    team.reaches("Published")

    # Another setting is another operator, which takes over what the first has done.
    changed = [*sets, "--set-json=settings.concurrency=3"]
    helm("upgrade", "kubequant", chart, *changed, "--wait", "--timeout=100s")
    where = f"--namespace={namespace}"
    words = ("exec", "deploy/kubequant-operator", where, "--", "env")
    assert "KUBEQUANT_OPERATOR_CONCURRENCY=3" in cluster.kubectl(*words).stdout
    team.apply(acts(message=published(digest_of())), name="later")
    team.reaches("Published", name="later")

    helm("uninstall", "kubequant", "--wait", "--timeout=100s")
    left = cluster.kubectl("get", "deploy,serviceaccount,rolebinding", where, "--output=name")
    assert "kubequant" not in left.stdout
    assert team.status()["phase"] == "Succeeded", "what was done stays"
