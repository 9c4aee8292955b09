"""The Open Inference Protocol V2 over HTTP at the replica itself, for callers inside the cluster: the shortest way to a model of tensors.

A bare ASGI application: routing by hand, one parse, one run. No key, no payment: the port belongs to the cluster, as gRPC does.
`Placet-Receipt: true` asks for a receipt, which costs about as much as a small model's run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import orjson
import uvicorn

from placet.core.errors import Internal, InvalidInput, NotFound, PlacetError, TooLarge
from placet.core.models import parse_reference
from placet.core.receipts import Mode
from placet.core.tensors import decode_request, encode_response
from placet.core.types import Hash32
from placet.inference.hub.store import HubStore, VersionRow
from placet.inference.runner import Finished, Request, Runner

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 48 << 20
_PREFIX = "/v2/models/"
_RESOLVED_S = 1.0
_RESOLVED = 256
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the runtime."""
        yield


class V2Http:
    """The application and its server."""

    def __init__(self, runner: Runner, store: HubStore, *, longest_s: float) -> None:
        self._runner = runner
        self._store = store
        self._longest_s = longest_s
        self._resolved: OrderedDict[str, tuple[float, VersionRow]] = OrderedDict()
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Serve; returns the port."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.setblocking(False)
        config = uvicorn.Config(
            self, log_config=None, log_level="warning", access_log=False, lifespan="off", interface="asgi3", server_header=False
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="http")
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Finish what is in hand."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._answer(scope, receive)
        except PlacetError as error:
            status, headers = 400 if error.http_status == 422 else error.http_status, [_JSON]
            body = orjson.dumps({"error": f"{error.code}: {error.message}"})
        except Exception:
            log.exception("unexpected error")
            status, headers = 500, [_JSON]
            body = orjson.dumps({"error": Internal.code})
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        path, method = scope["path"], scope["method"]
        if path in ("/v2/health/live", "/v2/health/ready") and method == "GET":
            return 200, [], b""
        if not path.startswith(_PREFIX) or not path.endswith("/infer") or method != "POST":
            raise NotFound("POST /v2/models/{publisher}/{name}[/versions/{version}]/infer")
        row = await self._resolve(path[len(_PREFIX) : -len("/infer")])
        given = dict(scope["headers"])
        declared = given.get(b"inference-header-content-length")
        if declared is not None and not declared.isdigit():
            raise InvalidInput("Inference-Header-Content-Length: a number wanted", field="Inference-Header-Content-Length")
        asked = decode_request(await _body(receive), None if declared is None else int(declared))
        if asked.parameters:
            raise InvalidInput(f"parameters/{min(asked.parameters)}: is not honoured here", field=f"parameters/{min(asked.parameters)}")
        manifest = row.manifest
        name = f"{manifest.publisher}/{manifest.name}"
        request = Request(
            receipt_id=Hash32(secrets.token_bytes(32)),
            surface="tensors",
            mode=Mode.VANILLA,
            model_sha256=row.sha256,
            model_name=name,
            body={},
            tensors=asked.tensors,
            outputs=tuple(item.name for item in asked.wanted),
            client_nonce=None,
            payment=None,
            deadline=asyncio.get_running_loop().time() + self._longest_s,
            alone=False,
            jurisdiction="",
            tenant="",
            with_receipt=given.get(b"placet-receipt") == b"true",
        )
        finished: Finished | None = None
        async for event in self._runner.run(request, row):
            if isinstance(event, Finished):
                finished = event
        assert finished is not None
        head: dict[str, Any] = {"model_name": name, "model_version": str(manifest.version)}
        if asked.id is not None:
            head["id"] = asked.id
        if finished.receipt:
            head["parameters"] = {"placet_receipt": finished.receipt.decode()}
        body, json_bytes = encode_response(head, finished.answer.tensors, asked, max_bytes=2 * MAX_BODY_BYTES)
        if json_bytes is None:
            return 200, [_JSON], body
        return 200, [_BINARY, (b"inference-header-content-length", str(json_bytes).encode())], body

    async def _resolve(self, path: str) -> VersionRow:
        """The version a path names, at most a second ago."""
        now = time.monotonic()
        cached = self._resolved.get(path)
        if cached is None or now - cached[0] > _RESOLVED_S:
            name, _, version = path.partition("/versions/")
            cached = now, await self._store.resolve(parse_reference(f"{name}@{version}" if version else name))
            self._resolved[path] = cached
            while len(self._resolved) > _RESOLVED:
                self._resolved.popitem(last=False)
        return cached[1]


async def _body(receive: Receive) -> bytes:
    """The request's body, refused as soon as it exceeds the limit."""
    message = await receive()
    first: bytes = message.get("body", b"")
    if not message.get("more_body") and len(first) <= MAX_BODY_BYTES:
        return first
    parts = bytearray(first)
    while message.get("more_body") and len(parts) <= MAX_BODY_BYTES:
        message = await receive()
        parts += message.get("body", b"")
    if len(parts) > MAX_BODY_BYTES:
        raise TooLarge(f"body: at most {MAX_BODY_BYTES} bytes", field="body")
    return bytes(parts)
