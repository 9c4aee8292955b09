"""Paid inference over HTTP: one payment, one run; stock clients; every answer that a payment can have. Settlement is the tests' own."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from eth_account import Account
from openai import AsyncOpenAI
from x402 import x402Client
from x402.http.clients import x402_httpx_transport
from x402.mechanisms.evm.exact import register_exact_evm_client

from placet.core import receipts
from placet.core.gen import payment_pb2 as pb
from placet.core.models import Prices, Rate
from placet.core.payment.offers import Offer, Scheme, offer_of
from placet.core.types import Address, hex0x
from placet.gateway.payment.states import State
from placet.sdk.hub import Publisher, PublisherKey
from placet.sdk.local.network import LocalNetwork, LocalOptions
from tests.e2e.inference.conftest import Town
from tests.support import models, onnx_files
from tests.support import payment as paying
from tests.support.settlement import FakeSettlement

TOKEN, FACILITATOR = Address(b"\x70" * 20), Address(b"\xfa" * 20)
PAY_TO = Address(b"\xb0" * 20)
TILL = Address(b"\xb1" * 20)
NETWORK = "eip155:31337"
MESSAGES: Any = [{"role": "user", "content": "Tell me a story."}]
SECRET = "0x" + "11" * 32


@dataclass
class Market(Town):
    """A town where models have prices."""

    settlement: FakeSettlement

    @property
    def url(self) -> str:
        return self.network.gateway_url

    async def post(self, path: str, body: Any, payment: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        given = dict(headers)
        if payment is not None:
            given["PAYMENT-SIGNATURE"] = payment if isinstance(payment, str) else paying.header_of(payment)
        async with aiohttp.ClientSession() as session, session.post(self.url + path, data=orjson.dumps(body), headers=given) as answer:
            raw = await answer.read()
            kind = answer.headers.get("content-type", "")
            said = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, said, orjson.loads(raw) if "json" in kind else raw

    async def offers(self, path: str, body: Any) -> list[Offer]:
        status, headers, _ = await self.post(path, body)
        assert status == 402
        assert headers["cache-control"] == "no-store"
        document = orjson.loads(base64.b64decode(headers["payment-required"]))
        assert document["x402Version"] == 2
        return [offer_of(entry) for entry in document["accepts"]]

    async def states(self) -> list[tuple[State, int | None]]:
        import sqlalchemy as sa

        from placet.gateway.payment.ledger import _PAYMENT

        async with self.network.inside("gateway")._database.connect() as connection:
            rows = (await connection.execute(sa.select(_PAYMENT.c.state, _PAYMENT.c.charged).order_by(_PAYMENT.c.created_at))).all()
        return [(State(row.state), None if row.charged is None else int(row.charged)) for row in rows]

    def usage(self) -> int:
        """Requests that ran, at all replicas."""
        return sum(self.network.inside(f"inference-{at}").runner.runs for at in range(2))


@pytest.fixture
async def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Market]:
    monkeypatch.setattr(paying, "NOW", int(time.time()))
    settlement = FakeSettlement()
    address = await settlement.start()
    asset = {
        "network": NETWORK,
        "asset": hex0x(TOKEN),
        "name": "USD Coin",
        "methods": ["eip3009", "permit2"],
        "facilitator": hex0x(FACILITATOR),
    }
    overrides = {"payment_assets": [asset], "payment_service": address, "payment_wait_s": 2.0, "prepaid_pay_to": hex0x(TILL)}
    options = LocalOptions(tmp_path / "net", operators=1, inference=2, gateway_overrides=overrides)
    try:
        async with LocalNetwork(options) as network, network.client() as client:
            alice = Publisher(client, "placet:31337", "alice", PublisherKey(b"\x11" * 32))
            await alice.claim()
            made = Market(network, client, alice, tmp_path, settlement)
            await made.publish("linear", onnx_files.linear())
            await alice.price("linear", Prices(NETWORK, TOKEN, PAY_TO, Rate(request=900, row=50)))
            for at in range(2):  # count what really runs
                _count(network.inside(f"inference-{at}").runner)
            await _settled_connection(network)
            yield made
    finally:
        await settlement.stop()


def _count(runner: Any) -> None:
    runner.runs = 0
    genuine = runner._plain

    async def counted(*arguments: Any) -> Any:
        runner.runs += 1
        async for event in genuine(*arguments):
            yield event

    runner._plain = counted


async def _settled_connection(network: LocalNetwork) -> None:
    async with asyncio.timeout(10):
        while not network.inside("gateway")._settler.is_there:
            await asyncio.sleep(0.05)


INFER = "/v2/models/alice/linear/infer"


def rows(count: int = 2) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [count, 4], "data": [0.5] * 4 * count}]}


def signed(offer: Offer, nonce: int = 7, payer: paying.Payer | None = None, **more: Any) -> dict[str, Any]:
    return (payer or paying.Payer()).signs(offer, nonce=nonce) | more


async def test_a_request_is_priced_paid_run_once_and_receipted(market: Market) -> None:
    offers = await market.offers(INFER, rows())
    assert [(offer.scheme, offer.amount, offer.pay_to) for offer in offers] == [(Scheme.EXACT, 1000, PAY_TO)] * 2
    payment = signed(offers[0])
    status, headers, answer = await market.post(INFER, rows(), payment)
    assert status == 200
    said = orjson.loads(base64.b64decode(headers["payment-response"]))
    assert (said["success"], said["amount"], said["payer"]) == (True, "1000", hex0x(paying.Payer().address))
    assert "private" in headers["cache-control"]
    receipt = receipts.from_document(orjson.loads(answer["parameters"]["placet_receipt"]))
    assert receipt.price is not None
    assert (receipt.price.amount, receipt.price.payer, receipt.price.asset) == (1000, paying.Payer().address, TOKEN)
    assert receipt.price.payment_id == said["extra"]["paymentId"]
    (given,) = market.settlement.given.values()
    assert (hex0x(given.payment_id), given.charged) == (receipt.price.payment_id, "1000")

    # The same again is the same answer, and nothing runs.
    again = await market.post(INFER, rows(), payment)
    assert (again[0], again[2]) == (200, answer)
    assert again[1]["placet-replayed"] == "true"
    assert (await market.post(INFER, rows(3), payment))[0] == 409
    assert market.usage() == 1
    assert await market.states() == [(State.SETTLED, 1000)]


async def test_of_many_copies_at_once_one_runs(market: Market) -> None:
    (offer, _) = await market.offers(INFER, rows())
    payment = signed(offer)
    answers = await asyncio.gather(*(market.post(INFER, rows(), payment) for _ in range(32)))
    statuses = sorted({status for status, _, _ in answers})
    assert statuses in ([200], [200, 503])
    assert all("retry-after" in headers for status, headers, _ in answers if status == 503)
    assert len({orjson.dumps(body) for status, _, body in answers if status == 200}) == 1
    assert market.usage() == 1
    assert len(market.settlement.given) == 1


async def test_what_is_not_a_proper_payment_runs_nothing(market: Market) -> None:
    (offer, _) = await market.offers(INFER, rows())
    good = signed(offer)
    cases: list[tuple[Any, int, str | None]] = [
        ("!", 400, None),
        ("A" * 9000, 400, None),
        (paying.edited(good, "accepted/amount", "1"), 402, "offer"),
        (paying.edited(good, "accepted/payTo", hex0x(b"\x01" * 20)), 402, "offer"),
        (paying.Payer().signs(offer, value="999"), 402, "value"),
        (paying.Payer().signs(offer, to=hex0x(b"\x01" * 20)), 402, "recipient"),
        (paying.Payer().signs(offer, validBefore=str(int(time.time()) + 20)), 402, "valid_before"),
        (paying.edited(good, "payload/signature", "0x" + "00" * 65), 402, None),
        (paying.edited(good, "payload/authorization/nonce", hex0x(b"\x05" * 32)), 402, "signature"),
    ]
    for payment, status, check in cases:
        found, headers, body = await market.post(INFER, rows(), payment)
        assert found == status, (payment, body)
        if status == 402:
            required = orjson.loads(base64.b64decode(headers["payment-required"]))
            assert check is None or required["error"] == check
            assert required["accepts"]
    async with aiohttp.ClientSession() as session:
        twice = [("PAYMENT-SIGNATURE", paying.header_of(good)), ("PAYMENT-SIGNATURE", paying.header_of(good))]
        async with session.post(market.url + INFER, data=orjson.dumps(rows()), headers=twice) as answer:
            assert answer.status == 400
    assert market.usage() == 0
    assert await market.states() == []
    assert (await market.post(INFER, rows(), good))[0] == 200


async def test_a_payers_open_payments_are_bounded_by_its_balance(market: Market) -> None:
    (offer, _) = await market.offers(INFER, rows())
    market.settlement.outcome, market.settlement.balance = pb.PaymentStatus.STATE_IN_HAND, 1000
    answers = await asyncio.gather(*(market.post(INFER, rows(), signed(offer, nonce)) for nonce in range(12)))
    assert sorted(status for status, _, _ in answers) == [200] + [402] * 11
    refused = next(headers for status, headers, _ in answers if status == 402)
    assert orjson.loads(base64.b64decode(refused["payment-required"]))["error"] == "insufficient_funds"
    said = next(headers for status, headers, _ in answers if status == 200)
    response = orjson.loads(base64.b64decode(said["payment-response"]))
    assert (response["success"], response["errorReason"]) == (False, "settlement_pending")
    assert market.usage() == 1
    market.settlement.settled = dict.fromkeys(market.settlement.settled, pb.PaymentStatus.STATE_SETTLED)
    async with asyncio.timeout(10):
        while await market.states() != [(State.SETTLED, 1000)]:
            await asyncio.sleep(0.1)


async def test_when_settlement_is_away_nothing_is_taken_and_nothing_is_a_402(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    from placet.gateway.payment import settler

    (offer, _) = await market.offers(INFER, rows())
    market.settlement.away = True
    monkeypatch.setattr(settler, "_AWAY_S", 0.6)
    await asyncio.sleep(1.2)
    status, headers, _ = await market.post(INFER, rows(), signed(offer))
    assert (status, "retry-after" in headers) == (503, True)
    assert market.usage() == 0
    assert await market.states() == []
    market.settlement.away = False
    monkeypatch.setattr(settler, "_AWAY_S", 15.0)
    await asyncio.sleep(1.0)
    assert (await market.post(INFER, rows(), signed(offer)))[0] == 200


async def test_what_fails_before_anything_was_sent_costs_nothing(market: Market) -> None:
    (offer, _) = await market.offers(INFER, rows())
    for at in range(2):
        market.network.inside(f"inference-{at}").runner._plain = _broken
    status, _, body = await market.post(INFER, rows(), signed(offer))
    assert status == 503, body
    assert await market.states() == []
    assert market.settlement.given == {}


async def _broken(*_: Any) -> Any:
    from placet.core.errors import Unavailable

    for error in [Unavailable("the engine is not well")]:
        raise error
    yield None


async def test_a_payment_that_fails_gives_no_answer_out_and_bars_its_payer(market: Market) -> None:
    (offer, _) = await market.offers(INFER, rows())
    market.settlement.outcome = pb.PaymentStatus.STATE_FAILED
    status, headers, body = await market.post(INFER, rows(), signed(offer))
    assert status == 402, body
    response = orjson.loads(base64.b64decode(headers["payment-response"]))
    assert (response["success"], response["errorReason"]) == (False, "insufficient_funds")
    market.settlement.outcome = pb.PaymentStatus.STATE_SETTLED
    refused = await market.post(INFER, rows(), signed(offer, 8))
    assert orjson.loads(base64.b64decode(refused[1]["payment-required"]))["error"] == "unpaid"
    other = paying.Payer(b"\x22" * 32)
    assert (await market.post(INFER, rows(), signed(offer, 8, other)))[0] == 200


async def test_prices_that_were_replaced_hold_for_payments_under_way(market: Market) -> None:
    (offer, _) = await market.offers(INFER, rows())
    await market.alice.price("linear", Prices(NETWORK, TOKEN, PAY_TO, Rate(request=5000)))
    async with asyncio.timeout(10):
        while (await market.offers(INFER, rows()))[0].amount != 5000:
            await asyncio.sleep(0.2)
    assert (await market.post(INFER, rows(), signed(offer)))[0] == 200
    assert [charged for _, charged in await market.states()] == [1000]


async def test_max_price_and_keys(market: Market) -> None:
    wants = {"parameters": {"placet": json.dumps({"max_price": "999"})}}
    status, _, body = await market.post(INFER, rows() | wants)
    assert (status, "at most 999" in body["error"]) == (400, True)
    await market.publish("free", onnx_files.linear())
    assert (await market.post("/v2/models/alice/free/infer", rows()))[0] == 401
    key = {"authorization": f"Bearer {market.network.api_key}"}
    assert (await market.post("/v2/models/alice/free/infer", rows(), **key))[0] == 200
    assert (await market.post(INFER, rows(), **key))[0] == 402
    assert (await market.post(INFER, rows(), authorization="Bearer placet_" + "0" * 16 + "_" + "0" * 64))[0] == 401


async def test_one_command_sells_a_model(market: Market) -> None:
    from click.testing import CliRunner

    from placet.sdk.cli.serve import serve

    key, file = market.file("bob.key", b"22" * 32), market.file("My Model!.onnx", onnx_files.linear())
    given = ["--price", "0.001", "--key-file", str(key), "--gateway", market.url, "--api-key", market.network.api_key, "--output", "json"]
    said = await asyncio.to_thread(CliRunner().invoke, serve, [str(file), *given])
    assert said.exit_code == 0, said.output + repr(said.exception)
    document = json.loads(said.output)
    assert document["model"].endswith("/my-model")
    path = document["url"].removeprefix(market.url)
    offers = await market.offers(path, rows())
    owner = PublisherKey(b"\x22" * 32).address
    assert {(offer.amount, offer.pay_to, offer.asset) for offer in offers} == {(1000, owner, TOKEN)}
    assert (await market.post(path, rows(), signed(offers[0])))[0] == 200


# --- language models: metered, streamed, with the stock clients


@pytest.fixture
async def chat(market: Market) -> Market:
    (market.folder / "llm").mkdir()
    folder = models.language_model(market.folder / "llm")
    manifest = await market.alice.publish("chat", {path.name: path for path in folder.iterdir()}, kind="text")
    await market.alice.move("chat", "prod", manifest.version)
    rate = Rate(request=10, million_prompt_tokens=2_000_000, million_completion_tokens=5_000_000)
    await market.alice.price("chat", Prices(NETWORK, TOKEN, PAY_TO, rate))
    return market


ASKED: dict[str, Any] = {"model": "alice/chat", "messages": MESSAGES, "max_tokens": 40, "temperature": 0}
CHAT = "/v1/chat/completions"


async def test_what_is_used_is_charged_and_no_more_than_was_signed(chat: Market) -> None:
    offers = await chat.offers(CHAT, ASKED)
    upto = next(offer for offer in offers if offer.scheme is Scheme.UPTO)
    status, headers, answer = await chat.post(CHAT, ASKED, signed(upto))
    assert status == 200, answer
    usage = answer["usage"]
    cost = 10 + 2 * usage["prompt_tokens"] + 5 * usage["completion_tokens"]
    assert upto.amount == 10 + 2 * usage["prompt_tokens"] + 5 * 40
    assert cost <= upto.amount
    receipt = receipts.from_document(answer["placet"]["receipt"])
    assert receipt.price is not None
    assert receipt.price.amount == cost
    assert orjson.loads(base64.b64decode(headers["payment-response"]))["amount"] == str(cost)
    (given,) = chat.settlement.given.values()
    assert given.charged == str(cost)


async def test_the_stock_clients_pay_and_stream(chat: Market) -> None:
    client = x402Client()
    register_exact_evm_client(client, Account.from_key(SECRET), NETWORK)
    client.set_spend_controls({"allowed_assets": [{"network": NETWORK, "asset": hex0x(TOKEN), "max_amount_per_payment": "100000"}]})
    import httpx

    http: Any = httpx.AsyncClient(transport=x402_httpx_transport(client), timeout=60)
    async with AsyncOpenAI(base_url=f"{chat.url}/v1", api_key="none", max_retries=0, http_client=http) as stock:
        answer = await stock.chat.completions.create(**ASKED)
        assert answer.choices[0].message.content
        stream = await stock.chat.completions.create(**ASKED, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == answer.choices[0].message.content
    last = chunks[-1].model_extra
    assert last is not None
    assert last["placet"]["payment"]["success"] is True
    receipt = receipts.from_document(last["placet"]["receipt"])
    assert receipt.price is not None
    assert receipt.price.payment_id == last["placet"]["payment"]["extra"]["paymentId"]
    assert [state for state, _ in await chat.states()] == [State.SETTLED] * 2


async def test_who_leaves_pays_for_what_was_generated(chat: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    long = {**ASKED, "max_tokens": 200, "stream": True}
    upto = next(offer for offer in await chat.offers(CHAT, long) if offer.scheme is Scheme.UPTO)
    headers = {"PAYMENT-SIGNATURE": paying.header_of(signed(upto))}
    async with aiohttp.ClientSession() as session, session.post(chat.url + CHAT, data=orjson.dumps(long), headers=headers) as answer:
        assert answer.status == 200
        await answer.content.readany()
    ledger = chat.network.inside("gateway")._settler._ledger
    monkeypatch.setattr(ledger, "_longest_s", -2)  # so long ago that it was cut
    monkeypatch.setattr(ledger, "_run", "another")
    async with asyncio.timeout(30):
        while (await chat.states())[0][0] is not State.SETTLED:
            await asyncio.sleep(0.2)
    ((_, charged),) = await chat.states()
    assert charged is not None
    assert 0 < charged < upto.amount


# --- prepaid keys


KEYS = "/api/v1/keys"
KEY_SECRET = b"\x5e" * 32


def order(**more: Any) -> dict[str, Any]:
    return {"secretSha256": hex0x(hashlib.sha256(KEY_SECRET).digest()), "amount": "5000", "name": "agent"} | more


async def buy(market: Market, body: dict[str, Any], nonce: int = 77) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Returns the key's text, its account, the payment."""
    (offer, _) = await market.offers(KEYS, body)
    assert (offer.amount, offer.pay_to) == (int(body["amount"]), TILL)
    payment = signed(offer, nonce)
    status, headers, account = await market.post(KEYS, body, payment)
    assert status == 201, account
    assert orjson.loads(base64.b64decode(headers["payment-response"]))["success"] is True
    return f"placet_{account['id']}_{KEY_SECRET.hex()}", account, payment


