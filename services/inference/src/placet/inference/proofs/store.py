"""The tables of proofs: setups by model, and proofs by the receipt they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core.db import DATABASE_ERRORS, insert_new
from placet.core.errors import NotFound, RateLimited, Unavailable
from placet.core.types import Address, Hash32
from placet.verify.zk.statement import OPERATOR_DEV, Setup

_METADATA = sa.MetaData()
_SETUP = sa.Table(
    "zk_setup",
    _METADATA,
    sa.Column("vk_sha256", sa.LargeBinary(32), primary_key=True),
    sa.Column("model_sha256", sa.LargeBinary(32)),
    sa.Column("network_sha256", sa.LargeBinary(32)),
    sa.Column("pk_sha256", sa.LargeBinary(32)),
    sa.Column("made_by", sa.String(16)),
    sa.Column("address", sa.LargeBinary(20)),
    sa.Column("text", sa.LargeBinary),
    sa.Column("signature", sa.LargeBinary),
    sa.Column("registered_at", sa.BigInteger),
)
_PROOF = sa.Table(
    "proof",
    _METADATA,
    sa.Column("id", sa.LargeBinary(32), primary_key=True),
    sa.Column("tenant", sa.String(32)),
    sa.Column("model_sha256", sa.LargeBinary(32)),
    sa.Column("vk_sha256", sa.LargeBinary(32)),
    sa.Column("statement", sa.LargeBinary),
    sa.Column("state", sa.String(8)),
    sa.Column("attempts", sa.Integer),
    sa.Column("claimed_until", sa.BigInteger),
    sa.Column("document_sha256", sa.LargeBinary(32)),
    sa.Column("error", sa.Text),
    sa.Column("created_at", sa.BigInteger),
)


@dataclass(frozen=True, slots=True)
class SetupRow:
    """Keys for a model's network, and who made them."""

    model_sha256: Hash32
    network_sha256: Hash32
    vk_sha256: Hash32
    pk_sha256: Hash32
    setup: Setup


@dataclass(frozen=True, slots=True)
class ProofRow:
    """A proof that is wanted. `state`: queued, running, done or failed."""

    id: Hash32
    tenant: str
    model_sha256: Hash32
    vk_sha256: Hash32
    statement: bytes
    state: str
    attempts: int = 0
    document_sha256: Hash32 | None = None
    error: str | None = None


