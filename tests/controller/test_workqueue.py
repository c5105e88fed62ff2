"""The queue of keys: once each, never twice at once, backoff and timers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kubequant.controller.workqueue import (
    FIRST_RETRY_SECONDS,
    LONGEST_RETRY_SECONDS,
    WorkQueue,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def run(test: Callable[[WorkQueue[str]], Awaitable[None]], jitter: float = 0.0) -> None:
    async def within() -> None:
        queue: WorkQueue[str] = WorkQueue(lambda: jitter)
        await test(queue)
        queue.close()

    asyncio.run(within())


async def taken(queue: WorkQueue[str], seconds: float = 1.0) -> str:
    return await asyncio.wait_for(queue.take(), seconds)


async def nothing(queue: WorkQueue[str]) -> bool:
    try:
        await asyncio.wait_for(queue.take(), 0.02)
    except TimeoutError:
        return True
    return False


def test_keys_come_in_the_order_in_which_they_were_added() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        for key in ("a", "b", "c"):
            queue.add(key)
        assert [await taken(queue) for _ in range(3)] == ["a", "b", "c"]

    run(test)


def test_a_key_that_is_added_often_while_it_waits_comes_once() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        for _ in range(5):
            queue.add("a")
        assert len(queue) == 1
        assert await taken(queue) == "a"
        queue.done("a")
        assert await nothing(queue)

    run(test)


def test_a_key_that_is_added_while_it_is_worked_on_waits_until_that_is_done() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await taken(queue)
        queue.add("a")
        queue.add("a")
        assert await nothing(queue), "never twice at once"
        queue.done("a")
        assert await taken(queue) == "a"
        queue.done("a")
        assert await nothing(queue)

    run(test)


def test_no_key_is_ever_worked_on_twice_at_once_by_many_workers() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        at_work: set[str] = set()
        passes = 0

        async def work() -> None:
            nonlocal passes
            while True:
                key = await queue.take()
                assert key not in at_work
                at_work.add(key)
                await asyncio.sleep(0.0001)
                at_work.discard(key)
                passes += 1
                queue.done(key)

        workers = [asyncio.create_task(work()) for _ in range(8)]
        for number in range(400):
            queue.add(f"key {number % 7}")
            if number % 3 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert not [worker for worker in workers if worker.done()]
        assert passes >= 7
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    run(test)


def test_a_key_with_a_timer_comes_when_it_is_due_and_the_last_timer_counts() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 0.001)
        queue.add_after("a", 3600)
        assert await nothing(queue)
        queue.add_after("a", 0.001)
        assert await taken(queue) == "a"

    run(test)


def test_a_cancelled_timer_brings_nothing() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 0.001)
        queue.cancel("a")
        assert await nothing(queue)

    run(test)


def test_the_wait_doubles_with_every_failure_up_to_a_bound() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        waits = [queue.retry("a") for _ in range(30)]
        assert waits[:4] == [FIRST_RETRY_SECONDS * factor for factor in (1, 2, 4, 8)]
        assert waits[-1] == LONGEST_RETRY_SECONDS
        assert queue.retry("b") == FIRST_RETRY_SECONDS, "each key counts its own failures"
        queue.forget("a")
        assert queue.retry("a") == FIRST_RETRY_SECONDS

    run(test)


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 1.0), (0.5, 0.75), (1.0, 0.5)])
def test_up_to_half_of_a_wait_is_random(jitter: float, share: float) -> None:
    async def test(queue: WorkQueue[str]) -> None:
        assert queue.retry("a") == FIRST_RETRY_SECONDS * share

    run(test, jitter)


def test_a_closed_queue_gives_out_nothing_and_settles_when_the_last_key_is_done() -> None:
    async def test(queue: WorkQueue[str]) -> None:
        for key in ("a", "b"):
            queue.add(key)
        await taken(queue)
        queue.add("a")
        queue.add_after("c", 0.001)
        queue.close()
        assert await nothing(queue)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.settled(), 0.01)
        queue.done("a")
        await asyncio.wait_for(queue.settled(), 0.1)
        assert await nothing(queue)

    run(test)
