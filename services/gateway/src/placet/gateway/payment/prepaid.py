"""Prepaid keys: an API key with money behind it, for programs that can set a base URL and a key and nothing else.

A key is bought with one x402 payment, and filled again with others: each is credited once, when its transfer is final, whatever was
restarted meanwhile. A request holds the most it may cost, then pays what it used; what failed costs nothing. A key that is closed has what
is left refunded by the ids of the payments that filled it, once each. Every change of a key is one transaction under the lock of its row.

The secret of a key is its buyer's: only its hash is sent. A payment's signature is public as soon as it is on chain, and whoever repeats
the purchase gets to know nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from placet.core.db import insert_new
from placet.core.errors import Conflict, Forbidden, NotFound, PaymentRefused
from placet.core.payment.offers import chain_id_of
from placet.core.types import Address, Hash32, address_from, hex0x
from placet.gateway.store import insert_key, new_row

SURFACE = "keys"
"""Of payments that fill keys."""
MAX_MODELS = 64
PERIODS = {"day": 86_400, "week": 7 * 86_400, "month": 30 * 86_400}
_REQUESTS_PER_S = 50

_METADATA = sa.MetaData()
_KEY = sa.Table(
    "prepaid_key",
    _METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("payer", sa.LargeBinary(20)),
    sa.Column("network", sa.String(64)),
    sa.Column("asset", sa.LargeBinary(20)),
    sa.Column("credited", sa.String(78)),
    sa.Column("spent", sa.String(78)),
    sa.Column("held", sa.String(78)),
    sa.Column("spending_limit", sa.String(78)),
    sa.Column("period_s", sa.BigInteger),
    sa.Column("period_began", sa.BigInteger),
    sa.Column("period_used", sa.String(78)),
    sa.Column("models", sa.Text),
    sa.Column("closed_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger),
    sa.Column("updated_at", sa.BigInteger),
)
_TOPUP = sa.Table(
    "prepaid_topup",
    _METADATA,
    sa.Column("payment_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("key_id", sa.String(32)),
    sa.Column("amount", sa.String(78)),
    sa.Column("wanted", sa.Text),
    sa.Column("credited_at", sa.BigInteger),
    sa.Column("refund", sa.String(78)),
    sa.Column("refunded_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger),
)
_USE = sa.Table(
    "prepaid_use",
    _METADATA,
    sa.Column("id", sa.LargeBinary(32), primary_key=True),
    sa.Column("key_id", sa.String(32)),
    sa.Column("pay_to", sa.LargeBinary(20)),
    sa.Column("maximum", sa.String(78)),
    sa.Column("charged", sa.String(78)),
    sa.Column("period_began", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger),
    sa.Column("ended_at", sa.BigInteger),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key to be bought. `limit` atomic units a period (in seconds); without a period: in all. No models: all."""

    secret_sha256: bytes
    name: str
    payer: Address
    network: str
    asset: Address
    limit: int | None = None
    period_s: int | None = None
    models: tuple[str, ...] = ()

    def text(self) -> str:
        """For the database."""
        return orjson.dumps(
            {
                "secret": self.secret_sha256.hex(),
                "name": self.name,
                "payer": hex0x(self.payer),
                "network": self.network,
                "asset": hex0x(self.asset),
                "limit": None if self.limit is None else str(self.limit),
                "periodS": self.period_s,
                "models": self.models,
            }
        ).decode()

    @classmethod
    def of(cls, text: str) -> Wanted:
        """From the database."""
        value = orjson.loads(text)
        return cls(
            bytes.fromhex(value["secret"]),
            value["name"],
            address_from(value["payer"], field="payer"),
            value["network"],
            address_from(value["asset"], field="asset"),
            None if value["limit"] is None else int(value["limit"]),
            value["periodS"],
            tuple(value["models"]),
        )


