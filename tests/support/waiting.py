"""Tests wait for conditions, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], what: str = "the condition holds", within_s: float = 10.0) -> None:
    """Returns once the condition is true; fails when it is not in time."""
    ends = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends, f"not within {within_s:.0f} s: {what}"
        await asyncio.sleep(0.01)


def within(seconds: float = 20.0) -> float:
    """A deadline in the running loop's time."""
    return asyncio.get_running_loop().time() + seconds
