"""Payments and refunds in settlement's database. A payment and the job that executes it are one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core.db import insert_new
from placet.core.types import Address, Hash32
from placet.settlement.store import FINAL, JOB, Job, insert_job

_METADATA = sa.MetaData()
_PAYMENT = sa.Table(
    "payment",
    _METADATA,
    sa.Column("payment_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("reference", sa.LargeBinary(32)),
    sa.Column("chain_id", sa.BigInteger),
    sa.Column("contract", sa.LargeBinary(20)),
    sa.Column("asset", sa.LargeBinary(20)),
    sa.Column("payer", sa.LargeBinary(20)),
    sa.Column("pay_to", sa.LargeBinary(20)),
    sa.Column("nonce", sa.LargeBinary(32)),
    sa.Column("signature", sa.LargeBinary),
    sa.Column("charged", sa.String(78)),
    sa.Column("signed_after", sa.BigInteger),
    sa.Column("valid_before", sa.BigInteger),
    sa.Column("state", sa.String(16)),
    sa.Column("tx_hash", sa.LargeBinary(32)),
    sa.Column("log_index", sa.BigInteger),
    sa.Column("failure", sa.String(64)),
    sa.Column("looks", sa.Integer),
    sa.Column("not_before", sa.Float),
    sa.Column("created_at", sa.Float),
)
_REFUND = sa.Table(
    "refund",
    _METADATA,
    sa.Column("payment_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("reference", sa.LargeBinary(32)),
    sa.Column("chain_id", sa.BigInteger),
    sa.Column("vault", sa.LargeBinary(20)),
    sa.Column("beneficiary", sa.LargeBinary(20)),
    sa.Column("amount", sa.String(78)),
    sa.Column("state", sa.String(16)),
    sa.Column("failure", sa.String(64)),
    sa.Column("created_at", sa.Float),
)
IN_HAND, SETTLED, FAILED = "in_hand", "settled", "failed"
_LOOK_AGAIN_S, _LOOK_AGAIN_AT_MOST_S = 0.5, 15.0
_LOOKS_A_ROUND = 64


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment that was taken. `charged` in atomic units of `asset`; times in unix seconds.

    `contract` counts the nonces: the asset for EIP-3009, Permit2 otherwise. It cannot have been executed before `signed_after` and been
    taken here: it would have been valid for longer than any that is.
    """

    payment_id: Hash32
    reference: Hash32
    chain_id: int
    contract: Address
    asset: Address
    payer: Address
    pay_to: Address
    nonce: bytes
    signature: bytes
    charged: int
    signed_after: int
    valid_before: int
    created_at: float
    state: str = IN_HAND
    tx_hash: bytes = b""
    failure: str = ""
    looks: int = 0
    not_before: float = 0.0

    @property
    def is_permit2(self) -> bool:
        """Whether Permit2 moves it."""
        return self.contract != self.asset


@dataclass(frozen=True, slots=True)
class Refund:
    """A payment that is given back. `amount` in token units."""

    payment_id: Hash32
    reference: Hash32
    chain_id: int
    vault: Address
    beneficiary: Address
    amount: int
    created_at: float
    state: str = IN_HAND
    failure: str = ""


@dataclass(frozen=True, slots=True)
class PaymentJob:
    """A payment, and how far its job is."""

    payment: Payment
    job_state: str
    job_error: str
    job_hash: bytes


