"""Third reading: one API key against the gateway and everybody's batches."""

from __future__ import annotations

import asyncio
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from placet.core import limits, topics, wire
from placet.core.batch import BatchContext
from placet.core.bundle import PolicyBundle, PolicyDataArtefact, load_bundle, store_bundle
from placet.core.bus import InProcessBroker, InProcessBus
from placet.core.calls import parse_signature
from placet.core.db import connect, migrate
from placet.core.digests import EVIDENCE_PARTS
from placet.core.envelope import Kind, LocalBusSigner, seal
from placet.core.errors import PlacetError
from placet.core.evidence import EvidenceRecord
from placet.core.messages import SettlementEvent
from placet.core.objects import ObjectStore
from placet.core.types import Attachment, Hash32, Intent, Task, TaskBatch, hex0x
from placet.gateway.batcher import Asked, Batcher, new_salt
from placet.gateway.evidence import EvidenceClient
from placet.gateway.insight import Insight
from placet.gateway.results import Results
from placet.gateway.store import Store, TaskRow
from placet.sandbox.errors import SandboxUnavailable
from placet.sandbox.reasons import _given
from tests.audit import rig


class _Chain(rig.StubReader):
    async def latest_block(self, back: int = 0) -> Any:
        return rig.BLOCK


_LONG = "f(" + ",".join(["uint256"] * 63) + ")"  # 505 characters; nobody need govern it: the gateway compares selectors only


def _fat(nonce: int) -> Task:
    """A task as `parse_intent_request` lets it pass, whose overhead is more than the batcher counts."""
    attachment = Attachment("k" * limits.MAX_ATTACHMENT_KIND_BYTES, Hash32(b"\x01" * 32), "u" * limits.MAX_ATTACHMENT_URI_BYTES)
    intent = Intent(rig.ALICE, rig.CLIENT, 0, parse_signature(_LONG).selector, rig.CHAIN, _LONG, (1 << 255) + nonce, 2**64 - 1)
    return Task(rig.CLIENT, intent, new_salt(), attachments=(attachment,) * limits.MAX_ATTACHMENTS)


async def test_25_one_callers_large_tasks_void_nobodys_batch() -> None:
    """What a task takes is estimated too low by some 300 bytes. 97 of one caller's make a batch beyond what its readers accept: aggregator
    and operators drop it whole, and everybody's tasks in it end 75 s later, unknown."""
    chain = _Chain(rig.operator_set(rig.identities()), {rig.CLIENT: rig.pins()})
    bus = InProcessBus()
    await bus.start()
    sent: list[BatchContext] = []

    class _Store:
        async def add_tasks(self, rows: Any) -> frozenset[int]:
            return frozenset()

    batcher = Batcher(
        bus=bus,
        chains={rig.CHAIN: cast(Any, chain)},
        reference_back={},
        signer=rig.GATEWAY,
        store=cast(Any, _Store()),
        on_batch=lambda context, state: sent.append(context),
        is_open=lambda batch_id: False,
        wait_s=0.05,
        observe_for_ms=300,
        max_waiting=10_000,
    )

    def asked(tenant: str, number: int, task: Task) -> Asked:
        key = Hash32(number.to_bytes(32, "big"))
        return Asked(rig.CHAIN, rig.POLICY_ID, task, tenant, key, key, 1, False, asyncio.get_running_loop().create_future())

    batcher._last_closed[(rig.CHAIN, rig.POLICY_ID)] = asyncio.get_running_loop().time()  # the policy is in use
    tasks = [batcher.submit(asked("alice", 0, rig.task(0)))] + [batcher.submit(asked("mallory", n + 1, _fat(n))) for n in range(97)]
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    await bus.stop()
    for context in sent:
        wire.decode_batch(wire.encode_batch(context.batch, dict(context.relays)))  # what every reader does first


async def test_16_a_batch_that_cannot_be_read_back_does_not_keep_the_gateway_from_starting(tmp_path: Path) -> None:
    """The batch above lies in the gateway's database, open. Whoever starts within 75 s, or later when nobody failed it, reads it."""
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}")
    await migrate(engine, "placet.gateway.migrations")
    store, bus = Store(engine), InProcessBus()
    await bus.start()
    tasks = tuple(_fat(n) for n in range(97))
    batch = TaskBatch(rig.CHAIN, rig.VALIDATOR, rig.POLICY_ID, 1, 1_000, rig.BLOCK.number, rig.BLOCK.hash, 300, tasks)
    context = BatchContext.of(batch)
    row = TaskRow(
        context.task_ids[0], "t", context.id, wire.encode_batch(batch, {}), 0, context.id, context.id, "submitted", None, 1_000, 2**40
    )
    await store.add_tasks([row])
    chain = _Chain(rig.operator_set(rig.identities()), {rig.CLIENT: rig.pins()})
    results = Results(bus=bus, chains={rig.CHAIN: cast(Any, chain)}, store=store, aggregators=frozenset())

    async def resend(context: BatchContext, payload: bytes) -> None: ...

    try:
        await results.start(resend)
    finally:
        await results.stop()
        await bus.stop()
        await engine.dispose()


def _match() -> None:
    _given("%va" * 24 + "b", True, "a" * 120)


def test_28_a_policys_format_does_not_stop_the_gateway() -> None:
    """`reason_places` runs on the gateway's event loop, for every simulation of anybody's policy and every denial. A `sprintf` format of
    the policy becomes a regular expression with a `.*?` a verb, and is matched against each reason: 24 verbs take longer than anybody
    lives."""
    process = multiprocessing.get_context("fork").Process(target=_match)
    process.start()
    process.join(3.0)
    stuck = process.is_alive()
    process.kill()
    assert not stuck


