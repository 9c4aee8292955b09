"""A local OpenAI endpoint for tools that know a base URL and a key: it pays from a wallet and hands over verified answers only.

Whoever can send requests here spends the wallet's money, so each needs the key that was made at the start, and nothing that a browser sends
of another page's accord is answered. Needs the extra `inference` of placet-sdk.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import httpx
import orjson
from aiohttp import web

from placet.core.errors import Forbidden, Internal, InvalidInput, NotFound, PlacetError, TooLarge, Unauthenticated, Unavailable
from placet.sdk.access import Access

log = logging.getLogger(__name__)

PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
MAX_BODY_BYTES: Final = 8 << 20
_PASSED: Final = ("content-type", "placet-receipt-id", "placet-model", "payment-response", "retry-after")


class Proxy:
    """One endpoint before one gateway."""

    def __init__(self, access: Access, *, key: str | None = None) -> None:
        self._access = access
        self.key = key or f"local_{secrets.token_hex(16)}"
        self._http = access.async_client()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, anywhere: bool = False) -> str:
        """Listen; returns the base URL that tools are given.

        Raises:
            InvalidInput: not a loopback address, and not `anywhere`. Unavailable: the port is taken.
        """
        if not anywhere and not _is_loopback(host):
            raise InvalidInput(f"{host} can be reached by others, who could spend this wallet's money", field="listen")
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        for path in PATHS:
            application.router.add_post(path, self._guarded(self._answer))
        application.router.add_get("/v1/models", self._guarded(self._look))
        application.router.add_get("/v1/models/{model:.+}", self._guarded(self._look))
        application.router.add_route("*", "/{rest:.*}", self._guarded(self._unknown))
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            await self.stop()
            raise Unavailable(f"{host}:{port} cannot be listened at: {error.strerror}") from None
        found = self._runner.addresses[0]
        self._port = int(found[1])
        names = (host, f"[{host}]", "127.0.0.1", "localhost", "[::1]")
        ends = (f":{self._port}", "") if self._port == 80 else (f":{self._port}",)
        self._names = None if anywhere else {name + end for name in names for end in ends}
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._port}/v1"
        return self.url

    async def stop(self) -> None:
        """Stop listening; what is under way is cut."""
        if self._runner is not None:
            await self._runner.cleanup()
        await self._http.aclose()

    def _guarded(self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Callable[[web.Request], Any]:
        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                self._admit(request)
                return await handler(request)
            except PlacetError as error:
                return _error(error)
            except web.HTTPRequestEntityTooLarge:
                return _error(TooLarge(f"body: at most {MAX_BODY_BYTES} bytes", field="body"))
            except httpx.TransportError as error:
                return _error(Unavailable(f"the gateway does not answer ({type(error).__name__}); send the same request again"))
            except web.HTTPException:
                raise
            except Exception:
                log.exception("unexpected error")
                return _error(Internal("something went wrong here; it has been logged"))

        return guarded

    def _admit(self, request: web.Request) -> None:
        """Raises Forbidden, Unauthenticated."""
        if self._names is not None and request.headers.get("host", "").lower() not in self._names:
            raise Forbidden("this endpoint is not known under that name")
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Forbidden("pages in a browser are not answered")
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.key}".encode()):
            raise Unauthenticated("send the key that `placet proxy` printed")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        outgoing = self._http.build_request("POST", request.path, content=body, headers={"content-type": "application/json"})
        answer = await self._http.send(outgoing, stream=True)
        try:
            if answer.status_code != 200 or "event-stream" not in answer.headers.get("content-type", ""):
                content = await answer.aread()
                return web.Response(body=content, status=answer.status_code, headers=_passed(answer))
            return await self._pass(request, answer)
        finally:
            await answer.aclose()

    async def _pass(self, request: web.Request, answer: httpx.Response) -> web.StreamResponse:
        out = web.StreamResponse(headers=_passed(answer) | {"cache-control": "no-store"})
        await out.prepare(request)
        with suppress(ConnectionResetError):  # the caller has left: some do as soon as they have read the end
            await self._copy(answer, out)
            await out.write_eof()
        return out

    @staticmethod
    async def _copy(answer: httpx.Response, out: web.StreamResponse) -> None:
        try:
            async for part in answer.aiter_bytes():
                await out.write(part)
        except (PlacetError, httpx.TransportError) as error:  # headers are gone; clients raise on an event that holds `error`
            known = error if isinstance(error, PlacetError) else Unavailable("the gateway broke off; send the same request again")
            log.warning("a stream ended badly: %s", known.message)
            await out.write(b"data: " + orjson.dumps(_document(known)) + b"\n\n")

    async def _look(self, request: web.Request) -> web.StreamResponse:
        answer = await self._http.get(httpx.URL(request.path))
        return web.Response(body=answer.content, status=answer.status_code, headers=_passed(answer))

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        raise NotFound(f"{request.method} {request.path}: only {', '.join(PATHS)} and GET /v1/models are here")


def _passed(answer: httpx.Response) -> dict[str, str]:
    return {name: answer.headers[name] for name in _PASSED if name in answer.headers}


def _document(error: PlacetError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.code, "param": error.field, "code": error.code}}


def _error(error: PlacetError) -> web.Response:
    status = 400 if error.http_status == 422 else error.http_status
    headers = {"retry-after": "1"} if error.retryable else {}
    return web.Response(body=orjson.dumps(_document(error)), status=status, headers=headers, content_type="application/json")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
