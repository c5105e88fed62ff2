"""Passes over a world behind HTTP: in which order a plan is carried out, and what a "no" leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.controller.builders import SETTINGS
from tests.controller.served import No, Served, served
from tests.controller.world import World

from kubequant.api.outcome import FailureReason
from kubequant.controller.cluster import ApiError, Conflict, Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

CEILING = SETTINGS.model_copy(update={"memory_ceiling": "64Gi"})


def running(spec: str = "", **changes: object) -> World:
    world = World(spec, **changes)  # type: ignore[arg-type]
    world.settle()
    world.starts()
    world.settle()
    return world


ENDS = pytest.mark.parametrize(
    ("ends", "reason"),
    [
        pytest.param(World.evicted_for_disk, FailureReason.DISK_FULL, id="a full disk"),
        pytest.param(World.oom_killed, FailureReason.OUT_OF_MEMORY, id="lacking memory"),
        pytest.param(
            lambda world: world.passes(86_400), FailureReason.DEADLINE_EXCEEDED, id="a deadline"
        ),
    ],
)


@ENDS
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(No(409, "Conflict", "modified"), Conflict, id="somebody was quicker"),
        pytest.param(No(503, "ServiceUnavailable", "away"), Unavailable, id="away"),
    ],
)
def test_a_job_stays_until_the_status_says_why_it_goes(
    ends: Callable[[World], None],
    reason: FailureReason,
    answer: No,
    error: type[ApiError],
) -> None:
    world = running()
    ends(world)

    async def test(at: Served) -> None:
        at.answers["PUT status"] = answer
        with pytest.raises(error):
            await at.reconcile()
        assert at.asked == ["PUT status"]
        at.answers.clear()
        at.asked.clear()
        await at.reconcile()
        assert at.asked == ["PUT status", f"POST event {reason.value}", "DELETE job"]
        world.controllers()
        await at.reconcile()
        assert len(at.asked) == 3

    served(world, test)
    assert (world.reason, world.jobs, len(world.created)) == (reason.value, {}, 1)


def test_more_memory_is_promised_before_the_job_that_had_too_little_goes() -> None:
    world = running(settings=CEILING)
    world.oom_killed()

    async def test(at: Served) -> None:
        at.answers["DELETE job"] = No(500, "InternalError", "etcdserver: leader changed")
        with pytest.raises(Unavailable):
            await at.reconcile()
        assert at.asked[0] == "PUT status"
        at.answers.clear()
        at.asked.clear()
        await at.reconcile()
        assert at.asked == ["DELETE job"], "what was told is not told again"

    served(world, test)
    world.settle()
    (job,) = world.jobs.values()
    assert job["metadata"]["annotations"]["kubequant.dev/memory-raised"] == "true"


@pytest.mark.parametrize(("ttl", "down"), [(0, 0), (100, 10_000)])
def test_an_end_is_seen_and_told_before_its_time_is_over(ttl: int, down: int) -> None:
    world = running(f"ttlSecondsAfterFinished: {ttl}")
    world.publishes()
    world.controllers()
    world.passes(down)

    async def test(at: Served) -> None:
        assert await at.reconcile() == 1
        assert at.asked == ["PUT status", "POST event Published"]
        assert "Complete" in world.true
        at.asked.clear()
        assert await at.reconcile() is None
        assert at.asked == ["DELETE resource", "POST event Expired"]

    served(world, test)
    assert world.resource is None


WEBHOOK_DOWN = (
    'Internal error occurred: failed calling webhook "jobs.example.com": failed to call webhook: '
    'Post "https://jobs.policy.svc:443/": no endpoints available for service "jobs"'
)


def test_a_server_in_trouble_of_its_own_is_asked_again_at_once_and_nobody_blamed() -> None:
    world = World()

    async def test(at: Served) -> None:
        at.answers["POST job"] = No(500, "InternalError", "etcdserver: leader changed")
        with pytest.raises(Unavailable):
            await at.reconcile()
        assert at.asked == ["POST job"]

    served(world, test)


def test_a_deletion_that_is_refused_is_not_told() -> None:
    world = running("ttlSecondsAfterFinished: 0")
    world.publishes()
    world.controllers()

    async def test(at: Served) -> None:
        await at.reconcile()
        at.asked.clear()
        at.answers["DELETE resource"] = No(403, "Forbidden", "a policy keeps it")
        with pytest.raises(Refused):
            await at.reconcile()
        assert at.asked == ["DELETE resource"]

    served(world, test)


def test_a_job_that_a_broken_webhook_stops_is_said_and_asked_for_again() -> None:
    world = World()

    async def test(at: Served) -> None:
        at.answers["POST job"] = No(500, "InternalError", WEBHOOK_DOWN)
        assert await at.reconcile() == 60
        assert at.asked == ["POST job", "PUT status", "POST event JobRejected"]
        assert (world.reason, world.status.phase) == ("JobRejected", "Pending")
        assert WEBHOOK_DOWN in world.message
        assert WEBHOOK_DOWN in at.notes["JobRejected"]
        at.answers.clear()
        await at.reconcile()
        assert (world.reason, len(world.created)) == ("Pending", 1)

    served(world, test)


def test_what_stands_before_the_api_server_is_not_taken_for_its_word() -> None:
    world = World()

    async def test(at: Served) -> None:
        at.answers["POST job"] = No(502, message="<html>Bad Gateway</html>")
        with pytest.raises(Unavailable):
            await at.reconcile()
        assert at.asked == ["POST job"]

    served(world, test)


QUOTA = "exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0"


def without_pod(words: str) -> World:
    """Return a world that has waited for its pod as long as anyone does before asking."""
    world = World()
    world.pod_rejection = words
    world.settle()
    world.passes(10)
    return world


def test_a_pod_that_stays_refused_is_told_once_and_costs_a_question_a_minute() -> None:
    world = without_pod(QUOTA)

    async def test(at: Served) -> None:
        assert await at.reconcile() == 60
        assert at.asked == ["GET events", "PUT status", "POST event PodRejected"]
        assert QUOTA in at.notes["PodRejected"]
        at.asked.clear()
        for _ in range(10):
            # The Job controller tries again meanwhile, each time with another name.
            world.controllers()
            world.passes(60)
            assert await at.reconcile() == 60
        assert at.asked == ["GET events"] * 10

    served(world, test)
    assert len({event["note"] for event in world.said}) > 10


@pytest.mark.parametrize(
    "answer", [None, No(403, "Forbidden", "cannot list events")], ids=["nothing", "no right"]
)
def test_a_pod_that_nobody_speaks_of_is_asked_about_each_minute_and_waited_for(
    answer: No | None,
) -> None:
    world = without_pod(QUOTA)
    world.said.clear()

    async def test(at: Served) -> None:
        at.answers |= {"GET events": answer} if answer else {}
        assert await at.reconcile() == 60
        assert at.asked == ["GET events"]
        assert world.reason == "Pending"

    served(world, test)


def test_a_pod_on_its_way_is_asked_nothing_about() -> None:
    world = running()

    async def test(at: Served) -> None:
        world.passes(1000)
        await at.reconcile()
        assert at.asked == []

    served(world, test)


def test_the_words_of_an_event_are_cut_and_cleaned_before_they_are_shown() -> None:
    world = without_pod(f"\x1b[31mtoken hf_{'a' * 30}\x00 {'long ' * 1000}")

    async def test(at: Served) -> None:
        await at.reconcile()
        assert "hf_…" in world.message
        assert "aaaa" not in world.message
        assert world.message.isprintable()
        assert len(world.message) < 1200

    served(world, test)


@pytest.mark.parametrize("words", ["no node ", "kein Knoten für ", "ノードがない", "😀"])
def test_a_note_that_is_cut_is_one_that_the_server_takes(words: str) -> None:
    world = World()
    world.settle()
    world.unschedulable(words * 1000)

    async def test(at: Served) -> None:
        await at.reconcile()
        note = at.notes["Unschedulable"]
        assert note.endswith("…")
        assert len(note.encode()) > 1020
        assert world.message.startswith(note[:-1]), "no character is cut in two"

    served(world, test)
