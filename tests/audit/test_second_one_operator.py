"""Second reading: one of four operators against everybody's tasks, through what it may write to the bus (threats 16, 24, 29)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from placet.aggregator.mailboxes import Mailbox, Mailboxes
from placet.core import topics, wire
from placet.core.bus import InProcessBus, Record
from placet.core.envelope import Kind, open_envelope, seal
from placet.core.keccak import keccak256
from placet.core.messages import Admission, Observation, Proposal, Response
from placet.core.objects import ObjectStore, sha256
from placet.core.proposals import open_observations
from placet.core.types import Hash32
from placet.gateway.policybook import PolicyBook
from tests.audit import rig
from tests.support.authorization import Member, World, eventually
from tests.unit.aggregator.test_service import Stage, stage

__all__ = ["stage"]


# --- other people's messages, again


async def test_16_an_operators_messages_repeated_by_another_do_not_silence_it(stage: Stage) -> None:
    """A Proposal shows everybody's signed Observations. The liar writes each of them to the bus sixteen times more; the honest
    operators' Responses are then "more than 16 messages of one operator for one batch"."""
    await stage.aggregator()
    context = stage.world.batch(1, observe_for_ms=300)
    liar, *honest = stage.world.members
    await stage.batch(context)
    heard = [stage.world.observation(member, context, [0]) for member in (liar, *honest)]
    for envelope in heard:
        await stage.say(topics.OBSERVATIONS, context, envelope)

    await eventually(lambda: stage.proposals(context), "there is a Proposal")
    (proposal,) = await stage.proposals(context)
    message = open_envelope(proposal, lambda kind, sender: sender)
    for _ in range(16):
        for envelope in heard[1:]:
            await stage.say(topics.OBSERVATIONS, context, envelope)
    digest = Hash32(keccak256(message.payload))
    for member in honest:
        answer = stage.world.response(member, context, [stage.world.decided(context)], proposal=digest)
        await stage.say(topics.RESPONSES, context, answer)
    kind, result = await stage.result(context)
    assert kind is Kind.ATTESTATION_GROUP, result


async def test_29_what_another_writes_under_an_operators_key_does_not_take_its_policies_away() -> None:
    """`placet.admissions.v1` keeps the newest record of a key, whoever wrote it: junk under the honest operators' keys, and every task of
    every gateway is refused as `policy_not_admitted`. An older, genuine record (a refusal by last year's checker) does the same."""
    world = World()
    liar, *honest = world.members
    bus = InProcessBus()
    await bus.start()
    book = PolicyBook(bus, ObjectStore("memory:///"), rig.GATEWAY)
    await book.start()
    try:
        for member in honest:
            await bus.publish(topics.ADMISSIONS, world.policy_id + member.address, _admission(world, member, admitted=True))
        assert book._admissions is not None
        await book._admissions.caught_up()
        assert book.is_admitted(world.policy_id, world.operators, 6667)
        for member in honest:
            await bus.publish(topics.ADMISSIONS, world.policy_id + member.address, _admission(world, liar, admitted=True))
        await book._admissions.caught_up()
        assert book.is_admitted(world.policy_id, world.operators, 6667)
    finally:
        await book.stop()
        await bus.stop()


async def test_24_an_operators_old_word_on_a_policy_does_not_stand_for_its_new_one() -> None:
    """The same by replay. An Admission says when it was said."""
    world = World()
    _, *honest = world.members
    bus = InProcessBus()
    await bus.start()
    book = PolicyBook(bus, ObjectStore("memory:///"), rig.GATEWAY)
    await book.start()
    book.learn(world.operators)
    old = [(member, _admission(world, member, admitted=False, said_at=1)) for member in honest]
    try:
        for admitted in (False, True):
            for member in honest:
                word = _admission(world, member, admitted=admitted, said_at=1 + admitted)
                await bus.publish(topics.ADMISSIONS, world.policy_id + member.address, word)
        for member, envelope in old:
            await bus.publish(topics.ADMISSIONS, world.policy_id + member.address, envelope)
        assert book._admissions is not None
        await book._admissions.caught_up()
        assert book.is_admitted(world.policy_id, world.operators, 6667)
    finally:
        await book.stop()
        await bus.stop()


def _admission(world: World, member: Member, *, admitted: bool, said_at: int = 0) -> bytes:
    payload = wire.encode_admission(Admission(world.policy_id, admitted, "checker", "" if admitted else "engine: another", said_at))
    return seal(member.bus, kind=Kind.ADMISSION, chain_id=0, sender=member.address, payload=payload)


# --- room for early messages


def test_16_one_operators_early_messages_leave_room_for_others() -> None:
    """Observations of batches that do not exist fill the room for 45 s. After a restart the aggregator reads Observations and batches in
    any order: what honest operators said would be dropped, and is not said again."""
    members, context = rig.identities(), rig.batch(rig.task())
    room = Mailboxes()
    room.learn(rig.operator_set(members))
    for number in range(1, 81):
        made_up = Hash32(number.to_bytes(32, "big"))
        room.put(Mailbox(room), _record(made_up, _large(members[0], made_up, (1 << 20) - 2048)))
    assert room.held_bytes > 62 << 20
    genuine = rig.sealed_observation(members[1], context, rig.observed(context))
    mailbox = Mailbox(room)
    assert room.put(mailbox, _record(context.id, genuine))
    taken = mailbox.take()
    assert taken is not None
    assert taken[0].value == genuine