async def get(market: Market, path: str, key: str) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session, session.get(market.url + path, headers=headers) as answer:
        return answer.status, orjson.loads(await answer.read())


async def test_a_prepaid_key_pays_for_requests(market: Market) -> None:
    key, account, payment = await buy(market, order(models=["alice/linear"]))
    assert (account["credited"], account["available"]) == ("5000", "5000")
    # Who repeats the purchase, with what is public on chain, gets no secret; another request with that payment is refused.
    again = await market.post(KEYS, order(models=["alice/linear"]), payment)
    assert (again[0], again[2]["id"]) == (201, account["id"])
    assert KEY_SECRET.hex() not in orjson.dumps(again[2]).decode()
    assert (await market.post(KEYS, order(secretSha256=hex0x(b"\x01" * 32)), payment))[0] == 409

    bearer = {"authorization": f"Bearer {key}"}
    status, headers, answer = await market.post(INFER, rows(), **bearer)
    assert status == 200
    assert (headers["placet-charged"], headers["placet-credit"]) == ("1000", "4000")
    receipt = receipts.from_document(orjson.loads(answer["parameters"]["placet_receipt"]))
    assert receipt.price is not None
    assert (receipt.price.amount, receipt.price.payer, receipt.price.asset) == (1000, paying.Payer().address, TOKEN)
    status, kept = await get(market, f"/api/v1/receipts/{hex0x(receipt.id)}", key)
    assert status == 200
    assert kept["id"] == hex0x(receipt.id)

    # As much at once as there is.
    answers = await asyncio.gather(*(market.post(INFER, rows(), **bearer) for _ in range(8)))
    assert sorted(status for status, _, _ in answers) == [200] * 4 + [402] * 4
    assert market.usage() == 5
    status, said = await get(market, f"{KEYS}/{account['id']}", key)
    assert (said["spent"], said["held"], said["available"]) == ("5000", "0", "0")
    status, _, body = await market.post(INFER, rows(), **bearer)
    assert status == 402
    assert "left on this key" in orjson.dumps(body).decode()


