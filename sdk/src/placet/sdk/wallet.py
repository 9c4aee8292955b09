"""Who pays, with what, whom, and how much at most: an offer is signed only when it is within these rules. No network, no web3."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import coincurve
import orjson

from placet.core import jsonx
from placet.core.errors import InvalidInput, PaymentMalformed, PlacetError
from placet.core.keccak import keccak256
from placet.core.payment.eip712 import authorization_digest, nonces_of, permit_digest, spender_of
from placet.core.payment.identifier import NAME as IDENTIFIER
from placet.core.payment.offers import VERSION, Method, Offer, Scheme, chain_id_of, offer_of
from placet.core.payment.payload import Authorization, Permit
from placet.core.payment.prices import atomic
from placet.core.payment.reading import Members
from placet.core.payment.verify import PaymentKey
from placet.core.types import Address, Hash32, address_from, hex0x
from placet.sdk.budget import SCALE_DECIMALS, Budget, BudgetExceeded

MAX_REQUIRED_BYTES: Final = 64 << 10
KEY_VARIABLE: Final = "PLACET_WALLET_KEY"


class PaymentNotAllowed(PlacetError):
    """A price is asked for, and none of the ways to pay it is within the wallet's rules. Nothing was signed; `reasons` says why of each."""

    code = "payment_not_allowed"
    http_status = 402


@dataclass(frozen=True, slots=True)
class Asset:
    """A token that may be paid with. Amounts of all assets of one wallet count alike in its budget: let them be of one currency.

    `permit2_allowance` is what the payer allowed Permit2, in atomic units: only then `upto` and Permit2 offers are taken. A token's EIP-712
    `name` and `version`, when they are given, must be the offer's.
    """

    network: str
    address: Address
    decimals: int = 6
    permit2_allowance: int = 0
    name: str | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        try:
            chain_id_of(self.network)
        except PaymentMalformed as error:
            raise InvalidInput(f"asset: {error.message}", field="asset") from None
        if not 0 <= self.decimals <= SCALE_DECIMALS:
            raise InvalidInput(f"asset: 0 to {SCALE_DECIMALS} decimals wanted", field="decimals")

    @classmethod
    def parse(cls, text: str, *, permit2_allowance: int = 0) -> Asset:
        """From `eip155:8453/0x…`, with `:decimals` behind when they are not 6. Raises InvalidInput."""
        network, slash, rest = text.partition("/")
        address, _, decimals = rest.partition(":")
        if not slash or (decimals and not decimals.isdecimal()):
            raise InvalidInput("asset: eip155:<chain>/0x<token>, with :<decimals> behind when they are not 6", field="asset")
        return cls(network, address_from(address, field="asset"), int(decimals or 6), permit2_allowance)

    def scaled(self, amount: int) -> int:
        """Atomic units as the budget counts them."""
        return int(amount * 10 ** (SCALE_DECIMALS - self.decimals))


USDC: Final = (
    Asset("eip155:8453", address_from("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"), name="USD Coin", version="2"),
    Asset("eip155:84532", address_from("0x036CbD53842c5426634e7929541eC2318f3dCF7e"), name="USDC", version="2"),
)
"""Circle's dollar on Base and on Base Sepolia: what is paid with unless something else is named."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be signed. `pay_to`: nobody but these; None: whoever the offer names. `max_timeout_s`: how long a payment may stay valid."""

    assets: Sequence[Asset] = USDC
    pay_to: frozenset[Address] | None = None
    max_timeout_s: int = 3600

    def refusal(self, offer: Offer) -> str | None:
        """Why an offer is not taken; None: it may be."""
        asset = self.asset_of(offer)
        if asset is None:
            return f"{hex0x(offer.asset)} on {offer.network} is no asset that may be paid with"
        if (asset.name is not None and asset.name != offer.token_name) or (
            asset.version is not None and asset.version != offer.token_version
        ):
            return f"the token calls itself {asset.name!r} {asset.version!r}, the offer otherwise"
        if self.pay_to is not None and offer.pay_to not in self.pay_to:
            return f"{hex0x(offer.pay_to)} is nobody who may be paid"
        if offer.max_timeout_s > self.max_timeout_s:
            return f"the payment would be valid for {offer.max_timeout_s} s, more than {self.max_timeout_s}"
        if offer.method is Method.PERMIT2 and asset.permit2_allowance < offer.amount:
            return f"Permit2 may move {asset.permit2_allowance}, less than {offer.amount}"
        return None

    def asset_of(self, offer: Offer) -> Asset | None:
        """The asset of an offer, when it may be paid with."""
        return next((item for item in self.assets if (item.network, item.address) == (offer.network, offer.asset)), None)


