"""What is the in-process bus's own: bounds on memory, compaction, members that are too slow, fencing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from placet.core import topics
from placet.core.bus import Fenced, InProcessBroker, InProcessBus, NotAssigned, Subscription, TopicPartition, next_offsets
from placet.core.bus.records import Record

TASKS, POLICIES = topics.TASKS, topics.POLICIES
TABLE = {TASKS: replace(topics.TOPICS[TASKS], partitions=2), POLICIES: topics.TOPICS[POLICIES]}


async def eventually(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_a_partition_forgets_its_oldest_records_above_its_size_and_readers_go_on_at_what_is_left() -> None:
    async with InProcessBus(InProcessBroker(TABLE, partition_bytes=1000)) as bus:
        subscription = await bus.subscribe([TASKS], None)
        for number in range(50):
            await bus.publish(TASKS, b"k", b"%0100d" % number)
        at = TopicPartition(TASKS, bus.partition_for(TASKS, b"k"))
        kept = await bus.read_to_end(*at)
        assert [record.offset for record in kept] == list(range(40, 50))
        assert [record.offset for record in await subscription.batch()] == list(range(40, 50))
        assert await bus.end_offsets([at]) == {at: 50}


async def test_records_older_than_the_retention_go(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 1_000_000_000_000_000_000
    monkeypatch.setattr("placet.core.bus.inprocess.time.time_ns", lambda: now_ns)
    async with InProcessBus(InProcessBroker(TABLE)) as bus:
        await bus.publish(TASKS, b"k", b"old")
        now_ns += (topics.DAY_MS * 3) * 1_000_000
        await bus.publish(TASKS, b"k", b"new")
        assert [record.value for record in await bus.read_to_end(TASKS, bus.partition_for(TASKS, b"k"))] == [b"new"]


async def test_compaction_keeps_the_newest_of_each_key_and_drops_removals() -> None:
    async with InProcessBus(InProcessBroker(TABLE)) as bus:
        follower = await bus.subscribe([POLICIES], None)
        for number in range(5000):
            await bus.publish(POLICIES, b"k%d" % (number % 5), None if number % 5 == 4 else b"%d" % number)
        stored = await bus.read_to_end(POLICIES, 0)
        assert len(stored) < 2000
        state: dict[bytes | None, bytes | None] = {}
        while await follower.position(TopicPartition(POLICIES, 0)) < 5000:
            for record in await follower.batch():
                state[record.key] = record.value
        expected = {b"k%d" % n: b"%d" % (4995 + n) for n in range(4)}
        assert {key: value for key, value in state.items() if value is not None} == expected
        async with await bus.snapshot(POLICIES) as snapshot:
            assert {key: record.value for key, record in snapshot.items()} == expected


async def test_a_member_whose_callback_takes_too_long_is_put_out_and_joins_again() -> None:
    broker = InProcessBroker(TABLE, rebalance_timeout_s=0.05)
    release = asyncio.Event()

    async def on_revoked(subscription: Subscription, partitions: frozenset[TopicPartition]) -> None:
        await release.wait()

    async with InProcessBus(broker) as bus:
        slow = await bus.subscribe([TASKS], "g", on_revoked=on_revoked)
        assert len(await slow.wait_assigned()) == 2
        quick = await bus.subscribe([TASKS], "g")
        assert len(await quick.wait_assigned()) == 2
        with pytest.raises(NotAssigned):
            await slow.commit({TopicPartition(TASKS, 0): 1})
        release.set()
        await eventually(lambda: len(slow.assignment) == len(quick.assignment) == 1)
    await broker.stop()


async def test_a_second_member_with_the_same_instance_id_fences_the_first() -> None:
    async with InProcessBus(InProcessBroker(TABLE)) as bus:
        first = await bus.subscribe([TASKS], "g", instance_id="pod-0")
        await first.wait_assigned()
        second = await bus.subscribe([TASKS], "g", instance_id="pod-0")
        assert len(await second.wait_assigned()) == 2
        with pytest.raises(Fenced):
            await first.batch()
        with pytest.raises(NotAssigned):
            await first.commit({TopicPartition(TASKS, 0): 1})


async def test_more_members_than_partitions_leave_some_without_any() -> None:
    async with InProcessBus(InProcessBroker(TABLE)) as bus:
        members = [await bus.subscribe([TASKS], "g") for _ in range(3)]
        await eventually(lambda: sorted(len(member.assignment) for member in members) == [0, 1, 1])
        idle = next(member for member in members if not member.assignment)
        await idle.wait_assigned()
        assert await idle.batch(timeout_s=0) == []
        assert await idle.stuck() is None


async def test_a_busy_partition_does_not_hold_up_the_other() -> None:
    async with InProcessBus(InProcessBroker(TABLE)) as bus:
        keys = {bus.partition_for(TASKS, b"%d" % number): b"%d" % number for number in range(20)}
        for _ in range(1000):
            await bus.publish(TASKS, keys[0], b"busy")
        await bus.publish(TASKS, keys[1], b"quiet")
        subscription = await bus.subscribe([TASKS], "g")
        first = [await subscription.batch(max_records=10) for _ in range(3)]
        assert any(record.value == b"quiet" for batch in first for record in batch)


def test_next_offsets_are_one_past_the_last_of_each_partition() -> None:
    def record(partition: int, offset: int) -> Record:
        return Record("t", partition, offset, None, b"", (), 0)

    assert next_offsets([record(0, 4), record(1, 9), record(0, 5)]) == {TopicPartition("t", 0): 6, TopicPartition("t", 1): 10}
    assert next_offsets([]) == {}


async def test_a_refused_publish_counts_and_leaves_no_record() -> None:
    from prometheus_client import REGISTRY

    def failures() -> float:
        return REGISTRY.get_sample_value("placet_bus_send_failures_total", {"topic": TASKS, "error": "RecordTooLarge"}) or 0.0

    async with InProcessBus(InProcessBroker(TABLE)) as bus:
        before = failures()
        with pytest.raises(Exception, match="larger than"):
            await bus.publish(TASKS, b"k", b"x" * 2**20)
        assert failures() == before + 1
        assert await bus.read_to_end(TASKS, bus.partition_for(TASKS, b"k")) == []
