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

from placet.core.errors import InvalidInput, PlacetError, Unavailable
from placet.core.receipts import Finish
from placet.inference.engines.base import Sampling, TextPiece
from placet.inference.engines.decoding import Decoder, Job, Step
from placet.inference.engines.text import Detokenizer, StopFilter

__all__ = ["Ended", "Event", "Owner", "Task"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """A task's last event."""

    finish: Finish
    completion_tokens: int


Event = TextPiece | Ended | PlacetError


class Task(Job):
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
        super().__init__(tokens, sampling, alone=alone)
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


class _Chat:
    """Messages that are to become a text."""

    def __init__(self, messages: str, loop: asyncio.AbstractEventLoop) -> None:
        self.messages = messages
        self.text: asyncio.Future[str] = loop.create_future()
        self._loop = loop

    def emit(self, outcome: str | PlacetError) -> None:
        """Into the loop that asked; from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._set, outcome)

    def _set(self, outcome: str | PlacetError) -> None:
        if not self.text.done():
            if isinstance(outcome, PlacetError):
                self.text.set_exception(outcome)
            else:
                self.text.set_result(outcome)


class Owner:
    """A thread, its decoder, and the tasks that are open."""

    def __init__(self, build: Callable[[], Decoder], *, stuck_after_s: float, build_within_s: float, name: str) -> None:
        self._build = build
        self._stuck_after_s = stuck_after_s
        self._build_within_s = build_within_s
        self._mail: queue.SimpleQueue[Task | _Chat | None] = queue.SimpleQueue()
        self._open: dict[Job, Task] = {}
        self._decoder: Decoder | None = None
        self._due: float | None = None
        self._closing = False
        self._abandoned = False
        self._built = threading.Event()
        self.failure: PlacetError | None = None
        """Why there is no decoder; the thread has ended then."""
        self.failed_at = 0.0
        """When it failed, monotonic."""
        self.engine = self.provider = ""
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

    def chat_text(self, messages: str) -> asyncio.Future[str]:
        """The chat template's text, or InvalidInput, or Unavailable."""
        chat = _Chat(messages, asyncio.get_running_loop())
        self._mail.put(chat)
        if self.failure is not None:
            self._fail_all(_rebuilding())
        return chat.text

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
        if self._decoder is not None:
            self._decoder.kill()

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
        for mail in self._read(wait=False):
            mail.emit(error)
        for task in list(self._open.values()):
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
            self.engine, self.provider = decoder.engine, decoder.provider
            self._decoder = decoder
            self._built.set()
            try:
                self._serve(decoder)
            except Exception:
                if not self._abandoned:
                    log.exception("the engine broke: %d requests fail, it is built again", len(self._open))
                    self._fail_all(_rebuilding())
            finally:
                self._decoder = None
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
            for task in [task for task in self._open.values() if task.cancelled]:
                self._open.pop(task, None)
                decoder.drop(task)
            for mail in new:
                if isinstance(mail, _Chat):
                    self._render(decoder, mail)
            fresh = [task for task in new if isinstance(task, Task) and not task.cancelled]
            if fresh:
                self._due = time.monotonic() + self._stuck_after_s * len(fresh)  # each reads its prompt
                self._open.update(zip(fresh, fresh, strict=True))
                self._tell(decoder, decoder.begin(fresh))
            if self._open and not self._abandoned:
                self._due = time.monotonic() + self._stuck_after_s
                self._tell(decoder, decoder.step())

    def _render(self, decoder: Decoder, chat: _Chat) -> None:
        try:
            chat.emit(decoder.chat_text(chat.messages))
        except InvalidInput as refused:
            chat.emit(refused)
        except Exception:
            chat.emit(_rebuilding())
            raise

    def _read(self, *, wait: bool) -> list[Task | _Chat]:
        """What is new. None among the mail only wakes whoever waits, to look about."""
        found = [self._mail.get()] if wait else []
        with suppress(queue.Empty):
            while True:
                found.append(self._mail.get_nowait())
        return [mail for mail in found if mail is not None]

    def _tell(self, decoder: Decoder, steps: Iterable[Step]) -> None:
        for step in steps:
            task = self._open.get(step.job)
            if self._abandoned or task is None:
                continue
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
        for mail in [*self._open.values(), *self._read(wait=False)]:
            if isinstance(mail, Task):
                mail.end(Finish.INTERRUPTED)
            else:
                mail.emit(Unavailable("the model is being unloaded"))
        self._open.clear()


def _rebuilding() -> Unavailable:
    return Unavailable("the engine broke and is being rebuilt", retry_after_ms=1_000)
