"""Reading outside of a group: to the end, by time, and compacted topics as snapshots."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from placet.core.bus import TopicPartition, UnknownTopic


async def test_a_partition_is_read_to_its_end_from_any_offset_without_a_group(world: Any) -> None:
    bus = await world.bus()
    number = bus.partition_for(world.tasks, b"k")
    at = TopicPartition(world.tasks, number)
    assert await bus.read_to_end(world.tasks, number) == []
    for value in range(5):
        await bus.publish(world.tasks, b"k", b"%d" % value)
    assert [record.value for record in await bus.read_to_end(world.tasks, number)] == [b"0", b"1", b"2", b"3", b"4"]
    assert [record.value for record in await bus.read_to_end(world.tasks, number, 3)] == [b"3", b"4"]
    assert await bus.read_to_end(world.tasks, number, 5) == []
    assert await bus.read_to_end(world.tasks, number, 99) == []
    assert await bus.end_offsets([at]) == {at: 5}


async def test_many_partitions_are_read_to_their_ends_at_once(world: Any) -> None:
    bus = await world.bus()
    for value in range(60):
        await bus.publish(world.tasks if value % 2 else world.proposals, b"k%d" % value, b"%d" % value)
    found = await bus.read_many_to_end({at: None for topic in (world.tasks, world.proposals) for at in bus.partitions(topic)})
    assert len(found) == 8
    assert sorted(int(record.value or b"") for records in found.values() for record in records) == list(range(60))
    for at, records in found.items():
        assert [record.topic_partition for record in records] == [at] * len(records)
        assert [record.offset for record in records] == list(range(len(records)))


async def test_an_offset_is_found_by_time(world: Any) -> None:
    bus = await world.bus()
    at = TopicPartition(world.tasks, bus.partition_for(world.tasks, b"k"))
    await bus.publish(world.tasks, b"k", b"0")
    written_ms = (await bus.read_to_end(*at))[0].timestamp_ms
    while int(time.time() * 1000) <= written_ms + 2:
        await asyncio.sleep(0.001)
    await bus.publish(world.tasks, b"k", b"1")
    second_ms = (await bus.read_to_end(*at))[1].timestamp_ms
    assert await bus.offsets_at([at], 0) == {at: 0}
    assert await bus.offsets_at([at], second_ms) == {at: 1}
    assert await bus.offsets_at([at], second_ms + 60_000) == {at: 2}


async def test_a_partition_that_does_not_exist_is_refused(world: Any) -> None:
    bus = await world.bus()
    with pytest.raises(UnknownTopic):
        await bus.read_to_end(world.tasks, 99)
    with pytest.raises(UnknownTopic):
        await bus.end_offsets([TopicPartition(world.tasks, 99)])


async def test_a_snapshot_has_the_newest_record_of_each_key_and_follows(world: Any, eventually: Any) -> None:
    bus = await world.bus()
    for number in range(30):
        await bus.publish(world.policies, b"k%d" % (number % 3), b"%d" % number)
    await bus.publish(world.policies, b"k0", None)
    snapshot = await bus.snapshot(world.policies)
    assert {key: record.value for key, record in snapshot.items()} == {b"k1": b"28", b"k2": b"29"}
    assert snapshot.get(b"k0") is None
    assert b"k1" in snapshot
    assert len(snapshot) == 2

    changes: list[tuple[bytes | None, bytes | None]] = []

    async def follow() -> None:
        async for record in snapshot.changes():
            changes.append((record.key, record.value))

    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    writer = await world.bus()
    await writer.publish(world.policies, b"k3", b"new")
    await writer.publish(world.policies, b"k1", None)
    await snapshot.caught_up()
    assert sorted(snapshot) == [b"k2", b"k3"]
    await snapshot.wait_for(lambda s: b"k1" not in s)
    await eventually(lambda: changes == [(b"k3", b"new"), (b"k1", None)])
    await snapshot.close()
    await asyncio.wait_for(following, 20)


async def test_a_snapshot_of_an_empty_topic_is_empty_and_follows(world: Any) -> None:
    bus = await world.bus()
    async with await bus.snapshot(world.policies) as snapshot:
        assert dict(snapshot.items()) == {}
        await bus.publish(world.policies, b"k", b"v")
        await snapshot.caught_up()
        assert snapshot[b"k"].value == b"v"


async def test_only_compacted_topics_have_snapshots(world: Any) -> None:
    bus = await world.bus()
    with pytest.raises(ValueError, match="not compacted"):
        await bus.snapshot(world.tasks)
