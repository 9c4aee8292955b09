"""What cannot be taken now waits aside: in order, uncommitted, bounded, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, cast

import pytest

from placet.core import topics
from placet.core.bus import InProcessBus, Record, Subscription, TopicPartition
from placet.settlement import inbox
from placet.settlement.inbox import GIVE_UP_AFTER, Inbox, Outcome
from tests.support.authorization import Clock
from tests.support.waiting import until

AT = TopicPartition("attestations", 0)


def record(offset: int, key: bytes, chain: int = 1) -> Record:
    return Record(AT.topic, AT.partition, offset, key, b"value %d" % chain, (), 0)


class Desk:
    """An inbox, its handler, and the consumer under it."""

    def __init__(self) -> None:
        self.clock = Clock(1_000.0)
        self.inbox = Inbox(self._take, self._give_up, lambda found: int((found.value or b"0").rpartition(b" ")[2] or b"0"), self.clock)
        self.position: int | None = None
        self.says: dict[int, Outcome] = {}
        self.taken: list[int] = []
        self.tried: list[int] = []
        self.dead: list[int] = []
        self.committed: dict[TopicPartition, int] = {}
        self.assignment = frozenset({AT})
        self.paused: frozenset[TopicPartition] = frozenset()

    async def _take(self, found: Record) -> Outcome:
        self.tried.append(found.offset)
        outcome = self.says.get(found.offset, Outcome.DONE)
        if outcome is Outcome.DONE:
            self.taken.append(found.offset)
        return outcome

    async def _give_up(self, found: Record) -> None:
        self.dead.append(found.offset)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        self.committed |= offsets

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self.paused -= set(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        assert partition == AT
        self.position = offset

    async def give(self, records: Iterable[Record] = ()) -> None:
        await self.inbox.take(records)
        self.inbox._make_room(cast(Subscription, self))
        self.inbox._read_again(cast(Subscription, self))
        await self.inbox._commit(cast(Subscription, cast(Any, self)))


async def test_28_one_that_waits_holds_nobody_back_and_nothing_is_committed_past_it() -> None:
    desk = Desk()
    desk.says[1] = Outcome.AWAY
    await desk.give([record(0, b"a"), record(1, b"b"), record(2, b"c")])
    assert desk.taken == [0, 2]
    assert desk.committed == {AT: 1}
    del desk.says[1]
    await desk.give()
    assert desk.taken == [0, 2], "not before its time"
    desk.clock.now += 2
    await desk.give()
    assert desk.taken == [0, 2, 1]
    assert desk.committed == {AT: 3}
    assert desk.inbox.waiting == 0


async def test_19_records_of_one_batch_keep_their_order() -> None:
    desk = Desk()
    desk.says[0] = Outcome.AWAY
    await desk.give([record(0, b"a"), record(1, b"a"), record(2, b"b")])
    await desk.give([record(3, b"a")])
    assert desk.tried == [0, 2]
    del desk.says[0]
    desk.clock.now += 2
    for _ in range(2):
        await desk.give()
    assert desk.taken == [2, 0, 1, 3]
    assert desk.committed == {AT: 4}


async def test_28_what_fails_by_itself_is_tried_ever_less_often_and_given_up() -> None:
    desk = Desk()
    desk.says[0] = Outcome.FAILED
    await desk.give([record(0, b"a")])
    while not desk.dead and desk.clock.now < 2_000:
        desk.clock.now += 1
        await desk.give()
    assert desk.dead == [0]
    assert len(desk.tried) == GIVE_UP_AFTER
    assert 120 < desk.clock.now - 1_000 < 300
    assert desk.committed == {AT: 1}


async def test_what_is_away_is_waited_for_however_long() -> None:
    desk = Desk()
    desk.says[0] = Outcome.AWAY
    await desk.give([record(0, b"a")])
    for _ in range(1_000):
        desk.clock.now += 2
        await desk.give()
    assert desk.dead == []
    assert desk.inbox.waiting == 1


async def test_partitions_pause_while_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_WAITING_RECORDS", 2)
    desk = Desk()
    desk.says |= {0: Outcome.FAILED, 1: Outcome.FAILED}
    await desk.give([record(0, b"a"), record(1, b"b")])
    assert desk.paused == {AT}
    desk.says.clear()
    desk.clock.now += 3
    await desk.give()
    assert desk.paused == frozenset()


async def read_all(desk: Desk, topic: list[Record]) -> None:
    """As `run` does: what it is sought back to is delivered again, with all that follows."""
    for _ in range(1_000):
        if desk.position is None:
            return
        at, desk.position = desk.position, None
        await desk.give(topic[at : at + 8])
        desk.clock.now += 2
    raise AssertionError("it never comes to an end")


async def test_28_what_waits_for_one_chain_leaves_room_for_others_and_comes_in_order() -> None:
    """Chain 1 is away for 1,000 records, chain 2 is well; then chain 1 is back, away again in the middle, and back."""
    desk, count = Desk(), 1_000
    topic = [record(offset, b"%d %d" % (offset % 7, bool(offset % 4)), 1 if offset % 4 else 2) for offset in range(count)]
    away = {offset: Outcome.AWAY for offset in range(count) if offset % 4}
    desk.says = dict(away)
    for at in range(0, count, 64):
        await desk.give(topic[at : at + 64])
        assert not desk.paused
    assert desk.committed == {AT: 1}
    assert desk.inbox.waiting == 750
    assert desk.inbox.waiting - desk.inbox.parked == inbox.MAX_WAITING_RECORDS // inbox.SHARE
    assert desk.taken == list(range(0, count, 4)), "of the other chain, all"

    desk.says = {offset: outcome for offset, outcome in away.items() if offset > 400}
    desk.clock.now += 2
    await desk.give()
    for _ in range(50):
        await read_all(desk, topic)
        desk.clock.now += 2
        await desk.give()
    assert {offset for offset in range(400) if offset % 4} <= set(desk.taken)
    assert max(desk.taken) < count
    desk.says.clear()
    for _ in range(100):
        desk.clock.now += 2
        await desk.give()
        await read_all(desk, topic)
    assert sorted(desk.taken) == list(range(count)), "each once"
    of_a_key = [[offset for offset in desk.taken if offset % 7 == key and offset % 4] for key in range(7)]
    assert of_a_key == [sorted(offsets) for offsets in of_a_key], "in order"
    assert desk.committed == {AT: count}
    assert desk.inbox.waiting == 0


async def test_partitions_that_go_to_others_take_what_waits_along() -> None:
    desk = Desk()
    desk.says[0] = Outcome.AWAY
    await desk.give([record(0, b"a"), record(1, b"b")])
    await desk.inbox.revoked(cast(Subscription, desk), desk.assignment)
    desk.says.clear()
    desk.clock.now += 5
    await desk.give()
    assert desk.tried == [0, 1]
    assert desk.committed == {AT: 0}
    await desk.give([record(0, b"a"), record(1, b"b")])
    assert desk.committed == {AT: 2}


async def test_28_over_a_bus_all_is_taken_once_after_a_chain_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "_AGAIN_S", 0.02)
    bus = InProcessBus()
    await bus.start()
    away, taken, count = True, list[int](), 600

    async def take(found: Record) -> Outcome:
        number = int(found.value or b"0")
        if away and number % 4:
            return Outcome.AWAY
        taken.append(number)
        return Outcome.DONE

    async def give_up(found: Record) -> None:
        raise AssertionError(found)

    for number in range(count):
        await bus.publish(topics.ATTESTATIONS, number.to_bytes(32, "big"), b"%d" % number)
    subscription = await bus.subscribe([topics.ATTESTATIONS], "settlement")
    desk = Inbox(take, give_up, lambda found: bool(int(found.value or b"0") % 4))
    running = asyncio.create_task(desk.run(subscription))
    try:
        await until(lambda: len(taken) == count // 4, "the other chain's are all taken", within_s=10)
        assert desk.waiting == 450
        assert desk.parked > 400
        away = False
        await until(lambda: len(taken) == count, "all are taken", within_s=20)
        assert sorted(taken) == list(range(count))
        await until(lambda: desk.waiting == 0, "nothing waits")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await subscription.close()
        await bus.stop()
