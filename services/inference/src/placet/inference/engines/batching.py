"""Runs of a model in native threads: who runs, who waits, and who shares a run.

Zero wait: whatever is queued when a thread becomes free, and fits together, runs together; nobody waits for company. The queue belongs to
the event loop, so it needs no lock; threads only ever see the works of one run.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from placet.core.errors import DeadlineExceeded, Internal, PlacetError, RateLimited, Unavailable

__all__ = ["WORTH_IT", "Batching", "Done", "Runner", "Work", "choose", "processors", "rate_limited", "take"]

Feed = TypeVar("Feed")
Out = TypeVar("Out")

WORTH_IT = 1.3
"""Rows a second in batches, over rows a second one by one: what batching must gain."""

_SMOOTHING = 0.1


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Batching:
    """What was decided for a model, and why. `max_rows` 1: no batching."""

    max_rows: int
    why: str
    gain: float = 1.0


def choose(seconds_by_rows: Mapping[int, float]) -> Batching:
    """The batch size that gains most, from the seconds that one run of so many rows took. 1 must be among them."""
    single = seconds_by_rows[1]
    gains = {rows: single * rows / max(seconds, 1e-9) for rows, seconds in seconds_by_rows.items() if rows > 1}
    if not gains:
        return Batching(1, "no larger run was measured")
    rows = max(gains, key=lambda size: gains[size])
    if gains[rows] <= WORTH_IT:
        return Batching(1, f"measured: {rows} rows together are {gains[rows]:.2f} times as fast, {WORTH_IT} wanted", gains[rows])
    return Batching(rows, f"measured: {rows} rows together are {gains[rows]:.2f} times as fast", gains[rows])


@dataclass(frozen=True, slots=True)
class Done(Generic[Out]):
    """A run's outcome for one request."""

    out: Out
    batch_rows: int
    queued_s: float
    computed_s: float


@dataclass(slots=True, eq=False)
class Work(Generic[Feed, Out]):
    """A request that waits or runs. Works of one `key` may share a run; None: alone."""

    feed: Feed
    rows: int
    key: Hashable | None
    deadline: float
    queued_at: float
    size: int
    future: asyncio.Future[Done[Out]] = field(repr=False)


def take(waiting: deque[Work[Feed, Out]], max_rows: int) -> list[Work[Feed, Out]]:
    """Removes and returns the first work and those behind it that may share its run, in order. The others keep their order."""
    first = waiting.popleft()
    taken = [first]
    if first.key is None or first.rows >= max_rows or not waiting:
        return taken
    rows = first.rows
    left: list[Work[Feed, Out]] = []
    while waiting and rows < max_rows:
        work = waiting.popleft()
        if work.key == first.key and rows + work.rows <= max_rows:
            taken.append(work)
            rows += work.rows
        else:
            left.append(work)
    waiting.extendleft(reversed(left))
    return taken


def rate_limited(waiting: int, concurrency: int, mean_s: float) -> RateLimited:
    """That there is no place, and when there probably is one."""
    after_ms = round(1_000 * mean_s * (waiting + 1) / max(concurrency, 1))
    return RateLimited(f"{waiting} requests wait for this model already", retry_after_ms=min(max(after_ms, 10), 30_000))


