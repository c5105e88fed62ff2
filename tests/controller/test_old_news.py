"""A watch may lag: what was just deleted is still seen, and no decision may rest on that."""

from __future__ import annotations

import copy

from tests.controller.world import World

from kubequant.api.outcome import ExitCode, FailureReason


def failed_world() -> World:
    world = World()
    world.settle()
    world.starts()
    world.settle()
    world.fails(ExitCode.ACCESS, FailureReason.ACCESS_DENIED)
    world.settle()
    assert world.reason == "AccessDenied"
    return world


def pass_before_the_watch_knows(world: World) -> None:
    """Let the operator act, and pass once more on the Jobs as they were before."""
    before = copy.deepcopy((world.jobs, world.pods))
    world.pass_once()
    world.seen = before
    world.pass_late()


def test_the_job_of_an_earlier_try_does_not_fail_the_next() -> None:
    world = failed_world()
    # What the Job is made from stays the same, so that nothing in it tells of another try.
    world.edit("ttlSecondsAfterFinished: 100000")
    pass_before_the_watch_knows(world)
    assert world.reason == "Replacing"
    world.settle()
    assert world.reason == "Pending"
    assert len(world.created) == 2


def test_the_job_of_an_earlier_try_does_not_fail_what_is_suspended() -> None:
    world = failed_world()
    world.edit("suspend: true")
    pass_before_the_watch_knows(world)
    assert world.reason == "UserSuspended"


def test_a_failed_run_that_is_suspended_is_said_to_be_so_at_once() -> None:
    world = failed_world()
    world.edit("suspend: true")
    world.pass_once()
    assert world.reason == "UserSuspended"


def test_a_job_that_was_just_created_is_not_created_or_told_twice() -> None:
    world = World()
    world.settle()
    world.starts()
    world.settle()
    name = "tiny-" + world.digest
    world.delete_job(name)
    world.settle()
    assert world.events == ["Replacing", "JobCreated"], "of the first the status tells enough"
    world.seen = ({}, {})
    assert [type(action).__name__ for action in world.decide(late=True).actions] == ["CreateJob"]
    assert world.decide(late=True).events == ()
    world.pass_late()
    assert world.created == [name, name]
    assert world.events == ["Replacing", "JobCreated"]
