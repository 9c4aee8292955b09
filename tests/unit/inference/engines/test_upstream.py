from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import SecretStr

from placet.core.errors import DeadlineExceeded, InvalidInput, PlacetError, RateLimited, TooLarge, Unavailable
from placet.core.receipts import Finish
from placet.inference.engines.base import RelayChunk, RelayEnd
from placet.inference.engines.upstream import Upstream, UpstreamOptions
from tests.support.waiting import until, within

KEY = "sk-very-secret"
BODY = {"model": "placet/name", "messages": [{"role": "user", "content": "hello"}]}
STREAM = {**BODY, "stream": True}

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    """What reached the upstream."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@asynccontextmanager
async def upstream(answer: Answer, **options: Any) -> AsyncIterator[tuple[Upstream, Seen]]:
    seen = Seen()

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.bodies.append(await request.json())
        seen.headers.append({name.lower(): value for name, value in request.headers.items()})
        return await answer(request)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    server = TestServer(app)
    await server.start_server()
    made = Upstream(UpstreamOptions(str(server.make_url("/v1")), "upstream-name", api_key=SecretStr(KEY), **options))
    try:
        yield made, seen
    finally:
        await made.close()
        await server.close()


async def relay(engine: Upstream, body: dict[str, Any], **options: Any) -> tuple[list[dict[str, Any]], RelayEnd]:
    documents: list[dict[str, Any]] = []
    async for event in engine.chat(body, deadline=within(), **options):
        if isinstance(event, RelayEnd):
            return documents, event
        documents.append(dict(event.document))
    raise AssertionError("an answer without an end")


def delta(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}], **more}


USAGE = {"id": "x", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}


def events(*documents: Any, done: bool = True) -> bytes:
    lines = [f"data: {document if isinstance(document, str) else json.dumps(document)}\n\n" for document in documents]
    return ("".join(lines) + ("data: [DONE]\n\n" if done else "")).encode()


def streaming(raw: bytes, *, at_once: int = 10**9, then: asyncio.Event | None = None) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for at in range(0, len(raw), at_once):
            await response.write(raw[at : at + at_once])
        if then is not None:
            await then.wait()
        return response

    return answer


def replying(status: int, document: Any, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(document, status=status, headers=headers)

    return answer


WHOLE = {
    "id": "x",
    "choices": [{"message": {"content": "hi"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4},
}


async def test_a_whole_answer_passes_whole() -> None:
    async with upstream(replying(200, WHOLE, **{"x-request-id": "r1", "set-cookie": "a=b", "server": "s"})) as (engine, seen):
        documents, end = await relay(engine, {**BODY, "temperature": 0.5, "placet": {"mode": "vanilla"}})
        assert documents == [WHOLE]
        assert (end.finish, end.prompt_tokens, end.completion_tokens) == (Finish.LENGTH, 3, 4)
        assert end.headers == {"x-request-id": "r1"}
        assert seen.bodies == [{**BODY, "model": "upstream-name", "temperature": 0.5}]
        assert engine.relayed.startswith("127.0.0.1:")
        assert (engine.info.provider, engine.info.profile) == ("relayed", None)
        assert engine.load == (0, 0)


@pytest.mark.parametrize("at_once", [1, 7, 10**9])
async def test_a_stream_passes_chunk_by_chunk_however_it_is_cut(at_once: int) -> None:
    raw = b": a comment\r\n\r\nevent: message\n" + events(delta("Grü"), delta("ße 🎈"), delta(finish="stop"), USAGE)
    async with upstream(streaming(raw, at_once=at_once)) as (engine, seen):
        documents, end = await relay(engine, STREAM)
        assert documents == [delta("Grü"), delta("ße 🎈"), delta(finish="stop")]
        assert (end.finish, end.prompt_tokens, end.completion_tokens) == (Finish.STOP, 5, 7)
        assert seen.bodies[0]["stream_options"] == {"include_usage": True}
        documents, _ = await relay(engine, {**STREAM, "stream_options": {"include_usage": True}})
        assert documents[-1] == USAGE


async def test_only_the_named_headers_pass_and_the_key_is_ours() -> None:
    async with upstream(replying(200, WHOLE)) as (engine, seen):
        sent = {
            "Authorization": "Bearer of-the-caller",
            "Cookie": "a=b",
            "X-Request-Id": "r",
            "traceparent": "00-1",
            "X-Evil": "1",
            "tracestate": "a\r\nb: c",
        }
        await relay(engine, BODY, headers=sent)
        (headers,) = seen.headers
        assert headers["authorization"] == f"Bearer {KEY}"
        assert (headers["x-request-id"], headers["traceparent"]) == ("r", "00-1")
        assert {"cookie", "x-evil", "tracestate"}.isdisjoint(headers)
        assert headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("name", ["tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"])
async def test_tools_pass_only_to_an_upstream_that_declares_them(name: str) -> None:
    body = {**BODY, name: [{"type": "function"}]}
    async with upstream(replying(200, WHOLE)) as (engine, seen):
        with pytest.raises(InvalidInput) as refused:
            await relay(engine, body)
        assert refused.value.field == f"/{name}"
        with pytest.raises(InvalidInput):
            engine.check(body)
        assert seen.bodies == []
    called = {"choices": [{"message": {"tool_calls": []}, "finish_reason": "tool_calls"}]}
    async with upstream(replying(200, called), tools=True) as (engine, seen):
        engine.check(body)
        _, end = await relay(engine, body)
        assert end.finish is Finish.TOOL_CALLS
        assert seen.bodies[0][name] == [{"type": "function"}]


@pytest.mark.parametrize(
    ("status", "error", "kind", "field"),
    [
        (400, {"message": "max_tokens is too large", "param": "max_tokens"}, InvalidInput, "/max_tokens"),
        (422, {"message": f"no, {KEY}", "param": "../x"}, InvalidInput, ""),
        (413, {"message": "too long"}, TooLarge, ""),
        (401, {"message": f"Incorrect API key {KEY}"}, Unavailable, None),
        (404, "no such model", Unavailable, None),
        (500, {"message": "at /srv/inside.py"}, Unavailable, None),
    ],
)
async def test_a_refusal_is_told_in_our_words_and_never_with_the_key(
    status: int, error: Any, kind: type[PlacetError], field: str | None
) -> None:
    async with upstream(replying(status, {"error": error})) as (engine, _):
        with pytest.raises(kind) as refused:
            await relay(engine, BODY)
        assert refused.value.field == field
        assert KEY not in refused.value.message
        assert "inside" not in refused.value.message
        assert engine.load == (0, 0)


async def test_an_upstream_that_is_busy_says_when_to_come_again() -> None:
    async with upstream(replying(429, {"error": {"message": "slow down"}}, **{"retry-after": "7"})) as (engine, _):
        with pytest.raises(RateLimited) as refused:
            await relay(engine, BODY)
        assert refused.value.extra["retry_after_ms"] == 7_000


async def test_redirects_are_not_followed() -> None:
    elsewhere: list[str] = []

    async def away(request: web.Request) -> web.StreamResponse:
        elsewhere.append(str(request.url))
        raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/v1/chat/completions")

    async with upstream(away) as (engine, seen):
        with pytest.raises(Unavailable, match="status 307"):
            await relay(engine, BODY)
        assert len(seen.bodies) == 1


@pytest.mark.parametrize(
    ("answer", "body", "said"),
    [
        (streaming(events(delta("a"), done=False)), STREAM, "before its end"),
        (streaming(events("{not json")), STREAM, "another form"),
        (streaming(events("[1]")), STREAM, "another form"),
        (streaming(events(delta("a"), {"error": {"message": "out of memory"}})), STREAM, "fails: out of memory"),
        (streaming(b"data: " + b"x" * 3_000), STREAM, "chunks of more than 1000 bytes"),
        (streaming(events(*[delta("a" * 500)] * 20)), STREAM, "too long"),
        (replying(200, {"x": "a" * 9_000}), BODY, "too long"),
        (replying(200, [1]), BODY, "another form"),
        (replying(200, {}, **{"content-encoding": "x-bomb"}), BODY, "compresses"),
    ],
)
async def test_an_answer_of_another_form_or_size_is_the_upstreams_failure(answer: Answer, body: dict[str, Any], said: str) -> None:
    async with upstream(answer, max_chunk_bytes=1_000, max_answer_bytes=5_000) as (engine, _):
        with pytest.raises(Unavailable, match=said):
            await relay(engine, body)
        assert engine.load == (0, 0)


async def test_a_request_that_is_too_large_or_no_json_stays_here() -> None:
    async with upstream(replying(200, WHOLE), max_request_bytes=1_000) as (engine, seen):
        with pytest.raises(TooLarge):
            engine.check({**BODY, "user": "x" * 1_000})
        with pytest.raises(InvalidInput):
            engine.check({**BODY, "user": b"bytes"})
        assert seen.bodies == []


async def test_an_upstream_that_says_nothing_is_left() -> None:
    never = asyncio.Event()
    async with upstream(streaming(b"", then=never), idle_timeout_s=0.05) as (engine, _):
        with pytest.raises(Unavailable, match="says nothing"):
            await relay(engine, STREAM)
        never.set()
    closed = Upstream(UpstreamOptions("http://127.0.0.1:1/v1", "m"))
    with pytest.raises(Unavailable, match="fails"):
        await relay(closed, BODY)
    await closed.close()


async def test_a_deadline_before_the_first_chunk_is_an_error_and_later_an_end() -> None:
    never = asyncio.Event()
    async with upstream(streaming(b"", then=never)) as (engine, _):
        with pytest.raises(DeadlineExceeded):
            await anext(aiter(engine.chat(STREAM, deadline=within(0.05))))
        never.set()
    never = asyncio.Event()
    async with upstream(streaming(events(delta("a"), delta("b"), done=False), then=never)) as (engine, _):
        got = [event async for event in engine.chat(STREAM, deadline=within(0.3))]
        assert [type(event) for event in got] == [RelayChunk, RelayChunk, RelayEnd]
        end = cast(RelayEnd, got[-1])
        assert (end.finish, end.completion_tokens) == (Finish.INTERRUPTED, 2)
        never.set()


async def test_leaving_ends_the_connection_and_frees_the_place() -> None:
    left = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(events(delta("a"), done=False))
                await asyncio.sleep(0.001)
        except (ConnectionError, asyncio.CancelledError):
            left.set()
            raise

    async with upstream(endless, concurrency=1, max_waiting=0) as (engine, _):
        answer = cast(AsyncGenerator[RelayChunk | RelayEnd], engine.chat(STREAM, deadline=within()))
        assert isinstance(await anext(answer), RelayChunk)
        with pytest.raises(RateLimited):
            await relay(engine, STREAM)
        await answer.aclose()
        assert engine.load == (0, 0)
        await until(left.is_set)


@pytest.mark.parametrize("url", ["ftp://x/v1", "http://", "http://user:pass@x/v1", "http://x/v1?key=1", "x/v1"])
def test_an_upstream_is_a_plain_url(url: str) -> None:
    with pytest.raises(InvalidInput):
        Upstream(UpstreamOptions(url, "m"))


def test_the_key_does_not_show() -> None:
    assert KEY not in repr(UpstreamOptions("http://x/v1", "m", api_key=SecretStr(KEY)))
