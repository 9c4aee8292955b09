"""A small authorization world in memory: operators with keys, a policy, a chain that answers what it is told to, batches, messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import coincurve

from placet.core import bls, topics, wire
from placet.core.batch import BatchContext
from placet.core.bundle import PolicyBundle
from placet.core.bus import Bus, Record
from placet.core.decision import decide, decision_content
from placet.core.digests import certificate_digest, key_id, leaf_struct_hash
from placet.core.envelope import Kind, LocalBusSigner, seal
from placet.core.evm.reader import BlockState, Deployment
from placet.core.evm.rpc import Block
from placet.core.keccak import keccak256
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import (
    Abstention,
    AttestationGroup,
    DecidedTask,
    GroupFailure,
    GroupResponse,
    Observation,
    RelayedTask,
    Response,
    TaskFailure,
    TaskObservation,
    bitmap_of,
)
from placet.core.types import (
    ZERO_HASH,
    Address,
    Certificate,
    Hash32,
    Intent,
    Operator,
    OperatorSet,
    Ordering,
    Pins,
    Policy,
    Task,
    TaskBatch,
)
from placet.sdk.packs import load_pack

ROOT = Path(__file__).parents[2]
CHAIN_ID = 31337
VALIDATOR = Address(b"\x0a" * 20)
CLIENT = Address(b"\x0c" * 20)
SENDER_KEY = coincurve.PrivateKey(b"\x0e" * 32)
SENDER = Address(keccak256(SENDER_KEY.public_key.format(compressed=False)[1:])[12:])
WITHDRAW = "withdraw(uint256,address,address)"
GATEWAY = LocalBusSigner(b"g" * 32)
AGGREGATOR = LocalBusSigner(b"a" * 32)


def bundle_of() -> PolicyBundle:
    """spend-limit, as it is published."""
    return load_pack(ROOT / "policies" / "spend-limit").bundle


@dataclass(frozen=True, slots=True)
class Member:
    """One operator with its secrets."""

    operator: Operator
    bls_secret: bytes
    bus: LocalBusSigner

    @property
    def address(self) -> Address:
        return self.operator.address


def members(count: int = 4, stake: int = 100) -> list[Member]:
    """Operators ascending by key id."""
    out = []
    for number in range(1, count + 1):
        secret, bus = (1000 + number).to_bytes(32, "big"), LocalBusSigner(bytes([number]) * 32)
        public = bls.public_key(secret)
        operator = Operator(Address(bytes([0xF0 + number]) * 20), key_id(bls.encode_g1(public)), public, bus.public_key, stake)
        out.append(Member(operator, secret, bus))
    return sorted(out, key=lambda member: member.operator.key_id)


@dataclass(slots=True)
class FakeRpc:
    """A node whose head is what the test says. With `down`, nothing answers."""

    head: Block
    blocks: dict[int, Block] = field(default_factory=dict)
    down: Exception | None = None

    async def block(self, which: str | int = "latest") -> Block:
        if self.down is not None:
            raise self.down
        return self.head if which == "latest" else self.blocks.get(int(which), self.head)

    async def eth_call(self, *_: Any, **__: Any) -> bytes:
        return b""


class FakeChain:
    """Stands in for ChainReader: the same state at every block it knows."""

    def __init__(self, operators: OperatorSet, policy_id: Hash32, *, quorum_bps: int = 6667, ordering: Ordering = Ordering.SENDER) -> None:
        self.block = Block(100, Hash32(b"\xb1" * 32), Hash32(b"\xb0" * 32), int(time.time()), 10**9)
        self.rpc = FakeRpc(self.block, {100: self.block})
        self.deployment = Deployment(CHAIN_ID, VALIDATOR, Address(b"\x01" * 20), Address(b"\x02" * 20), 1)
        self.operators = operators
        self.epoch = operators.epoch
        self.pins = {CLIENT: Pins(policy_id, ordering, quorum_bps, 3600, 3600)}
        self.sequences: dict[tuple[Address, Address], int] = {}
        self.failures: list[Exception] = []

    async def latest_block(self, back: int = 0) -> Block:
        return await self.rpc.block("latest")

    async def at(self, block_hash: Hash32, *, clients: Iterable[Address] = (), **_: Any) -> BlockState:
        if self.failures:
            raise self.failures.pop(0)
        pins = {client: self.pins[client] for client in clients if client in self.pins}
        return BlockState(self.block, self.epoch, 0, self.operators, pins, self.sequences)

    async def operator_set(self, epoch: int, block_hash: Hash32) -> OperatorSet:
        return self.operators


@dataclass
class Clock:
    """Time that a test moves."""

    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now


class RunningClock:
    """Real time, which a test can move on top of its own pace."""

    def __init__(self) -> None:
        self._offset = 0.0

    def __call__(self) -> float:
        return self.now

    @property
    def now(self) -> float:
        return time.time() + self._offset

    @now.setter
    def now(self, value: float) -> None:
        self._offset = value - time.time()


class World:
    """Everything of one test."""

    def __init__(self, count: int = 4, **chain: Any) -> None:
        self.members = members(count)
        self.operators = OperatorSet(7, tuple(member.operator for member in self.members))
        self.bundle = bundle_of()
        self.policy_id = self.bundle.id
        self.chain = FakeChain(self.operators, self.policy_id, **chain)

    @property
    def policy(self) -> Policy:
        return self.bundle.policy

    def intent(self, number: int = 0, **changes: Any) -> Intent:
        from placet.core.evm.contracts import encode_call

        values: dict[str, Any] = {
            "sender": SENDER,
            "to": CLIENT,
            "value": 0,
            "data": encode_call(WITHDRAW, 1 + number, SENDER, SENDER),
            "chain_id": CHAIN_ID,
            "function_signature": WITHDRAW,
            "nonce": number,
            "deadline": int(time.time()) + 600,
        }
        return Intent(**(values | changes))

    def batch(self, tasks: int = 1, **changes: Any) -> BatchContext:
        """A batch of `tasks` intents of one sender, stamped now."""
        made = tuple(Task(CLIENT, self.intent(number), Hash32(keccak256(bytes([number])))) for number in range(tasks))
        values: dict[str, Any] = {
            "chain_id": CHAIN_ID,
            "validator": VALIDATOR,
            "policy_id": self.policy_id,
            "epoch": self.operators.epoch,
            "timestamp": int(time.time()),
            "block_number": self.chain.block.number,
            "block_hash": self.chain.block.hash,
            "observe_for_ms": 500,
            "tasks": made,
        }
        return BatchContext.of(TaskBatch(**(values | changes)))

    def signed_batch(self, tasks: int = 1, **changes: Any) -> BatchContext:
        """The same, each intent signed by its sender."""
        plain = self.batch(tasks, **changes)
        made = []
        for task, digest in zip(plain.batch.tasks, plain.intent_hashes, strict=True):
            signature = SENDER_KEY.sign_recoverable(digest, hasher=None)
            made.append(replace(task, signature=signature[:64] + bytes([27 + signature[64]])))
        return BatchContext.of(replace(plain.batch, tasks=tuple(made)))

    # --- messages

    def seal_batch(self, context: BatchContext, signer: LocalBusSigner = GATEWAY, batch_id: Hash32 | None = None) -> bytes:
        payload = wire.encode_batch(context.batch, dict(context.relays))
        sender = signer.public_key
        return seal(signer, kind=Kind.TASK_BATCH, chain_id=CHAIN_ID, sender=sender, payload=payload, batch_id=batch_id or context.id)

    def decided(self, context: BatchContext, tasks: Sequence[int] | None = None, *, allow: bool = True) -> list[DecidedTask]:
        content = decision_content(allow, [], None)
        return [
            decide(context, task, self.policy, sequence=0, allow=allow, decision=content, outputs=(), observations=())[0]
            for task in (range(len(context.batch.tasks)) if tasks is None else tasks)
        ]

    def response(
        self,
        member: Member,
        context: BatchContext,
        groups: Sequence[Sequence[DecidedTask]],
        *,
        abstentions: Sequence[Abstention] = (),
        proposal: Hash32 = ZERO_HASH,
        signature: bytes | None = None,
        bus: LocalBusSigner | None = None,
    ) -> bytes:
        made = []
        for group in groups:
            root, _ = root_and_proofs([leaf_hash(leaf_struct_hash(item.leaf)) for item in group])
            certificate = Certificate(root, len(group), context.batch.epoch, context.batch.timestamp)
            signed = signature or bls.sign(member.bls_secret, certificate_digest(certificate, CHAIN_ID, VALIDATOR))
            made.append(GroupResponse(tuple(group), signed))
        payload = wire.encode_response(Response(tuple(made), tuple(abstentions), "test"))
        return self.sealed(member, Kind.RESPONSE, context.id, payload, proposal, bus)

    def observation(self, member: Member, context: BatchContext, vouched: Sequence[int], abstentions: Sequence[Abstention] = ()) -> bytes:
        observation = Observation(tuple(TaskObservation(task, (), ()) for task in vouched), tuple(abstentions), "test")
        return self.sealed(member, Kind.OBSERVATION, context.id, wire.encode_observation(observation))

    def certified(self, context: BatchContext, *, allow: bool = True, signers: int = 3, tasks: Sequence[int] | None = None) -> bytes:
        """The aggregator's certificate over (some of) a batch."""
        decided = tuple(self.decided(context, tasks, allow=allow))
        root, _ = root_and_proofs([leaf_hash(leaf_struct_hash(item.leaf)) for item in decided])
        certificate = Certificate(root, len(decided), context.batch.epoch, context.batch.timestamp)
        digest = certificate_digest(certificate, CHAIN_ID, VALIDATOR)
        relayed = tuple(RelayedTask(task, context.batch.tasks[task].intent, b"\x01" * 65, payer) for task, payer in context.relays.items())
        group = AttestationGroup(
            CHAIN_ID,
            VALIDATOR,
            certificate,
            decided,
            bitmap_of(set(range(signers)), len(self.members)),
            bls.aggregate([bls.sign(member.bls_secret, digest) for member in self.members[:signers]]),
            relayed,
        )
        return self.by_aggregator(Kind.ATTESTATION_GROUP, context, wire.encode_attestation_group(group))

    def failed(self, context: BatchContext, tasks: Sequence[int] | None = None) -> bytes:
        """The aggregator's failure of (some of) a batch."""
        numbers = range(len(context.task_ids)) if tasks is None else tasks
        failures = [TaskFailure(at, context.task_ids[at], "no_quorum", "too little stake", True, ()) for at in numbers]
        return self.by_aggregator(Kind.GROUP_FAILURE, context, wire.encode_group_failure(GroupFailure(tuple(failures))))

    @staticmethod
    def by_aggregator(kind: Kind, context: BatchContext, payload: bytes) -> bytes:
        sender = AGGREGATOR.public_key
        return seal(AGGREGATOR, kind=kind, chain_id=CHAIN_ID, sender=sender, payload=payload, batch_id=context.id)

    def sealed(
        self, member: Member, kind: Kind, batch_id: Hash32, payload: bytes, proposal: Hash32 = ZERO_HASH, bus: LocalBusSigner | None = None
    ) -> bytes:
        return seal(
            bus or member.bus,
            kind=kind,
            chain_id=CHAIN_ID,
            sender=member.address,
            payload=payload,
            batch_id=batch_id,
            proposal_digest=proposal,
        )


async def records_of(bus: Bus, topic: str) -> list[Record]:
    """The whole of a topic."""
    found = await bus.read_many_to_end(dict.fromkeys(bus.partitions(topic)))
    return [record for records in found.values() for record in records]


async def dead_letters(bus: Bus, topic: str) -> list[Record]:
    return await records_of(bus, topics.dlq(topic))


async def eventually(condition: Callable[[], Awaitable[Any]], what: str = "the condition holds", within_s: float = 10.0) -> Any:
    """What the condition returns, once it is true."""
    end = time.monotonic() + within_s
    while not (found := await condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {within_s:.0f} s: {what}")
        await asyncio.sleep(0.01)
    return found


def other_leaf(item: DecidedTask) -> DecidedTask:
    """The same task, decided over another sequence."""
    return replace(item, leaf=replace(item.leaf, sequence=item.leaf.sequence + 1))
