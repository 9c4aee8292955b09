"""The operator over the in-process bus: a real signing log, everything else played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from placet.aggregator.collection import check_decided, verify_signature
from placet.core import bls, limits, topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import InProcessBroker, InProcessBus
from placet.core.db import connect, migrate
from placet.core.decision import decide, decision_content
from placet.core.digests import certificate_digest
from placet.core.envelope import Kind, LocalBusSigner, Message, open_envelope, seal
from placet.core.errors import NotFound, Unavailable
from placet.core.evm.rpc import Block, RpcError
from placet.core.keccak import keccak256
from placet.core.messages import Observation, Proposal, Response
from placet.core.objects import ObjectStore
from placet.core.types import ZERO_HASH, Address, Certificate, Hash32
from placet.operator.answers import OperatorIdentity
from placet.operator.policies import LoadedPolicy
from placet.operator.service import OperatorService
from placet.operator.signing_log import SigningLog
from tests.support.authorization import (
    AGGREGATOR,
    CHAIN_ID,
    CLIENT,
    GATEWAY,
    SENDER,
    VALIDATOR,
    Clock,
    Member,
    World,
    dead_letters,
    eventually,
    records_of,
)


class Evaluator:
    """Allows everything, unless told otherwise. `before` runs first, and may raise."""

    def __init__(self) -> None:
        self.calls = 0
        self.allow = True
        self.before: Callable[[], None] = lambda: None

    async def decide(self, loaded: LoadedPolicy, context: BatchContext, tasks: Sequence[Any], observations: Sequence[bytes]) -> Any:
        self.calls += 1
        self.before()
        content = decision_content(self.allow, [], "true" if self.allow else "false")
        made = []
        for task in tasks:
            made.append(
                decide(
                    context,
                    task.index,
                    loaded.policy,
                    sequence=task.sequence,
                    allow=self.allow,
                    decision=content,
                    outputs=task.outputs,
                    observations=observations,
                )
            )
        return made


class Bls:
    """Signs in this process, and counts."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.signed: list[Certificate] = []
        self.failure: Exception | None = None

    async def sign_certificate(self, certificate: Certificate, chain_id: int, validator: Address) -> bytes:
        if self.failure is not None:
            raise self.failure
        self.signed.append(certificate)
        return bls.sign(self.secret, certificate_digest(certificate, chain_id, validator))


class Policies:
    def __init__(self, world: World) -> None:
        self.loaded = LoadedPolicy(world.bundle, None, ())  # type: ignore[arg-type]
        self.failure: Exception | None = None

    async def get(self, policy_id: Hash32) -> LoadedPolicy:
        if self.failure is not None:
            raise self.failure
        return self.loaded


class Evidence:
    async def put(self, records: Sequence[Any], now: int) -> None:
        """Kept nowhere."""


