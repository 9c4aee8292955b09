"""The gateway's `call` is sent as it is by cast, viem and web3; each executes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from web3 import Web3

from placet.sdk.devservices import clients
from placet.sdk.devservices.process import run_tool
from tests.e2e.conftest import MakeVault

# The development node's well-known fourth account.
ALICE_KEY = "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"


def with_cast(url: str, call: dict[str, Any]) -> int:
    """`cast send`; returns the gas used."""
    arguments = [
        clients.cast(),
        "send",
        call["to"],
        call["data"],
        "--value",
        call["value"],
        "--rpc-url",
        url,
        "--private-key",
        ALICE_KEY,
        "--json",
    ]
    receipt = json.loads(run_tool(arguments, what="cast send"))
    assert int(receipt["status"], 16) == 1
    return int(receipt["gasUsed"], 16)


def with_viem(url: str, call: dict[str, Any]) -> int:
    """viem's wallet client; returns the gas used."""
    home = clients.install()
    receipt = json.loads(run_tool(["node", home / "send.mjs", url, ALICE_KEY, json.dumps(call)], what="viem", cwd=home))
    assert receipt["status"] == "success"
    return int(receipt["gasUsed"])


def with_web3(url: str, call: dict[str, Any]) -> int:
    """web3.py with a local account; returns the gas used."""
    web3 = Web3(Web3.HTTPProvider(url))
    account = web3.eth.account.from_key(ALICE_KEY)
    transaction: Any = {
        "from": account.address,
        "to": Web3.to_checksum_address(call["to"]),
        "data": call["data"],
        "value": int(call["value"]),
        "nonce": web3.eth.get_transaction_count(account.address),
        "chainId": web3.eth.chain_id,
        "maxFeePerGas": 10**10,
        "maxPriorityFeePerGas": 10**9,
    }
    transaction["gas"] = web3.eth.estimate_gas(transaction)
    sent = web3.eth.send_raw_transaction(account.sign_transaction(transaction).raw_transaction)
    receipt = web3.eth.wait_for_transaction_receipt(sent, timeout=30)
    assert receipt["status"] == 1
    return int(receipt["gasUsed"])


@pytest.mark.parametrize("send", [with_cast, with_viem, with_web3], ids=lambda send: send.__name__.removeprefix("with_"))
async def test_the_call_is_sent_as_it_is(make_vault: MakeVault, send: Callable[[str, dict[str, Any]], int]) -> None:
    vault = await make_vault()
    before = await vault.shares()
    answer = await vault.ask(33)
    gas = await asyncio.to_thread(send, vault.network.anvil.url, answer["call"])
    assert await vault.shares() == before - 33
    assert gas < 350_000
