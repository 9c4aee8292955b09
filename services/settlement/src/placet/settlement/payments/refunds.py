"""One chain's refunds: credited in the vault by a key of its own, and settled when the vault says so at a final block."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import RpcClient
from placet.core.types import ZERO_ADDRESS, Address, hex0x
from placet.settlement.payments.store import FAILED, SETTLED, PaymentStore, Refund
from placet.settlement.sender import Sender
from placet.settlement.store import Lease, Store

log = logging.getLogger(__name__)

CREDITED_TO_ANOTHER = "credited_to_another"


class RefundDesk:
    """Sends and judges. What the vault holds counts, whoever credited it."""

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
        """The account that credits."""
        return self._sender.address

    async def step(self, lease: Lease) -> None:
        """One round. Raises as `Sender.step`."""
        await self._sender.step(lease)
        waiting = await self._payments.refunds_in_hand(self._chain_id)
        number = (await self._rpc.block("latest")).number + 1 - self._confirmations if waiting else -1
        if number < 0:
            return
        reads = [
            ("eth_call", [{"to": hex0x(refund.vault), "data": hex0x(encode_call("refundOf(bytes32)", refund.payment_id))}, hex(number)])
            for refund in waiting
        ]
        for refund, answer in zip(waiting, await self._rpc.batch_settled(reads), strict=True):
            await self._judge(lease, refund, answer)

    async def _judge(self, lease: Lease, refund: Refund, answer: Any) -> None:
        if not isinstance(answer, str) or len(answer) != 130:
            log.warning("refund of payment %s: the vault cannot say: %s", hex0x(refund.payment_id), str(answer)[:200])
            return
        beneficiary = Address(bytes.fromhex(answer[2:66])[12:])
        if beneficiary == ZERO_ADDRESS:
            return
        state, failure = (SETTLED, "") if beneficiary == refund.beneficiary else (FAILED, CREDITED_TO_ANOTHER)
        await self._payments.refund_ended(refund, state, failure)
        await self._store.end_queued(lease, self._clock(), refund.reference, failure or "credited already")
        log.info("refund of payment %s: %s", hex0x(refund.payment_id), state)
