"""The bus over Apache Kafka, through aiokafka.

What this adds to the client library, each for a reason that was met (facts of aiokafka 0.14):

* positions are fixed before `on_assigned`, and a group that starts at the end commits that place (the library decides lazily, and loses
  what comes between joining and the first poll);
* a commit under way is dropped when its partitions are revoked (the library would retry it under the next generation);
* records fetched under one assignment are never delivered under the next, nor before `on_assigned` is done;
* a producer that failed a delivery is replaced (its sequence numbers have a gap then, and the partition would refuse it for ever);
* a batch of records that cannot be unpacked, or is compressed, is passed over (kafka_records);
* waits have an end, with a typed error; missing topics are noticed at once, not after the request timeout;
* its loggers, which write tens of lines a second while a broker is away, are rate-limited.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerClosed,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from placet.core.bus import kafka_records
from placet.core.bus.errors import BusUnavailable, Closed, NotAssigned, NotPermitted, RecordTooLarge, UnknownTopic
from placet.core.bus.interface import Bus, PartitionsCallback
from placet.core.bus.kafka_client import KafkaSettings, records_of, stop_client, to_kafka, typed_error
from placet.core.bus.kafka_subscription import KafkaSubscription
from placet.core.bus.quiet import quiet
from placet.core.bus.records import Headers, Record, RecordId, TopicPartition, size_of
from placet.core.topics import FRAMING_BYTES, TOPICS, Topic

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.1
_NEW_TOPIC_S: Final = 0.5
"""A topic that was created a moment ago may not have reached every broker."""


class KafkaBus(Bus):
    def __init__(self, settings: KafkaSettings, topics: Mapping[str, Topic] = TOPICS) -> None:
        super().__init__(topics)
        self.settings = settings
        self._ssl: ssl.SSLContext | None = None
        self._producer: AIOKafkaProducer | None = None
        self._reader: AIOKafkaConsumer | None = None
        self._replacing = asyncio.Lock()
        self._retired: set[asyncio.Task[None]] = set()
        self._subscriptions: set[KafkaSubscription] = set()
        self._verified: set[str] = set()

    # Life cycle.

    async def start(self) -> None:
        if self._producer is not None:
            return
        quiet("aiokafka")
        kafka_records.install()
        self._ssl = await asyncio.to_thread(self.settings.ssl_context)
        producer = await self._connected(self._new_producer)
        try:
            self._reader = await self._connected(self._new_reader)
        except BaseException:
            await stop_client(producer)
            raise
        self._producer = producer

    async def stop(self) -> None:
        producer, reader = self._producer, self._reader
        self._producer = self._reader = None
        await asyncio.gather(*(subscription.close() for subscription in list(self._subscriptions)))
        if producer is not None:
            await stop_client(producer)
        if reader is not None:
            await stop_client(reader)
        if self._retired:
            await asyncio.wait(self._retired)

    def _new_producer(self) -> Any:
        return AIOKafkaProducer(
            **self.settings.client_options(self._ssl),
            acks="all",
            enable_idempotence=True,
            max_request_size=max(topic.max_record_bytes for topic in self.topics.values()) + FRAMING_BYTES,
        )

    def _new_reader(self) -> Any:
        # It meets every topic for the first time with a retry, which someone waits for.
        return AIOKafkaConsumer(
            **self.settings.client_options(self._ssl), enable_auto_commit=False, auto_offset_reset="earliest", retry_backoff_ms=10
        )

    def _new_consumer(self, group: str | None, instance_id: str | None) -> Any:
        s = self.settings
        return AIOKafkaConsumer(
            **s.client_options(self._ssl),
            group_id=group,
            group_instance_id=instance_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # also for who starts at the end: that place is sought, and what retention took is skipped
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=s.session_timeout_ms,
            heartbeat_interval_ms=s.heartbeat_interval_ms,
            rebalance_timeout_ms=s.rebalance_timeout_ms,
            max_poll_interval_ms=s.max_poll_interval_ms,
        )

    async def _connected(self, new: Callable[[], Any]) -> Any:
        """A started client; tries again until connect_timeout_s is over."""
        deadline = time.monotonic() + self.settings.connect_timeout_s
        while True:
            client = new()
            try:
                await asyncio.wait_for(client.start(), max(0.0, deadline - time.monotonic()))
            except ClusterAuthorizationFailedError as error:
                await stop_client(client)
                raise NotPermitted("this user may write no topic at all: an idempotent producer needs one ACL for writing") from error
            except (KafkaError, OSError, TimeoutError, KeyError) as error:  # KeyError: a refused SCRAM exchange
                await stop_client(client)
                if time.monotonic() + _RETRY_S >= deadline:
                    raise BusUnavailable(
                        f"no connection to Kafka at {self.settings.bootstrap_servers} within {self.settings.connect_timeout_s:.0f} s"
                        f" ({type(error).__name__}; a wrong password or certificate looks the same: the broker's log tells)"
                    ) from error
                await asyncio.sleep(_RETRY_S)
            except BaseException:
                await stop_client(client)
                raise
            else:
                return client

    async def guard(self, doing: Awaitable[Any], what: str, timeout_s: float | None = None) -> Any:
        """Awaits a call of the client library with an end, and gives its errors the bus's types."""
        try:
            return await asyncio.wait_for(doing, self.settings.read_timeout_s if timeout_s is None else timeout_s)
        except IllegalStateError as error:
            raise NotAssigned(f"{what}: {error}") from error
        except (KafkaError, OSError, TimeoutError) as error:
            raise typed_error(error, what) from error

    def _live(self) -> tuple[Any, Any]:
        if self._producer is None or self._reader is None:
            raise Closed("the bus is not started, or was stopped")
        return self._producer, self._reader

    # Topics.

    async def topic_problems(self, names: Iterable[str] | None = None) -> list[str]:
        producer, _ = self._live()
        cluster = await self.guard(producer.client.fetch_all_metadata(), "asking for the topics")
        problems = []
        for name in self.topics if names is None else names:
            wanted, found = self.topic(name).partitions, cluster.partitions_for_topic(name)
            if found is None:
                problems.append(f"{name} does not exist")
            elif len(found) != wanted:
                problems.append(f"{name} has {len(found)} partitions, not {wanted}")
            else:
                self._verified.add(name)
        return problems

    async def _verify(self, names: Iterable[str]) -> None:
        """Makes sure once a topic that the broker has it with the table's partition count: both fail late and vaguely otherwise."""
        new = [name for name in names if name not in self._verified]
        deadline = time.monotonic() + _NEW_TOPIC_S
        while new and (problems := await self.topic_problems(new)):
            if time.monotonic() < deadline:
                await asyncio.sleep(_RETRY_S)
                continue
            raise UnknownTopic(f"{'; '.join(problems)}: `placet topics apply` creates what is missing")

    # Writing.

    async def _send(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> RecordId:
        await self._verify([topic])
        doing = f"publishing to {topic}"
        deadline = time.monotonic() + self.settings.publish_timeout_s
        last: Exception | None = None
        if key is None and value is None:
            key = b""  # the library wants one of the two
        while (remaining_s := deadline - time.monotonic()) > 0:
            producer, _ = self._live()
            try:
                async with asyncio.timeout(remaining_s):
                    acknowledged = await producer.send(topic, value=value, key=key, partition=partition, headers=list(headers))
                    metadata = await acknowledged
                return RecordId(topic, partition, metadata.offset)
            except TimeoutError as error:
                last = error
            except (MessageSizeTooLargeError, RecordListTooLargeError) as error:  # the broker's limit is below the table's
                await self._replace(producer)
                raise RecordTooLarge(topic, size_of(key, value, headers), self.topic(topic).max_record_bytes) from error
            except (TopicAuthorizationFailedError, UnknownTopicOrPartitionError) as error:
                self._verified.discard(topic)
                await self._replace(producer)
                raise typed_error(error, doing) from error
            except KafkaTimeoutError as error:  # the buffer is full: nothing was sent
                last = error
                await asyncio.sleep(_RETRY_S)
            except ProducerClosed as error:  # replaced by another task
                last = error
                await asyncio.sleep(0)
            except KafkaError as error:
                last = error
                log.warning("%s failed, trying again with a new producer: %r", doing, error)
                await self._replace(producer)
        raise BusUnavailable(f"{doing}: no acknowledgement within {self.settings.publish_timeout_s:.0f} s") from last

    async def _replace(self, failed: Any) -> None:
        """Puts a new producer in the place of one that failed a delivery: its sequence numbers may have a gap now."""
        async with self._replacing:
            current = self._producer
            if current is None or current is not failed:
                return
            self._producer = await self._connected(self._new_producer)
            self.retire(current)

    def retire(self, client: Any) -> None:
        """Stops a client that is not used any more, in the background."""
        retiring = asyncio.create_task(stop_client(client))
        self._retired.add(retiring)
        retiring.add_done_callback(self._retired.discard)

    # Reading.

    async def subscribe(
        self,
        topics: Iterable[str],
        group: str | None,
        *,
        from_beginning: bool = True,
        instance_id: str | None = None,
        on_assigned: PartitionsCallback | None = None,
        on_revoked: PartitionsCallback | None = None,
    ) -> KafkaSubscription:
        self._live()
        names = tuple(sorted({self.topic(name).name for name in topics}))
        await self._verify(names)
        subscription = KafkaSubscription(
            self,
            self._new_consumer(group, instance_id if group is not None else None),
            names,
            group,
            instance_id=instance_id,
            from_beginning=from_beginning,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
        )
        self._subscriptions.add(subscription)
        try:
            await subscription.open()
        except BaseException:
            await subscription.close()
            raise
        return subscription

    def forget(self, subscription: KafkaSubscription) -> None:
        self._subscriptions.discard(subscription)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._ends(partitions, "end_offsets")

    async def _ends(self, partitions: Iterable[TopicPartition], which: str) -> dict[TopicPartition, int]:
        partitions = list(partitions)
        if not partitions:
            return {}
        self._require_existing(partitions)
        wanted = [to_kafka(at) for at in partitions]
        _, reader = self._live()
        await self._verify({at.topic for at in wanted})
        found = await self.guard(getattr(reader, which)(wanted), "asking for offsets")
        return {TopicPartition(at.topic, at.partition): offset for at, offset in found.items()}

    async def offsets_at(self, partitions: Iterable[TopicPartition], timestamp_ms: int) -> dict[TopicPartition, int]:
        wanted = list(partitions)
        ends = await self.end_offsets(wanted)
        if not wanted:
            return {}
        _, reader = self._live()
        found = await self.guard(reader.offsets_for_times({to_kafka(at): timestamp_ms for at in wanted}), "asking for offsets by time")
        hits = {at: found.get(to_kafka(at)) for at in wanted}
        return {at: ends[at] if hit is None else hit.offset for at, hit in hits.items()}

    async def read_many_to_end(self, starts: Mapping[TopicPartition, int | None]) -> dict[TopicPartition, list[Record]]:
        ends = await self._ends(starts, "end_offsets")
        begins = await self._ends(starts, "beginning_offsets")
        first = {at: max(begins[at], start or 0) for at, start in starts.items()}
        pending = {at: ends[at] for at in starts if first[at] < ends[at]}
        found: dict[TopicPartition, list[Record]] = {at: [] for at in starts}
        if not pending:
            return found
        consumer = await self._connected(self._new_reader)
        try:
            consumer.assign([to_kafka(at) for at in pending])
            for at in pending:
                consumer.seek(to_kafka(at), first[at])
            last_progress = time.monotonic()
            while pending:
                if time.monotonic() - last_progress > self.settings.read_timeout_s:
                    raise BusUnavailable(
                        f"reading {len(pending)} partitions to their end: nothing came for {self.settings.read_timeout_s:.0f} s"
                    )
                try:
                    records = records_of(await consumer.getmany(timeout_ms=200))
                except KafkaError as error:
                    if not error.retriable:
                        raise typed_error(error, "reading to the end") from error
                    await asyncio.sleep(_RETRY_S)
                    continue
                if records:
                    last_progress = time.monotonic()
                for record in records:
                    if record.offset < pending.get(record.topic_partition, 0):
                        found[record.topic_partition].append(record)
                for at, end in list(pending.items()):
                    # The position also passes what compaction removed, where no record will ever come.
                    if await self.guard(consumer.position(to_kafka(at)), "reading to the end") >= end:
                        del pending[at]
                        consumer.pause(to_kafka(at))
        finally:
            await stop_client(consumer)
        return found
