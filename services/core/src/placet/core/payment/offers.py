"""What a payment may be: entries of `accepts[]`, the document of a 402, and what is answered once a payment was taken.

Source: x402 version 2, core specification and the schemes `exact` and `upto` for EVM chains.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from placet.core.errors import InvalidInput
from placet.core.payment.reading import Members, malformed
from placet.core.types import UINT256_MAX, Address, Hash32, hex0x

VERSION = 2
REQUIRED_HEADER = "PAYMENT-REQUIRED"
SIGNATURE_HEADER = "PAYMENT-SIGNATURE"
RESPONSE_HEADER = "PAYMENT-RESPONSE"
MAX_TIMEOUT_S = 24 * 3600
_NETWORK = re.compile(r"eip155:([1-9][0-9]{0,15})\Z")


class Scheme(StrEnum):
    """How much is taken of what is signed."""

    EXACT = "exact"
    """All of it."""
    UPTO = "upto"
    """What was used, and at most that."""


class Method(StrEnum):
    """How the tokens move."""

    EIP3009 = "eip3009"
    """The token itself checks the signature."""
    PERMIT2 = "permit2"
    """Permit2 does, which the payer approved once; a proxy of x402 calls it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to pay, an entry of `accepts[]`. `amount` is in atomic units of `asset`: the price for `exact`, the maximum for `upto`.

    `token_name` and `token_version` are the token's EIP-712 domain. `facilitator` (for `upto` only) is who alone may charge.

    Raises:
        InvalidInput: its members contradict each other.
    """

    scheme: Scheme
    method: Method
    chain_id: int
    asset: Address
    amount: int
    pay_to: Address
    max_timeout_s: int
    token_name: str
    token_version: str
    facilitator: Address | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.amount <= UINT256_MAX:
            raise InvalidInput("offer: an amount from 1 to 2^256-1 wanted", field="amount")
        if not 1 <= self.chain_id < 10**16:
            raise InvalidInput("offer: a chain id from 1 to 10^16-1 wanted", field="network")
        if not 1 <= self.max_timeout_s <= MAX_TIMEOUT_S:
            raise InvalidInput(f"offer: a timeout from 1 to {MAX_TIMEOUT_S} seconds wanted", field="maxTimeoutSeconds")
        if (self.scheme is Scheme.UPTO) != (self.facilitator is not None):
            raise InvalidInput("offer: upto names its facilitator, and nothing else does", field="extra/facilitatorAddress")
        if self.scheme is Scheme.UPTO and self.method is not Method.PERMIT2:
            raise InvalidInput("offer: upto goes through Permit2", field="extra/assetTransferMethod")

    @property
    def network(self) -> str:
        """The chain, as CAIP-2 names it."""
        return f"eip155:{self.chain_id}"

    def extra(self) -> dict[str, str]:
        """What a scheme needs besides: the way the token moves, its EIP-712 domain, the facilitator."""
        extra = {"assetTransferMethod": self.method.value, "name": self.token_name, "version": self.token_version}
        if self.facilitator is not None:
            extra["facilitatorAddress"] = hex0x(self.facilitator)
        return extra

    def document(self) -> dict[str, Any]:
        """JSON values of the entry."""
        return {
            "scheme": self.scheme.value,
            "network": self.network,
            "amount": str(self.amount),
            "asset": hex0x(self.asset),
            "payTo": hex0x(self.pay_to),
            "maxTimeoutSeconds": self.max_timeout_s,
            "extra": self.extra(),
        }


def chain_id_of(network: str, name: str = "network") -> int:
    """The chain id in a CAIP-2 name. Raises PaymentMalformed."""
    match = _NETWORK.match(network)
    if match is None:
        raise malformed(name, "CAIP-2 of an EVM chain wanted, for instance eip155:8453")
    return int(match[1])


def offer_of(value: Any, name: str = "offer") -> Offer:
    """An own offer from its JSON values, as `Offer.document` writes them. Raises PaymentMalformed, InvalidInput."""
    members = Members(value, name)
    extra = members.inside("extra")
    try:
        scheme, method = Scheme(members.text("scheme")), Method(extra.text("assetTransferMethod"))
    except ValueError:
        raise malformed(name, "scheme or assetTransferMethod is not one that is offered here") from None
    offer = Offer(
        scheme=scheme,
        method=method,
        chain_id=chain_id_of(members.text("network"), members.path("network")),
        asset=members.address("asset"),
        amount=members.decimal("amount"),
        pay_to=members.address("payTo"),
        max_timeout_s=members.integer("maxTimeoutSeconds", 1, MAX_TIMEOUT_S),
        token_name=extra.text("name"),
        token_version=extra.text("version"),
        facilitator=extra.address("facilitatorAddress") if extra.has("facilitatorAddress") else None,
    )
    extra.done()
    members.done()
    return offer


@dataclass(frozen=True, slots=True)
class PaymentRequired:
    """The document of a 402. `error` is a stable code, `url` the resource that is paid for."""

    offers: Sequence[Offer]
    url: str
    description: str = ""
    mime_type: str = "application/json"
    error: str | None = None
    extensions: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """JSON values; members without a value are left out."""
        resource = {"url": self.url, "description": self.description, "mimeType": self.mime_type}
        document: dict[str, Any] = {
            "x402Version": VERSION,
            "error": self.error,
            "resource": {name: value for name, value in resource.items() if value},
            "accepts": [offer.document() for offer in self.offers],
            "extensions": dict(self.extensions) or None,
        }
        return {name: value for name, value in document.items() if value is not None}

    def header(self) -> str:
        """The value of PAYMENT-REQUIRED."""
        return _base64(self.document())


@dataclass(frozen=True, slots=True)
class PaymentResponse:
    """What became of a payment, for PAYMENT-RESPONSE. `amount` in atomic units; no transaction: none was needed, or none is known.

    `error_reason` is a stable code, there when `success` is not.
    """

    success: bool
    network: str
    payer: Address | None = None
    transaction: Hash32 | None = None
    amount: int | None = None
    error_reason: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """JSON values; members without a value are left out, but for `transaction`."""
        document: dict[str, Any] = {
            "success": self.success,
            "errorReason": self.error_reason,
            "payer": None if self.payer is None else hex0x(self.payer),
            "transaction": "" if self.transaction is None else hex0x(self.transaction),
            "network": self.network,
            "amount": None if self.amount is None else str(self.amount),
            "extra": dict(self.extra) or None,
        }
        return {name: value for name, value in document.items() if value is not None}

    def header(self) -> str:
        """The value of PAYMENT-RESPONSE."""
        return _base64(self.document())


def _base64(document: dict[str, Any]) -> str:
    return base64.b64encode(orjson.dumps(document)).decode()
