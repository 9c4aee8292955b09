"""What the gateway's HTTP surfaces share: bounded bodies, JSON answers, problem documents."""

from __future__ import annotations

import json
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from placet.core.errors import PlacetError, TooLarge
from placet.gateway.requests import MAX_BODY_BYTES
from placet.gateway.tracing import note_outcome


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    try:
        body = orjson.dumps(content)
    except orjson.JSONEncodeError:  # a policy's parameters may hold integers of any size
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, media_type="application/json", headers=headers)


def problem(error: PlacetError) -> Response:
    """An RFC 9457 problem document."""
    note_outcome(error.code)
    headers = {"retry-after": str(error.extra.get("retryAfter", 1))} if error.http_status in (429, 503) else None
    return Response(orjson.dumps(error.problem()), error.http_status, media_type="application/problem+json", headers=headers)


async def bounded_body(request: Request, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The request's body, refused as soon as it exceeds the limit."""
    announced = request.headers.get("content-length")
    if announced is not None and (not announced.isdigit() or int(announced) > max_bytes):
        raise TooLarge(f"body: at most {max_bytes} bytes", field="body")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"body: at most {max_bytes} bytes", field="body")
    return bytes(body)
