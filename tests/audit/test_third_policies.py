"""Third reading: what one writer of a compacted topic does to what others wrote there."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from placet.core import topics, wire
from placet.core.bus import InProcessBus
from placet.core.envelope import Kind, seal
from placet.core.messages import Admission
from placet.core.objects import ObjectStore
from placet.gateway.policybook import PolicyBook
from placet.operator.policies import PolicyStore
from tests.audit import rig


@pytest.mark.parametrize("record", [b"\x00", None])
async def test_29_one_operator_takes_no_policy_off_the_network(record: bytes | None) -> None:
    """`admissions` is keyed by policy and operator, and every operator may write the topic. The newest record of a key stands, whether it
    holds or not: one operator of four writes a byte (or a removal) under two others' keys, and the gateway refuses every task of the policy
    (409), also after restarts. The honest say it again when they are restarted, and are overwritten again."""
    members = rig.identities()
    operators = rig.operator_set(members)
    bus = InProcessBus()
    await bus.start()
    book = PolicyBook(bus, ObjectStore("memory:///"), rig.GATEWAY)
    await book.start()
    try:
        for who in members[1:]:
            payload = wire.encode_admission(Admission(rig.POLICY_ID, admitted=True, checker="1", reason=""))
            envelope = seal(who.bus, kind=Kind.ADMISSION, chain_id=0, sender=who.address, payload=payload)
            await bus.publish(topics.ADMISSIONS, rig.POLICY_ID + who.address, envelope)
        assert book._admissions is not None
        await book._admissions.caught_up()
        assert book.is_admitted(rig.POLICY_ID, operators, 6667)
        await bus.publish(topics.ADMISSIONS, rig.POLICY_ID + members[1].address, cast(Any, record))  # by members[0]
        await book._admissions.caught_up()
        assert book.is_admitted(rig.POLICY_ID, operators, 6667)
    finally:
        await book.stop()
        await bus.stop()


def _admission_store(bus: InProcessBus, member: rig.Identity) -> PolicyStore:
    return PolicyStore(
        bus=bus,
        objects=ObjectStore("memory:///"),
        engine=cast(Any, None),
        components=cast(Any, None),
        operator=member.address,
        bus_signer=member.bus,
        publishers=frozenset({rig.GATEWAY.public_key}),
    )


@pytest.mark.parametrize("record", [b"\x00", None, "older"])
async def test_29_an_operator_says_again_what_was_written_over(record: bytes | str | None) -> None:
    """Gateways that run pass over it; a gateway that starts later would read what compaction left: the vandal's."""
    member = rig.identities()[1]
    key = rig.POLICY_ID + member.address
    bus = InProcessBus()
    await bus.start()
    store = _admission_store(bus, member)
    await store.start()
    running = asyncio.create_task(store.run())
    seen = await bus.subscribe([topics.ADMISSIONS], None)
    try:
        await asyncio.sleep(0.05)
        await store._admissions.say(Admission(rig.POLICY_ID, admitted=True, checker="1", reason=""))
        (mine,) = await seen.batch(timeout_s=2.0)
        older = wire.encode_admission(Admission(rig.POLICY_ID, admitted=False, checker="1", reason="not yet", said_at=1))
        replayed = seal(member.bus, kind=Kind.ADMISSION, chain_id=0, sender=member.address, payload=older)
        value = replayed if record == "older" else record
        await bus.publish(topics.ADMISSIONS, key, cast(Any, value))
        said = [item for _ in range(2) for item in await seen.batch(timeout_s=2.0, max_records=1)]
        assert [item.value for item in said] == [value, mine.value]
        # A second time within a minute waits: a vandal makes nobody write as fast as himself.
        await bus.publish(topics.ADMISSIONS, key, cast(Any, value))
        assert [item.value for item in await seen.batch(timeout_s=0.3)] == [value]
        assert await seen.batch(timeout_s=0.3) == []
        assert list(store._admissions._waiting) == [rig.POLICY_ID]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.stop()
        await seen.close()
        await bus.stop()


async def test_29_a_newer_word_of_the_same_operator_stands() -> None:
    """Two replicas with one key do not write over each other for ever."""
    member = rig.identities()[1]
    bus = InProcessBus()
    await bus.start()
    stores = [_admission_store(bus, member) for _ in range(2)]
    for store in stores:
        await store.start()
    running = [asyncio.create_task(store.run()) for store in stores]
    seen = await bus.subscribe([topics.ADMISSIONS], None)
    try:
        await asyncio.sleep(0.05)
        for store in stores:
            await store._admissions.say(Admission(rig.POLICY_ID, admitted=True, checker="1", reason=""))
            await asyncio.sleep(0.05)
        assert len(await seen.batch(timeout_s=0.5)) == 2
        assert await seen.batch(timeout_s=0.3) == []
        assert stores[0]._admissions._said == stores[1]._admissions._said
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for store in stores:
            await store.stop()
        await seen.close()
        await bus.stop()