@dataclass(frozen=True, slots=True)
class Signed:
    """A payment that was signed. `maximum` in atomic units; `header` is PAYMENT-SIGNATURE."""

    key: PaymentKey
    offer: Offer
    maximum: int
    valid_before: int
    header: str = field(repr=False)

    @property
    def id(self) -> Hash32:
        """The payment's id, as receipts have it."""
        return self.key.id


class Wallet:
    """A secp256k1 key that pays. Signs nothing but payments, by EIP-3009 and Permit2."""

    def __init__(self, secret: bytes | str) -> None:
        try:
            raw = bytes.fromhex(secret.strip().removeprefix("0x")) if isinstance(secret, str) else secret
            self._key = coincurve.PrivateKey(raw)
            if len(raw) != 32:
                raise ValueError
        except ValueError:
            raise InvalidInput("a wallet's key has 32 bytes, 64 hex digits", field="key") from None
        self.address = Address(keccak256(self._key.public_key.format(compressed=False)[1:])[12:])

    def __repr__(self) -> str:
        return f"Wallet({hex0x(self.address)})"

    @classmethod
    def from_file(cls, path: Path) -> Wallet:
        """From a file of 64 hex digits that nobody else may read. Raises InvalidInput."""
        try:
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise InvalidInput(f"{path}: others may read it; chmod 600 it", field="key")
            return cls(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path}: cannot be read ({type(error).__name__})", field="key") from None

    @classmethod
    def from_env(cls, variable: str = KEY_VARIABLE) -> Wallet:
        """From an environment variable. Raises InvalidInput."""
        value = os.environ.get(variable)
        if not value:
            raise InvalidInput(f"no wallet: set {variable} to 64 hex digits, or name a file", field="key")
        return cls(value)

    @classmethod
    def create(cls, path: Path) -> Wallet:
        """A new key, in a new file. Raises InvalidInput: it is there already."""
        secret = secrets.token_hex(32)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secret + "\n")
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror}", field="key") from None
        return cls(secret)

    def key_of(self, offer: Offer, nonce: bytes) -> PaymentKey:
        """What a payment of an offer is known by, before it is signed."""
        return PaymentKey(offer.chain_id, nonces_of(offer), self.address, nonce)

    def sign(self, offer: Offer, accepted: Mapping[str, Any], nonce: bytes, identifier: str, *, now: int) -> Signed:
        """Pay an offer. `accepted` is its entry as it was sent, echoed unchanged; `nonce` 32 random bytes; `identifier` names the
        purchase."""
        until = now + offer.max_timeout_s
        if offer.method is Method.EIP3009:
            signed = Authorization(self.address, offer.pay_to, offer.amount, 0, until, nonce)
            digest = authorization_digest(signed, offer)
            name, members = "authorization", _authorization(signed)
        else:
            number = int.from_bytes(nonce, "big")
            permit = Permit(
                self.address,
                offer.asset,
                offer.amount,
                spender_of(offer.scheme),
                number,
                until,
                offer.pay_to,
                0,
                offer.facilitator,
            )
            digest = permit_digest(permit, offer)
            name, members = "permit2Authorization", _permit(permit)
        signature = self._key.sign_recoverable(digest, hasher=None)
        document = {
            "x402Version": VERSION,
            "accepted": dict(accepted),
            "payload": {"signature": hex0x(signature[:64] + bytes([27 + signature[64]])), name: members},
            "extensions": {IDENTIFIER: {"info": {"required": False, "id": identifier}}},
        }
        return Signed(self.key_of(offer, nonce), offer, offer.amount, until, _base64(document))


