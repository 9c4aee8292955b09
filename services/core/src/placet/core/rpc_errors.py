"""The error taxonomy over gRPC: a status by its name, and the whole error in a trailer, so nothing of it is lost on the way."""

from __future__ import annotations

from typing import Any

import grpc
import orjson

from placet.core.errors import ALL_ERRORS, DeadlineExceeded, Internal, PlacetError, RateLimited, Unavailable

TRAILER = "placet-error-bin"
_MAX_TRAILER_BYTES = 6_000
_BY_CODE = {kind.code: kind for kind in ALL_ERRORS}


def encode(error: PlacetError) -> bytes:
    """The error as bytes; what would not fit into a trailer is left out."""
    members = {"code": error.code, "message": error.message[:2000], "field": error.field, "extra": error.extra}
    raw = orjson.dumps(members, default=str)
    return raw if len(raw) <= _MAX_TRAILER_BYTES else orjson.dumps({**members, "extra": {}})


def decode(raw: bytes) -> PlacetError:
    """The error from its bytes; one that is not known here is Internal."""
    try:
        members = orjson.loads(raw)
        kind = _BY_CODE.get(members["code"], Internal)
        return kind(str(members["message"]), field=members["field"], **members["extra"])
    except (ValueError, KeyError, TypeError):
        return Internal("the other side failed in a way that is not known here")


async def abort(context: Any, error: PlacetError) -> None:
    """End a call with an error. Never returns."""
    status = getattr(grpc.StatusCode, error.grpc_status)
    await context.abort(status, error.message[:500], trailing_metadata=((TRAILER, encode(error)),))


def from_rpc(error: grpc.aio.AioRpcError) -> PlacetError:
    """The error behind a failed call: the other side's own, or what its status means."""
    for key, value in error.trailing_metadata() or ():
        if key == TRAILER:
            return decode(value if isinstance(value, bytes) else value.encode())
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("the inference service did not answer in time")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return RateLimited("a message is larger than the inference service takes")
        case _:
            return Unavailable(f"the inference service does not answer ({error.code().name.lower()})")
