"""Verification of a receipt of inference, as its numbered checks (docs/reference/receipts.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from placet.core.receipts import Finish, Mode, Receipt, key_id_of, request_digest, response_digest, signed_bytes
from placet.core.types import Address, Hash32
from placet.verify.report import Check, Report


@dataclass(frozen=True, slots=True)
class ReceiptKey:
    """A key that may sign receipts, and when: unix seconds. None: no end is known."""

    public_key: bytes
    node: Address | None = None
    since: int = 0
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What the caller knows of its own request. What is None is not checked, and the report says so."""

    request: Any = None
    """The request's body as it was sent, JSON values; for tensors as `placet.core.receipts.tensors_document` has them."""
    model_name: str | None = None
    """As the request named it."""
    response: Any = None
    """The answer's body without the member `placet`."""
    model_sha256: Hash32 | None = None
    mode: Mode | None = None
    max_amount: int | None = None
    payer: Address | None = None
    client_nonce: Hash32 | None = None


def verify_receipt(receipt: Receipt, *, keys: Mapping[Hash32, ReceiptKey], expected: Expected) -> Report:
    """Verify one receipt.

    1 its key is one of `keys`; 2 the signature; 3 the key was valid when the answer ended, judged at the receipt's own time; 4 the node is
    the key's; 5 the request is the caller's; 6 the answer is the caller's; 7 the model; 8 the mode; 9 the price is at most what was agreed,
    by the payer that was agreed; 10 the client's nonce; 11 times are in order; 12 the answer is whole.

    `keys` is the trust root: by key id, as `NodeRegistry` has them at a block the caller trusts.
    """
    checks: list[Check] = []
    left: list[str] = []

    def check(number: int, what: str, ok: bool, detail: str) -> None:
        checks.append(Check(number, what, ok, "" if ok else detail))

    key = keys.get(receipt.key_id)
    known = key is not None and key_id_of(key.public_key) == receipt.key_id
    check(1, "key", known, f"key 0x{receipt.key_id.hex()} is none of those given")
    check(2, "signature", key is not None and known and _signed(receipt, key.public_key), "the signature does not hold")
    ended = receipt.finished_at // 1000
    valid = key is not None and key.since <= ended and (key.until is None or ended < key.until)
    check(3, "key at its time", valid, f"the key was not valid at {ended}")
    check(4, "node", key is not None and (key.node is None or key.node == receipt.node), "the key belongs to another node")
    if expected.request is None or expected.model_name is None:
        left.append("which request it answers (only its digest is known)")
    else:
        same = request_digest(receipt.surface, expected.model_name, expected.request) == receipt.request_sha256
        check(5, "request", same, "the receipt is for another request")
    if expected.response is None:
        left.append("which answer it is for (only its digest is known)")
    else:
        check(6, "answer", response_digest(expected.response) == receipt.response_sha256, "the receipt is for another answer")
    if expected.model_sha256 is None:
        left.append("that this is the model wanted")
    else:
        check(7, "model", expected.model_sha256 == receipt.model.sha256, f"answered by 0x{receipt.model.sha256.hex()}")
    if expected.mode is not None:
        check(8, "mode", expected.mode is receipt.mode, f"delivered in mode {receipt.mode.value}")
    price = receipt.price
    if expected.max_amount is not None:
        amount = 0 if price is None else price.amount
        fits = amount <= expected.max_amount and (price is None or expected.payer is None or price.payer == expected.payer)
        check(9, "price", fits, f"{amount} was charged, {expected.max_amount} agreed, or to another payer")
    if expected.client_nonce is not None:
        check(10, "nonce", expected.client_nonce == receipt.client_nonce, "the receipt has another nonce")
    check(11, "times", receipt.started_at <= receipt.finished_at, "it ended before it began")
    check(12, "whole", receipt.finish is not Finish.INTERRUPTED, "the answer was cut; the receipt covers what there was")
    if receipt.mode is Mode.VANILLA:
        left.append("that the model ran: in mode vanilla the node says so, and nothing proves it")
    elif receipt.mode is Mode.TEE:
        left.append("the TEE's evidence (verify it with placet.verify.tee)")
    elif receipt.mode is Mode.ZKML:
        left.append("the proof (verify it with placet.verify.zk)")
    elif receipt.mode is Mode.AUDITED:
        left.append("that other nodes gave the same answer (verify their receipts with placet.verify.audit)")
    if receipt.execution.relayed is not None:
        left.append(f"what ran at {receipt.execution.relayed}: the node only passed the request on")
    if receipt.jurisdiction is not None:
        left.append(f"that the node is in {receipt.jurisdiction}: it is declared, not proven")
    return Report(tuple(checks), ("the receipt keys given (read them from NodeRegistry at a block you trust)",), tuple(left), "receipt")


def _signed(receipt: Receipt, public_key: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(receipt.signature, signed_bytes(receipt))
    except (InvalidSignature, ValueError):
        return False
    return True