class ProofStore:
    """Shared by the replicas of one hub."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add_setup(self, row: SetupRow, now: int) -> None:
        """Remember keys; the first record of a verifying key stands."""
        values = {
            "vk_sha256": row.vk_sha256,
            "model_sha256": row.model_sha256,
            "network_sha256": row.network_sha256,
            "pk_sha256": row.pk_sha256,
            "made_by": row.setup.by,
            "address": row.setup.address,
            "text": row.setup.text,
            "signature": row.setup.signature,
            "registered_at": now,
        }
        async with self._engine.begin() as connection:
            await connection.execute(insert_new(_SETUP, connection.dialect), [values])

    async def setup_of(self, model_sha256: Hash32) -> SetupRow | None:
        """The keys to prove with: signed ones before those of development, newer before older."""
        rank = sa.case((_SETUP.c.made_by == OPERATOR_DEV, 1), else_=0)
        query = sa.select(_SETUP).where(_SETUP.c.model_sha256 == model_sha256)
        return await self._setup(query.order_by(rank, _SETUP.c.registered_at.desc(), _SETUP.c.vk_sha256).limit(1))

    async def setup_by_key(self, vk_sha256: Hash32) -> SetupRow | None:
        """Keys by the verifying one."""
        return await self._setup(sa.select(_SETUP).where(_SETUP.c.vk_sha256 == vk_sha256))

    async def _setup(self, query: Any) -> SetupRow | None:
        try:
            async with self._engine.connect() as connection:
                row = (await connection.execute(query)).first()
        except DATABASE_ERRORS:
            raise Unavailable("the database does not answer") from None
        if row is None:
            return None
        address = None if row.address is None else Address(row.address)
        setup = Setup(row.made_by, address, row.text, row.signature)
        return SetupRow(Hash32(row.model_sha256), Hash32(row.network_sha256), Hash32(row.vk_sha256), Hash32(row.pk_sha256), setup)

    async def add(self, row: ProofRow, now: int, *, most: int, most_of_tenant: int) -> None:
        """Queue a proof. The limits are on those that wait.

        Raises:
            RateLimited: too many wait. Unavailable.
        """
        waiting = sa.select(sa.func.count()).select_from(_PROOF).where(_PROOF.c.state.in_(("queued", "running")))
        try:
            async with self._engine.begin() as connection:
                if int((await connection.execute(waiting)).scalar_one()) >= most:
                    raise RateLimited("too many proofs are waited for here; try again later", retryAfter=30)
                if int((await connection.execute(waiting.where(_PROOF.c.tenant == row.tenant))).scalar_one()) >= most_of_tenant:
                    raise RateLimited(f"{most_of_tenant} proofs of yours are waited for; fetch those first", retryAfter=30)
                values = {
                    "id": row.id,
                    "tenant": row.tenant,
                    "model_sha256": row.model_sha256,
                    "vk_sha256": row.vk_sha256,
                    "statement": row.statement,
                    "state": "queued",
                    "attempts": 0,
                    "claimed_until": 0,
                    "created_at": now,
                }
                await connection.execute(insert_new(_PROOF, connection.dialect), [values])
        except DATABASE_ERRORS:
            raise Unavailable("the database does not answer") from None

    async def claim(self, now: int, until: int) -> ProofRow | None:
        """The oldest proof that nobody works on, or whose worker has not been heard of; it is this caller's until a time."""
        is_free = sa.or_(_PROOF.c.state == "queued", sa.and_(_PROOF.c.state == "running", _PROOF.c.claimed_until < now))
        async with self._engine.begin() as connection:
            found = (await connection.execute(sa.select(_PROOF).where(is_free).order_by(_PROOF.c.created_at).limit(1))).first()
            if found is None:
                return None
            update = sa.update(_PROOF).where(_PROOF.c.id == found.id, _PROOF.c.attempts == found.attempts, is_free)
            values = {"state": "running", "claimed_until": until, "attempts": found.attempts + 1}
            if (await connection.execute(update.values(**values))).rowcount != 1:
                return None  # another replica was faster
        return _row(found, attempts=found.attempts + 1)

    async def end(self, row: ProofRow, *, document_sha256: Hash32 | None, error: str | None, again: bool = False) -> None:
        """Note how it ended, if this attempt is still the last one. `again`: it is queued anew."""
        state = "done" if document_sha256 is not None else "queued" if again else "failed"
        update = sa.update(_PROOF).where(_PROOF.c.id == row.id, _PROOF.c.attempts == row.attempts, _PROOF.c.state == "running")
        async with self._engine.begin() as connection:
            await connection.execute(update.values(state=state, document_sha256=document_sha256, error=error, claimed_until=0))

    async def get(self, proof_id: Hash32, tenant: str) -> ProofRow:
        """A tenant's proof. Raises NotFound, Unavailable."""
        try:
            async with self._engine.connect() as connection:
                row = (await connection.execute(sa.select(_PROOF).where(_PROOF.c.id == proof_id, _PROOF.c.tenant == tenant))).first()
        except DATABASE_ERRORS:
            raise Unavailable("the database does not answer") from None
        if row is None:
            raise NotFound("no such proof", field="id")
        return _row(row)

    async def prune(self, before: int) -> None:
        """Forget proofs that ended and were asked for before a time (unix seconds). Their documents stay in the object store."""
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(_PROOF).where(_PROOF.c.created_at < before, _PROOF.c.state.in_(("done", "failed"))))


def _row(row: Any, attempts: int | None = None) -> ProofRow:
    return ProofRow(
        Hash32(row.id),
        row.tenant,
        Hash32(row.model_sha256),
        Hash32(row.vk_sha256),
        row.statement,
        row.state,
        row.attempts if attempts is None else attempts,
        None if row.document_sha256 is None else Hash32(row.document_sha256),
        row.error,
    )
