"""What Argo CD and Flux make of each status that the operator writes, by their own code."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.controller.world import World
from tests.testbed.gitops import PATCH, Judgement, judged

from kubequant.api.outcome import ExitCode, FailureReason
from kubequant.controller.conditions import Standing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Body = dict[str, Any]


def waiting() -> World:
    world = World()
    world.settle()
    return world


def running() -> World:
    world = waiting()
    world.starts()
    world.settle()
    return world


def complete() -> World:
    world = running()
    world.publishes()
    world.settle()
    return world


def failed() -> World:
    world = running()
    world.fails(ExitCode.GATE_FAILED, FailureReason.GATE_FAILED, "perplexity rose by 9 %")
    world.settle()
    return world


def stuck() -> World:
    world = World("pod: {serviceAccountName: somebody-elses}")
    world.settle()
    return world


def suspended() -> World:
    world = World("suspend: true")
    world.settle()
    return world


def queued() -> World:
    world = World(labels={"kueue.x-k8s.io/queue-name": "gpus"})
    world.settle()
    return world


# standing -> how a resource gets there, and what Argo CD and Flux are to say of it then.
STANDINGS: dict[Standing, tuple[Callable[[], World], str, str]] = {
    Standing.WORKING: (running, "Progressing", "InProgress"),
    Standing.COMPLETE: (complete, "Healthy", "Current"),
    Standing.FAILED: (failed, "Degraded", "Failed"),
    Standing.STUCK: (stuck, "Degraded", "Failed"),
    Standing.SUSPENDED: (suspended, "Suspended", "InProgress"),
    Standing.QUEUED: (queued, "Progressing", "InProgress"),
}


def body(world: World) -> Body:
    assert world.resource is not None
    return copy.deepcopy(world.resource)


def verdict(found: Judgement) -> tuple[str, str]:
    return found.argocd, found.flux


@pytest.fixture(scope="module")
def said() -> dict[Standing, tuple[World, Judgement]]:
    """What both say of a resource of each standing."""
    worlds = [make() for make, *_ in STANDINGS.values()]
    found = judged([body(world) for world in worlds])
    return dict(zip(STANDINGS, zip(worlds, found, strict=True), strict=True))


@pytest.mark.parametrize("standing", Standing)
def test_both_say_what_the_operator_says(
    standing: Standing, said: dict[Standing, tuple[World, Judgement]]
) -> None:
    world, found = said[standing]
    assert verdict(found) == STANDINGS[standing][1:]
    assert found.argocd_message == f"{world.reason}: {world.message}"
    if found.flux != "Current":  # of what is well, Flux says that and no more
        assert found.flux_message == world.message


def test_neither_takes_a_resource_for_done_before_the_operator_has_seen_it() -> None:
    applied = World()
    edited = complete()
    edited.edit("gguf: {types: [Q8_0]}")
    bare = {**body(applied), "status": {}}
    none = {key: value for key, value in body(applied).items() if key != "status"}
    resources = [body(applied), body(edited), bare, none]
    found = judged(resources)
    assert [one.argocd for one in found] == ["Progressing"] * len(resources)
    # Only without the CRD's default could Flux not tell it from a resource that needs no operator.
    assert [one.flux for one in found[:2]] == ["InProgress", "InProgress"]


def test_a_resource_that_goes_is_in_progress() -> None:
    going = body(complete())
    going["metadata"]["deletionTimestamp"] = "2026-01-02T04:00:00Z"
    (found,) = judged([going])
    assert verdict(found) == ("Progressing", "Terminating")


def test_without_the_patch_argo_cd_does_not_know_the_kind(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    text = PATCH.read_text().replace("QuantizationJob:", "AnotherKind:")
    assert "health.kubequant.dev_AnotherKind" in next(iter(yaml.safe_load(text)["data"]))
    other.write_text(text)
    (found,) = judged([body(failed())], other)
    assert found.argocd == "", "it would be shown as healthy"
