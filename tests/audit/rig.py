"""A few operators, a batch, and the aggregator or an operator around them on the in-process bus: what the audit's tests are made of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import coincurve

from placet.aggregator.collection import Collection
from placet.aggregator.service import AggregatorService, Timing
from placet.core import bls, topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import InProcessBroker, InProcessBus, Record
from placet.core.calls import parse_signature
from placet.core.decision import decide, decision_content
from placet.core.digests import certificate_digest, key_id, leaf_struct_hash
from placet.core.envelope import Kind, LocalBusSigner, seal
from placet.core.evm.reader import BlockState, ChainReader, Deployment
from placet.core.evm.rpc import Block
from placet.core.keccak import keccak256
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import GroupResponse, Observation, Response, TaskObservation
from placet.core.objects import ObjectStore
from placet.core.types import (
    ZERO_ADDRESS,
    ZERO_HASH,
    Address,
    Certificate,
    GovernedCall,
    Hash32,
    Intent,
    Operator,
    OperatorSet,
    Ordering,
    Pins,
    Policy,
    RegoModule,
    Task,
    TaskBatch,
)
from tests.support.waiting import until

CHAIN = 31337
VALIDATOR = Address(b"\x11" * 20)
CLIENT = Address(b"\xcc" * 20)
OTHER_CLIENT = Address(b"\xdd" * 20)
ALICE_KEY = coincurve.PrivateKey(b"\xa1" * 32)
ALICE = Address(keccak256(ALICE_KEY.public_key.format(compressed=False)[1:])[12:])
POLICY_ID = Hash32(b"\x77" * 32)
BLOCK = Block(100, Hash32(b"\x0b" * 32), Hash32(b"\x0a" * 32), 0, 0)
CALL = "ping()"
GATEWAY = LocalBusSigner(b"\x01" * 32)
AGGREGATOR = LocalBusSigner(b"\x02" * 32)


@dataclass(frozen=True, slots=True)
class Identity:
    """One operator with its keys."""

    secret: bytes
    bus: LocalBusSigner
    operator: Operator

    @property
    def address(self) -> Address:
        return self.operator.address


def identities(count: int = 4) -> list[Identity]:
    """Operators of equal stake, in the order of their key ids."""
    out = []
    for index in range(count):
        secret = (index + 7).to_bytes(32, "big")
        key = bls.public_key(secret)
        bus = LocalBusSigner(bytes([100 + index]) * 32)
        operator = Operator(Address(bytes([index + 1]) * 20), key_id(bls.encode_g1(key)), key, bus.public_key, 100)
        out.append(Identity(secret, bus, operator))
    return sorted(out, key=lambda item: item.operator.key_id)


def operator_set(members: Sequence[Identity]) -> OperatorSet:
    """The set they make."""
    return OperatorSet(1, tuple(item.operator for item in members))


def pins(quorum_bps: int = 6667) -> Pins:
    """A client's pins."""
    return Pins(POLICY_ID, Ordering.FREE, quorum_bps, 60, 600)


def intent(nonce: int = 0, *, client: Address = CLIENT, deadline: int = 2**40, signature: str = CALL) -> Intent:
    """A call of the client's own `ping()`."""
    return Intent(ALICE, client, 0, parse_signature(CALL).selector, CHAIN, signature, nonce, deadline)


def task(nonce: int = 0, *, salt: int = 1, client: Address = CLIENT, **changes: Any) -> Task:
    """A task around that intent."""
    return Task(client, intent(nonce, client=client, **changes), Hash32(salt.to_bytes(32, "big")))


def batch(*tasks: Task, timestamp: int | None = None, observe_for_ms: int = 300) -> BatchContext:
    """A batch of them, stamped now."""
    stamp = int(time.time()) if timestamp is None else timestamp
    return BatchContext.of(TaskBatch(CHAIN, VALIDATOR, POLICY_ID, 1, stamp, BLOCK.number, BLOCK.hash, observe_for_ms, tasks))


def signed_batch(*tasks: Task) -> BatchContext:
    """The same, each intent signed by Alice."""
    signed = []
    for item, digest in zip(tasks, batch(*tasks).intent_hashes, strict=True):
        signature = ALICE_KEY.sign_recoverable(digest, hasher=None)
        signed.append(replace(item, signature=signature[:64] + bytes([27 + signature[64]])))
    return batch(*signed)


def policy(*, retry_after: int = 0) -> Policy:
    """A policy of one governed call and no data."""
    return Policy(
        (RegoModule("a.rego", b"package a"),),
        "data.a.decision",
        b"{}",
        b"{}",
        (),
        (),
        (GovernedCall(True, ZERO_ADDRESS, CALL),),
        Ordering.FREE,
        300,
        retry_after,
        b"",
        ZERO_HASH,
        10**9,
        1 << 26,
    )


class StubRpc:
    """A node that knows one block."""

    async def block(self, which: str | int = "latest") -> Block:
        return BLOCK


class StubReader:
    """A chain whose state does not change."""

    def __init__(self, operators: OperatorSet, clients: Mapping[Address, Pins]) -> None:
        self.deployment = Deployment(CHAIN, VALIDATOR, ZERO_ADDRESS, ZERO_ADDRESS, 0)
        self.rpc = StubRpc()
        self.state = BlockState(BLOCK, 1, 0, operators, clients, {})

    async def at(self, block_hash: Hash32, **_: Any) -> BlockState:
        return self.state


