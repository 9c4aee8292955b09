"""Third reading: one relayed job, or one client's contract, against all others'."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from eth_abi import abi
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core import bls, topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import InProcessBroker, InProcessBus
from placet.core.db import connect, migrate
from placet.core.decision import decide, decision_content
from placet.core.digests import certificate_digest, leaf_struct_hash
from placet.core.envelope import Kind, LocalBusSigner, seal
from placet.core.errors import PlacetError, Unavailable
from placet.core.evm.contracts import selector
from placet.core.evm.rpc import Block, RpcError
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import AttestationGroup, RelayedTask, bitmap_of
from placet.core.types import Address, Certificate, Hash32
from placet.settlement.sender import Sender, SendingRules
from placet.settlement.service import SettlementService
from placet.settlement.store import Job, Store
from tests.audit import rig
from tests.support.databases import database, postgres  # noqa: F401
from tests.support.waiting import until

SENDER = Address(b"\x5e" * 20)
HOSTILE = Address(b"\xbb" * 20)
HONEST = Address(b"\xaa" * 20)
NewEngine = Callable[[str], Awaitable[AsyncEngine]]


class _Signer:
    address = SENDER

    def sign(self, transaction: dict[str, Any]) -> tuple[bytes, Hash32]:
        return bytes(transaction["to"]), Hash32(bytes(transaction["to"]).ljust(32, b"\0"))


class _Node:
    """What `RpcClient` makes of a node that is well. `on_hostile` is what a run of the hostile contract ends with."""

    def __init__(self, on_hostile: Callable[[], Any]) -> None:
        self.on_hostile = on_hostile
        self.sent: list[str] = []
        self.mined: dict[Hash32, dict[str, Any]] = {}

    async def block(self, which: str | int = "latest") -> Block:
        return Block(10, Hash32(bytes(32)), Hash32(bytes(32)), int(time.time()), 10**9)

    async def batch_settled(self, requests: list[tuple[str, list[Any]]]) -> list[Any]:
        if requests[0][1][0]["to"] == "0x" + HOSTILE.hex():
            return [self.on_hostile()] * len(requests)
        return ["0x", hex(100_000)]

    async def receipt(self, transaction_hash: Hash32) -> dict[str, Any] | None:
        return self.mined.get(transaction_hash)

    async def call(self, method: str, params: list[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            self.sent.append(params[0])
        if method == "eth_call" and params[0]["to"] == "0x" + HOSTILE.hex():
            return self.on_hostile()
        return hex(0)


def _timeout() -> Any:
    """A loop until the gas is used up takes `eth_estimateGas` (a binary search) longer than RpcClient waits; a few megabytes of return data
    are more than it reads. Both end as "no RPC node answers", whatever the number of nodes."""
    raise Unavailable("no RPC node answers (node:8545: TimeoutError)")


def _nul() -> Any:
    """`revert("\\0")`."""
    data = "0x" + (selector("Error(string)") + abi.encode(["string"], ["\0"])).hex()
    return RpcError(3, "execution reverted", data)


def _job(number: int, target: Address, payer: str) -> Job:
    reference = Hash32(number.to_bytes(32, "big"))
    until_ = int(time.time()) + 7 * 86_400
    return Job(reference, 1, target, b"", 0, payer, until_, "queued", "queued", "", b"", 0, 0, time.time() + number / 1000, "")


def _sender(store: Store, node: _Node) -> Sender:
    rules = SendingRules(1, 30.0, 500 * 10**9, 10**9, 3_000_000, 50_000_000, 4)
    return Sender(rpc=cast(Any, node), chain_id=1, signer=_Signer(), store=store, rules=rules)


async def _steps(sender: Sender, store: Store) -> None:
    lease = await store.acquire(SENDER, 1, "me", time.time(), 60.0)
    assert lease is not None
    for _ in range(3):
        try:
            await sender.step(lease)
        except (PlacetError, RpcError, *_database_errors()):
            pass  # as `SettlementService._lead` does: logged, and begun anew


def _database_errors() -> tuple[type[Exception], ...]:
    from placet.core.db import DATABASE_ERRORS

    return DATABASE_ERRORS


@pytest.mark.parametrize("ends", [_timeout, _nul])
async def test_28_a_job_whose_dry_run_has_no_answer_lets_others_pass(database: NewEngine, ends: Callable[[], Any]) -> None:  # noqa: F811
    engine = await database("placet.settlement.migrations")
    store, node = Store(engine), _Node(ends)
    await store.add_job(_job(1, HOSTILE, "mallory"))
    await store.add_job(_job(2, HONEST, "alice"))
    await _steps(_sender(store, node), store)
    assert set(node.sent) == {"0x" + HONEST.hex()}


async def test_28_a_reverted_job_whose_reason_cannot_be_had_lets_others_pass(tmp_path: Path) -> None:
    """It ran well in the dry run, and reverted when it was mined. To name the reason it is run again, and then it does not end (a contract
    sees that `tx.gasprice` is 0). The nonce is never closed; nothing is sent any more, for ever: not even `valid_until` ends it."""
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'settlement.db'}")
    try:
        await migrate(engine, "placet.settlement.migrations")
        store, node = Store(engine), _Node(lambda: hex(100_000))
        sender = _sender(store, node)
        await store.add_job(_job(1, HOSTILE, "mallory"))
        await _steps(sender, store)
        assert node.sent[0] == "0x" + HOSTILE.hex()
        node.sent.clear()
        node.mined[Hash32(HOSTILE.ljust(32, b"\0"))] = {"blockNumber": hex(10), "gasUsed": hex(50_000), "status": "0x0"}
        node.on_hostile = _timeout
        await store.add_job(_job(2, HONEST, "alice"))
        await _steps(sender, store)
        assert "0x" + HONEST.hex() in node.sent
    finally:
        await engine.dispose()


# --- the loop that takes attestations


class _Reader(rig.StubReader):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.bomb = False

    async def latest_block(self, back: int = 0) -> Block:
        return rig.BLOCK

    async def operator_set(self, epoch: int, block_hash: Hash32) -> Any:
        return self.state.operators

    async def at(self, block_hash: Hash32, *, clients: Any = (), **_: Any) -> Any:
        if rig.CLIENT in clients and self.bomb:
            _timeout()  # what `placetPins()` with 4 MiB of return data, or without end, makes of the read: see test_third_chain
        return self.state


def _group(context: BatchContext, members: list[rig.Identity], payer: str, expiration: int | None = None) -> bytes:
    item, _ = decide(
        context, 0, rig.policy(), sequence=0, allow=True, decision=decision_content(True, [], None), outputs=(), observations=()
    )
    if expiration is not None:
        item = replace(item, leaf=replace(item.leaf, expiration=expiration))
    root, _ = root_and_proofs([leaf_hash(leaf_struct_hash(item.leaf))])
    certificate = Certificate(root, 1, 1, context.batch.timestamp)
    digest = certificate_digest(certificate, rig.CHAIN, rig.VALIDATOR)
    task = context.batch.tasks[0]
    group = AttestationGroup(
        rig.CHAIN,
        rig.VALIDATOR,
        certificate,
        (item,),
        bitmap_of(set(range(len(members))), 4),
        bls.aggregate([bls.sign(who.secret, digest) for who in members]),
        (RelayedTask(0, task.intent, b"", payer),),
    )
    payload = wire.encode_attestation_group(group)
    return seal(
        rig.AGGREGATOR,
        kind=Kind.ATTESTATION_GROUP,
        chain_id=rig.CHAIN,
        sender=rig.AGGREGATOR.public_key,
        payload=payload,
        batch_id=context.id,
    )


@pytest.mark.parametrize("poison", ["pins", "payer", "expiration"])
async def test_28_one_attestation_does_not_stop_the_loop_that_takes_them(database: NewEngine, poison: str) -> None:  # noqa: F811
    """`pins`: a stranger's client whose pins cannot be read any more. `payer`: a gateway's relay request with 65 letters (PostgreSQL).
    `expiration`: one operator of four certifies 2**64 - 1 for a client of 2500 bps of its own. What cannot be taken is tried again, once a
    second, for ever, before anything that follows."""
    members = rig.identities()
    engine = await database("placet.settlement.migrations")
    store = Store(engine)
    broker = InProcessBroker()
    bus = InProcessBus(broker)
    await bus.start()
    reader = _Reader(rig.operator_set(members), {rig.CLIENT: rig.pins(2500), rig.OTHER_CLIENT: rig.pins()})
    reader.bomb = poison == "pins"

    class _Idle:
        address = SENDER

        async def step(self, lease: Any) -> None: ...

    service = SettlementService(
        bus=bus,
        chains={rig.CHAIN: cast(Any, reader)},
        senders={rig.CHAIN: cast(Any, _Idle())},
        store=store,
        bus_signer=LocalBusSigner(b"\x03" * 32),
        aggregators=frozenset({rig.AGGREGATOR.public_key}),
        holder="me",
        lease_s=60.0,
        poll_s=0.1,
    )
    running = asyncio.create_task(service.run())
    try:
        bad, good = rig.batch(rig.task(1, deadline=2**64 - 1)), rig.batch(rig.task(2, client=rig.OTHER_CLIENT))
        first = {
            "pins": _group(bad, members, "mallory"),
            "payer": _group(bad, members, "m" * 65),
            "expiration": _group(bad, members[:1], "mallory", 2**64 - 1),
        }[poison]
        await until(lambda: service.subscription is not None, "it subscribed")
        assert service.subscription is not None
        await service.subscription.wait_assigned()
        # In one partition, in this order.
        number = bus.partition_for(topics.ATTESTATIONS, bad.id)
        while bus.partition_for(topics.ATTESTATIONS, good.id) != number:
            good = rig.batch(rig.task(2, client=rig.OTHER_CLIENT, salt=int.from_bytes(good.id, "big") % 2**200))
        await bus.publish(topics.ATTESTATIONS, bad.id, first)
        await bus.publish(topics.ATTESTATIONS, good.id, _group(good, members, "alice"))
        taken = None
        for _ in range(40):
            taken = await store.job(good.task_ids[0])
            if taken is not None or running.done():
                break
            await asyncio.sleep(0.1)
        assert not running.done(), f"settlement ended: {running.exception()!r}"
        assert taken is not None, "the other tenant's attestation was taken"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await bus.stop()
        await broker.stop()
