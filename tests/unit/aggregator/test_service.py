"""The aggregator over the in-process bus, with operators played by the test."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from placet.aggregator import service as service_module
from placet.aggregator.collection import verify_signature
from placet.aggregator.service import GROUP, AggregatorService, Timing
from placet.core import limits, topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import InProcessBroker, InProcessBus, TopicPartition
from placet.core.envelope import Kind, LocalBusSigner, open_envelope
from placet.core.errors import Unavailable
from placet.core.evm.rpc import RpcError
from placet.core.keccak import keccak256
from placet.core.messages import Abstention, Proposal, positions_of
from placet.core.objects import ObjectStore
from placet.core.types import Address, Certificate, Hash32, OperatorSet
from tests.support.authorization import (
    AGGREGATOR,
    CHAIN_ID,
    GATEWAY,
    Member,
    RunningClock,
    World,
    dead_letters,
    eventually,
    other_leaf,
    records_of,
)

QUICK = Timing(linger_s=0.05, straggler_s=0.02, respond_within_s=0.5)
PATIENT = Timing(linger_s=0.05, straggler_s=0.02, respond_within_s=60.0)


class Stage:
    """A broker, the test's own connection to it, and aggregators that come and go."""

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        self.world = world
        self.stack = stack
        self.broker = InProcessBroker()
        self.bus = InProcessBus(self.broker)
        self.running: dict[AggregatorService, tuple[asyncio.Task[None], InProcessBus]] = {}

    async def aggregator(self, timing: Timing = QUICK, clock: Callable[[], float] = time.time) -> AggregatorService:
        bus = InProcessBus(self.broker)
        await bus.start()
        service = AggregatorService(
            bus=bus,
            chains={CHAIN_ID: self.world.chain},  # type: ignore[dict-item]
            objects=ObjectStore("memory://"),
            bus_signer=AGGREGATOR,
            gateways=frozenset({GATEWAY.public_key}),
            timing=timing,
            clock=clock,
        )
        task = asyncio.create_task(service.run())
        self.running[service] = task, bus
        await eventually(self._subscribed(service))
        return service

    @staticmethod
    def _subscribed(service: AggregatorService) -> Callable[[], Any]:
        async def assigned() -> bool:
            return service.subscription is not None and bool(await service.subscription.wait_assigned())

        return assigned

    async def kill(self, service: AggregatorService) -> None:
        """Nothing is finished, nothing committed: what it knew is gone."""
        task, bus = self.running.pop(service)
        task.cancel()
        for actor in service._actors.values():
            if actor.task is not None:
                actor.task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await bus.stop()

    async def committed(self, topic: str, context: BatchContext) -> None:
        """The aggregators' group is past what was published for a batch: nobody will be handed it again."""

        async def past() -> bool:
            at = TopicPartition(topic, self.bus.partition_for(topic, context.id))
            return self.broker.group(GROUP).committed.get(at, 0) >= (await self.bus.end_offsets([at]))[at] > 0

        await eventually(past, f"{topic} is committed")

    async def say(self, topic: str, context: BatchContext, envelope: bytes) -> None:
        await self.bus.publish(topic, context.id, envelope)

    async def batch(self, context: BatchContext) -> None:
        await self.say(topics.TASKS, context, self.world.seal_batch(context))

    async def respond(self, context: BatchContext, *members: Member, **options: Any) -> None:
        for member in members:
            await self.say(topics.RESPONSES, context, self.world.response(member, context, [self.world.decided(context)], **options))

    async def results(self, context: BatchContext) -> list[tuple[Kind, Any]]:
        out: list[tuple[Kind, Any]] = []
        for record in await records_of(self.bus, topics.ATTESTATIONS):
            if record.key == context.id:
                message = open_envelope(record.value or b"", lambda kind, sender: AGGREGATOR.public_key)
                decode: Any = wire.decode_attestation_group if message.kind is Kind.ATTESTATION_GROUP else wire.decode_group_failure
                out.append((message.kind, decode(message.payload)))
        return out

    async def result(self, context: BatchContext, within_s: float = 5.0) -> tuple[Kind, Any]:
        """The first result."""
        found: list[tuple[Kind, Any]] = await eventually(lambda: self.results(context), "there is a result", within_s)
        return found[0]

    async def proposals(self, context: BatchContext) -> list[bytes]:
        return [record.value or b"" for record in await records_of(self.bus, topics.PROPOSALS) if record.key == context.id]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        made = Stage(World(), stack)
        await made.bus.start()
        yield made
        for service in list(made.running):
            await made.kill(service)
        await made.bus.stop()
        await made.broker.stop()


