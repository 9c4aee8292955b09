"""From attestations to jobs and events: what becomes a job, what never does, and that trouble loses nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from placet.core import topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import BusUnavailable, InProcessBroker, InProcessBus
from placet.core.envelope import Kind, LocalBusSigner, open_envelope, seal
from placet.core.errors import Unavailable
from placet.core.evm.rpc import RpcError
from placet.core.messages import GroupFailure, SettlementEvent, TaskFailure
from placet.core.types import Address
from placet.settlement.service import GROUP, SettlementService
from placet.settlement.store import Job, Lease, Store
from tests.support.authorization import AGGREGATOR, CHAIN_ID, World, dead_letters, eventually, records_of
from tests.support.databases import NewEngine

SETTLEMENT = LocalBusSigner(b"s" * 32)


class Sender:
    """Executes whatever is queued at once, under the lease. `before` runs first, and may raise."""

    def __init__(self, store: Store) -> None:
        self.address = Address(b"\x5e" * 20)
        self.store = store
        self.before: list[Exception] = []
        self.executed: list[Job] = []

    async def step(self, lease: Lease) -> None:
        if self.before:
            raise self.before.pop()
        for job in await self.store.queued(CHAIN_ID, 100, 1e12):
            self.executed.append(job)
            await self.store.set_state(lease, 0.0, job.reference, "confirmed", gas_used=50_000)


class Stage:
    def __init__(self, database: NewEngine) -> None:
        self.world = World()
        self.database = database
        self.broker = InProcessBroker()
        self.bus = InProcessBus(self.broker)
        self.store: Store
        self.sender: Sender
        self._nonces = itertools.count()
        self._tasks: list[tuple[asyncio.Task[None], InProcessBus]] = []

    async def start(self, prepare: Callable[[InProcessBus], None] = lambda bus: None) -> SettlementService:
        bus = InProcessBus(self.broker)
        await bus.start()
        prepare(bus)
        self.store = Store(await self.database("placet.settlement.migrations"))
        self.sender = Sender(self.store)
        service = SettlementService(
            bus=bus,
            chains={CHAIN_ID: self.world.chain},  # type: ignore[dict-item]
            senders={CHAIN_ID: self.sender},  # type: ignore[dict-item]
            store=self.store,
            bus_signer=SETTLEMENT,
            aggregators=frozenset({AGGREGATOR.public_key}),
            holder=f"replica-{len(self._tasks)}",
            lease_s=0.5,
            poll_s=0.02,
        )
        self._tasks.append((asyncio.create_task(service.run()), bus))
        return service

    async def kill(self) -> None:
        for task, bus in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await bus.stop()
        self._tasks.clear()

    @property
    def alive(self) -> bool:
        return not any(task.done() for task, _ in self._tasks)

    async def say(self, context: BatchContext, *envelopes: bytes) -> None:
        for envelope in envelopes:
            await self.bus.publish(topics.ATTESTATIONS, context.id, envelope)

    def relayed(self, tasks: int = 1, relays: Sequence[int] = (0,), **changes: Any) -> BatchContext:
        context = self.world.batch(tasks)
        made = tuple(replace(task, intent=replace(task.intent, nonce=next(self._nonces), **changes)) for task in context.batch.tasks)
        return BatchContext.of(replace(context.batch, tasks=made), dict.fromkeys(relays, "tenant"))

    async def events(self, context: BatchContext) -> list[SettlementEvent]:
        out = []
        for record in await records_of(self.bus, topics.SETTLEMENTS):
            message = open_envelope(record.value or b"", lambda kind, sender: SETTLEMENT.public_key)
            event = wire.decode_settlement_event(message.payload)
            if event.reference in context.task_ids:
                out.append(event)
        return out

    async def idle(self) -> None:
        """Everything said so far has been read, executed and announced."""

        async def done() -> bool:
            ends = await self.bus.end_offsets(self.bus.partitions(topics.ATTESTATIONS))
            committed = self.broker.group(GROUP).committed
            read = all(committed.get(at, 0) >= end for at, end in ends.items())
            return read and not await self.store.queued(CHAIN_ID, 1, 1e12) and not await self.store.unannounced()

        await eventually(done, "settlement is idle")


@pytest.fixture
async def stage(database: NewEngine) -> AsyncIterator[Stage]:
    made = Stage(database)
    await made.bus.start()
    yield made
    await made.kill()
    await made.bus.stop()
    await made.broker.stop()


async def test_only_what_is_allowed_and_to_be_relayed_becomes_a_job(stage: Stage) -> None:
    await stage.start()
    some, denied = stage.relayed(3, [0, 2]), stage.relayed(2, [0, 1])
    await stage.say(some, stage.world.certified(some))
    await stage.say(denied, stage.world.certified(denied, allow=False))
    await stage.idle()
    assert {event.reference for event in await stage.events(some)} == {some.task_ids[0], some.task_ids[2]}
    assert await stage.events(denied) == []
    job = next(job for job in stage.sender.executed if job.reference == some.task_ids[0])
    assert (job.payer, job.valid_until, job.value) == ("tenant", some.batch.timestamp + stage.world.policy.valid_for, 0)


async def test_a_redelivered_attestation_is_one_job(stage: Stage) -> None:
    await stage.start()
    context = stage.relayed()
    await stage.say(context, *[stage.world.certified(context)] * 3)
    await stage.idle()
    assert [job.reference for job in stage.sender.executed].count(context.task_ids[0]) == 1
    assert [event.status for event in await stage.events(context)] == ["confirmed"]


async def test_19_a_certificate_after_a_failure_is_not_executed(stage: Stage) -> None:
    await stage.start()
    context, other = stage.relayed(1), stage.relayed(2)
    await stage.say(context, stage.world.failed(context), stage.world.certified(context))
    await stage.say(other, stage.world.certified(other), stage.world.failed(other))
    await stage.idle()
    assert await stage.events(context) == []
    assert [event.status for event in await stage.events(other)] == ["confirmed"]


async def test_19_nor_when_settlement_was_restarted_in_between(stage: Stage) -> None:
    await stage.start()
    context = stage.relayed()
    await stage.say(context, stage.world.failed(context))
    await stage.idle()
    await stage.kill()
    await stage.start()
    await stage.say(context, stage.world.certified(context))
    await stage.idle()
    assert await stage.events(context) == []


async def test_28_a_relayed_intent_with_value_is_never_paid_by_settlement(stage: Stage) -> None:
    await stage.start()
    context = stage.relayed(value=10**18)
    await stage.say(context, stage.world.certified(context))
    await stage.idle()
    (event,) = await stage.events(context)
    assert event.status == "refused"
    assert "carries no value" in event.error
    assert all(job.value == 0 and job.reference != context.task_ids[0] for job in stage.sender.executed)


async def test_an_attestation_without_quorum_or_by_a_stranger_is_a_dead_letter(stage: Stage) -> None:
    await stage.start()
    weak, moved = stage.relayed(1), stage.relayed(2)
    await stage.say(weak, stage.world.certified(weak, signers=2))
    sender = SETTLEMENT.public_key
    payload = wire.encode_group_failure(GroupFailure((TaskFailure(0, moved.task_ids[0], "no_quorum", "…", True, ()),)))
    forged = seal(SETTLEMENT, kind=Kind.GROUP_FAILURE, chain_id=CHAIN_ID, sender=sender, payload=payload, batch_id=moved.id)
    await stage.say(moved, forged, stage.world.certified(moved))
    await stage.idle()
    assert len(await dead_letters(stage.bus, topics.ATTESTATIONS)) == 2
    assert await stage.events(weak) == []
    assert [event.status for event in await stage.events(moved)] == ["confirmed"], "a stranger's failure stops nothing"


@pytest.mark.parametrize(
    "trouble",
    [Unavailable("no RPC node answers"), RpcError(-32000, "header not found"), OperationalError("select", {}, Exception("gone"))],
    ids=["node-away", "node-behind", "database"],
)
async def test_an_attestation_waits_for_node_and_database(stage: Stage, trouble: Exception) -> None:
    stage.world.chain.failures.append(trouble)
    await stage.start()
    context = stage.relayed()
    await stage.say(context, stage.world.certified(context))
    assert [event.status for event in await eventually(lambda: stage.events(context))] == ["confirmed"]
    assert stage.alive


@pytest.mark.parametrize("trouble", [RpcError(-32000, "limit exceeded"), OSError("gone"), Unavailable("…")], ids=["node", "socket", "away"])
async def test_a_leader_survives_a_round_that_fails(stage: Stage, trouble: Exception) -> None:
    await stage.start()
    stage.sender.before += [trouble, trouble]
    context = stage.relayed()
    await stage.say(context, stage.world.certified(context))
    assert await eventually(lambda: stage.events(context))
    assert stage.alive


async def test_a_broker_that_is_away_when_offsets_are_committed_stops_nothing(stage: Stage) -> None:
    def prepare(bus: InProcessBus) -> None:
        genuine = bus.subscribe

        async def subscribe(*arguments: Any, **options: Any) -> Any:
            subscription = await genuine(*arguments, **options)

            async def commit(offsets: Any) -> None:
                raise BusUnavailable("committing: no answer")

            subscription.commit = commit  # type: ignore[method-assign]
            return subscription

        bus.subscribe = subscribe  # type: ignore[method-assign]

    await stage.start(prepare)
    for tasks in (1, 2, 3):
        context = stage.relayed(tasks)
        await stage.say(context, stage.world.certified(context))
        assert await eventually(lambda context=context: stage.events(context))  # type: ignore[misc]
    assert stage.alive


async def test_a_second_replica_takes_over_when_the_first_dies(stage: Stage) -> None:
    await stage.start()
    await stage.idle()
    await stage.kill()
    await stage.start()
    context = stage.relayed()
    await stage.say(context, stage.world.certified(context))
    assert [event.status for event in await eventually(lambda: stage.events(context))] == ["confirmed"]
