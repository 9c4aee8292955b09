"""Reading a topic record by record, where one that cannot be taken now waits aside and holds nobody back.

What waits is not committed, so a restart or another replica gets it again: nothing here needs to be stored, and nothing is lost. Records of
one key keep their order. What waits for one thing that is away (a chain's node) has a share of the room: beyond that only its place in the
topic is kept, and it is read again when what it waited for is back. When all room is used up the partitions are paused.
"""

from __future__ import annotations

import logging
import time
from bisect import insort
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from placet.core.bus import BusError, Closed, NotAssigned, Record, RecordId, Subscription, TopicPartition, next_offsets

log = logging.getLogger(__name__)

MAX_WAITING_RECORDS = 256
MAX_WAITING_BYTES = 32 << 20
SHARE = 8
"""What waits for one thing may use this part of the room."""
MAX_PARKED = 20_000
"""Records of which only the place is kept."""
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
    what: int
    """What it may have to wait for."""
    tried: bool = False
    is_away: bool = False
    failures: int = 0
    not_before: float = 0.0


class Inbox:
    """`take` handles one record and raises nothing; `give_up` writes a dead letter, and may raise BusError. `what_of` says what a record
    needs that may be away: records that need the same wait together."""

    def __init__(
        self,
        take: Callable[[Record], Awaitable[Outcome]],
        give_up: Callable[[Record], Awaitable[None]],
        what_of: Callable[[Record], int] = lambda _: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._take = take
        self._give_up = give_up
        self._clock = clock
        self._what_of = what_of
        self._entries: dict[RecordId, _Entry] = {}
        self._parked: dict[tuple[int, TopicPartition], list[int]] = {}
        """What is away, and a partition -> the offsets there of records that wait for it, ascending."""
        self._next: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}

    @property
    def waiting(self) -> int:
        """Records that wait."""
        return len(self._entries) + self.parked

    @property
    def parked(self) -> int:
        """Of those, the ones of which only the place is kept."""
        return sum(map(len, self._parked.values()))

    async def revoked(self, _: Subscription, __: frozenset[TopicPartition]) -> None:
        """Partitions go to others, or come back: whatever waits is delivered again, to whoever has them then."""
        self._entries.clear()
        self._parked.clear()
        self._next.clear()
        self._committed.clear()

    async def run(self, subscription: Subscription) -> None:
        """Read until the subscription is closed."""
        while True:
            try:
                records = await subscription.batch(max_records=_AT_ONCE, timeout_s=_AGAIN_S if self.waiting else None)
            except Closed:
                return
            await self.take(records)
            self._make_room(subscription)
            self._read_again(subscription)
            await self._commit(subscription)

    async def take(self, records: Iterable[Record]) -> None:
        """Try new records, then those that wait and are due."""
        records = list(records)
        for record in records:
            self._admit(record)
        for at, offset in next_offsets(records).items():
            self._next[at] = max(offset, self._next.get(at, 0))
        held = {entry.record.key for entry in self._entries.values() if entry.tried}
        for entry in [entry for entry in self._entries.values() if not entry.tried]:
            if entry.record.key not in held and not await self._try(entry):
                held.add(entry.record.key)
        held, ends = set(), self._clock() + _RETRIES_S
        for entry in [entry for entry in self._entries.values() if entry.tried]:
            now = self._clock()
            if entry.record.key in held or entry.not_before > now or now > ends or not await self._try(entry):
                held.add(entry.record.key)
        self._park()

    def _admit(self, record: Record) -> None:
        """Let a record in that is new here, or whose turn it is again."""
        at, what = record.topic_partition, self._what_of(record)
        parked = self._parked.get((what, at), [])
        if record.id in self._entries or (record.offset < self._next.get(at, 0) and record.offset not in parked[:1]):
            return  # read again on the way to another
        if not parked:
            self._entries[record.id] = _Entry(record, what)
        elif record.offset != parked[0]:
            insort(parked, record.offset)  # those before it wait for the same
        elif not self._is_away(what):
            parked.pop(0)
            self._entries[record.id] = _Entry(record, what)

    def _is_away(self, what: int) -> bool:
        return any(entry.what == what and entry.is_away for entry in self._entries.values())

    def _park(self) -> None:
        """Of what waits for one thing keep the oldest, as far as its share goes, and of the others their places."""
        shares: dict[int, list[_Entry]] = {}
        for entry in self._entries.values():
            if not entry.failures:
                shares.setdefault(entry.what, []).append(entry)
        for what, entries in shares.items():
            if not any(entry.is_away for entry in entries):
                continue
            size = 0
            for count, entry in enumerate(sorted(entries, key=lambda entry: entry.record.offset)):
                size += len(entry.record.value or b"")
                if count and (count >= MAX_WAITING_RECORDS // SHARE or size > MAX_WAITING_BYTES // SHARE):
                    insort(self._parked.setdefault((what, entry.record.topic_partition), []), entry.record.offset)
                    del self._entries[entry.record.id]

    def _read_again(self, subscription: Subscription) -> None:
        """Go back to the first record that waited for what is there again."""
        self._parked = {place: parked for place, parked in self._parked.items() if parked}
        first: dict[TopicPartition, int] = {}
        for (what, at), parked in self._parked.items():
            if not self._is_away(what):
                first[at] = min(parked[0], first.get(at, parked[0]))
        for at, offset in first.items():
            with suppress(NotAssigned):  # `revoked` has forgotten it, or will
                subscription.seek(at, offset)

    async def _try(self, entry: _Entry) -> bool:
        """Whether a record is done with, or given up."""
        entry.tried = True
        outcome = await self._take(entry.record)
        entry.is_away = outcome is Outcome.AWAY
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
        stuck = self.parked >= MAX_PARKED and all(self._is_away(what) for what, _ in self._parked)
        full = len(self._entries) >= MAX_WAITING_RECORDS or size >= MAX_WAITING_BYTES or stuck
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
        for (_, at), parked in self._parked.items():
            if parked:
                offsets[at] = min(offsets.get(at, parked[0]), parked[0])
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