def sealed_batch(context: BatchContext, relays: Mapping[int, str] | None = None) -> bytes:
    """The batch as its gateway publishes it."""
    payload = wire.encode_batch(context.batch, dict(relays or {}))
    return seal(GATEWAY, kind=Kind.TASK_BATCH, chain_id=CHAIN, sender=GATEWAY.public_key, payload=payload, batch_id=context.id)


def sealed_observation(who: Identity, context: BatchContext, observation: Observation, *, digest: Hash32 = ZERO_HASH) -> bytes:
    """An observation as its operator publishes it."""
    return seal(
        who.bus,
        kind=Kind.OBSERVATION,
        chain_id=CHAIN,
        sender=who.address,
        payload=wire.encode_observation(observation),
        batch_id=context.id,
        proposal_digest=digest,
    )


def observed(context: BatchContext, output: bytes = b'{"price":100}') -> Observation:
    """One output for every task."""
    tasks = tuple(TaskObservation(i, (output,), (ZERO_HASH,)) for i in range(len(context.task_ids)))
    return Observation(tasks, (), "audit")


def sealed_response(who: Identity, context: BatchContext, rules: Policy, *, allow: bool = True) -> bytes:
    """A properly signed response to the whole batch."""
    content = decision_content(allow, [], None)
    decided = tuple(
        decide(context, i, rules, sequence=0, allow=allow, decision=content, outputs=(), observations=())[0]
        for i in range(len(context.task_ids))
    )
    root, _ = root_and_proofs([leaf_hash(leaf_struct_hash(item.leaf)) for item in decided])
    certificate = Certificate(root, len(decided), context.batch.epoch, context.batch.timestamp)
    signature = bls.sign(who.secret, certificate_digest(certificate, CHAIN, VALIDATOR))
    payload = wire.encode_response(Response((GroupResponse(decided, signature),), (), "audit"))
    return seal(who.bus, kind=Kind.RESPONSE, chain_id=CHAIN, sender=who.address, payload=payload, batch_id=context.id)


@dataclass
class Clock:
    """The time, and what a test adds to it."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


def _looks_of(service: AggregatorService) -> dict[Hash32, float]:
    genuine = service._may_propose
    looks: dict[Hash32, float] = {}

    def may_propose(collection: Collection, now: float, linger_until: float | None, observe_until: float) -> bool:
        if linger_until is not None:
            looks[collection.context.id] = now
        return genuine(collection, now, linger_until, observe_until)

    service._may_propose = may_propose  # type: ignore[method-assign]
    return looks


@dataclass
class AggregatorRig:
    """A running aggregator."""

    bus: InProcessBus
    service: AggregatorService
    objects: ObjectStore
    clock: Clock
    looks: dict[Hash32, float]
    """When, by its clock, it last asked itself whether to propose for a batch: from when it heard quorum stake."""

    async def passes(self, seconds: float, context: BatchContext, heard: bytes) -> None:
        """Seconds by its clock since it heard quorum stake, until it has looked at the batch after them: a Proposal that need not wait
        is decided by then, and holds nothing that comes later. `heard` is an envelope it knows: it changes nothing and wakes it."""
        await until(lambda: context.id in self.looks, "it heard quorum stake")
        then = self.looks[context.id] + seconds
        self.clock.ahead_s += seconds
        await self.bus.publish(topics.OBSERVATIONS, context.id, heard)
        await until(lambda: self.looks[context.id] >= then, "it looked at the batch again")

    async def published(self, topic: str) -> list[Record]:
        """Everything on a topic."""
        found = await self.bus.read_many_to_end(dict.fromkeys(self.bus.partitions(topic)))
        return [record for records in found.values() for record in records]

    async def first(self, topic: str, within_s: float = 3.0) -> Record | None:
        """The first record on a topic, as soon as there is one."""
        ends = time.monotonic() + within_s
        while time.monotonic() < ends:
            records = await self.published(topic)
            if records:
                return records[0]
            await asyncio.sleep(0.02)
        return None


@asynccontextmanager
async def aggregator(operators: OperatorSet, clients: Mapping[Address, Pins], **timing: float) -> AsyncIterator[AggregatorRig]:
    """An aggregator that reads a stub chain."""
    broker = InProcessBroker()
    bus = InProcessBus(broker)
    await bus.start()
    objects = ObjectStore("memory:///")
    clock = Clock()
    service = AggregatorService(
        bus=bus,
        chains={CHAIN: cast(ChainReader, StubReader(operators, clients))},
        objects=objects,
        bus_signer=AGGREGATOR,
        gateways=frozenset({GATEWAY.public_key}),
        timing=Timing(**timing),
        clock=clock,
    )
    looks = _looks_of(service)
    running = asyncio.create_task(service.run())
    try:
        while service.subscription is None:
            await asyncio.sleep(0)
        await service.subscription.wait_assigned()
        yield AggregatorRig(bus, service, objects, clock, looks)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        for actor in service._actors.values():
            if actor.task is not None:
                actor.task.cancel()
        await bus.stop()
        await broker.stop()


async def give(rig: AggregatorRig, context: BatchContext, observations: Sequence[bytes]) -> None:
    """The batch, and then what operators say of it."""
    await rig.bus.publish(topics.TASKS, context.id, sealed_batch(context))
    for envelope in observations:
        await rig.bus.publish(topics.OBSERVATIONS, context.id, envelope)
