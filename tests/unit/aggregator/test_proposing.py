"""When a Proposal is cast, and what it holds (docs/decisions/0009)."""

from __future__ import annotations

import asyncio
import time

import pytest

from placet.core import limits, topics, wire
from placet.core.batch import BatchContext
from placet.core.envelope import Kind, open_envelope, seal
from placet.core.messages import Proposal
from placet.core.proposals import open_observations
from placet.core.types import Hash32
from tests.audit import rig
from tests.support.waiting import until


async def proposal_of(network: rig.AggregatorRig, context: BatchContext, within_s: float) -> Proposal | None:
    """The Proposal for this batch, as soon as there is one."""
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        for record in await network.published(topics.PROPOSALS):
            if record.key == context.id:
                message = open_envelope(record.value or b"", lambda kind, sender: sender if kind is Kind.PROPOSAL else None)
                return wire.decode_proposal(message.payload)
        await asyncio.sleep(0.02)
    return None


async def test_23_what_does_not_fit_into_a_proposal_is_listed_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    members, context = rig.identities(), rig.batch(rig.task())
    operators = rig.operator_set(members)
    envelopes = [rig.sealed_observation(item, context, rig.observed(context, b'"' + b"x" * 2000 + b'"')) for item in members]
    monkeypatch.setattr(limits, "MAX_PROPOSAL_BYTES", 2 * len(envelopes[0]) + 10)
    async with rig.aggregator(operators, {rig.CLIENT: rig.pins()}) as network:
        await rig.give(network, context, envelopes)
        proposal = await proposal_of(network, context, 3.0)
        assert proposal is not None
        assert (len(proposal.observations), len(proposal.observation_sha256)) == (2, 2)
        opened, _ = await open_observations(proposal, context, operators, network.objects, with_data=True)
        assert sorted(opened) == sorted(item.address for item in members)


async def test_an_operator_that_is_gone_is_waited_for_three_times_and_again_when_it_is_back() -> None:
    """Sources that differ (as prices do): what the fourth says may matter, as long as it says something."""
    members = rig.identities()
    operators = rig.operator_set(members)
    async with rig.aggregator(operators, {rig.CLIENT: rig.pins()}, linger_s=0.02) as network:

        async def took(number: int, observers: int) -> float:
            context = rig.batch(rig.task(number), timestamp=int(time.time()) - 1, observe_for_ms=2_500)
            started = time.monotonic()
            seen = [rig.sealed_observation(members[i], context, rig.observed(context, b"%d" % i)) for i in range(observers)]
            await rig.give(network, context, seen)
            assert await proposal_of(network, context, 4.0) is not None
            return time.monotonic() - started

        assert await took(0, 4) < 0.4
        for number in (1, 2, 3):
            assert await took(number, 3) > 0.4, "the batch's observation time is not over"
        assert await took(4, 3) < 0.4
        assert await took(5, 4) < 0.4
        assert await took(6, 3) > 0.4, "it was heard again"


async def test_equal_bytes_of_quorum_stake_wait_for_nobody() -> None:
    members, context = rig.identities(), rig.batch(rig.task(), observe_for_ms=5_000)
    async with rig.aggregator(rig.operator_set(members), {rig.CLIENT: rig.pins()}, linger_s=0.02) as network:
        await rig.give(network, context, [rig.sealed_observation(item, context, rig.observed(context)) for item in members[:3]])
        assert await proposal_of(network, context, 1.0) is not None


async def test_16_who_says_what_the_others_say_and_does_not_sign_can_do_so_once() -> None:
    """Three of four must sign. One repeats the honest observation at once and signs nothing; the fourth honest one is a little slower."""
    members = rig.identities()
    operators = rig.operator_set(members)
    async with rig.aggregator(operators, {rig.CLIENT: rig.pins()}, linger_s=0.02, respond_within_s=0.3) as network:

        async def listed(number: int) -> set[bytes]:
            context = rig.batch(rig.task(number), observe_for_ms=2_500)
            early = [rig.sealed_observation(item, context, rig.observed(context)) for item in members[:3]]
            await rig.give(network, context, early)
            await network.passes(0.2, context, early[0])
            late = rig.sealed_observation(members[3], context, rig.observed(context))
            await network.bus.publish(topics.OBSERVATIONS, context.id, late)
            proposal = await proposal_of(network, context, 3.0)
            assert proposal is not None
            opened, _ = await open_observations(proposal, context, operators, network.objects, with_data=True)
            return set(opened)

        assert members[3].address not in await listed(0)
        while not await network.published(topics.ATTESTATIONS):  # nobody signs here: it fails
            await asyncio.sleep(0.05)
        assert members[3].address in await listed(1)


async def test_messages_that_come_before_their_batch_are_not_lost() -> None:
    members, context = rig.identities(), rig.batch(rig.task())
    async with rig.aggregator(rig.operator_set(members), {rig.CLIENT: rig.pins()}) as network:
        for item in members:
            await network.bus.publish(topics.OBSERVATIONS, context.id, rig.sealed_observation(item, context, rig.observed(context)))
        actors = network.service._actors
        await until(lambda: context.id in actors and len(actors[context.id].mailbox) == 4, "all four were read")
        assert network.service._mailboxes.held_bytes > 0
        await rig.give(network, context, [])
        proposal = await proposal_of(network, context, 2.0)
        assert proposal is not None
        assert len(proposal.observations) == 4
        assert network.service._mailboxes.held_bytes == 0


async def test_messages_of_strangers_before_a_batch_are_kept_in_little_room_only() -> None:
    members, context = rig.identities(), rig.batch(rig.task())
    stranger = next(item for item in rig.identities(8) if item.address not in {member.address for member in members})
    async with rig.aggregator(rig.operator_set(members), {rig.CLIENT: rig.pins()}) as network:
        large = rig.sealed_observation(stranger, context, rig.observed(context, b'"' + b"x" * 900_000 + b'"'))
        for number in range(10):
            await network.bus.publish(topics.OBSERVATIONS, number.to_bytes(32, "big"), large)
        keys = [Hash32((100 + number).to_bytes(32, "big")) for number in range(10)]
        for key in keys:
            honest = seal(members[0].bus, kind=Kind.OBSERVATION, chain_id=rig.CHAIN, sender=members[0].address, payload=b"", batch_id=key)
            forged = honest[:-1] + bytes([honest[-1] ^ 1])
            elsewhere = rig.sealed_observation(members[0], context, rig.observed(context))
            for record in (forged, elsewhere, honest):  # read in this order: one key, one partition
                await network.bus.publish(topics.OBSERVATIONS, key, record)
        actors = network.service._actors

        def signed(key: Hash32) -> int:
            return sum(letter.sender == members[0].address for letter in actors[key].mailbox._letters.values())

        await until(lambda: all(key in actors and signed(key) == 1 for key in keys), "what an operator signed has its place", within_s=20)
        assert network.service._mailboxes.held_bytes <= 5 << 20, "four of the large ones at most, and what operators signed"
        sizes = {len(actors[key].mailbox) for key in keys}
        assert sizes <= {1, 2}, "one of another batch waits nowhere, a forged one with the strangers'"
