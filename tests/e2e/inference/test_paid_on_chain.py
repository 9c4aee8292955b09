"""Paid inference with the real settlement on a real node: the dollar moves, once, whoever sends it; what is left comes back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from eth_account import Account
from x402 import x402Client
from x402.http.clients import x402_httpx_transport
from x402.mechanisms.evm.exact import register_exact_evm_client

from placet.core.evm.contracts import encode_call
from placet.core.models import Prices, Rate
from placet.core.payment.calls import settlement_call
from placet.core.payment.offers import Method, Offer, offer_of
from placet.core.payment.payload import parse_header
from placet.core.payment.verify import key_of, verify
from placet.core.types import Address, hex0x
from placet.sdk.hub import Publisher, PublisherKey
from placet.sdk.local.network import LocalNetwork, LocalOptions
from placet.sdk.local.payments import approve_permit2, balance_of, mint
from tests.e2e.inference.conftest import Town
from tests.support import onnx_files
from tests.support import payment as paying

NETWORK = "eip155:31337"
PAY_TO = Address(b"\xb0" * 20)
INFER, KEYS = "/v2/models/alice/linear/infer", "/api/v1/keys"
ROWS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [0.5] * 8}]}
MILLION = 10**6


@dataclass
class Bazaar(Town):
    """A town whose money is real, as far as a development chain's is."""

    @property
    def token(self) -> Address:
        assert self.network.money is not None
        return self.network.money.contracts.token

    async def balance(self, owner: Address) -> int:
        return await balance_of(self.network.chain, self.token, owner)

    async def give(self, owner: Address, amount: int = MILLION) -> None:
        await mint(self.network.chain, self.network.owner, self.token, owner, amount)

    async def post(self, path: str, body: Any, payment: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        if payment is not None:
            headers["PAYMENT-SIGNATURE"] = paying.header_of(payment)
        url = self.network.gateway_url + path
        async with aiohttp.ClientSession() as session, session.post(url, data=orjson.dumps(body), headers=headers) as answer:
            raw = await answer.read()
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, orjson.loads(raw)

    async def offers(self, path: str, body: Any) -> list[Offer]:
        status, headers, answer = await self.post(path, body)
        assert status == 402, answer
        document = orjson.loads(base64.b64decode(headers["payment-required"]))
        return [offer_of(entry) for entry in document["accepts"]]


@pytest.fixture
async def bazaar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bazaar]:
    monkeypatch.setattr(paying, "NOW", int(time.time()))
    options = LocalOptions(tmp_path / "net", operators=1, inference=1, payments=True, gateway_overrides={"payment_wait_s": 10.0})
    async with LocalNetwork(options) as network, network.client() as client:
        alice = Publisher(client, "placet:31337", "alice", PublisherKey(b"\x11" * 32))
        await alice.claim()
        made = Bazaar(network, client, alice, tmp_path)
        await made.publish("linear", onnx_files.linear())
        await alice.price("linear", Prices(NETWORK, made.token, PAY_TO, Rate(request=900, row=50)))
        async with asyncio.timeout(15):
            while not network.inside("gateway")._settler.is_there:
                await asyncio.sleep(0.05)
        yield made


def said(headers: dict[str, str]) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(base64.b64decode(headers["payment-response"]))
    return document


async def test_a_request_moves_its_price_once(bazaar: Bazaar) -> None:
    payer = paying.Payer()
    await bazaar.give(payer.address)
    (offer, _) = await bazaar.offers(INFER, ROWS)
    payment = payer.signs(offer)
    answers = await asyncio.gather(*(bazaar.post(INFER, ROWS, payment) for _ in range(8)))
    (paid,) = [headers for status, headers, _ in answers if status == 200 and "placet-replayed" not in headers]
    assert {status for status, _, _ in answers} <= {200, 503}
    response = said(paid)
    assert (response["success"], response["amount"]) == (True, "1000")
    receipt = await bazaar.network.rpc.receipt(bytes.fromhex(response["transaction"][2:]))  # type: ignore[arg-type]
    assert receipt is not None
    assert int(receipt["status"], 16) == 1
    assert (await bazaar.balance(payer.address), await bazaar.balance(PAY_TO)) == (MILLION - 1000, 1000)
    again = await bazaar.post(INFER, ROWS, payment)
    assert (again[0], again[1]["placet-replayed"]) == (200, "true")
    assert await bazaar.balance(PAY_TO) == 1000


async def test_a_permit_moves_it_too(bazaar: Bazaar) -> None:
    payer = paying.Payer()
    await bazaar.give(payer.address)
    await bazaar.network.rpc.call("anvil_setBalance", [hex0x(payer.address), hex(10**18)])
    await bazaar.network.rpc.call("anvil_impersonateAccount", [hex0x(payer.address)])
    await approve_permit2(bazaar.network.chain, payer.address, bazaar.token)
    (_, offer) = await bazaar.offers(INFER, ROWS)
    status, headers, body = await bazaar.post(INFER, ROWS, payer.signs(offer))
    assert status == 200, body
    assert said(headers)["success"] is True
    assert await bazaar.balance(PAY_TO) == 1000