async def test_a_prepaid_key_does_nothing_but_call_models(market: Market) -> None:
    key, account, _ = await buy(market, order())
    for path in ("/api/v1/intents", "/api/v1/models/x/y/drafts", f"{KEYS}/0123456789abcdef/close"):
        status, _, body = await market.post(path, {}, authorization=f"Bearer {key}")
        assert status in (403, 404, 405), (path, body)
    status, _, body = await market.post("/api/v1/intents", {}, authorization=f"Bearer {key}")
    assert (status, body["code"]) == (403, "forbidden")
    status, _ = await get(market, f"{KEYS}/{account['id'][::-1]}", key)
    assert status == 403


async def test_failed_work_costs_a_prepaid_key_nothing(market: Market) -> None:
    key, account, _ = await buy(market, order())
    bad = {"inputs": [{"name": "nope", "datatype": "FP32", "shape": [2, 4], "data": [0.5] * 8}]}
    status, _, body = await market.post(INFER, bad, authorization=f"Bearer {key}")
    assert status >= 400, body
    _, said = await get(market, f"{KEYS}/{account['id']}", key)
    assert (said["spent"], said["held"], said["available"]) == ("0", "0", "5000")


async def test_a_key_whose_payment_is_slow_is_made_when_it_is_final(market: Market) -> None:
    market.settlement.outcome = pb.PaymentStatus.STATE_IN_HAND
    (offer, _) = await market.offers(KEYS, order())
    payment = signed(offer)
    status, headers, body = await market.post(KEYS, order(), payment)
    assert (status, body["code"], headers["retry-after"]) == (503, "payment_pending", "1")
    for payment_id in market.settlement.settled:
        market.settlement.settled[payment_id] = pb.PaymentStatus.STATE_SETTLED
    async with asyncio.timeout(10):
        while (answer := await market.post(KEYS, order(), payment))[0] != 201:
            await asyncio.sleep(0.1)
    status, _, _ = await market.post(INFER, rows(), authorization=f"Bearer placet_{answer[2]['id']}_{KEY_SECRET.hex()}")
    assert status == 200


