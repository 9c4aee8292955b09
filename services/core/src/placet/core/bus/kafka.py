"""The bus over Apache Kafka, through aiokafka.

What this adds to the client library, each for a reason that was met (facts of aiokafka 0.14):

* positions are fixed before `on_assigned`, and a group that starts at the end commits that place (the library decides lazily, and loses
  what comes between joining and the first poll);
* a commit under way is dropped when its partitions are revoked (the library would retry it under the next generation);
* records fetched under one assignment are never delivered under the next, nor before `on_assigned` is done;
* a producer that failed a delivery is replaced (its sequence numbers have a gap then, and the partition would refuse it for ever);
* waits have an end, with a typed error; missing topics are noticed at once, not after the request timeout;
* its loggers, which write tens of lines a second while a broker is away, are rate-limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaTopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    CommitFailedError,
    ConsumerStoppedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerClosed,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from placet.core.bus.errors import BusError, BusUnavailable, Closed, Fenced, NotAssigned, NotPermitted, RecordTooLarge, UnknownTopic
from placet.core.bus.interface import Bus, PartitionsCallback, Subscription
from placet.core.bus.quiet import quiet
from placet.core.bus.records import Headers, Record, RecordId, TopicPartition, size_of
from placet.core.topics import FRAMING_BYTES, TOPICS, Topic

log = logging.getLogger(__name__)

_POLL_SLICE_S: Final = 5.0
_RETRY_S: Final = 0.1
_CLOSE_TIMEOUT_S: Final = 5.0
_NEW_TOPIC_S: Final = 0.5
"""A topic that was created a moment ago may not have reached every broker."""
_FIGHT_ROUNDS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSettings:
    """How to reach the brokers. File names are read when the bus starts; the password is never printed."""

    bootstrap_servers: str
    client_id: str = "placet"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    compression: Literal["gzip", "snappy", "lz4", "zstd"] | None = None
    session_timeout_ms: int = 30_000
    """How long the group waits for a member it does not hear from; also how long a static member may be away."""
    heartbeat_interval_ms: int = 1_000
    """Bounds how long a rebalance takes to be noticed."""
    rebalance_timeout_ms: int = 60_000
    """How long the group waits for a member's callbacks; set above the longest handler."""
    max_poll_interval_ms: int = 300_000
    metadata_max_age_ms: int = 10_000
    request_timeout_ms: int = 10_000
    connect_timeout_s: float = 10.0
    publish_timeout_s: float = 30.0
    commit_timeout_s: float = 30.0
    read_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.bootstrap_servers:
            raise ValueError("bootstrap_servers is empty: name at least one broker as host:port")
        if self.heartbeat_interval_ms * 3 > self.session_timeout_ms:
            raise ValueError("heartbeat_interval_ms must be at most a third of session_timeout_ms")
        if self.security_protocol.startswith("SASL") and (self.sasl_username is None or self.sasl_password is None):
            raise ValueError(f"{self.security_protocol} needs sasl_username and sasl_password")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")

    def ssl_context(self) -> ssl.SSLContext | None:
        """Reads the certificate files (blocking)."""
        if self.security_protocol not in ("SSL", "SASL_SSL"):
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context

    def client_options(self, context: ssl.SSLContext | None) -> dict[str, Any]:
        """What every aiokafka client takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "client_id": self.client_id,
            "security_protocol": self.security_protocol,
            "ssl_context": context,
            "metadata_max_age_ms": self.metadata_max_age_ms,
            "request_timeout_ms": self.request_timeout_ms,
        }
        if self.security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        return options


def _typed(error: Exception, doing: str) -> BusError:
    """The bus error for an error of the client library."""
    if isinstance(error, BusError):
        return error
    if isinstance(error, TopicAuthorizationFailedError | GroupAuthorizationFailedError):
        return NotPermitted(f"{doing}: {error}")
    if isinstance(error, UnknownTopicOrPartitionError):
        return UnknownTopic(f"{doing}: the broker does not have it; `placet topics apply` creates what is missing")
    if isinstance(error, ConsumerStoppedError | ProducerClosed):
        return Closed(f"{doing}: the client was closed")
    if isinstance(error, TimeoutError):
        return BusUnavailable(f"{doing}: no answer in time")
    return BusUnavailable(f"{doing}: {type(error).__name__}: {error}")


async def _stop(client: Any) -> None:
    """Stops a client; never raises and never takes long, whatever state it is in.

    While a broker is away the library's own `stop` may wait for it, or end with the CancelledError of one of its inner tasks and leave
    its connections open; those are closed here then.
    """
    stopping = asyncio.create_task(client.stop())
    done, _ = await asyncio.wait({stopping}, timeout=_CLOSE_TIMEOUT_S)
    if done and not stopping.cancelled() and stopping.exception() is None:
        return
    stopping.cancel()
    log.warning(
        "a Kafka client did not close by itself: %s",
        "no end in time" if not done else "cancelled" if stopping.cancelled() else repr(stopping.exception()),
    )
    connections = client.client if isinstance(client, AIOKafkaProducer) else client._client
    with contextlib.suppress(Exception):
        await asyncio.wait_for(connections.close(), _CLOSE_TIMEOUT_S)


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
        self._consumer.assign([_kafka(at) for at in partitions])
        for at, offset in starts.items():
            self._consumer.seek(_kafka(at), offset)
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
                    new = [at for at in partitions if await self._consumer.committed(_kafka(at)) is None]
                    starts = await self._bus.end_offsets(new)
                    for at, offset in starts.items():
                        self._consumer.seek(_kafka(at), offset)
                    if starts:
                        await self._consumer.commit({_kafka(at): offset for at, offset in starts.items()})
                for at in partitions:
                    await self._consumer.position(_kafka(at))
                return
            except IllegalStateError:
                return  # taken away again meanwhile; the next assignment follows
            except CommitFailedError:
                return  # as above
            except (KafkaError, BusUnavailable, TimeoutError) as error:
                if isinstance(error, KafkaError) and not error.retriable:
                    raise _typed(error, f"finding where group {self.group} stands") from error
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
                self._stash += _records(poll.result())
            else:
                poll.cancel()
            raise
        finally:
            self._poll = None
        if poll.cancelled():
            return []
        error = poll.exception()
        if error is None:
            return _records(poll.result())
        if isinstance(error, KafkaError) and not isinstance(error, ConsumerStoppedError):
            if error.retriable:
                await asyncio.sleep(_RETRY_S)
                return []
            self._end(_typed(error, f"reading {', '.join(self.topics)}"))
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
        task = asyncio.create_task(self._consumer.commit({_kafka(at): offset for at, offset in offsets.items()}))
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
            raise _typed(error, f"committing in group {self.group}") from error
        if error is not None:
            raise error

    async def committed(self, partition: TopicPartition) -> int | None:
        if self.group is None:
            return None
        found: int | None = await self._bus.guard(self._consumer.committed(_kafka(partition)), f"asking group {self.group} for its offset")
        return found

    async def position(self, partition: TopicPartition) -> int:
        self._require_assigned([partition])
        for record in self._stash:
            if record.topic_partition == partition:
                return record.offset
        found: int = await self._bus.guard(self._consumer.position(_kafka(partition)), f"asking for the position in {partition.topic}")
        return found

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._require_assigned([partition])
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        self._stash = [record for record in self._stash if record.topic_partition != partition]
        try:
            self._consumer.seek(_kafka(partition), offset)
        except IllegalStateError as error:
            raise NotAssigned(str(error)) from error

    def pause(self, *partitions: TopicPartition) -> None:
        self._require_assigned(partitions)
        self._consumer.pause(*map(_kafka, partitions))

    def resume(self, *partitions: TopicPartition) -> None:
        self._require_assigned(partitions)
        self._consumer.resume(*map(_kafka, partitions))

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
        await _stop(self._consumer)
        self._forget_lag(self._assignment)
        self._assignment = frozenset()
        self._bus.forget(self)


def _kafka(at: TopicPartition) -> KafkaTopicPartition:
    return KafkaTopicPartition(at.topic, at.partition)


def _records(fetched: Mapping[KafkaTopicPartition, list[Any]]) -> list[Record]:
    return [
        Record(m.topic, m.partition, m.offset, m.key, m.value, tuple(m.headers), m.timestamp) for batch in fetched.values() for m in batch
    ]


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
        self._ssl = await asyncio.to_thread(self.settings.ssl_context)
        producer = await self._connected(self._new_producer)
        try:
            self._reader = await self._connected(self._new_reader)
        except BaseException:
            await _stop(producer)
            raise
        self._producer = producer

    async def stop(self) -> None:
        producer, reader = self._producer, self._reader
        self._producer = self._reader = None
        await asyncio.gather(*(subscription.close() for subscription in list(self._subscriptions)))
        if producer is not None:
            await _stop(producer)
        if reader is not None:
            await _stop(reader)
        if self._retired:
            await asyncio.wait(self._retired)

    def _new_producer(self) -> Any:
        return AIOKafkaProducer(
            **self.settings.client_options(self._ssl),
            acks="all",
            enable_idempotence=True,
            compression_type=self.settings.compression,
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
                await _stop(client)
                raise NotPermitted("this user may write no topic at all: an idempotent producer needs one ACL for writing") from error
            except (KafkaError, OSError, TimeoutError, KeyError) as error:  # KeyError: a refused SCRAM exchange
                await _stop(client)
                if time.monotonic() + _RETRY_S >= deadline:
                    raise BusUnavailable(
                        f"no connection to Kafka at {self.settings.bootstrap_servers} within {self.settings.connect_timeout_s:.0f} s"
                        f" ({type(error).__name__}; a wrong password or certificate looks the same: the broker's log tells)"
                    ) from error
                await asyncio.sleep(_RETRY_S)
            except BaseException:
                await _stop(client)
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
            raise _typed(error, what) from error

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
                raise _typed(error, doing) from error
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
        retiring = asyncio.create_task(_stop(client))
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
        wanted = [_kafka(at) for at in partitions]
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
        found = await self.guard(reader.offsets_for_times({_kafka(at): timestamp_ms for at in wanted}), "asking for offsets by time")
        hits = {at: found.get(_kafka(at)) for at in wanted}
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
            consumer.assign([_kafka(at) for at in pending])
            for at in pending:
                consumer.seek(_kafka(at), first[at])
            last_progress = time.monotonic()
            while pending:
                if time.monotonic() - last_progress > self.settings.read_timeout_s:
                    raise BusUnavailable(
                        f"reading {len(pending)} partitions to their end: nothing came for {self.settings.read_timeout_s:.0f} s"
                    )
                try:
                    records = _records(await consumer.getmany(timeout_ms=200))
                except KafkaError as error:
                    if not error.retriable:
                        raise _typed(error, "reading to the end") from error
                    await asyncio.sleep(_RETRY_S)
                    continue
                if records:
                    last_progress = time.monotonic()
                for record in records:
                    if record.offset < pending.get(record.topic_partition, 0):
                        found[record.topic_partition].append(record)
                for at, end in list(pending.items()):
                    # The position also passes what compaction removed, where no record will ever come.
                    if await self.guard(consumer.position(_kafka(at)), "reading to the end") >= end:
                        del pending[at]
                        consumer.pause(_kafka(at))
        finally:
            await _stop(consumer)
        return found


async def apply_topics(settings: KafkaSettings, topics: Mapping[str, Topic] = TOPICS) -> list[str]:
    """Creates the topics that are missing and sets the configuration of those that are there. Returns what was done, a line each.

    Never changes a partition count (keys would move): a wrong one raises ValueError. Raises BusUnavailable, NotPermitted.
    """
    quiet("aiokafka")
    context = await asyncio.to_thread(settings.ssl_context)
    admin = AIOKafkaAdminClient(**settings.client_options(context))
    try:
        await asyncio.wait_for(admin.start(), settings.connect_timeout_s)
        cluster = await admin.describe_cluster()
        brokers = len(cluster["brokers"])
        existing = {row["topic"]: len(row["partitions"]) for row in await admin.describe_topics()}
        wrong = [
            f"{t.name} has {existing[t.name]} partitions, not {t.partitions}"
            for t in topics.values()
            if existing.get(t.name, t.partitions) != t.partitions
        ]
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}: a partition count is fixed at creation")
        missing = [t for t in topics.values() if t.name not in existing]
        done = []
        if missing:
            answer = await admin.create_topics(
                [NewTopic(t.name, t.partitions, min(t.replication, brokers), topic_configs=t.config()) for t in missing]
            )
            for name, code, *rest in answer.topic_errors:  # errors stand in the answer, the library raises none
                if code and for_code(code) is not TopicAlreadyExistsError:
                    raise _typed(for_code(code)(rest[0] if rest else ""), f"creating {name}")
            done += [f"created {t.name} with {t.partitions} partitions" for t in missing]
            await asyncio.wait_for(_until_led(admin, {t.name for t in missing}), settings.connect_timeout_s)
        present = [t for t in topics.values() if t.name in existing]
        if present:
            # Not incremental: whatever is not sent falls back to the broker's default, so all of a topic's settings go.
            answers = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, t.name, t.config()) for t in present])
            for code, text, _, name in (row for answer in answers for row in answer.resources):
                if code:
                    raise _typed(for_code(code)(text), f"configuring {name}")
            done += [f"configured {t.name}" for t in present]
        return done
    except (KafkaError, OSError, TimeoutError, KeyError) as error:
        raise _typed(error, f"applying topics at {settings.bootstrap_servers}") from error
    finally:
        with contextlib.suppress(Exception):
            await admin.close()


async def _until_led(admin: Any, names: set[str]) -> None:
    """Returns when every partition of the new topics has a leader, as this broker knows it: creation is answered before."""
    while True:
        rows = [row for row in await admin.describe_topics() if row["topic"] in names]
        if len(rows) == len(names) and all(partition["leader"] >= 0 for row in rows for partition in row["partitions"]):
            return
        await asyncio.sleep(_RETRY_S / 2)
