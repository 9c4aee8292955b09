"""A receipt is verified by its numbered checks; each alone makes it fail, and what was not given is said to be unchecked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from placet.core import receipts
from placet.core.envelope import LocalBusSigner
from placet.core.errors import VerificationFailed
from placet.core.receipts import Execution, Finish, Mode, ModelRef, Price, Receipt
from placet.core.types import Address, Hash32
from placet.verify import Expected, ReceiptKey, verify_receipt

SIGNER, OTHER = LocalBusSigner(b"\7" * 32), LocalBusSigner(b"\x08" * 32)
NODE = Address(b"\6" * 20)
PAYER = Address(b"\x09" * 20)
REQUEST = {"model": "alice/chat", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}
ANSWER = {"id": "chatcmpl-1", "choices": [{"message": {"role": "assistant", "content": "hello"}}]}
KEYS = {receipts.key_id_of(SIGNER.public_key): ReceiptKey(SIGNER.public_key, NODE, since=100, until=300)}
EXPECTED = Expected(
    request=REQUEST,
    model_name="alice/chat",
    response=ANSWER,
    model_sha256=Hash32(b"\4" * 32),
    mode=Mode.VANILLA,
    max_amount=5000,
    payer=PAYER,
    client_nonce=Hash32(b"\x0a" * 32),
)


def receipt(signer: LocalBusSigner = SIGNER, **changes: Any) -> Receipt:
    values: dict[str, Any] = {
        "id": Hash32(b"\1" * 32),
        "surface": "chat.completions",
        "request_sha256": receipts.request_digest("chat.completions", "alice/chat", REQUEST),
        "response_sha256": receipts.response_digest(ANSWER),
        "model": ModelRef("alice", "chat", 7, Hash32(b"\4" * 32)),
        "mode": Mode.VANILLA,
        "execution": Execution("onnxruntime-genai 0.18.0", "CPUExecutionProvider"),
        "prompt_tokens": 12,
        "completion_tokens": 34,
        "rows": 0,
        "finish": Finish.STOP,
        "started_at": 199_000,
        "finished_at": 200_000,
        "node": NODE,
        "key_id": Hash32(bytes(32)),
        "price": Price(5000, Address(b"\x08" * 20), "eip155:8453", PAYER, "pay_1"),
        "client_nonce": Hash32(b"\x0a" * 32),
    }
    return receipts.sign(Receipt(**{**values, **changes}), signer)


def failed(made: Receipt, expected: Expected = EXPECTED, keys: Any = None) -> list[int]:
    report = verify_receipt(made, keys=KEYS if keys is None else keys, expected=expected)
    assert report.ok is (not [check for check in report.checks if not check.ok])
    return [check.number for check in report.checks if not check.ok]


def test_a_sound_receipt_passes_every_check() -> None:
    report = verify_receipt(receipt(), keys=KEYS, expected=EXPECTED)
    assert report.ok
    assert [check.number for check in report.checks] == list(range(1, 13))
    assert report.not_checked == ("that the model ran: in mode vanilla the node says so, and nothing proves it",)


BROKEN: list[tuple[str, dict[str, Any], list[int]]] = [
    ("an answer before the key was registered", {"started_at": 1, "finished_at": 99_999}, [3]),
    ("an answer after the key was revoked", {"finished_at": 300_000}, [3]),
    ("another node", {"node": Address(b"\5" * 20)}, [4]),
    ("another request", {"request_sha256": Hash32(b"\1" * 32)}, [5]),
    ("another answer", {"response_sha256": Hash32(b"\1" * 32)}, [6]),
    ("another model", {"model": ModelRef("alice", "chat", 7, Hash32(b"\5" * 32))}, [7]),
    ("another mode", {"mode": Mode.TEE}, [8]),
    ("a higher price", {"price": Price(5001, Address(b"\x08" * 20), "eip155:8453", PAYER, "pay_1")}, [9]),
    ("another payer", {"price": Price(1, Address(b"\x08" * 20), "eip155:8453", NODE, "pay_1")}, [9]),
    ("another nonce", {"client_nonce": None}, [10]),
    ("an end before the beginning", {"started_at": 200_001}, [11]),
    ("a cut answer", {"finish": Finish.INTERRUPTED}, [12]),
]


@pytest.mark.parametrize(("what", "changes", "numbers"), BROKEN, ids=[what for what, _, _ in BROKEN])
def test_each_check_fails_alone(what: str, changes: dict[str, Any], numbers: list[int]) -> None:
    assert failed(receipt(**changes)) == numbers


def test_a_receipt_by_nobody_or_changed_afterwards_is_refused() -> None:
    assert failed(receipt(OTHER)) == [1, 2, 3, 4]
    assert failed(replace(receipt(), completion_tokens=35)) == [2]
    assert failed(replace(receipt(), signature=b"\0" * 64)) == [2]
    pretended = {receipts.key_id_of(SIGNER.public_key): ReceiptKey(OTHER.public_key)}
    assert 1 in failed(receipt(), keys=pretended), "a key under another's name"
    with pytest.raises(VerificationFailed, match="check 2"):
        verify_receipt(replace(receipt(), rows=9), keys=KEYS, expected=EXPECTED).raise_for_failure()


def test_what_was_not_given_is_said_to_be_unchecked() -> None:
    relayed = receipt(execution=Execution("vllm", "unknown", None, "api.example.com"), jurisdiction="DE", mode=Mode.TEE)
    report = verify_receipt(relayed, keys=KEYS, expected=Expected())
    assert report.ok
    text = " ".join(report.not_checked)
    for words in ("which request", "which answer", "the model wanted", "TEE's evidence", "api.example.com", "declared, not proven"):
        assert words in text


def test_a_key_that_was_rotated_still_vouches_for_its_time() -> None:
    ended = {receipts.key_id_of(SIGNER.public_key): ReceiptKey(SIGNER.public_key, NODE, since=0, until=201)}
    assert failed(receipt(), keys=ended) == []
    assert failed(receipt(finished_at=201_000), keys=ended) == [3]