async def test_a_key_whose_payment_fails_is_not_made(market: Market) -> None:
    market.settlement.outcome = pb.PaymentStatus.STATE_FAILED
    (offer, _) = await market.offers(KEYS, order())
    status, _, body = await market.post(KEYS, order(), signed(offer))
    assert (status, body["code"], body["check"]) == (402, "payment_refused", "settlement_failed")


async def test_a_closed_key_is_refunded_by_its_payments(market: Market) -> None:
    key, account, _ = await buy(market, order())
    (offer, _) = await market.offers(f"{KEYS}/{account['id']}/credit", {"amount": "700"})
    status, _, filled = await market.post(f"{KEYS}/{account['id']}/credit", {"amount": "700"}, signed(offer, 78))
    assert (status, filled["available"]) == (201, "5700")
    stranger = await market.post(f"{KEYS}/{account['id']}/credit", {"amount": "700"}, signed(offer, 79, paying.Payer(b"\x22" * 32)))
    assert (stranger[0], stranger[2]["check"]) == (402, "payer")
    assert (await market.post(INFER, rows(), authorization=f"Bearer {key}"))[0] == 200
    status, _, closed = await market.post(f"{KEYS}/{account['id']}/close", {}, authorization=f"Bearer {key}")
    assert status == 200
    assert sum(int(item["amount"]) for item in closed["refunds"]) == 4700
    async with asyncio.timeout(15):
        while len(market.settlement.refunded) < len(closed["refunds"]):
            await asyncio.sleep(0.1)
    given = {hex0x(item.payment_id): item.amount for item in market.settlement.refunded.values()}
    assert given == {item["paymentId"]: item["amount"] for item in closed["refunds"]}
    assert (await market.post(INFER, rows(), authorization=f"Bearer {key}"))[0] == 402


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount": "0"}, "amount"),
        ({"amount": "1.5"}, "amount"),
        ({"secretSha256": "0x12"}, "secretSha256"),
        ({"name": "x" * 65}, "name"),
        ({"period": "day"}, "period"),
        ({"limit": "5", "period": "hour"}, "period"),
        ({"models": ["nobody"]}, None),
        ({"models": ["a/b"] * 65}, "models"),
        ({"asset": hex0x(b"\x01" * 20), "network": NETWORK}, "asset"),
        ({"extra": 1}, "extra"),
    ],
)
async def test_an_order_that_is_not_one_is_refused_before_payment(market: Market, change: dict[str, Any], field: str | None) -> None:
    status, _, body = await market.post(KEYS, order() | change)
    assert status == 422, body
    assert field is None or body["field"] == field
