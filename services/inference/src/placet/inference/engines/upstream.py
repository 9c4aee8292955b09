"""Models that somebody else runs: an OpenAI-style upstream by URL (vLLM, SGLang, llama.cpp's server, a provider).

Nothing here proves what the upstream did: whoever writes receipts calls these answers relayed. The upstream is not trusted with more than
the request: it gets our key, the caller's JSON and a few headers; its answers are bounded in size and time, redirects are not followed,
compressed answers are refused, cookies forgotten, and its texts reach callers short and without the key.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from pydantic import SecretStr

from placet.core.errors import DeadlineExceeded, InvalidInput, PlacetError, RateLimited, TooLarge, Unavailable
from placet.core.receipts import Finish
from placet.inference.engines.base import EngineInfo, RelayChunk, RelayEnd
from placet.inference.engines.places import Places

__all__ = ["SENT_HEADERS", "TOLD_HEADERS", "Upstream", "UpstreamOptions"]

SENT_HEADERS = frozenset({"traceparent", "tracestate", "x-request-id", "idempotency-key"})
"""Of a caller's headers, those that reach the upstream."""
TOLD_HEADERS = frozenset({"x-request-id", "openai-processing-ms"})
"""Of the upstream's headers, those that reach the caller."""

_TOOLS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")
_OWN = ("placet",)
_HEADER = re.compile(r"[\x20-\x7e]{1,512}\Z")
_FINISH = {"length": Finish.LENGTH, "tool_calls": Finish.TOOL_CALLS, "function_call": Finish.TOOL_CALLS}
_REFUSAL_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """What is configured for an upstream. `url` is what /chat/completions is put behind, for instance "https://llm.example/v1"."""

    url: str
    model: str
    """The upstream's name for the model."""
    api_key: SecretStr | None = None
    tools: bool = False
    """Whether the upstream takes tools; it must be said."""
    concurrency: int = 16
    max_waiting: int = 64
    context_length: int | None = None
    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 60.0
    """Between two reads."""
    max_request_bytes: int = 8 << 20
    max_chunk_bytes: int = 1 << 20
    max_answer_bytes: int = 32 << 20


