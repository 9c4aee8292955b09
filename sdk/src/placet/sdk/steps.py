"""Conversations over HTTP that are written once, as generators of steps, and driven by a synchronous or an asynchronous transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import httpx

from placet.core.errors import TooLarge

MAX_REQUEST_BYTES: Final = 48 << 20
MAX_ANSWER_BYTES: Final = 128 << 20
HELD_HEADERS: Final = frozenset({"content-length", "content-encoding", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; the step's result is the response, its body not read yet. Raises httpx.TransportError into the generator."""

    request: httpx.Request


@dataclass(frozen=True, slots=True)
class Read:
    """Read a response to its end and close it; the result is its body, decoded."""

    response: httpx.Response


@dataclass(frozen=True, slots=True)
class Close:
    """Close a response."""

    response: httpx.Response


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Do:
    """Work that may block on a file; the result is the function's."""

    work: Callable[[], Any]


Step = Send | Read | Close | Sleep | Do
Steps = Generator[Step, Any, httpx.Response]
Handler = Callable[[httpx.Request, bytes], Steps]


class Watch(Protocol):
    """What looks at an answer's bytes as they pass."""

    def feed(self, data: bytes) -> bytes:
        """Bytes came; returns what may be handed over."""

    def end(self) -> bytes:
        """The answer is complete; returns what was held back. Raises what is wrong with it."""

    def broken(self, error: BaseException) -> None:
        """It was not complete, because of this; GeneratorExit when the caller left."""


def plain(response: httpx.Response, content: bytes, **extensions: Any) -> httpx.Response:
    """The response with a body that was read already."""
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in HELD_HEADERS]
    return httpx.Response(response.status_code, headers=headers, content=content, extensions=_kept(response) | extensions)


def watched(response: httpx.Response, watch: Watch, **extensions: Any) -> httpx.Response:
    """The response with a body that is looked at as it passes, whichever way it is read."""
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in HELD_HEADERS]
    return httpx.Response(response.status_code, headers=headers, stream=Watched(response, watch), extensions=_kept(response) | extensions)


def _kept(response: httpx.Response) -> dict[str, Any]:
    return {name: value for name, value in response.extensions.items() if name != "network_stream"}


class Watched(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body under watch, read in the way in which the response under it can be."""

    def __init__(self, response: httpx.Response, watch: Watch) -> None:
        self._response, self._watch = response, watch

    def __iter__(self) -> Iterator[bytes]:
        try:
            for data in self._response.iter_bytes():
                if part := self._watch.feed(data):
                    yield part
            if part := self._watch.end():
                yield part
        except BaseException as error:
            self._watch.broken(error)
            raise

    def close(self) -> None:
        self._response.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._response.aiter_bytes():
                if part := self._watch.feed(data):
                    yield part
            if part := self._watch.end():
                yield part
        except BaseException as error:
            self._watch.broken(error)
            raise

    async def aclose(self) -> None:
        await self._response.aclose()


def _grown(parts: bytearray, data: bytes, most: int, field: str) -> None:
    parts += data
    if len(parts) > most:
        raise TooLarge(f"{field}: more than {most} bytes", field=field)


class Transport(httpx.BaseTransport):
    """An httpx transport that talks as a handler says."""

    def __init__(self, handler: Handler, inner: httpx.BaseTransport | None = None) -> None:
        self._handler = handler
        self._inner = inner if inner is not None else httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = bytearray()
        assert isinstance(request.stream, httpx.SyncByteStream)
        for data in request.stream:
            _grown(body, data, MAX_REQUEST_BYTES, "request")
        steps = self._handler(request, bytes(body))
        try:
            step = next(steps)
            while True:
                try:
                    result = self._take(step)
                except Exception as error:  # noqa: BLE001 - it is the conversation's to judge
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            response: httpx.Response = end.value
            return response
        finally:
            steps.close()

    def _take(self, step: Step) -> Any:
        match step:
            case Send(request):
                return self._inner.handle_request(request)
            case Read(response):
                body = bytearray()
                try:
                    for data in response.iter_bytes():
                        _grown(body, data, MAX_ANSWER_BYTES, "answer")
                finally:
                    response.close()
                return bytes(body)
            case Close(response):
                return response.close()
            case Sleep(seconds):
                return time.sleep(seconds)
            case Do(work):
                return work()

    def close(self) -> None:
        self._inner.close()


class AsyncTransport(httpx.AsyncBaseTransport):
    """The same, asynchronous."""

    def __init__(self, handler: Handler, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self._handler = handler
        self._inner = inner if inner is not None else httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = bytearray()
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for data in request.stream:
            _grown(body, data, MAX_REQUEST_BYTES, "request")
        steps = self._handler(request, bytes(body))
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._take(step)
                except Exception as error:  # noqa: BLE001 - it is the conversation's to judge
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            response: httpx.Response = end.value
            return response
        finally:
            steps.close()

    async def _take(self, step: Step) -> Any:
        match step:
            case Send(request):
                return await self._inner.handle_async_request(request)
            case Read(response):
                body = bytearray()
                try:
                    async for data in response.aiter_bytes():
                        _grown(body, data, MAX_ANSWER_BYTES, "answer")
                finally:
                    await response.aclose()
                return bytes(body)
            case Close(response):
                return await response.aclose()
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case Do(work):
                return await asyncio.to_thread(work)

    async def aclose(self) -> None:
        await self._inner.aclose()


def with_body(
    request: httpx.Request, body: bytes, headers: dict[str, str] | None = None, *, extensions: dict[str, Any] | None = None
) -> httpx.Request:
    """The request with another body, and these headers and extensions besides."""
    held = {"content-length", "transfer-encoding", "payment-signature", "accept-encoding"}
    kept = [(name, value) for name, value in request.headers.multi_items() if name.lower() not in held]
    extra = [("accept-encoding", "identity"), *(headers or {}).items()]
    return httpx.Request(
        request.method, request.url, headers=kept + extra, content=body, extensions={**request.extensions, **(extensions or {})}
    )


def under(gateway: httpx.URL, url: httpx.URL) -> str | None:
    """A URL's path behind the gateway's own; None: it is none of the gateway's."""
    if (url.scheme, url.host, _port(url)) != (gateway.scheme, gateway.host, _port(gateway)):
        return None
    base = gateway.path.rstrip("/")
    return url.path.removeprefix(base) if url.path.startswith(base + "/") else None


def _port(url: httpx.URL) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)
