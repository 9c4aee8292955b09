"""One chain's payments: its facilitator's key sends them, and what became of each is found out, under one lease."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from placet.core.db import DATABASE_ERRORS
from placet.core.errors import PlacetError
from placet.core.evm.rpc import RpcClient, RpcError
from placet.core.telemetry import metrics
from placet.core.types import Address, hex0x
from placet.settlement.payments.outcome import Failure, Look, Use
from placet.settlement.payments.store import PaymentJob, PaymentStore
from placet.settlement.sender import Sender
from placet.settlement.store import Lease, LeaseLost, Store, cannot_be_held

log = logging.getLogger(__name__)

_ENDED = metrics.counter("placet_settlement_payments_total", "Payments that ended, by outcome: settled, or why they failed.", ["outcome"])
_UNCLEAR = metrics.counter("placet_settlement_unclear_payments_total", "Looks at a used nonce of which no node showed what used it.")
_ROUND_S = 5.0


class PaymentDesk:
    """Sends and judges. `step` is called again and again by whoever holds the facilitator's lease."""

    def __init__(
        self,
        *,
        sender: Sender,
        rpc: RpcClient,
        chain_id: int,
        confirmations: int,
        store: Store,
        payments: PaymentStore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sender = sender
        self._rpc = rpc
        self._chain_id = chain_id
        self._confirmations = confirmations
        self._store = store
        self._payments = payments
        self._clock = clock

    @property
    def address(self) -> Address:
        """The facilitator."""
        return self._sender.address

    async def step(self, lease: Lease) -> None:
        """One round. What cannot be said of one payment holds up no other. Raises LeaseLost, or that the database or every node is away."""
        await self._sender.step(lease)
        began = time.monotonic()
        for item in await self._payments.to_look_at(self._chain_id, self._clock()):
            if time.monotonic() > began + _ROUND_S:
                return
            await self._apart(lease, item)

    async def _apart(self, lease: Lease, item: PaymentJob) -> None:
        try:
            done = await self._judge(lease, item)
        except LeaseLost:
            raise
        except Exception as error:
            if isinstance(error, DATABASE_ERRORS) and not cannot_be_held(error):
                raise
            known = isinstance(error, (PlacetError, RpcError, *DATABASE_ERRORS))
            log.warning("payment %s: %s", hex0x(item.payment.payment_id), error, exc_info=None if known else error)
            await self._rpc.block("latest")
            done = False
        if not done:
            await self._payments.look_again(item.payment, self._clock())

    async def _judge(self, lease: Lease, item: PaymentJob) -> bool:
        """Whether it is over."""
        payment = item.payment
        look = Look(self._rpc, self._confirmations, payment)
        state = await look.state()
        if state is None:
            return False
        if not state.is_used:
            if state.block.timestamp <= payment.valid_before:
                return False
            await self._fail(lease, item, await look.why_not(state.block))
            return True
        use, transfers = await look.transfers(state.block, await self._store.sent_hashes(payment.reference))
        for transfer in transfers:
            if await self._payments.settled(payment, transfer.tx_hash, transfer.log_index):
                await self._store.end_queued(lease, self._clock(), payment.reference, "executed already")
                _ENDED.labels("settled").inc()
                log.info("payment %s is settled by %s", hex0x(payment.payment_id), hex0x(transfer.tx_hash))
                return True
        if use is Use.UNCLEAR:
            _UNCLEAR.inc()
            return False
        await self._fail(lease, item, Failure.AUTHORIZATION_USED)
        return True

    async def _fail(self, lease: Lease, item: PaymentJob, failure: str) -> None:
        payment = item.payment
        await self._payments.failed(payment, failure)
        await self._store.end_queued(lease, self._clock(), payment.reference, failure)
        _ENDED.labels(failure).inc()
        log.warning("payment %s failed: %s (%s)", hex0x(payment.payment_id), failure, item.job_error or item.job_state)
