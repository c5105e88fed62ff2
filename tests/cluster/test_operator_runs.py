"""A run on a real cluster, from apply to its end, with a stand-in for the worker's image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.cluster.watched import acts, condition, digest_of, quoted
from tests.controller.builders import published

if TYPE_CHECKING:
    from tests.cluster.watched import Namespace
    from tests.testbed.access import Access


def publishes(seconds: str = "0", spec: str = "") -> str:
    """Return a spec whose stand-in worker says that it published."""
    message = published(digest_of(spec))
    return ", ".join(filter(None, (spec, acts(message=message, seconds=seconds))))


def test_a_run_goes_from_apply_to_succeeded(team: Namespace, cluster: Access) -> None:
    team.apply(publishes())
    wait = ("wait", "--for=condition=Complete", "qj/tiny", f"--namespace={team.name}")
    cluster.kubectl(*wait, "--timeout=60s")
    status = team.status()
    assert status["phase"] == "Succeeded"
    assert status["observedGeneration"] == 1
    assert status["run"]["digest"] == digest_of()
    assert status["run"]["attempts"] == 1
    assert status["run"]["nodeName"]
    assert status["resolved"]["engine"] == "llama.cpp 0.3.36"
    assert status["artifact"]["uri"] == f"s3://bucket/prefix/tiny/{digest_of()}/"
    assert status["variants"][0]["perplexityIncreasePercent"] == "2.2"
    assert status["startTime"] <= status["completionTime"]
    table = cluster.kubectl("get", "qj", f"--namespace={team.name}").stdout
    row = table.split("\n")[1].split()[:7]
    assert row == ["tiny", "GGUF", "Succeeded", "Published", "Reporting", "100", "70"]


def test_a_settled_resource_costs_no_write(team: Namespace) -> None:
    team.apply(publishes())
    team.reaches("Published")
    version = team.resource()["metadata"]["resourceVersion"]
    # Something of no matter changes: the operator looks, and has nothing to say.
    changed = team.api.request(
        "PATCH",
        f"/apis/kubequant.dev/v1alpha1/namespaces/{team.name}/quantizationjobs/tiny",
        {"metadata": {"labels": {"colour": "blue"}}},
        "application/merge-patch+json",
    ).object()
    assert changed["metadata"]["resourceVersion"] != version
    team.apply(publishes(), name="later")
    team.reaches("Published", name="later")
    assert team.resource()["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"]


def test_the_pod_is_ours_alone_and_gets_credentials_only_as_files(team: Namespace) -> None:
    # The stand-in ends with 97 to 99 as root, with a token, or with a root file system to write to;
    # the namespace enforces Pod Security "restricted".
    key = "AWS_ACCESS_KEY_ID"
    secret = {
        "metadata": {"name": "s3-writer"},
        "stringData": {key: "who-writes", "AWS_SECRET_ACCESS_KEY": "hidden", "OTHER": "not ours"},
    }
    team.api.request("POST", f"/api/v1/namespaces/{team.name}/secrets", secret).object()
    spec = "output: {secretRef: {name: s3-writer}}"
    file = f"/var/run/kubequant/credentials/output/{key}"
    team.apply(f"{spec}, backoffLimit: 0, {acts(show_file=file, exit='1')}")
    team.reaches("BackoffLimitExceeded")
    failure = team.status()["failure"]
    assert failure["exitCode"] == 1
    assert "who-writes" in failure["message"], "the last lines of the log, where it says nothing"
    (pod,) = team.pods()
    assert "hidden" not in json.dumps(pod)
    assert pod["spec"]["automountServiceAccountToken"] is False
    (mounted,) = (volume["secret"] for volume in pod["spec"]["volumes"] if "secret" in volume)
    assert "OTHER" not in [item["key"] for item in mounted["items"]]


def test_a_run_is_suspended_and_resumed(team: Namespace) -> None:
    team.apply(publishes(seconds="60"))
    team.reaches("Running")
    first = team.job()["metadata"]["uid"]
    team.change("suspend: true")
    status = team.reaches("UserSuspended")
    assert status["phase"] == "Suspended"
    team.wait(team.jobs, lambda jobs: not jobs)
    team.change("suspend: false")
    team.reaches("Running")
    assert team.job()["metadata"]["uid"] != first


def test_a_spec_that_changes_while_it_runs_starts_a_new_run_after_the_old_one(
    team: Namespace,
) -> None:
    old, new = digest_of(), digest_of("gguf: {types: [Q8_0]}")
    team.apply(publishes(seconds="60"))
    team.reaches("Running")
    message = quoted(published(new))
    env = f"[{{name: ACT_MESSAGE, value: {message}}}]"
    team.change(f"gguf: {{types: [Q8_0]}}, pod: {{env: {env}}}")
    status = team.reaches("Published")
    assert status["run"]["digest"] == new
    assert [past["digest"] for past in status["history"]] == [old]
    assert [job["metadata"]["name"] for job in team.jobs()] == [f"tiny-{new}"]


def test_a_spec_that_changes_after_it_finished_is_a_run_of_its_own(team: Namespace) -> None:
    new = digest_of("gguf: {types: [Q8_0]}")
    team.apply(publishes())
    team.reaches("Published")
    env = f"[{{name: ACT_MESSAGE, value: {quoted(published(new))}}}]"
    team.change(f"gguf: {{types: [Q8_0]}}, pod: {{env: {env}}}")
    status = team.reaches("Published")
    assert status["run"]["digest"] == new
    assert status["history"][0]["phase"] == "Succeeded"


def test_a_run_that_finished_survives_the_deletion_of_its_job(team: Namespace) -> None:
    team.apply(publishes())
    team.reaches("Published")
    team.delete_job(team.job()["metadata"]["name"])
    team.wait(team.jobs, lambda jobs: not jobs)
    team.apply(publishes(), name="later")
    team.reaches("Published", name="later")
    assert team.status()["phase"] == "Succeeded"
    assert len(team.jobs()) == 1, "only the later one's"


def test_a_resource_is_deleted_at_once_and_its_job_with_it(team: Namespace) -> None:
    team.apply(publishes(seconds="60"))
    team.reaches("Running")
    team.delete()
    assert not team.is_there()
    team.wait(team.jobs, lambda jobs: not jobs)
    team.wait(team.pods, lambda pods: not pods, seconds=60)


def test_a_resource_goes_when_its_time_after_the_end_is_over(team: Namespace) -> None:
    team.apply(publishes(spec="ttlSecondsAfterFinished: 1"))
    team.wait(team.is_there, lambda there: not there, seconds=60)


def test_all_six_conditions_are_there_from_the_first_visit(team: Namespace) -> None:
    team.apply(publishes(seconds="5"))
    status = team.reaches("Pending", "Running")
    kinds = [one["type"] for one in status["conditions"]]
    assert sorted(kinds) == sorted(
        ["Complete", "Failed", "Suspended", "Ready", "Reconciling", "Stalled"]
    )
    assert condition(status, "Reconciling")["status"] == "True"
    assert condition(status, "Ready")["status"] == "False"
