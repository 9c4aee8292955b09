"""The ledger of payments: each signed payment is reserved once, for one request, before any work, whichever replica it comes to.

A reservation and the exposure check are one database transaction, under the lock of the payer's row; its first statement writes, so that
SQLite takes its write lock before anything is read. A reservation is never released because time passed. Times are unix seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from placet.core.errors import NotFound, PaymentConflict, PaymentRefused
from placet.core.payment.offers import Scheme, offer_of
from placet.core.payment.payload import PaymentPayload
from placet.core.payment.verify import VerifiedPayment, key_of
from placet.core.types import Address, Hash32, hex0x
from placet.gateway.payment.records import (
    Answer,
    Answered,
    Exposure,
    InProgress,
    Outcome,
    PaidRequest,
    Payment,
    Reserved,
    Unanswered,
)
from placet.gateway.payment.states import BEFORE, OPEN, IllegalMove, State

MAX_ANSWER_BYTES = 256 << 10
"""Of a larger answer only the digest and the receipt are kept."""

_METADATA = sa.MetaData()
_PAYMENT = sa.Table(
    "payment",
    _METADATA,
    sa.Column("id", sa.LargeBinary(32), primary_key=True),
    sa.Column("chain_id", sa.BigInteger),
    sa.Column("payer", sa.LargeBinary(20)),
    sa.Column("asset", sa.LargeBinary(20)),
    sa.Column("scheme", sa.String(16)),
    sa.Column("maximum", sa.String(78)),
    sa.Column("charged", sa.String(78)),
    sa.Column("valid_before", sa.BigInteger),
    sa.Column("offer", sa.Text),
    sa.Column("authorization", sa.LargeBinary),
    sa.Column("identifier", sa.String(128)),
    sa.Column("request_hash", sa.LargeBinary(32)),
    sa.Column("surface", sa.String(32)),
    sa.Column("tenant", sa.String(32)),
    sa.Column("state", sa.String(16)),
    sa.Column("served_at", sa.BigInteger),
    sa.Column("tx_hash", sa.LargeBinary(32)),
    sa.Column("failure", sa.String(64)),
    sa.Column("answer", sa.LargeBinary),
    sa.Column("answer_status", sa.Integer),
    sa.Column("answer_type", sa.String(128)),
    sa.Column("answer_sha256", sa.LargeBinary(32)),
    sa.Column("receipt_id", sa.LargeBinary(32)),
    sa.Column("instance", sa.String(64)),
    sa.Column("run", sa.String(32)),
    sa.Column("created_at", sa.BigInteger),
    sa.Column("updated_at", sa.BigInteger),
)
_PAYER = sa.Table(
    "payment_payer",
    _METADATA,
    sa.Column("payer", sa.LargeBinary(20), primary_key=True),
    sa.Column("seen_at", sa.BigInteger),
)


class Ledger:
    """All access to payments.

    `instance` names this replica, the same after a restart; each process has a `run` of its own, so that a restarted one knows whose
    requests died with it. No answer takes longer than `longest_s`: what has none by then was lost with the replica that served it.
    """

    def __init__(self, engine: AsyncEngine, instance: str, *, longest_s: int, run: str | None = None) -> None:
        self._engine = engine
        self._instance = instance
        self._longest_s = longest_s
        self._run = run or secrets.token_hex(16)

    # --- taking payments

    async def find(self, payload: PaymentPayload, request: PaidRequest, *, now: int) -> Outcome | None:
        """What stands for a payment that was taken before, also when it is too old by now to be taken; None: it was not.

        Its signature need not be verified again: it must be the one that was.

        Raises:
            PaymentConflict: it pays for another request. PaymentRefused: it failed.
        """
        key = key_of(payload)
        if key is None:
            return None
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(_PAYMENT).where(_PAYMENT.c.id == key.id))).first()
        if row is None:
            return None
        payment = _payment(row)
        before = payment.payload()
        is_same = (before.signed, before.signature) == (payload.signed, payload.signature)
        return self._outcome(payment, request, now) if is_same else None

    async def reserve(self, payment: VerifiedPayment, request: PaidRequest, exposure: Exposure, *, now: int) -> Outcome:
        """Take a payment for a request, or say what stands for it: of any number of calls with one payment, one gets `Reserved`.

        The payer's identifier stands for the purchase as the payment does: a second payment under it is not taken.

        Raises:
            PaymentConflict: payment or identifier were used with another request.
            PaymentRefused: `open_payments`, `credit_limit`, `insufficient_funds`: the payer has too much open; `unpaid`: it was served
                and did not pay; `failed`: the payment can no longer be executed.
        """
        async with self._engine.begin() as connection:
            await self._lock(connection, payment.payer, now)
            found = await self._standing(connection, payment)
            if found is not None:
                return self._outcome(found, request, now)
            await _check_exposure(connection, payment, exposure)
            await connection.execute(sa.insert(_PAYMENT).values(**self._row(payment, request, now)))
            row = (await connection.execute(sa.select(_PAYMENT).where(_PAYMENT.c.id == payment.key.id))).one()
            return Reserved(_payment(row))

    async def _lock(self, connection: AsyncConnection, payer: Address, now: int) -> None:
        make: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        insert = make(_PAYER).values(payer=payer, seen_at=now)
        await connection.execute(insert.on_conflict_do_update(index_elements=["payer"], set_={"seen_at": now}))

    async def _standing(self, connection: AsyncConnection, payment: VerifiedPayment) -> Payment | None:
        same = _PAYMENT.c.id == payment.key.id
        identifier = payment.payload.identifier
        if identifier is not None:
            same = sa.or_(same, sa.and_(_PAYMENT.c.payer == payment.payer, _PAYMENT.c.identifier == identifier))
        rows = [_payment(row) for row in (await connection.execute(sa.select(_PAYMENT).where(same))).all()]
        rows.sort(key=lambda row: row.id != payment.key.id)  # the payment itself before its identifier
        return rows[0] if rows else None

    def _row(self, payment: VerifiedPayment, request: PaidRequest, now: int) -> dict[str, Any]:
        return {
            "id": payment.key.id,
            "chain_id": payment.key.chain_id,
            "payer": payment.payer,
            "asset": payment.offer.asset,
            "scheme": payment.scheme.value,
            "maximum": str(payment.maximum),
            "valid_before": payment.valid_before,
            "offer": orjson.dumps(payment.offer.document()).decode(),
            "authorization": payment.payload.raw,
            "identifier": payment.payload.identifier,
            "request_hash": request.hash,
            "surface": request.surface,
            "tenant": request.tenant,
            "state": State.RESERVED.value,
            "instance": self._instance,
            "run": self._run,
            "created_at": now,
            "updated_at": now,
        }

    def _outcome(self, payment: Payment, request: PaidRequest, now: int) -> Outcome:
        if (payment.request.hash, payment.request.tenant) != (request.hash, request.tenant):
            raise PaymentConflict("this payment, or its identifier, pays for another request; sign a new one for this", field="payment")
        if payment.state is State.FAILED:
            raise PaymentRefused(f"this payment failed ({payment.failure}); sign a new one, under a new identifier", check="failed")
        if payment.answer is not None:
            return Answered(payment, payment.answer)
        died = payment.instance == self._instance and payment.run != self._run
        is_lost = payment.state is not State.RESERVED and (died or payment.created_at + self._longest_s < now)
        return Unanswered(payment) if is_lost else InProgress(payment)

    async def release(self, payment_id: Hash32) -> None:
        """Give a reservation of this replica's up: nothing was sent, and nothing will be. The payment may be used again.

        Raises:
            IllegalMove: something was sent or charged, or it is another replica's.
        """
        mine = sa.and_(_PAYMENT.c.id == payment_id, _PAYMENT.c.instance == self._instance)
        async with self._engine.begin() as connection:
            removed = await connection.execute(sa.delete(_PAYMENT).where(mine, _PAYMENT.c.state == State.RESERVED.value))
        if removed.rowcount != 1:
            raise IllegalMove(f"{hex0x(payment_id)}: only one's own reservation is released, and only before anything was sent")

    # --- what becomes of them. Moves may be repeated: a second time changes nothing.

    async def serve(self, payment_id: Hash32, *, now: int) -> Payment:
        """Before the first byte of an answer leaves. Also of one that is due already, or settled: then the transfer was waited for."""
        later = frozenset({State.DUE, State.BROADCAST, State.UNKNOWN, State.SETTLED})
        paid_first = sa.update(_PAYMENT).where(_PAYMENT.c.id == payment_id, _in(later), _PAYMENT.c.served_at.is_(None))
        async with self._engine.begin() as connection:
            if (await connection.execute(paid_first.values(served_at=now))).rowcount == 1:
                return _payment((await connection.execute(sa.select(_PAYMENT).where(_PAYMENT.c.id == payment_id))).one())
        return await self._move(payment_id, State.SERVING, now, {"served_at": now}, again=lambda row: row.state in later | {State.SERVING})

    async def due(self, payment_id: Hash32, charged: int, *, now: int, answer: Answer | None = None) -> Payment:
        """How much is charged is decided: all of it for `exact`, from nothing to the maximum for `upto`. Nothing is settled by itself.

        An answer that is given here counts as served.

        Raises:
            ValueError: another amount than the scheme allows.
        """
        maximum = await self.get(payment_id)
        if not 0 <= charged <= maximum.maximum or (maximum.scheme is Scheme.EXACT and charged != maximum.maximum):
            raise ValueError(f"{hex0x(payment_id)}: {charged} is not what {maximum.scheme} over {maximum.maximum} may charge")
        values: dict[str, Any] = {"charged": str(charged)}
        if answer is not None:
            values |= {**_answer_values(answer), "served_at": sa.func.coalesce(_PAYMENT.c.served_at, now)}
        state = State.DUE if charged else State.SETTLED
        return await self._move(payment_id, state, now, values, again=lambda row: row.charged == charged, before=BEFORE[State.DUE])

    async def answer(self, payment_id: Hash32, answer: Answer, *, now: int) -> Payment:
        """Keep the answer of a payment that is served, whatever became of the charge. The first stands.

        Raises:
            IllegalMove: it is only reserved.
        """
        update = sa.update(_PAYMENT).where(
            _PAYMENT.c.id == payment_id, _PAYMENT.c.state != State.RESERVED.value, _PAYMENT.c.answer_sha256.is_(None)
        )
        values = {**_answer_values(answer), "served_at": sa.func.coalesce(_PAYMENT.c.served_at, now)}
        async with self._engine.begin() as connection:
            await connection.execute(update.values(**values, updated_at=now))
        payment = await self.get(payment_id)
        if payment.answer is None:
            raise IllegalMove(f"{hex0x(payment_id)}: is {payment.state}, and nothing of it was served")
        return payment

    async def broadcast(self, payment_id: Hash32, tx_hash: Hash32, *, now: int) -> Payment:
        """A transaction was sent, the first or one that replaces it."""
        return await self._move(payment_id, State.BROADCAST, now, {"tx_hash": tx_hash}, again=lambda row: row.tx_hash == tx_hash)

    async def settled(self, payment_id: Hash32, tx_hash: Hash32, *, now: int) -> Payment:
        """The transfer is final, by this transaction, whoever sent it. Also of one that had failed: the debt was paid."""
        values = {"tx_hash": tx_hash, "failure": None}
        return await self._move(
            payment_id, State.SETTLED, now, values, again=lambda row: row.state is State.SETTLED and row.tx_hash == tx_hash
        )

    async def failed(self, payment_id: Hash32, reason: str, *, now: int) -> Payment:
        """The authorization will never be executed. `reason` is a stable code."""
        return await self._move(payment_id, State.FAILED, now, {"failure": reason[:64]})

    async def unknown(self, payment_id: Hash32, *, now: int) -> Payment:
        """It may have been executed, and that cannot be said now."""
        return await self._move(payment_id, State.UNKNOWN, now, {})

    async def get(self, payment_id: Hash32) -> Payment:
        """A payment. Raises NotFound."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(_PAYMENT).where(_PAYMENT.c.id == payment_id))).first()
        if row is None:
            raise NotFound("no such payment", field="paymentId")
        return _payment(row)

    async def _move(
        self,
        payment_id: Hash32,
        to: State,
        now: int,
        values: dict[str, Any],
        *,
        again: Callable[[Payment], bool] | None = None,
        before: frozenset[State] | None = None,
    ) -> Payment:
        """Change the state if it is one from which that may be. Otherwise, `again` says whether it was done already."""
        update = sa.update(_PAYMENT).where(_PAYMENT.c.id == payment_id, _in(BEFORE[to] if before is None else before))
        async with self._engine.begin() as connection:
            moved = (await connection.execute(update.values(state=to.value, updated_at=now, **values))).rowcount == 1
            row = (await connection.execute(sa.select(_PAYMENT).where(_PAYMENT.c.id == payment_id))).first()
        if row is None:
            raise NotFound("no such payment", field="paymentId")
        payment = _payment(row)
        done = payment.state is to if again is None else again(payment)
        if not moved and not done:
            raise IllegalMove(f"{hex0x(payment_id)}: from {payment.state} to {to}")
        return payment

    # --- after a crash, and after a while

    async def sweep(self, *, now: int, unsettled_s: int = 10, limit: int = 1000) -> list[Payment]:
        """What somebody must look at, oldest first: whatever this replica's earlier runs had begun; of any replica, what has been served
        for longer than `longest_s`, and what is due, broadcast or unknown and has not moved for `unsettled_s`.

        Reserved by an earlier run of this replica: nothing was sent, it may be released. Serving: charge what was metered, by its receipt.
        Due, broadcast or unknown: settle, or find out; several may do so, the chain pays once.
        """
        here = _PAYMENT.c.instance == self._instance
        died = sa.and_(here, _PAYMENT.c.run != self._run, _in(OPEN))
        is_serving = _PAYMENT.c.state == State.SERVING.value
        cut = sa.and_(is_serving, _PAYMENT.c.updated_at < now - self._longest_s, sa.not_(sa.and_(here, _PAYMENT.c.run == self._run)))
        stuck = sa.and_(_in(OPEN - {State.RESERVED, State.SERVING}), _PAYMENT.c.updated_at < now - unsettled_s)
        query = sa.select(_PAYMENT).where(sa.or_(died, cut, stuck)).order_by(_PAYMENT.c.updated_at, _PAYMENT.c.id).limit(limit)
        async with self._engine.connect() as connection:
            return [_payment(row) for row in (await connection.execute(query)).all()]

    async def owed(self, *, now: int, limit: int = 1000) -> list[Payment]:
        """Settled, and never answered, oldest first: to be refunded by payment id, and answered with that."""
        lost = sa.and_(_PAYMENT.c.created_at < now - self._longest_s, _PAYMENT.c.answer_sha256.is_(None))
        paid = sa.and_(_PAYMENT.c.state == State.SETTLED.value, _PAYMENT.c.charged != "0")
        query = sa.select(_PAYMENT).where(lost, paid).order_by(_PAYMENT.c.updated_at, _PAYMENT.c.id).limit(limit)
        async with self._engine.connect() as connection:
            return [_payment(row) for row in (await connection.execute(query)).all()]

    async def prune(self, *, now: int, horizon_s: int) -> int:
        """Forget payments that can neither be executed nor asked for again: `horizon_s` after they ended, and only those that were settled,
        were never charged, or failed before anything was served. Debts, what is owed, and what is open beyond its time, stay. Returns how
        many."""
        ended = sa.or_(
            _PAYMENT.c.state == State.RESERVED.value,
            sa.and_(_PAYMENT.c.state == State.SETTLED.value, sa.or_(_PAYMENT.c.answer_sha256.is_not(None), _PAYMENT.c.charged == "0")),
            sa.and_(_PAYMENT.c.state == State.FAILED.value, _PAYMENT.c.served_at.is_(None)),
        )
        async with self._engine.begin() as connection:
            gone = await connection.execute(sa.delete(_PAYMENT).where(_PAYMENT.c.valid_before < now - horizon_s, ended))
            await connection.execute(sa.delete(_PAYER).where(_PAYER.c.seen_at < now - horizon_s))
        return int(gone.rowcount)


