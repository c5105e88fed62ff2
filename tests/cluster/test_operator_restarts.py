"""The operator ends at any point and comes back: nothing twice, nothing lost, no needless write."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from tests.cluster.operator_program import images
from tests.cluster.watched import acts, condition, digest_of
from tests.controller.builders import published

if TYPE_CHECKING:
    from tests.cluster.operator_program import OperatorProgram
    from tests.cluster.watched import Namespace
    from tests.testbed.access import Access


@pytest.fixture(autouse=True)
def running(operator: OperatorProgram) -> None:
    """The operator runs when a test begins, whatever the one before did."""
    if operator.process.poll() is not None:
        operator.start()


def publishes(seconds: str) -> str:
    return acts(message=published(digest_of()), seconds=seconds)


@pytest.mark.parametrize(
    "seconds", [0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0], ids=lambda seconds: f"after {seconds} s"
)
def test_an_operator_that_is_killed_in_a_run_finishes_it_when_it_is_back(
    team: Namespace, operator: OperatorProgram, seconds: float
) -> None:
    team.apply(publishes("1"))
    time.sleep(seconds)
    operator.kill()
    operator.start()
    status = team.reaches("Published")
    assert status["run"]["attempts"] == 1
    assert len(team.pods()) == 1
    assert len(team.jobs()) == 1


def test_a_run_that_ends_while_the_operator_is_down_is_told_when_it_is_back(
    team: Namespace, operator: OperatorProgram
) -> None:
    team.apply(publishes("1"))
    team.reaches("Running")
    operator.kill()
    team.wait(team.jobs, lambda jobs: jobs[0].get("status", {}).get("succeeded") == 1)
    operator.start()
    assert team.reaches("Published")["variants"]


def test_a_resource_that_is_deleted_while_the_operator_is_down_leaves_nothing(
    team: Namespace, operator: OperatorProgram
) -> None:
    team.apply(publishes("60"))
    team.reaches("Running")
    operator.kill()
    team.delete()
    assert not team.is_there(), "no finalizer of ours holds it"
    team.wait(team.jobs, lambda jobs: not jobs)
    operator.start()
    team.wait(team.pods, lambda pods: not pods, seconds=60)


def test_a_restart_writes_nothing_about_what_is_settled(
    team: Namespace, operator: OperatorProgram
) -> None:
    team.apply(publishes("0"), name="done")
    team.apply("suspend: true", name="held")
    team.apply("pod: {nodeSelector: {disk: fast}}", name="stuck")
    team.reaches("Published", name="done")
    team.reaches("UserSuspended", name="held")
    team.reaches("Unschedulable", name="stuck")
    names = ("done", "held", "stuck")
    before = {name: team.resource(name)["metadata"]["resourceVersion"] for name in names}
    jobs = {job["metadata"]["uid"] for job in team.jobs()}
    events = len(team.events("Unschedulable")) + len(team.events("Published"))
    operator.kill()
    operator.start()
    team.apply(publishes("0"), name="later")
    team.reaches("Published", name="later")
    after = {name: team.resource(name)["metadata"]["resourceVersion"] for name in names}
    assert after == before
    assert jobs < {job["metadata"]["uid"] for job in team.jobs()}
    assert len(team.events("Unschedulable")) + len(team.events("Published")) == events + 1


def test_an_operator_that_is_asked_to_stop_does_so_at_once(operator: OperatorProgram) -> None:
    started = time.monotonic()
    assert operator.stop() == 0
    assert time.monotonic() - started < 5, "kopf waits so long for a task that hangs"


def test_an_image_that_is_missing_is_said_so_and_a_new_setting_mends_it(
    team: Namespace, operator: OperatorProgram, cluster: Access
) -> None:
    operator.stop()
    missing = f"{cluster.registry}/nowhere:1"
    operator.start(**images(missing))
    team.apply(publishes("0"))
    status = team.reaches("ImageNotFound")
    assert status["phase"] == "Pending"
    assert missing in condition(status, "Ready")["message"]
    operator.stop()
    operator.start()
    assert team.reaches("Published")["resolved"]["image"].endswith("/actor:latest")


@pytest.mark.own_cluster
def test_an_api_server_that_goes_away_is_waited_for(
    team: Namespace, operator: OperatorProgram, cluster: Access
) -> None:
    team.apply(publishes("3"))
    team.reaches("Running")
    cluster.stop("kube-apiserver")
    time.sleep(3)
    assert operator.process.poll() is None
    cluster.start("kube-apiserver")
    assert team.reaches("Published", seconds=90)["run"]["attempts"] == 1


def test_the_probes_answer_while_it_runs(operator: OperatorProgram) -> None:
    assert operator.probe("/healthz") == 200
    assert operator.probe("/readyz") == 200


def test_settings_that_are_wrong_end_it_with_a_sentence(operator: OperatorProgram) -> None:
    operator.stop()
    operator.launch(CONCURRENCY="many")
    assert operator.process.wait(timeout=20) == 2
    assert "KUBEQUANT_OPERATOR_CONCURRENCY must be a whole number" in operator.text()
