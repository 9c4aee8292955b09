"""Consuming from Apache Kafka: see placet.core.bus.kafka for what is added to the client library, and why."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaTopicPartition
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalStateError,
    KafkaError,
)

from placet.core.bus.errors import BusUnavailable, Closed, Fenced, NotAssigned
from placet.core.bus.interface import PartitionsCallback, Subscription
from placet.core.bus.kafka_client import records_of, stop_client, to_kafka, typed_error
from placet.core.bus.records import Record, TopicPartition

if TYPE_CHECKING:
    from placet.core.bus.kafka import KafkaBus

log = logging.getLogger(__name__)

_POLL_SLICE_S: Final = 5.0
_RETRY_S: Final = 0.1
_FIGHT_ROUNDS: Final = 8


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Hands the library's rebalance callbacks to a subscription."""

    def __init__(self, subscription: KafkaSubscription) -> None:
        self._subscription = subscription

    async def on_partitions_revoked(self, revoked: Iterable[KafkaTopicPartition]) -> None:
        await self._subscription.revoked()

    async def on_partitions_assigned(self, assigned: Iterable[KafkaTopicPartition]) -> None:
        self._subscription.assigned(frozenset(TopicPartition(at.topic, at.partition) for at in assigned))


class KafkaSubscription(Subscription):
    def __init__(
        self,
        bus: KafkaBus,
        consumer: AIOKafkaConsumer,
        topics: tuple[str, ...],
        group: str | None,
        *,
        instance_id: str | None,
        from_beginning: bool,
        on_assigned: PartitionsCallback | None,
        on_revoked: PartitionsCallback | None,
    ) -> None:
        super().__init__(topics, group, on_assigned=on_assigned, on_revoked=on_revoked)
        self._instance_id = instance_id
        self._created = time.monotonic()
        self._same_again: list[float] = []  # when the same partitions came back, in a row
        self._held_before: frozenset[TopicPartition] = frozenset()
        self._bus = bus
        self._consumer = consumer
        self._from_beginning = from_beginning
        self._poll: asyncio.Task[dict[KafkaTopicPartition, list[Any]]] | None = None
        self._stash: list[Record] = []  # fetched, but the call that fetched them was cancelled
        self._commits: set[asyncio.Task[None]] = set()
        self._closing = False

    async def open(self) -> None:
        await self._bus.guard(self._consumer.start(), f"subscribing to {', '.join(self.topics)}", self._bus.settings.connect_timeout_s)
        if self.group is not None:
            self._consumer.subscribe(topics=list(self.topics), listener=_Listener(self))
            return
        partitions = frozenset(at for topic in self.topics for at in self._bus.partitions(topic))
        starts = {} if self._from_beginning else await self._bus.end_offsets(partitions)
        self._consumer.assign([to_kafka(at) for at in partitions])
        for at, offset in starts.items():
            self._consumer.seek(to_kafka(at), offset)
        self._assign(partitions)

    # Called by the listener.

    async def revoked(self) -> None:
        await self._revoke()

    def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        if self._instance_id is not None and self._fighting(partitions):
            self._end(Fenced(f"another live member of group {self.group} has this one's instance id {self._instance_id}"))
            self._bus.retire(self._consumer)
            return
        self._assign(partitions)

    def _fighting(self, partitions: frozenset[TopicPartition]) -> bool:
        """Whether two live members share one instance id.

        Kafka's own fencing does not reach this client: it sends no instance id with its heartbeats, so the one that was put out takes
        the place back, and so on, at every heartbeat. The sign is the same assignment many times in a row. A member that has been
        there for long (what is left of a pod that was replaced) gives way first; two that began together both do.
        """
        now = time.monotonic()
        heartbeat_s = self._bus.settings.heartbeat_interval_ms / 1000
        if not partitions or partitions != self._held_before:
            self._same_again.clear()
        self._held_before = partitions
        self._same_again = [*(at for at in self._same_again if now - at < 5 * _FIGHT_ROUNDS * heartbeat_s), now]
        old = now - self._created > 7 * _FIGHT_ROUNDS * heartbeat_s
        return len(self._same_again) > (_FIGHT_ROUNDS if old else 2 * _FIGHT_ROUNDS)

    async def _position_all(self, partitions: frozenset[TopicPartition]) -> None:
        if self.group is None:
            return
        while True:
            try:
                if not self._from_beginning:
                    new = [at for at in partitions if await self._consumer.committed(to_kafka(at)) is None]
                    starts = await self._bus.end_offsets(new)
                    for at, offset in starts.items():
                        self._consumer.seek(to_kafka(at), offset)
                    if starts:
                        await self._consumer.commit({to_kafka(at): offset for at, offset in starts.items()})
                for at in partitions:
                    await self._consumer.position(to_kafka(at))
                return
            except IllegalStateError:
                return  # taken away again meanwhile; the next assignment follows
            except CommitFailedError:
                return  # as above
            except (KafkaError, BusUnavailable, TimeoutError) as error:
                if isinstance(error, KafkaError) and not error.retriable:
                    raise typed_error(error, f"finding where group {self.group} stands") from error
                await asyncio.sleep(_RETRY_S)

    async def _release(self, revoked: frozenset[TopicPartition]) -> None:
        self._stash.clear()
        for commit in self._commits:
            commit.cancel()

    # The consumer's side.

    def _interrupt(self) -> None:
        if self._poll is not None:
            self._poll.cancel()

    async def _fetch(self, max_records: int, deadline: float | None) -> list[Record]:
        if self._stash and (taken := self._unstash(max_records)):
            return taken
        wait_s = _POLL_SLICE_S if deadline is None else min(_POLL_SLICE_S, max(0.0, deadline - time.monotonic()))
        poll = self._poll = asyncio.create_task(self._consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=max_records))
        try:
            await asyncio.wait({poll})
        except asyncio.CancelledError:
            if poll.done() and not poll.cancelled() and poll.exception() is None:
                self._stash += records_of(poll.result())
            else:
                poll.cancel()
            raise
        finally:
            self._poll = None
        if poll.cancelled():
            return []
        error = poll.exception()
        if error is None:
            return records_of(poll.result())
        if isinstance(error, KafkaError) and not isinstance(error, ConsumerStoppedError):
            if error.retriable:
                await asyncio.sleep(_RETRY_S)
                return []
            self._end(typed_error(error, f"reading {', '.join(self.topics)}"))
        elif not isinstance(error, ConsumerStoppedError):
            raise error
        return []

    def _unstash(self, max_records: int) -> list[Record]:
        paused = self.paused
        taken: list[Record] = []
        kept: list[Record] = []
        for record in self._stash:
            (taken if len(taken) < max_records and record.topic_partition not in paused else kept).append(record)
        self._stash = kept
        return taken

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if self.group is None:
            raise NotAssigned("a subscription without a group commits nothing")
        if not offsets:
            return
        self._require_assigned(offsets)
        task = asyncio.create_task(self._consumer.commit({to_kafka(at): offset for at, offset in offsets.items()}))
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._bus.settings.commit_timeout_s)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            raise BusUnavailable(f"committing in group {self.group}: no answer in {self._bus.settings.commit_timeout_s:.0f} s")
        if task.cancelled():
            raise NotAssigned(f"group {self.group} rebalanced during the commit")
        error = task.exception()
        if isinstance(error, CommitFailedError | IllegalStateError):
            raise NotAssigned(f"group {self.group} has rebalanced: {error}") from error
        if isinstance(error, KafkaError):
            raise typed_error(error, f"committing in group {self.group}") from error
        if error is not None:
            raise error

    async def committed(self, partition: TopicPartition) -> int | None:
        if self.group is None:
            return None
        found: int | None = await self._bus.guard(
            self._consumer.committed(to_kafka(partition)), f"asking group {self.group} for its offset"
        )
        return found

    async def position(self, partition: TopicPartition) -> int:
        self._require_assigned([partition])
        for record in self._stash:
            if record.topic_partition == partition:
                return record.offset
        found: int = await self._bus.guard(self._consumer.position(to_kafka(partition)), f"asking for the position in {partition.topic}")
        return found

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._require_assigned([partition])
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        self._stash = [record for record in self._stash if record.topic_partition != partition]
        try:
            self._consumer.seek(to_kafka(partition), offset)
        except IllegalStateError as error:
            raise NotAssigned(str(error)) from error

    def pause(self, *partitions: TopicPartition) -> None:
        self._require_assigned(partitions)
        self._consumer.pause(*map(to_kafka, partitions))

    def resume(self, *partitions: TopicPartition) -> None:
        self._require_assigned(partitions)
        self._consumer.resume(*map(to_kafka, partitions))

    @property
    def paused(self) -> frozenset[TopicPartition]:
        return frozenset(TopicPartition(at.topic, at.partition) for at in self._consumer.paused())

    async def end_offsets(self) -> dict[TopicPartition, int]:
        return await self._bus.end_offsets(self._assignment)

    async def _unreachable(self) -> bool:
        try:
            await self._bus.topic_problems(self.topics)
        except BusUnavailable:
            return True
        return False

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._end(Closed(f"the subscription to {', '.join(self.topics)} was closed"))
        self._stop_assigning()
        await stop_client(self._consumer)
        self._forget_lag(self._assignment)
        self._assignment = frozenset()
        self._bus.forget(self)
