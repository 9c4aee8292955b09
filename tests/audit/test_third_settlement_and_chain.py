"""Second and third reading: one relayed job, one client's contract, one operator's certificate, against all others'; and revoked epochs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from eth_abi import abi
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core import bls, topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import InProcessBroker, InProcessBus
from placet.core.db import DATABASE_ERRORS, connect, migrate
from placet.core.decision import decide, decision_content
from placet.core.digests import certificate_digest, leaf_struct_hash
from placet.core.envelope import Kind, LocalBusSigner, seal
from placet.core.errors import PlacetError, Unavailable
from placet.core.evm.contracts import selector
from placet.core.evm.reader import BlockState, ChainReader, Deployment
from placet.core.evm.rpc import Block, RpcClient, RpcError
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import AttestationGroup, RelayedTask, bitmap_of
from placet.core.types import ZERO_ADDRESS, ZERO_HASH, Address, Certificate, Hash32, Leaf, hex0x
from placet.settlement.sender import Sender, SendingRules
from placet.settlement.service import SettlementService
from placet.settlement.store import Job, Store
from placet.verify import Attestation, verify_attestation
from tests.audit import rig
from tests.audit import test_settlement as first
from tests.support.authorization import CLIENT, FakeChain
from tests.support.databases import database, postgres
from tests.support.waiting import until
from tests.unit.settlement.test_service import Stage

__all__ = ["database", "postgres"]

SENDER = Address(b"\x5e" * 20)
HOSTILE = Address(b"\xbb" * 20)
HONEST = Address(b"\xaa" * 20)
_LATER: tuple[type[Exception], ...] = (PlacetError, RpcError, *DATABASE_ERRORS)
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
        with suppress(*_LATER):  # as `SettlementService._lead` does: logged, and begun anew
            await sender.step(lease)


@pytest.mark.parametrize("ends", [_timeout, _nul])
async def test_28_a_job_whose_dry_run_has_no_answer_lets_others_pass(database: NewEngine, ends: Callable[[], Any]) -> None:
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


class _Balanced(_Node):
    """Several nodes behind one address: `ahead` has mined account nonce 0, the one that is asked for receipts has not seen it."""

    def __init__(self) -> None:
        super().__init__(lambda: hex(100_000))
        self.together: list[Any] = [hex(0), None]

    async def batch(self, requests: list[tuple[str, list[Any]]]) -> list[Any]:
        assert [method for method, _ in requests] == ["eth_getTransactionCount", "eth_getTransactionReceipt"]
        return self.together

    async def call(self, method: str, params: list[Any]) -> Any:
        if method == "eth_getTransactionCount":
            return hex(1)
        return await super().call(method, params)


async def test_15_a_nonce_counts_as_used_up_when_one_node_says_so_and_knows_no_receipt(tmp_path: Path) -> None:
    """Asked one after the other, two nodes said that the nonce is used and that nothing of ours is mined: the job, which was executed, was
    queued again under another nonce."""
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'settlement.db'}")
    try:
        await migrate(engine, "placet.settlement.migrations")
        store, node, later = Store(engine), _Balanced(), 0.0
        rules = SendingRules(1, 30.0, 500 * 10**9, 10**9, 3_000_000, 50_000_000, 4)
        sender = Sender(rpc=cast(Any, node), chain_id=1, signer=_Signer(), store=store, rules=rules, clock=lambda: time.time() + later)
        job = _job(1, HONEST, "alice")
        await store.add_job(job)

        async def step() -> str:
            lease = await store.acquire(SENDER, 1, "me", time.time() + later, 600.0)
            assert lease is not None
            await sender.step(lease)
            found = await store.job(job.reference)
            assert found is not None
            return found.state

        assert await step() == "sent"
        later = 31.0
        assert await step() == "sent", "the node that answers both knows neither"
        later = 62.0
        node.together = [hex(1), {"blockNumber": hex(10)}]
        assert await step() == "sent", "it is mined; its receipt is seen another time"
        later = 93.0
        node.together = [hex(1), None]
        node.sent.clear()
        assert await step() in ("queued", "sent")
        assert await step() == "sent"
        assert len(await store.open_attempts(await _lease(store, later))) == 1
    finally:
        await engine.dispose()


async def _lease(store: Store, later: float) -> Any:
    return await store.acquire(SENDER, 1, "me", time.time() + later, 600.0)


async def test_28_while_the_node_is_away_no_job_is_put_off(tmp_path: Path) -> None:
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'settlement.db'}")
    try:
        await migrate(engine, "placet.settlement.migrations")
        store, node = Store(engine), _Node(_timeout)
        await store.add_job(_job(1, HOSTILE, "mallory"))
        sender, lease = _sender(store, node), await _lease(store, 0.0)
        genuine, asked = node.block, 0

        async def block(which: str | int = "latest") -> Block:
            nonlocal asked
            asked += 1
            if asked == 2:  # the round began well, and asks again when the dry run has failed
                raise Unavailable("no RPC node answers")
            return await genuine(which)

        node.block = block  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await sender.step(lease)
        (waiting,) = await store.queued(1, 9, time.time())
        assert waiting.put_off == 0
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
async def test_28_one_attestation_does_not_stop_the_loop_that_takes_them(database: NewEngine, poison: str) -> None:
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


# --- the second reading's, of the same

MALLORYS = Address(b"\x66" * 20)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    engines = []

    async def database(migrations: str) -> Any:
        engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'settlement.db'}")
        await migrate(engine, migrations)
        engines.append(engine)
        return engine

    made = Stage(database)
    await made.bus.start()
    yield made
    await made.kill()
    await made.bus.stop()
    await made.broker.stop()
    for engine in engines:
        await engine.dispose()


class _Burning(FakeChain):
    """Mallory's clients burn gas in `placetPins()` since their group was certified: a request with them is over the node's time."""

    async def at(self, block_hash: Hash32, *, clients: Iterable[Address] = (), **changes: Any) -> BlockState:
        clients = list(clients)
        if MALLORYS in clients:
            raise Unavailable("no RPC node answers (TimeoutError)")
        return await super().at(block_hash, clients=clients, **changes)


async def test_28_a_group_whose_state_cannot_be_read_lets_others_pass(stage: Stage) -> None:
    """Settlement asks again every second, for ever, before it reads the next attestation; after a restart it begins there again."""
    stage.world.chain = _Burning(stage.world.operators, stage.world.policy_id)
    await stage.start()
    plain = stage.relayed()
    task = replace(plain.batch.tasks[0], policy_client=MALLORYS)
    hers = BatchContext.of(replace(plain.batch, tasks=(task,)), {0: "mallory"})
    await stage.say(hers, stage.world.certified(hers))
    await asyncio.sleep(0.2)
    alices = stage.relayed()
    assert alices.batch.tasks[0].policy_client == CLIENT
    await stage.say(alices, stage.world.certified(alices))
    for _ in range(300):
        if await stage.store.job(alices.task_ids[0]) is not None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("Alice's attestation waits behind Mallory's")


class _Slow(first._Node):
    """A dry run of Mallory's contract takes longer than the node, or the request, may take."""

    async def batch_settled(self, requests: list[tuple[str, list[Any]]]) -> list[Any]:
        if requests[0][1][0]["to"] == "0x" + first.HOSTILE.hex():
            raise Unavailable("no RPC node answers (TimeoutError)")
        return ["0x", hex(100_000)]


