"""Rate limit for a library's loggers: aiokafka writes tens of lines a second and client while a broker is away.

Of equal messages (logger, level, template) one passes every ten seconds and says how many were left out; the rest is counted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from placet.core.telemetry import metrics, names

EVERY_S: Final = 10.0
_MAX_REMEMBERED: Final = 512

_SUPPRESSED = metrics.counter(names.BUS_SUPPRESSED_LOG_LINES, "Log lines of client libraries left out by the rate limit.", ["logger"])


class RateLimit(logging.Filter):
    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.name, record.levelno, str(record.msg))
        now = self._clock()
        last, left_out = self._seen.get(kind, (float("-inf"), 0))
        if now - last < self._every_s:
            self._seen[kind] = (last, left_out + 1)
            _SUPPRESSED.labels(record.name).inc()
            return False
        if len(self._seen) >= _MAX_REMEMBERED:
            self._seen.clear()
        self._seen[kind] = (now, 0)
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} more like this were left out)"
            record.args = None
        return True


_limit = RateLimit()


def quiet(library: str, level: int = logging.WARNING) -> None:
    """Puts the limit on every logger of `library` that exists by now; idempotent. Filters do not reach child loggers, hence each."""
    logging.getLogger(library).setLevel(level)
    for name in [library, *(name for name in logging.root.manager.loggerDict if name.startswith(f"{library}."))]:
        logger = logging.getLogger(name)
        if _limit not in logger.filters:
            logger.addFilter(_limit)