@dataclass(frozen=True, slots=True)
class Wanted:
    """An entry of `accepts[]`: as it was sent, and what it means."""

    entry: Mapping[str, Any]
    offer: Offer


def read_required(header: str) -> list[Wanted]:
    """The offers in PAYMENT-REQUIRED that are of a kind that is known here; others are passed over.

    Raises:
        PaymentMalformed: it is no document of x402's version 2.
    """
    try:
        raw = base64.b64decode(header, validate=True)
        document = jsonx.parse(raw, field="PAYMENT-REQUIRED", max_bytes=MAX_REQUIRED_BYTES, max_depth=16, fractions=True)
    except (binascii.Error, ValueError, InvalidInput):
        raise PaymentMalformed("what the gateway asks for cannot be read", field="PAYMENT-REQUIRED") from None
    members = Members(document, "PAYMENT-REQUIRED")
    if members.integer("x402Version", 0, 255) != VERSION:
        raise PaymentMalformed("what the gateway asks for is not of x402's version 2", field="PAYMENT-REQUIRED/x402Version")
    entries = members.take("accepts")
    found: list[Wanted] = []
    for entry in entries[:32] if isinstance(entries, list) else []:
        try:
            found.append(Wanted(entry, offer_of(entry)))
        except (PaymentMalformed, InvalidInput):
            continue
    return found


def choose(wanted: Iterable[Wanted], rules: Rules, budget: Budget) -> Wanted:
    """The offer to take: metered before fixed, then the cheapest.

    Raises:
        PaymentNotAllowed: none is within the rules. BudgetExceeded: those that are cost more than a payment may.
    """
    allowed: list[tuple[bool, int, int, Wanted]] = []
    reasons: list[str] = []
    too_much: BudgetExceeded | None = None
    for at, item in enumerate(wanted):
        refusal, asset = rules.refusal(item.offer), rules.asset_of(item.offer)
        if refusal is not None or asset is None:
            reasons.append(f"{item.offer.scheme}: {refusal}")
            continue
        scaled = asset.scaled(item.offer.amount)
        try:
            budget.check_one(scaled)
        except BudgetExceeded as error:
            too_much = too_much or error
            continue
        allowed.append((item.offer.scheme is not Scheme.UPTO, scaled, at, item))
    if allowed:
        return min(allowed, key=lambda entry: entry[:3])[3]
    if too_much is not None:
        raise too_much
    text = "; ".join(reasons) or "no offer of a kind that is known here"
    raise PaymentNotAllowed(f"nothing was paid: {text}", reasons=reasons)


def amount_of(text: str) -> int:
    """An amount in whole units as the budget counts it: `amount_of("0.5")`. Raises InvalidInput."""
    return atomic(text, SCALE_DECIMALS)


def _authorization(signed: Authorization) -> dict[str, str]:
    return {
        "from": hex0x(signed.payer),
        "to": hex0x(signed.to),
        "value": str(signed.value),
        "validAfter": str(signed.valid_after),
        "validBefore": str(signed.valid_before),
        "nonce": hex0x(signed.nonce),
    }


def _permit(signed: Permit) -> dict[str, Any]:
    witness = {"to": hex0x(signed.to), "validAfter": str(signed.valid_after)}
    if signed.facilitator is not None:
        witness["facilitator"] = hex0x(signed.facilitator)
    return {
        "from": hex0x(signed.payer),
        "permitted": {"token": hex0x(signed.token), "amount": str(signed.amount)},
        "spender": hex0x(signed.spender),
        "nonce": str(signed.nonce),
        "deadline": str(signed.deadline),
        "witness": witness,
    }


def _base64(document: dict[str, Any]) -> str:
    return base64.b64encode(orjson.dumps(document)).decode()
