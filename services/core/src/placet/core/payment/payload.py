"""What a client sends: PAYMENT-SIGNATURE from its bytes to a payment's parts, within bounds. Whether it pays is `verify`'s question.

What was signed has exactly its members, each in its one form. Members of the envelope that nothing here reads may be there.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from placet.core import jsonx
from placet.core.errors import InvalidInput, PaymentMalformed
from placet.core.payment.identifier import identifier_of
from placet.core.payment.offers import SIGNATURE_HEADER, VERSION
from placet.core.payment.reading import Members, malformed
from placet.core.types import Address

MAX_HEADER_BYTES = 8192
MAX_DEPTH = 12
MAX_SIGNATURE_BYTES = 2048
"""Longer than any that is taken: signatures of contract accounts are read, and refused by name."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The offer that a client says it took, echoed. `asset` and `pay_to` are lower-case."""

    scheme: str
    network: str
    amount: int
    asset: str
    pay_to: str
    max_timeout_s: int
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Authorization:
    """EIP-3009 TransferWithAuthorization. Times are unix seconds, both exclusive; the nonce has 32 bytes."""

    payer: Address
    to: Address
    value: int
    valid_after: int
    valid_before: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Permit:
    """Permit2 PermitWitnessTransferFrom with x402's witness; without `facilitator` it is that of `exact`. Times are unix seconds, both
    inclusive."""

    payer: Address
    token: Address
    amount: int
    spender: Address
    nonce: int
    deadline: int
    to: Address
    valid_after: int
    facilitator: Address | None


@dataclass(frozen=True, slots=True)
class PaymentPayload:
    """A payment as it was sent. `raw` is its JSON, byte for byte."""

    accepted: Accepted
    signed: Authorization | Permit
    signature: bytes
    identifier: str | None
    raw: bytes


def parse_header(value: str | bytes, *, identifier_required: bool = False) -> PaymentPayload:
    """The value of PAYMENT-SIGNATURE. That the header was sent once is the caller's to check.

    Raises:
        PaymentMalformed: too large, or not of its form; names the member.
    """
    encoded = value.encode("latin-1", "replace") if isinstance(value, str) else value
    if len(encoded) > MAX_HEADER_BYTES:
        raise malformed(SIGNATURE_HEADER, f"at most {MAX_HEADER_BYTES} bytes")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise malformed(SIGNATURE_HEADER, "base64 with padding wanted") from None
    if base64.b64encode(raw) != encoded:  # bits or padding that a decoder passes over
        raise malformed(SIGNATURE_HEADER, "base64 in its one form wanted")
    return parse_json(raw, identifier_required=identifier_required)


def parse_json(raw: bytes, *, identifier_required: bool = False) -> PaymentPayload:
    """A payment from its JSON. Raises PaymentMalformed."""
    try:
        value = jsonx.parse(raw, field="payment", max_bytes=MAX_HEADER_BYTES, max_depth=MAX_DEPTH)
    except InvalidInput as error:
        raise PaymentMalformed(error.message, field=error.field) from None
    members = Members(value, "")
    version = members.integer("x402Version", 0, 255)
    if version != VERSION:
        raise malformed("x402Version", f"only version {VERSION} is taken")
    accepted = _accepted(members.inside("accepted"))
    payload = members.inside("payload")
    signature = payload.data("signature", 1, MAX_SIGNATURE_BYTES)
    signed = _permit(payload.inside("permit2Authorization")) if payload.has("permit2Authorization") else _authorization(payload)
    payload.done()
    extensions = members.mapping("extensions") if members.has("extensions") else {}
    return PaymentPayload(accepted, signed, signature, identifier_of(extensions, required=identifier_required), raw)


def _accepted(members: Members) -> Accepted:
    accepted = Accepted(
        scheme=members.text("scheme"),
        network=members.text("network"),
        amount=members.decimal("amount"),
        asset=members.text("asset").lower(),
        pay_to=members.text("payTo").lower(),
        max_timeout_s=members.integer("maxTimeoutSeconds", 0, 2**31 - 1),
        extra=members.mapping("extra") if members.has("extra") else {},
    )
    members.done()
    return accepted


def _authorization(payload: Members) -> Authorization:
    members = payload.inside("authorization")
    signed = Authorization(
        payer=members.address("from"),
        to=members.address("to"),
        value=members.decimal("value"),
        valid_after=members.decimal("validAfter"),
        valid_before=members.decimal("validBefore"),
        nonce=members.data("nonce", 32, 32),
    )
    members.done()
    return signed


def _permit(members: Members) -> Permit:
    permitted, witness = members.inside("permitted"), members.inside("witness")
    signed = Permit(
        payer=members.address("from"),
        token=permitted.address("token"),
        amount=permitted.decimal("amount"),
        spender=members.address("spender"),
        nonce=members.decimal("nonce"),
        deadline=members.decimal("deadline"),
        to=witness.address("to"),
        valid_after=witness.decimal("validAfter"),
        facilitator=witness.address("facilitator") if witness.has("facilitator") else None,
    )
    for part in (permitted, witness, members):
        part.done()
    return signed