class Upstream:
    """`RelayEngine` over HTTP."""

    def __init__(self, options: UpstreamOptions) -> None:
        parts = urlsplit(options.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
            raise InvalidInput("an upstream is http(s)://host[:port][/path], without credentials", field="url")
        self.relayed = parts.netloc
        self.info = EngineInfo(
            engine="upstream",
            provider="relayed",
            profile=None,
            concurrency=options.concurrency,
            batches=False,
            warm_up_s=0.0,
            context_length=options.context_length,
        )
        self._options = options
        self._url = options.url.rstrip("/") + "/chat/completions"
        self._places = Places(options.concurrency, options.max_waiting)
        self._session: aiohttp.ClientSession | None = None

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting)."""
        return self._places.running, self._places.waiting

    async def close(self) -> None:
        """As `RelayEngine.close`."""
        self._places.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def check(self, body: Mapping[str, Any]) -> None:
        """As `RelayEngine.check`."""
        self._request(body)

    async def chat(
        self, body: Mapping[str, Any], *, deadline: float, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[RelayChunk | RelayEnd]:
        """As `RelayEngine.chat`."""
        raw = self._request(body)
        queued_s = await self._places.take(deadline)
        started = time.perf_counter()
        reading = _Reading(self._options, body)
        answer: aiohttp.ClientResponse | None = None
        try:
            try:
                answer = await self._ask(raw, headers or {}, deadline)
                if body.get("stream"):
                    async for document in self._stream(answer, deadline, reading):
                        yield RelayChunk(document)
                else:
                    yield RelayChunk(await self._whole(answer, deadline, reading))
                finish = reading.finish
            except DeadlineExceeded:
                if not reading.chunks:
                    raise
                finish = Finish.INTERRUPTED
            except (aiohttp.ClientError, OSError) as error:  # the deadline is not among them: it was translated
                raise Unavailable(f"the upstream {self.relayed} fails ({type(error).__name__})") from None
            told = {} if answer is None else {name: answer.headers[name][:512] for name in TOLD_HEADERS if name in answer.headers}
        finally:
            if answer is not None:
                answer.close()
            took = time.perf_counter() - started
            self._places.give_back(took)
        yield RelayEnd(finish, reading.prompt_tokens, reading.completion_tokens, queued_s, took, told)

    def _request(self, body: Mapping[str, Any]) -> bytes:
        """What is sent: the caller's JSON with the upstream's name of the model."""
        if not self._options.tools:
            for name in _TOOLS:
                if body.get(name):
                    raise InvalidInput("this model takes no tools", field=f"/{name}")
        document = {name: value for name, value in body.items() if name not in _OWN} | {"model": self._options.model}
        if body.get("stream"):
            asked = body.get("stream_options")
            document["stream_options"] = {**(asked if isinstance(asked, dict) else {}), "include_usage": True}
        try:
            raw = orjson.dumps(document)
        except orjson.JSONEncodeError as error:
            raise InvalidInput(f"the request is not JSON: {error}", field="") from None
        if len(raw) > self._options.max_request_bytes:
            raise TooLarge(f"the request exceeds {self._options.max_request_bytes} bytes", field="")
        return raw

    async def _ask(self, raw: bytes, headers: Mapping[str, str], deadline: float) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._options.connect_timeout_s, sock_read=self._options.idle_timeout_s
                ),
                connector=aiohttp.TCPConnector(limit=self._options.concurrency),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        sent = {name.lower(): value for name, value in headers.items() if name.lower() in SENT_HEADERS and _HEADER.match(value)}
        sent |= {"content-type": "application/json", "accept": "application/json, text/event-stream", "accept-encoding": "identity"}
        if self._options.api_key is not None:
            sent["authorization"] = f"Bearer {self._options.api_key.get_secret_value()}"
        try:
            async with asyncio.timeout_at(deadline):
                answer = await self._session.post(self._url, data=raw, headers=sent, allow_redirects=False)
                if answer.status != 200:
                    raise self._refusal(answer, await _at_most(answer, _REFUSAL_BYTES))
        except TimeoutError:
            raise self._late(deadline) from None
        if answer.headers.get("content-encoding", "identity") != "identity":
            answer.close()
            raise Unavailable(f"the upstream {self.relayed} compresses its answer, which was not asked for")
        return answer

    async def _stream(self, answer: aiohttp.ClientResponse, deadline: float, reading: _Reading) -> AsyncIterator[Mapping[str, Any]]:
        """Chunks of a stream of server-sent events, until [DONE]."""
        line = bytearray()
        while True:
            part = await self._read(answer, deadline)
            if not part:
                raise Unavailable(f"the upstream {self.relayed} ended its stream before its end")
            reading.count(len(part))
            *whole, rest = (bytes(line) + part).split(b"\n")
            line = bytearray(rest)
            if max(map(len, (*whole, rest))) > self._options.max_chunk_bytes:
                raise Unavailable(f"the upstream {self.relayed} sends chunks of more than {self._options.max_chunk_bytes} bytes")
            for event in whole:
                data = event.strip().removeprefix(b"data:").strip() if event.startswith(b"data:") else b""
                if data == b"[DONE]":
                    return
                if data and reading.take(document := self._document(data)):
                    yield document

    async def _whole(self, answer: aiohttp.ClientResponse, deadline: float, reading: _Reading) -> Mapping[str, Any]:
        body = bytearray()
        while part := await self._read(answer, deadline):
            reading.count(len(part))
            body += part
        document = self._document(bytes(body))
        reading.take(document)
        return document

    async def _read(self, answer: aiohttp.ClientResponse, deadline: float) -> bytes:
        try:
            async with asyncio.timeout_at(deadline):
                return await answer.content.readany()
        except TimeoutError:
            raise self._late(deadline) from None

    def _document(self, raw: bytes) -> Mapping[str, Any]:
        try:
            document = orjson.loads(raw)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise Unavailable(f"the upstream {self.relayed} answers in another form")
        if document.get("error"):
            raise Unavailable(f"the upstream {self.relayed} fails: {self._said(document)}")
        return document

    def _late(self, deadline: float) -> PlacetError:
        """The deadline passed, or the upstream says nothing for too long."""
        if asyncio.get_running_loop().time() >= deadline:
            return DeadlineExceeded(f"the upstream {self.relayed} had not answered by the deadline")
        return Unavailable(f"the upstream {self.relayed} says nothing")

    def _refusal(self, answer: aiohttp.ClientResponse, body: bytes) -> PlacetError:
        status = answer.status
        answer.close()
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            document = {}
        said = self._said(document)
        if status == 413:
            return TooLarge(f"the upstream refuses the request: {said}", field="")
        if status in (400, 422):
            parameter = document["error"].get("param") if isinstance(document, dict) and isinstance(document.get("error"), dict) else None
            field = f"/{parameter}" if isinstance(parameter, str) and re.fullmatch(r"[a-z_]{1,64}", parameter) else ""
            return InvalidInput(f"the upstream refuses the request: {said}", field=field)
        if status == 429:
            after = answer.headers.get("retry-after", "")
            seconds = min(int(after), 3_600) if re.fullmatch(r"[0-9]{1,6}", after) else 1
            return RateLimited(f"the upstream {self.relayed} has no place", retry_after_ms=max(seconds, 1) * 1_000)
        # What it says of our key, of where it moved to and of its inside is not for callers.
        return Unavailable(f"the upstream {self.relayed} answers with status {status}")

    def _said(self, document: Any) -> str:
        """The upstream's own words: short, on one line, without our key."""
        error = document.get("error") if isinstance(document, dict) else None
        text = error.get("message") if isinstance(error, dict) else error
        if not isinstance(text, str):
            return "it does not say why"
        key = self._options.api_key.get_secret_value() if self._options.api_key is not None else ""
        return " ".join((text.replace(key, "…") if key else text).split())[:300]


class _Reading:
    """What was read of an answer."""

    def __init__(self, options: UpstreamOptions, body: Mapping[str, Any]) -> None:
        self._left = options.max_answer_bytes
        asked = body.get("stream_options")
        self._usage_wanted = isinstance(asked, dict) and asked.get("include_usage") is True
        self.chunks = 0
        self.finish = Finish.STOP
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._usage_told = False

    def count(self, size: int) -> None:
        """Bytes came."""
        self._left -= size
        if self._left < 0:
            raise Unavailable("the upstream's answer is too long")

    def take(self, document: Mapping[str, Any]) -> bool:
        """A document came. False: it is the usage that the caller did not ask for."""
        choices = document.get("choices")
        usage = document.get("usage")
        if isinstance(usage, dict):
            self._usage_told = True
            self.prompt_tokens, self.completion_tokens = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                reason = choice.get("finish_reason")
                if isinstance(reason, str):
                    self.finish = _FINISH.get(reason, Finish.STOP)
                delta = choice.get("delta")
                if isinstance(delta, dict) and (delta.get("content") or delta.get("tool_calls")) and not self._usage_told:
                    self.completion_tokens += 1
        if not choices and isinstance(usage, dict) and not self._usage_wanted:
            return False
        self.chunks += 1
        return True


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0


async def _at_most(answer: aiohttp.ClientResponse, size: int) -> bytes:
    body = bytearray()
    while len(body) < size and (part := await answer.content.readany()):
        body += part
    return bytes(body[:size])
