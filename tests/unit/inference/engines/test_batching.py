from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placet.core.errors import DeadlineExceeded, InvalidInput, PlacetError, RateLimited, Unavailable
from placet.inference.engines.batching import Done, Runner, Work, choose, take
from tests.support.waiting import until, within


class Gated:
    """A run that records its feeds and waits until it is let through."""

    def __init__(self) -> None:
        self.runs: list[list[str]] = []
        self.gate = threading.Event()

    def __call__(self, feeds: Sequence[str]) -> Sequence[str | PlacetError]:
        self.runs.append(list(feeds))
        assert self.gate.wait(20)
        return [InvalidInput("wrong") if feed == "wrong" else feed.upper() for feed in feeds]


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
async def runner(gated: Gated) -> AsyncIterator[Runner[str, str]]:
    made: Runner[str, str] = Runner(gated, concurrency=1, max_waiting=3, max_rows=4, name="test")
    yield made
    gated.gate.set()
    await made.close()


def ask(runner: Runner[str, str], feed: str, key: str | None = "k", rows: int = 1) -> asyncio.Task[Done[str]]:
    return asyncio.create_task(runner.submit(feed, rows=rows, key=key, deadline=within()))


async def test_what_waits_and_fits_together_runs_together_and_in_order(runner: Runner[str, str], gated: Gated) -> None:
    first = ask(runner, "a")
    await until(lambda: gated.runs == [["a"]])
    rest = [ask(runner, "b"), ask(runner, "c", key="other"), ask(runner, "d")]
    await until(lambda: runner.load == (1, 3))
    gated.gate.set()
    answers = await asyncio.gather(first, *rest)
    assert [answer.out for answer in answers] == ["A", "B", "C", "D"]
    assert [answer.batch_rows for answer in answers] == [1, 2, 1, 2]
    assert gated.runs == [["a"], ["b", "d"], ["c"]]
    assert runner.load == (0, 0)


async def test_what_arrives_in_the_same_turn_of_the_loop_shares_the_first_run(runner: Runner[str, str], gated: Gated) -> None:
    gated.gate.set()
    answers = await asyncio.gather(*(ask(runner, feed) for feed in "abc"))
    assert {answer.batch_rows for answer in answers} == {3}


async def test_a_request_without_a_key_runs_alone(runner: Runner[str, str], gated: Gated) -> None:
    gated.gate.set()
    answers = await asyncio.gather(*(ask(runner, feed, key=None) for feed in "abc"))
    assert {answer.batch_rows for answer in answers} == {1}


async def test_an_error_belongs_to_one_request_of_a_run(runner: Runner[str, str], gated: Gated) -> None:
    gated.gate.set()
    right, wrong = await asyncio.gather(ask(runner, "right"), ask(runner, "wrong"), return_exceptions=True)
    assert isinstance(right, Done)
    assert right.out == "RIGHT"
    assert right.batch_rows == 2
    assert isinstance(wrong, InvalidInput)


async def test_a_full_queue_refuses_and_says_when_to_come_again(runner: Runner[str, str], gated: Gated) -> None:
    asked = [ask(runner, feed) for feed in "abcd"]
    await until(lambda: runner.load[0] > 0)
    asked += [ask(runner, feed, key="other") for feed in "efg"]
    await until(lambda: runner.load == (4, 3))
    with pytest.raises(RateLimited) as refused:
        await runner.submit("h", rows=1, key="k", deadline=within())
    assert refused.value.extra["retry_after_ms"] > 0
    assert refused.value.problem()["retryable"] is True
    gated.gate.set()
    await asyncio.gather(*asked)


async def test_what_waits_is_bounded_in_bytes_too(gated: Gated) -> None:
    runner: Runner[str, str] = Runner(gated, concurrency=1, max_waiting=10, max_rows=4, name="test", max_waiting_bytes=100)

    def large(size: int, seconds: float = 20.0) -> asyncio.Task[Done[str]]:
        return asyncio.create_task(runner.submit("x", rows=1, key=None, deadline=within(seconds), size=size))

    runs = large(1_000)
    await until(lambda: runner.load == (1, 0))
    waits, late = large(60), large(30, 0.05)
    await until(lambda: runner.load == (1, 2))
    with pytest.raises(RateLimited):
        await large(50)
    with pytest.raises(DeadlineExceeded):
        await late
    waits.cancel()
    await until(lambda: runner.load == (1, 0))
    waits = large(100)
    await until(lambda: runner.load == (1, 1))
    gated.gate.set()
    await asyncio.gather(runs, waits)
    await large(100)
    await runner.close()


