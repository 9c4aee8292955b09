"""The SDK against the real thing: the gate takes its payments, its receipts verify, evidence and proofs are held to the answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from placet.core.errors import InvalidInput, TeeRejected, VerificationFailed
from placet.core.models import Prices, Rate
from placet.core.receipts import Mode
from placet.gateway.payment.states import State
from placet.inference.proofs.prover import Prover, read_network
from placet.sdk.access import Access
from placet.sdk.budget import Budget, BudgetExceeded
from placet.sdk.inference import AsyncEmbeddings, AsyncLLM, AsyncModels
from placet.sdk.openai import AsyncOpenAI
from placet.sdk.proxy import Proxy
from placet.sdk.verified import ReceiptRejected, TrustOnFirstUse, Verified
from placet.sdk.wallet import Asset, Rules, Wallet
from placet.verify.tee import TeePolicy
from placet.verify.zk.statement import Accepted
from tests.e2e.inference.conftest import Town
from tests.e2e.inference.test_paid import ASKED, MESSAGES, NETWORK, PAY_TO, SECRET, TOKEN, Market, chat, market
from tests.e2e.inference.test_paid_on_chain import Bazaar, bazaar
from tests.e2e.inference.test_proofs import ROW, proving
from tests.e2e.inference.test_tee import DEVELOPMENT
from tests.e2e.inference.test_tee import town as tee_town
from tests.support import models
from tests.support.zk import network_model, saved

__all__ = ["bazaar", "chat", "market", "proving", "tee_town"]

FIXED = Rules((Asset(NETWORK, TOKEN),), pay_to=frozenset({PAY_TO}))
METERED = Rules((Asset(NETWORK, TOKEN, permit2_allowance=10**9),))


def keys(town: Town, count: int = 2) -> list[str]:
    nodes = [town.network.inside(f"inference-{at}").runner.node for at in range(count)]
    return ["0x" + node.signer.public_key.hex() for node in nodes]


def access(town: Town, **more: Any) -> Access:
    given: dict[str, Any] = {"wallet": Wallet(SECRET), "rules": METERED, "budget": Budget(per_payment="1"), **more}
    if "keys" not in given:
        given["keys"] = keys(town)
    return Access(town.network.gateway_url, **given)


async def test_answers_are_paid_verified_and_charged_by_their_receipts(chat: Market) -> None:
    seen: list[Verified] = []
    for rules, free_of in ((METERED, "upto"), (FIXED, "exact")):
        budget = Budget(per_payment="1")
        async with AsyncOpenAI(access=access(chat, rules=rules, budget=budget, on_verified=seen.append)) as client:
            answer = await client.chat.completions.create(**ASKED)
            stream = await client.chat.completions.create(**ASKED, stream=True)
            text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
        assert text == answer.choices[0].message.content
        paid = [item.receipt.price.amount for item in seen[-2:] if item.receipt.price is not None]
        assert len(paid) == 2
        assert budget.spent().total == f"{sum(paid) / 10**6:.6f}".rstrip("0"), free_of
    assert [state for state, _ in await chat.states()] == [State.SETTLED] * 4
    assert [charged for _, charged in await chat.states()] == [item.receipt.price.amount for item in seen if item.receipt.price is not None]


async def test_conveniences_and_refusals(chat: Market) -> None:
    llm = AsyncLLM(access(chat))
    said = await llm.chat("alice/chat", MESSAGES, max_tokens=8)
    assert said.text
    assert said.receipt.price is not None
    assert (await llm.completion("alice/chat", "Once", max_tokens=4)).receipt.surface == "completions"
    answer = await AsyncModels(access(chat)).infer("alice/linear", {"x": [[0.5] * 4] * 2})
    assert answer.shapes == {"y": (2, 3)}
    assert answer.receipt.price is not None
    assert answer.receipt.price.amount == 1000

    before = len(await chat.states())
    with pytest.raises(BudgetExceeded):
        await AsyncLLM(access(chat, budget=Budget(per_payment="0.00001"))).chat("alice/chat", MESSAGES)
    with pytest.raises(openai.BadRequestError):
        await llm.chat("alice/chat", MESSAGES, n=2)
    assert len(await chat.states()) == before
    with pytest.raises(ReceiptRejected) as caught:
        await AsyncLLM(access(chat, keys=["0x" + "01" * 32])).chat("alice/chat", MESSAGES, max_tokens=4)
    assert caught.value.check == 1


async def test_of_a_broken_connection_nothing_is_paid_twice(chat: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(httpx.AsyncHTTPTransport):
        tries = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            if "payment-signature" in request.headers:
                self.tries += 1
                if self.tries < 3:
                    await response.aread()
                    raise httpx.ReadError("connection reset")
            return response

    wire = Breaking()
    said = await AsyncLLM(access(chat, async_transport=wire)).chat("alice/chat", MESSAGES, max_tokens=8)
    assert said.text
    assert wire.tries == 3
    assert len(await chat.states()) == 1
    assert chat.usage() == 1
    assert len(chat.settlement.given) == 1


async def test_the_local_endpoint_serves_a_stock_client(chat: Market) -> None:
    budget = Budget(per_payment="1", total="0.01")
    proxy = Proxy(access(chat, budget=budget))
    url = await proxy.start()
    try:
        async with openai.AsyncOpenAI(base_url=url, api_key=proxy.key, max_retries=0) as tool:
            answer = await tool.chat.completions.create(**ASKED)
            stream = await tool.chat.completions.create(**ASKED, stream=True)
            text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
            assert text == answer.choices[0].message.content
            for _ in range(50):
                try:
                    await tool.chat.completions.create(**ASKED, seed=1)
                except openai.APIStatusError as error:
                    assert error.code == "budget_exceeded"
                    break
            else:
                pytest.fail("there was no end to it")
    finally:
        await proxy.stop()
    assert 0.009 < float(budget.spent().total) <= 0.01


async def test_keys_of_the_first_use_with_an_api_key(market: Market, tmp_path: Path) -> None:
    await market.alice.price("linear", Prices(NETWORK, TOKEN, PAY_TO, Rate()))
    way = access(market, wallet=None, budget=None, keys="first use", pins=tmp_path / "keys.json", api_key=market.network.api_key)
    with pytest.warns(TrustOnFirstUse):
        assert (await AsyncModels(way).infer("alice/linear", {"x": [[0.5] * 4]})).shapes == {"y": (1, 3)}
    assert (tmp_path / "keys.json").exists()
    assert await AsyncModels(way).list(publisher="alice")


async def test_money_moves_on_the_chain(bazaar: Bazaar) -> None:
    wallet, budget = Wallet(SECRET), Budget(per_payment="1")
    await bazaar.give(wallet.address)
    rules = Rules((Asset(NETWORK, bazaar.token),))
    hub = AsyncModels(access(bazaar, wallet=wallet, budget=budget, rules=rules, keys=keys(bazaar, 1)))
    answer = await hub.infer("alice/linear", {"x": [[0.5] * 4] * 2})
    assert answer.receipt.price is not None
    assert answer.receipt.price.amount == 1000
    assert (await bazaar.balance(wallet.address), await bazaar.balance(PAY_TO)) == (10**6 - 1000, 1000)
    assert budget.spent().total == "0.001"


# --- stronger modes


@pytest.fixture
async def enclaves(tee_town: Town) -> Town:
    (tee_town.folder / "llm").mkdir()
    folder = models.language_model(tee_town.folder / "llm")
    manifest = await tee_town.alice.publish("chat", {path.name: path for path in folder.iterdir()}, kind="text")
    await tee_town.alice.move("chat", "prod", manifest.version)
    return tee_town


async def test_an_enclaves_evidence_is_judged_before_anything_is_asked(enclaves: Town) -> None:
    seen: list[Verified] = []
    common: dict[str, Any] = {
        "wallet": None,
        "budget": None,
        "api_key": enclaves.network.api_key,
        "mode": Mode.TEE,
        "keys": ["0x" + "01" * 32],
    }
    way = access(enclaves, **common, tee_policy=DEVELOPMENT, on_verified=seen.append)
    async with AsyncOpenAI(access=way) as client:
        assert (await client.chat.completions.create(model="alice/chat", messages=MESSAGES, max_tokens=6)).choices
        stream = await client.chat.completions.create(model="alice/chat", messages=MESSAGES, max_tokens=6, stream=True)
        assert [chunk async for chunk in stream]
    assert [(item.receipt.mode, item.level) for item in seen] == [(Mode.TEE, "none (development)")] * 2
    production = access(enclaves, **common, tee_policy=TeePolicy(DEVELOPMENT.kinds))
    with pytest.raises(TeeRejected, match="production"):
        await AsyncLLM(production).chat("alice/chat", MESSAGES)
    with pytest.raises(InvalidInput, match="tee_policy"):
        await AsyncLLM(access(enclaves, **common)).chat("alice/chat", MESSAGES)
    with pytest.raises(InvalidInput):
        await AsyncEmbeddings(access(enclaves, **common)).create("alice/chat", "x")


async def test_a_proof_is_waited_for_and_is_about_these_numbers(proving: Town, tmp_path: Path) -> None:
    path = saved(network_model((4, 8, 1), sigmoid=True), tmp_path / "score.onnx")
    manifest = await proving.alice.publish("score", {"model.onnx": path}, zkml=True)
    await proving.alice.move("score", "prod", manifest.version)
    pk, vk = await asyncio.to_thread(Prover(read_network(path)).setup)
    (tmp_path / "pk").write_bytes(pk)
    (tmp_path / "vk").write_bytes(vk)
    registered = await proving.alice.register_setup(manifest, tmp_path / "pk", tmp_path / "vk")
    hub = AsyncModels(access(proving, wallet=None, budget=None, api_key=proving.network.api_key, keys=keys(proving, 1)))
    accepted = Accepted({bytes.fromhex(registered["address"][2:]): "alice"})  # type: ignore[dict-item]
    answer = await hub.infer("alice/score", {"x": [ROW]}, mode=Mode.ZKML, setups=accepted)
    assert answer.report is not None
    assert answer.report.ok
    assert answer.proof is not None
    assert answer.proof.statement.values() == pytest.approx(
        answer.outputs["y"] if "y" in answer.outputs else next(iter(answer.outputs.values()))
    )
    with pytest.raises(VerificationFailed, match="setup"):
        await hub.infer("alice/score", {"x": [ROW]}, mode=Mode.ZKML, setups=Accepted({}))