async def test_a_batch_is_certified_by_all_who_answer_in_time(stage: Stage) -> None:
    await stage.aggregator(Timing(linger_s=0.05, straggler_s=5.0, respond_within_s=8.0))
    context = stage.world.batch(3)
    await stage.batch(context)
    await stage.respond(context, *stage.world.members)
    kind, group = await stage.result(context)
    assert kind is Kind.ATTESTATION_GROUP
    assert positions_of(group.signers, 4) == [0, 1, 2, 3]
    assert [item.task for item in group.decided] == [0, 1, 2]


async def test_a_straggler_is_waited_for_no_longer_than_said(stage: Stage) -> None:
    await stage.aggregator(PATIENT)
    context = stage.world.batch()
    await stage.batch(context)
    await stage.respond(context, *stage.world.members[:3])
    _, group = await stage.result(context)
    assert positions_of(group.signers, 4) == [0, 1, 2]
    await stage.respond(context, stage.world.members[3])
    another = stage.world.batch(2)
    await stage.batch(another)
    await stage.respond(another, *stage.world.members)
    await stage.result(another)
    assert len(await stage.results(context)) == 1, "who comes late changes nothing"


async def test_answers_that_came_before_their_batch_are_counted(stage: Stage) -> None:
    context = stage.world.batch()
    await stage.respond(context, *stage.world.members)
    await stage.batch(context)
    await stage.aggregator()
    assert (await stage.result(context))[0] is Kind.ATTESTATION_GROUP


async def test_garbage_from_an_operator_does_not_silence_it(stage: Stage) -> None:
    await stage.aggregator(PATIENT)
    world = stage.world
    context, other = world.batch(1), world.batch(2)
    loud, *others = world.members
    await stage.batch(context)
    await stage.say(topics.RESPONSES, context, b"\xff\xfe not protobuf")
    await stage.say(topics.RESPONSES, context, world.response(loud, context, [world.decided(context)], bus=LocalBusSigner(b"z" * 32)))
    await stage.say(topics.RESPONSES, context, world.response(loud, context, [world.decided(context)], signature=b"\x00" * 96))
    await stage.say(topics.RESPONSES, context, world.sealed(loud, Kind.RESPONSE, context.id, b"\x0a\x03abc"))
    await stage.say(topics.RESPONSES, context, world.response(loud, other, [world.decided(other)]))  # another batch's, under this key
    await stage.respond(context, loud, *others[:2])
    kind, group = await stage.result(context)
    assert kind is Kind.ATTESTATION_GROUP
    assert loud.operator in [world.operators.operators[position] for position in positions_of(group.signers, 4) or ()]


async def test_one_operator_cannot_keep_the_aggregator_busy(stage: Stage) -> None:
    await stage.aggregator(PATIENT)
    world = stage.world
    context = world.batch()
    loud, *others = world.members
    await stage.batch(context)
    for number in range(40):
        forged = bytes([number]) + b"\x00" * 95
        await stage.say(topics.RESPONSES, context, world.response(loud, context, [world.decided(context)], signature=forged))
    await stage.respond(context, loud)
    await stage.respond(context, *others)
    _, group = await stage.result(context)
    assert len(positions_of(group.signers, 4) or ()) == 3, "it has used up its sixteen messages"


async def test_two_different_roots_never_add_up_and_the_failure_names_both(stage: Stage) -> None:
    await stage.aggregator()
    world = stage.world
    context = world.batch(observe_for_ms=100)
    await stage.batch(context)
    await stage.respond(context, *world.members[:2])
    for member in world.members[2:]:
        await stage.say(topics.RESPONSES, context, world.response(member, context, [[other_leaf(world.decided(context)[0])]]))
    kind, failure = await stage.result(context, 8)
    assert kind is Kind.GROUP_FAILURE
    assert len({reason.message for reason in failure.failures[0].reasons}) == 2


