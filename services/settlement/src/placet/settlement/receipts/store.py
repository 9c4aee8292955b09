"""Receipts' digests and the roots they stand under, in settlement's database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core.db import insert_new
from placet.core.errors import Conflict
from placet.core.types import Address, Hash32
from placet.settlement.store import Job, insert_job

_METADATA = sa.MetaData()
_ROOT = sa.Table(
    "receipt_root",
    _METADATA,
    sa.Column("root", sa.LargeBinary(32), primary_key=True),
    sa.Column("reference", sa.LargeBinary(32)),
    sa.Column("chain_id", sa.BigInteger),
    sa.Column("ledger", sa.LargeBinary(20)),
    sa.Column("poster", sa.LargeBinary(20)),
    sa.Column("count", sa.BigInteger),
    sa.Column("root_index", sa.BigInteger),
    sa.Column("created_at", sa.Float),
)
_LEAF = sa.Table(
    "receipt_leaf",
    _METADATA,
    sa.Column("receipt_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32)),
    sa.Column("finished_at", sa.BigInteger),
    sa.Column("added_at", sa.Float),
    sa.Column("root", sa.LargeBinary(32)),
    sa.Column("position", sa.BigInteger),
)


@dataclass(frozen=True, slots=True)
class LeafEntry:
    """A receipt. `finished_at` in unix milliseconds."""

    receipt_id: Hash32
    digest: Hash32
    finished_at: int


@dataclass(frozen=True, slots=True)
class RootEntry:
    """A root. `root_index`: its number in the ledger, None until it is final there."""

    root: Hash32
    reference: Hash32
    chain_id: int
    ledger: Address
    poster: Address
    count: int
    created_at: float
    root_index: int | None = None


class ReceiptStore:
    """All access to these tables."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, leaves: Iterable[LeafEntry], now: float) -> None:
        """Record receipts. The first of an id stands."""
        rows = [
            {"receipt_id": leaf.receipt_id, "digest": leaf.digest, "finished_at": leaf.finished_at, "added_at": now, "root": None}
            for leaf in leaves
        ]
        if rows:
            async with self._engine.begin() as connection:
                await connection.execute(insert_new(_LEAF, connection.dialect), rows)

    async def waiting(self, limit: int) -> tuple[list[LeafEntry], float]:
        """Receipts that stand under no root, those that wait longest first, and since when the first waits (0: none)."""
        query = sa.select(_LEAF).where(_LEAF.c.root.is_(None)).order_by(_LEAF.c.added_at, _LEAF.c.receipt_id).limit(limit)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [_leaf(row) for row in rows], rows[0].added_at if rows else 0.0

    async def put_under(self, root: RootEntry, leaves: Sequence[LeafEntry], job: Job) -> None:
        """Record a root with its leaves in their order and the job that posts it: all or nothing.

        Raises Conflict: the root or a leaf's place is known by now, for another replica was faster.
        """
        async with self._engine.begin() as connection:
            values = {name: getattr(root, name) for name in RootEntry.__slots__}
            result = await connection.execute(insert_new(_ROOT, connection.dialect).values(**values))
            if result.rowcount != 1 or not await insert_job(connection, job):
                raise Conflict("the root is known")
            for position, leaf in enumerate(leaves):
                update = sa.update(_LEAF).where(_LEAF.c.receipt_id == leaf.receipt_id, _LEAF.c.root.is_(None))
                moved = await connection.execute(update.values(root=root.root, position=position))
                if moved.rowcount != 1:
                    raise Conflict("a receipt stands under another root")

    async def unposted(self, chain_id: int) -> list[RootEntry]:
        """Roots that are not known to be on the chain for good, oldest first."""
        query = sa.select(_ROOT).where(_ROOT.c.chain_id == chain_id, _ROOT.c.root_index.is_(None)).order_by(_ROOT.c.created_at).limit(64)
        async with self._engine.connect() as connection:
            return [_root(row) for row in (await connection.execute(query)).all()]

    async def posted(self, root: Hash32, root_index: int) -> None:
        """Note a root's number."""
        async with self._engine.begin() as connection:
            await connection.execute(sa.update(_ROOT).where(_ROOT.c.root == root).values(root_index=root_index))

    async def root_of(self, receipt_id: Hash32) -> tuple[RootEntry, list[LeafEntry], int] | None:
        """The root that a receipt stands under, all its leaves in order, and the receipt's position."""
        async with self._engine.connect() as connection:
            row = (
                await connection.execute(
                    sa.select(_ROOT, _LEAF.c.position).join(_LEAF, _LEAF.c.root == _ROOT.c.root).where(_LEAF.c.receipt_id == receipt_id)
                )
            ).first()
            if row is None:
                return None
            leaves = (await connection.execute(sa.select(_LEAF).where(_LEAF.c.root == row.root).order_by(_LEAF.c.position))).all()
        return _root(row), [_leaf(leaf) for leaf in leaves], int(row.position)


def _leaf(row: Any) -> LeafEntry:
    return LeafEntry(Hash32(row.receipt_id), Hash32(row.digest), row.finished_at)


def _root(row: Any) -> RootEntry:
    return RootEntry(
        Hash32(row.root),
        Hash32(row.reference),
        row.chain_id,
        Address(row.ledger),
        Address(row.poster),
        row.count,
        row.created_at,
        row.root_index,
    )
