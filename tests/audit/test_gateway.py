"""One API key against the others (threats 25, 28)."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, cast

import orjson
from aiohttp import web

from placet.core.batch import BatchContext
from placet.core.bus import InProcessBus
from placet.core.digests import EVIDENCE_PARTS
from placet.core.errors import PlacetError, RateLimited, Unavailable
from placet.core.evidence import EvidenceRecord
from placet.core.stake import meets
from placet.core.types import ZERO_HASH, Address, Hash32, hex0x
from placet.gateway.batcher import Asked, Batcher, new_salt
from placet.gateway.evidence import EvidenceClient
from placet.gateway.insight import Insight
from placet.gateway.intents import Intents
from placet.gateway.keys import Authenticator, new_key
from placet.gateway.requests import SimulationRequest
from placet.gateway.simulation import Simulated
from placet.gateway.store import ApiKey
from tests.audit import rig
from tests.support.waiting import until


class _Chain(rig.StubReader):
    async def latest_block(self, back: int = 0) -> Any:
        return rig.BLOCK


class _Store:
    async def add_tasks(self, rows: Any) -> frozenset[int]:
        return frozenset()


def _batcher(chain: _Chain, bus: InProcessBus) -> tuple[Batcher, list[BatchContext]]:
    sent: list[BatchContext] = []
    batcher = Batcher(
        bus=bus,
        chains={rig.CHAIN: cast(Any, chain)},
        reference_back={},
        signer=rig.GATEWAY,
        store=cast(Any, _Store()),
        on_batch=lambda context, state: sent.append(context),
        is_open=lambda batch_id: False,
        wait_s=0.001,
        observe_for_ms=300,
        max_waiting=40,
    )
    return batcher, sent


async def _end(batcher: Batcher, tasks: list[asyncio.Task[Any]]) -> None:
    for task in (*tasks, *batcher._closing):
        task.cancel()
    await asyncio.gather(*tasks, *batcher._closing, return_exceptions=True)


_attempts = itertools.count(1)


def _asked(tenant: str, nonce: int, number: int, client: Address = rig.CLIENT) -> Asked:
    task = rig.task(nonce, client=client)
    submitted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    key = Hash32(number.to_bytes(32, "big"))
    salted = task.__class__(task.policy_client, task.intent, new_salt())
    return Asked(rig.CHAIN, rig.POLICY_ID, salted, tenant, key, key, next(_attempts), False, submitted)


async def test_25_one_callers_copies_leave_room_for_others() -> None:
    """Each copy has an Idempotency-Key of its own. 10,000 places are full after 100 s at the default rate of one key."""
    bus = InProcessBus()
    await bus.start()
    batcher, _ = _batcher(_Chain(rig.operator_set(rig.identities()), {rig.CLIENT: rig.pins()}), bus)
    flood = [asyncio.create_task(batcher.submit(_asked("mallory", 1, number))) for number in range(40)]
    try:
        _, held = await asyncio.wait(flood, timeout=5.0)
        assert not held, "each copy left or was refused"
        flood += [asyncio.create_task(batcher.submit(_asked("mallory", 1, number))) for number in range(40, 45)]
        await asyncio.sleep(0)
        sent = await asyncio.wait_for(batcher.submit(_asked("alice", 2, 999)), 3.0)
        assert sent.task_id
    finally:
        await _end(batcher, flood)
        await bus.stop()


async def test_25_one_callers_intents_leave_room_for_others() -> None:
    """As long as nothing leaves: a tenant gets a place while it has fewer than are left."""
    never = asyncio.Event()
    closed = asyncio.Semaphore(0)

    class _Stuck(_Chain):
        async def latest_block(self, back: int = 0) -> Any:
            closed.release()
            await never.wait()

    batcher, _ = _batcher(_Stuck(rig.operator_set(rig.identities()), {}), InProcessBus())
    tasks = [asyncio.create_task(batcher.submit(_asked("mallory", number, number))) for number in range(40)]
    await asyncio.wait_for(closed.acquire(), 5.0)  # a batch is closed after everybody was taken or refused
    assert [type(task.exception()) for task in tasks if task.done()] == [RateLimited] * 20
    tasks += [asyncio.create_task(batcher.submit(_asked("alice", 100 + number, number))) for number in range(12)]
    await asyncio.wait_for(closed.acquire(), 5.0)
    assert sum(not task.done() for task in tasks[40:]) == 10
    await _end(batcher, tasks)
    assert not batcher._waiting_of


async def test_14_tasks_of_clients_with_other_thresholds_travel_apart() -> None:
    """And one batch that cannot be published fails no task of the other."""
    bus = InProcessBus()
    await bus.start()
    chain = _Chain(rig.operator_set(rig.identities()), {rig.CLIENT: rig.pins(), rig.OTHER_CLIENT: rig.pins(10_000)})
    batcher, sent = _batcher(chain, bus)
    both = [_asked("alice", 1, 1), _asked("mallory", 2, 2, client=rig.OTHER_CLIENT), _asked("alice", 3, 3)]
    submitted = await asyncio.gather(*(batcher.submit(asked) for asked in both))
    assert sorted(len(context.task_ids) for context in sent) == [1, 2]
    assert submitted[0].context is submitted[2].context
    genuine = batcher._store.add_tasks

    async def add_tasks(rows: Any) -> Any:
        if rows[0].tenant == "mallory":
            raise Unavailable("no")
        return await genuine(rows)

    batcher._store.add_tasks = add_tasks  # type: ignore[method-assign]
    again = [_asked("alice", 1, 1), _asked("mallory", 2, 2, client=rig.OTHER_CLIENT)]
    outcomes = await asyncio.gather(*(batcher.submit(asked) for asked in again), return_exceptions=True)
    assert isinstance(outcomes[1], Unavailable)
    assert not isinstance(outcomes[0], BaseException)
    await _end(batcher, [])
    await bus.stop()


class _Bitmap:
    """A validator where nothing was ever spent."""

    asked = 0

    async def eth_call(self, *_: Any, **__: Any) -> bytes:
        self.asked += 1
        return bytes(32)


async def test_25_a_stranger_cannot_take_all_nonces_of_a_sender() -> None:
    chain = _Chain(rig.operator_set(rig.identities()), {})
    bitmap = _Bitmap()
    chain.rpc = cast(Any, bitmap)
    nothing = cast(Any, None)
    intents = Intents(chains={rig.CHAIN: cast(Any, chain)}, store=nothing, policies=nothing, batcher=nothing, results=nothing)
    mallory, alice = new_key("mallory")[0], new_key("alice")[0]
    for _ in range(64 * 256):  # three minutes of one key
        await intents._unused_nonce(rig.CHAIN, rig.CLIENT, rig.ALICE, mallory.id)
    given = [await intents._unused_nonce(rig.CHAIN, rig.CLIENT, rig.ALICE, alice.id) for _ in range(300)]
    assert given[:256] == list(range(256))  # one word, which is one storage slot
    assert len(set(given)) == 300
    assert max(given) >> 8 == given[256] >> 8  # and then another word
    assert bitmap.asked < 64 * 256 + 400


class _Policies:
    """One policy that no operator has admitted."""

    def __init__(self) -> None:
        self.live: list[bool] = []

    async def bundle(self, policy_id: Hash32) -> Any:
        class _Bundle:
            policy = rig.policy()
            policy_data = ()
            id = policy_id

        return _Bundle()

    def is_admitted(self, policy_id: Hash32, operators: Any, quorum_bps: int) -> bool:
        return meets(0, operators.total_stake, quorum_bps)  # as `PolicyBook.is_admitted`, nobody having admitted it


class _Simulator:
    """A simulation ends with `failure`, or when the test sets `over`."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.live: list[bool] = []
        self.over = asyncio.Event()
        self._failure = failure

    async def simulate(self, *_: Any, live: bool, **__: Any) -> Any:
        self.live.append(live)
        if self._failure is not None:
            raise self._failure
        await self.over.wait()
        return Simulated({})