def _in(states: frozenset[State]) -> Any:
    return _PAYMENT.c.state.in_(sorted(state.value for state in states))


async def _check_exposure(connection: AsyncConnection, payment: VerifiedPayment, exposure: Exposure) -> None:
    columns = (_PAYMENT.c.state, _PAYMENT.c.maximum, _PAYMENT.c.charged, _PAYMENT.c.chain_id, _PAYMENT.c.asset)
    counts = [_in(OPEN), sa.and_(_PAYMENT.c.state == State.FAILED.value, _PAYMENT.c.served_at.is_not(None))]
    if exposure.balance is not None:  # what left the payer since its balance was read
        counts.append(sa.and_(_PAYMENT.c.state == State.SETTLED.value, _PAYMENT.c.updated_at >= exposure.balance_at))
    rows = (await connection.execute(sa.select(*columns).where(_PAYMENT.c.payer == payment.payer, sa.or_(*counts)))).all()
    if any(row.state == State.FAILED.value for row in rows):
        text = "an earlier payment of this payer failed after it was served; pay that one first"
        raise PaymentRefused(text, check="unpaid")
    is_open = [row for row in rows if row.state != State.SETTLED.value]
    if len(is_open) >= exposure.max_open:
        text = f"the payer has {len(is_open)} payments open, at most {exposure.max_open}; send this one again when one has ended"
        raise PaymentRefused(text, check="open_payments")

    def total(of: list[Any]) -> int:
        same = [row for row in of if (row.chain_id, row.asset) == (payment.key.chain_id, payment.offer.asset)]
        return payment.maximum + sum(int(row.maximum if row.charged is None else row.charged) for row in same)

    if total(is_open) > exposure.limit:
        text = f"with this payment the payer would have {total(is_open)} units open, at most {exposure.limit}; wait until some are settled"
        raise PaymentRefused(text, check="credit_limit")
    if exposure.balance is not None and total(list(rows)) > exposure.balance:
        text = f"the payer has (or has allowed Permit2) {exposure.balance} units, fewer than its payments need; add funds"
        raise PaymentRefused(text, check="insufficient_funds")


