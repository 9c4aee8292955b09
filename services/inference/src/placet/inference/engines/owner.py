"""The one thread that owns a language model: it alone creates it, drives it and throws it away.

Requests come by mail and go token by token into the event loops of those who asked. A decoder that raises fails what was open and is built
anew, here. One that hangs cannot be helped from inside: `overdue` says so, and whoever waits abandons this thread for another.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from placet.core.errors import PlacetError, Unavailable
from placet.core.receipts import Finish
from placet.inference.engines.base import Sampling, TextPiece
from placet.inference.engines.text import Detokenizer, StopFilter

__all__ = ["Decoder", "Ended", "Owner", "Step", "Task"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """A task's last event."""

    finish: Finish
    completion_tokens: int


Event = TextPiece | Ended | PlacetError


class Task:
    """One generation: written by the owner's thread, read by the loop that asked. `cancelled` may be set by anybody."""

    def __init__(
        self,
        tokens: Sequence[int],
        sampling: Sampling,
        *,
        alone: bool,
        decode: Callable[[Sequence[int]], str],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.tokens = tokens
        self.sampling = sampling
        self.alone = alone
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.cancelled = False
        self._loop = loop
        self._detokenizer = Detokenizer(decode)
        self._filter = StopFilter(sampling.stop)
        self._count = 0
        self._untold = 0

    def push(self, token: int) -> bool:
        """A token was generated. True: the task has ended by it."""
        self._count += 1
        self._untold += 1
        text, stopped = self._filter.push(self._detokenizer.push(token))
        self._tell(text)
        if stopped:
            self.emit(Ended(Finish.STOP, self._count))
        elif self._count >= self.sampling.max_tokens:
            self.end(Finish.LENGTH)
        else:
            return False
        return True

    def end(self, finish: Finish) -> None:
        """Nothing follows; what was held back is told now."""
        text, stopped = self._filter.push(self._detokenizer.end())
        self._tell(text if stopped else text + self._filter.end())
        self.emit(Ended(Finish.STOP if stopped else finish, self._count))

    def emit(self, event: Event) -> None:
        """Into the loop that asked; from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def _tell(self, text: str) -> None:
        if text:
            self.emit(TextPiece(text, self._untold))
            self._untold = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What happened to a task: a token, its end (no more tokens), or an error that is its own."""

    task: Task
    token: int | None = None
    finish: Finish | None = None
    error: PlacetError | None = None


class Decoder(Protocol):
    """What generates tokens. All its methods are called by the owner's thread. What it raises breaks it."""

    provider: str

    def begin(self, tasks: Sequence[Task]) -> Iterable[Step]:
        """New tasks; they came together. Steps: those that cannot begin."""

    def step(self) -> Iterable[Step]:
        """At most one token for every task. A task that ended or failed is forgotten."""

    def drop(self, task: Task) -> None:
        """The task is of no interest any more. It may have ended."""

    def close(self) -> None:
        """Free everything."""


class Owner:
    """A thread, its decoder, and the tasks that are open."""

    def __init__(self, build: Callable[[], Decoder], *, stuck_after_s: float, build_within_s: float, name: str) -> None:
        self._build = build
        self._stuck_after_s = stuck_after_s
        self._build_within_s = build_within_s
        self._mail: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._open: dict[Task, None] = {}
        self._due: float | None = None
        self._closing = False
        self._abandoned = False
        self._built = threading.Event()
        self.failure: PlacetError | None = None
        """Why there is no decoder; the thread has ended then."""
        self.failed_at = 0.0
        """When it failed, monotonic."""
        self.provider = ""
        self.builds = 0
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    # --- from any thread

    def wait_until_built(self) -> None:
        """Blocks until the decoder is there. Raises why it is not."""
        if not self._built.wait(self._build_within_s):
            self.abandon(Unavailable("the model did not load in time"))
        if self.failure is not None:
            raise self.failure

    def submit(self, task: Task) -> None:
        """Begin a task; its events say the rest."""
        self._mail.put(task)
        if self.failure is not None:
            self._fail_all(_rebuilding())

    @property
    def overdue(self) -> bool:
        """It should have given a sign of life and did not."""
        due = self._due
        return due is not None and time.monotonic() > due

    def abandon(self, error: PlacetError) -> None:
        """Whatever the thread does, nobody listens any more. It ends as soon as it can."""
        self._abandoned = True
        if self.failure is None:
            self.failure, self.failed_at = error, time.monotonic()
        self._fail_all(error)
        self._mail.put(None)

    def close(self) -> None:
        """What is open ends as interrupted, then the thread ends."""
        self._closing = True
        self._mail.put(None)

    def join(self, timeout_s: float) -> bool:
        """Whether the thread ended in time. Blocks."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _fail(self, error: PlacetError) -> None:
        """There will be no decoder. That is not the fault of those who asked."""
        if self.failure is None:
            self.failure, self.failed_at = error, time.monotonic()
        self._due = None
        self._built.set()
        self._fail_all(_rebuilding())

    def _fail_all(self, error: PlacetError) -> None:
        for task in self._read(wait=False):
            task.emit(error)
        for task in list(self._open):
            self._open.pop(task, None)
            task.emit(error)

    # --- the thread

    def _over(self) -> bool:
        return self._closing or self._abandoned

    def _live(self) -> None:
        while not self._over():
            self._due = time.monotonic() + self._build_within_s
            try:
                decoder = self._build()
            except Exception as error:
                log.exception("the model does not load")
                self._fail(error if isinstance(error, PlacetError) else Unavailable(f"the model does not load ({type(error).__name__})"))
                return
            self.builds += 1
            self.provider = decoder.provider
            self._built.set()
            try:
                self._serve(decoder)
            except Exception:
                if not self._abandoned:
                    log.exception("the engine broke: %d requests fail, it is built again", len(self._open))
                    self._fail_all(_rebuilding())
            finally:
                with suppress(Exception):
                    decoder.close()
                del decoder
        self._due = None
        if self._closing:
            self._interrupt_all()

    def _serve(self, decoder: Decoder) -> None:
        while True:
            self._due = None
            if self._over():
                return
            new = self._read(wait=not self._open)
            if self._over():
                return
            self._due = time.monotonic() + self._stuck_after_s
            for task in [task for task in self._open if task.cancelled]:
                self._open.pop(task, None)
                decoder.drop(task)
            fresh = [task for task in new if not task.cancelled]
            if fresh:
                self._due = time.monotonic() + self._stuck_after_s * len(fresh)  # each reads its prompt
                self._open.update(dict.fromkeys(fresh))
                self._tell(decoder, decoder.begin(fresh))
            if self._open and not self._abandoned:
                self._due = time.monotonic() + self._stuck_after_s
                self._tell(decoder, decoder.step())

    def _read(self, *, wait: bool) -> list[Task]:
        """New tasks. None among the mail only wakes whoever waits, to look about."""
        found = [self._mail.get()] if wait else []
        with suppress(queue.Empty):
            while True:
                found.append(self._mail.get_nowait())
        return [task for task in found if task is not None]

    def _tell(self, decoder: Decoder, steps: Iterable[Step]) -> None:
        for step in steps:
            if self._abandoned or step.task not in self._open:
                continue
            task = step.task
            if step.error is not None:
                task.emit(step.error)
                ended = True
            else:
                ended = step.token is not None and task.push(step.token)
                if not ended and step.finish is not None:
                    task.end(step.finish)
                    ended = True
            if ended:
                self._open.pop(task, None)
                decoder.drop(task)

    def _interrupt_all(self) -> None:
        for task in [*self._open, *self._read(wait=False)]:
            task.end(Finish.INTERRUPTED)
        self._open.clear()


def _rebuilding() -> Unavailable:
    return Unavailable("the engine broke and is being rebuilt", retry_after_ms=1_000)