class Stage:
    """One operator identity: its log survives the replicas."""

    def __init__(self, world: World, log: SigningLog, clock: Clock) -> None:
        self.world = world
        self.log = log
        self.clock = clock
        self.me: Member = world.members[0]
        self.broker = InProcessBroker()
        self.bus = InProcessBus(self.broker)
        self.evaluator = Evaluator()
        self.bls = Bls(self.me.bls_secret)
        self.policies = Policies(world)
        self._running: list[tuple[OperatorService, asyncio.Task[None], InProcessBus]] = []

    async def start(self) -> OperatorService:
        bus = InProcessBus(self.broker)
        await bus.start()
        service = OperatorService(
            identity=OperatorIdentity(self.me.address, frozenset({GATEWAY.public_key}), frozenset({AGGREGATOR.public_key}), 32, "test"),
            bus=bus,
            chains={CHAIN_ID: self.world.chain},  # type: ignore[dict-item]
            policies=self.policies,  # type: ignore[arg-type]
            evaluator=self.evaluator,  # type: ignore[arg-type]
            observer=None,  # type: ignore[arg-type]
            signing_log=self.log,
            evidence=Evidence(),  # type: ignore[arg-type]
            objects=ObjectStore("memory://"),
            bls=self.bls,
            bus_signer=self.me.bus,
            clock=self.clock,
        )
        task = asyncio.create_task(service.run())
        self._running.append((service, task, bus))
        return service

    async def kill(self) -> None:
        for service, task, bus in self._running:
            task.cancel()
            for handler in service._tasks:
                handler.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await bus.stop()
        self._running.clear()

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    async def batch(self, context: BatchContext, **options: Any) -> None:
        await self.bus.publish(topics.TASKS, context.id, self.world.seal_batch(context, **options))

    async def propose(self, context: BatchContext, envelopes: Sequence[bytes], signer: LocalBusSigner = AGGREGATOR) -> Hash32:
        payload = wire.encode_proposal(Proposal(tuple(envelopes)))
        sender = signer.public_key
        envelope = seal(signer, kind=Kind.PROPOSAL, chain_id=CHAIN_ID, sender=sender, payload=payload, batch_id=context.id)
        await self.bus.publish(topics.PROPOSALS, context.id, envelope)
        return Hash32(keccak256(payload))

    async def said(self, context: BatchContext, topic: str) -> list[tuple[Message, Any]]:
        out: list[tuple[Message, Any]] = []
        for record in await records_of(self.bus, topic):
            if record.key == context.id:
                message = open_envelope(record.value or b"", lambda kind, sender: self.me.bus.public_key)
                decode: Any = wire.decode_response if topic == topics.RESPONSES else wire.decode_observation
                out.append((message, decode(message.payload, len(context.batch.tasks))))
        return out

    async def response(self, context: BatchContext, number: int = 1) -> Response:
        """The last of at least `number` responses."""

        async def enough() -> list[tuple[Message, Response]]:
            found = await self.said(context, topics.RESPONSES)
            return found if len(found) >= number else []

        return (await eventually(enough, f"{number} responses"))[-1][1]  # type: ignore[no-any-return]

    async def observation(self, context: BatchContext) -> Observation:
        found = await eventually(lambda: self.said(context, topics.OBSERVATIONS), "an observation")
        return found[0][1]  # type: ignore[no-any-return]

    async def abstained(self, context: BatchContext, code: str) -> str:
        """The operator abstains from all of the batch for this reason, and has signed nothing. Returns the text."""
        observation = await self.observation(context)
        assert {item.code for item in observation.abstentions} == {code}, observation.abstentions
        assert observation.tasks == ()
        assert len(observation.abstentions) == len(context.batch.tasks)
        assert await self.said(context, topics.RESPONSES) == []
        return observation.abstentions[0].message

    async def idle(self) -> None:
        """Everything published so far has been handled: a batch after it is answered."""
        marker = self.world.batch(9, timestamp=int(self.clock.now))
        before, self.evaluator.before = self.evaluator.before, lambda: None
        await self.batch(marker)
        await eventually(lambda: self.said(marker, topics.RESPONSES))
        self.evaluator.before = before
        for service, _, _ in self._running:
            await service.drain(5)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'operator.db'}")
    await migrate(engine, "placet.operator.migrations")
    clock, world = Clock(), World()
    log = SigningLog(engine, world.members[0].address)
    await log.open(int(clock.now) - 100)
    made = Stage(world, log, clock)
    await made.bus.start()
    await made.start()
    yield made
    await made.kill()
    await made.bus.stop()
    await made.broker.stop()
    await engine.dispose()


async def test_an_honest_operator_signs_one_root_over_the_whole_batch(stage: Stage) -> None:
    stage.world.chain.sequences = {(CLIENT, SENDER): 5}
    context = stage.world.batch(3)
    await stage.batch(context)
    response = await stage.response(context)
    (group,) = response.groups
    certificate = check_decided(context, group.decided)
    assert verify_signature(context, stage.world.operators, stage.me.address, certificate, group.bls_signature)
    assert [item.leaf.sequence for item in group.decided] == [5, 5, 5]
    assert response.abstentions == ()