@dataclass(frozen=True, slots=True)
class Account:
    """A key's money, in atomic units. `available` is what may still be held."""

    key_id: str
    payer: Address
    network: str
    asset: Address
    credited: int
    spent: int
    held: int
    limit: int | None
    period_s: int | None
    period_began: int
    period_used: int
    models: tuple[str, ...]
    closed_at: int | None

    @property
    def available(self) -> int:
        """Neither spent nor held."""
        return self.credited - self.spent - self.held

    def at(self, now: int) -> Account:
        """The same, with the limit's period that `now` is in."""
        if self.period_s is None or now < self.period_began + self.period_s:
            return self
        began = now - (now - self.period_began) % self.period_s
        return replace(self, period_began=began, period_used=0)

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "id": self.key_id,
            "payer": hex0x(self.payer),
            "network": self.network,
            "asset": hex0x(self.asset),
            "credited": str(self.credited),
            "spent": str(self.spent),
            "held": str(self.held),
            "available": str(self.available),
            "limit": None if self.limit is None else str(self.limit),
            "period": next((name for name, seconds in PERIODS.items() if seconds == self.period_s), None),
            "periodUsed": str(self.period_used),
            "models": list(self.models),
            "closedAt": self.closed_at,
        }


@dataclass(frozen=True, slots=True)
class Use:
    """A request of a prepaid key: `maximum` is held for it."""

    id: Hash32
    account: Account
    maximum: int
    created_at: int


@dataclass(frozen=True, slots=True)
class OpenUse:
    """What a request holds, and has not ended."""

    id: Hash32
    payer: Address
    maximum: int
    created_at: int


@dataclass(frozen=True, slots=True)
class Refund:
    """What is left of a payment after its key was closed."""

    payment_id: Hash32
    payer: Address
    chain_id: int
    asset: Address
    amount: int


def key_id_of(payment_id: Hash32) -> str:
    """The id of the key that a payment buys."""
    return hashlib.sha256(b"placet/prepaid-key/v1\0" + payment_id).hexdigest()[:16]


