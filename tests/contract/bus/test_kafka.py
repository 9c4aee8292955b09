"""What only a real broker can show: crashes, and topics as the table says."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import TopicPartition as KafkaTopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete

from placet.core import topics
from placet.core.bus import BusUnavailable, RecordTooLarge, Subscription, TopicPartition, next_offsets
from placet.core.bus.kafka import KafkaBus
from placet.core.bus.kafka_client import KafkaSettings
from placet.core.bus.kafka_topics import apply_topics
from placet.sdk.devservices.kafka import KafkaBroker
from placet.sdk.devservices.process import free_ports

pytestmark = pytest.mark.kafka


async def test_a_broker_killed_while_records_are_published_loses_no_acknowledged_one_and_clients_go_on(
    kafka_world: Any, broker: KafkaBroker
) -> None:
    bus, other = await kafka_world.bus(), await kafka_world.bus()
    snapshot = await other.snapshot(kafka_world.policies)
    subscription = await other.subscribe([kafka_world.tasks], kafka_world.group)
    await subscription.wait_assigned()
    acknowledged: dict[int, tuple[int, int]] = {}
    consumed: list[tuple[bytes, int]] = []
    restarts = broker.restarts
    stop = asyncio.Event()

    async def publish(first: int) -> None:
        number = first
        while not stop.is_set():
            sent = await bus.publish(kafka_world.tasks, b"k%d" % (number % 7), b"%d" % number)
            acknowledged[number] = (sent.partition, sent.offset)
            number += 4
            await asyncio.sleep(0.001)

    async def consume() -> None:
        async for records in subscription:
            consumed.extend((record.key or b"", int(record.value or b"")) for record in records)
            await subscription.commit(next_offsets(records))

    publishers = [asyncio.create_task(publish(first)) for first in range(4)]
    consumer = asyncio.create_task(consume())
    async with asyncio.timeout(90):
        for kill in range(2):
            before = len(acknowledged)
            while len(acknowledged) < before + 200:
                await asyncio.sleep(0.01)
            broker.kill()
            while broker.restarts < restarts + kill + 1:
                await asyncio.sleep(0.01)
        before = len(acknowledged)
        while len(acknowledged) < before + 200:
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*publishers)
        while not {number for _, number in consumed} >= set(acknowledged):
            await asyncio.sleep(0.01)

        stored = await bus.read_many_to_end(dict.fromkeys(bus.partitions(kafka_world.tasks)))
        in_log = {(r.partition, r.offset): int(r.value or b"") for records in stored.values() for r in records}
        for number, place in acknowledged.items():
            assert in_log[place] == number
        assert sorted(in_log.values()) == sorted(acknowledged)  # the idempotent producer left no duplicate behind
        for key in {key for key, _ in consumed}:
            # Four publishers share a key; within one of them the order of its publishes is kept.
            for first in range(4):
                own = [number for found, number in consumed if found == key and number % 4 == first]
                assert own == sorted(own)
        assert await subscription.committed(TopicPartition(kafka_world.tasks, 0)) is not None

        await bus.publish(kafka_world.policies, b"k", b"after the crash")
        await snapshot.caught_up()
        assert snapshot[b"k"].value == b"after the crash"
    assert await subscription.stuck() is None
    await subscription.close()
    await consumer


async def test_a_commit_under_way_while_the_broker_is_away_is_made_good_or_refused_but_never_hangs(
    kafka_world: Any, broker: KafkaBroker, collect: Any
) -> None:
    bus = await kafka_world.bus()
    await bus.publish(kafka_world.tasks, b"k", b"v")
    subscription = await bus.subscribe([kafka_world.tasks], kafka_world.group)
    record = (await collect(subscription, 1))[0]
    restarts = broker.restarts
    broker.kill()
    async with asyncio.timeout(60):
        await subscription.commit(next_offsets([record]))
        while broker.restarts == restarts:
            await asyncio.sleep(0.01)
        assert await subscription.committed(record.topic_partition) == 1


async def test_a_broker_that_is_away_gives_a_typed_error_in_time(kafka_world: Any, data: Any) -> None:
    port = free_ports(1)[0]
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}", connect_timeout_s=1.0, publish_timeout_s=1.0, read_timeout_s=1.0)
    started = time.monotonic()
    with pytest.raises(BusUnavailable, match="no connection"):
        await KafkaBus(settings, kafka_world.topics).start()
    assert time.monotonic() - started < 4

    with KafkaBroker(data / "own", port=port) as own:
        await apply_topics(settings, kafka_world.topics)
        bus = KafkaBus(settings, kafka_world.topics)
        await bus.start()
        subscription: Subscription = await bus.subscribe([kafka_world.tasks], "g")
        await subscription.wait_assigned()
        await bus.publish(kafka_world.tasks, b"k", b"v")
        own.kill()
        started = time.monotonic()
        for attempt in (
            bus.publish(kafka_world.tasks, b"k", b"v"),
            bus.end_offsets(bus.partitions(kafka_world.tasks)),
            bus.read_to_end(kafka_world.tasks, 0),
            bus.topic_problems(),
        ):
            with pytest.raises(BusUnavailable):
                await attempt
        subscription._last_ready -= 100
        subscription._last_progress -= 100
        await subscription.batch(timeout_s=0.1)
        assert await subscription.stuck(after_s=60) is None  # a restart of this service would not help
        await bus.stop()
        assert time.monotonic() - started < 30


async def test_a_record_that_only_the_broker_refuses_is_typed_and_does_not_break_the_partition(kafka_world: Any) -> None:
    narrow = replace(kafka_world.topics[kafka_world.tasks], name="narrow." + kafka_world.tasks, partitions=1, max_record_bytes=1000)
    await apply_topics(kafka_world.settings, {narrow.name: narrow})
    bus = KafkaBus(kafka_world.settings, {narrow.name: replace(narrow, max_record_bytes=1_000_000)})
    async with bus:
        for number in range(3):
            await bus.publish(narrow.name, b"k", b"%d" % number)
        with pytest.raises(RecordTooLarge):
            await bus.publish(narrow.name, b"k", b"x" * 100_000)
        for number in range(3, 6):  # the library alone would fail here: its sequence numbers have a gap
            await bus.publish(narrow.name, b"k", b"%d" % number)
        assert [record.value for record in await bus.read_to_end(narrow.name, 0)] == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_a_group_whose_place_was_deleted_by_retention_goes_on_at_the_oldest_that_is_left(
    kafka_world: Any, broker: KafkaBroker, collect: Any
) -> None:
    bus = await kafka_world.bus()
    at = TopicPartition(kafka_world.tasks, bus.partition_for(kafka_world.tasks, b"k"))
    first = await bus.subscribe([kafka_world.tasks], kafka_world.group, from_beginning=False)
    await first.wait_assigned()
    await first.close()
    for number in range(10):
        await bus.publish(kafka_world.tasks, b"k", b"%d" % number)
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({KafkaTopicPartition(*at): RecordsToDelete(before_offset=6)})
    finally:
        await admin.close()
    second = await bus.subscribe([kafka_world.tasks], kafka_world.group, from_beginning=False)
    assert [record.value for record in await collect(second, 4)] == [b"6", b"7", b"8", b"9"]
    assert [record.value for record in await bus.read_to_end(*at, 2)] == [b"6", b"7", b"8", b"9"]


async def test_topics_are_created_as_the_table_says_and_applying_again_repairs_their_configuration(
    kafka_world: Any, broker: KafkaBroker
) -> None:
    settings = kafka_world.settings
    table = topics.table(batch_partitions=3)
    assert len(await apply_topics(settings, table)) == len(table)
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        name = topics.POLICIES
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": "1000"})])  # resets cleanup.policy
        done = await apply_topics(settings, table)
        assert f"configured {name}" in done
        wanted = {topic.name: topic.config() for topic in table.values()}
        ends = time.monotonic() + 10  # a broker answers by its own copy of the metadata, which follows the controller's
        while True:
            rows = (await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, t) for t in table]))[0].resources
            found = {row[3]: {entry[0]: entry[1] for entry in row[4] if entry[0] in wanted[row[3]]} for row in rows}
            if found == wanted or time.monotonic() > ends:
                break
            await asyncio.sleep(0.1)
        assert found == wanted
        assert {row["topic"]: len(row["partitions"]) for row in await admin.describe_topics(list(table))} == {
            t.name: t.partitions for t in table.values()
        }
    finally:
        await admin.close()
    with pytest.raises(ValueError, match="fixed at creation"):
        await apply_topics(settings, topics.table(batch_partitions=5))
    bus = KafkaBus(settings, topics.table(batch_partitions=5))
    async with bus:
        assert f"{topics.TASKS} has 3 partitions, not 5" in await bus.topic_problems()


async def test_a_record_put_aside_comes_back_with_its_attempts_and_ends_in_the_first_topics_dead_letters(
    kafka_world: Any, collect: Any
) -> None:
    table = topics.table(batch_partitions=3)
    await apply_topics(kafka_world.settings, table)
    bus = KafkaBus(kafka_world.settings, table)
    async with bus:
        sent = await bus.publish(topics.ATTESTATIONS, b"batch", b"group")
        record = (await bus.read_to_end(topics.ATTESTATIONS, sent.partition))[-1]
        now_ms = int(time.time() * 1000)
        for attempt, step in enumerate(("30s", "5m"), start=1):
            aside = await bus.publish_retry(record, ConnectionError("node away"), consumer="settlement", step=step)
            assert aside.topic == f"{topics.ATTESTATIONS}.retry.settlement.{step}"
            record = (await bus.read_to_end(aside.topic, aside.partition))[-1]
            assert record.header("x-attempt") == b"%d" % attempt
            assert int(record.header("x-not-before") or b"") >= now_ms + topics.RETRY_DELAYS_MS[step]
        letter = await bus.publish_dlq(record, ConnectionError("node away"), consumer="settlement")
        assert letter.topic == topics.dlq(topics.ATTESTATIONS)
        found = (await bus.read_to_end(letter.topic, 0))[-1]
        assert found.value == b"group"
        assert (found.header("x-origin-topic"), found.header("x-origin-offset")) == (topics.ATTESTATIONS.encode(), b"%d" % sent.offset)
        with pytest.raises(KeyError):
            await bus.publish_retry(record, ValueError(), consumer="operator", step="30s")


async def test_a_broker_whose_port_is_taken_says_so(broker: KafkaBroker, data: Any) -> None:
    from placet.sdk.devservices.process import DevServiceError

    with pytest.raises(DevServiceError, match="is in use"):
        KafkaBroker(data, port=int(broker.bootstrap.rsplit(":", 1)[1])).start()
