"""Reading a topic record by record, where one that cannot be taken now waits aside and holds nobody back.

What waits is not committed, so a restart or another replica gets it again: nothing here needs to be stored, and nothing is lost. Records of
one key keep their order. Room is bounded; when it is used up the partitions are paused, as their readers' node or database is away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from placet.core.bus import BusError, Closed, NotAssigned, Record, RecordId, Subscription, TopicPartition, next_offsets

log = logging.getLogger(__name__)

MAX_WAITING_RECORDS = 256
MAX_WAITING_BYTES = 32 << 20
GIVE_UP_AFTER = 8
"""So often a record may fail by itself: some three minutes with the pauses in between."""
_AT_ONCE = 64
_AGAIN_S = 1.0
_PAUSE_AT_MOST_S = 60.0
_RETRIES_S = 10.0
"""So long at most waiting records are tried before new ones are looked at again."""


class Outcome(Enum):
    """What came of a record."""

    DONE = "done"
    AWAY = "away"
    """What it needs is away for others too: it waits, however long."""
    FAILED = "failed"
    """It alone cannot be taken now: it is tried again ever less often, then given up."""


@dataclass(slots=True)
class _Entry:
    record: Record
    tried: bool = False
    failures: int = 0
    not_before: float = 0.0


class Inbox:
    """`take` handles one record and raises nothing; `give_up` writes a dead letter, and may raise BusError."""

    def __init__(
        self,
        take: Callable[[Record], Awaitable[Outcome]],
        give_up: Callable[[Record], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._take = take
        self._give_up = give_up
        self._clock = clock
        self._entries: dict[RecordId, _Entry] = {}
        self._next: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}

    @property
    def waiting(self) -> int:
        """Records that wait."""
        return len(self._entries)

    async def revoked(self, _: Subscription, __: frozenset[TopicPartition]) -> None:
        """Partitions go to others, or come back: whatever waits is delivered again, to whoever has them then."""
        self._entries.clear()
        self._next.clear()
        self._committed.clear()

    async def run(self, subscription: Subscription) -> None:
        """Read until the subscription is closed."""
        while True:
            try:
                records = await subscription.batch(max_records=_AT_ONCE, timeout_s=_AGAIN_S if self._entries else None)
            except Closed:
                return
            await self.take(records)
            self._make_room(subscription)
            await self._commit(subscription)

    async def take(self, records: Iterable[Record]) -> None:
        """Try new records, then those that wait and are due."""
        records = list(records)
        self._entries |= {record.id: _Entry(record) for record in records}
        self._next |= next_offsets(records)
        held = {entry.record.key for entry in self._entries.values() if entry.tried}
        for entry in [entry for entry in self._entries.values() if not entry.tried]:
            if entry.record.key not in held and not await self._try(entry):
                held.add(entry.record.key)
        held, ends = set(), self._clock() + _RETRIES_S
        for entry in [entry for entry in self._entries.values() if entry.tried]:
            now = self._clock()
            if entry.record.key in held or entry.not_before > now or now > ends or not await self._try(entry):
                held.add(entry.record.key)

    async def _try(self, entry: _Entry) -> bool:
        """Whether a record is done with, or given up."""
        entry.tried = True
        outcome = await self._take(entry.record)
        if outcome is Outcome.FAILED:
            entry.failures += 1
            if entry.failures >= GIVE_UP_AFTER:
                try:
                    await self._give_up(entry.record)
                    outcome = Outcome.DONE
                except BusError as error:
                    log.warning("dead letter waits: %s", error)
        if outcome is Outcome.DONE:
            self._entries.pop(entry.record.id, None)
            return True
        entry.not_before = self._clock() + min(_PAUSE_AT_MOST_S, _AGAIN_S * 2**entry.failures if entry.failures else _AGAIN_S)
        return False

    def _make_room(self, subscription: Subscription) -> None:
        """Pause while too much waits. `batch` is called all the same, so the consumer stays alive."""
        size = sum(len(entry.record.value or b"") for entry in self._entries.values())
        full = len(self._entries) >= MAX_WAITING_RECORDS or size >= MAX_WAITING_BYTES
        try:
            if full:
                subscription.pause(*subscription.assignment - subscription.paused)
            elif subscription.paused:
                subscription.resume(*subscription.paused)
        except NotAssigned:
            pass  # a rebalance resumes everything

    async def _commit(self, subscription: Subscription) -> None:
        offsets = dict(self._next)
        for entry in self._entries.values():
            at = entry.record.topic_partition
            offsets[at] = min(offsets.get(at, entry.record.offset), entry.record.offset)
        offsets = {at: offset for at, offset in offsets.items() if at in subscription.assignment and self._committed.get(at) != offset}
        if not offsets:
            return
        try:
            await subscription.commit(offsets)
            self._committed |= offsets
        except NotAssigned:
            pass  # whoever owns the partition now finds these jobs recorded
        except BusError as error:
            log.warning("commit: %s", error)  # delivered again, and recorded already