class _Chained:
    def __init__(self, quorum_bps: int) -> None:
        self._quorum_bps = quorum_bps

    async def state_of(self, chain_id: int, client: Address) -> Any:
        state = rig.StubReader(rig.operator_set(rig.identities()), {}).state
        return state, rig.pins(self._quorum_bps)

    def validator_of(self, chain_id: int) -> Address:
        return rig.VALIDATOR

    async def sequence_of(self, *_: Any) -> int:
        return 0


def _insight(simulator: _Simulator, authenticator: Authenticator, quorum_bps: int = 6667) -> Insight:
    return Insight(
        intents=cast(Any, _Chained(quorum_bps)),
        policies=cast(Any, _Policies()),
        simulator=cast(Any, simulator),
        evidence=cast(Any, None),
        store=cast(Any, None),
        authenticator=authenticator,
    )


async def _outcome(insight: Insight, key: ApiKey) -> type[BaseException] | None:
    try:
        await insight.simulate(_ASKED, key)
    except PlacetError as error:
        return type(error)
    return None


_ASKED = SimulationRequest(rig.CLIENT, rig.POLICY_ID, rig.intent(), b"", None)


async def test_28_a_strangers_client_admits_no_policy() -> None:
    """`placetPins()` of the caller's own contract says 0."""
    simulator = _Simulator()
    simulator.over.set()
    key, _text = new_key("mallory")
    await _insight(simulator, Authenticator(cast(Any, None)), quorum_bps=0).simulate(_ASKED, key)
    assert simulator.live == [False]


