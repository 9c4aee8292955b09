"""Settlement submits a signed intent for its sender: once, with an outcome the gateway can tell."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from placet.core.errors import InvalidInput
from placet.core.types import address_from, hex0x
from tests.e2e.conftest import BLOCKED, WITHDRAW, MakeVault, Vault

# The development node's well-known fourth account.
ALICE_KEY = "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"


async def signed(vault: Vault, amount: int, receiver: str, **changes: Any) -> dict[str, Any]:
    call = {"from": hex0x(vault.alice), "functionSignature": WITHDRAW, "arguments": [str(amount), receiver, hex0x(vault.alice)]}
    prepared = await vault.client.prepare(hex0x(vault.address), call)
    signature = Account.sign_message(encode_typed_data(full_message=prepared["typedData"]), ALICE_KEY).signature
    options = {"signature": "0x" + bytes(signature).hex(), "relay": True, **changes}
    return await vault.client.submit(hex0x(vault.address), prepared["intent"], **options)


async def settled(vault: Vault, task_id: str, timeout_s: float = 20.0) -> dict[str, Any]:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        task = await vault.client.task(task_id)
        if task.get("settlement", {}).get("status") in ("confirmed", "reverted", "refused"):
            found: dict[str, Any] = task["settlement"]
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("settlement did not end")


async def test_a_relayed_intent_is_executed_once_and_its_outcome_is_told(make_vault: MakeVault) -> None:
    vault = await make_vault()
    assert address_from(Account.from_key(ALICE_KEY).address) == vault.alice
    before = await vault.shares()
    answer = await signed(vault, 40, "0x" + "b0" * 20)
    assert answer["decision"] == "allow"
    outcome = await settled(vault, answer["taskId"])
    assert outcome["status"] == "confirmed", outcome
    assert await vault.shares() == before - 40
    receipt = await vault.network.rpc.receipt(address_from_hash(outcome["transactionHash"]))
    assert receipt is not None
    assert int(receipt["gasUsed"], 16) == outcome["gasUsed"]


async def test_a_denied_intent_is_never_sent(make_vault: MakeVault) -> None:
    vault = await make_vault()
    answer = await signed(vault, 40, BLOCKED)
    assert answer["decision"] == "deny"
    assert "settlement" not in await vault.client.task(answer["taskId"])


async def test_an_attestation_that_no_longer_holds_is_refused_before_gas_is_spent(make_vault: MakeVault) -> None:
    vault = await make_vault()
    first, second = await asyncio.gather(signed(vault, 10, hex0x(vault.alice)), signed(vault, 11, hex0x(vault.alice)))
    outcomes = [await settled(vault, answer["taskId"]) for answer in (first, second)]
    assert sorted(outcome["status"] for outcome in outcomes) in (["confirmed", "refused"], ["confirmed", "reverted"])
    failed = next(outcome for outcome in outcomes if outcome["status"] != "confirmed")
    assert "SequenceMismatch" in failed["error"]


async def test_relaying_needs_the_senders_signature(make_vault: MakeVault) -> None:
    vault = await make_vault()
    with pytest.raises(InvalidInput, match="needed when somebody else submits"):
        await signed(vault, 10, hex0x(vault.alice), signature=None)
    with pytest.raises(InvalidInput, match="signature is not by"):
        await signed(vault, 10, hex0x(vault.alice), signature="0x" + "11" * 64 + "1b")


def address_from_hash(text: str) -> Any:
    return bytes.fromhex(text[2:])
