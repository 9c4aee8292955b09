"""Mode audited: two nodes run a request, their answers are held against each other, and the caller can do the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import openai
import pytest
from click.testing import CliRunner
from openai import AsyncOpenAI

from placet.core import receipts
from placet.core.receipts import Mode, Receipt, key_id_of
from placet.sdk.cli.verify import verify
from placet.verify import Expected, ReceiptKey
from placet.verify.audit import verify_audit
from tests.e2e.inference.conftest import Town
from tests.e2e.inference.test_openai import MESSAGES, chat, plain

__all__ = ["chat"]

ASKED: dict[str, Any] = {"model": "alice/chat", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
PLACET = {"placet": {"mode": "audited"}}


def keys(town: Town) -> dict[Any, ReceiptKey]:
    found = [town.network.inside(f"inference-{at}").runner.node.signer.public_key for at in range(2)]
    return {key_id_of(key): ReceiptKey(key) for key in found}


async def test_two_nodes_agree_and_the_caller_sees_it(town: Town, chat: AsyncOpenAI) -> None:
    answer = await chat.chat.completions.create(**ASKED, extra_body=PLACET)
    placet = answer.model_extra["placet"] if answer.model_extra else {}
    found = [receipts.from_document(item) for item in (placet["receipt"], *placet["audit"])]
    assert [item.mode for item in found] == [Mode.AUDITED] * 2
    assert "2 nodes agree" in placet["routing"]["why"]
    expected = Expected(request={**ASKED, **PLACET}, model_name="alice/chat")
    report = verify_audit(found, keys=keys(town), expected=expected, response=plain(answer))
    assert report.ok, [check for check in report.checks if not check.ok]

    # What one node says of another answer, twice from one node, or of another mode, is no audit.
    lied = plain(answer)
    lied["choices"][0]["message"]["content"] += "."
    cases: list[tuple[list[Receipt], Any, int]] = [
        (found, lied, 17),
        ([found[0], found[0]], plain(answer), 13),
        ([found[0]], plain(answer), 13),
        ([found[0], replace(found[1], mode=Mode.VANILLA)], plain(answer), 14),
    ]
    for given, response, number in cases:
        failed = {
            check.number for check in verify_audit(given, keys=keys(town), expected=expected, response=response).checks if not check.ok
        }
        assert number in failed

    document = town.folder / "answer.json"
    document.write_text(answer.model_dump_json(exclude_unset=True))
    flags = [part for key in keys(town).values() for part in ("--key", "0x" + key.public_key.hex())]
    said = CliRunner().invoke(verify, [str(document), *flags])
    assert said.exit_code == 0, said.output
    assert "node 2: signature" in said.output


async def test_nodes_that_disagree_deliver_nothing(town: Town, chat: AsyncOpenAI) -> None:
    await chat.chat.completions.create(**ASKED)  # loaded somewhere
    await chat.chat.completions.create(**ASKED, extra_body=PLACET)
    liar = town.network.inside("inference-1").runner
    genuine = liar._text

    async def lie(*arguments: Any) -> Any:
        async for event in genuine(*arguments):
            if hasattr(event, "answer"):
                event.answer.document["choices"][0]["message"]["content"] = "a lie"
            yield event

    liar._text = lie
    with pytest.raises(openai.APIStatusError) as caught:
        await chat.chat.completions.create(**ASKED, extra_body=PLACET)
    assert (caught.value.status_code, json.loads(caught.value.response.text)["error"]["code"]) == (502, "audit_failed")


async def test_what_cannot_be_audited_is_refused(town: Town, chat: AsyncOpenAI) -> None:
    for more, status in (
        ({"extra_body": {"placet": {"mode": "audited", "auditors": 3}}}, 503),
        ({"extra_body": {"placet": {"mode": "audited", "auditors": 1}}}, 400),
        ({"extra_body": {"placet": {"auditors": 2}}}, 400),
        ({"extra_body": PLACET, "stream": True}, 400),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await chat.chat.completions.create(**ASKED, **more)
        assert caught.value.status_code == status
