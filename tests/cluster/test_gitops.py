"""What Argo CD and Flux, by their own code, see of real resources while the operator works."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.cluster.resources import path
from tests.cluster.watched import acts, digest_of
from tests.controller.builders import published
from tests.testbed.gitops import PATCH, judged, turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.watched import Namespace
    from tests.testbed.access import Access


def seen_during(team: Namespace, act: Callable[[], None]) -> tuple[list[str], list[str]]:
    """Return the turns that Argo CD and Flux see while `act` runs, of every version there was.

    Holds that both wait for the operator wherever it has not seen a spec yet.
    """
    since = team.api.request("GET", path(team.name)).object()["metadata"]["resourceVersion"]
    act()
    watch = f"{path(team.name)}?watch=true&resourceVersion={since}&timeoutSeconds=2"
    events = [json.loads(line) for line in team.api.text(watch).splitlines()]
    versions: list[dict[str, Any]] = [event["object"] for event in events]
    found = judged(versions)
    unseen = [
        (one.argocd, one.flux)
        for one, version in zip(found, versions, strict=True)
        if version["status"]["observedGeneration"] != version["metadata"]["generation"]
    ]
    assert set(unseen) == {("Progressing", "InProgress")}
    return turns(one.argocd for one in found), turns(one.flux for one in found)


def publish_another(team: Namespace) -> None:
    """Edit the resource that is there to something else, whose run is published."""
    spec = "gguf: {types: [Q8_0]}"
    team.change(f"{spec}, {acts(message=published(digest_of(spec)))}")
    team.reaches("Published")


def test_a_resource_is_healthy_once_it_is_published_and_no_moment_before(team: Namespace) -> None:
    def publish_twice() -> None:
        team.apply(acts(message=published(digest_of()), seconds="1"))
        team.reaches("Published")
        publish_another(team)

    argocd, flux = seen_during(team, publish_twice)
    assert argocd == ["Progressing", "Healthy", "Progressing", "Healthy"]
    assert flux == ["InProgress", "Current", "InProgress", "Current"]


def test_a_resource_that_fails_is_degraded_and_goes_on_where_its_spec_is_mended(
    team: Namespace,
) -> None:
    def fail_and_mend() -> None:
        team.apply(f"backoffLimit: 0, {acts(exit='1')}")
        team.reaches("BackoffLimitExceeded")
        publish_another(team)

    argocd, flux = seen_during(team, fail_and_mend)
    assert argocd == ["Progressing", "Degraded", "Progressing", "Healthy"]
    assert flux == ["InProgress", "Failed", "InProgress", "Current"]


def test_a_resource_that_is_held_is_suspended_until_it_goes_on(team: Namespace) -> None:
    def hold_and_release() -> None:
        team.apply(f"suspend: true, {acts(message=published(digest_of()))}")
        team.reaches("UserSuspended")
        team.change("suspend: false")
        team.reaches("Published")

    argocd, flux = seen_during(team, hold_and_release)
    assert argocd == ["Progressing", "Suspended", "Progressing", "Healthy"]
    assert flux == ["InProgress", "Current"]


def test_the_patch_is_merged_by_the_command_that_stands_in_it(
    team: Namespace, cluster: Access
) -> None:
    # Argo CD's ConfigMap, as an installation has it, in the namespace that the test may write to.
    before = {"metadata": {"name": "argocd-cm"}, "data": {"url": "https://argocd.example.com"}}
    where = f"/api/v1/namespaces/{team.name}/configmaps"
    team.api.request("POST", where, before).object()
    (command,) = (line for line in PATCH.read_text().splitlines() if "kubectl" in line)
    words = command.removeprefix("# kubectl ").split()
    words[words.index("argocd")] = team.name
    words[-1] = str(PATCH)
    cluster.kubectl(*words)
    after = team.api.request("GET", f"{where}/argocd-cm").object()["data"]
    assert after.pop("url") == "https://argocd.example.com"
    (key,) = after
    assert key == "resource.customizations.health.kubequant.dev_QuantizationJob"
    assert after[key] == (PATCH.parent / "health.lua").read_text()