async def test_a_task_that_nobody_can_certify_fails_at_once_and_says_why(stage: Stage) -> None:
    await stage.aggregator(PATIENT)
    context = stage.world.batch(2, observe_for_ms=20_000)
    await stage.batch(context)
    started = time.monotonic()
    for number, member in enumerate(stage.world.members):
        abstentions = [Abstention(0, "data_unavailable", "the feed is down")] if number < 2 else []
        vouched = [1] if number < 2 else [0, 1]
        await stage.say(topics.OBSERVATIONS, context, stage.world.observation(member, context, vouched, abstentions))
    kind, failure = await stage.result(context)
    assert time.monotonic() - started < 3
    assert kind is Kind.GROUP_FAILURE
    assert [(item.task, item.code, item.retryable) for item in failure.failures] == [(0, "no_quorum", True)]
    assert sorted(reason.code for reason in failure.failures[0].reasons) == ["data_unavailable"] * 2 + ["no_signature"] * 2
    assert len(await eventually(lambda: stage.proposals(context))) == 1, "the other task goes on"


async def test_what_nobody_answers_fails_in_time_and_names_the_silent(stage: Stage) -> None:
    await stage.aggregator()
    context = stage.world.batch(observe_for_ms=100)
    await stage.batch(context)
    kind, failure = await stage.result(context, 8)
    assert kind is Kind.GROUP_FAILURE
    assert failure.failures[0].code == "timeout"
    assert [reason.code for reason in failure.failures[0].reasons] == ["silent"] * 4


async def proposed(stage: Stage, context: BatchContext) -> Hash32:
    """Three operators vouch, one abstains: a Proposal follows. Its digest."""
    world = stage.world
    for member in world.members[:3]:
        await stage.say(topics.OBSERVATIONS, context, world.observation(member, context, [0]))
    abstention = [Abstention(0, "unavailable", "…")]
    await stage.say(topics.OBSERVATIONS, context, world.observation(world.members[3], context, [], abstention))
    (envelope,) = await eventually(lambda: stage.proposals(context), "there is a proposal")
    return Hash32(keccak256(open_envelope(envelope, lambda kind, sender: AGGREGATOR.public_key).payload))


async def test_19_after_a_restart_there_is_no_second_proposal_and_no_second_result(stage: Stage) -> None:
    world = stage.world
    first = await stage.aggregator(PATIENT)
    context = world.batch()
    await stage.batch(context)
    digest = await proposed(stage, context)
    await stage.committed(topics.PROPOSALS, context)
    await stage.kill(first)

    # One more observation would make another proposal, if the successor made one.
    await stage.say(topics.OBSERVATIONS, context, world.observation(world.members[3], context, [0]))
    second = await stage.aggregator(PATIENT)
    await stage.respond(context, *world.members[:3], proposal=digest)
    kind, group = await stage.result(context)
    assert kind is Kind.ATTESTATION_GROUP
    assert group.certificate.count == 1
    assert len(await stage.proposals(context)) == 1
    await stage.kill(second)

    await stage.aggregator(PATIENT)
    await stage.respond(context, world.members[3], proposal=digest)
    another = world.batch(2)  # what comes after it is worked on: so this batch was, too
    await stage.batch(another)
    await stage.respond(another, *world.members)
    await stage.result(another)
    assert len(await stage.results(context)) == 1
    assert len(await stage.proposals(context)) == 1


async def test_19_after_a_restart_a_failure_is_not_followed_by_a_certificate(stage: Stage) -> None:
    world = stage.world
    first = await stage.aggregator()
    context = world.batch(observe_for_ms=100)
    await stage.batch(context)
    assert (await stage.result(context, 8))[0] is Kind.GROUP_FAILURE
    await stage.committed(topics.ATTESTATIONS, context)
    await stage.kill(first)
    await stage.respond(context, *world.members)
    await stage.aggregator()
    another = world.batch(2)
    await stage.batch(another)
    await stage.respond(another, *world.members)
    await stage.result(another)
    assert [kind for kind, _ in await stage.results(context)] == [Kind.GROUP_FAILURE]


async def test_19_a_proposal_by_somebody_else_is_none(stage: Stage) -> None:
    world = stage.world
    await stage.aggregator(PATIENT)
    context = world.batch()
    forged = world.sealed(world.members[0], Kind.PROPOSAL, context.id, wire.encode_proposal(Proposal(())))
    await stage.say(topics.PROPOSALS, context, forged)
    await stage.batch(context)
    await stage.respond(context, *world.members[:3], proposal=Hash32(keccak256(b"")))
    await stage.respond(context, *world.members[:3])
    assert (await stage.result(context))[0] is Kind.ATTESTATION_GROUP


async def test_after_a_restart_answers_that_are_there_are_read_before_a_batch_is_given_up(stage: Stage) -> None:
    context = stage.world.batch(timestamp=int(time.time()) - 20)
    await stage.batch(context)
    await stage.respond(context, *stage.world.members)
    await stage.aggregator()
    assert (await stage.result(context))[0] is Kind.ATTESTATION_GROUP


