"""Talking to settlement: what is due is given to it, and what became of it is asked for, until it is final."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import orjson

from placet.core.db import DATABASE_ERRORS
from placet.core.errors import PlacetError, Unavailable
from placet.core.gen import payment_pb2 as pb
from placet.core.gen import payment_pb2_grpc
from placet.core.payment.offers import Method, Offer
from placet.core.rpc_errors import from_rpc
from placet.core.telemetry import metrics
from placet.core.types import Address, Hash32, hex0x
from placet.gateway.payment.ledger import Ledger
from placet.gateway.payment.prepaid import SURFACE, OpenUse, Prepaid, Refund
from placet.gateway.payment.records import Answer, Exposure, Payment
from placet.gateway.payment.states import IllegalMove, State

log = logging.getLogger(__name__)

_POLL_S = 0.5
_SWEEP_S = 5.0
_PRUNE_S = 3600.0
_AWAY_S = 15.0
"""When settlement has not answered for so long, no payment is taken: nobody would settle it."""
_BALANCE_S = 3.0
_BALANCES = 4096
_TIMEOUT_S = 5.0
_LATER: tuple[type[Exception], ...] = (PlacetError, IllegalMove, *DATABASE_ERRORS)
_OUTCOMES = metrics.counter("placet_gateway_payments_total", "Payments that ended, by outcome.", ["outcome"])

_SWEEP_S_LATER = 30
"""An answer's receipt is here by then."""

ChargeOf = Callable[[Address, Hash32, int], Awaitable[int | None]]
"""What a request is charged whose answer was cut, by its receipt (payer, payment's id, unix seconds since when); None: there is none."""


