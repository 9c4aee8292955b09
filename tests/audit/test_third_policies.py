"""Third reading: what one writer of a compacted topic does to what others wrote there."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from placet.core import jsonx, topics, wire
from placet.core.bus import InProcessBus
from placet.core.envelope import Kind, LocalBusSigner, seal
from placet.core.messages import Admission, PolicyAnnouncement
from placet.core.objects import ObjectStore
from placet.core.types import Hash32
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


async def test_29_a_bundle_that_makes_no_id_ends_no_operator() -> None:
    """A gateway's announcement is enough. `validFor` of -1 raises OverflowError when the id is computed, before anything bounds it, and
    nobody catches that: the operator ends, and ends again whenever it is started, because the announcement stands. All operators do."""
    objects, bus = ObjectStore("memory:///"), InProcessBus()
    await bus.start()
    empty = "0x" + (await objects.put(b"{}")).hex()
    module = "0x" + (await objects.put(b"package a")).hex()
    document = {
        "version": 1,
        "modules": [{"name": "a.rego", "sha256": module}],
        "entrypoint": "data.a.decision",
        "params": empty,
        "schema": empty,
        "inference": empty,
        "policyData": [],
        "bindings": [],
        "calls": [{"self": True, "target": "0x" + "00" * 20, "signature": "ping()", "unpack": ""}],
        "ordering": 0,
        "validFor": -1,
        "retryAfter": 0,
        "engineSha256": "0x" + "00" * 32,
        "regoFuel": 10**9,
        "regoMemory": 1 << 26,
    }
    address = await objects.put(jsonx.canonical(document))
    payload = wire.encode_policy_announcement(PolicyAnnouncement(Hash32(b"\x01" * 32), address))
    envelope = seal(rig.GATEWAY, kind=Kind.POLICY_ANNOUNCEMENT, chain_id=0, sender=rig.GATEWAY.public_key, payload=payload)
    await bus.publish(topics.POLICIES, b"\x01" * 32, envelope)
    store = PolicyStore(
        bus=bus,
        objects=objects,
        engine=cast(Any, None),
        components=cast(Any, None),
        operator=rig.identities()[0].address,
        bus_signer=LocalBusSigner(b"\x05" * 32),
        publishers=frozenset({rig.GATEWAY.public_key}),
    )
    await store.start()
    running = asyncio.create_task(store.run())
    await asyncio.sleep(0.5)
    try:
        assert not running.done(), f"the operator ends: {running.exception()!r}"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.stop()
        await bus.stop()