@pytest.mark.parametrize("method", [Method.EIP3009, Method.PERMIT2])
async def test_a_payment_that_somebody_else_sent_first_counts(bazaar: Bazaar, method: Method) -> None:
    """Its signature is public once it is in a mempool. Our own transaction reverts then, and the payer has paid."""
    payer = paying.Payer()
    await bazaar.give(payer.address)
    await bazaar.network.rpc.call("anvil_setBalance", [hex0x(payer.address), hex(10**18)])
    await bazaar.network.rpc.call("anvil_impersonateAccount", [hex0x(payer.address)])
    await approve_permit2(bazaar.network.chain, payer.address, bazaar.token)
    offer = next(offer for offer in await bazaar.offers(INFER, ROWS) if offer.method is method)
    payment = payer.signs(offer)
    payload = parse_header(paying.header_of(payment))
    target, calldata = settlement_call(verify(payload, [offer], now=int(time.time()), needed_s=0), offer.amount)
    sent = await bazaar.network.chain.send(bazaar.network.accounts[5], target, calldata)
    status, headers, body = await bazaar.post(INFER, ROWS, payment)
    assert status == 200, body
    response = said(headers)
    assert response["success"] is True
    assert response["transaction"] == hex0x(sent.hash)
    assert await bazaar.balance(PAY_TO) == 1000


async def test_who_has_nothing_gets_nothing(bazaar: Bazaar) -> None:
    (offer, _) = await bazaar.offers(INFER, ROWS)
    status, headers, _ = await bazaar.post(INFER, ROWS, paying.Payer().signs(offer))
    assert status == 402
    assert orjson.loads(base64.b64decode(headers["payment-required"]))["error"] == "insufficient_funds"


async def test_money_that_is_gone_before_it_is_taken_stays_due(bazaar: Bazaar) -> None:
    """The balance is read a few seconds before; the payer spends it meanwhile. Whether it fails is certain only when the authorization is
    over, so it is said to be pending, stays open against the payer, and is taken as soon as there is something."""
    payer = paying.Payer()
    await bazaar.give(payer.address, 1000)
    (offer, _) = await bazaar.offers(INFER, ROWS)
    settler = bazaar.network.inside("gateway")._settler
    await settler.exposure(offer, payer.address, limit=10**9, max_open=16)  # read, and kept for a few seconds
    await bazaar.network.rpc.call("anvil_setBalance", [hex0x(payer.address), hex(10**18)])
    await bazaar.network.rpc.call("anvil_impersonateAccount", [hex0x(payer.address)])
    await bazaar.network.chain.send(payer.address, bazaar.token, encode_call("transfer(address,uint256)", bazaar.network.owner, 1000))
    status, headers, answer = await bazaar.post(INFER, ROWS, payer.signs(offer))
    assert status == 200, answer
    assert (said(headers)["success"], said(headers)["errorReason"]) == (False, "settlement_pending")
    await asyncio.sleep(3.5)  # the balance is read again
    status, headers, _ = await bazaar.post(INFER, ROWS, payer.signs(offer, nonce=8))
    assert (status, orjson.loads(base64.b64decode(headers["payment-required"]))["error"]) == (402, "insufficient_funds")
    assert await bazaar.balance(PAY_TO) == 0
    await bazaar.give(payer.address, 1000)
    async with asyncio.timeout(60):
        while await bazaar.balance(PAY_TO) == 0:
            await asyncio.sleep(0.5)
    assert (await bazaar.balance(payer.address), await bazaar.balance(PAY_TO)) == (0, 1000)


async def test_a_stock_x402_client_pays(bazaar: Bazaar) -> None:
    import httpx

    account = Account.from_key(b"\x77" * 32)
    await bazaar.give(Address(bytes.fromhex(account.address[2:])))
    client = x402Client()
    register_exact_evm_client(client, account, NETWORK)
    allowed: Any = {"network": NETWORK, "asset": hex0x(bazaar.token), "max_amount_per_payment": "100000"}
    client.set_spend_controls({"allowed_assets": [allowed]})
    async with httpx.AsyncClient(transport=x402_httpx_transport(client)) as http:
        answer = await http.post(bazaar.network.gateway_url + INFER, json=ROWS, timeout=30)
    assert answer.status_code == 200, answer.text
    assert said({name.lower(): value for name, value in answer.headers.items()})["success"] is True
    assert await bazaar.balance(PAY_TO) == 1000


async def test_a_closed_keys_credit_comes_back_on_chain(bazaar: Bazaar) -> None:
    assert bazaar.network.money is not None
    payer, secret, vault = paying.Payer(), b"\x5e" * 32, bazaar.network.money.vault
    await bazaar.give(payer.address)
    order = {"secretSha256": hex0x(hashlib.sha256(secret).digest()), "amount": "5000"}
    (offer, _) = await bazaar.offers(KEYS, order)
    payment = payer.signs(offer)
    status, _, account = await bazaar.post(KEYS, order, payment)
    assert status == 201, account
    assert await bazaar.balance(payer.address) == MILLION - 5000
    bearer = {"authorization": f"Bearer placet_{account['id']}_{secret.hex()}"}
    status, headers, _ = await bazaar.post(INFER, ROWS, **bearer)
    assert (status, headers["placet-charged"]) == (200, "1000")
    status, _, closed = await bazaar.post(f"{KEYS}/{account['id']}/close", {}, **bearer)
    key = key_of(parse_header(paying.header_of(payment)))
    assert key is not None
    assert (status, closed["refunds"]) == (
        200,
        [{"paymentId": hex0x(key.id), "payer": hex0x(payer.address), "amount": "4000"}],
    )
    async with asyncio.timeout(20):
        while True:
            raw = await bazaar.network.rpc.eth_call(vault, encode_call("refundOf(bytes32)", key.id))
            if any(raw):
                break
            await asyncio.sleep(0.2)
    assert (raw[12:32], int.from_bytes(raw[32:64], "big")) == (payer.address, 4000)
    await bazaar.network.rpc.call("anvil_setBalance", [hex0x(payer.address), hex(10**18)])
    await bazaar.network.rpc.call("anvil_impersonateAccount", [hex0x(payer.address)])
    await bazaar.network.chain.send(payer.address, vault, encode_call("withdraw(bytes32)", key.id))
    assert await bazaar.balance(payer.address) == MILLION - 1000
