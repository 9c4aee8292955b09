"""A model that somebody else runs: relayed, streamed, receipted as relayed, and nothing of the upstream's own shows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from openai import AsyncOpenAI

from placet.core import receipts
from placet.sdk.hub import Publisher, PublisherKey
from placet.sdk.local.network import LocalNetwork, LocalOptions
from tests.e2e.inference.conftest import Town
from tests.e2e.inference.test_openai import MESSAGES, plain

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
ASKED: dict[str, Any] = {"model": "alice/far", "messages": MESSAGES}


async def answer(request: web.Request) -> web.StreamResponse:
    assert request.headers["authorization"] == "Bearer sk-upstream"
    body = await request.json()
    assert body["model"] == "their-name"
    head = {"id": "theirs", "created": 1, "model": "their-name", "system_fingerprint": "theirs"}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    called = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}
    if not body.get("stream"):
        message: dict[str, Any] = {"role": "assistant", "content": "Hello there"}
        if body.get("tools"):
            message = {"role": "assistant", "content": None, "tool_calls": [called]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if body.get("tools") else "stop", "logprobs": None}
        return web.json_response(
            {**head, "object": "chat.completion", "choices": [choice], "usage": usage, "placet": {"receipt": "forged"}}
        )
    stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await stream.prepare(request)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": "Hello"}, {"content": " there"}]
    if body.get("tools"):
        first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}}
        deltas = [{"role": "assistant", "tool_calls": [first]}, {"tool_calls": [{"index": 0, "function": {"arguments": ':"Bern"}'}}]}]
    for delta in deltas:
        chunk = {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        await stream.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    end = {"index": 0, "delta": {}, "finish_reason": "tool_calls" if body.get("tools") else "stop"}
    for last in ({"choices": [end]}, {"choices": [], "usage": usage}):
        await stream.write(b"data: " + json.dumps({**head, "object": "chat.completion.chunk", **last}).encode() + b"\n\n")
    await stream.write(b"data: [DONE]\n\n")
    return stream


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[tuple[Town, AsyncOpenAI, str]]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    (tmp_path / "upstream.key").write_text("sk-upstream\n")
    async with TestServer(app) as server:
        where = {"url": str(server.make_url("/v1")), "model": "their-name", "api_key_file": str(tmp_path / "upstream.key"), "tools": True}
        options = LocalOptions(tmp_path / "net", operators=1, inference=1, inference_overrides={"upstreams": {"alice/far": where}})
        async with LocalNetwork(options) as network, network.client() as client:
            alice = Publisher(client, "placet:31337", "alice", PublisherKey(b"\x11" * 32))
            await alice.claim()
            for name in ("far", "nowhere"):
                manifest = await alice.publish(name, {}, kind="upstream")
                await alice.move(name, "prod", manifest.version)
            town = Town(network, client, alice, tmp_path)
            async with AsyncOpenAI(base_url=f"{network.gateway_url}/v1", api_key=network.api_key, max_retries=0) as stock:
                yield town, stock, f"{server.host}:{server.port}"


async def test_an_answer_is_passed_on_and_called_relayed(far: tuple[Town, AsyncOpenAI, str]) -> None:
    _, stock, host = far
    found = await stock.chat.completions.create(**ASKED)
    assert found.choices[0].message.content == "Hello there"
    assert (found.model, found.id.startswith("chatcmpl-")) == ("alice/far", True)
    assert found.model_extra is not None
    receipt = receipts.from_document(found.model_extra["placet"]["receipt"])
    assert (receipt.execution.relayed, receipt.execution.provider) == (host, "relayed")
    assert (receipt.prompt_tokens, receipt.completion_tokens) == (7, 2)
    assert receipt.response_sha256 == receipts.response_digest(plain(found))


@pytest.mark.parametrize("tools", [False, True])
async def test_a_stream_adds_up_to_what_the_receipt_is_over(far: tuple[Town, AsyncOpenAI, str], tools: bool) -> None:
    _, stock, _ = far
    more: dict[str, Any] = {"tools": [TOOL]} if tools else {}
    chunks = [chunk async for chunk in await stock.chat.completions.create(**ASKED, stream=True, **more)]
    last = chunks[-1]
    assert last.usage is not None
    assert last.model_extra is not None
    message: dict[str, Any] = {"role": "assistant", "content": "Hello there", "refusal": None}
    if tools:
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    whole = {
        "id": last.id,
        "object": "chat.completion",
        "created": last.created,
        "model": "alice/far",
        "system_fingerprint": last.system_fingerprint,
        "choices": [{"index": 0, "finish_reason": "tool_calls" if tools else "stop", "logprobs": None, "message": message}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
    receipt = receipts.from_document(last.model_extra["placet"]["receipt"])
    assert receipt.response_sha256 == receipts.response_digest(whole)
    assert {chunk.model for chunk in chunks} == {"alice/far"}
    one = await stock.chat.completions.create(**ASKED, **more)
    assert bool(one.choices[0].message.tool_calls) is tools


async def test_what_is_relayed_nowhere_is_said_to_be(far: tuple[Town, AsyncOpenAI, str]) -> None:
    _, stock, _ = far
    with pytest.raises(openai.InternalServerError, match="relays no such model"):
        await stock.chat.completions.create(model="alice/nowhere", messages=MESSAGES)
    with pytest.raises(openai.APIStatusError):
        await stock.completions.create(model="alice/far", prompt="x")