class Runner(Generic[Feed, Out]):
    """`concurrency` runs at once, each in its own thread; at most `max_waiting` requests wait, of at most `max_waiting_bytes` together.

    `run` gets the feeds of one run and returns, for each, its output or the error that is its own.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Feed]], Sequence[Out | PlacetError]],
        *,
        concurrency: int,
        max_waiting: int,
        max_rows: int,
        name: str,
        max_waiting_bytes: int = 256 << 20,
    ) -> None:
        self._run = run
        self._concurrency = concurrency
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._max_rows = max_rows
        self._waiting: deque[Work[Feed, Out]] = deque()
        self._waiting_bytes = 0
        self._runs = 0
        self._running = 0
        self._dispatching = False
        self._closed = False
        self._ended: asyncio.Event | None = None
        self._mean_s = 0.005
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(concurrency)]
        for thread in self._threads:
            thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting), in requests."""
        return self._running, len(self._waiting)

    async def submit(self, feed: Feed, *, rows: int, key: Hashable | None, deadline: float, size: int = 0) -> Done[Out]:
        """Waits for a place and for the run. Cancelled while it waits, it gives its place back. `size`: the feed's bytes.

        Raises:
            RateLimited, DeadlineExceeded, Unavailable (closed), and what `run` returned as this feed's error.
        """
        if self._closed:
            raise Unavailable("the model is being unloaded")
        loop = asyncio.get_running_loop()
        now = loop.time()
        if deadline <= now:
            raise DeadlineExceeded("the deadline had passed before the model ran")
        full = len(self._waiting) >= self._max_waiting + self._concurrency - self._runs
        if full or (self._waiting and self._waiting_bytes + size > self._max_waiting_bytes):
            raise rate_limited(len(self._waiting), self._concurrency, self._mean_s)
        work: Work[Feed, Out] = Work(feed, rows, key, deadline, now, size, loop.create_future())
        self._waiting.append(work)
        self._waiting_bytes += size
        if not self._dispatching and self._runs < self._concurrency:
            # One turn later: what arrives in this turn of the loop shares the run.
            self._dispatching = True
            loop.call_soon(self._dispatch, loop)
        expiry = loop.call_at(deadline, self._expire, work)
        try:
            return await work.future
        except asyncio.CancelledError:
            self._forget(work)
            raise
        finally:
            expiry.cancel()

    async def close(self, grace_s: float = 10.0) -> None:
        """Fails who waits, lets run what runs for `grace_s`, ends the threads."""
        self._closed = True
        while self._waiting:
            work = self._waiting[0]
            self._forget(work)
            if not work.future.done():
                work.future.set_exception(Unavailable("the model is being unloaded"))
        if self._runs:
            self._ended = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._ended.wait()
        for _ in self._threads:
            self._calls.put(None)

    def _forget(self, work: Work[Feed, Out]) -> None:
        with suppress(ValueError):
            self._waiting.remove(work)
            self._waiting_bytes -= work.size

    def _expire(self, work: Work[Feed, Out]) -> None:
        self._forget(work)
        if not work.future.done():
            work.future.set_exception(DeadlineExceeded("the deadline passed before the model had answered"))

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._dispatching = False
        while self._runs < self._concurrency and self._waiting:
            works = take(self._waiting, self._max_rows)
            self._waiting_bytes -= sum(work.size for work in works)
            self._runs += 1
            self._running += len(works)
            self._calls.put(partial(self._work, works, loop, loop.time()))

    # --- in a thread

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _work(self, works: list[Work[Feed, Out]], loop: asyncio.AbstractEventLoop, started_at: float) -> None:
        started = time.perf_counter()
        outs: Sequence[Out | PlacetError]
        try:
            outs = self._run([work.feed for work in works])
        except Exception as error:  # noqa: BLE001 - whatever it is, it must reach those who wait
            outs = [Internal(f"the engine failed ({type(error).__name__})")] * len(works)
        took = time.perf_counter() - started
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(self._deliver, works, outs, loop, started_at, took)

    # --- in the event loop again

    def _deliver(
        self,
        works: list[Work[Feed, Out]],
        outs: Sequence[Out | PlacetError],
        loop: asyncio.AbstractEventLoop,
        started_at: float,
        took: float,
    ) -> None:
        self._runs -= 1
        self._running -= len(works)
        self._mean_s += _SMOOTHING * (took / len(works) - self._mean_s)
        self._dispatch(loop)  # first of all: a thread is idle
        rows = sum(work.rows for work in works)
        for work, out in zip(works, outs, strict=True):
            if work.future.done():
                continue
            if isinstance(out, PlacetError):
                work.future.set_exception(out)
            else:
                work.future.set_result(Done(out, rows, max(started_at - work.queued_at, 0.0), took))
        if self._ended is not None and not self._runs:
            self._ended.set()