# --- threats 18: what went wrong here is no decision


@pytest.mark.parametrize(
    ("failure", "code", "shown"),
    [
        (Unavailable("sandbox: the worker was killed"), "unavailable", "killed"),
        (RuntimeError("secret inside"), "internal", "RuntimeError"),
        (MemoryError(), "internal", "MemoryError"),
    ],
    ids=["killed", "defect", "memory"],
)
async def test_18_an_evaluation_that_was_killed_abstains_and_never_denies(stage: Stage, failure: Exception, code: str, shown: str) -> None:
    def fail() -> None:
        raise failure

    stage.evaluator.before = fail
    context = stage.world.batch(2)
    await stage.batch(context)
    message = await stage.abstained(context, code)
    assert shown in message
    assert "secret" not in message
    assert stage.bls.signed == []


async def test_18_a_signer_that_is_away_is_an_abstention(stage: Stage) -> None:
    stage.bls.failure = Unavailable("BLS signer: the process ended")
    context = stage.world.batch()
    await stage.batch(context)
    await stage.abstained(context, "unavailable")


async def test_18_a_policy_that_is_not_admitted_here_is_an_abstention(stage: Stage) -> None:
    stage.policies.failure = NotFound("nobody announced this policy")
    context = stage.world.batch()
    await stage.batch(context)
    await stage.abstained(context, "policy_not_admitted")


@pytest.mark.parametrize("trouble", [Unavailable("no RPC node answers"), RpcError(-32000, "header not found")], ids=["away", "behind"])
async def test_18_a_node_that_does_not_answer_is_an_abstention(stage: Stage, trouble: Exception) -> None:
    stage.world.chain.failures.append(trouble)
    context = stage.world.batch()
    await stage.batch(context)
    await stage.abstained(context, "unavailable")


async def test_18_a_deny_is_signed_like_an_allow(stage: Stage) -> None:
    stage.evaluator.allow = False
    context = stage.world.batch()
    await stage.batch(context)
    assert [item.leaf.allow for item in (await stage.response(context)).groups[0].decided] == [False]


# --- threats 19


async def test_19_a_second_proposal_for_a_batch_is_ignored(stage: Stage) -> None:
    world = stage.world
    context = world.batch()
    answers = [world.response(member, context, [world.decided(context)]) for member in world.members]
    await stage.batch(context)
    await stage.response(context)
    first = await stage.propose(context, answers[:3])
    await stage.response(context, 2)
    second = await stage.propose(context, answers[1:])
    await stage.idle()
    digests = [message.proposal_digest for message, _ in await stage.said(context, topics.RESPONSES)]
    assert digests == [ZERO_HASH, first]
    assert first != second


async def test_19_after_a_restart_the_first_proposal_is_still_the_one(stage: Stage) -> None:
    world = stage.world
    context = world.batch()
    answers = [world.response(member, context, [world.decided(context)]) for member in world.members]
    await stage.batch(context)
    first = await stage.propose(context, answers[:3])
    await stage.response(context, 2)
    await stage.restart()
    await stage.propose(context, answers[1:])
    await stage.response(context, 4)
    await stage.idle()
    assert {message.proposal_digest for message, _ in await stage.said(context, topics.RESPONSES)} == {ZERO_HASH, first}


async def test_a_proposal_that_is_read_before_its_batch_is_answered(stage: Stage) -> None:
    world = stage.world
    context = world.batch()
    digest = await stage.propose(context, [world.response(member, context, [world.decided(context)]) for member in world.members])
    await stage.batch(context)
    await stage.response(context, 2)
    assert (await stage.said(context, topics.RESPONSES))[-1][0].proposal_digest == digest


