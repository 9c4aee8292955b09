from __future__ import annotations

import asyncio

import pytest

from placet.core.errors import DeadlineExceeded, RateLimited, Unavailable
from placet.inference.engines.places import Places
from tests.support.waiting import until, within


async def test_places_are_given_in_the_order_of_asking() -> None:
    places = Places(1, 2)
    assert await places.take(within()) == 0.0
    order: list[str] = []

    async def wait(name: str) -> None:
        assert await places.take(within()) > 0
        order.append(name)

    waiters = [asyncio.create_task(wait("a")), asyncio.create_task(wait("b"))]
    await until(lambda: places.waiting == 2)
    places.give_back(1.0)
    await until(lambda: order == ["a"])
    places.give_back(1.0)
    await asyncio.gather(*waiters)
    assert order == ["a", "b"]
    assert (places.running, places.waiting) == (1, 0)
    places.give_back(1.0)
    assert places.running == 0


async def test_more_than_may_wait_are_refused() -> None:
    places = Places(1, 0)
    await places.take(within())
    with pytest.raises(RateLimited) as refused:
        await places.take(within())
    assert refused.value.extra["retry_after_ms"] > 0


async def test_a_waiter_that_leaves_or_is_late_gives_its_turn_on() -> None:
    places = Places(1, 2)
    await places.take(within())
    leaves = asyncio.create_task(places.take(within()))
    await until(lambda: places.waiting == 1)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    with pytest.raises(DeadlineExceeded):
        await places.take(within(0.01))
    assert places.waiting == 0
    places.give_back(1.0)
    assert places.running == 0


async def test_a_place_that_comes_in_the_moment_of_leaving_is_not_lost() -> None:
    places = Places(1, 2)
    await places.take(within())
    leaves = asyncio.create_task(places.take(within()))
    await until(lambda: places.waiting == 1)
    places.give_back(1.0)  # the place is the waiter's now, which has not run yet
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert places.running == 0


async def test_closing_fails_those_who_wait() -> None:
    places = Places(1, 2)
    await places.take(within())
    waiter = asyncio.create_task(places.take(within()))
    await until(lambda: places.waiting == 1)
    places.close()
    with pytest.raises(Unavailable):
        await waiter
    with pytest.raises(Unavailable):
        await places.take(within())
