"""One of four operators against everybody's tasks (threats 16, 19, 23): what it can put into a Proposal, or before the aggregator."""

from __future__ import annotations

import time

from placet.core import limits, topics, wire
from placet.core.agreement import Component, agree
from placet.core.batch import BatchContext
from placet.core.bus import Record
from placet.core.envelope import Kind, open_envelope
from placet.core.messages import Observation, TaskObservation
from placet.core.objects import ObjectStore, sha256
from placet.core.proposals import open_observations
from placet.core.types import ZERO_HASH, Address, Hash32, OperatorSet
from tests.audit import rig
from tests.support.waiting import until


async def _opened_by_an_operator(record: Record | None, context: BatchContext, operators: OperatorSet) -> dict[Address, Observation]:
    """What an honest operator makes of the Proposal, as `OperatorService._answer_proposal` does it."""
    assert record is not None, "no Proposal was published"
    message = open_envelope(record.value or b"", lambda kind, sender: sender if kind is Kind.PROPOSAL else None)
    proposal = wire.decode_proposal(message.payload)
    opened, _ = await open_observations(proposal, context, operators, ObjectStore("memory:///"), with_data=True)
    return opened


async def _proposal_with(
    byzantine: bytes,
    context: BatchContext,
    members: list[rig.Identity],
    topic: str = topics.OBSERVATIONS,
    output: bytes = b'{"price":100}',
) -> None:
    operators = rig.operator_set(members)
    async with rig.aggregator(operators, {rig.CLIENT: rig.pins()}) as network:
        await rig.give(network, context, [])
        await network.bus.publish(topic, context.id, byzantine)
        for honest in members[1:]:
            envelope = rig.sealed_observation(honest, context, rig.observed(context, output))
            await network.bus.publish(topics.OBSERVATIONS, context.id, envelope)
        opened = await _opened_by_an_operator(await network.first(topics.PROPOSALS), context, operators)
        assert {item.address for item in members[1:]} <= set(opened)


async def test_16_an_observation_that_names_a_proposal_fails_no_task() -> None:
    members, context = rig.identities(), rig.batch(rig.task())
    poison = rig.sealed_observation(members[0], context, rig.observed(context), digest=Hash32(b"\x01" * 32))
    await _proposal_with(poison, context, members)


async def test_16_a_response_in_a_batch_with_data_fails_no_task() -> None:
    members, context = rig.identities(), rig.batch(rig.task())
    poison = rig.sealed_response(members[0], context, rig.policy())
    await _proposal_with(poison, context, members, topics.RESPONSES)


async def test_23_a_large_inline_observation_fails_no_task() -> None:
    members, context = rig.identities(), rig.batch(*(rig.task(n) for n in range(16)))
    poison = rig.sealed_observation(members[0], context, rig.observed(context, b'"' + b"x" * 65_000 + b'"'))
    await _proposal_with(poison, context, members, output=b'"' + b"y" * 1_000 + b'"')  # 16 KiB: what an honest operator may send inline


async def test_16_an_observation_without_its_blob_fails_no_task() -> None:
    members, context = rig.identities(), rig.batch(rig.task())
    poison = rig.sealed_observation(members[0], context, Observation((), (), "", sha256(b"never stored")))
    await _proposal_with(poison, context, members)


async def test_records_of_unknown_batches_take_no_memory() -> None:
    members = rig.identities()
    async with rig.aggregator(rig.operator_set(members), {rig.CLIENT: rig.pins()}) as network:
        for number in range(64):
            await network.bus.publish(topics.OBSERVATIONS, number.to_bytes(32, "big"), b"\xff" * (256 << 10))
        waiting = network.service._waiting
        await until(lambda: sum(map(len, waiting.values())) == 64, "every record was taken or dropped")
        assert network.service._mailboxes.held_bytes < 1 << 20


async def test_16_a_proposal_waits_for_the_honest_while_there_is_time() -> None:
    """Three of four must sign. A Proposal of two honest operators and one that will not sign can never be certified."""
    members, context = rig.identities(), rig.batch(rig.task(), observe_for_ms=3_000)
    operators = rig.operator_set(members)
    async with rig.aggregator(operators, {rig.CLIENT: rig.pins()}) as network:
        early = [rig.sealed_observation(members[0], context, rig.observed(context, b'{"price":1}'))]
        early += [rig.sealed_observation(honest, context, rig.observed(context)) for honest in members[1:3]]
        await rig.give(network, context, early)
        await network.passes(0.6, context, early[0])  # its source answers in 600 ms; the batch's observation deadline is 3 s
        await network.bus.publish(topics.OBSERVATIONS, context.id, rig.sealed_observation(members[3], context, rig.observed(context)))
        opened = await _opened_by_an_operator(await network.first(topics.PROPOSALS, 4.0), context, operators)
        assert {item.address for item in members[1:]} <= set(opened)


def test_16_one_operators_observation_costs_the_others_little() -> None:
    """Outputs of the permitted size in a blob of the permitted size; the honest ones have thirteen bytes a task."""
    members, context = rig.identities(), rig.batch(*(rig.task(n) for n in range(16)))
    junk = [b"[%d" % n + b",[]" * 80_000 + b"]" for n in range(16)]
    assert max(map(len, junk)) < limits.MAX_OUTPUT_BYTES
    assert 15 * len(junk[0]) < limits.MAX_OBSERVATION_BLOB_BYTES < 18 * len(junk[0])
    poison = Observation(tuple(TaskObservation(i, (output,), (ZERO_HASH,)) for i, output in enumerate(junk)), (), "")
    seen = {item.address: rig.observed(context) for item in members[1:]} | {members[0].address: poison}
    started = time.process_time()
    result = agree(16, seen, [Component({}, fractions=False)], rig.operator_set(members), 6667)
    assert len(result.agreed) == 16
    assert time.process_time() - started < 0.5
