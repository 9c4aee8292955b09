"""Whether a payment pays for an offer: numbered checks over what was signed, without a chain and without believing the client.

1 the offer it says it took is one of ours; 2 it is signed in the offer's way; 3 it pays whom we say, 4 in the token, 5 by the spender and
6 the facilitator we say; 7 the amount; 8, 9, 10 its time; 11 to 13 the signature's form; 14 whose it is. What the chain alone knows
(balance, allowance, a used nonce, contract accounts) is not asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from placet.core.ecdsa import HALF_ORDER, recover
from placet.core.errors import InvalidInput, PaymentMalformed, PaymentRefused
from placet.core.keccak import keccak256
from placet.core.payment.eip712 import PERMIT2, authorization_digest, nonces_of, permit_digest, spender_of
from placet.core.payment.offers import Method, Offer, Scheme, chain_id_of
from placet.core.payment.payload import Accepted, Authorization, PaymentPayload, Permit
from placet.core.types import Address, Hash32, address_from, hex0x

CHECKS = (
    "offer",
    "method",
    "recipient",
    "token",
    "spender",
    "facilitator",
    "value",
    "valid_after",
    "valid_before",
    "far_future",
    "signature_length",
    "signature_v",
    "signature_s",
    "signature",
)
FUTURE_S = 60
"""How much longer than an offer's timeout a payment may be valid: clients sign by their own clock."""


@dataclass(frozen=True, slots=True)
class PaymentKey:
    """What can be used once: a payer's nonce at the contract that counts it (`nonces_of`: the token, or Permit2)."""

    chain_id: int
    contract: Address
    payer: Address
    nonce: bytes

    @property
    def id(self) -> Hash32:
        """The payment's id, in receipts and refunds."""
        chain = self.chain_id.to_bytes(32, "big")
        return Hash32(keccak256(b"placet/payment/v1\x00" + chain + self.contract + self.payer + self.nonce))


@dataclass(frozen=True, slots=True)
class VerifiedPayment:
    """A payment that its payer signed for an offer of ours. `maximum` in atomic units: what may be taken; for `exact`, what is.

    It can be executed while `valid_after` < time < `valid_before` (unix seconds).
    """

    key: PaymentKey
    scheme: Scheme
    maximum: int
    valid_after: int
    valid_before: int
    offer: Offer
    payload: PaymentPayload

    @property
    def payer(self) -> Address:
        """Who pays."""
        return self.key.payer


def verify(payload: PaymentPayload, offers: Sequence[Offer], *, now: int, needed_s: int) -> VerifiedPayment:
    """Check a payment against own offers: the ones that hold now, and those that held when the client may have read them.

    Args:
        now: unix seconds.
        needed_s: how long it must remain valid: the longest generation, and the settlement after it.

    Raises:
        PaymentRefused: names the check (`CHECKS`) and what to do.
    """
    offer = match(payload.accepted, offers)
    signed = payload.signed
    if isinstance(signed, Authorization):
        _demand(offer.method is Method.EIP3009, "method", "the offer is paid through Permit2: sign a permit2Authorization")
        amount, valid_before = signed.value, signed.valid_before
    else:
        _demand(offer.method is Method.PERMIT2, "method", "the offer is paid by EIP-3009: sign an authorization")
        amount, valid_before = signed.amount, signed.deadline
    _demand(signed.to == offer.pay_to, "recipient", f"another is paid; sign for the offer's payTo, {hex0x(offer.pay_to)}")
    if isinstance(signed, Permit):
        _check_permit(signed, offer)
    _demand(amount == offer.amount, "value", f"it is over {amount}; sign exactly {offer.amount}")
    _check_time(signed.valid_after, valid_before, offer, now, needed_s)
    digest = authorization_digest(signed, offer) if isinstance(signed, Authorization) else permit_digest(signed, offer)
    _check_signature(payload.signature, digest, signed.payer)
    key = PaymentKey(offer.chain_id, nonces_of(offer), signed.payer, _nonce_of(signed))
    return VerifiedPayment(key, offer.scheme, offer.amount, signed.valid_after, valid_before, offer, payload)


