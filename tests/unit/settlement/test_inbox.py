"""What cannot be taken now waits aside: in order, uncommitted, bounded, and not for ever."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import pytest

from placet.core.bus import Record, Subscription, TopicPartition
from placet.settlement import inbox
from placet.settlement.inbox import GIVE_UP_AFTER, Inbox, Outcome
from tests.support.authorization import Clock

AT = TopicPartition("attestations", 0)


def record(offset: int, key: bytes) -> Record:
    return Record(AT.topic, AT.partition, offset, key, b"value", (), 0)


class Desk:
    """An inbox, its handler, and the consumer under it."""

    def __init__(self) -> None:
        self.clock = Clock(1_000.0)
        self.inbox = Inbox(self._take, self._give_up, self.clock)
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

    async def give(self, records: Iterable[Record] = ()) -> None:
        await self.inbox.take(records)
        self.inbox._make_room(cast(Subscription, self))
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
    desk.says |= {0: Outcome.AWAY, 1: Outcome.AWAY}
    await desk.give([record(0, b"a"), record(1, b"b")])
    assert desk.paused == {AT}
    desk.says.clear()
    desk.clock.now += 2
    await desk.give()
    assert desk.paused == frozenset()


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
