"""The operator with the rights of deploy/namespaced/: it works in its namespace, and only there."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.cluster.leads import lead_of, until_allowed
from tests.cluster.operator_program import DEPLOY, SMALL, OperatorProgram, images
from tests.cluster.watched import Namespace, acts, digest_of
from tests.controller.builders import published

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.testbed.access import Access
    from tests.testbed.api import Api


pytestmark = pytest.mark.usefixtures("definition")


@pytest.fixture
def own(
    cluster: Access,
    api: Api,
    actor: str,
    namespace: str,
    tmp_path: Path,
) -> Iterator[tuple[Namespace, OperatorProgram]]:
    """A namespace with its own operator, as a program with that account's token."""
    lead = lead_of(cluster, namespace)
    install = DEPLOY / "namespaced" / "install.yaml"
    where = (f"--namespace={namespace}", f"--as={lead}")
    refused = cluster.kubectl("apply", "--dry-run=server", "-f", str(install), *where, check=False)
    # The role is not there, or not theirs to bind: which of the two depends on the tests before.
    words = r'rolebindings\S* "kubequant-operator" (not found|is forbidden)'
    assert re.search(words, refused.stderr), refused
    cluster.kubectl("apply", "-f", str(DEPLOY / "namespaced" / "administrator.yaml"))
    until_allowed(cluster, "bind", "clusterroles/kubequant-operator", *where)
    until_allowed(cluster, "create", "quantizationjobs.kubequant.dev", *where)
    cluster.kubectl("apply", "--dry-run=server", "-f", str(install), *where)
    parts = yaml.safe_load_all(install.read_text())
    rights = [part for part in parts if part["kind"] != "Deployment"]
    assert {part["kind"] for part in rights} == {"ServiceAccount", "RoleBinding"}
    cluster.kubectl("apply", "-f", "-", *where, input=yaml.safe_dump_all(rights))
    account = cluster.kubeconfig_for_service_account(namespace, "kubequant-operator")
    settings = {**images(actor), "CPU_RESOURCES": json.dumps(SMALL), "NAMESPACES": namespace}
    program = OperatorProgram(account, tmp_path / "log", settings)
    try:
        program.start()
        yield Namespace(api, namespace), program
    finally:
        program.close()
        cluster.kubectl("delete", "clusterrole", "kubequant-install")


def test_it_ends_with_a_sentence_where_a_namespace_that_it_is_to_watch_gives_it_no_right(
    own: tuple[Namespace, OperatorProgram],
) -> None:
    team, program = own
    program.stop()
    program.launch(NAMESPACES=f"{team.name},default")
    assert program.process.wait(timeout=300) == 2
    assert (
        "KUBEQUANT_OPERATOR_NAMESPACES names default, where the operator may not list "
        "quantizationjobs, jobs, pods: bind the ClusterRole" in program.text()
    )


def test_it_works_in_its_namespace_and_leaves_others_alone(
    own: tuple[Namespace, OperatorProgram], api: Api, cluster: Access
) -> None:
    team, program = own
    with cluster.namespace() as elsewhere:
        other = Namespace(api, elsewhere)
        other.apply()
        team.apply(acts(message=published(digest_of())))
        team.reaches("Published")
        assert other.status() == {"observedGeneration": -1}
        assert not other.jobs()
    lines = [json.loads(line) for line in program.text().splitlines()]
    assert any("Succeeded" in line["message"] for line in lines), "the log is JSON by default"
    assert not [line for line in lines if line["severity"] not in {"info", "debug"}]