async def test_a_proposal_that_rests_on_less_than_quorum_or_is_by_a_stranger_is_a_dead_letter(stage: Stage) -> None:
    world = stage.world
    one, two = world.batch(1), world.batch(2)
    for context in (one, two):
        await stage.batch(context)
        await stage.response(context)
    await stage.propose(one, [world.response(member, one, [world.decided(one)]) for member in world.members[:2]])
    everybody = [world.response(member, two, [world.decided(two)]) for member in world.members]
    await stage.propose(two, everybody, LocalBusSigner(b"x" * 32))
    await stage.idle()
    assert len(await dead_letters(stage.bus, topics.PROPOSALS)) == 2
    assert len(await stage.said(one, topics.RESPONSES)) == len(await stage.said(two, topics.RESPONSES)) == 1


# --- threats 20: redelivery


async def test_20_a_redelivery_sends_the_stored_bytes_and_evaluates_nothing(stage: Stage) -> None:
    context = stage.world.batch(2)
    await stage.batch(context)
    await stage.response(context)
    calls, signed = stage.evaluator.calls, len(stage.bls.signed)
    stage.evaluator.allow = False  # a second evaluation would say something else
    await stage.restart()
    await stage.response(context, 2)
    first, second = await stage.said(context, topics.RESPONSES)
    assert first[0].raw == second[0].raw
    assert (stage.evaluator.calls, len(stage.bls.signed)) == (calls, signed)


async def test_20_the_same_task_in_another_batch_gets_no_second_leaf(stage: Stage) -> None:
    context = stage.world.batch()
    other = BatchContext.of(replace(context.batch, observe_for_ms=501))
    assert other.task_ids == context.task_ids
    assert other.id != context.id
    await stage.batch(context)
    await stage.response(context)
    stage.evaluator.allow = False  # whatever may make it say something else
    await stage.batch(other)
    await stage.abstained(other, "equivocation_refused")


async def test_20_only_the_task_that_was_signed_otherwise_is_abstained_from(stage: Stage) -> None:
    context = stage.world.batch()
    await stage.batch(context)
    await stage.response(context)
    stage.evaluator.allow = False
    other = BatchContext.of(replace(stage.world.batch(3).batch, timestamp=context.batch.timestamp))
    other = BatchContext.of(replace(other.batch, tasks=(*other.batch.tasks[1:], context.batch.tasks[0])))
    await stage.batch(other)
    observation = await stage.observation(other)
    assert [(item.task, item.code) for item in observation.abstentions] == [(2, "equivocation_refused")]
    assert [item.task for item in observation.tasks] == [0, 1]


def test_20_another_salt_is_another_task() -> None:
    context = World().batch()
    salted = replace(context.batch, tasks=(replace(context.batch.tasks[0], salt=Hash32(b"\x55" * 32)),))
    assert BatchContext.of(salted).task_ids != context.task_ids


async def test_20_nothing_is_signed_that_was_stamped_before_the_log_began(stage: Stage) -> None:
    await stage.kill()
    stage.log._not_before = int(stage.clock.now) + 1
    await stage.start()
    context = stage.world.batch(timestamp=int(stage.clock.now))
    await stage.batch(context)
    await stage.abstained(context, "signing_log_young")


async def test_who_has_answered_does_not_take_it_back_when_the_batch_has_become_too_old(stage: Stage) -> None:
    context = stage.world.batch()
    await stage.batch(context)
    await stage.response(context)
    stage.world.chain.rpc.head = Block(500, Hash32(b"\x01" * 32), Hash32(b"\x02" * 32), 0, 0)
    await stage.restart()
    await stage.response(context, 2)
    stage.world.chain.rpc.head = stage.world.chain.block
    await stage.idle()
    assert await stage.said(context, topics.OBSERVATIONS) == []


async def test_a_database_that_is_away_for_a_moment_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, failures = stage.log.commit_leaves, [OSError("gone"), OperationalError("insert", {}, Exception("gone"))]

    async def commit(entries: Any) -> None:
        if failures:
            raise failures.pop()
        await genuine(entries)

    monkeypatch.setattr(stage.log, "commit_leaves", commit)
    context = stage.world.batch()
    await stage.batch(context)
    await stage.response(context)
    assert failures == []


