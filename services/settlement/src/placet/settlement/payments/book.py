"""What gateways ask of settlement, and what it believes of that: nothing. Every payment is read and verified again before it is taken."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from placet.core import jsonx
from placet.core.errors import Conflict, InvalidInput, NotFound, PaymentConflict, PaymentPending
from placet.core.evm.contracts import encode_call
from placet.core.keccak import keccak256
from placet.core.payment.calls import settlement_call
from placet.core.payment.offers import Method, Offer, Scheme, offer_of
from placet.core.payment.payload import MAX_DEPTH, MAX_HEADER_BYTES, Authorization, parse_json
from placet.core.payment.verify import FUTURE_S, VerifiedPayment, verify
from placet.core.types import Address, Hash32, hex0x
from placet.settlement.payments.store import FAILED, IN_HAND, SETTLED, Payment, PaymentJob, PaymentStore, Refund
from placet.settlement.store import FOR_EVER, PAYMENTS, REFUNDS, Job, Store, new_job

log = logging.getLogger(__name__)

MAX_STATUSES = 256
UINT96_MAX = 2**96 - 1
_CLOCKS_S = 600
"""So far a chain's blocks may lag behind this clock when it is asked where a search begins."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """A kind of payment that is settled here. `pay_to` None: to anybody."""

    scheme: Scheme
    chain_id: int
    asset: Address
    pay_to: Address | None = None

    def holds(self, offer: Offer) -> bool:
        """Whether an offer is of this kind."""
        same = (self.scheme, self.chain_id, self.asset) == (offer.scheme, offer.chain_id, offer.asset)
        return same and self.pay_to in (None, offer.pay_to)


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a payment or refund. `state` as in the store, None: never heard of. The hash is empty when nothing was sent."""

    payment_id: Hash32
    state: str | None = None
    tx_hash: bytes = b""
    failure: str = ""


def payment_reference(payment_id: Hash32) -> Hash32:
    """A payment's job."""
    return Hash32(keccak256(b"placet/settle-job/v1\x00" + payment_id))


def refund_reference(payment_id: Hash32) -> Hash32:
    """A refund's job."""
    return Hash32(keccak256(b"placet/refund-job/v1\x00" + payment_id))


