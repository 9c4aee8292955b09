"""What a gateway, or an ordinary caller through it, can make an honest operator sign or refuse (threats 11, 20, 21)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from placet.core import bls, topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import InProcessBroker, InProcessBus
from placet.core.db import connect, migrate
from placet.core.decision import decide, decision_content
from placet.core.digests import certificate_digest, leaf_struct_hash
from placet.core.envelope import Kind, open_envelope
from placet.core.evidence import EvidenceRecord
from placet.core.merkle import leaf_hash
from placet.core.messages import DecidedTask, Observation, Response
from placet.core.objects import ObjectStore
from placet.core.types import Address, Certificate, Hash32, Pins, Policy
from placet.operator.answers import OperatorIdentity
from placet.operator.evaluation import TaskToDecide, verdict
from placet.operator.evidence_store import EvidenceStore
from placet.operator.policies import LoadedPolicy
from placet.operator.service import OperatorService
from placet.operator.signing_log import LeafConflict, LeafEntry, SigningLog
from placet.sandbox.rego import Evaluation
from tests.audit import rig
from tests.support.waiting import until


class _Compiled:
    """A policy that allows everything, with an answer of a given size."""

    def __init__(self, size: int) -> None:
        self._value = '{"allow":true,"note":"' + "n" * size + '"}'

    def evaluate(self, *_: Any, **__: Any) -> Evaluation:
        return Evaluation(self._value, 1)


class _Bundle:
    def __init__(self, rules: Policy) -> None:
        self.policy = rules


class _Policies:
    def __init__(self, rules: Policy, size: int) -> None:
        self._loaded = LoadedPolicy(cast(Any, _Bundle(rules)), cast(Any, _Compiled(size)), ())

    async def get(self, policy_id: Hash32) -> LoadedPolicy:
        return self._loaded


class _Evaluator:
    async def decide(
        self, loaded: LoadedPolicy, context: BatchContext, tasks: Sequence[TaskToDecide], observations: Sequence[bytes]
    ) -> list[tuple[DecidedTask, EvidenceRecord]]:
        out = []
        for task in tasks:
            allow, content = verdict(loaded, context, task)
            out.append(
                decide(
                    context,
                    task.index,
                    loaded.policy,
                    sequence=0,
                    allow=allow,
                    decision=content,
                    outputs=(),
                    observations=observations,
                )
            )
        return out


class _Bls:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.signed: list[Certificate] = []

    async def sign_certificate(self, certificate: Certificate, chain_id: int, validator: Address) -> bytes:
        self.signed.append(certificate)
        return bls.sign(self._secret, certificate_digest(certificate, chain_id, validator))


class _Rig:
    def __init__(self, bus: InProcessBus, service: OperatorService, signer: _Bls, log: SigningLog, who: rig.Identity) -> None:
        self.bus, self.service, self.bls, self.log, self._who = bus, service, signer, log, who

    async def give(self, context: BatchContext) -> None:
        await self.bus.publish(topics.TASKS, context.id, rig.sealed_batch(context))

    async def answers(self, context: BatchContext, within_s: float = 1.5) -> tuple[list[Response], list[Observation]]:
        """What the operator says of a batch, as soon as it says something."""
        ends = time.monotonic() + within_s
        responses: list[Response] = []
        observations: list[Observation] = []
        while time.monotonic() < ends and not responses and not observations:
            await asyncio.sleep(0.05)
            for topic in (topics.RESPONSES, topics.OBSERVATIONS):
                found = await self.bus.read_many_to_end(dict.fromkeys(self.bus.partitions(topic)))
                for record in (record for records in found.values() for record in records if record.key == context.id):
                    message = open_envelope(record.value or b"", lambda kind, sender: self._who.operator.bus_key)
                    if message.kind is Kind.RESPONSE:
                        responses.append(wire.decode_response(message.payload, len(context.task_ids)))
                    else:
                        observations.append(wire.decode_observation(message.payload, len(context.task_ids)))
        return responses, observations


@asynccontextmanager
async def operator(
    folder: Path, clients: Mapping[Address, Pins] | None = None, *, retry_after: int = 0, answer_bytes: int = 0
) -> AsyncIterator[_Rig]:
    members = rig.identities()
    who = members[0]
    broker = InProcessBroker()
    bus = InProcessBus(broker)
    await bus.start()
    engine = connect(f"sqlite+aiosqlite:///{folder / 'log.db'}")
    await migrate(engine, "placet.operator.migrations")
    log = SigningLog(engine, who.address)
    await log.open(int(time.time()) - 60)
    objects = ObjectStore("memory:///")
    signer = _Bls(who.secret)
    reader = rig.StubReader(rig.operator_set(members), clients or {rig.CLIENT: rig.pins(), rig.OTHER_CLIENT: rig.pins()})
    service = OperatorService(
        identity=OperatorIdentity(who.address, frozenset({rig.GATEWAY.public_key}), frozenset({rig.AGGREGATOR.public_key}), 10, "audit"),
        bus=bus,
        chains={rig.CHAIN: cast(Any, reader)},
        policies=cast(Any, _Policies(rig.policy(retry_after=retry_after), answer_bytes)),
        evaluator=cast(Any, _Evaluator()),
        observer=cast(Any, None),
        signing_log=log,
        evidence=EvidenceStore(objects, engine, who.address, 90 * 86_400),
        objects=objects,
        bls=signer,
        bus_signer=who.bus,
    )
    running = asyncio.create_task(service.run())
    try:
        while service.subscription is None:
            await asyncio.sleep(0)
        await service.subscription.wait_assigned()
        yield _Rig(bus, service, signer, log, who)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await bus.stop()
        await broker.stop()
        await engine.dispose()


async def test_21_a_batch_from_the_future_is_not_signed_when_it_is_sent_twice(tmp_path: Path) -> None:
    async with operator(tmp_path) as honest:
        context = rig.batch(rig.task(), timestamp=int(time.time()) + 86_400)
        await honest.give(context)
        _, refused = await honest.answers(context)
        assert refused[0].abstentions[0].code == "clock_skew"
        await until(lambda: context.id not in honest.service._runs, "its housekeeping forgets the batch")
        await honest.give(context)
        await until(lambda: sum(map(len, honest.service._expiries.values())) == 2, "it is taken again")
        await honest.service.drain(10.0)
        assert not honest.service._tasks
        assert honest.bls.signed == []


async def test_20_a_task_that_was_signed_already_fails_no_other_task(tmp_path: Path) -> None:
    """A second gateway, or a second trusted key, repeats a stranger's intent in the same second (the salt is not in the task's id)."""
    async with operator(tmp_path) as honest:
        now = int(time.time())
        await honest.give(rig.batch(rig.task(1, salt=1), timestamp=now))
        await honest.answers(rig.batch(rig.task(1, salt=1), timestamp=now))
        mixed = rig.batch(rig.task(1, salt=2), rig.task(2, client=rig.OTHER_CLIENT), timestamp=now)
        await honest.give(mixed)
        responses, observations = await honest.answers(mixed)
        abstained = {item.task for observation in observations for item in observation.abstentions}
        assert responses or observations
        assert 1 not in abstained


@pytest.mark.parametrize("malformed", ["wrong signature text", "deadline has passed", "arguments are no object"])
async def test_11_a_strangers_denial_does_not_block_an_action(tmp_path: Path, malformed: str) -> None:
    """Nothing of this is signed by Alice, whose action it names, and `retryAfter` may be a day."""
    async with operator(tmp_path, retry_after=3_600) as honest:
        copy = rig.task(1)
        if malformed == "wrong signature text":
            copy = replace(copy, intent=replace(copy.intent, function_signature="pong()"))
        elif malformed == "deadline has passed":
            copy = replace(copy, intent=replace(copy.intent, deadline=int(time.time()) - 1))
        else:
            copy = replace(copy, args=b"[]")
        first = rig.batch(copy)
        await honest.give(first)
        responses, observations = await honest.answers(first)
        assert not responses or not responses[0].groups[0].decided[0].leaf.allow
        assert responses or observations[0].abstentions[0].code == "signature_required"
        genuine = rig.signed_batch(rig.task(2))  # Alice herself, in good order
        await honest.give(genuine)
        responses, _ = await honest.answers(genuine)
        assert responses, "the operator abstains from Alice's own action"
        assert responses[0].groups[0].decided[0].leaf.allow


async def test_23_answers_of_the_permitted_size_fit_a_response(tmp_path: Path) -> None:
    async with operator(tmp_path, answer_bytes=15_000) as honest:
        context = rig.batch(*(rig.task(n) for n in range(80)))
        await honest.give(context)
        responses, observations = await honest.answers(context, within_s=4.0)
        assert responses or observations


async def test_20_the_log_remembers_denials_of_expired_intents(tmp_path: Path) -> None:
    """A gateway sends a task whose deadline lies in the past before a pruning, and the same task with another salt after it."""
    async with operator(tmp_path) as honest:
        now = int(time.time())
        first, second = (rig.batch(rig.task(1, salt=salt, deadline=0), timestamp=now) for salt in (1, 2))
        assert first.task_ids != second.task_ids  # the salt is in the id: honest operators cannot be brought to two leaves for one
        entries = []
        for context in (first, second):
            content = decision_content(False, ["the intent's deadline has passed"], None)
            item, _ = decide(context, 0, rig.policy(), sequence=0, allow=False, decision=content, outputs=(), observations=())
            assert item.leaf.expiration == 0
            entries.append(LeafEntry(first.task_ids[0], leaf_hash(leaf_struct_hash(item.leaf)), max(item.leaf.expiration, now)))
        await honest.log.commit_leaves(entries[:1])
        await honest.log.prune(now + 1)
        with pytest.raises(LeafConflict):
            await honest.log.commit_leaves(entries[1:])