async def test_28_a_dry_run_without_an_answer_lets_others_pass(tmp_path: Path) -> None:
    """As audit 11, with a time-out in place of an error: the round ends at that job, which nothing puts off and which stands first again in
    the next round, as long as it is valid. One job of 7 days."""
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'settlement.db'}")
    try:
        await migrate(engine, "placet.settlement.migrations")
        store, node = Store(engine), _Slow()
        rules = SendingRules(1, 30.0, 500 * 10**9, 10**9, 3_000_000, 50_000_000, 4)
        sender = Sender(rpc=cast(Any, node), chain_id=1, signer=first._Signer(), store=store, rules=rules)
        await store.add_job(first._job(1, first.HOSTILE, "mallory"))
        await store.add_job(first._job(9, first.HONEST, "alice"))
        lease = await store.acquire(first.SENDER, 1, "me", time.time(), 60.0)
        assert lease is not None
        for _ in range(5):
            with suppress(Unavailable):  # SettlementService goes on after it, too
                await sender.step(lease)
        assert node.sent
        assert set(node.sent) == {"0x" + first.HONEST.hex()}
    finally:
        await engine.dispose()


# --- what a stranger's contract makes of a read that holds others' too

_PINS = rig.POLICY_ID + b"".join(n.to_bytes(32, "big") for n in (0, 6667, 60, 600))


