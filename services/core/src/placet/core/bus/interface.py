"""The bus as services see it: publish, subscribe in a group, commit; read a partition to its end; keep a snapshot.

Two implementations: `placet.core.bus.inprocess.InProcessBus` (all-in-one, unit tests) and `placet.core.bus.kafka.KafkaBus`. One contract
suite (tests/contract/bus) runs against both. What both keep:

* **At least once.** A record is delivered again after a restart or a rebalance until an offset beyond it is committed. Commit after the
  side effect; handlers are idempotent. Two publishes of one key, the second awaited after the first, keep their order.
* **Groups.** Each group sees every record; its members share the partitions by range, so that partitions of one number of equally
  partitioned topics go to one member. Rebalances are eager: all partitions are revoked, then assigned anew. A subscription without a
  group sees every record of its topics, commits nothing, and is the way for "each replica wants everything".
* **Callbacks.** `on_revoked` is done before another member may own the partitions (it may still commit); no record of a new assignment
  is delivered before `on_assigned` is done. Both run beside the consuming loop, not inside it. If one raises, the next `batch` raises it.
* **Limits.** A record above its topic's size is refused before it is sent; an unknown topic fails at once; both with typed errors.
* **Traces.** `publish` writes W3C trace headers of its own `send` span; see placet.core.bus.tracing for the reading side.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from placet.core import topics as topic_table
from placet.core.bus import tracing
from placet.core.bus.errors import BusError, Closed, NotAssigned, RecordTooLarge, UnknownTopic
from placet.core.bus.partitioner import partition_for
from placet.core.bus.records import Headers, Record, RecordId, TopicPartition, size_of
from placet.core.telemetry import metrics, names
from placet.core.topics import TOPICS, Topic

if TYPE_CHECKING:
    from placet.core.bus.snapshot import Replaces, Snapshot

DEFAULT_MAX_RECORDS = 500
STUCK_AFTER_S = 60.0
"""A subscription that has not polled, joined or moved for so long is reported as stuck."""

_SENT = metrics.counter(names.BUS_SENT_RECORDS, "Records acknowledged by the bus.", ["topic"])
_SEND_SECONDS = metrics.histogram(names.BUS_SEND_SECONDS, "Time from publish to acknowledgement.", ["topic"])
_SEND_FAILURES = metrics.counter(names.BUS_SEND_FAILURES, "Publishes that raised.", ["topic", "error"])
_RECEIVED = metrics.counter(names.BUS_RECEIVED_RECORDS, "Records handed to a consumer.", ["topic", "group"])
_REBALANCES = metrics.counter(names.BUS_REBALANCES, "Assignments received.", ["group"])
_LAG = metrics.gauge(names.BUS_LAG_RECORDS, "Offsets between a consumer and the end of its partition.", ["topic", "group", "partition"])
_DEAD_LETTERS = metrics.counter(names.BUS_DEAD_LETTERS, "Records put into a dead-letter topic.", ["topic", "error"])

PartitionsCallback = Callable[["Subscription", frozenset[TopicPartition]], Awaitable[None]]


class Subscription(ABC):
    """One consumer. Used by one task; `close` may be called from another and ends iteration."""

    def __init__(
        self,
        topics: tuple[str, ...],
        group: str | None,
        *,
        on_assigned: PartitionsCallback | None,
        on_revoked: PartitionsCallback | None,
    ) -> None:
        self.topics = topics
        self.group = group
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._assignment: frozenset[TopicPartition] = frozenset()
        self._ready = asyncio.Event()  # set while an assignment is held and its callback is done, or when there is an end to report
        self._ended: BaseException | None = None
        self._coordination = asyncio.Lock()  # one callback at a time, in the order of the rebalances
        self._assigning: set[asyncio.Task[None]] = set()
        self._last_poll = self._last_progress = self._last_ready = time.monotonic()
        self._rebalances = _REBALANCES.labels(group or "")
        self._received = {topic: _RECEIVED.labels(topic, group or "") for topic in topics}

    # What a consumer does.

    async def batch(self, *, max_records: int = DEFAULT_MAX_RECORDS, timeout_s: float | None = None) -> list[Record]:
        """The next records, at least one unless `timeout_s` passes first.

        Records of one partition are in order and adjacent. Cancelling loses nothing.
        Raises Closed after `close`, Fenced, BusUnavailable when the bus gives this consumer up, or what a callback raised.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._last_poll = time.monotonic()
            if not self._ready.is_set():
                try:
                    await asyncio.wait_for(self._ready.wait(), None if deadline is None else deadline - self._last_poll)
                except TimeoutError:
                    return []
            if self._ended is not None:
                raise self._ended
            records = await self._fetch(max_records, deadline)
            if records:
                self._last_progress = time.monotonic()
                for record in records:
                    self._received[record.topic].inc()
                return records
            if deadline is not None and time.monotonic() >= deadline:
                return []

    def __aiter__(self) -> AsyncIterator[list[Record]]:
        return self._batches()

    async def _batches(self) -> AsyncIterator[list[Record]]:
        while True:
            try:
                records = await self.batch()
            except Closed:
                return
            yield records

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        return self._assignment

    async def wait_assigned(self) -> frozenset[TopicPartition]:
        """Waits for an assignment whose callback is done (the assignment may be empty: more members than partitions)."""
        await self._ready.wait()
        if self._ended is not None:
            raise self._ended
        return self._assignment

    @abstractmethod
    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Records that everything before `offsets` is done with. Raises NotAssigned if one of the partitions is another's by now."""

    @abstractmethod
    async def committed(self, partition: TopicPartition) -> int | None:
        """The group's committed offset, None if there is none."""

    @abstractmethod
    async def position(self, partition: TopicPartition) -> int:
        """Offset of the next record to be delivered."""

    @abstractmethod
    def seek(self, partition: TopicPartition, offset: int) -> None:
        """The next record delivered is the first at or after `offset`. Raises NotAssigned."""

    @abstractmethod
    def pause(self, *partitions: TopicPartition) -> None:
        """Delivers nothing from them until `resume` or the next rebalance. Keep calling `batch` meanwhile."""

    @abstractmethod
    def resume(self, *partitions: TopicPartition) -> None: ...

    @abstractmethod
    async def end_offsets(self) -> dict[TopicPartition, int]:
        """For each assigned partition the offset after its last record, asked now."""

    async def lag(self) -> dict[TopicPartition, int]:
        """For each assigned partition, how many offsets lie between the position and the end; also sets the lag metric.

        Hang it on the admin server (`admin.collect`), which then asks at each scrape.
        """
        ends = await self.end_offsets()
        lag = {at: max(0, end - await self.position(at)) for at, end in ends.items() if at in self._assignment}
        for at, behind in lag.items():
            _LAG.labels(at.topic, self.group or "", at.partition).set(behind)
        return lag

    def _forget_lag(self, partitions: Iterable[TopicPartition]) -> None:
        for at in partitions:
            with contextlib.suppress(KeyError):
                _LAG.remove(at.topic, self.group or "", at.partition)

    async def stuck(self, after_s: float = STUCK_AFTER_S) -> str | None:
        """Why this consumer needs a restart, or None. The liveness check of a service; an unreachable broker is no reason.

        The client library gives no health signal of its own, and is known to stall for good after some broker restarts.
        """
        now = time.monotonic()
        if self._ended is not None:
            return None if isinstance(self._ended, Closed) else f"ended: {type(self._ended).__name__}: {self._ended}"
        if now - self._last_poll > after_s:
            return f"the consuming loop of {', '.join(self.topics)} has not polled for {now - self._last_poll:.0f} s"
        waiting_since = max(self._last_progress, self._last_ready)
        if now - waiting_since <= after_s:
            return None
        if not self._ready.is_set():
            return None if await self._unreachable() else f"no assignment in group {self.group} for {now - waiting_since:.0f} s"
        try:
            lag = await self.lag()
        except BusError:
            return None
        behind = {at: n for at, n in lag.items() if n and at not in self.paused}
        if behind:
            return f"no record for {now - waiting_since:.0f} s though {sum(behind.values())} wait in {len(behind)} partitions"
        self._last_progress = now
        return None

    @property
    @abstractmethod
    def paused(self) -> frozenset[TopicPartition]: ...

    @abstractmethod
    async def close(self) -> None:
        """Leaves the group (a static member keeps its partitions for the session timeout) and ends iteration. Commits nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    # What an implementation does.

    @abstractmethod
    async def _fetch(self, max_records: int, deadline: float | None) -> list[Record]:
        """Up to `max_records`, waiting until `deadline` (monotonic). May return early with nothing, e.g. when a rebalance begins."""

    async def _unreachable(self) -> bool:
        """Whether the broker is known to be away just now."""
        return False

    @abstractmethod
    def _interrupt(self) -> None:
        """Makes a waiting `_fetch` return soon, without losing records."""

    @abstractmethod
    async def _position_all(self, partitions: frozenset[TopicPartition]) -> None:
        """Makes the start of every partition of a new assignment known."""

    @abstractmethod
    async def _release(self, revoked: frozenset[TopicPartition]) -> None:
        """Drops what belongs to partitions that are no longer held: fetched records, pauses, commits under way."""

    async def _revoke(self) -> None:
        """Called by the coordinator before the partitions may go to another member; waits for `on_assigned`, then for `on_revoked`."""
        self._hold()
        async with self._coordination:
            self._hold()
            revoked = self._assignment
            if revoked and self._on_revoked is not None and self._ended is None:
                try:
                    await self._on_revoked(self, revoked)
                except Exception as error:  # noqa: BLE001 - whatever the service's callback raises reaches the service
                    self._end(error)
            self._assignment = frozenset()
            self._forget_lag(revoked)
            await self._release(revoked)

    def _assign(self, partitions: frozenset[TopicPartition]) -> None:
        """Called by the coordinator with what is this member's now. The callback runs in a task of its own, so that heartbeats go on."""
        self._hold()
        self._assignment = partitions
        task = asyncio.create_task(self._run_assigned(partitions), name=f"assigned {self.group or self.topics}")
        self._assigning.add(task)
        task.add_done_callback(self._assigning.discard)

    async def _run_assigned(self, partitions: frozenset[TopicPartition]) -> None:
        async with self._coordination:
            self._rebalances.inc()
            try:
                await self._position_all(partitions)
                if self._on_assigned is not None and self._ended is None:
                    await self._on_assigned(self, partitions)
            except Exception as error:  # noqa: BLE001 - as above
                self._end(error)
            self._last_ready = time.monotonic()
            self._ready.set()

    def _hold(self) -> None:
        """No further records until the next assignment is in place."""
        if self._ended is None:
            self._ready.clear()
        self._interrupt()

    def _stop_assigning(self) -> None:
        for task in self._assigning:
            if task is not asyncio.current_task():
                task.cancel()

    def _end(self, reason: BaseException) -> None:
        if self._ended is None:
            self._ended = reason
        self._ready.set()
        self._interrupt()

    def _require_assigned(self, partitions: Iterable[TopicPartition]) -> None:
        if isinstance(self._ended, BusError):
            raise self._ended
        missing = sorted(set(partitions) - self._assignment)
        if missing:
            raise NotAssigned(f"{', '.join(f'{at.topic}[{at.partition}]' for at in missing)} not assigned in group {self.group}")


