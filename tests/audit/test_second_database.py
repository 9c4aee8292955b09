"""Second reading: two replicas of a gateway over one PostgreSQL (threats 25)."""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core.db import connect, migrate
from placet.core.types import Hash32
from placet.gateway.store import Store, TaskRow
from placet.sdk.devservices.postgres import Postgres
from tests.support.databases import postgres

__all__ = ["postgres"]


def _row(replica: int, round_: int, number: int, position: int) -> TaskRow:
    batch = Hash32(bytes([replica, round_]) * 16)
    task = Hash32(bytes([replica, round_]) + position.to_bytes(30, "big"))
    request = Hash32(bytes([round_]) + number.to_bytes(31, "big"))
    return TaskRow(task, "tenant", batch, b"", position, request, request, "submitted", None, 1, 2**40)


async def test_25_requests_in_another_order_at_two_replicas_fail_no_batch(postgres: Postgres) -> None:
    """One key sends the same requests to both replicas, in opposite order. Their rows are inserted in the order of the batches: PostgreSQL
    finds a deadlock and ends one transaction, and its whole batch, strangers' tasks with it, is "Unavailable" (503). `commit_leaves` sorts
    its rows for that reason."""
    url = postgres.database()
    engines: list[AsyncEngine] = [connect(url), connect(url)]
    try:
        await migrate(engines[0], "placet.gateway.migrations")
        stores = [Store(engine) for engine in engines]
        for round_ in range(20):
            numbers = list(range(200))
            outcomes = await asyncio.gather(
                stores[0].add_tasks([_row(1, round_, number, at) for at, number in enumerate(numbers)]),
                stores[1].add_tasks([_row(2, round_, number, at) for at, number in enumerate(reversed(numbers))]),
                return_exceptions=True,
            )
            failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            assert not failed, str(failed[0])[:300]
    finally:
        for engine in engines:
            await engine.dispose()
