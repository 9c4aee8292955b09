"""The bus inside one process: partitions, offsets, groups and rebalances as Kafka has them, in memory.

For the all-in-one command and for tests. `InProcessBroker` holds the logs and the groups; several `InProcessBus` objects, one a service,
share it and run in one event loop. What it lacks: durability (a restart of the process forgets everything) and other processes.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from placet.core.bus.errors import Closed, Fenced, NotAssigned, UnknownTopic
from placet.core.bus.interface import Bus, PartitionsCallback, Subscription
from placet.core.bus.partitioner import range_assignment
from placet.core.bus.records import Headers, Record, RecordId, TopicPartition
from placet.core.topics import TOPICS, Topic

PARTITION_BYTES = 64 * 1024 * 1024
"""A partition that holds more forgets its oldest records."""
_COMPACT_SLACK = 1024


class _Log:
    """One partition. Offsets never repeat; compaction and trimming leave gaps."""

    def __init__(self, topic: Topic, partition: int, max_bytes: int) -> None:
        self._topic = topic
        self._partition = partition
        self._max_bytes = max_bytes
        self._records: list[Record] = []
        self._bytes = 0
        self._keys: set[bytes] = set()
        self.end = 0

    @property
    def start(self) -> int:
        return self._records[0].offset if self._records else self.end

    def append(self, key: bytes | None, value: bytes | None, headers: Headers) -> RecordId:
        now_ms = time.time_ns() // 1_000_000
        if self._records:
            now_ms = max(now_ms, self._records[-1].timestamp_ms)
        record = Record(self._topic.name, self._partition, self.end, key, value, headers, now_ms)
        self._records.append(record)
        self.end += 1
        self._bytes += len(value or b"")
        if self._topic.compacted:
            self._keys.add(key or b"")
            if len(self._records) > 2 * len(self._keys) + _COMPACT_SLACK:
                self._compact()
        else:
            self._trim(now_ms)
        return record.id

    def _compact(self) -> None:
        newest = {record.key or b"": record for record in self._records}
        # Removals stay until the next compaction only if they are the very last record, which marks the end.
        kept = [r for r in self._records if newest[r.key or b""] is r and (r.value is not None or r.offset == self.end - 1)]
        self._records = kept
        self._keys = {record.key or b"" for record in kept}
        self._bytes = sum(len(record.value or b"") for record in kept)

    def _trim(self, now_ms: int) -> None:
        retention_ms = self._topic.retention_ms
        drop = 0
        while drop < len(self._records) - 1 and (
            self._bytes > self._max_bytes or (retention_ms is not None and self._records[drop].timestamp_ms < now_ms - retention_ms)
        ):
            self._bytes -= len(self._records[drop].value or b"")
            drop += 1
        if drop:
            del self._records[:drop]

    def read(self, offset: int, limit: int) -> list[Record]:
        first = bisect_left(self._records, offset, key=lambda record: record.offset)
        return self._records[first : first + limit]

    def offset_at(self, timestamp_ms: int) -> int:
        first = bisect_left(self._records, timestamp_ms, key=lambda record: record.timestamp_ms)
        return self._records[first].offset if first < len(self._records) else self.end


@dataclass(eq=False)
class _Member:
    id: str
    topics: tuple[str, ...]
    instance_id: str | None
    subscription: InProcessSubscription | None
    assignment: frozenset[TopicPartition] = frozenset()
    expiry: asyncio.TimerHandle | None = None
    """Runs while a static member is away."""


@dataclass(eq=False)
class _Group:
    """Members, committed offsets, and the one task that rebalances."""

    name: str
    partitions_of: Callable[[str], int]
    rebalance_timeout_s: float
    members: dict[str, _Member] = field(default_factory=dict)
    committed: dict[TopicPartition, int] = field(default_factory=dict)
    _dirty: bool = False
    _task: asyncio.Task[None] | None = None

    def rebalance(self) -> None:
        self._dirty = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"rebalance {self.name}")

    async def _run(self) -> None:
        while self._dirty:
            self._dirty = False
            revoking = {m.id: asyncio.ensure_future(m.subscription.revoke()) for m in self.members.values() if m.subscription is not None}
            if revoking:
                await asyncio.wait(revoking.values(), timeout=self.rebalance_timeout_s)
            for late, task in revoking.items():
                if not task.done():  # put out of the group; it joins again when its callback returns
                    member = self.members.pop(late, None)
                    if member is not None and member.subscription is not None:
                        member.subscription.expelled(member)
                        task.add_done_callback(partial(self._rejoin, member))
            shares = range_assignment(
                {member.id: member.topics for member in self.members.values()},
                {topic: self.partitions_of(topic) for member in self.members.values() for topic in member.topics},
            )
            for member in self.members.values():
                member.assignment = shares[member.id]
                if member.subscription is not None:
                    member.subscription.assign(member.assignment)

    def _rejoin(self, member: _Member, _: asyncio.Future[None]) -> None:
        if member.subscription is not None and not member.subscription.closed and member.id not in self.members:
            self.members[member.id] = member
            self.rebalance()

    async def stop(self) -> None:
        for member in self.members.values():
            if member.expiry is not None:
                member.expiry.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class InProcessBroker:
    """The logs and groups that the buses of one process share."""

    def __init__(
        self,
        topics: Mapping[str, Topic] = TOPICS,
        *,
        session_timeout_s: float = 10.0,
        rebalance_timeout_s: float = 60.0,
        partition_bytes: int = PARTITION_BYTES,
    ) -> None:
        self.topics = topics
        self.session_timeout_s = session_timeout_s
        self._rebalance_timeout_s = rebalance_timeout_s
        self._logs = {
            TopicPartition(topic.name, number): _Log(topic, number, partition_bytes)
            for topic in topics.values()
            for number in range(topic.partitions)
        }
        self._groups: dict[str, _Group] = {}
        self._readers: dict[str, set[InProcessSubscription]] = {}
        self._members = 0

    def log(self, at: TopicPartition) -> _Log:
        try:
            return self._logs[at]
        except KeyError:
            raise UnknownTopic(f"{at.topic} has no partition {at.partition} on this bus") from None

    def append(self, at: TopicPartition, key: bytes | None, value: bytes | None, headers: Headers) -> RecordId:
        record_id = self.log(at).append(key, value, headers)
        for reader in self._readers.get(at.topic, ()):
            reader.wake()
        return record_id

    def group(self, name: str) -> _Group:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(name, lambda topic: self.topics[topic].partitions, self._rebalance_timeout_s)
        return group

    def listen(self, subscription: InProcessSubscription) -> None:
        for topic in subscription.topics:
            self._readers.setdefault(topic, set()).add(subscription)

    def forget(self, subscription: InProcessSubscription) -> None:
        for topic in subscription.topics:
            self._readers.get(topic, set()).discard(subscription)

    def join(self, subscription: InProcessSubscription, instance_id: str | None) -> _Member:
        assert subscription.group is not None
        group = self.group(subscription.group)
        returning = next((m for m in group.members.values() if instance_id is not None and m.instance_id == instance_id), None)
        if returning is None:
            self._members += 1
            member = _Member(instance_id or f"member-{self._members:08d}", subscription.topics, instance_id, subscription)
            group.members[member.id] = member
            group.rebalance()
            return member
        if returning.expiry is not None:
            returning.expiry.cancel()
            returning.expiry = None
        if returning.subscription is not None:
            returning.subscription.fence()
        same = returning.topics == subscription.topics
        returning.subscription, returning.topics = subscription, subscription.topics
        if same:
            subscription.assign(returning.assignment)
        else:
            group.rebalance()
        return returning

    def leave(self, member: _Member, group: _Group) -> None:
        member.subscription = None
        if group.members.get(member.id) is not member:
            return
        if member.instance_id is None:
            self._expire(member, group)
        else:
            member.expiry = asyncio.get_running_loop().call_later(self.session_timeout_s, self._expire, member, group)

    def _expire(self, member: _Member, group: _Group) -> None:
        if group.members.get(member.id) is member and member.subscription is None:
            del group.members[member.id]
            group.rebalance()

    async def stop(self) -> None:
        """Ends timers and tasks. The logs stay readable."""
        for group in self._groups.values():
            await group.stop()


class InProcessSubscription(Subscription):
    def __init__(
        self,
        broker: InProcessBroker,
        topics: tuple[str, ...],
        group: str | None,
        *,
        from_beginning: bool,
        on_assigned: PartitionsCallback | None,
        on_revoked: PartitionsCallback | None,
        on_closed: Callable[[InProcessSubscription], None],
    ) -> None:
        super().__init__(topics, group, on_assigned=on_assigned, on_revoked=on_revoked)
        self._broker = broker
        self._from_beginning = from_beginning
        self._on_closed = on_closed
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._wake = asyncio.Event()
        self._turn = 0
        self._member: _Member | None = None
        self.closed = False

    def open(self, instance_id: str | None) -> None:
        self._broker.listen(self)
        if self.group is None:
            self.assign(frozenset(TopicPartition(topic, n) for topic in self.topics for n in range(self._broker.topics[topic].partitions)))
        else:
            self._member = self._broker.join(self, instance_id)

    # Called by the group.

    async def revoke(self) -> None:
        await self._revoke()

    def assign(self, partitions: frozenset[TopicPartition]) -> None:
        # Positions are fixed now: what is published from here on is seen.
        self._positions = {at: self._start(at) for at in partitions}
        self._paused.clear()
        self._assign(partitions)

    async def _position_all(self, partitions: frozenset[TopicPartition]) -> None:
        """Done already, in `assign`."""

    async def _release(self, revoked: frozenset[TopicPartition]) -> None:
        for at in revoked:
            self._positions.pop(at, None)
        self._paused.clear()

    def _start(self, at: TopicPartition) -> int:
        log = self._broker.log(at)
        fresh = log.start if self._from_beginning else log.end
        if self.group is None:
            return fresh
        committed = self._broker.group(self.group).committed
        if at not in committed and not self._from_beginning:
            committed[at] = fresh
        return committed.get(at, fresh)

    def expelled(self, member: _Member) -> None:
        member.assignment = frozenset()
        self._assignment = frozenset()

    def fence(self) -> None:
        self._assignment = frozenset()
        self._member = None
        self._end(Fenced(f"another member joined group {self.group} under this one's instance id"))

    def wake(self) -> None:
        self._wake.set()

    def _interrupt(self) -> None:
        self._wake.set()

    # The consumer's side.

    async def _fetch(self, max_records: int, deadline: float | None) -> list[Record]:
        while self._ready.is_set() and self._ended is None:
            self._wake.clear()
            records = self._take(max_records)
            if records:
                await asyncio.sleep(0)  # a consumer that never waits must not starve the rest of the process
                return records
            try:
                await asyncio.wait_for(self._wake.wait(), None if deadline is None else deadline - time.monotonic())
            except TimeoutError:
                return []
        return []

    def _take(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        partitions = sorted(self._assignment - self._paused)
        self._turn += 1
        for place in range(len(partitions)):  # begin elsewhere each time: a busy partition must not hold up the others
            at = partitions[(place + self._turn) % len(partitions)]
            log = self._broker.log(at)
            position = self._positions[at]
            if position < log.start or position > log.end:
                position = self._positions[at] = log.start
            found = log.read(position, max_records - len(records))
            if found:
                self._positions[at] = found[-1].offset + 1
                records += found
            elif position < log.end:
                self._positions[at] = log.end  # compaction took what was there
            if len(records) == max_records:
                break
        return records

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if self.group is None:
            raise NotAssigned("a subscription without a group commits nothing")
        self._require_assigned(offsets)
        for at, offset in offsets.items():
            if offset < 0:
                raise ValueError(f"offset {offset} of {at.topic}[{at.partition}] is negative")
        self._broker.group(self.group).committed.update({TopicPartition(*at): offset for at, offset in offsets.items()})

    async def committed(self, partition: TopicPartition) -> int | None:
        return None if self.group is None else self._broker.group(self.group).committed.get(partition)

    async def position(self, partition: TopicPartition) -> int:
        self._require_assigned([partition])
        return self._positions[partition]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._require_assigned([partition])
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        self._positions[partition] = offset
        self._wake.set()

    def pause(self, *partitions: TopicPartition) -> None:
        self._require_assigned(partitions)
        self._paused.update(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self._require_assigned(partitions)
        self._paused.difference_update(partitions)
        self._wake.set()

    @property
    def paused(self) -> frozenset[TopicPartition]:
        return frozenset(self._paused)

    async def end_offsets(self) -> dict[TopicPartition, int]:
        return {at: self._broker.log(at).end for at in self._assignment}

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._end(Closed(f"the subscription to {', '.join(self.topics)} was closed"))
        self._broker.forget(self)
        if self._member is not None and self.group is not None:
            self._broker.leave(self._member, self._broker.group(self.group))
            self._member = None
        self._stop_assigning()
        self._forget_lag(self._assignment)
        self._assignment = frozenset()
        self._on_closed(self)


class InProcessBus(Bus):
    """One service's connection to an `InProcessBroker` (its own, if none is given)."""

    def __init__(self, broker: InProcessBroker | None = None) -> None:
        self.broker = broker or InProcessBroker()
        self._owns_broker = broker is None
        super().__init__(self.broker.topics)
        self._subscriptions: set[InProcessSubscription] = set()
        self._started = False

    async def start(self) -> None:
        self._started = True

    async def stop(self) -> None:
        self._started = False
        for subscription in list(self._subscriptions):
            await subscription.close()
        if self._owns_broker:
            await self.broker.stop()

    def _require_started(self) -> None:
        if not self._started:
            raise Closed("the bus is not started, or was stopped")

    async def _send(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> RecordId:
        self._require_started()
        sent = self.broker.append(TopicPartition(topic, partition), key, value, headers)
        await asyncio.sleep(0)
        return sent

    async def subscribe(
        self,
        topics: Iterable[str],
        group: str | None,
        *,
        from_beginning: bool = True,
        instance_id: str | None = None,
        on_assigned: PartitionsCallback | None = None,
        on_revoked: PartitionsCallback | None = None,
    ) -> Subscription:
        self._require_started()
        names = tuple(sorted({self.topic(name).name for name in topics}))
        if problems := await self.topic_problems(names):
            raise UnknownTopic("; ".join(problems))
        subscription = InProcessSubscription(
            self.broker,
            names,
            group,
            from_beginning=from_beginning,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
            on_closed=self._subscriptions.discard,
        )
        self._subscriptions.add(subscription)
        subscription.open(instance_id)
        return subscription

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {at: self.broker.log(at).end for at in partitions}

    async def offsets_at(self, partitions: Iterable[TopicPartition], timestamp_ms: int) -> dict[TopicPartition, int]:
        return {at: self.broker.log(at).offset_at(timestamp_ms) for at in partitions}

    async def read_many_to_end(self, starts: Mapping[TopicPartition, int | None]) -> dict[TopicPartition, list[Record]]:
        found = {}
        for at, start in starts.items():
            log = self.broker.log(at)
            first = log.start if start is None else start
            found[at] = log.read(first, max(0, log.end - first))
        return found

    async def topic_problems(self, names: Iterable[str] | None = None) -> list[str]:
        problems = []
        for name in self.topics if names is None else names:
            wanted, found = self.topic(name), self.broker.topics.get(name)
            if found is None:
                problems.append(f"{name} does not exist")
            elif found.partitions != wanted.partitions:
                problems.append(f"{name} has {found.partitions} partitions, not {wanted.partitions}")
        return problems
