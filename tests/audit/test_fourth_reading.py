"""Fourth reading: what the mends of the third one left open or opened (threats 16, 21, 28, 29)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from placet.aggregator.mailboxes import Mailbox, Mailboxes
from placet.aggregator.service import Timing
from placet.core import topics, wire
from placet.core.agreement import Component
from placet.core.batch import BatchContext
from placet.core.bundle import store_bundle
from placet.core.bus import BusUnavailable, InProcessBus, Record
from placet.core.consensus import Rule, RuleKind
from placet.core.db import connect, migrate
from placet.core.envelope import Kind, LocalBusSigner, open_envelope
from placet.core.evm.rpc import RpcClient
from placet.core.messages import Admission, Observation, TaskObservation
from placet.core.objects import ObjectStore
from placet.core.types import Hash32, TaskBatch
from placet.gateway.policybook import PolicyBook
from placet.gateway.results import Results
from placet.gateway.store import Store, TaskRow
from placet.operator import admissions as admissions_module
from placet.operator.admissions import Admissions
from placet.operator.evaluation import BATCH_FUEL, OverBudget, TaskToDecide, Undecided
from placet.operator.policies import LoadedPolicy
from placet.sandbox.rego import MAX_FUEL
from placet.settlement.inbox import MAX_WAITING_RECORDS, Outcome
from tests.audit import rig
from tests.audit.test_third_gateway import _Chain
from tests.support.authorization import Member, World
from tests.support.waiting import until
from tests.unit.operator.test_service import Stage, stage
from tests.unit.settlement.test_inbox import Desk, record

__all__ = ["stage"]

Decide = Callable[[LoadedPolicy, BatchContext, Sequence[TaskToDecide], Sequence[bytes]], Any]


# --- one caller's expensive tasks


async def test_21_expensive_tasks_fail_no_other_task_of_a_policy_with_data(stage: Stage) -> None:
    """A few of 256 tasks use up the batch's fuel: one of them is `batch_budget`, at every operator alike. Each of them abstained from the
    whole group, so everybody's tasks in the batch failed."""
    world = stage.world
    component = Component({"/n": Rule(RuleKind.EXACT)}, False)
    info = cast(Any, SimpleNamespace(pure=False, newton=False, needs_secrets=False, component=component))
    stage.policies.loaded = LoadedPolicy(world.bundle, cast(Any, None), (info,))
    seen = tuple(TaskObservation(index, (b'{"n":1}',), (Hash32(bytes(32)),)) for index in range(3))

    class _Observer:
        async def observe(self, loaded: LoadedPolicy, context: BatchContext, index: int, *_: Any) -> TaskObservation:
            return seen[index]

    for service, _, _ in stage._running:
        cast(Any, service._answers)._observer = _Observer()
    decide: Decide = stage.evaluator.decide

    async def short(loaded: LoadedPolicy, context: BatchContext, tasks: Sequence[TaskToDecide], observations: Sequence[bytes]) -> Any:
        made = await decide(loaded, context, [task for task in tasks if task.index != 1], observations)
        raise Undecided({1: OverBudget("the batch's fuel was used up by other tasks; ask again")}, made)

    stage.evaluator.decide = short  # type: ignore[method-assign]
    context = world.batch(3)
    await stage.batch(context)
    await stage.observation(context)
    payload = wire.encode_observation(Observation(seen, (), "test"))
    await stage.propose(context, [world.sealed(member, Kind.OBSERVATION, context.id, payload) for member in world.members])
    response = await stage.response(context)
    assert [[item.task for item in group.decided] for group in response.groups] == [[0, 2]]
    assert [(item.task, item.code) for item in response.abstentions] == [(1, "batch_budget")]


async def test_21_a_whole_batch_is_answered_while_the_aggregator_still_makes_a_proposal_of_it(stage: Stage) -> None:
    """What was not decided 20 s after the batch's timestamp failed alone; but the aggregator had failed all of it after 13 s."""
    found: list[float] = []
    decide: Decide = stage.evaluator.decide

    async def note(loaded: LoadedPolicy, context: BatchContext, tasks: Sequence[TaskToDecide], observations: Sequence[bytes]) -> Any:
        found.extend(task.until for task in tasks)
        return await decide(loaded, context, tasks, observations)

    stage.evaluator.decide = note  # type: ignore[method-assign]
    context = stage.world.batch(2, observe_for_ms=5_000)
    await stage.batch(context)
    await stage.response(context)
    longest_task_s = 2.5  # 20,000,000,000 fuel
    assert max(found) + longest_task_s < context.batch.timestamp + 5 + Timing().respond_within_s


def test_21_a_batchs_fuel_fits_into_the_time_that_the_aggregator_waits_for_answers() -> None:
    """Under a Proposal a group is answered as a whole, and what of it is left out is known when all of the batch's fuel is used. By then
    the aggregator has failed the batch: six tasks of a policy of 20,000,000,000 fuel do that to the 250 others."""
    fuel_a_second = 8_000_000_000  # of one thread, as BATCH_FUEL counts it; the second half is used by one task after the other
    assert (BATCH_FUEL + MAX_FUEL) / fuel_a_second < Timing().respond_within_s


# --- admissions and announcements