def key_of(payload: PaymentPayload) -> PaymentKey | None:
    """The key of a payment that was not verified, to look for one that was; None when it can be none of ours."""
    signed, accepted = payload.signed, payload.accepted
    try:
        chain_id = chain_id_of(accepted.network)
        contract = address_from(accepted.asset) if isinstance(signed, Authorization) else PERMIT2
    except (PaymentMalformed, InvalidInput):
        return None
    return PaymentKey(chain_id, contract, signed.payer, _nonce_of(signed))


def _nonce_of(signed: Authorization | Permit) -> bytes:
    return signed.nonce if isinstance(signed, Authorization) else signed.nonce.to_bytes(32, "big")


def match(accepted: Accepted, offers: Sequence[Offer]) -> Offer:
    """The own offer that a client took: equal in every member, `extra` holding at least what ours says.

    Raises:
        PaymentRefused: `offer`; `field` names the first member in which none is left.
    """
    members: tuple[tuple[str, Callable[[Offer], bool]], ...] = (
        ("scheme", lambda offer: offer.scheme.value == accepted.scheme),
        ("network", lambda offer: offer.network == accepted.network),
        ("asset", lambda offer: hex0x(offer.asset) == accepted.asset),
        ("payTo", lambda offer: hex0x(offer.pay_to) == accepted.pay_to),
        ("extra", lambda offer: _holds(accepted.extra, offer.extra())),
        ("maxTimeoutSeconds", lambda offer: offer.max_timeout_s == accepted.max_timeout_s),
        ("amount", lambda offer: offer.amount == accepted.amount),
    )
    left = list(offers)
    for name, is_equal in members:
        left = [offer for offer in left if is_equal(offer)]
        if not left:
            text = f"accepted/{name} is of no offer that holds; take one of accepts[] unchanged, and sign again"
            raise PaymentRefused(text, field=f"accepted/{name}", check="offer")
    return left[0]


def _holds(given: Any, ours: dict[str, str]) -> bool:
    return all(name in given and type(given[name]) is str and given[name] == value for name, value in ours.items())


def _demand(holds: bool, check: str, text: str) -> None:
    if not holds:
        raise PaymentRefused(f"payment: {text}", check=check)


def _check_permit(signed: Permit, offer: Offer) -> None:
    spender = spender_of(offer.scheme)
    _demand(signed.token == offer.asset, "token", f"it is in another token; sign for {hex0x(offer.asset)}")
    _demand(signed.spender == spender, "spender", f"it names another spender; sign for {hex0x(spender)}")
    if offer.facilitator is None:
        _demand(signed.facilitator is None, "facilitator", "it has the witness of upto; sign that of exact, without a facilitator")
    else:
        text = f"it lets another charge; sign the facilitator {hex0x(offer.facilitator)}"
        _demand(signed.facilitator == offer.facilitator, "facilitator", text)


def _check_time(valid_after: int, valid_before: int, offer: Offer, now: int, needed_s: int) -> None:
    latest = now + offer.max_timeout_s + FUTURE_S
    _demand(valid_after < now, "valid_after", "it is not valid yet; sign a validAfter that is past")
    _demand(valid_before >= now + needed_s, "valid_before", f"it ends too soon; sign one that is valid for {needed_s} s or more")
    _demand(valid_before <= latest, "far_future", f"it is valid for too long; sign one for {offer.max_timeout_s} s")


def _check_signature(signature: bytes, digest: Hash32, payer: Address) -> None:
    size = "its signature has not 65 bytes; sign with a plain account, those of contracts are not taken"
    _demand(len(signature) == 65, "signature_length", size)
    _demand(signature[64] in (27, 28), "signature_v", "the v of its signature is neither 27 nor 28")
    _demand(int.from_bytes(signature[32:64], "big") <= HALF_ORDER, "signature_s", "its signature has a high s; sign with a low one (EIP-2)")
    text = "its `from` did not sign this for the offer: chain, token, the token's name and version, and every member count"
    _demand(recover(digest, signature) == payer, "signature", text)