async def test_28_a_simulation_that_fails_is_charged() -> None:
    now = [0.0]
    key, _text = new_key("mallory", cpu_ms_per_s=200)
    authenticator = Authenticator(cast(Any, None), clock=lambda: now[0])
    insight = _insight(_Simulator(Unavailable("simulation: no answer within 30 s")), authenticator)
    outcomes = [await _outcome(insight, key) for _attempt in range(50)]  # 30 CPU seconds each, in one second of the clock
    assert RateLimited in outcomes


async def test_28_simulations_at_once_share_one_budget() -> None:
    key, _text = new_key("mallory", cpu_ms_per_s=200)
    authenticator = Authenticator(cast(Any, None), clock=lambda: 0.0)
    simulator = _Simulator()
    insight = _insight(simulator, authenticator)
    asking = [asyncio.create_task(insight.simulate(_ASKED, key)) for _attempt in range(100)]
    await until(lambda: len(simulator.live) + sum(task.done() for task in asking) == 100, "each one is under way or was refused")
    simulator.over.set()
    await asyncio.gather(*asking, return_exceptions=True)
    assert len(simulator.live) < 10  # a burst is two seconds' worth: 400 ms, and each takes ten seconds


async def test_26_a_large_evidence_record_is_found() -> None:
    record = EvidenceRecord(ZERO_HASH, {name: b"x" * (100_000 if name == "data" else 10) for name in EVIDENCE_PARTS})
    body = orjson.dumps({"salt": hex0x(record.salt), "parts": {name: hex0x(part) for name, part in record.parts.items()}})

    async def serve(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "application/json"})
        await answer.prepare(request)
        for start in range(0, len(body), 16_384):
            await answer.write(body[start : start + 16_384])
            await asyncio.sleep(0.005)
        return answer

    application = web.Application()
    application.router.add_get("/evidence/{digest}", serve)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    client = EvidenceClient([f"http://127.0.0.1:{port}"])
    try:
        assert await client.get(record.digest()) == record
    finally:
        await client.close()
        await runner.cleanup()