async def test_29_a_bus_that_is_away_for_a_moment_ends_no_operator(monkeypatch: Any) -> None:
    """Who writes over an operator's word makes it publish, at a moment of his choice; when the broker was away just then, the operator's
    process ended, with every batch in hand."""
    monkeypatch.setattr(admissions_module, "_RETRY_S", 0.05)
    world = World()
    member: Member = world.members[0]
    said: list[bytes] = []
    away = 2

    async def publish(topic: str, key: bytes, value: bytes) -> None:
        nonlocal away
        if away:
            away -= 1
            raise BusUnavailable("the broker is away")
        said.append(value)

    async def subscribe(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    admissions = Admissions(cast(Any, SimpleNamespace(publish=publish, subscribe=subscribe)), member.address, member.bus)
    running = asyncio.create_task(admissions.run())
    try:
        await admissions.say(Admission(world.policy_id, admitted=True, checker="1", reason=""))
        await until(lambda: bool(said))
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        admissions.stop()


async def test_29_a_policy_can_be_announced_again_with_a_new_key() -> None:
    """Operators take announcements of the gateways' keys they know. After a gateway's key was changed they ignore the old announcement,
    and publishing again did nothing: it was "announced already"."""
    world = World()
    bus, objects = InProcessBus(), ObjectStore("memory:///")
    await bus.start()
    address = await store_bundle(objects, world.bundle)
    charged: list[None] = []
    senders = []
    try:
        for key in (b"\x01" * 32, b"\x03" * 32, b"\x03" * 32):
            book = PolicyBook(bus, objects, LocalBusSigner(key))
            await book.start()
            await book.announce(world.bundle.id, address, lambda: charged.append(None))
            assert book._policies is not None
            await book._policies.caught_up()
            record = book._policies[world.bundle.id]
            senders.append(open_envelope(record.value or b"", lambda kind, sender: sender).sender)
            await book.stop()
    finally:
        await bus.stop()
    assert senders == [LocalBusSigner(key).public_key for key in (b"\x01" * 32, b"\x03" * 32, b"\x03" * 32)]
    assert len(charged) == 2


# --- a node provider


async def test_28_a_node_whose_errors_have_another_form_is_passed_over() -> None:
    """`{"error": "over quota"}`, as gateways before nodes say it, was an AttributeError: no other URL was asked, and batches that the
    aggregator was opening were dropped as by a defect, instead of being tried again."""

    async def odd(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "error": "over quota"})

    async def well(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": "0x7a69"})

    urls = []
    servers = []
    for handler in (odd, well):
        app = web.Application()
        app.router.add_post("/", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        urls.append(str(server.make_url("/")))
    try:
        async with RpcClient(urls) as rpc:
            assert await rpc.chain_id() == rig.CHAIN
    finally:
        for server in servers:
            await server.close()


# --- an operator's new key


def test_16_an_operators_first_message_with_a_new_key_waits_for_its_batch() -> None:
    """The aggregator learns keys from the batches it opens. What an operator says of the first batch of the epoch with its new key may be
    there before that batch is open; it was thrown away as a forgery, while an operator that is new altogether may wait."""
    world = World()
    member = world.members[0]
    before = LocalBusSigner(b"\x77" * 32).public_key
    operators = tuple(replace(o, bus_key=before) if o.address == member.address else o for o in world.operators.operators)
    room = Mailboxes()
    room.learn(replace(world.operators, operators=operators))
    mailbox, context = Mailbox(room), world.batch(1)
    value = world.response(member, context, [world.decided(context)])
    assert room.put(mailbox, Record(topics.RESPONSES, 0, 0, context.id, value, (), 0))
    taken = mailbox.take()
    assert taken is not None
    assert taken[1] is None  # it is opened again when the operators of its epoch are known


# --- one record, one chain


async def test_16_a_result_that_cannot_be_applied_does_not_keep_the_gateway_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs, one record never ends the loop for all. What is read again at the start, and of orphans every five seconds, was
    applied without that guard: a value that no column holds ended the gateway, and every start until the record's retention was over."""
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}")
    await migrate(engine, "placet.gateway.migrations")
    store, bus = Store(engine), InProcessBus()
    await bus.start()
    batch = TaskBatch(rig.CHAIN, rig.VALIDATOR, rig.POLICY_ID, 1, 1_000, rig.BLOCK.number, rig.BLOCK.hash, 300, (rig.task(0),))
    context = BatchContext.of(batch)
    row = TaskRow(
        context.task_ids[0], "t", context.id, wire.encode_batch(batch, {}), 0, context.id, context.id, "submitted", None, 1_000, 2**40
    )
    await store.add_tasks([row])
    await bus.publish(topics.TASKS, context.id, b"the batch")
    await bus.publish(topics.ATTESTATIONS, context.id, b"what does not fit")
    chain = _Chain(rig.operator_set(rig.identities()), {rig.CLIENT: rig.pins()})
    results = Results(bus=bus, chains={rig.CHAIN: cast(Any, chain)}, store=store, aggregators=frozenset(), clock=lambda: 1_020.0)
    taken: list[Record] = []

    async def take(found: Record) -> None:
        taken.append(found)
        raise OverflowError("int too big")

    async def resend(context: BatchContext, payload: bytes) -> None: ...

    monkeypatch.setattr(results, "_take", take)
    try:
        await results.start(resend)
        results._pending.clear()
        await results.sweep()
    finally:
        await results.stop()
        await bus.stop()
        await engine.dispose()
    assert len(taken) == 2


async def test_28_one_chains_node_that_is_away_stops_no_other_chain() -> None:
    """256 relayed groups of a chain whose node is away, and settlement reads nothing more: no other chain's attestation is relayed until
    that node is back, or the attestations that wait have expired (up to seven days)."""
    desk = Desk()
    desk.says = dict.fromkeys(range(MAX_WAITING_RECORDS), Outcome.AWAY)
    await desk.give(record(offset, offset.to_bytes(32, "big")) for offset in range(MAX_WAITING_RECORDS))
    assert not desk.paused