async def test_16_a_denial_is_answered_when_nobody_has_time_to_explain_it() -> None:
    """The pool that explains denials has one worker and 64 places for everybody. When it is busy it raises SandboxUnavailable, which is no
    PlacetError: the caller of a certified denial gets a 500 in place of it, every time he asks."""

    class _Row:
        batch_id, position = Hash32(b"\x01" * 32), 0

    class _Rows:
        async def task_any(self, task_id: Hash32) -> Any:
            return _Row()

        async def batch_of(self, batch_id: Hash32) -> bytes:
            return wire.encode_batch(rig.batch(rig.task()).batch, {})

    class _Book:
        async def bundle(self, policy_id: Hash32) -> Any:
            return type("Bundle", (), {"policy_data": ()})()

    class _Busy:
        async def explain_denial(self, *_: Any) -> Any:
            raise SandboxUnavailable("the queue is full")

    insight = Insight(
        intents=cast(Any, None),
        policies=cast(Any, _Book()),
        simulator=cast(Any, _Busy()),
        evidence=cast(Any, None),
        store=cast(Any, _Rows()),
        authenticator=cast(Any, None),
    )
    zeros = "0x" + "00" * 32
    answer = {
        "taskId": zeros,
        "decision": "deny",
        "reasons": [{"message": "no"}],
        "attestation": {"leaf": {"policyId": zeros, "sequence": 0, "evidence": zeros}},
    }
    assert await insight.with_places(answer) == answer


async def test_26_one_operator_hides_no_evidence() -> None:
    """The gateway asks operators in turn. What is no record is passed over, unless its salt is no hash: that raises InvalidInput, which is
    not among what is caught. The first operator of the list hides every record of all others, with a 422 that blames the caller."""

    async def lie(request: web.Request) -> web.Response:
        return web.json_response({"salt": "x", "parts": {}})

    record = EvidenceRecord(Hash32(bytes(32)), dict.fromkeys(EVIDENCE_PARTS, b"{}"))

    async def show(request: web.Request) -> web.Response:
        return web.json_response({"salt": hex0x(record.salt), "parts": {name: hex0x(record.parts[name]) for name in EVIDENCE_PARTS}})

    runners, urls = [], []
    for handler in (lie, show):
        application = web.Application()
        application.router.add_get("/evidence/{digest}", handler)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
    client = EvidenceClient(urls)
    try:
        assert await client.get(record.digest()) == record
    finally:
        await client.close()
        for runner in runners:
            await runner.cleanup()


async def test_29_a_bundle_is_no_larger_than_stated() -> None:
    """docs/reference/limits.md: MAX_BUNDLE_BYTES, 64 MiB, "all are enforced". Nothing reads it: a policy may bring 8 components of 32 MiB.
    The gateway keeps 256 bundles in memory, whole, and loads one before it looks at any budget; so does every operator."""
    objects = ObjectStore("memory:///")
    manifest = b'{"name":"a"}'
    artefacts = tuple(PolicyDataArtefact(bytes([n]) * (24 << 20), manifest) for n in range(3))
    policy = replace(rig.policy(), policy_data_ids=tuple(item.id for item in artefacts))
    bundle = PolicyBundle(policy, artefacts)
    address = await store_bundle(objects, bundle)
    with pytest.raises(PlacetError):
        await load_bundle(objects, address, bundle.id)


async def test_25_two_gateways_with_their_own_databases_both_hear_settlement(tmp_path: Path) -> None:
    """Operators and aggregator trust a set of gateways, each with its own tenants and database. All of them read `settlements` as one group
    (`gateway.settlements`), so each event reaches one of them: half of what settlement says of a tenant's transactions is read by a gateway
    that does not know the task, committed, and lost."""
    broker = InProcessBroker()
    settler = LocalBusSigner(b"\x09" * 32)
    gateways = []
    for name in ("a", "b"):
        bus = InProcessBus(broker)
        await bus.start()
        engine = connect(f"sqlite+aiosqlite:///{tmp_path / name}.db")
        await migrate(engine, "placet.gateway.migrations")
        chain = _Chain(rig.operator_set(rig.identities()), {rig.CLIENT: rig.pins()})
        results = Results(
            bus=bus,
            chains={rig.CHAIN: cast(Any, chain)},
            store=Store(engine),
            aggregators=frozenset(),
            settlements=frozenset({settler.public_key}),
            instance_id=name,
        )

        async def resend(*_: Any) -> None: ...

        await results.start(resend)
        gateways.append((bus, engine, results, asyncio.create_task(results.run())))
    bus, _, results, _ = gateways[0]
    try:
        contexts = [rig.batch(rig.task(n)) for n in range(24)]
        for context in contexts:
            row = TaskRow(
                context.task_ids[0],
                "t",
                context.id,
                wire.encode_batch(context.batch, {}),
                0,
                context.id,
                context.id,
                "certified",
                None,
                1,
                2**40,
            )
            await results._store.add_tasks([row])
        for context in contexts:
            payload = wire.encode_settlement_event(SettlementEvent(context.task_ids[0], "confirmed", bytes(32), 1, 1, ""))
            envelope = seal(settler, kind=Kind.SETTLEMENT_EVENT, chain_id=rig.CHAIN, sender=settler.public_key, payload=payload)
            await bus.publish(topics.SETTLEMENTS, context.task_ids[0], envelope)
        await asyncio.sleep(1.0)
        rows = [await results._store.task_any(context.task_ids[0]) for context in contexts]
        noted = sum(row is not None and row.settlement is not None for row in rows)
        assert noted == len(contexts), f"{noted} of {len(contexts)} events reached the gateway whose tasks they are about"
    finally:
        for bus, engine, results, running in gateways:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await results.stop()
            await bus.stop()
            await engine.dispose()
        await broker.stop()