class Settler:
    """One replica's conversation with settlement."""

    def __init__(
        self,
        address: str,
        ledger: Ledger,
        charge_of: ChargeOf,
        *,
        horizon_s: int,
        longest_s: int = 120,
        prepaid: Prepaid | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub: Any = payment_pb2_grpc.PaymentServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._ledger = ledger
        self._charge_of = charge_of
        self._prepaid = prepaid
        self._horizon_s = horizon_s
        self._longest_s = longest_s
        self._clock = clock
        self._heard_at = float("-inf")
        self._open: OrderedDict[Hash32, None] = OrderedDict()
        self._ended: dict[Hash32, list[asyncio.Future[Payment]]] = {}
        self._balances: OrderedDict[tuple[int, Address, Address, Method], tuple[float, int]] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def is_there(self) -> bool:
        """Whether settlement answered lately."""
        return time.monotonic() - self._heard_at < _AWAY_S

    async def close(self) -> None:
        """Stop talking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def _ask(self, method: str, request: Any) -> Any:
        try:
            answer = await getattr(self._stub, method)(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        self._heard_at = time.monotonic()
        return answer

    # --- one payment

    def settle_soon(self, payment: Payment) -> None:
        """Give a due payment to settlement, beside whatever the caller does. It is swept if that fails."""
        task = asyncio.create_task(self._settle_quietly(payment))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle_quietly(self, payment: Payment) -> None:
        try:
            await self.settle(payment)
        except _LATER as error:
            log.warning("payment %s waits for settlement: %s", hex0x(payment.id), error)

    async def settle(self, payment: Payment) -> None:
        """Give a due payment to settlement, and note what it says. Raises Unavailable."""
        asked = pb.SettlePaymentRequest(
            payment_id=payment.id,
            authorization=payment.authorization,
            offer=orjson.dumps(payment.offer.document()),
            charged=str(payment.charged),
        )
        answer = await self._ask("SettlePayment", asked)
        self._open[payment.id] = None
        await self._note(answer.payment)

    async def ended(self, payment_id: Hash32, within_s: float) -> Payment:
        """The payment once its outcome is final, or as it is when the time is over."""
        future: asyncio.Future[Payment] = asyncio.get_running_loop().create_future()
        self._ended.setdefault(payment_id, []).append(future)
        try:
            found = await self._ledger.get(payment_id)
            if found.state in (State.SETTLED, State.FAILED):
                return found
            async with asyncio.timeout(within_s):
                return await future
        except TimeoutError:
            return await self._ledger.get(payment_id)
        finally:
            waiting = self._ended.get(payment_id, [])
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._ended.pop(payment_id, None)

    async def _note(self, status: pb.PaymentStatus) -> None:
        """What settlement says of a payment, into the ledger."""
        payment_id, now = Hash32(status.payment_id), int(self._clock())
        tx_hash = Hash32(status.tx_hash) if len(status.tx_hash) == 32 else None
        payment: Payment | None = None
        if status.state == pb.PaymentStatus.STATE_SETTLED and tx_hash is not None:
            payment = await self._ledger.settled(payment_id, tx_hash, now=now)
        elif status.state == pb.PaymentStatus.STATE_FAILED:
            payment = await self._ledger.failed(payment_id, status.failure or "failed", now=now)
        elif status.state == pb.PaymentStatus.STATE_IN_HAND and tx_hash is not None:
            await self._ledger.broadcast(payment_id, tx_hash, now=now)
        if payment is None:
            return
        if payment.state is State.SETTLED:
            await self._credit(payment)
        self._open.pop(payment_id, None)
        _OUTCOMES.labels(payment.state.value).inc()
        for future in self._ended.pop(payment_id, []):
            if not future.done():
                future.set_result(payment)

    # --- exposure

    async def exposure(self, offer: Offer, payer: Address, *, limit: int, max_open: int) -> Exposure:
        """How much of a payer's may be open: the credit limit, and its balance, a few seconds old at most, when settlement can say."""
        key = offer.chain_id, offer.asset, payer, offer.method
        cached = self._balances.get(key)
        if cached is None or self._clock() - cached[0] > _BALANCE_S:
            try:
                answer = await self._ask("GetBalance", pb.GetBalanceRequest(chain_id=offer.chain_id, asset=offer.asset, payer=payer))
            except PlacetError as error:
                log.warning("balance of %s: %s", hex0x(payer), error)
                return Exposure(limit, max_open)
            balance = int(answer.balance)
            if offer.method is Method.PERMIT2:
                balance = min(balance, int(answer.permit2_allowance))
            cached = self._balances[key] = float(answer.at), balance
            while len(self._balances) > _BALANCES:
                self._balances.popitem(last=False)
        return Exposure(limit, max_open, cached[1], int(cached[0]))

    # --- until it is final

    async def run(self) -> None:
        """Ask until cancelled, and look after what nobody else does."""
        swept = pruned = float("-inf")
        while True:
            try:
                await self._poll()
                if time.monotonic() - swept > _SWEEP_S:
                    swept = time.monotonic()
                    await self.sweep()
                if time.monotonic() - pruned > _PRUNE_S:
                    pruned = time.monotonic()
                    await self._ledger.prune(now=int(self._clock()), horizon_s=self._horizon_s)
            except _LATER as error:
                log.warning("payments wait: %s", error)
            await asyncio.sleep(_POLL_S)

    async def _poll(self) -> None:
        for payment_id in list(self._open):
            if (await self._ledger.get(payment_id)).state in (State.SETTLED, State.FAILED):
                self._open.pop(payment_id, None)  # another replica noted it
        answer = await self._ask("GetPayments", pb.GetPaymentsRequest(payment_id=list(self._open)[:256]))
        for status in answer.payments:
            await self._carefully(self._note(status), Hash32(status.payment_id))

    async def sweep(self) -> None:
        """One round over what died with a replica, was cut, or does not move."""
        now = int(self._clock())
        for payment in await self._ledger.sweep(now=now):
            await self._carefully(self._look_after(payment, now), payment.id)
        for payment in await self._ledger.owed(now=now):
            await self._carefully(self._credit(payment) if payment.request.surface == SURFACE else self._refund(payment), payment.id)
        if self._prepaid is not None:
            for use in await self._prepaid.open_uses(before=now - self._longest_s - _SWEEP_S_LATER):
                await self._carefully(self._end(use, now), use.id)
            for refund in await self._prepaid.refunds():
                await self._carefully(self._give_back(refund), refund.payment_id)

    async def _look_after(self, payment: Payment, now: int) -> None:
        if payment.state is State.RESERVED:
            await self._ledger.release(payment.id)
        elif payment.state is State.SERVING:
            charged = await self._charge_of(payment.payer, payment.id, payment.created_at)
            if charged is not None:
                await self.settle(await self._ledger.due(payment.id, min(charged, payment.maximum), now=now))
            elif payment.updated_at < now - self._horizon_s:
                await self._ledger.due(payment.id, 0, now=now)  # no receipt came: nothing was answered
        elif payment.charged is not None:
            await self.settle(payment)

    async def _refund(self, payment: Payment) -> None:
        """Settled, and never answered: credited to its payer, once its id."""
        await self._give_back(Refund(payment.id, payment.payer, payment.chain_id, payment.offer.asset, payment.charged or 0))
        body = orjson.dumps(
            {"code": "refunded", "message": f"nothing was served; {payment.charged} are credited to the payer at RefundVault"}
        )
        await self._ledger.answer(payment.id, Answer(Hash32(hashlib.sha256(body).digest()), None, body, status=410), now=int(self._clock()))

    async def _give_back(self, refund: Refund) -> None:
        await self._ask(
            "RefundPayment",
            pb.RefundPaymentRequest(
                payment_id=refund.payment_id,
                payer=refund.payer,
                chain_id=refund.chain_id,
                asset=refund.asset,
                amount=str(refund.amount),
            ),
        )
        if self._prepaid is not None:
            await self._prepaid.refunded(refund.payment_id, now=int(self._clock()))

    # --- prepaid keys

    async def _credit(self, payment: Payment) -> None:
        """What fills a key does so when its transfer is final, whoever waits for it. Then the purchase is answered."""
        if self._prepaid is None or payment.request.surface != SURFACE:
            return
        now = int(self._clock())
        account = await self._prepaid.credit(payment.id, now=now)
        body = orjson.dumps(account.document())
        await self._ledger.answer(payment.id, Answer(Hash32(hashlib.sha256(body).digest()), None, body, status=201), now=now)

    async def _end(self, use: OpenUse, now: int) -> None:
        """What a request of a prepaid key holds, after what served it was lost: charged by its receipt, and nothing without one."""
        assert self._prepaid is not None
        charged = await self._charge_of(use.payer, use.id, use.created_at)
        if charged is not None:
            await self._prepaid.end(use.id, min(charged, use.maximum), now=now)
        elif use.created_at < now - self._horizon_s:
            await self._prepaid.end(use.id, 0, now=now)

    @staticmethod
    async def _carefully(work: Awaitable[None], payment_id: Hash32) -> None:
        """What fails for one payment is tried again for that one; the others go on."""
        try:
            await work
        except Unavailable:
            raise
        except (PlacetError, IllegalMove, ValueError) as error:
            log.error("payment %s: %s", hex0x(payment_id), error)