# --- threats 21: time


@pytest.mark.parametrize(("offset_s", "taken"), [(2, True), (3, False), (-10, True), (-11, False)])
async def test_21_only_the_batch_timestamp_is_held_against_the_clock(stage: Stage, offset_s: int, taken: bool) -> None:
    stage.clock.now = float(int(stage.clock.now))
    context = stage.world.batch(timestamp=int(stage.clock.now) + offset_s)
    await stage.batch(context)
    if taken:
        await stage.response(context)
    else:
        await stage.abstained(context, "clock_skew")


async def test_21_an_intent_is_judged_by_the_batch_timestamp_never_by_the_clock(stage: Stage) -> None:
    context = stage.world.batch()
    intent = replace(context.batch.tasks[0].intent, deadline=context.batch.timestamp)  # over, by any clock
    expiring = BatchContext.of(replace(context.batch, tasks=(replace(context.batch.tasks[0], intent=intent),)))
    stage.clock.now += 5
    await stage.batch(expiring)
    (item,) = (await stage.response(expiring)).groups[0].decided
    assert item.leaf.expiration == context.batch.timestamp


async def test_21_nothing_is_signed_when_deciding_took_too_long(stage: Stage) -> None:
    def slow() -> None:
        stage.clock.now += limits.BATCH_LIFETIME_S + 1

    stage.evaluator.before = slow
    context = stage.world.batch()
    await stage.batch(context)

    async def decided() -> bool:
        return stage.evaluator.calls > 0

    await eventually(decided)
    stage.evaluator.before = lambda: None
    await stage.idle()
    assert await stage.said(context, topics.RESPONSES) == []
    assert all(certificate.timestamp != context.batch.timestamp for certificate in stage.bls.signed)


async def test_21_a_batch_that_is_over_gets_not_even_an_abstention(stage: Stage) -> None:
    context = stage.world.batch(timestamp=int(stage.clock.now) - limits.BATCH_LIFETIME_S - 1)
    await stage.batch(context)
    await stage.idle()
    assert await stage.said(context, topics.OBSERVATIONS) == []


# --- threats 6, 7: the reference block


async def test_07_a_batch_of_another_epoch_is_refused(stage: Stage) -> None:
    context = stage.world.batch(epoch=6)
    await stage.batch(context)
    assert "epoch 6" in await stage.abstained(context, "wrong_epoch")


async def test_07_an_old_reference_block_is_refused(stage: Stage) -> None:
    chain = stage.world.chain
    chain.rpc.head = Block(chain.block.number + 33, Hash32(b"\x01" * 32), Hash32(b"\x02" * 32), 0, 0)
    context = stage.world.batch()
    await stage.batch(context)
    assert "33 blocks old" in await stage.abstained(context, "old_block")


@pytest.mark.parametrize(("lag_s", "is_taken"), [(90, True), (91, False)])
async def test_07_a_gateway_cannot_choose_among_the_blocks_of_minutes(stage: Stage, lag_s: int, is_taken: bool) -> None:
    chain, context = stage.world.chain, stage.world.batch()
    number, now = chain.block.number, context.batch.timestamp
    chain.rpc.blocks[number] = chain.block
    chain.rpc.blocks[number + 1] = Block(number + 1, Hash32(b"\x01" * 32), chain.block.hash, now - lag_s, 0)
    chain.rpc.head = Block(number + 5, Hash32(b"\x03" * 32), Hash32(b"\x02" * 32), now, 0)
    await stage.batch(context)
    if is_taken:
        await stage.response(context)
    else:
        assert "91 s before" in await stage.abstained(context, "old_block")


