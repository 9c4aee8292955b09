"""Third reading: what one writer of a compacted topic does to what others wrote there."""

from __future__ import annotations

from typing import Any, cast

import pytest

from placet.core import topics, wire
from placet.core.bus import InProcessBus
from placet.core.envelope import Kind, seal
from placet.core.messages import Admission
from placet.core.objects import ObjectStore
from placet.gateway.policybook import PolicyBook
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
