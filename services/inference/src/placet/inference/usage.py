"""How much each version was used, by day and asset: counts, tokens, income, time. Never content."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core.db import DATABASE_ERRORS, insert_new
from placet.core.models import Manifest
from placet.core.receipts import Price
from placet.core.types import hex0x
from placet.inference.surfaces import Answer

log = logging.getLogger(__name__)

FLUSH_S = 2.0
_DAY_S = 86_400
_METADATA = sa.MetaData()
_USAGE = sa.Table(
    "usage",
    _METADATA,
    sa.Column("publisher", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True),
    sa.Column("asset", sa.String(80), primary_key=True),
    sa.Column("requests", sa.BigInteger),
    sa.Column("failures", sa.BigInteger),
    sa.Column("prompt_tokens", sa.BigInteger),
    sa.Column("completion_tokens", sa.BigInteger),
    sa.Column("rows", sa.BigInteger),
    sa.Column("revenue", sa.String(80)),
    sa.Column("computed_ms", sa.BigInteger),
)


@dataclass(slots=True)
class Counts:
    """What is added up. `revenue` in atomic units."""

    requests: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    rows: int = 0
    revenue: int = 0
    computed_ms: int = 0

    def add(self, other: Counts) -> None:
        """Add another's counts."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(frozen=True, slots=True)
class Key:
    """Whose counts. `day` counts from 1970-01-01, UTC; `asset` is empty for what nobody paid."""

    publisher: str
    name: str
    version: int
    day: int
    asset: str


class UsageLog:
    """Counts of this replica, written down every few seconds; what was not written when it is killed is lost, receipts are not."""

    def __init__(self, engine: AsyncEngine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._waiting: dict[Key, Counts] = {}

    def note(self, manifest: Manifest, answer: Answer | None, price: Price | None) -> None:
        """Count an answer, or a request that failed (`answer` None)."""
        asset = "" if price is None else f"{price.network}/{hex0x(price.asset)}"
        key = Key(manifest.publisher, manifest.name, manifest.version, int(self._clock()) // _DAY_S, asset)
        counts = Counts(failures=1)
        if answer is not None:
            counts = Counts(
                requests=1,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                rows=answer.rows,
                revenue=0 if price is None else price.amount,
                computed_ms=round(1000 * answer.computed_s),
            )
        self._waiting.setdefault(key, Counts()).add(counts)

    async def run(self) -> None:
        """Write down until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except DATABASE_ERRORS as error:
                log.warning("usage waits: %s", error)

    async def flush(self) -> None:
        """Write down what was counted."""
        taken, self._waiting = self._waiting, {}
        while taken:
            key, counts = next(iter(taken.items()))
            try:
                await self._add(key, counts)
            except BaseException:
                for left, more in taken.items():
                    self._waiting.setdefault(left, Counts()).add(more)
                raise
            del taken[key]

    async def _add(self, key: Key, counts: Counts) -> None:
        where = [_USAGE.c[item.name] == getattr(key, item.name) for item in fields(key)]
        first = {item.name: getattr(key, item.name) for item in fields(key)} | {item.name: 0 for item in fields(counts)} | {"revenue": "0"}
        async with self._engine.begin() as connection:
            await connection.execute(insert_new(_USAGE, connection.dialect), first)
            row = (await connection.execute(sa.select(_USAGE).where(*where).with_for_update())).one()
            values: dict[str, Any] = {item.name: int(getattr(row, item.name)) + getattr(counts, item.name) for item in fields(counts)}
            await connection.execute(sa.update(_USAGE).where(*where).values({**values, "revenue": str(values["revenue"])}))

    async def of(self, publisher: str, name: str) -> list[tuple[Key, Counts]]:
        """A model's counts, newest day first, 1,000 rows at most."""
        query = sa.select(_USAGE).where(_USAGE.c.publisher == publisher, _USAGE.c.name == name)
        query = query.order_by(_USAGE.c.day.desc(), _USAGE.c.version.desc()).limit(1000)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [
            (
                Key(row.publisher, row.name, row.version, row.day, row.asset),
                Counts(**{item.name: int(getattr(row, item.name)) for item in fields(Counts)}),
            )
            for row in rows
        ]
