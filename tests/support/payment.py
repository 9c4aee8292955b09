"""Offers, and payers who sign for them: by eth_account, so every digest of ours is compared with another's."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eth_account import Account
from eth_account.messages import encode_typed_data

from placet.core.payment.offers import Method, Offer, Scheme
from placet.core.payment.payload import parse_header
from placet.core.payment.verify import VerifiedPayment, verify
from placet.core.types import Address, address_from, hex0x

NOW = 1_800_000_000
NEEDED_S = 30
TIMEOUT_S = 120
TOKEN = Address(b"\x70" * 20)
PAY_TO = Address(b"\xb0" * 20)
FACILITATOR = Address(b"\xfa" * 20)
PERMIT2 = "0x000000000022D473030F116dDEE9F6B43aC78BA3"
EXACT_PROXY = "0x402085c248EeA27D92E8b30b2C58ed07f9E20001"
UPTO_PROXY = "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

_UINT = "uint256"
TYPES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "eip3009": {
        "TransferWithAuthorization": {
            "from": "address",
            "to": "address",
            "value": _UINT,
            "validAfter": _UINT,
            "validBefore": _UINT,
            "nonce": "bytes32",
        }
    },
    "exact": {"Witness": {"to": "address", "validAfter": _UINT}},
    "upto": {"Witness": {"to": "address", "facilitator": "address", "validAfter": _UINT}},
    "permit2": {
        "PermitWitnessTransferFrom": {
            "permitted": "TokenPermissions",
            "spender": "address",
            "nonce": _UINT,
            "deadline": _UINT,
            "witness": "Witness",
        },
        "TokenPermissions": {"token": "address", "amount": _UINT},
    },
}


def an_offer(scheme: Scheme = Scheme.EXACT, method: Method = Method.EIP3009, **changes: Any) -> Offer:
    """1000 units of a dollar on the development chain."""
    members: dict[str, Any] = {
        "scheme": scheme,
        "method": method,
        "chain_id": 31337,
        "asset": TOKEN,
        "amount": 1000,
        "pay_to": PAY_TO,
        "max_timeout_s": TIMEOUT_S,
        "token_name": "USD Coin",
        "token_version": "2",
        "facilitator": FACILITATOR if scheme is Scheme.UPTO else None,
    }
    return Offer(**{**members, **changes})


EXACT = an_offer()
EXACT_PERMIT2 = an_offer(method=Method.PERMIT2)
UPTO = an_offer(Scheme.UPTO, Method.PERMIT2, amount=5000)
OFFERS = (EXACT, EXACT_PERMIT2, UPTO)


@dataclass(frozen=True)
class Payer:
    """A plain account."""

    secret: bytes = b"\x11" * 32

    @property
    def address(self) -> Address:
        return address_from(Account.from_key(self.secret).address)

    def digest_and_signature(self, typed: dict[str, Any]) -> tuple[bytes, bytes]:
        """Of an EIP-712 document."""
        signed = Account.from_key(self.secret).sign_message(encode_typed_data(full_message=typed))
        return bytes(signed.message_hash), bytes(signed.signature)

    def signs(self, offer: Offer, *, nonce: int = 7, signed_for: Offer | None = None, **signed: Any) -> dict[str, Any]:
        """A payment's document. `signed` are other values that are really signed; `signed_for` another offer's domain and members."""
        target = signed_for or offer
        members = unsigned(target, self.address, nonce)
        for name, value in signed.items():
            part, _, inner = name.rpartition("__")
            (members[part] if part else members)[inner] = value
        _, signature = self.digest_and_signature(typed_data(target, members))
        name = "permit2Authorization" if offer.method is Method.PERMIT2 else "authorization"
        return {
            "x402Version": 2,
            "accepted": offer.document(),
            "payload": {name: members, "signature": hex0x(signature)},
        }

    def pays(self, offer: Offer = EXACT, *, nonce: int = 7, now: int = NOW, **changes: Any) -> VerifiedPayment:
        """A payment that was verified."""
        document = self.signs(offer, nonce=nonce)
        document.update(changes)
        return verify(parse_header(header_of(document)), [offer], now=now, needed_s=NEEDED_S)


def unsigned(offer: Offer, payer: Address, nonce: int) -> dict[str, Any]:
    """What is signed for an offer, as it is sent."""
    until = str(NOW + offer.max_timeout_s)
    if offer.method is Method.EIP3009:
        return {
            "from": hex0x(payer),
            "to": hex0x(offer.pay_to),
            "value": str(offer.amount),
            "validAfter": "0",
            "validBefore": until,
            "nonce": hex0x(nonce.to_bytes(32, "big")),
        }
    witness = {"to": hex0x(offer.pay_to), "validAfter": "0"}
    if offer.facilitator is not None:
        witness["facilitator"] = hex0x(offer.facilitator)
    return {
        "from": hex0x(payer),
        "permitted": {"token": hex0x(offer.asset), "amount": str(offer.amount)},
        "spender": UPTO_PROXY if offer.scheme is Scheme.UPTO else EXACT_PROXY,
        "nonce": str(nonce),
        "deadline": until,
        "witness": witness,
    }


def typed_data(offer: Offer, members: dict[str, Any]) -> dict[str, Any]:
    """The EIP-712 document of a payment, from the specifications' types."""
    if offer.method is Method.EIP3009:
        primary, types = "TransferWithAuthorization", dict(TYPES["eip3009"])
        domain = {
            "name": offer.token_name,
            "version": offer.token_version,
            "chainId": offer.chain_id,
            "verifyingContract": hex0x(offer.asset),
        }
    else:
        primary, types = "PermitWitnessTransferFrom", {**TYPES["permit2"], **TYPES[offer.scheme.value]}
        domain = {"name": "Permit2", "chainId": offer.chain_id, "verifyingContract": PERMIT2}
    kinds = {"name": "string", "version": "string", "chainId": _UINT, "verifyingContract": "address"}
    fields = {"EIP712Domain": {name: kinds[name] for name in domain}, **types}
    return {
        "types": {name: [{"name": member, "type": kind} for member, kind in of.items()] for name, of in fields.items()},
        "primaryType": primary,
        "domain": domain,
        "message": _as_numbers(members),
    }


def _as_numbers(members: dict[str, Any]) -> dict[str, Any]:
    texts = {"from", "to", "spender", "token", "facilitator"}
    out: dict[str, Any] = {}
    for name, value in members.items():
        if isinstance(value, dict):
            out[name] = _as_numbers(value)
        elif name in texts:
            out[name] = value
        elif value.startswith("0x"):
            out[name] = bytes.fromhex(value[2:])
        else:
            out[name] = int(value)
    return out


def edited(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The document with another value at a path; `...` removes the member."""
    out = copy.deepcopy(document)
    *parents, last = path.split("/")
    at = out
    for name in parents:
        at = at[name]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return out


def header_of(document: Any) -> str:
    """PAYMENT-SIGNATURE of a document."""
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.b64encode(raw).decode()
