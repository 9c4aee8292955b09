"""OpenAI's surface with the stock `openai` client, unchanged: plain, streamed, refused; and the receipt of each."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI

from placet.core import receipts
from placet.core.receipts import Finish, Receipt
from tests.e2e.inference.conftest import Town
from tests.support import models
from tests.support.authorization import eventually
from tests.support.minilm import minilm

MESSAGES: Any = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture
async def chat(town: Town) -> AsyncIterator[AsyncOpenAI]:
    """The stock client, and a tiny language model to talk to."""
    (town.folder / "llm").mkdir()
    folder = models.language_model(town.folder / "llm")
    files = {path.name: path for path in folder.iterdir()}
    manifest = await town.alice.publish("chat", files, kind="text")
    await town.alice.move("chat", "prod", manifest.version)
    async with AsyncOpenAI(base_url=f"{town.network.gateway_url}/v1", api_key=town.network.api_key, max_retries=0) as client:
        yield client


def receipt_of(answer: Any) -> Receipt:
    return receipts.from_document(answer.model_extra["placet"]["receipt"])


def plain(answer: Any) -> Any:
    """The answer's body as it was sent, without Placet's member."""
    document = json.loads(answer.model_dump_json(exclude_unset=True))
    document.pop("placet", None)
    return document


async def test_an_answer_in_one_piece_and_its_receipt(town: Town, chat: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "alice/chat", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    answer = await chat.chat.completions.create(**asked)
    again = await chat.chat.completions.create(**asked)
    assert answer.choices[0].message.content
    assert answer.choices[0].message.content == again.choices[0].message.content
    receipt = receipt_of(answer)
    assert answer.usage is not None
    assert (receipt.prompt_tokens, receipt.completion_tokens) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert receipt.request_sha256 == receipts.request_digest("chat.completions", "alice/chat", asked)
    assert receipt.response_sha256 == receipts.response_digest(plain(answer))
    assert receipt.finish is (Finish.LENGTH if answer.choices[0].finish_reason == "length" else Finish.STOP)


async def test_a_stream_adds_up_to_the_document_of_its_receipt(town: Town, chat: AsyncOpenAI) -> None:
    stream = await chat.chat.completions.create(
        model="alice/chat", messages=MESSAGES, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    text, finish, last = "", None, None
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        last = chunk
    assert last is not None
    assert last.usage is not None
    assert last.choices == []
    whole = {
        "id": last.id,
        "object": "chat.completion",
        "created": last.created,
        "model": last.model,
        "system_fingerprint": last.system_fingerprint,
        "choices": [
            {"index": 0, "finish_reason": finish, "logprobs": None, "message": {"role": "assistant", "content": text, "refusal": None}}
        ],
        "usage": json.loads(last.usage.model_dump_json(exclude_unset=True)),
    }
    assert receipt_of(last).response_sha256 == receipts.response_digest(whole)
    one = await chat.chat.completions.create(model="alice/chat", messages=MESSAGES, max_tokens=12, temperature=0)
    assert one.choices[0].message.content == text


async def test_sampling_is_honoured_or_refused_by_name(chat: AsyncOpenAI) -> None:
    def ask(**more: Any) -> Any:
        return chat.chat.completions.create(**{"model": "alice/chat", "messages": MESSAGES, "max_tokens": 8, **more})

    first, same, other = [(await ask(seed=seed)).choices[0].message.content for seed in (1, 1, 2)]
    assert first == same != other
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    answer = await ask(
        response_format={"type": "json_schema", "json_schema": {"name": "r", "strict": True, "schema": schema}}, max_tokens=100
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for more, name in (
        ({"tools": [tool]}, "tools"),
        ({"n": 2}, "n"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format/type"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"extra_body": {"frobnicate": 1}}, "frobnicate"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages/0/content"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(**more)
        assert caught.value.param == name


def slow_down(town: Town) -> None:
    """Every token of the loaded models takes a while, as of a large model: the tiny one is done before anybody can leave."""
    for name in ("inference-0", "inference-1"):
        for loaded in town.network.inside(name).runner.pool.loaded():
            genuine = loaded.engine.generate

            async def generate(*given: Any, genuine: Any = genuine, **more: Any) -> Any:
                async with aclosing(genuine(*given, **more)) as events:
                    async for event in events:
                        await asyncio.sleep(0.02)
                        yield event

            loaded.engine.generate = generate


async def test_a_caller_that_leaves_has_a_receipt_of_what_there_was(town: Town, chat: AsyncOpenAI) -> None:
    await chat.chat.completions.create(model="alice/chat", messages=MESSAGES, max_tokens=1)
    slow_down(town)
    stream = await chat.chat.completions.create(model="alice/chat", messages=MESSAGES, max_tokens=400, temperature=0.9, seed=3, stream=True)
    got = 0
    async for chunk in stream:
        got += sum(bool(choice.delta.content) for choice in chunk.choices)
        if got == 3:
            break
    await stream.close()

    async def cut() -> Any:
        found = (await town.client.request("GET", "/api/v1/receipts"))[1]["receipts"]
        return [item for item in found if item["finishReason"] == "interrupted"]

    (receipt,) = await eventually(cut)
    assert 3 <= receipt["usage"]["completionTokens"] < 400


async def test_completions_models_and_errors(town: Town, chat: AsyncOpenAI) -> None:
    done = await chat.completions.create(model="alice/chat", prompt="Once", max_tokens=6, temperature=0, stop=["\n"])
    assert done.choices[0].text is not None
    assert receipts.from_document(done.model_extra["placet"]["receipt"]).surface == "completions"  # type: ignore[index]
    listed = await chat.models.list()
    (model,) = listed.data
    assert (model.id, model.owned_by) == ("alice/chat", "alice")
    assert model.model_extra is not None
    assert model.model_extra["placet"]["contextLength"] > 0
    with pytest.raises(openai.NotFoundError):
        await chat.chat.completions.create(model="alice/none", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="does not answer embeddings"):
        await chat.embeddings.create(model="alice/chat", input="x")
    async with AsyncOpenAI(base_url=f"{town.network.gateway_url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_many_callers_at_once_are_all_answered(chat: AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(chat.chat.completions.create(model="alice/chat", messages=MESSAGES, max_tokens=10, temperature=0) for _ in range(12))
    )
    assert len({answer.choices[0].message.content for answer in answers}) == 1


async def test_a_real_embedding_model_by_floats_and_by_base64(town: Town) -> None:
    (town.folder / "minilm").mkdir()
    files = {path.name: path.resolve() for path in minilm(town.folder / "minilm").iterdir()}
    manifest = await town.alice.publish("minilm", files, kind="embedding")
    assert manifest.dimensions == 384
    await town.alice.move("minilm", "prod", manifest.version)
    texts = ["a cat", "a kitten", "stocks fell on Monday"]
    async with AsyncOpenAI(base_url=f"{town.network.gateway_url}/v1", api_key=town.network.api_key, max_retries=0) as client:
        floats = await client.embeddings.create(model="alice/minilm", input=texts, encoding_format="float")
        coded = await client.embeddings.create(model="alice/minilm", input=texts)  # the client asks for base64 by itself
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="alice/minilm", input="x", dimensions=100)
        assert caught.value.param == "dimensions"
    cat, kitten, stocks = (np.array(item.embedding) for item in floats.data)
    assert cat @ kitten > 0.5 > cat @ stocks
    np.testing.assert_allclose([item.embedding for item in coded.data], [item.embedding for item in floats.data], atol=1e-7)
    first, second = receipt_of(floats), receipt_of(coded)
    assert first.response_sha256 == second.response_sha256, "how vectors are written does not change what was answered"
    data = [
        {"index": at, "embeddingSha256": "0x" + hashlib.sha256(np.array(item.embedding, "<f4").tobytes()).hexdigest()}
        for at, item in enumerate(floats.data)
    ]
    head = {"object": "list", "model": "alice/minilm", "usage": json.loads(floats.usage.model_dump_json())}
    assert first.response_sha256 == receipts.response_digest({**head, "data": data})