class PaymentBook:
    """Takes payments and refunds into the outbox. `vaults`: where an asset of a chain is refunded. `wake(lane, chain)` follows."""

    def __init__(
        self,
        *,
        store: Store,
        payments: PaymentStore,
        allowed: Sequence[Allowed],
        facilitator: Address,
        vaults: Mapping[tuple[int, Address], Address],
        wake: Callable[[str, int], None] = lambda lane, chain_id: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._payments = payments
        self._allowed = tuple(allowed)
        self._facilitator = facilitator
        self._vaults = dict(vaults)
        self._wake = wake
        self._clock = clock

    # --- payments

    async def settle(self, payment_id: Hash32, authorization: bytes, offer: bytes, charged: int) -> Status:
        """Take a payment: once this returns it is not forgotten. Doing it twice changes nothing.

        Raises:
            PaymentMalformed, PaymentRefused: its payer did not sign this for the offer.
            InvalidInput: the offer is not one that is settled here, the amount is out of bounds, or the id is another payment's.
            PaymentConflict: the id was taken with another amount, offer or signature.
        """
        verified = self._verified(authorization, offer)
        if verified.key.id != payment_id:
            raise InvalidInput("the payment has another id", field="paymentId")
        try:
            call = settlement_call(verified, charged)
        except ValueError as error:
            raise InvalidInput(f"charged: {error}", field="charged") from None
        payment, job = self._entry(verified, charged, call)
        if await self._payments.add(payment, job):
            log.info("payment %s is taken: %d of %s", hex0x(payment_id), charged, hex0x(payment.asset))
            self._wake(PAYMENTS, payment.chain_id)
        known = (await self._payments.get([payment_id]))[payment_id]
        taken = await self._store.job(known.payment.reference)
        if taken is None or (taken.target, taken.calldata, known.payment.charged) != (*call, charged):
            raise PaymentConflict("this payment was taken with another amount, offer or signature", field="charged")
        return _status(known)

    def _verified(self, authorization: bytes, offer: bytes) -> VerifiedPayment:
        own = offer_of(jsonx.parse(offer, field="offer", max_bytes=MAX_HEADER_BYTES, max_depth=MAX_DEPTH))
        if not any(kind.holds(own) for kind in self._allowed):
            raise InvalidInput("the offer is of a scheme, network, asset or payTo that is not settled here", field="offer")
        if own.scheme is Scheme.UPTO and own.facilitator != self._facilitator:
            raise InvalidInput(f"the facilitator here is {hex0x(self._facilitator)}", field="offer/extra/facilitatorAddress")
        payload = parse_json(authorization)
        signed = payload.signed
        until = signed.valid_before if isinstance(signed, Authorization) else signed.deadline
        # One that is over is taken too: it may have been executed, and only the chain can say so.
        return verify(payload, [own], now=min(int(self._clock()), until), needed_s=0)

    def _entry(self, verified: VerifiedPayment, charged: int, call: tuple[Address, bytes]) -> tuple[Payment, Job]:
        now, offer, payment_id = self._clock(), verified.offer, verified.key.id
        payment = Payment(
            payment_id=payment_id,
            reference=payment_reference(payment_id),
            chain_id=offer.chain_id,
            contract=verified.key.contract,
            asset=offer.asset,
            payer=verified.payer,
            pay_to=offer.pay_to,
            nonce=verified.key.nonce,
            signature=verified.payload.signature,
            charged=charged,
            signed_after=verified.valid_before - offer.max_timeout_s - FUTURE_S - _CLOCKS_S,
            valid_before=verified.valid_before,
            created_at=now,
        )
        until = verified.valid_before - (1 if offer.method is Method.EIP3009 else 0)
        return payment, new_job(payment.reference, PAYMENTS, offer.chain_id, call, hex0x(payment.payer), until, now)

    async def statuses(self, payment_ids: Sequence[Hash32]) -> list[Status]:
        """What is known of payments, in their order. Raises InvalidInput: more than MAX_STATUSES."""
        if len(payment_ids) > MAX_STATUSES:
            raise InvalidInput(f"at most {MAX_STATUSES} payments at once", field="paymentId")
        known = await self._payments.get(payment_ids)
        return [_status(known[payment_id]) if payment_id in known else Status(payment_id) for payment_id in payment_ids]

    # --- refunds

    async def refund(self, payment_id: Hash32, payer: Address, chain_id: int, asset: Address, amount: int) -> Status:
        """Credit a payment that is settled to its payer, once for ever. Doing it twice changes nothing.

        Raises:
            NotFound: no such payment was taken here. PaymentPending: it is not settled yet. Conflict: it failed, or its refund is of
            another amount. InvalidInput: it is another's, of another asset, or of less; or there is no vault for its asset.
        """
        known = (await self._payments.get([payment_id])).get(payment_id)
        if known is None:
            raise NotFound("no such payment", field="paymentId")
        payment = known.payment
        if payment.state == IN_HAND:
            raise PaymentPending("the payment is not settled yet; ask again", field="paymentId")
        if payment.state == FAILED:
            raise Conflict("the payment failed: there is nothing to give back", field="paymentId")
        if (payment.payer, payment.chain_id, payment.asset) != (payer, chain_id, asset):
            raise InvalidInput("the payment is of another payer, chain or asset", field="payer")
        if not 1 <= amount <= min(payment.charged, UINT96_MAX):
            raise InvalidInput(f"amount: from 1 to what was charged, {payment.charged}", field="amount")
        vault = self._vaults.get((chain_id, asset))
        if vault is None:
            raise InvalidInput("no vault refunds this asset here", field="asset")
        now = self._clock()
        refund = Refund(payment_id, refund_reference(payment_id), chain_id, vault, payer, amount, now)
        call = (vault, encode_call("credit(bytes32,address,uint96)", payment_id, payer, amount))
        if await self._payments.add_refund(refund, new_job(refund.reference, REFUNDS, chain_id, call, hex0x(payer), FOR_EVER, now)):
            log.info("refund of payment %s is taken: %d", hex0x(payment_id), amount)
            self._wake(REFUNDS, chain_id)
        found = await self._payments.refund(payment_id)
        assert found is not None
        refund, tx_hash = found
        if refund.amount != amount:
            raise Conflict(f"this payment's refund is of {refund.amount}", field="amount")
        return Status(payment_id, refund.state, tx_hash, refund.failure)


def _status(known: PaymentJob) -> Status:
    payment = known.payment
    return Status(payment.payment_id, payment.state, payment.tx_hash if payment.state == SETTLED else known.job_hash, payment.failure)