async def test_no_certificate_is_published_when_it_is_too_late_for_one(stage: Stage) -> None:
    context = stage.world.batch(timestamp=int(time.time()) - limits.CERTIFY_WITHIN_S - 2)
    await stage.batch(context)
    await stage.respond(context, *stage.world.members)
    await stage.aggregator()
    assert (await stage.result(context))[0] is Kind.GROUP_FAILURE


async def test_nor_when_the_last_signature_comes_then(stage: Stage) -> None:
    clock = RunningClock()
    service = await stage.aggregator(Timing(linger_s=0.05, straggler_s=0.0, respond_within_s=60.0), clock)
    context = stage.world.batch(observe_for_ms=20_000)
    await stage.batch(context)
    await stage.respond(context, *stage.world.members[:2])

    async def heard() -> bool:
        actor = service._actors.get(context.id)
        return actor is not None and actor.task is not None and not len(actor.mailbox)

    await eventually(heard)
    clock.now += limits.CERTIFY_WITHIN_S + 2
    await stage.respond(context, stage.world.members[2])
    assert (await stage.result(context))[0] is Kind.GROUP_FAILURE


async def test_16_one_operator_demands_a_bounded_number_of_pairings(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever other leaves, each properly signed; the honest are heard all the same."""
    world, asked = stage.world, Counter[Address]()
    genuine = verify_signature

    def verify(context: BatchContext, operators: OperatorSet, operator: Address, certificate: Certificate, signature: bytes) -> bool:
        asked[operator] += 1
        return genuine(context, operators, operator, certificate, signature)

    monkeypatch.setattr(service_module, "verify_signature", verify)
    await stage.aggregator(PATIENT)
    context = world.batch(8)
    await stage.batch(context)
    liar, *honest = world.members
    decided = world.decided(context)
    for _ in range(16):
        decided = [other_leaf(item) for item in decided]
        await stage.say(topics.RESPONSES, context, world.response(liar, context, [[item] for item in decided]))
    await stage.respond(context, *honest)
    assert (await stage.result(context))[0] is Kind.ATTESTATION_GROUP
    assert asked[liar.address] == 33
    assert all(asked[member.address] == 1 for member in honest)


@pytest.mark.parametrize("trouble", [Unavailable("no RPC node answers"), RpcError(-32000, "header not found")], ids=["away", "behind"])
async def test_a_node_that_is_away_for_a_moment_costs_no_batch_its_result(stage: Stage, trouble: Exception) -> None:
    stage.world.chain.failures += [trouble, trouble]
    await stage.aggregator(PATIENT)
    context = stage.world.batch()
    await stage.batch(context)
    await stage.respond(context, *stage.world.members)
    assert (await stage.result(context))[0] is Kind.ATTESTATION_GROUP


async def test_24_a_batch_by_nobody_we_know_or_under_another_key_is_a_dead_letter(stage: Stage) -> None:
    await stage.aggregator()
    world = stage.world
    context, honest, moved = world.batch(1), world.batch(2), world.batch(3)
    await stage.say(topics.TASKS, context, world.seal_batch(context, LocalBusSigner(b"x" * 32)))
    await stage.say(topics.TASKS, moved, world.seal_batch(honest))
    await stage.say(topics.TASKS, moved, world.seal_batch(honest, batch_id=moved.id))
    await eventually(lambda: dead_letters(stage.bus, topics.TASKS))

    async def both() -> bool:
        return len(await dead_letters(stage.bus, topics.TASKS)) >= 2

    await eventually(both)
    assert await records_of(stage.bus, topics.ATTESTATIONS) == []


async def test_results_that_do_not_fit_into_one_message_come_in_several(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "_MAX_RESULT_BYTES", 3000)
    await stage.aggregator()
    context = stage.world.batch(30, observe_for_ms=100)
    await stage.batch(context)

    async def complete() -> Counter[int]:
        found = Counter(item.task for _, failure in await stage.results(context) for item in failure.failures)
        return found if len(found) == 30 else Counter()

    assert set((await eventually(complete)).values()) == {1}
    assert len(await stage.results(context)) > 1

    certified = stage.world.batch(31)
    await stage.batch(certified)
    await stage.respond(certified, *stage.world.members)
    kind, failure = await stage.result(certified)
    assert kind is Kind.GROUP_FAILURE
    assert failure.failures[0].code == "too_large"
