"""The gateway's tables: API keys, and the tasks asked for with their results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from placet.core.db import insert_new
from placet.core.types import Address, Hash32

_METADATA = sa.MetaData()
_KEY = sa.Table(
    "api_key",
    _METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("secret_sha256", sa.LargeBinary(32)),
    sa.Column("name", sa.String(128)),
    sa.Column("clients", sa.Text),
    sa.Column("requests_per_s", sa.Integer),
    sa.Column("cpu_ms_per_s", sa.Integer),
    sa.Column("created_at", sa.BigInteger),
    sa.Column("disabled_at", sa.BigInteger),
    sa.Column("prepaid", sa.Boolean),
)
_TASK = sa.Table(
    "task",
    _METADATA,
    sa.Column("task_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("tenant", sa.String(32)),
    sa.Column("batch_id", sa.LargeBinary(32)),
    sa.Column("batch", sa.LargeBinary),
    sa.Column("position", sa.Integer),
    sa.Column("request_key", sa.LargeBinary(32)),
    sa.Column("request_hash", sa.LargeBinary(32)),
    sa.Column("attempt", sa.Integer),
    sa.Column("stage", sa.String(16)),
    sa.Column("result", sa.Text),
    sa.Column("settlement", sa.Text),
    sa.Column("evidence", sa.LargeBinary(32)),
    sa.Column("created_at", sa.BigInteger),
    sa.Column("expires_at", sa.BigInteger),
)

_IDENTITY = sa.Table("identity", _METADATA, sa.Column("id", sa.String(32), primary_key=True))


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A tenant. `clients` empty: any policy client."""

    id: str
    secret_sha256: bytes
    name: str
    clients: frozenset[Address]
    requests_per_s: int
    cpu_ms_per_s: int
    prepaid: bool = False
    """Bought by somebody unknown: it calls models, and nothing else."""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task asked for. `stage`: submitted, certified, failed. `result` is the answer's JSON once there is one.

    `attempt` counts the tasks of one request: (request key, attempt) is unique, so of replicas that make one at once, one succeeds.
    """

    task_id: Hash32
    tenant: str
    batch_id: Hash32
    batch: bytes
    position: int
    request_key: Hash32
    request_hash: Hash32
    stage: str
    result: dict[str, Any] | None
    created_at: int
    expires_at: int
    settlement: dict[str, Any] | None = None
    attempt: int = 1


def new_row(
    key_id: str,
    secret_sha256: bytes,
    name: str,
    *,
    clients: frozenset[Address] = frozenset(),
    requests_per_s: int,
    cpu_ms_per_s: int = 0,
    prepaid: bool,
    now: int,
) -> dict[str, Any]:
    """An API key's row."""
    return {
        "id": key_id,
        "secret_sha256": secret_sha256,
        "name": name,
        "clients": ",".join(sorted(client.hex() for client in clients)),
        "requests_per_s": requests_per_s,
        "cpu_ms_per_s": cpu_ms_per_s,
        "created_at": now,
        "prepaid": prepaid,
    }


async def insert_key(connection: AsyncConnection, row: dict[str, Any]) -> None:
    """Add an API key inside somebody's transaction."""
    await connection.execute(sa.insert(_KEY).values(**row))