class Prepaid:
    """All access to prepaid keys. Times are unix seconds."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    # --- filling

    async def order(self, payment_id: Hash32, key_id: str, amount: int, wanted: Wanted, *, now: int) -> None:
        """Before a payment is settled: what it is for. What it was for before, when it was given up then, is forgotten."""
        row = {"payment_id": payment_id, "key_id": key_id, "amount": str(amount), "wanted": wanted.text(), "created_at": now}
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(_TOPUP).where(_TOPUP.c.payment_id == payment_id, _TOPUP.c.credited_at.is_(None)))
            await connection.execute(insert_new(_TOPUP, connection.dialect), [row])

    async def credit(self, payment_id: Hash32, *, now: int) -> Account:
        """The payment's transfer is final: make the key, or fill it. Once, however often it is asked for.

        Raises:
            NotFound: nothing was ordered with this payment.
        """
        async with self._engine.begin() as connection:
            mine = sa.update(_TOPUP).where(_TOPUP.c.payment_id == payment_id, _TOPUP.c.credited_at.is_(None))
            first = (await connection.execute(mine.values(credited_at=now))).rowcount == 1
            topup = (await connection.execute(sa.select(_TOPUP).where(_TOPUP.c.payment_id == payment_id))).first()
            if topup is None:
                raise NotFound("no key was ordered with this payment", field="paymentId")
            if first:
                await self._fill(connection, topup, now)
            return await self._read(connection, topup.key_id)

    async def _fill(self, connection: AsyncConnection, topup: Any, now: int) -> None:
        wanted = Wanted.of(topup.wanted)
        if topup.key_id == key_id_of(Hash32(topup.payment_id)):
            row = new_row(topup.key_id, wanted.secret_sha256, wanted.name, requests_per_s=_REQUESTS_PER_S, prepaid=True, now=now)
            await insert_key(connection, row)
            key = {
                "id": topup.key_id,
                "payer": wanted.payer,
                "network": wanted.network,
                "asset": wanted.asset,
                "credited": topup.amount,
                "spent": "0",
                "held": "0",
                "spending_limit": None if wanted.limit is None else str(wanted.limit),
                "period_s": wanted.period_s,
                "period_began": now,
                "period_used": "0",
                "models": orjson.dumps(wanted.models).decode(),
                "created_at": now,
                "updated_at": now,
            }
            await connection.execute(sa.insert(_KEY).values(**key))
            return
        account = await self._lock(connection, topup.key_id, now)
        if account.closed_at is not None:  # closed meanwhile: what came too late goes back as it is
            await connection.execute(sa.update(_TOPUP).where(_TOPUP.c.payment_id == topup.payment_id).values(refund=topup.amount))
            return
        await self._write(connection, account, credited=account.credited + int(topup.amount))

    # --- using

    async def account(self, key_id: str) -> Account:
        """A key's money. Raises NotFound."""
        async with self._engine.connect() as connection:
            return await self._read(connection, key_id)

    async def hold(self, key_id: str, use_id: Hash32, maximum: int, pay_to: Address, *, now: int) -> Use:
        """Hold the most that a request may cost.

        Raises:
            PaymentRefused: `key_closed`, `key_credit`, `key_limit`.
        """
        async with self._engine.begin() as connection:
            account = (await self._lock(connection, key_id, now)).at(now)
            if account.closed_at is not None:
                raise PaymentRefused("this key was closed; buy another", check="key_closed")
            if maximum > account.available:
                text = (
                    f"the request may cost {maximum}, and {account.available} are left on this key; fill it at /api/v1/keys/{key_id}/credit"
                )
                raise PaymentRefused(text, check="key_credit")
            if account.limit is not None and account.period_used + maximum > account.limit:
                left = max(0, account.limit - account.period_used)
                raise PaymentRefused(f"the request may cost {maximum}, and {left} are left of this key's limit", check="key_limit")
            used = account.period_used + maximum
            await self._write(connection, account, held=account.held + maximum, period_used=used, period_began=account.period_began)
            row = {"id": use_id, "key_id": key_id, "pay_to": pay_to, "maximum": str(maximum)}
            await connection.execute(sa.insert(_USE).values(**row, period_began=account.period_began, created_at=now))
            return Use(use_id, account, maximum, now)

    async def end(self, use_id: Hash32, charged: int, *, now: int) -> Account:
        """A request ended: it pays `charged` of what was held for it, nothing when it failed. The first end stands.

        Raises:
            ValueError: more than was held.
        """
        async with self._engine.begin() as connection:
            mine = sa.update(_USE).where(_USE.c.id == use_id, _USE.c.ended_at.is_(None)).values(charged=str(charged), ended_at=now)
            first = (await connection.execute(mine)).rowcount == 1
            use = (await connection.execute(sa.select(_USE).where(_USE.c.id == use_id))).one()
            if not first:
                return await self._read(connection, use.key_id)
            maximum = int(use.maximum)
            if not 0 <= charged <= maximum:
                raise ValueError(f"{hex0x(use_id)}: {charged} of {maximum} held")
            account = await self._lock(connection, use.key_id, now)
            used = account.period_used
            if use.period_began == account.period_began:
                used -= maximum - charged
            await self._write(connection, account, held=account.held - maximum, spent=account.spent + charged, period_used=used)
            return await self._read(connection, use.key_id)

    async def open_uses(self, *, before: int, limit: int = 1000) -> list[OpenUse]:
        """Requests that began before a time and have not ended: what served them is gone."""
        query = (
            sa.select(_USE, _KEY.c.payer)
            .join(_KEY, _KEY.c.id == _USE.c.key_id)
            .where(_USE.c.ended_at.is_(None), _USE.c.created_at < before)
            .order_by(_USE.c.created_at)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [OpenUse(Hash32(row.id), Address(row.payer), int(row.maximum), row.created_at) for row in rows]

    # --- closing

    async def close(self, key_id: str, *, now: int, pending_since: int) -> list[Refund]:
        """Close a key. What is left of it is refunded by payment, the newest first. Returns what is refunded; repeating it changes nothing.

        Raises:
            Conflict: requests of it are under way, or a payment for it (begun after `pending_since`) is.
        """
        async with self._engine.begin() as connection:
            account = await self._lock(connection, key_id, now)
            rows = (await connection.execute(sa.select(_TOPUP).where(_TOPUP.c.key_id == key_id).order_by(_TOPUP.c.created_at.desc()))).all()
            if account.closed_at is None:
                if account.held:
                    raise Conflict("requests of this key are under way; close it when they have ended", field="id")
                if any(row.credited_at is None and row.created_at > pending_since for row in rows):
                    raise Conflict("a payment for this key is under way; close it when that has ended", field="id")
                left = account.available
                for row in rows:
                    refund = min(left, int(row.amount)) if row.credited_at is not None else 0
                    left -= refund
                    if refund:
                        to = sa.update(_TOPUP).where(_TOPUP.c.payment_id == row.payment_id)
                        await connection.execute(to.values(refund=str(refund)))
                closing = sa.update(_KEY).where(_KEY.c.id == key_id)
                await connection.execute(closing.values(closed_at=now))
            refunded = sa.select(_TOPUP).where(_TOPUP.c.key_id == key_id, _TOPUP.c.refund.is_not(None))
            return [_refund(row, account) for row in (await connection.execute(refunded)).all()]

    async def refunds(self, *, limit: int = 100) -> list[Refund]:
        """What must still be given to settlement."""
        query = (
            sa.select(_TOPUP, _KEY.c.payer, _KEY.c.network, _KEY.c.asset)
            .join(_KEY, _KEY.c.id == _TOPUP.c.key_id)
            .where(_TOPUP.c.refund.is_not(None), _TOPUP.c.refunded_at.is_(None))
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [_refund(row, row) for row in (await connection.execute(query)).all()]

    async def refunded(self, payment_id: Hash32, *, now: int) -> None:
        """Settlement has taken a refund."""
        async with self._engine.begin() as connection:
            mine = sa.update(_TOPUP).where(_TOPUP.c.payment_id == payment_id, _TOPUP.c.refunded_at.is_(None))
            await connection.execute(mine.values(refunded_at=now))

    async def owed(self) -> list[tuple[str, Address, Address, int]]:
        """What the gateway's owner has taken for publishers: (network, asset, payTo, atomic units), all that was ever charged."""
        query = sa.select(_KEY.c.network, _KEY.c.asset, _USE.c.pay_to, _USE.c.charged).join(_KEY, _KEY.c.id == _USE.c.key_id)
        totals: dict[tuple[str, Address, Address], int] = {}
        async with self._engine.connect() as connection:
            async for row in await connection.stream(query.where(_USE.c.charged.is_not(None))):
                place = row.network, Address(row.asset), Address(row.pay_to)
                totals[place] = totals.get(place, 0) + int(row.charged)
        return [(*place, amount) for place, amount in sorted(totals.items())]

    # --- rows

    async def _lock(self, connection: AsyncConnection, key_id: str, now: int) -> Account:
        """The row is written before it is read, so that it is nobody else's until this transaction ends."""
        await connection.execute(sa.update(_KEY).where(_KEY.c.id == key_id).values(updated_at=now))
        return await self._read(connection, key_id)

    @staticmethod
    async def _read(connection: AsyncConnection, key_id: str) -> Account:
        row = (await connection.execute(sa.select(_KEY).where(_KEY.c.id == key_id))).first()
        if row is None:
            raise NotFound("no such prepaid key", field="id")
        return Account(
            row.id,
            Address(row.payer),
            row.network,
            Address(row.asset),
            int(row.credited),
            int(row.spent),
            int(row.held),
            None if row.spending_limit is None else int(row.spending_limit),
            row.period_s,
            row.period_began,
            int(row.period_used),
            tuple(orjson.loads(row.models)),
            row.closed_at,
        )

    @staticmethod
    async def _write(connection: AsyncConnection, account: Account, **values: int) -> None:
        texts = {name: value if name == "period_began" else str(value) for name, value in values.items()}
        await connection.execute(sa.update(_KEY).where(_KEY.c.id == account.key_id).values(**texts))


def check_model(account: Account, model: str) -> None:
    """Raises Forbidden: the key is not for this model."""
    if account.models and model not in account.models:
        raise Forbidden(f"this key is for {', '.join(account.models[:5])} only", field="model")


def _refund(row: Any, of: Any) -> Refund:
    return Refund(Hash32(row.payment_id), Address(of.payer), chain_id_of(of.network), Address(of.asset), int(row.refund))
