"""What a second reading of the mends found: each was seen to fail before it was mended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core import jsonx
from placet.core.bundle import store_bundle
from placet.core.bus import InProcessBus
from placet.core.db import connect, insert_new, migrate
from placet.core.digests import EVIDENCE_PARTS
from placet.core.envelope import LocalBusSigner
from placet.core.errors import NotFound
from placet.core.evidence import EvidenceRecord
from placet.core.objects import ObjectStore
from placet.core.types import Address, Hash32, hash_from
from placet.gateway.policybook import PolicyBook
from placet.gateway.store import _TASK, Store, TaskRow
from placet.operator.evidence_store import _INDEX, EvidenceStore, encode_record
from placet.operator.signing_log import SigningLog
from tests.support.authorization import Clock, World, bundle_of
from tests.support.databases import NewEngine, database, postgres
from tests.support.gateway import Stage
from tests.support.waiting import until

__all__ = ["database", "postgres"]
DAY_S = 86_400
Kept = tuple[ObjectStore, AsyncEngine, EvidenceStore]
NOW = 20_000 * DAY_S + 100


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path)
    await made.open()
    yield made
    await made.close()


def record(number: int) -> EvidenceRecord:
    return EvidenceRecord(Hash32(bytes([number]) * 32), {name: name.encode() for name in EVIDENCE_PARTS})


def row(key: int, batch: int, position: int, *, task: int | None = None, **changes: Any) -> TaskRow:
    task = batch * 10 + position if task is None else task
    values = {"attempt": 1, "stage": "submitted", "created_at": 1000, "expires_at": 1075, **changes}
    return TaskRow(
        task_id=Hash32(task.to_bytes(32, "big")),
        tenant="t",
        batch_id=Hash32(batch.to_bytes(32, "big")),
        batch=b"x" if position == 0 else b"",
        position=position,
        request_key=Hash32(key.to_bytes(32, "big")),
        request_hash=Hash32(key.to_bytes(32, "big")),
        result=None,
        **values,
    )


# --- evidence


@pytest.fixture
async def evidence(tmp_path: Path) -> AsyncIterator[Kept]:
    objects = ObjectStore((tmp_path / "objects").as_uri())
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'o.db'}")
    await migrate(engine, "placet.operator.migrations")
    yield objects, engine, EvidenceStore(objects, engine, Address(b"\x01" * 20), 90 * DAY_S)
    await engine.dispose()


def objects_in(folder: Path) -> list[Path]:
    return [path for path in (folder / "objects").rglob("*") if path.is_file()]


async def put_as_before(objects: ObjectStore, engine: Any, records: list[EvidenceRecord], now: int) -> None:
    """EvidenceStore.put of a1f8670, word for word."""
    entries = [encode_record(r) for r in records]
    address = await objects.put(jsonx.canonical(entries))
    common = {"operator": Address(b"\x01" * 20), "object_sha256": address, "created_at": now}
    rows = [{**common, "evidence": hash_from(entry["evidence"])} for entry in entries]
    async with engine.begin() as connection:
        await connection.execute(insert_new(_INDEX, connection.dialect), rows)


async def test_evidence_of_the_release_before_is_still_shown(evidence: Kept) -> None:
    objects, engine, store = evidence
    await put_as_before(objects, engine, [record(1)], NOW)
    assert await store.get(record(1).digest()) == record(1)


async def test_evidence_of_the_release_before_is_removed_in_time(tmp_path: Path, evidence: Kept) -> None:
    objects, engine, store = evidence
    await put_as_before(objects, engine, [record(1)], NOW)
    await store.prune(NOW + 91 * DAY_S)
    assert objects_in(tmp_path) == []


async def test_evidence_put_for_the_whole_batch_and_then_for_a_proposals_group_goes(tmp_path: Path, evidence: Kept) -> None:
    _, _, store = evidence
    await store.put([record(1), record(2)], NOW)  # signed whole
    await store.put([record(1)], NOW)  # and then, as other operators abstained from task 2, the Proposal's group
    await store.prune(NOW + 91 * DAY_S)
    assert objects_in(tmp_path) == []


# --- attempts


async def test_a_certified_task_of_an_older_replica_is_found(database: NewEngine) -> None:
    """Rolling upgrade: attempt 1 failed at a new replica; the retry went to an old one, which writes no attempt, and is certified."""
    engine = await database("placet.gateway.migrations")
    store = Store(engine)
    await store.add_tasks([row(7, 1, 0, stage="failed", created_at=1000, expires_at=1010)])
    await store.add_tasks([row(7, 2, 0, attempt=None, stage="certified", created_at=1020, expires_at=1600)])
    standing = await store.standing_of(Hash32((7).to_bytes(32, "big")), 1100)
    assert standing is not None
    assert (standing[0].stage, standing[1]) == ("certified", 1)


async def test_replicas_that_record_the_same_requests_in_other_orders(database: NewEngine) -> None:
    engines = [await database("placet.gateway.migrations") for _ in range(2)]
    stores = [Store(e) for e in engines]
    for number in range(1, 30):
        keys = list(range(number * 1000, number * 1000 + 120))
        ones = [row(k, 2 * number, at, task=number * 10**6 + at) for at, k in enumerate(keys)]
        others = [row(k, 2 * number + 1, at, task=number * 10**6 + 500_000 + at) for at, k in enumerate(reversed(keys))]
        taken = await asyncio.gather(stores[0].add_tasks(ones), stores[1].add_tasks(others))
        assert sorted(map(len, taken)) == [0, 120]


async def _set(stage: Stage, task_id: str, **values: Any) -> None:
    async with stage.gateway.store._engine.begin() as connection:
        await connection.execute(sa.update(_TASK).where(_TASK.c.task_id == bytes.fromhex(task_id[2:])).values(**values))


async def _add_failed(stage: Stage, task_id: str, attempt: int, created_by: int) -> None:
    found = await stage.gateway.store.task_any(Hash32(bytes.fromhex(task_id[2:])))
    assert found is not None
    at = found.created_at + created_by
    made = replace(found, task_id=Hash32(b"\x05" * 32), batch_id=Hash32(b"\x06" * 32), attempt=attempt)
    made = replace(made, stage="failed", created_at=at, expires_at=at, result=None)
    assert not await stage.gateway.store.add_tasks([made])


@pytest.mark.parametrize("case", ["certified by an older replica", "certified late, after attempt 2 failed"])
async def test_a_request_with_a_certificate_is_not_certified_again(stage: Stage, case: str) -> None:
    headers = {"idempotency-key": "order-1"}
    first = (await stage.gateway.submit(1, headers=headers)).body["taskId"]
    if case.startswith("certified by"):
        await _set(stage, first, attempt=None)
        await _add_failed(stage, first, 1, -10)
    else:
        await _add_failed(stage, first, 2, 1)
    again = (await stage.gateway.submit(1, headers=headers)).body["taskId"]
    assert again == first
    assert len(await stage.batches()) == 1


async def test_announcing_what_is_not_there_or_no_news_costs_no_announcement() -> None:
    bus = InProcessBus()
    await bus.start()
    objects = ObjectStore("memory://")
    book = PolicyBook(bus, objects, LocalBusSigner(b"g" * 32))
    await book.start()
    charged: list[None] = []

    def charge() -> None:
        charged.append(None)

    bundle = bundle_of()
    with pytest.raises(NotFound):
        await book.announce(bundle.id, Hash32(b"\x22" * 32), charge)
    assert not charged
    address = await store_bundle(objects, bundle)
    await book.announce(bundle.id, address, charge)
    await until(lambda: bundle.id in book.known())
    await book.announce(bundle.id, address, charge)
    assert len(charged) == 1
    await book.stop()
    await bus.stop()


# --- operator


async def test_the_signing_logs_heart_beats_while_evidence_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    from placet.operator import service as module

    beats = 0

    class Log:
        async def heartbeat(self, now: int) -> None:
            nonlocal beats
            beats += 1

        async def prune(self, now: int) -> None:
            pass

    class Evidence:
        async def prune(self, now: int) -> None:
            await asyncio.Event().wait()  # an object store that does not answer: obstore tries for three minutes

    service: Any = object.__new__(module.OperatorService)
    service._clock, service._expiries, service.subscription = (lambda: 0.0), {}, None
    service._runs, service._proposals, service._log, service._evidence = {}, {}, Log(), Evidence()
    genuine = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _: genuine(0))
    working = [asyncio.create_task(work()) for work in (service._keep_house, service._prune_evidence)]
    for _ in range(2000):
        await genuine(0)
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    assert beats > 31, "30 beats until the first removal, and some after it"


async def test_a_gateways_reference_block_six_back_is_taken_on_a_chain_of_twelve_seconds(tmp_path: Path) -> None:
    """`reference_block_back: 6`, allowed by the gateway's settings and far below max_reference_block_age."""
    from placet.core.evm.rpc import Block
    from tests.unit.operator import test_service as unit

    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'operator.db'}")
    await migrate(engine, "placet.operator.migrations")
    clock, world = Clock(), World()
    log = SigningLog(engine, world.members[0].address)
    await log.open(int(clock.now) - 100)
    made = unit.Stage(world, log, clock)
    await made.bus.start()
    await made.start()
    try:
        chain, context = world.chain, world.batch()
        number, head_at = chain.block.number, context.batch.timestamp - 6  # the head is six seconds old, as it is on average
        chain.rpc.blocks[number] = chain.block
        for behind in range(6):
            at = Block(number + 6 - behind, Hash32(bytes([100 + behind]) * 32), Hash32(b"\x02" * 32), head_at - 12 * behind, 0)
            chain.rpc.blocks[at.number] = at
            chain.rpc.head = chain.rpc.head if behind else at
        await made.batch(context)
        await made.response(context)
    finally:
        await made.kill()
        await made.bus.stop()
        await engine.dispose()
