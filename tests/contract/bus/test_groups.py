"""Groups: who gets what, what is delivered again, and what a rebalance may not do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from placet.core.bus import Closed, Fenced, NotAssigned, Subscription, TopicPartition, next_offsets


class Watched:
    """A member that notes its callbacks."""

    def __init__(self) -> None:
        self.events: list[tuple[str, frozenset[TopicPartition]]] = []

    async def on_assigned(self, subscription: Subscription, partitions: frozenset[TopicPartition]) -> None:
        self.events.append(("assigned", partitions))

    async def on_revoked(self, subscription: Subscription, partitions: frozenset[TopicPartition]) -> None:
        self.events.append(("revoked", partitions))

    async def join(self, bus: Any, topics: list[str], group: str, instance_id: str | None = None) -> Subscription:
        subscription: Subscription = await bus.subscribe(
            topics, group, instance_id=instance_id, on_assigned=self.on_assigned, on_revoked=self.on_revoked
        )
        self.subscription = subscription
        return subscription


async def test_every_group_sees_every_record(world: Any, collect: Any) -> None:
    bus = await world.bus()
    subscriptions = [await bus.subscribe([world.tasks], f"{world.group}.{number}") for number in range(3)]
    for number in range(20):
        await bus.publish(world.tasks, b"k%d" % number, b"%d" % number)
    for subscription in subscriptions:
        assert sorted(int(record.value) for record in await collect(subscription, 20)) == list(range(20))


async def test_readers_without_a_group_each_see_everything_from_the_place_fixed_at_subscription(world: Any, collect: Any) -> None:
    bus = await world.bus()
    await bus.publish(world.tasks, b"k", b"before")
    late = await bus.subscribe([world.tasks], None, from_beginning=False)
    early = await bus.subscribe([world.tasks], None)
    await bus.publish(world.tasks, b"k", b"after")
    assert [record.value for record in await collect(late, 1)] == [b"after"]
    assert [record.value for record in await collect(early, 2)] == [b"before", b"after"]
    assert late.assignment == early.assignment == {TopicPartition(world.tasks, number) for number in range(4)}
    with pytest.raises(NotAssigned):
        await late.commit({TopicPartition(world.tasks, 0): 1})


async def test_a_new_member_goes_on_where_the_group_has_committed(world: Any, collect: Any) -> None:
    bus = await world.bus()
    for number in range(10):
        await bus.publish(world.tasks, b"k", b"%d" % number)
    first = await bus.subscribe([world.tasks], world.group)
    records = await collect(first, 10)
    await first.commit(next_offsets(records[:6]))
    assert await first.committed(records[0].topic_partition) == 6
    await first.close()
    second = await (await world.bus()).subscribe([world.tasks], world.group)
    assert [record.value for record in await collect(second, 4)] == [b"6", b"7", b"8", b"9"]


async def test_what_was_not_committed_is_delivered_again(world: Any, collect: Any) -> None:
    bus = await world.bus()
    await bus.publish(world.tasks, b"k", b"once more")
    first = await bus.subscribe([world.tasks], world.group)
    assert len(await collect(first, 1)) == 1
    await first.close()
    second = await bus.subscribe([world.tasks], world.group)
    assert [record.value for record in await collect(second, 1)] == [b"once more"]


async def test_a_group_that_starts_at_the_end_misses_nothing_after_its_assignment_even_if_it_never_commits(
    world: Any, collect: Any
) -> None:
    bus = await world.bus()
    await bus.publish(world.tasks, b"k", b"old")
    first = await bus.subscribe([world.tasks], world.group, from_beginning=False)
    await first.wait_assigned()
    await bus.publish(world.tasks, b"k", b"1")
    await first.close()
    await bus.publish(world.tasks, b"k", b"2")
    second = await bus.subscribe([world.tasks], world.group, from_beginning=False)
    assert [record.value for record in await collect(second, 2)] == [b"1", b"2"]


async def test_members_share_by_range_so_that_topics_of_one_key_stay_together(world: Any, eventually: Any) -> None:
    bus, other = await world.bus(), await world.bus()
    both = [world.tasks, world.proposals]
    a, b = Watched(), Watched()
    await a.join(bus, both, world.group)
    assert len(await a.subscription.wait_assigned()) == 8
    await b.join(other, both, world.group)
    await eventually(lambda: len(a.subscription.assignment) == 4 and len(b.subscription.assignment) == 4)
    for member in (a, b):
        numbers = {topic: {at.partition for at in member.subscription.assignment if at.topic == topic} for topic in both}
        assert numbers[world.tasks] == numbers[world.proposals]
    assert not a.subscription.assignment & b.subscription.assignment
    await asyncio.gather(a.subscription.wait_assigned(), b.subscription.wait_assigned())
    # Everything was taken away before it was dealt out again.
    assert [kind for kind, _ in a.events] == ["assigned", "revoked", "assigned"]
    await b.subscription.close()
    await eventually(lambda: len(a.subscription.assignment) == 8)
    assert "revoked" not in [kind for kind, _ in b.events]


async def test_no_record_is_lost_while_members_come_and_go(world: Any, eventually: Any) -> None:
    bus = await world.bus()
    seen: set[bytes] = set()

    async def consume(subscription: Subscription) -> None:
        async for records in subscription:
            seen.update(record.value or b"" for record in records)
            try:
                await subscription.commit(next_offsets(records))
            except NotAssigned:
                continue  # a rebalance came between: they are delivered again

    members: list[tuple[Subscription, asyncio.Task[None]]] = []
    sent = 0
    for round_number in range(6):
        if round_number in (0, 1, 3):
            subscription = await bus.subscribe([world.tasks], world.group)
            members.append((subscription, asyncio.create_task(consume(subscription))))
        elif round_number in (2, 4):
            subscription, task = members.pop(0)
            await subscription.close()
            await task
        for _ in range(50):
            await bus.publish(world.tasks, b"k%d" % sent, b"%d" % sent)
            sent += 1
    await eventually(lambda: len(seen) == sent)
    for subscription, task in members:
        await subscription.close()
        await task


async def test_no_record_comes_before_the_assignment_callback_is_done(world: Any, collect: Any) -> None:
    bus = await world.bus()
    await bus.publish(world.tasks, b"k", b"v")
    await bus.publish(world.proposals, b"k", b"p")
    release = asyncio.Event()
    inside = asyncio.Event()
    found: list[bytes | None] = []

    async def on_assigned(subscription: Subscription, partitions: frozenset[TopicPartition]) -> None:
        inside.set()
        await release.wait()
        # What the aggregator does: read other topics to their end before it acts.
        number = bus.partition_for(world.proposals, b"k")
        found.extend(record.value for record in await bus.read_to_end(world.proposals, number))

    subscription = await bus.subscribe([world.tasks], world.group, on_assigned=on_assigned)
    await asyncio.wait_for(inside.wait(), 20)
    assert await subscription.batch(timeout_s=0.3) == []
    release.set()
    await collect(subscription, 1)
    assert found == [b"p"]


async def test_a_member_may_commit_while_its_partitions_are_revoked_but_not_afterwards(world: Any, collect: Any, eventually: Any) -> None:
    bus = await world.bus()
    number = bus.partition_for(world.tasks, b"k")
    at = TopicPartition(world.tasks, number)
    await bus.publish(world.tasks, b"k", b"v")
    committed: list[int] = []

    async def on_revoked(subscription: Subscription, partitions: frozenset[TopicPartition]) -> None:
        await subscription.commit({at: 1})
        committed.append(1)

    first = await bus.subscribe([world.tasks], world.group, on_revoked=on_revoked)
    await collect(first, 1)
    second = await (await world.bus()).subscribe([world.tasks], world.group)
    await eventually(lambda: bool(committed) and len(first.assignment) == 2 and len(second.assignment) == 2)
    lost = second if at in second.assignment else first
    other = first if lost is second else second
    assert await lost.committed(at) == 1
    with pytest.raises(NotAssigned):
        await other.commit({at: 0})
    assert await lost.committed(at) == 1


async def test_an_error_in_a_callback_reaches_the_consuming_loop(world: Any) -> None:
    bus = await world.bus()

    async def on_assigned(subscription: Subscription, partitions: frozenset[TopicPartition]) -> None:
        raise RuntimeError("cannot rebuild")

    subscription = await bus.subscribe([world.tasks], world.group, on_assigned=on_assigned)
    with pytest.raises(RuntimeError, match="cannot rebuild"):
        await asyncio.wait_for(subscription.batch(), 20)
    assert "cannot rebuild" in (await subscription.stuck() or "")


async def test_a_static_member_finds_its_partitions_again_without_a_rebalance(world: Any, eventually: Any) -> None:
    bus, other = await world.bus(), await world.bus()
    a, b = Watched(), Watched()
    await a.join(bus, [world.tasks], world.group, "pod-0")
    await a.subscription.wait_assigned()
    await b.join(other, [world.tasks], world.group, "pod-1")
    await eventually(lambda: len(a.subscription.assignment) == 2 and len(b.subscription.assignment) == 2)
    held = {"a": a.subscription.assignment, "b": b.subscription.assignment}
    await asyncio.gather(a.subscription.wait_assigned(), b.subscription.wait_assigned())
    events = list(b.events)

    await a.subscription.close()
    again = Watched()
    await again.join(bus, [world.tasks], world.group, "pod-0")
    assert await asyncio.wait_for(again.subscription.wait_assigned(), 20) == held["a"]
    assert b.subscription.assignment == held["b"]
    assert b.events == events

    await again.subscription.close()  # for good: the session ends, and the other takes over
    await eventually(lambda: len(b.subscription.assignment) == 4)


async def test_of_two_live_members_with_one_instance_id_the_older_ends_and_the_newer_works(world: Any) -> None:
    bus, other = await world.bus(), await world.bus()
    older = await bus.subscribe([world.tasks], world.group, instance_id="pod-0")
    await older.wait_assigned()
    if world.kind == "kafka":
        older._created -= 60  # what is left of a pod that was replaced
    newer = await other.subscribe([world.tasks], world.group, instance_id="pod-0")
    await newer.wait_assigned()
    with pytest.raises(Fenced):
        await asyncio.wait_for(older.batch(), 30)
    with pytest.raises(NotAssigned):
        await older.commit({TopicPartition(world.tasks, 0): 5})
    sent = await bus.publish(world.tasks, b"k", b"v")
    async with asyncio.timeout(30):
        async for records in newer:
            try:
                await newer.commit(next_offsets(records))
            except NotAssigned:
                continue  # the older one's last join came between: the newer gets its place back, and the record again
            break
    assert await newer.committed(TopicPartition(sent.topic, sent.partition)) == 1


async def test_seek_reads_again_and_pause_holds_back_one_partition(world: Any, collect: Any) -> None:
    bus = await world.bus()
    keys: dict[int, bytes] = {}
    for number in range(50):
        keys.setdefault(bus.partition_for(world.tasks, b"k%d" % number), b"k%d" % number)
    (one, key_one), (two, key_two) = list(keys.items())[:2]
    subscription = await bus.subscribe([world.tasks], world.group)
    for number in range(3):
        await bus.publish(world.tasks, key_one, b"%d" % number)
    await collect(subscription, 3)
    at_one, at_two = TopicPartition(world.tasks, one), TopicPartition(world.tasks, two)
    assert await subscription.position(at_one) == 3
    subscription.seek(at_one, 1)
    assert await subscription.position(at_one) == 1
    assert [record.value for record in await collect(subscription, 2)] == [b"1", b"2"]

    subscription.pause(at_one)
    assert subscription.paused == {at_one}
    await bus.publish(world.tasks, key_one, b"held")
    await bus.publish(world.tasks, key_two, b"passes")
    assert [record.value for record in await collect(subscription, 1)] == [b"passes"]
    assert await subscription.batch(timeout_s=0.2) == []
    subscription.resume(at_one)
    assert [record.value for record in await collect(subscription, 1)] == [b"held"]

    assert (await subscription.end_offsets())[at_one] == 4
    assert (await subscription.lag())[at_two] == 0
    with pytest.raises(NotAssigned):
        subscription.seek(TopicPartition(world.proposals, 0), 0)
    with pytest.raises(ValueError, match="negative"):
        subscription.seek(at_one, -1)


async def test_a_cancelled_read_loses_nothing(world: Any) -> None:
    bus = await world.bus()
    subscription = await bus.subscribe([world.tasks], world.group)
    await subscription.wait_assigned()
    found: list[int] = []
    sent = 0
    async with asyncio.timeout(30):
        while len(found) < 200:
            reading = asyncio.create_task(subscription.batch())
            if sent < 200:
                await asyncio.gather(*(bus.publish(world.tasks, b"k%d" % number, b"%d" % number) for number in range(sent, sent + 10)))
                sent += 10
            else:
                await asyncio.wait({reading}, timeout=0.05)
            reading.cancel()
            outcome = (await asyncio.gather(reading, return_exceptions=True))[0]
            if isinstance(outcome, list):
                found += [int(record.value) for record in outcome]
    assert sorted(found) == list(range(200))


async def test_max_records_bounds_a_batch(world: Any, collect: Any) -> None:
    bus = await world.bus()
    for number in range(25):
        await bus.publish(world.tasks, b"k%d" % number, b"%d" % number)
    subscription = await bus.subscribe([world.tasks], None)
    found: list[bytes] = []
    while len(found) < 25:
        records = await subscription.batch(max_records=7)
        assert 1 <= len(records) <= 7
        found += [record.value for record in records]
    assert sorted(map(int, found)) == list(range(25))


async def test_closing_ends_iteration_from_another_task(world: Any) -> None:
    bus = await world.bus()
    subscription = await bus.subscribe([world.tasks], world.group)
    await subscription.wait_assigned()

    async def consume() -> str:
        async for _ in subscription:
            pass
        return "ended"

    task = asyncio.create_task(consume())
    await asyncio.sleep(0)
    await subscription.close()
    assert await asyncio.wait_for(task, 20) == "ended"
    with pytest.raises(Closed):
        await subscription.batch()
    assert await subscription.stuck() is None


async def test_a_consumer_that_stopped_polling_is_reported_as_stuck(world: Any) -> None:
    bus = await world.bus()
    subscription = await bus.subscribe([world.tasks], world.group)
    await subscription.wait_assigned()
    await subscription.batch(timeout_s=0)
    assert await subscription.stuck(after_s=10) is None
    assert "has not polled" in (await subscription.stuck(after_s=0) or "")


async def test_a_consumer_with_records_waiting_and_no_progress_is_reported_as_stuck(world: Any) -> None:
    bus = await world.bus()
    subscription = await bus.subscribe([world.tasks], world.group)
    assigned = await subscription.wait_assigned()
    await bus.publish(world.tasks, b"k", b"v")
    subscription._last_poll = float("inf")  # it polls, but nothing comes
    subscription._last_ready -= 100
    subscription._last_progress -= 100
    assert "1 wait in 1 partitions" in (await subscription.stuck(after_s=60) or "")
    subscription.pause(*assigned)
    assert await subscription.stuck(after_s=60) is None
