"""Settlement's tables. Whatever decides about money is written under the lease's fencing token, in one transaction, before it is sent.

A job is bound to one account nonce for ever (threats 15): later attempts are replacements at the same nonce, or a cancellation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from placet.core.bus.tracing import capture
from placet.core.db import insert_new
from placet.core.types import Address, Hash32

_METADATA = sa.MetaData()
_LEASE = sa.Table(
    "lease",
    _METADATA,
    sa.Column("key", sa.LargeBinary(20), primary_key=True),
    sa.Column("chain_id", sa.BigInteger, primary_key=True),
    sa.Column("holder", sa.String(64)),
    sa.Column("token", sa.BigInteger),
    sa.Column("expires_at", sa.Float),
)
JOB = sa.Table(
    "job",
    _METADATA,
    sa.Column("reference", sa.LargeBinary(32), primary_key=True),
    sa.Column("chain_id", sa.BigInteger),
    sa.Column("target", sa.LargeBinary(20)),
    sa.Column("calldata", sa.LargeBinary),
    sa.Column("value", sa.String(78)),
    sa.Column("payer", sa.String(64)),
    sa.Column("valid_until", sa.BigInteger),
    sa.Column("state", sa.String(16)),
    sa.Column("announced", sa.String(16)),
    sa.Column("error", sa.String(256)),
    sa.Column("transaction_hash", sa.LargeBinary(32)),
    sa.Column("block_number", sa.BigInteger),
    sa.Column("gas_used", sa.BigInteger),
    sa.Column("created_at", sa.Float),
    sa.Column("trace", sa.Text),
    sa.Column("gas_reserved", sa.BigInteger),
    sa.Column("not_before", sa.Float),
    sa.Column("put_off", sa.Integer),
    sa.Column("lane", sa.String(16)),
)
_NONCE = sa.Table(
    "account_nonce",
    _METADATA,
    sa.Column("key", sa.LargeBinary(20), primary_key=True),
    sa.Column("chain_id", sa.BigInteger, primary_key=True),
    sa.Column("nonce", sa.BigInteger, primary_key=True),
    sa.Column("reference", sa.LargeBinary(32)),
    sa.Column("final", sa.Boolean),
)
_ATTEMPT = sa.Table(
    "attempt",
    _METADATA,
    sa.Column("key", sa.LargeBinary(20), primary_key=True),
    sa.Column("chain_id", sa.BigInteger, primary_key=True),
    sa.Column("nonce", sa.BigInteger, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(8)),
    sa.Column("raw", sa.LargeBinary),
    sa.Column("hash", sa.LargeBinary(32)),
    sa.Column("max_fee", sa.String(78)),
    sa.Column("created_at", sa.Float),
    sa.Column("token", sa.BigInteger),
)

ATTESTATIONS, PAYMENTS, REFUNDS, RECEIPTS = "attestations", "payments", "refunds", "receipts"
"""Lanes: what jobs are for. Each has a key of its own, so none waits for another's account nonces."""
FOR_EVER = 2**53
"""`valid_until` of a job that does not end."""
FINAL = ("confirmed", "reverted", "refused")
DAY_S = 86_400.0
_IN_FLIGHT = ("sent", "mined")
_OF_THE_VALUES = ("22", "23")  # SQLSTATE classes: data exception, integrity constraint violation
_PUT_OFF_S, _PUT_OFF_AT_MOST_S = 1.0, 300.0


def storable(text: str) -> str:
    """A text from outside as every database takes it: without control characters and lone surrogates, at most 250 characters."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:250])


def cannot_be_held(error: BaseException | None) -> bool:
    """Whether a database refuses the very values (too long, out of range, not a text of its own), rather than being away."""
    while error is not None:
        state = getattr(error, "sqlstate", None)
        if isinstance(error, OverflowError | asyncpg.DataError | DataError | IntegrityError):
            return True
        if isinstance(state, str) and state[:2] in _OF_THE_VALUES:
            return True
        error = getattr(error, "orig", None) or error.__cause__
    return False


class LeaseLost(Exception):
    """Another replica leads for this key now; nothing was written."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Leadership for one sending key on one chain, with its fencing token."""

    key: Address
    chain_id: int
    holder: str
    token: int


@dataclass(frozen=True, slots=True)
class Job:
    """Something to be executed on a chain, once. States: queued, sent, mined, then confirmed, reverted or refused."""

    reference: Hash32
    chain_id: int
    target: Address
    calldata: bytes
    value: int
    payer: str
    valid_until: int
    state: str
    announced: str
    error: str
    transaction_hash: bytes
    block_number: int
    gas_used: int
    created_at: float
    trace: str
    gas_reserved: int = 0
    not_before: float = 0.0
    put_off: int = 0
    lane: str = ATTESTATIONS


