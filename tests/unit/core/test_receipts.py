"""Receipts: one form, signed whole; and digests that do not depend on how a request was written."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from placet.core import receipts
from placet.core.envelope import LocalBusSigner
from placet.core.errors import InvalidInput
from placet.core.receipts import Execution, Finish, Mode, ModelRef, Price, Receipt, TensorDigest
from placet.core.types import Address, Hash32

SIGNER = LocalBusSigner(b"\7" * 32)


def receipt(**changes: Any) -> Receipt:
    values: dict[str, Any] = {
        "id": Hash32(b"\1" * 32),
        "surface": "chat.completions",
        "request_sha256": Hash32(b"\2" * 32),
        "response_sha256": Hash32(b"\3" * 32),
        "model": ModelRef("alice", "chat", 7, Hash32(b"\4" * 32)),
        "mode": Mode.VANILLA,
        "execution": Execution("onnxruntime-genai 0.18.0", "CPUExecutionProvider", Hash32(b"\5" * 32)),
        "prompt_tokens": 12,
        "completion_tokens": 34,
        "rows": 0,
        "finish": Finish.STOP,
        "started_at": 1_800_000_000_000,
        "finished_at": 1_800_000_000_500,
        "node": Address(b"\6" * 20),
        "key_id": Hash32(bytes(32)),
        "price": Price(10**30, Address(b"\x08" * 20), "eip155:8453", Address(b"\x09" * 20), "pay_1"),
        "client_nonce": Hash32(b"\x0a" * 32),
        "evidence_sha256": Hash32(b"\x0b" * 32),
        "jurisdiction": "DE",
    }
    return receipts.sign(Receipt(**{**values, **changes}), SIGNER)


MINIMAL = {
    "price": None,
    "client_nonce": None,
    "evidence_sha256": None,
    "jurisdiction": None,
    "node": None,
    "execution": Execution("e", "p"),
}


@pytest.mark.parametrize("changes", [{}, MINIMAL, {"execution": Execution("vllm", "unknown", None, "api.example.com")}])
def test_what_was_encoded_decodes(changes: dict[str, Any]) -> None:
    made = receipt(**changes)
    assert receipts.decode(receipts.encode(made)) == made
    assert receipts.from_document(json.loads(receipts.encode(made))) == made


def test_its_canonical_form_is_fixed() -> None:
    """A golden vector: whoever changes it changes every receipt ever signed."""
    raw = receipts.encode(receipt())
    assert raw.startswith(b'{"clientNonce":"0x0a0a')
    assert receipts.digest_of(receipt()).hex() == "d4354cd9749502e1a7e37ca92eea15f0d2252b1a2faf09df967e4ef10788dfb6"


def test_the_signature_covers_every_member() -> None:
    made = receipt()
    key = Ed25519PublicKey.from_public_bytes(SIGNER.public_key)
    key.verify(made.signature, receipts.signed_bytes(made))
    others: dict[str, Any] = {
        "surface": "completions",
        "model": ModelRef("alice", "chat", 8, Hash32(b"\4" * 32)),
        "mode": Mode.TEE,
        "execution": Execution("onnxruntime-genai 0.18.0", "CUDAExecutionProvider", Hash32(b"\5" * 32)),
        "finish": Finish.LENGTH,
        "price": Price(10**30 + 1, Address(b"\x08" * 20), "eip155:8453", Address(b"\x09" * 20), "pay_1"),
        "jurisdiction": "FR",
        "node": None,
    }
    for item in fields(made):
        if item.name == "signature":
            continue
        value = getattr(made, item.name)
        if item.name in others:
            changed = others[item.name]
        elif isinstance(value, bytes):
            changed = type(value)(bytes([value[0] ^ 1]) + value[1:])
        else:
            changed = value + 1
        forged = replace(made, **{item.name: changed})
        assert receipts.signed_bytes(forged) != receipts.signed_bytes(made), item.name


WRONG: list[tuple[str, Any, str]] = [
    ("v", 2, "receipt/v"),
    ("id", "0x" + "AA" * 32, "receipt/id"),
    ("id", "0x01", "receipt/id"),
    ("requestSha256", None, "receipt/requestSha256"),
    ("startedAt", -1, "receipt/startedAt"),
    ("startedAt", True, "receipt/startedAt"),
    ("mode", "best", "receipt"),
    ("finishReason", "maybe", "receipt"),
    ("more", 1, "receipt/more"),
    ("signature", "0x00", "receipt/signature"),
    ("jurisdiction", {"declared": "Germany"}, "receipt/jurisdiction/declared"),
    ("jurisdiction", {"declared": "DE", "proven": True}, "receipt/jurisdiction/proven"),
]


@pytest.mark.parametrize(("member", "value", "field"), WRONG)
def test_another_form_is_refused_by_name(member: str, value: Any, field: str) -> None:
    document = {**json.loads(receipts.encode(receipt())), member: value}
    with pytest.raises(InvalidInput) as caught:
        receipts.from_document(document)
    assert caught.value.field == field


@pytest.mark.parametrize("amount", ["01", "-1", "1.0", " 1", "1_0", "１"])
def test_amounts_are_canonical(amount: str) -> None:
    document = json.loads(receipts.encode(receipt()))
    document["price"]["amount"] = amount
    with pytest.raises(InvalidInput):
        receipts.from_document(document)


def test_a_request_s_digest_does_not_depend_on_how_it_is_written() -> None:
    body = {"model": "a/b", "temperature": 0.7, "messages": [{"role": "user", "content": "ä"}]}
    written = json.loads('{ "messages":[{"content":"\\u00e4","role":"user"}], "temperature":7e-1, "model":"a/b" }')
    assert receipts.request_digest("chat.completions", "a/b", body) == receipts.request_digest("chat.completions", "a/b", written)
    assert receipts.request_digest("completions", "a/b", body) != receipts.request_digest("chat.completions", "a/b", body)
    with pytest.raises(InvalidInput, match="canonical"):
        receipts.request_digest("chat.completions", "a/b", {"seed": 2**60})
    with pytest.raises(InvalidInput, match="canonical"):
        receipts.response_digest({"x": float("nan")})


def test_tensors_digest_by_their_bytes() -> None:
    one = TensorDigest("x", "FP32", (1, 2), Hash32(b"\1" * 32))
    assert receipts.tensors_document([one]) == [{"name": "x", "datatype": "FP32", "shape": [1, 2], "dataSha256": "0x" + "01" * 32}]