@pytest.mark.parametrize("change", [{"block_hash": Hash32(b"\x66" * 32)}, {"block_number": 101}], ids=["fork", "future"])
async def test_07_a_reference_block_that_is_not_in_our_chain_is_refused(stage: Stage, change: dict[str, Any]) -> None:
    context = stage.world.batch(**change)
    await stage.batch(context)
    await stage.abstained(context, "unknown_block")


async def test_07_who_is_no_operator_of_the_epoch_signs_nothing(stage: Stage) -> None:
    stage.world.chain.operators = replace(stage.world.operators, operators=tuple(m.operator for m in stage.world.members[1:]))
    context = stage.world.batch()
    await stage.batch(context)
    await stage.abstained(context, "not_an_operator")


@pytest.mark.parametrize("change", [{"chain_id": 1}, {"validator": Address(b"\x77" * 20)}], ids=["chain", "validator"])
async def test_14_another_chain_or_validator_is_refused(stage: Stage, change: dict[str, Any]) -> None:
    context = stage.world.batch(**change)
    payload = wire.encode_batch(context.batch, {})
    sender = GATEWAY.public_key
    chain_id = context.batch.chain_id
    envelope = seal(GATEWAY, kind=Kind.TASK_BATCH, chain_id=chain_id, sender=sender, payload=payload, batch_id=context.id)
    await stage.bus.publish(topics.TASKS, context.id, envelope)
    await stage.abstained(context, "wrong_chain")


async def test_a_client_that_follows_another_policy_gets_no_leaf(stage: Stage) -> None:
    pins = stage.world.chain.pins
    stage.world.chain.pins = {client: replace(pin, policy_id=Hash32(b"\x99" * 32)) for client, pin in pins.items()}
    context = stage.world.batch()
    await stage.batch(context)
    await stage.abstained(context, "wrong_policy")


# --- threats 24: who may say what, about which batch


async def test_24_a_batch_moved_to_another_key_or_id_or_by_a_stranger_is_a_dead_letter(stage: Stage) -> None:
    world = stage.world
    honest, moved = world.batch(1), world.batch(2)
    stranger = LocalBusSigner(b"x" * 32)
    for key, envelope in (
        (moved.id, world.seal_batch(honest)),
        (moved.id, world.seal_batch(honest, batch_id=moved.id)),
        (honest.id, world.seal_batch(honest, batch_id=moved.id)),
        (honest.id, world.seal_batch(honest, stranger)),
        (honest.id, b"\xff not an envelope"),
        (VALIDATOR, world.seal_batch(honest)),
    ):
        await stage.bus.publish(topics.TASKS, key, envelope)
    await stage.idle()
    letters = await dead_letters(stage.bus, topics.TASKS)
    assert len(letters) == 6
    assert {letter.header("x-error-consumer") for letter in letters} == {b"operator"}
    for context in (honest, moved):
        assert await stage.said(context, topics.RESPONSES) == []
        assert await stage.said(context, topics.OBSERVATIONS) == []


# --- threats 11: shopping for a good moment


async def test_11_a_denied_action_is_abstained_from_until_retry_after(stage: Stage) -> None:
    bundle = stage.world.bundle
    policy = replace(bundle.policy, retry_after=60)
    stage.policies.loaded = LoadedPolicy(replace(bundle, policy=policy), None, ())  # type: ignore[arg-type]
    stage.evaluator.allow = False
    unsigned = stage.world.batch()
    await stage.batch(unsigned)
    await stage.abstained(unsigned, "signature_required")
    first = stage.world.signed_batch()
    await stage.batch(first)
    await stage.response(first)

    stage.evaluator.allow = True
    stage.clock.now += 3
    again = stage.world.signed_batch(timestamp=first.batch.timestamp + 3)
    await stage.batch(again)
    assert str(first.batch.timestamp + 60) in await stage.abstained(again, "retry_after")

    stage.clock.now += 60
    later = stage.world.signed_batch(timestamp=first.batch.timestamp + 63)
    await stage.batch(later)
    assert (await stage.response(later)).groups[0].decided[0].leaf.allow