class Store:
    """All access to the gateway's database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def identity(self) -> str:
        """What names this database among those of other gateways."""
        async with self._engine.connect() as connection:
            return str((await connection.execute(sa.select(_IDENTITY.c.id))).scalar_one())

    async def add_key(self, key: ApiKey) -> None:
        """Add an API key."""
        row = new_row(
            key.id,
            key.secret_sha256,
            key.name,
            clients=key.clients,
            requests_per_s=key.requests_per_s,
            cpu_ms_per_s=key.cpu_ms_per_s,
            prepaid=key.prepaid,
            now=int(time.time()),
        )
        async with self._engine.begin() as connection:
            await insert_key(connection, row)

    async def disable_key(self, key_id: str) -> bool:
        """Disable a key; False when there is none such."""
        async with self._engine.begin() as connection:
            update = sa.update(_KEY).where(_KEY.c.id == key_id).values(disabled_at=int(time.time()))
            return (await connection.execute(update)).rowcount == 1

    async def find_key(self, key_id: str) -> ApiKey | None:
        """An API key that is not disabled."""
        query = sa.select(_KEY).where(_KEY.c.id == key_id, _KEY.c.disabled_at.is_(None))
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        clients = frozenset(Address(bytes.fromhex(text)) for text in row.clients.split(",") if text)
        return ApiKey(row.id, row.secret_sha256, row.name, clients, row.requests_per_s, row.cpu_ms_per_s, bool(row.prepaid))

    async def add_tasks(self, rows: Sequence[TaskRow]) -> frozenset[int]:
        """Record the tasks of one batch before it is published: all of them, or none.

        Returns: the positions for which a task stands already, made by another replica; empty when all were recorded.
        """
        values = [
            {
                "task_id": row.task_id,
                "tenant": row.tenant,
                "batch_id": row.batch_id,
                "batch": row.batch,
                "position": row.position,
                "request_key": row.request_key,
                "request_hash": row.request_hash,
                "attempt": row.attempt,
                "stage": row.stage,
                "created_at": row.created_at,
                "expires_at": row.expires_at,
            }
            # In one order everywhere: replicas that record the same requests at once wait for each other, and not in a circle.
            for row in sorted(rows, key=lambda row: (row.request_key, row.attempt))
        ]
        ours = sa.select(_TASK.c.position).where(_TASK.c.task_id.in_([row.task_id for row in rows]), _TASK.c.batch_id == rows[0].batch_id)
        async with self._engine.connect() as connection, connection.begin() as transaction:
            await connection.execute(insert_new(_TASK, connection.dialect), values)
            recorded = set((await connection.execute(ours)).scalars())
            taken = frozenset(row.position for row in rows if row.position not in recorded)
            if taken:
                await transaction.rollback()
            return taken

    async def set_results(self, results: Sequence[tuple[Hash32, str, dict[str, Any], int]]) -> dict[Hash32, dict[str, Any]]:
        """(task id, stage, result, expires at) of tasks that ended. The first result of a task stands: returns what stands."""
        standing: dict[Hash32, dict[str, Any]] = {}
        async with self._engine.begin() as connection:
            for task_id, stage, result, expires_at in results:
                update = sa.update(_TASK).where(_TASK.c.task_id == task_id, _TASK.c.result.is_(None))
                values = {"stage": stage, "result": orjson.dumps(result).decode(), "expires_at": expires_at}
                if "attestation" in result:
                    values["evidence"] = bytes.fromhex(result["attestation"]["leaf"]["evidence"][2:])
                if (await connection.execute(update.values(**values))).rowcount == 1:
                    standing[task_id] = result
                    continue
                found = (await connection.execute(sa.select(_TASK.c.result).where(_TASK.c.task_id == task_id))).scalar_one_or_none()
                standing[task_id] = result if found is None else orjson.loads(found)
        return standing

    async def set_settlement(self, task_id: Hash32, settlement: dict[str, Any]) -> None:
        """What settlement says of a relayed task; a final state is not overwritten by an earlier one that was delivered late."""
        async with self._engine.begin() as connection:
            row = (await connection.execute(sa.select(_TASK.c.settlement).where(_TASK.c.task_id == task_id))).first()
            if row is None or (row.settlement and orjson.loads(row.settlement)["status"] != "submitted"):
                return
            update = sa.update(_TASK).where(_TASK.c.task_id == task_id)
            await connection.execute(update.values(settlement=orjson.dumps(settlement).decode()))

    async def task(self, task_id: Hash32, tenant: str) -> TaskRow | None:
        """A tenant's task; others' tasks do not exist for it."""
        return await self._one(sa.select(_TASK).where(_TASK.c.task_id == task_id, _TASK.c.tenant == tenant))

    async def task_any(self, task_id: Hash32) -> TaskRow | None:
        """A task of any tenant; for the gateway's own use."""
        return await self._one(sa.select(_TASK).where(_TASK.c.task_id == task_id))

    async def by_evidence(self, evidence: Hash32, tenant: str) -> TaskRow | None:
        """A tenant's task whose leaf commits to this evidence."""
        return await self._one(sa.select(_TASK).where(_TASK.c.evidence == evidence, _TASK.c.tenant == tenant).limit(1))

    async def open_tasks_of(self, batch_id: Hash32) -> list[Hash32]:
        """Tasks of a batch that have no result."""
        query = sa.select(_TASK.c.task_id).where(_TASK.c.batch_id == batch_id, _TASK.c.stage == "submitted")
        async with self._engine.connect() as connection:
            return [Hash32(task_id) for task_id in (await connection.execute(query)).scalars()]

    async def batch_of(self, batch_id: Hash32) -> bytes | None:
        """A batch's bytes, as they were published."""
        query = sa.select(_TASK.c.batch).where(_TASK.c.batch_id == batch_id, _TASK.c.position == 0)
        async with self._engine.connect() as connection:
            found: bytes | None = (await connection.execute(query)).scalar_one_or_none()
            return found or None

    async def standing_of(self, request_key: Hash32, now: int) -> tuple[TaskRow, int] | None:
        """The task of a request that is open or holds an unexpired certificate, whichever attempt it was; without one the newest. With it
        the highest attempt so far."""
        attempt = sa.func.coalesce(_TASK.c.attempt, 0)  # empty in rows of releases before the column
        highest = sa.select(sa.func.max(attempt)).where(_TASK.c.request_key == request_key).scalar_subquery()
        stands = sa.case((sa.and_(_TASK.c.stage != "failed", _TASK.c.expires_at > now), 0), else_=1)
        query = sa.select(_TASK, highest.label("highest")).where(_TASK.c.request_key == request_key)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query.order_by(stands, _TASK.c.created_at.desc(), attempt.desc()).limit(1))).first()
        return None if row is None else (_row(row), int(row.highest))

    async def prune(self, before: int) -> None:
        """Forget tasks that ended, and whose answer expired before a time (unix seconds)."""
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(_TASK).where(_TASK.c.expires_at < before, _TASK.c.stage != "submitted"))

    async def open_batches(self, until: int) -> list[Hash32]:
        """Batches of which a task has no result, made at `until` (unix seconds) or earlier; oldest first."""
        query = (
            sa.select(_TASK.c.batch_id)
            .where(_TASK.c.stage == "submitted", _TASK.c.created_at <= until)
            .group_by(_TASK.c.batch_id)
            .order_by(sa.func.min(_TASK.c.created_at))
            .limit(1000)
        )
        async with self._engine.connect() as connection:
            return [Hash32(row.batch_id) for row in (await connection.execute(query)).all()]

    async def _one(self, query: Any) -> TaskRow | None:
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _row(row)


def _row(row: Any) -> TaskRow:
    return TaskRow(
        Hash32(row.task_id),
        row.tenant,
        Hash32(row.batch_id),
        row.batch,
        row.position,
        Hash32(row.request_key),
        Hash32(row.request_hash),
        row.stage,
        orjson.loads(row.result) if row.result else None,
        row.created_at,
        row.expires_at,
        orjson.loads(row.settlement) if row.settlement else None,
        row.attempt or 0,
    )