def _answer_values(answer: Answer) -> dict[str, Any]:
    body = answer.body if answer.body is not None and len(answer.body) <= MAX_ANSWER_BYTES else None
    return {
        "answer": body,
        "answer_status": answer.status,
        "answer_type": answer.media_type,
        "answer_sha256": answer.sha256,
        "receipt_id": answer.receipt_id,
    }


def _payment(row: Any) -> Payment:
    answer: Answer | None = None
    if row.answer_sha256 is not None:
        receipt_id = None if row.receipt_id is None else Hash32(row.receipt_id)
        answer = Answer(Hash32(row.answer_sha256), receipt_id, row.answer, row.answer_type, row.answer_status)
    return Payment(
        id=Hash32(row.id),
        chain_id=row.chain_id,
        payer=Address(row.payer),
        scheme=Scheme(row.scheme),
        maximum=int(row.maximum),
        charged=None if row.charged is None else int(row.charged),
        valid_before=row.valid_before,
        offer=offer_of(orjson.loads(row.offer)),
        authorization=row.authorization,
        identifier=row.identifier,
        request=PaidRequest(Hash32(row.request_hash), row.surface, row.tenant),
        state=State(row.state),
        served_at=row.served_at,
        tx_hash=None if row.tx_hash is None else Hash32(row.tx_hash),
        failure=row.failure,
        answer=answer,
        instance=row.instance,
        run=row.run,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