class Bus(ABC):
    """A connection to the bus. One a service and process; safe to share among its tasks."""

    def __init__(self, topics: Mapping[str, Topic] = TOPICS) -> None:
        self.topics = topics

    # Life cycle.

    @abstractmethod
    async def start(self) -> None:
        """Connects. Raises BusUnavailable; may be called again then."""

    @abstractmethod
    async def stop(self) -> None:
        """Waits for publishes under way, closes subscriptions and snapshots. Never raises for a broker that is away."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    # Writing.

    def topic(self, name: str) -> Topic:
        try:
            return self.topics[name]
        except KeyError:
            raise UnknownTopic(f"{name} is not in the table of topics") from None

    def partition_for(self, topic: str, key: bytes) -> int:
        return partition_for(key, self.topic(topic).partitions)

    async def publish(self, topic: str, key: bytes, value: bytes | None, headers: Headers = ()) -> RecordId:
        """Appends one record and waits until it is durable. `value` None removes the key of a compacted topic.

        Raises RecordTooLarge and UnknownTopic before anything is sent, BusUnavailable when no acknowledgement came in time: the
        record may then still appear, so publishing it again may duplicate it.
        """
        row = self.topic(topic)
        if value is None and not row.compacted:
            raise ValueError(f"{topic} is not compacted: a record needs a value")
        return await self._publish(row, key, value, headers)

    async def _publish(self, row: Topic, key: bytes | None, value: bytes | None, headers: Headers) -> RecordId:
        partition = partition_for(key or b"", row.partitions)
        started = time.perf_counter()
        try:
            with tracing.sending(row.name, partition, key, headers):
                headers = tracing.with_context(headers)
                size = size_of(key, value, headers)
                if size > row.max_record_bytes:
                    raise RecordTooLarge(row.name, size, row.max_record_bytes)
                sent = await self._send(row.name, partition, key, value, headers)
        except BusError as error:
            _SEND_FAILURES.labels(row.name, type(error).__name__).inc()
            raise
        _SENT.labels(row.name).inc()
        _SEND_SECONDS.labels(row.name).observe(time.perf_counter() - started)
        return sent

    async def publish_dlq(self, record: Record, error: BaseException, *, consumer: str) -> RecordId:
        """Puts a record that cannot be handled into its topic's dead-letter topic: the original bytes and what went wrong.

        Commit the record afterwards. `consumer` names the service. Records from a retry topic go to the first topic's DLQ.
        """
        origin = _origin_topic(record)
        row = self.topic(topic_table.dlq(origin))
        sent = await self._publish(row, record.key, record.value, _aside(record, error, consumer))
        _DEAD_LETTERS.labels(origin, type(error).__name__).inc()
        return sent

    async def publish_retry(self, record: Record, error: BaseException, *, consumer: str, step: str) -> RecordId:
        """Puts a record aside for `step` (a key of topics.RETRY_DELAYS_MS): allowed for settlement and projection only.

        Whoever reads the retry topic waits until header x-not-before (Unix milliseconds) before handling it, and finds the number of
        attempts made in x-attempt. Raises KeyError where no retry topic exists.
        """
        origin = _origin_topic(record)
        row = self.topic(topic_table.retry(origin, consumer, step))
        not_before = int(time.time() * 1000) + topic_table.RETRY_DELAYS_MS[step]
        return await self._publish(row, record.key, record.value, (*_aside(record, error, consumer), ("x-not-before", b"%d" % not_before)))

    # Reading.

    @abstractmethod
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
        """Begins to consume. Returns at once; `wait_assigned` waits for the group.

        `from_beginning` says where a partition starts for which the group has committed nothing; False means at its end as of the
        assignment, and that place is then committed, so that a restart does not skip what came meanwhile. Without a group it is where
        every partition starts, fixed before this returns.
        `instance_id` makes a static member (the pod's name): away for less than the session timeout, it finds its partitions again
        without a rebalance. Raises UnknownTopic if the broker lacks a topic, BusUnavailable.
        """

    @abstractmethod
    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last record of each partition, asked now."""

    @abstractmethod
    async def offsets_at(self, partitions: Iterable[TopicPartition], timestamp_ms: int) -> dict[TopicPartition, int]:
        """The offset of the first record appended at or after `timestamp_ms` (broker's clock); the end offset where there is none."""

    @abstractmethod
    async def read_many_to_end(self, starts: Mapping[TopicPartition, int | None]) -> dict[TopicPartition, list[Record]]:
        """Every record of each partition from the given offset (None: the oldest kept) up to its end as of this call.

        Needs no assignment and moves no group. Safe inside `on_assigned`. For long topics find a start with `offsets_at` first.
        Raises UnknownTopic, BusUnavailable.
        """

    async def read_to_end(self, topic: str, partition: int, from_offset: int | None = None) -> list[Record]:
        at = TopicPartition(topic, partition)
        return (await self.read_many_to_end({at: from_offset}))[at]

    async def snapshot(self, topic: str, replaces: Replaces | None = None) -> Snapshot:
        """A compacted topic read whole, then followed; see Snapshot. `replaces`: whether a record takes the place of its key's last."""
        from placet.core.bus.snapshot import Snapshot

        return await Snapshot.load(self, topic, replaces)

    def _require_existing(self, partitions: Iterable[TopicPartition]) -> None:
        for at in partitions:
            if not 0 <= at.partition < self.topic(at.topic).partitions:
                raise UnknownTopic(f"{at.topic} has {self.topic(at.topic).partitions} partitions, none is number {at.partition}")

    def partitions(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for number in range(self.topic(topic).partitions)]

    # Readiness.

    @abstractmethod
    async def topic_problems(self, names: Iterable[str] | None = None) -> list[str]:
        """What is wrong with the broker's topics (missing, other partition count); empty when a service may start. `names`: default all.

        Raises BusUnavailable.
        """

    async def not_ready(self, names: Iterable[str] | None = None) -> str | None:
        """Why a service that needs these topics must wait, or None: a readiness check."""
        try:
            problems = await self.topic_problems(names)
        except BusError as error:
            return str(error)
        return "; ".join(problems) or None

    # What an implementation does.

    @abstractmethod
    async def _send(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> RecordId: ...


def _origin_topic(record: Record) -> str:
    origin = record.header("x-origin-topic")
    return origin.decode("ascii", "replace") if origin is not None else record.topic


_ASIDE_HEADERS = frozenset(
    {
        "x-error",
        "x-error-type",
        "x-error-consumer",
        "x-failed-at",
        "x-attempt",
        "x-not-before",
        "x-origin-topic",
        "x-origin-partition",
        "x-origin-offset",
    }
)
_ERROR_TEXT_BYTES = 1024


def _aside(record: Record, error: BaseException, consumer: str) -> Headers:
    """The record's own headers and those that say why it was put aside. The trace headers stay, so that a replay joins its trace."""
    attempt = record.header("x-attempt") or b"0"
    kept = tuple(header for header in record.headers if header[0] not in _ASIDE_HEADERS)
    return (
        *kept,
        ("x-error", str(error).encode("utf-8", "replace")[:_ERROR_TEXT_BYTES]),
        ("x-error-type", type(error).__name__.encode()),
        ("x-error-consumer", consumer.encode()),
        ("x-failed-at", b"%d" % int(time.time() * 1000)),
        ("x-attempt", b"%d" % (int(attempt) + 1 if attempt.isdigit() and len(attempt) < 6 else 1)),
        ("x-origin-topic", record.header("x-origin-topic") or record.topic.encode()),
        ("x-origin-partition", record.header("x-origin-partition") or b"%d" % record.partition),
        ("x-origin-offset", record.header("x-origin-offset") or b"%d" % record.offset),
    )
