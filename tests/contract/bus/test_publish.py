"""Writing: what a publish promises, and what it refuses."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from placet.core import topics
from placet.core.bus import Closed, InProcessBus, RecordTooLarge, UnknownTopic
from placet.core.bus.partitioner import partition_for


async def test_records_of_one_key_arrive_in_the_order_of_their_publishes(world: Any, collect: Any) -> None:
    bus = await world.bus()
    subscription = await bus.subscribe([world.tasks], world.group)
    keys = [b"a", b"b", b"c"]
    for number in range(40):
        await asyncio.gather(*(bus.publish(world.tasks, key, b"%d" % number) for key in keys))
    records = await collect(subscription, 120)
    for key in keys:
        assert [record.value for record in records if record.key == key] == [b"%d" % number for number in range(40)]


async def test_a_published_record_says_where_it_lies_and_is_read_as_it_was_written(world: Any, collect: Any) -> None:
    bus = await world.bus()
    before_ms = int(time.time() * 1000)
    sent = await bus.publish(world.tasks, b"key", b"\x00\xffvalue", (("name", b"\x01"), ("name", b"\x02"), ("empty", b"")))
    record = (await collect(await bus.subscribe([world.tasks], None), 1))[0]
    assert record.id == sent
    assert (record.key, record.value) == (b"key", b"\x00\xffvalue")
    assert record.headers == (("name", b"\x01"), ("name", b"\x02"), ("empty", b""))
    assert record.header("name") == b"\x02"
    assert record.header("missing") is None
    assert before_ms - 1000 <= record.timestamp_ms <= int(time.time() * 1000) + 1000


async def test_one_key_lies_in_one_partition_number_of_every_topic_with_that_many_partitions(world: Any) -> None:
    bus = await world.bus()
    for number in range(20):
        key = number.to_bytes(32, "big")
        task = await bus.publish(world.tasks, key, b"t")
        proposal = await bus.publish(world.proposals, key, b"p")
        assert task.partition == proposal.partition == partition_for(key, 4)


async def test_a_record_at_the_limit_goes_through_and_one_byte_more_is_refused_before_it_is_sent(world: Any) -> None:
    bus = await world.bus()
    limit = world.topics[world.tasks].max_record_bytes
    body = bytes(range(256)) * (limit // 256)
    sent = await bus.publish(world.tasks, b"k" * 8, body[: limit - 12], (("four", b""),))
    assert len((await bus.read_to_end(world.tasks, sent.partition))[0].value or b"") == limit - 12
    with pytest.raises(RecordTooLarge) as caught:
        await bus.publish(world.tasks, b"k" * 8, body[: limit - 11], (("four", b""),))
    assert (caught.value.topic, caught.value.size, caught.value.limit) == (world.tasks, limit + 1, limit)
    assert len(await bus.read_to_end(world.tasks, sent.partition)) == 1


async def test_a_topic_outside_the_table_fails_at_once(world: Any) -> None:
    bus = await world.bus()
    started = time.monotonic()
    with pytest.raises(UnknownTopic):
        await bus.publish("no.such.topic", b"k", b"v")
    with pytest.raises(UnknownTopic):
        await bus.subscribe(["no.such.topic"], world.group)
    with pytest.raises(UnknownTopic):
        await bus.read_to_end("no.such.topic", 0)
    assert time.monotonic() - started < 2


async def test_a_topic_of_the_table_that_the_broker_lacks_fails_at_once(world: Any) -> None:
    if world.kind == "inprocess":
        bus: Any = InProcessBus(world.broker)
    else:
        bus = world.new_bus()
    bus.topics = {**world.topics, "later": replace(topics.TOPICS[topics.TASKS], name="later")}
    async with bus:
        assert await bus.topic_problems() == ["later does not exist"]
        assert await bus.topic_problems([world.tasks]) == []
        started = time.monotonic()
        for attempt in (bus.publish("later", b"k", b"v"), bus.subscribe(["later"], world.group), bus.read_to_end("later", 0)):
            with pytest.raises(UnknownTopic):
                await attempt
        assert time.monotonic() - started < 2


async def test_a_removal_is_refused_where_nothing_is_compacted(world: Any) -> None:
    bus = await world.bus()
    with pytest.raises(ValueError, match="not compacted"):
        await bus.publish(world.tasks, b"k", None)


async def test_a_stopped_bus_says_so(world: Any) -> None:
    bus = world.new_bus()
    with pytest.raises(Closed):
        await bus.publish(world.tasks, b"k", b"v")
    await bus.start()
    await bus.stop()
    with pytest.raises(Closed):
        await bus.publish(world.tasks, b"k", b"v")
    await bus.stop()


async def test_a_dead_letter_keeps_the_bytes_and_says_what_went_wrong(world: Any, collect: Any) -> None:
    bus = await world.bus()
    sent = await bus.publish(world.tasks, b"key", b"\xde\xad", (("own", b"1"), ("x-error", b"forged")))
    record = (await collect(await bus.subscribe([world.tasks], None), 1))[0]
    await bus.publish_dlq(record, ValueError("cannot decode"), consumer="operator")
    letter = (await bus.read_to_end(world.tasks_dlq, 0))[0]
    assert (letter.key, letter.value) == (b"key", b"\xde\xad")
    found = dict(letter.headers)
    assert found.pop("x-failed-at").isdigit()
    assert found == {
        "own": b"1",
        "x-error": b"cannot decode",
        "x-error-type": b"ValueError",
        "x-error-consumer": b"operator",
        "x-attempt": b"1",
        "x-origin-topic": world.tasks.encode(),
        "x-origin-partition": b"%d" % sent.partition,
        "x-origin-offset": b"%d" % sent.offset,
    }


async def test_the_largest_record_still_fits_into_the_dead_letter_topic(world: Any, collect: Any) -> None:
    bus = await world.bus()
    limit = world.topics[world.tasks].max_record_bytes
    await bus.publish(world.tasks, b"k", b"x" * (limit - 1))
    record = (await collect(await bus.subscribe([world.tasks], None), 1))[0]
    await bus.publish_dlq(record, ValueError("e" * 100_000), consumer="aggregator")
    letter = (await bus.read_to_end(world.tasks_dlq, 0))[0]
    assert len(letter.value or b"") == limit - 1
    assert len(letter.header("x-error") or b"") == 1024