@dataclass(frozen=True, slots=True)
class Attempt:
    """A signed transaction at an account nonce. `kind`: send or cancel."""

    nonce: int
    number: int
    kind: str
    raw: bytes
    hash: Hash32
    max_fee: int
    created_at: float
    reference: Hash32


class Store:
    """All access to settlement's database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    # --- leases

    async def acquire(self, key: Address, chain_id: int, holder: str, now: float, lease_s: float) -> Lease | None:
        """Take, keep or renew the lead; None while another holds it. A new holder gets a higher token."""
        async with self._engine.begin() as connection:
            await connection.execute(
                insert_new(_LEASE, connection.dialect).values(key=key, chain_id=chain_id, holder="", token=0, expires_at=0.0)
            )
            row = (await connection.execute(self._lease_row(key, chain_id))).one()
            if row.holder != holder and row.expires_at > now:
                return None
            token = row.token if row.holder == holder else row.token + 1
            await connection.execute(
                sa.update(_LEASE)
                .where(_LEASE.c.key == key, _LEASE.c.chain_id == chain_id)
                .values(holder=holder, token=token, expires_at=now + lease_s)
            )
            return Lease(key, chain_id, holder, token)

    async def release(self, lease: Lease) -> None:
        """Give the lead away at once."""
        async with self._engine.begin() as connection:
            await connection.execute(
                sa.update(_LEASE)
                .where(_LEASE.c.key == lease.key, _LEASE.c.chain_id == lease.chain_id, _LEASE.c.token == lease.token)
                .values(expires_at=0.0)
            )

    @staticmethod
    def _lease_row(key: Address, chain_id: int) -> Any:
        return sa.select(_LEASE).where(_LEASE.c.key == key, _LEASE.c.chain_id == chain_id).with_for_update()

    async def _fence(self, connection: AsyncConnection, lease: Lease, now: float) -> None:
        """Raise LeaseLost unless the lease still stands; holds its row until the transaction ends."""
        if connection.dialect.name == "sqlite":  # no row locks: take the write lock before reading
            await connection.execute(
                sa.update(_LEASE).where(_LEASE.c.key == lease.key, _LEASE.c.chain_id == lease.chain_id).values(token=_LEASE.c.token)
            )
        row = (await connection.execute(self._lease_row(lease.key, lease.chain_id))).one()
        if row.token != lease.token or row.holder != lease.holder or row.expires_at <= now:
            raise LeaseLost

    # --- jobs

    async def add_job(self, job: Job) -> bool:
        """Record a job; False when its reference is known (a redelivery)."""
        async with self._engine.begin() as connection:
            return await insert_job(connection, job)

    async def job(self, reference: Hash32) -> Job | None:
        """A job by its reference."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(JOB).where(JOB.c.reference == reference))).first()
        return None if row is None else _job(row)

    async def queued(self, chain_id: int, limit: int, now: float, lane: str = ATTESTATIONS) -> list[Job]:
        """Jobs waiting for an account nonce, oldest first among those of a payer; payers with less in flight or before them come first.

        Payments go by their end: the one that ends first is first, whosever it is. One that cannot be sent is put off, and out of the way.
        """
        here = (JOB.c.chain_id == chain_id, JOB.c.lane == lane)
        if lane == PAYMENTS:
            soonest = sa.select(JOB).where(*here, JOB.c.state == "queued", JOB.c.not_before <= now)
            soonest = soonest.order_by(JOB.c.valid_until, JOB.c.created_at, JOB.c.reference).limit(limit)
            async with self._engine.connect() as connection:
                return [_job(row) for row in (await connection.execute(soonest)).all()]
        flying = sa.select(JOB.c.payer, sa.func.count().label("jobs")).where(*here, JOB.c.state.in_(_IN_FLIGHT))
        held = flying.group_by(JOB.c.payer).subquery()
        place = sa.func.row_number().over(partition_by=JOB.c.payer, order_by=(JOB.c.created_at, JOB.c.reference))
        query = (
            sa.select(JOB)
            .outerjoin(held, held.c.payer == JOB.c.payer)
            .where(*here, JOB.c.state == "queued", JOB.c.not_before <= now)
            .order_by(place + sa.func.coalesce(held.c.jobs, 0), JOB.c.created_at, JOB.c.reference)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [_job(row) for row in (await connection.execute(query)).all()]

    async def put_off(self, lease: Lease, now: float, job: Job, error: str = "") -> float:
        """Let a queued job wait, each time twice as long as before; `error` says why. Returns until when. Raises LeaseLost."""
        until: float = now + min(_PUT_OFF_AT_MOST_S, _PUT_OFF_S * 2 ** min(job.put_off, 16))
        async with self._engine.begin() as connection:
            await self._fence(connection, lease, now)
            update = sa.update(JOB).where(JOB.c.reference == job.reference, JOB.c.state == "queued")
            why = {"error": storable(error)} if error else {}
            await connection.execute(update.values(not_before=until, put_off=job.put_off + 1, **why))
        return until

    async def unannounced(self, limit: int = 100) -> list[Job]:
        """Attestations' jobs whose present state was not published yet."""
        query = sa.select(JOB).where(JOB.c.state != JOB.c.announced, JOB.c.state != "queued", JOB.c.lane == ATTESTATIONS).limit(limit)
        async with self._engine.connect() as connection:
            return [_job(row) for row in (await connection.execute(query)).all()]

    async def announced(self, reference: Hash32, state: str) -> None:
        """Note that a state was published."""
        async with self._engine.begin() as connection:
            await connection.execute(sa.update(JOB).where(JOB.c.reference == reference).values(announced=state))

    async def set_state(self, lease: Lease, now: float, reference: Hash32, state: str, **changes: Any) -> None:
        """Move a job on, under the lease. A final state is never left. Raises LeaseLost."""
        async with self._engine.begin() as connection:
            await self._fence(connection, lease, now)
            update = sa.update(JOB).where(JOB.c.reference == reference, JOB.c.state.not_in(FINAL))
            await connection.execute(update.values(state=state, **_storable(changes)))

    async def end_queued(self, lease: Lease, now: float, reference: Hash32, error: str) -> None:
        """Refuse a job that has no account nonce: what it was to do is done, or cannot be any more. Raises LeaseLost."""
        async with self._engine.begin() as connection:
            await self._fence(connection, lease, now)
            update = sa.update(JOB).where(JOB.c.reference == reference, JOB.c.state == "queued")
            await connection.execute(update.values(state="refused", error=storable(error)))

    async def gas_of_payer(self, payer: str | None, since: float, lane: str = ATTESTATIONS) -> int:
        """Gas that a payer's jobs (None: everybody's) used since a time, or may still use: what is in flight counts with its limit."""
        gas = sa.case((JOB.c.state.in_(FINAL), JOB.c.gas_used), else_=JOB.c.gas_reserved)
        query = sa.select(sa.func.coalesce(sa.func.sum(gas), 0)).where(JOB.c.lane == lane, JOB.c.created_at >= since)
        if payer is not None:
            query = query.where(JOB.c.payer == payer)
        async with self._engine.connect() as connection:
            return int((await connection.execute(query)).scalar_one())

    # --- account nonces and attempts

    async def next_nonce(self, lease: Lease, chain_nonce: int) -> int:
        """The account nonce after all that were given out, or the chain's when that is higher."""
        query = sa.select(sa.func.max(_NONCE.c.nonce)).where(_NONCE.c.key == lease.key, _NONCE.c.chain_id == lease.chain_id)
        async with self._engine.connect() as connection:
            highest = (await connection.execute(query)).scalar_one_or_none()
        return chain_nonce if highest is None else max(chain_nonce, int(highest) + 1)

    async def bind(self, lease: Lease, now: float, reference: Hash32, attempt: Attempt, gas: int) -> None:
        """Bind a queued job to an account nonce, with its signed transaction: before anything is sent. Raises LeaseLost."""
        async with self._engine.begin() as connection:
            await self._fence(connection, lease, now)
            moved = await connection.execute(
                sa.update(JOB)
                .where(JOB.c.reference == reference, JOB.c.state == "queued")
                .values(state="sent", transaction_hash=attempt.hash, gas_reserved=gas)
            )
            if moved.rowcount != 1:
                raise LeaseLost
            await connection.execute(
                sa.insert(_NONCE).values(key=lease.key, chain_id=lease.chain_id, nonce=attempt.nonce, reference=reference, final=False)
            )
            await self._insert_attempt(connection, lease, attempt)

    async def add_attempt(self, lease: Lease, now: float, attempt: Attempt, gas: int) -> None:
        """Record a replacement or cancellation at an account nonce before it is sent. Raises LeaseLost."""
        async with self._engine.begin() as connection:
            await self._fence(connection, lease, now)
            await self._insert_attempt(connection, lease, attempt)
            more = sa.update(JOB).where(JOB.c.reference == attempt.reference, JOB.c.gas_reserved < gas)
            await connection.execute(more.values(gas_reserved=gas))

    @staticmethod
    async def _insert_attempt(connection: AsyncConnection, lease: Lease, attempt: Attempt) -> None:
        await connection.execute(
            sa.insert(_ATTEMPT).values(
                key=lease.key,
                chain_id=lease.chain_id,
                nonce=attempt.nonce,
                number=attempt.number,
                kind=attempt.kind,
                raw=attempt.raw,
                hash=attempt.hash,
                max_fee=str(attempt.max_fee),
                created_at=attempt.created_at,
                token=lease.token,
            )
        )

    async def open_attempts(self, lease: Lease) -> dict[int, list[Attempt]]:
        """For each account nonce that is not final, its attempts in order."""
        return await self._attempts(self._attempts_query(lease, final=False))

    async def final_attempts(self, lease: Lease, from_nonce: int) -> dict[int, list[Attempt]]:
        """As `open_attempts`, for final account nonces at or above `from_nonce`."""
        query = self._attempts_query(lease, final=True).where(_NONCE.c.nonce >= from_nonce)
        return await self._attempts(query)

    async def sent_hashes(self, reference: Hash32) -> list[Hash32]:
        """Every transaction that was signed to execute a job, newest first."""
        same = sa.and_(_NONCE.c.key == _ATTEMPT.c.key, _NONCE.c.chain_id == _ATTEMPT.c.chain_id, _NONCE.c.nonce == _ATTEMPT.c.nonce)
        query = sa.select(_ATTEMPT.c.hash).join(_NONCE, same).where(_NONCE.c.reference == reference, _ATTEMPT.c.kind == "send")
        query = query.order_by(_ATTEMPT.c.created_at.desc(), _ATTEMPT.c.nonce.desc(), _ATTEMPT.c.number.desc())
        async with self._engine.connect() as connection:
            return [Hash32(row.hash) for row in (await connection.execute(query)).all()]

    @staticmethod
    def _attempts_query(lease: Lease, *, final: bool) -> Any:
        same = sa.and_(_NONCE.c.key == _ATTEMPT.c.key, _NONCE.c.chain_id == _ATTEMPT.c.chain_id, _NONCE.c.nonce == _ATTEMPT.c.nonce)
        return (
            sa.select(_ATTEMPT, _NONCE.c.reference)
            .join(_NONCE, same)
            .where(_NONCE.c.key == lease.key, _NONCE.c.chain_id == lease.chain_id, _NONCE.c.final.is_(final))
            .order_by(_ATTEMPT.c.nonce, _ATTEMPT.c.number)
        )

    async def _attempts(self, query: Any) -> dict[int, list[Attempt]]:
        out: dict[int, list[Attempt]] = {}
        async with self._engine.connect() as connection:
            for row in (await connection.execute(query)).all():
                attempt = Attempt(
                    row.nonce, row.number, row.kind, row.raw, Hash32(row.hash), int(row.max_fee), row.created_at, Hash32(row.reference)
                )
                out.setdefault(row.nonce, []).append(attempt)
        return out

    async def close_nonce(
        self, lease: Lease, now: float, nonce: int, reference: Hash32, state: str, *, requeue: bool = False, **changes: Any
    ) -> None:
        """An account nonce is final: settle its job, or put the job back when its cancellation is what was mined. Raises LeaseLost."""
        async with self._engine.begin() as connection:
            await self._fence(connection, lease, now)
            await connection.execute(
                sa.update(_NONCE)
                .where(_NONCE.c.key == lease.key, _NONCE.c.chain_id == lease.chain_id, _NONCE.c.nonce == nonce)
                .values(final=True)
            )
            update = sa.update(JOB).where(JOB.c.reference == reference, JOB.c.state.not_in(FINAL))
            await connection.execute(update.values(state="queued" if requeue else state, **_storable(changes)))


def _storable(changes: dict[str, Any]) -> dict[str, Any]:
    return changes | {"error": storable(changes["error"])} if "error" in changes else changes


def _job(row: Any) -> Job:
    return Job(
        Hash32(row.reference),
        row.chain_id,
        Address(row.target),
        row.calldata,
        int(row.value),
        row.payer,
        row.valid_until,
        row.state,
        row.announced,
        row.error,
        row.transaction_hash or b"",
        row.block_number,
        row.gas_used,
        row.created_at,
        row.trace,
        row.gas_reserved,
        row.not_before,
        row.put_off,
        row.lane,
    )


async def insert_job(connection: AsyncConnection, job: Job) -> bool:
    """Record a job within a transaction; False when its reference is known."""
    values = {name: getattr(job, name) for name in Job.__slots__}
    values |= {"value": str(job.value), "error": storable(job.error)}
    result = await connection.execute(insert_new(JOB, connection.dialect).values(**values))
    return bool(result.rowcount == 1)


def new_job(reference: Hash32, lane: str, chain_id: int, call: tuple[Address, bytes], payer: str, valid_until: int, now: float) -> Job:
    """A job that waits for its account nonce."""
    trace = json.dumps(capture())
    return Job(reference, chain_id, *call, 0, payer, valid_until, "queued", "queued", "", b"", 0, 0, now, trace, lane=lane)


def attempts_of(items: Sequence[Attempt], kind: str) -> list[Attempt]:
    """The attempts of one kind."""
    return [item for item in items if item.kind == kind]
