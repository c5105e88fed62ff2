"""Fixtures of the cluster tier: one cluster for the session, its node when a test asks for it.

Where KUBEQUANT_TEST_KUBECONFIG names a cluster, that one is used instead of ours, unless kubequant
is in use there: these tests install it, run an operator over all namespaces, and remove it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.cluster.actor import push_actor
from tests.cluster.operator_program import SMALL, OperatorProgram, grant_rights, images
from tests.cluster.watched import Namespace
from tests.testbed.access import foreign_cluster, kubequant_in_use
from tests.testbed.api import Api
from tests.testbed.cluster import Cluster
from tests.testbed.storage import processes

__all__ = ["processes"]

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.testbed.access import Access

DEFINITION = Path(__file__).parents[2] / "crds" / "kubequant.dev_quantizationjobs.yaml"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, on a cluster of the user's, what stops parts of it or needs another beside it."""
    if not os.environ.get("KUBEQUANT_TEST_KUBECONFIG"):
        return
    left_out = [item for item in items if item.get_closest_marker("own_cluster")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what a cluster consists of before the first test's time begins to run."""
    theirs = os.environ.get("KUBEQUANT_TEST_KUBECONFIG")
    asked = any(Path(__file__).parent in item.path.parents for item in session.items)
    if asked and not theirs and not session.config.option.collectonly:
        Cluster.build()


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """A cluster with etcd, API server, controller manager and scheduler; perhaps with a node."""
    if os.environ.get("KUBEQUANT_TEST_KUBECONFIG"):
        theirs = foreign_cluster(tmp_path_factory.mktemp("kubeconfigs"))
        if in_use := kubequant_in_use(theirs):
            pytest.exit(in_use, returncode=pytest.ExitCode.USAGE_ERROR)
        yield theirs
        return
    ours = Cluster(logs=tmp_path_factory.mktemp("cluster"))
    try:
        ours.start_control_plane()
        yield ours
    finally:
        ours.close()


@pytest.fixture(scope="session")
def api(control_plane: Access) -> Iterator[Api]:
    """The administrator's connection to the API server."""
    connection = Api(control_plane.kubeconfig)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def definition(control_plane: Access) -> str:
    """The committed CustomResourceDefinition, applied as it is and Established; its name."""
    control_plane.kubectl("apply", "-f", str(DEFINITION))
    name = "crd/quantizationjobs.kubequant.dev"
    wait = ("wait", "--for=condition=Established", name, "--timeout=30s")
    # `kubectl wait` fails on a definition so new that its conditions are null.
    while control_plane.kubectl(*wait, check=False).returncode:
        time.sleep(0.2)
    return name


@pytest.fixture(scope="session")
def cluster(control_plane: Access) -> Access:
    """The session's cluster with a node, DNS and an image registry."""
    control_plane.start_node()
    return control_plane


@pytest.fixture(scope="module")
def shared_namespace(control_plane: Access) -> Iterator[str]:
    """A namespace as `namespace`, for the many tests of a module that need no fresh one."""
    with control_plane.namespace() as name:
        yield name


@pytest.fixture
def namespace(control_plane: Access) -> Iterator[str]:
    """A fresh namespace that enforces Pod Security "restricted"."""
    with control_plane.namespace() as name:
        yield name


@pytest.fixture(scope="session")
def actor(cluster: Access, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of the stand-in worker, in the cluster's registry."""
    return push_actor(cluster.registry, tmp_path_factory.mktemp("actor"))


@pytest.fixture(scope="session")
def account(cluster: Access, definition: str) -> Path:  # noqa: ARG001 - rights name its kind
    """A kubeconfig of the operator's account, with the rights of `deploy/` and no others."""
    return grant_rights(cluster)


@pytest.fixture(scope="module")
def operator(
    account: Path, actor: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProgram]:
    """The operator, ready, with the stand-in for every image."""
    log = tmp_path_factory.mktemp("operator") / "log"
    settings = {**images(actor), "CPU_RESOURCES": json.dumps(SMALL), "LOG_FORMAT": "Text"}
    program = OperatorProgram(account, log, settings)
    try:
        program.start()
        yield program
        assert "Traceback" not in program.text()
    finally:
        program.close()


@pytest.fixture
def team(api: Api, namespace: str, operator: OperatorProgram) -> Namespace:  # noqa: ARG001
    """A namespace of the test's own, watched by the operator."""
    return Namespace(api, namespace)