async def test_a_cancelled_waiter_frees_its_place_and_does_not_run(runner: Runner[str, str], gated: Gated) -> None:
    first = ask(runner, "a")
    await until(lambda: runner.load == (1, 0))
    waiter = ask(runner, "b")
    await until(lambda: runner.load == (1, 1))
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert runner.load == (1, 0)
    gated.gate.set()
    await first
    assert gated.runs == [["a"]]


async def test_who_leaves_while_it_runs_is_not_missed(runner: Runner[str, str], gated: Gated) -> None:
    first = ask(runner, "a")
    await until(lambda: runner.load == (1, 0))
    first.cancel()
    gated.gate.set()
    assert (await ask(runner, "b")).out == "B"
    assert runner.load == (0, 0)


async def test_a_deadline_that_passed_is_told_before_anything_runs(runner: Runner[str, str], gated: Gated) -> None:
    with pytest.raises(DeadlineExceeded):
        await runner.submit("a", rows=1, key="k", deadline=within(-1))
    assert gated.runs == []


async def test_a_deadline_that_passes_while_it_waits_is_told_then_and_it_never_runs(runner: Runner[str, str], gated: Gated) -> None:
    first = ask(runner, "a")
    await until(lambda: runner.load == (1, 0))
    with pytest.raises(DeadlineExceeded):
        await runner.submit("b", rows=1, key="k", deadline=within(0.02))
    assert runner.load == (1, 0)
    gated.gate.set()
    await first
    assert gated.runs == [["a"]]


async def test_closing_fails_those_who_wait_and_lets_run_what_runs(gated: Gated) -> None:
    runner: Runner[str, str] = Runner(gated, concurrency=1, max_waiting=3, max_rows=4, name="test")
    first = ask(runner, "a")
    await until(lambda: runner.load == (1, 0))
    waiter = ask(runner, "b")
    await until(lambda: runner.load == (1, 1))
    closing = asyncio.create_task(runner.close())
    with pytest.raises(Unavailable):
        await waiter
    gated.gate.set()
    assert (await first).out == "A"
    await closing
    with pytest.raises(Unavailable):
        await runner.submit("c", rows=1, key="k", deadline=within())


async def test_closing_does_not_wait_for_ever_for_what_hangs(gated: Gated) -> None:
    runner: Runner[str, str] = Runner(gated, concurrency=1, max_waiting=3, max_rows=4, name="test")
    first = ask(runner, "a")
    await until(lambda: runner.load == (1, 0))
    await runner.close(grace_s=0.01)
    gated.gate.set()
    await first


async def test_a_defect_in_the_run_reaches_those_who_wait() -> None:
    def broken(feeds: Sequence[str]) -> Sequence[str]:
        raise ZeroDivisionError

    runner: Runner[str, str] = Runner(broken, concurrency=1, max_waiting=3, max_rows=4, name="test")
    with pytest.raises(PlacetError) as failed:
        await runner.submit("a", rows=1, key="k", deadline=within())
    assert failed.value.code == "internal"
    await runner.close()


# --- pure


Spec = tuple[int, str | None]


def works(specs: Sequence[Spec], loop: asyncio.AbstractEventLoop) -> deque[Work[int, int]]:
    return deque(Work(number, rows, key, 0.0, 0.0, 0, loop.create_future()) for number, (rows, key) in enumerate(specs))


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["a", "b", None])), min_size=1, max_size=12), st.integers(1, 8))
def test_a_run_never_mixes_keys_nor_exceeds_its_rows_and_nobody_is_lost_or_overtaken(specs: list[Spec], max_rows: int) -> None:
    loop = asyncio.new_event_loop()
    try:
        waiting = works(specs, loop)
        order: list[int] = []
        while waiting:
            first = waiting[0]
            taken = take(waiting, max_rows)
            assert taken[0] is first
            assert len({work.key for work in taken}) == 1
            assert len(taken) == 1 or (taken[0].key is not None and sum(work.rows for work in taken) <= max_rows)
            assert [work.feed for work in taken] == sorted(work.feed for work in taken)
            assert [work.feed for work in waiting] == sorted(work.feed for work in waiting)
            order += [work.feed for work in taken]
        assert sorted(order) == list(range(len(specs)))
    finally:
        loop.close()


def test_batching_must_be_worth_it() -> None:
    assert choose({1: 1.0, 8: 6.3, 32: 30.0}).max_rows == 1
    assert choose({1: 1.0, 8: 4.0, 32: 30.0}).max_rows == 8
    assert choose({1: 1.0, 8: 4.0, 32: 8.0}).max_rows == 32
    assert choose({1: 1.0}).max_rows == 1
    assert choose({1: 1.0, 8: 4.0}).gain == 2.0
