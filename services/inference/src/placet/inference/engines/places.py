"""Places for requests that run for long: so many run, so many wait, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from placet.core.errors import DeadlineExceeded, Unavailable
from placet.inference.engines.batching import rate_limited

_SMOOTHING = 0.2


class Places:
    """`size` places; at most `max_waiting` wait for one."""

    def __init__(self, size: int, max_waiting: int) -> None:
        self.size = size
        self.running = 0
        self._max_waiting = max_waiting
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._mean_s = 1.0

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def take(self, deadline: float) -> float:
        """Waits for a place, which must be given back. Returns the seconds waited.

        Raises:
            RateLimited: too many wait. DeadlineExceeded. Unavailable: closed.
        """
        if self._closed:
            raise Unavailable("the model is being unloaded")
        loop = asyncio.get_running_loop()
        now = loop.time()
        if deadline <= now:
            raise DeadlineExceeded("the deadline had passed before there was a place")
        if self.running < self.size and not self._waiting:
            self.running += 1
            return 0.0
        if len(self._waiting) >= self._max_waiting:
            raise rate_limited(len(self._waiting), self.size, self._mean_s)
        mine: asyncio.Future[None] = loop.create_future()
        self._waiting.append(mine)
        try:
            async with asyncio.timeout_at(deadline):
                await mine
        except BaseException as error:
            if mine.done() and not mine.cancelled() and mine.exception() is None:
                self._pass_on()  # the place came in the same moment
            else:
                with suppress(ValueError):
                    self._waiting.remove(mine)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the deadline passed while it waited for a place") from None
            raise
        return loop.time() - now

    def give_back(self, used_s: float) -> None:
        """The place is free again, after so many seconds."""
        self._mean_s += _SMOOTHING * (used_s - self._mean_s)
        self._pass_on()

    def close(self) -> None:
        """Nobody gets a place any more."""
        self._closed = True
        while self._waiting:
            mine = self._waiting.popleft()
            if not mine.done():
                mine.set_exception(Unavailable("the model is being unloaded"))

    def _pass_on(self) -> None:
        while self._waiting:
            mine = self._waiting.popleft()
            if not mine.done():
                mine.set_result(None)  # the place changes hands
                return
        self.running -= 1
