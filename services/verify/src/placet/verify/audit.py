"""Verification of an audited answer: receipts of several nodes that ran one request, each alone, in one execution profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from placet.core.receipts import Mode, Receipt, response_digest
from placet.core.types import Hash32
from placet.verify.receipt import Expected, ReceiptKey, verify_receipt
from placet.verify.report import Check, Report

_PREFIXES = {"chat.completions": "chatcmpl-", "completions": "cmpl-"}


def verify_audit(
    receipts: Sequence[Receipt], *, keys: Mapping[Hash32, ReceiptKey], expected: Expected, at_least: int = 2, response: Any = None
) -> Report:
    """Check the receipts of an audited answer, the first being the answer's own.

    1 to 12 as `verify_receipt`, for each; 13 there are at least so many, of different keys; 14 all are in mode audited; 15 of one model and
    execution profile; 16 for one request; 17 for one answer: tensors by digest; a document with its `id` and `created` replaced by what
    each receipt says of them (`response`: the answer's body without the member `placet`).
    """
    checks: list[Check] = []
    left: list[str] = []
    for at, receipt in enumerate(receipts):
        own = Expected(
            request=expected.request,
            model_name=expected.model_name,
            response=_answer_of(receipt, response) if response is not None else None,
            model_sha256=expected.model_sha256,
            mode=Mode.AUDITED,
            client_nonce=expected.client_nonce,
        )
        report = verify_receipt(receipt, keys=keys, expected=own)
        checks += [Check(check.number, f"node {at + 1}: {check.what}", check.ok, check.detail) for check in report.checks]
        left += [item for item in report.not_checked if item not in left]

    def check(number: int, what: str, ok: bool, detail: str) -> None:
        checks.append(Check(number, what, ok, "" if ok else detail))

    signers = {receipt.key_id for receipt in receipts}
    check(13, "nodes", len(signers) >= max(2, at_least) and len(signers) == len(receipts), f"{len(signers)} different keys")
    check(14, "mode", all(receipt.mode is Mode.AUDITED for receipt in receipts), "a receipt is in another mode")
    same = {(receipt.model, receipt.execution.profile) for receipt in receipts}
    check(15, "profile", len(same) == 1 and all(profile is not None for _, profile in same), "models or execution profiles differ")
    check(16, "request", len({receipt.request_sha256 for receipt in receipts}) == 1, "the receipts are for different requests")
    if response is not None:
        held = all(response_digest(_answer_of(receipt, response)) == receipt.response_sha256 for receipt in receipts)
        check(17, "answer", held, "a node gave another answer")
    else:
        check(17, "answer", len({receipt.response_sha256 for receipt in receipts}) == 1, "a node gave another answer")
    left.append("that the nodes do not belong to one owner: NodeRegistry says who owns them")
    return Report(tuple(checks), ("the receipt keys given, and that of these nodes one is honest",), tuple(left), "audit")


def _answer_of(receipt: Receipt, response: Any) -> Any:
    """The answer as that node gave it: its id and time are its own."""
    prefix = _PREFIXES.get(receipt.surface)
    if prefix is None or not isinstance(response, dict):
        return response
    return {**response, "id": prefix + receipt.id.hex()[:32], "created": receipt.started_at // 1000}
