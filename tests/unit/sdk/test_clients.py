"""The stock OpenAI client over the transports, the conveniences on top of it, and the local endpoint for tools."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import pytest
from click.testing import CliRunner

from placet.core.errors import InvalidInput, PaymentPending
from placet.core.receipts import Mode
from placet.sdk.access import Access
from placet.sdk.budget import Budget, BudgetExceeded
from placet.sdk.cli.main import cli
from placet.sdk.inference import LLM, AsyncEmbeddings, AsyncLLM, AsyncModels, Embeddings, Models, ResponseFormat
from placet.sdk.openai import AsyncOpenAI, OpenAI
from placet.sdk.proxy import Proxy
from placet.sdk.verified import Keys, ReceiptRejected
from placet.sdk.wallet import KEY_VARIABLE, Rules, Wallet
from tests.support.payment import UPTO
from tests.unit.sdk.fake import METERED, SECRET, SIGNERS, URL, WORDS, Gateway, keys, problem

MESSAGES: Any = [{"role": "user", "content": "hi"}]
ASKED: dict[str, Any] = {"model": "alice/chat", "messages": MESSAGES}
SAID = "".join(WORDS)


def access(gateway: Gateway, budget: Budget | None = None, **more: Any) -> Access:
    return Access(
        URL + "/v1",
        wallet=Wallet(SECRET),
        budget=budget or Budget(per_payment="1"),
        rules=Rules((METERED,)),
        keys=Keys(keys()),
        transport=httpx.MockTransport(gateway),
        async_transport=httpx.MockTransport(gateway),
        **more,
    )


def test_the_stock_client_pays_verifies_and_streams() -> None:
    gateway = Gateway(offers=(UPTO,))
    with OpenAI(access=access(gateway)) as client:
        assert isinstance(client, openai.OpenAI)
        answer = client.chat.completions.create(**ASKED)
        assert answer.choices[0].message.content == SAID
        chunks = list(client.chat.completions.create(**ASKED, stream=True))
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == SAID
        assert client.completions.create(model="alice/chat", prompt="Once").choices[0].text == SAID
        assert client.embeddings.create(model="alice/minilm", input="x").data[0].embedding == [0.5, 2.0]
        again = client.with_options(timeout=5)
        assert again.chat.completions.create(**ASKED).choices[0].message.content == SAID
    assert len({payment.key for payment in gateway.payments}) == gateway.runs == 5
    assert gateway.seen[0].headers["authorization"] == "Bearer none"


async def test_asynchronously_it_is_the_same() -> None:
    gateway = Gateway(offers=(UPTO,))
    async with AsyncOpenAI(access=access(gateway)) as client:
        answers = await asyncio.gather(*(client.chat.completions.create(**ASKED, seed=at) for at in range(5)))
        assert {answer.choices[0].message.content for answer in answers} == {SAID}
        stream = await client.chat.completions.create(**ASKED, stream=True)
        assert "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices]) == SAID
    assert gateway.runs == 6


def test_what_fails_is_a_typed_error_and_not_tried_again() -> None:
    gateway = Gateway(offers=(UPTO,), lie=lambda document: document.update(extra=1))
    with OpenAI(access=access(gateway)) as client, pytest.raises(ReceiptRejected):
        client.chat.completions.create(**ASKED)
    assert gateway.runs == 1
    gateway = Gateway(lie_in_chunks=lambda chunks: chunks.pop(2))
    with OpenAI(access=access(gateway)) as client:
        got: list[Any] = []
        with pytest.raises(ReceiptRejected):
            got.extend(client.chat.completions.create(**ASKED, stream=True))
    assert gateway.runs == 1
    gateway = Gateway()
    with OpenAI(access=access(gateway, Budget(per_payment="0.0001"))) as client, pytest.raises(BudgetExceeded):
        client.chat.completions.create(**ASKED)
    assert len(gateway.seen) == 1


def test_the_stock_clients_own_retries_go_on_with_the_same_payment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placet.sdk.steps.time.sleep", lambda seconds: None)
    gateway = Gateway(before=[lambda: httpx.ReadTimeout("nothing came")] * 8)
    with OpenAI(access=access(gateway), max_retries=2) as client:
        client._sleep_for_retry = lambda **given: None  # type: ignore[method-assign]
        assert client.chat.completions.create(**ASKED).choices[0].message.content == SAID
    assert len(gateway.payments) == 9
    assert len({payment.key for payment in gateway.payments}) == 1
    gateway = Gateway(before=[lambda: problem(503, "payment_pending")] * 8)
    with OpenAI(access=access(gateway)) as client, pytest.raises(PaymentPending):
        client.chat.completions.create(**ASKED)


def test_a_client_is_built_from_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLACET_GATEWAY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-gateways")
    made = OpenAI(base_url=URL + "/v1", keys=["0x" + SIGNERS[0].public_key.hex()])
    assert (str(made.base_url), made.api_key) == (URL + "/v1/", "none")
    assert made.access is not None
    assert made.access.payer is None
    with pytest.raises(InvalidInput, match="which gateway"):
        OpenAI(keys=["0x" + SIGNERS[0].public_key.hex()])
    with pytest.raises(InvalidInput, match="keys"):
        OpenAI(base_url=URL)
    with pytest.raises(InvalidInput, match="http_client"):
        OpenAI(base_url=URL, api_key="x", http_client=httpx.Client(), wallet=Wallet(SECRET))
    with pytest.raises(InvalidInput, match="of no use"):
        Access(URL, verify=False, mode=Mode.TEE)
    with pytest.raises(InvalidInput, match="verified answers only"):
        LLM(Access(URL, verify=False))


def test_language_models_embeddings_and_tensors_by_name() -> None:
    gateway = Gateway(offers=(UPTO,))
    way = access(gateway)
    llm = LLM(way)
    said = llm.chat("alice/chat", MESSAGES, mode=Mode.AUDITED, stop_sequence=["."], seed=1)
    assert (said.text, said.completion_output, said.finish_reason) == (SAID, SAID, "stop")
    assert said.chat_output == {"role": "assistant", "content": SAID, "refusal": None}
    assert said.receipt.mode is Mode.AUDITED
    assert said.receipt.price is not None
    assert llm.completion("alice/chat", "Once").text == SAID
    assert "".join(llm.stream("alice/chat", MESSAGES)) == SAID
    vectors = Embeddings(way).create("alice/minilm", ["x"])
    assert vectors.vectors == ((0.5, 2.0),)
    models = Models(way)
    answer = models.infer("alice/score", {"x": [[0.5, 1.0]]})
    assert (answer.outputs, answer.shapes) == ({"y": [0.5, 2.0]}, {"y": (1, 2)})
    with pytest.raises(InvalidInput):
        models.infer("alice/score@prod", {"x": [1.0]})
    with pytest.raises(InvalidInput, match="lists of numbers"):
        models.infer("alice/score", {"x": ["a"]})


async def test_the_same_asynchronously() -> None:
    way = access(Gateway(offers=(UPTO,)))
    llm = AsyncLLM(way)
    assert (await llm.chat("alice/chat", MESSAGES)).text == SAID
    assert (await llm.completion("alice/chat", "Once")).text == SAID
    assert "".join([part async for part in llm.stream("alice/chat", MESSAGES)]) == SAID
    assert (await AsyncEmbeddings(way).create("alice/minilm", "x")).vectors == ((0.5, 2.0),)
    assert (await AsyncModels(way).infer("alice/score", {"x": [0.5]})).outputs == {"y": [0.5, 2.0]}


def test_formats_of_answers_are_written_as_the_surface_has_them() -> None:
    wanted = {"name": "r", "strict": True, "schema": {"type": "object"}}
    assert ResponseFormat(json_schema=wanted).document() == {"type": "json_schema", "json_schema": wanted}
    assert ResponseFormat("text").document() == {"type": "text"}
    with pytest.raises(InvalidInput):
        ResponseFormat().document()


# --- the local endpoint


@pytest.fixture
async def served() -> AsyncIterator[tuple[Gateway, Proxy, Budget]]:
    gateway, budget = Gateway(offers=(UPTO,)), Budget(per_payment="1", total="0.02")
    proxy = Proxy(access(gateway, budget))
    await proxy.start()
    yield gateway, proxy, budget
    await proxy.stop()


async def test_any_tool_with_base_url_and_key_pays_and_gets_verified_answers(served: tuple[Gateway, Proxy, Budget]) -> None:
    gateway, proxy, budget = served
    async with openai.AsyncOpenAI(base_url=proxy.url, api_key=proxy.key, max_retries=0) as tool:
        answer = await tool.chat.completions.create(**ASKED)
        assert answer.choices[0].message.content == SAID
        stream = await tool.chat.completions.create(**ASKED, stream=True)
        assert "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices]) == SAID
        assert [model.id async for model in tool.models.list()] == ["alice/chat"]
        assert budget.spent().total == "0.0008"
        gateway.lie = lambda document: document.update(extra=1)
        with pytest.raises(openai.APIStatusError) as caught:
            await tool.chat.completions.create(**ASKED)
        assert (caught.value.status_code, caught.value.code) == (502, "receipt_rejected")
        gateway.lie_in_chunks = lambda chunks: chunks.pop(2)
        stream = await tool.chat.completions.create(**ASKED, stream=True)
        with pytest.raises(openai.APIError, match="not handed over"):
            async for _ in stream:
                pass
        gateway.offers = (replace(UPTO, amount=50_000),)
        with pytest.raises(openai.APIStatusError) as caught:
            await tool.chat.completions.create(**ASKED)
        assert (caught.value.status_code, caught.value.code) == (402, "budget_exceeded")
        with pytest.raises(openai.NotFoundError):
            await tool.responses.create(model="alice/chat", input="x")


async def test_who_leaves_at_the_end_of_a_stream_disturbs_nobody(
    served: tuple[Gateway, Proxy, Budget], caplog: pytest.LogCaptureFixture
) -> None:
    _, proxy, _ = served
    host, port = proxy.url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({**ASKED, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {proxy.key}\r\ncontent-length: {len(body)}"
    for stop in (b"Once", b"[DONE]"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await reader.readuntil(stop)
        writer.transport.abort()
    async with openai.AsyncOpenAI(base_url=proxy.url, api_key=proxy.key, max_retries=0) as tool:
        assert (await tool.chat.completions.create(**ASKED)).choices
    assert "unexpected" not in caplog.text


async def test_nobody_else_spends_the_wallets_money(served: tuple[Gateway, Proxy, Budget]) -> None:
    gateway, proxy, _ = served
    key = {"authorization": f"Bearer {proxy.key}"}
    cases: list[tuple[dict[str, str], int]] = [
        ({}, 401),
        ({"authorization": "Bearer none"}, 401),
        ({"authorization": f"Bearer {proxy.key}x"}, 401),
        (key | {"origin": "http://evil.test"}, 403),
        (key | {"sec-fetch-site": "cross-site"}, 403),
        (key | {"host": "evil.test"}, 403),
    ]
    async with aiohttp.ClientSession() as session:
        for headers, status in cases:
            async with session.post(f"{proxy.url}/chat/completions", json=ASKED, headers=headers) as answer:
                assert answer.status == status
    assert gateway.seen == []
    for host in ("0.0.0.0", "192.0.2.1", "gateway.test"):
        with pytest.raises(InvalidInput, match="reached by others"):
            await proxy.start(host)


PLACET = Path(sys.executable).parent / "placet"


def test_the_command_prints_where_it_listens_and_stops_when_told(tmp_path: Path) -> None:
    wallet = tmp_path / "wallet.key"
    made = Wallet.create(wallet)
    command: list[str | Path] = [
        PLACET,
        "proxy",
        "--budget",
        "5",
        "--per-day",
        "2",
        "--verify",
        "--listen",
        "127.0.0.1:0",
        "--wallet",
        wallet,
    ]
    command += ["--gateway", "http://127.0.0.1:9", "--trust-first-use", "--state", tmp_path / "state"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip().removeprefix("OPENAI_BASE_URL=")
        key = process.stdout.readline().strip().removeprefix("OPENAI_API_KEY=")
        assert made.address.hex() in process.stderr.readline()
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as tool, pytest.raises(openai.APIStatusError) as caught:
            tool.chat.completions.create(**ASKED)
        assert (caught.value.status_code, caught.value.code) == (503, "unavailable")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "stopped; spent 0 in all" in said


def test_beside_a_running_network_a_budget_is_enough(tmp_path: Path) -> None:
    folder = tmp_path / ".run/up"
    folder.mkdir(parents=True)
    made = Wallet.create(folder / "wallet.key")
    ready = {"gateway": "http://127.0.0.1:9", "apiKey": "placet_x", "token": "0x" + "70" * 20, "wallet": ".run/up/wallet.key"}
    (folder / "ready.json").write_text(json.dumps(ready))
    command: list[str | Path] = [PLACET, "proxy", "--budget", "5", "--per-day", "2", "--verify", "--listen", "127.0.0.1:0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PLACET_")} | {"XDG_STATE_HOME": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        assert process.stderr is not None
        assert f"pays from 0x{made.address.hex()} at http://127.0.0.1:9" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0
    assert list((tmp_path / "placet").iterdir())


def test_the_command_asks_for_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for variable in ("PLACET_GATEWAY", "PLACET_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    base = ["proxy", "--budget", "5", "--state", str(tmp_path)]
    for arguments, environment, says in (
        (["proxy"], {}, "--budget"),
        ([*base, "--gateway", URL], {}, "whose receipts"),
        ([*base, "--gateway", URL, "--trust-first-use"], {}, KEY_VARIABLE),
        ([*base, "--trust-first-use"], {KEY_VARIABLE: SECRET.hex()}, "which gateway"),
        ([*base, "--gateway", URL, "--trust-first-use", "--listen", "0.0.0.0:0"], {KEY_VARIABLE: SECRET.hex()}, "reached by others"),
        ([*base, "--gateway", URL, "--trust-first-use", "--listen", "x"], {KEY_VARIABLE: SECRET.hex()}, "address:port"),
        ([*base, "--gateway", URL, "--key", "0x12"], {KEY_VARIABLE: SECRET.hex()}, "key"),
        ([*base, "--gateway", URL, "--no-verify", "--mode", "tee"], {KEY_VARIABLE: SECRET.hex()}, "--no-verify"),
    ):
        done = CliRunner().invoke(cli, arguments, env={**os.environ, **environment})
        assert done.exit_code != 0
        assert says in done.output, done.output