def test_16_an_operators_flood_pushes_out_its_own_messages_only() -> None:
    members, context = rig.identities(), rig.batch(rig.task())
    room = Mailboxes()
    room.learn(rig.operator_set(members))
    mailbox = Mailbox(room)
    assert room.put(mailbox, _record(context.id, rig.sealed_observation(members[1], context, rig.observed(context))))
    for number in range(1, 200):
        made_up = Hash32(number.to_bytes(32, "big"))
        room.put(Mailbox(room), _record(made_up, _large(members[0], made_up, (1 << 20) - 2048)))
    assert len(mailbox) == 1
    assert room.held_bytes <= 64 << 20


def _large(who: rig.Identity, batch_id: Hash32, size: int) -> bytes:
    payload = bytes(size)
    return seal(who.bus, kind=Kind.OBSERVATION, chain_id=rig.CHAIN, sender=who.address, payload=payload, batch_id=batch_id)


def _record(key: Hash32, value: bytes) -> Record:
    return Record(topics.OBSERVATIONS, 0, 0, key, value, (), int(time.time() * 1000))


# --- who is waited for


async def test_16_an_operator_that_was_away_is_waited_for_again_while_another_withholds() -> None:
    """An honest operator missed three batches (a restart), and answers again, 0.4 s after the others. The liar is in every Proposal, at
    once, and answers each with a Response without groups: the batch is `abandoned` before the slower one is heard, so that it stays
    "silent", and every batch fails. Decision 9 says that a liar fails one batch that way, not every one."""
    members = rig.identities()
    operators = rig.operator_set(members)
    liar, first, second, slow = members
    async with rig.aggregator(operators, {rig.CLIENT: rig.pins()}, linger_s=0.1, respond_within_s=8.0) as network:
        for _ in range(3):
            network.service._conduct._silences[slow.address] = network.service._conduct._silences.get(slow.address, 0) + 1
        outcomes = []
        for number in range(3):
            context = rig.batch(rig.task(number), observe_for_ms=5_000)
            early = [rig.sealed_observation(liar, context, rig.observed(context, b'{"price":1}'))]
            early += [rig.sealed_observation(member, context, rig.observed(context)) for member in (first, second)]
            await rig.give(network, context, early)
            late = asyncio.create_task(_slowly(network, slow, context))
            record = await _proposal_of(network, context)
            digest = Hash32(keccak256(open_envelope(record, lambda kind, sender: sender).payload))
            listed = wire.decode_proposal(open_envelope(record, lambda kind, sender: sender).payload).observations
            for member in (liar, first, second):
                await network.bus.publish(topics.RESPONSES, context.id, _nothing(member, context, digest))
            await late
            outcomes.append(len(listed))
        assert 4 in outcomes, f"observations in the Proposals: {outcomes}; the slower honest operator is never in one"


async def _slowly(network: rig.AggregatorRig, who: rig.Identity, context: Any) -> None:
    await asyncio.sleep(0.5)
    await network.bus.publish(topics.OBSERVATIONS, context.id, rig.sealed_observation(who, context, rig.observed(context)))


async def _proposal_of(network: rig.AggregatorRig, context: Any) -> bytes:
    for _ in range(600):
        for record in await network.published(topics.PROPOSALS):
            if record.key == context.id:
                return record.value or b""
        await asyncio.sleep(0.02)
    raise AssertionError("no Proposal")


def _nothing(who: rig.Identity, context: Any, digest: Hash32) -> bytes:
    """What an honest operator says of a group without quorum, and what the liar says of any: no group."""
    return seal(
        who.bus,
        kind=Kind.RESPONSE,
        chain_id=rig.CHAIN,
        sender=who.address,
        payload=wire.encode_response(Response((), (), "audit")),
        batch_id=context.id,
        proposal_digest=digest,
    )


# --- the shared store


async def test_16_bytes_that_are_not_what_was_listed_leave_the_outcome_unknown() -> None:
    """The liar overwrites its own blob once some operators have read it: for them its observation counts, for the others it is "none, for
    everybody". They come to different data and sign different leaves, where they should abstain (as they do when it was deleted)."""
    members, context = rig.identities(), rig.batch(rig.task())
    objects = ObjectStore("memory:///")
    blob = wire.encode_observation(rig.observed(context, b'{"price":90}'))
    address = await objects.put(blob)
    poison = rig.sealed_observation(members[0], context, Observation((), (), "", address))
    listed = [poison, *(rig.sealed_observation(member, context, rig.observed(context)) for member in members[1:])]
    proposal = Proposal(tuple(listed), ())
    before, _ = await open_observations(proposal, context, rig.operator_set(members), objects, with_data=True)
    assert len(before) == 4
    assert sha256(blob) == address
    text = address.hex()
    await objects.put_named(f"blobs/{text[:2]}/{text}", b"something else")
    try:
        after, _ = await open_observations(proposal, context, rig.operator_set(members), objects, with_data=True)
    except Exception as error:
        assert type(error).__name__ in ("NotFound", "Unavailable")
    else:
        assert after.keys() == before.keys(), "two operators rest on different observations of one Proposal"