class PaymentStore:
    """All access to these tables."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    # --- payments

    async def add(self, payment: Payment, job: Job) -> bool:
        """Record a payment and its job, both or none; False when the payment is known."""
        values = {name: getattr(payment, name) for name in Payment.__slots__}
        values |= {"charged": str(payment.charged), "tx_hash": None, "log_index": None}
        async with self._engine.begin() as connection:
            result = await connection.execute(insert_new(_PAYMENT, connection.dialect).values(**values))
            return result.rowcount == 1 and await insert_job(connection, job)

    async def get(self, payment_ids: Iterable[Hash32]) -> dict[Hash32, PaymentJob]:
        """Those that are known, by id."""
        query = _with_job().where(_PAYMENT.c.payment_id.in_(list(payment_ids)))
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return {Hash32(row.payment_id): _payment_job(row) for row in rows}

    async def to_look_at(self, chain_id: int, now: float) -> list[PaymentJob]:
        """Payments in hand of which the chain may say more by now: their job is over or was put off, or they have ended."""
        query = _with_job().where(
            _PAYMENT.c.chain_id == chain_id,
            _PAYMENT.c.state == IN_HAND,
            _PAYMENT.c.not_before <= now,
            sa.or_(JOB.c.state.in_(FINAL), JOB.c.put_off > 0, _PAYMENT.c.valid_before < now),
        )
        query = query.order_by(_PAYMENT.c.not_before, _PAYMENT.c.valid_before, _PAYMENT.c.payment_id).limit(_LOOKS_A_ROUND)
        async with self._engine.connect() as connection:
            return [_payment_job(row) for row in (await connection.execute(query)).all()]

    async def look_again(self, payment: Payment, now: float) -> None:
        """Nothing can be said yet: the next look is later each time."""
        pause = min(_LOOK_AGAIN_AT_MOST_S, _LOOK_AGAIN_S * 2 ** min(payment.looks, 16))
        await self._change(payment, looks=payment.looks + 1, not_before=now + pause)

    async def settled(self, payment: Payment, tx_hash: Hash32, log_index: int) -> bool:
        """Note that a Transfer settles it. False: that Transfer settled another payment, so it does not settle this one."""
        try:
            await self._change(payment, state=SETTLED, tx_hash=tx_hash, log_index=log_index, failure="")
        except IntegrityError:
            return False
        return True

    async def failed(self, payment: Payment, failure: str) -> None:
        """Note that it was not executed and never will be."""
        await self._change(payment, state=FAILED, failure=failure)

    async def _change(self, payment: Payment, **values: Any) -> None:
        update = sa.update(_PAYMENT).where(_PAYMENT.c.payment_id == payment.payment_id, _PAYMENT.c.state == IN_HAND)
        async with self._engine.begin() as connection:
            await connection.execute(update.values(**values))

    # --- refunds

    async def add_refund(self, refund: Refund, job: Job) -> bool:
        """Record a refund and its job, both or none; False when the payment has one."""
        values = {name: getattr(refund, name) for name in Refund.__slots__} | {"amount": str(refund.amount)}
        async with self._engine.begin() as connection:
            result = await connection.execute(insert_new(_REFUND, connection.dialect).values(**values))
            return result.rowcount == 1 and await insert_job(connection, job)

    async def refund(self, payment_id: Hash32) -> tuple[Refund, bytes] | None:
        """A payment's refund, and its job's newest transaction (empty: none)."""
        query = sa.select(_REFUND, JOB.c.transaction_hash).join(JOB, JOB.c.reference == _REFUND.c.reference)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query.where(_REFUND.c.payment_id == payment_id))).first()
        return None if row is None else (_refund(row), row.transaction_hash or b"")

    async def refunds_in_hand(self, chain_id: int) -> list[Refund]:
        """Refunds whose job was sent or cannot be: the vault may say more by now."""
        query = sa.select(_REFUND).join(JOB, JOB.c.reference == _REFUND.c.reference)
        query = query.where(_REFUND.c.chain_id == chain_id, _REFUND.c.state == IN_HAND, sa.or_(JOB.c.state.in_(FINAL), JOB.c.put_off > 0))
        async with self._engine.connect() as connection:
            return [_refund(row) for row in (await connection.execute(query.order_by(_REFUND.c.created_at).limit(_LOOKS_A_ROUND))).all()]

    async def refund_ended(self, refund: Refund, state: str, failure: str = "") -> None:
        """Note what became of a refund."""
        update = sa.update(_REFUND).where(_REFUND.c.payment_id == refund.payment_id, _REFUND.c.state == IN_HAND)
        async with self._engine.begin() as connection:
            await connection.execute(update.values(state=state, failure=failure))


def _with_job() -> Any:
    columns = (JOB.c.state.label("job_state"), JOB.c.error.label("job_error"), JOB.c.transaction_hash.label("job_hash"))
    return sa.select(_PAYMENT, *columns).join(JOB, JOB.c.reference == _PAYMENT.c.reference)


def _payment_job(row: Any) -> PaymentJob:
    payment = Payment(
        payment_id=Hash32(row.payment_id),
        reference=Hash32(row.reference),
        chain_id=row.chain_id,
        contract=Address(row.contract),
        asset=Address(row.asset),
        payer=Address(row.payer),
        pay_to=Address(row.pay_to),
        nonce=row.nonce,
        signature=row.signature,
        charged=int(row.charged),
        signed_after=row.signed_after,
        valid_before=row.valid_before,
        created_at=row.created_at,
        state=row.state,
        tx_hash=row.tx_hash or b"",
        failure=row.failure,
        looks=row.looks,
        not_before=row.not_before,
    )
    return PaymentJob(payment, row.job_state, row.job_error, row.job_hash or b"")


def _refund(row: Any) -> Refund:
    return Refund(
        payment_id=Hash32(row.payment_id),
        reference=Hash32(row.reference),
        chain_id=row.chain_id,
        vault=Address(row.vault),
        beneficiary=Address(row.beneficiary),
        amount=int(row.amount),
        created_at=row.created_at,
        state=row.state,
        failure=row.failure,
    )