async def test_14_a_strangers_client_that_answers_much_takes_nobodys_pins() -> None:
    """`placetPins()` of all clients of a batch is one request, whose answer is read up to 8 MiB. A contract may return 4 MiB (33 million
    gas, which a node's eth_call gives), from a block of its choice on: so it passes the gateway's check, and then the gateway's queue, the
    aggregator, and every operator cannot read the state of anybody in the batch."""

    async def node(request: web.Request) -> web.Response:
        calls = orjson.loads(await request.read())
        answers = []
        for call in calls if isinstance(calls, list) else [calls]:
            hostile = call["params"][0]["to"] == hex0x(rig.OTHER_CLIENT)
            if hostile and int(call["params"][0].get("gas", hex(50_000_000)), 16) < 30_000_000:
                answers.append({"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32000, "message": "out of gas"}})
                continue
            answers.append({"jsonrpc": "2.0", "id": call["id"], "result": hex0x(bytes(4 << 20) if hostile else _PINS)})
        return web.Response(body=orjson.dumps(answers if isinstance(calls, list) else answers[0]))

    application = web.Application()
    application.router.add_post("/", node)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    rpc = RpcClient([f"http://127.0.0.1:{port}"])
    reader = ChainReader(rpc, Deployment(rig.CHAIN, rig.VALIDATOR, ZERO_ADDRESS, ZERO_ADDRESS, 0))
    reader._bases[rig.BLOCK.hash] = (rig.BLOCK, 1, 0, rig.operator_set(rig.identities()))
    try:
        state = await reader.at(rig.BLOCK.hash, clients=[rig.CLIENT, rig.OTHER_CLIENT])
        assert set(state.pins) == {rig.CLIENT}
    except Unavailable as error:
        pytest.fail(f"nobody's pins could be read: {error}")
    finally:
        await rpc.close()
        await runner.cleanup()


async def test_21_clients_whose_pins_burn_gas_fail_no_other_task() -> None:
    """`placetPins()` of all clients of a batch is one request with one time limit (5 s), and no bound on gas: a few contracts that follow
    Alice's policy and burn what the node allows, and nobody can read the state of her batch. Ten times faster here."""
    mean = {hex0x(Address(bytes([number]) * 20)) for number in range(1, 11)}
    pins = abi.encode(["bytes32", "uint8", "uint16", "uint32", "uint32"], [rig.POLICY_ID, 0, 6667, 60, 600])

    async def node(request: web.Request) -> web.Response:
        out = []
        for call in orjson.loads(await request.read()):
            transaction = call["params"][0]
            if transaction["to"] in mean:
                gas = min(50_000_000, int(transaction.get("gas", "0x2faf080"), 16))
                await asyncio.sleep(0.1 * gas / 50_000_000)
            out.append({"jsonrpc": "2.0", "id": call["id"], "result": hex0x(pins)})
        return web.Response(body=orjson.dumps(out), content_type="application/json")

    app = web.Application()
    app.router.add_post("/", node)
    async with TestServer(app) as server:
        rpc = RpcClient([str(server.make_url("/"))], timeout_s=0.5)
        reader = ChainReader(rpc, Deployment(rig.CHAIN, rig.VALIDATOR, ZERO_ADDRESS, ZERO_ADDRESS, 0))
        reader._bases[rig.BLOCK.hash] = (rig.BLOCK, 1, 0, rig.operator_set(rig.identities()))
        try:
            clients = [rig.CLIENT, *(Address(bytes.fromhex(text[2:])) for text in mean)]
            state = await reader.at(rig.BLOCK.hash, clients=clients)
            assert state.pins[rig.CLIENT].policy_id == rig.POLICY_ID
        finally:
            await rpc.close()


# --- offline


def test_07_a_certificate_of_a_revoked_epoch_is_not_verified_in_silence() -> None:
    """Operators were ejected because their keys were stolen; `minEpoch` was raised. The thief signs a certificate of the old epoch, stamped
    now. The validator reverts with EpochRevoked. Offline all checks pass, and the report does not say that the epoch was not looked at."""
    members, now = rig.identities(), int(time.time())
    leaf = Leaf(ZERO_HASH, rig.CLIENT, rig.POLICY_ID, ZERO_HASH, 0, True, ZERO_HASH, ZERO_HASH, now + 600)
    root, _ = root_and_proofs([leaf_hash(leaf_struct_hash(leaf))])
    certificate = Certificate(root, 1, 1, now)  # epoch 1 of, say, 7
    digest = certificate_digest(certificate, rig.CHAIN, rig.VALIDATOR)
    stolen = bls.aggregate([bls.sign(who.secret, digest) for who in members[:3]])
    attestation = Attestation(rig.CHAIN, rig.VALIDATOR, leaf, 0, (), certificate, bitmap_of({0, 1, 2}, 4), stolen)
    report = verify_attestation(
        attestation, operators=rig.operator_set(members), validator=rig.VALIDATOR, chain_id=rig.CHAIN, quorum_bps=6667, now=now
    )
    assert not report.ok or any("epoch" in item for item in report.not_checked), report.not_checked
    asked = {"operators": rig.operator_set(members), "validator": rig.VALIDATOR, "chain_id": rig.CHAIN, "quorum_bps": 6667, "now": now}
    known = verify_attestation(attestation, **asked, min_epoch=2)  # type: ignore[arg-type]
    assert [check.what for check in known.checks if not check.ok] == ["epoch not revoked"]
    assert verify_attestation(attestation, **asked, min_epoch=1).ok  # type: ignore[arg-type]
