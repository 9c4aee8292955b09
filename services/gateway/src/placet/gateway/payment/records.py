"""What the ledger is asked with and what it answers. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from placet.core.payment.offers import Offer, PaymentResponse, Scheme
from placet.core.payment.payload import PaymentPayload, parse_json
from placet.core.payment.verify import VerifiedPayment, key_of
from placet.core.types import Address, Hash32, hex0x
from placet.gateway.payment.states import State


@dataclass(frozen=True, slots=True)
class PaidRequest:
    """What is paid for: a request's hash (`request_hash`), the surface it came by, and the API key's tenant when there is one."""

    hash: Hash32
    surface: str
    tenant: str | None = None


def request_hash(method: str, path: str, body: bytes) -> Hash32:
    """What makes two requests the same: method, path with query, and every byte of the body."""
    digest = hashlib.sha256(b"placet/paid-request/v1\x00")
    for part in (method.encode(), path.encode(), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return Hash32(digest.digest())


@dataclass(frozen=True, slots=True)
class Exposure:
    """How much of a payer's may be open at once, in atomic units of one asset: work that is not paid for yet.

    `balance` is what the payer had (and allowed Permit2) when it was read, at `balance_at`; None: not known, and `limit` alone counts.
    """

    limit: int
    max_open: int
    balance: int | None = None
    balance_at: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, kept to be given again. No body: it was a stream, or too large; digest and receipt stand for it."""

    sha256: Hash32
    receipt_id: Hash32 | None = None
    body: bytes | None = None
    media_type: str = "application/json"
    status: int = 200


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment, as the ledger has it. Amounts in atomic units; `authorization` is what the client sent, byte for byte."""

    id: Hash32
    chain_id: int
    payer: Address
    scheme: Scheme
    maximum: int
    charged: int | None
    valid_before: int
    offer: Offer
    authorization: bytes
    identifier: str | None
    request: PaidRequest
    state: State
    served_at: int | None
    tx_hash: Hash32 | None
    failure: str | None
    answer: Answer | None
    instance: str
    run: str
    created_at: int
    updated_at: int

    def payload(self) -> PaymentPayload:
        """What the client sent, parsed."""
        return parse_json(self.authorization)

    def verified(self) -> VerifiedPayment:
        """The payment as it was verified when it was taken, to be settled."""
        payload = self.payload()
        key = key_of(payload)
        assert key is not None
        assert key.id == self.id
        return VerifiedPayment(key, self.scheme, self.maximum, payload.signed.valid_after, self.valid_before, self.offer, payload)

    def response(self) -> PaymentResponse:
        """What PAYMENT-RESPONSE says now: success once the transfer is final, `settlement_pending` before."""
        reason = {State.SETTLED: None, State.FAILED: self.failure}.get(self.state, "settlement_pending")
        settled = self.state is State.SETTLED
        return PaymentResponse(
            success=settled,
            network=self.offer.network,
            payer=self.payer,
            transaction=self.tx_hash,
            amount=self.charged if settled else None,
            error_reason=reason,
            extra={"paymentId": hex0x(self.id)},
        )


@dataclass(frozen=True, slots=True)
class Reserved:
    """This call reserved the payment: run the request, once."""

    payment: Payment


@dataclass(frozen=True, slots=True)
class InProgress:
    """The same payment with the same request is being served. 503 with Retry-After; the client sends the same payment again."""

    payment: Payment


@dataclass(frozen=True, slots=True)
class Answered:
    """The request was answered: give `payment.answer` again, with `payment.response()`."""

    payment: Payment
    answer: Answer


@dataclass(frozen=True, slots=True)
class Unanswered:
    """What served it was lost before its answer was kept. Its payer is owed an answer, or what was taken."""

    payment: Payment


Outcome = Reserved | InProgress | Answered | Unanswered
