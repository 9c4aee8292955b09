"""OpenAI's surface, `/v1/…`: its paths, its error objects, its streams. The replica checks the request; here it only finds its way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from placet.core.db import DATABASE_ERRORS
from placet.core.errors import Internal, InvalidInput, PlacetError, Unavailable
from placet.core.gen import hub_pb2 as hub_pb
from placet.core.gen import inference_pb2 as pb
from placet.core.models import decode_manifest, parse_reference
from placet.core.types import Hash32, hex0x
from placet.gateway.http import bounded_body, reply
from placet.gateway.inference.paid import Admission, Paywall, StreamCopy, payment_headers, replay
from placet.gateway.inference.routing import wants_of
from placet.gateway.inference.service import Call, InferenceService, Opened
from placet.gateway.keys import Authenticator
from placet.gateway.store import ApiKey
from placet.gateway.tracing import note_outcome

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 << 20
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "payment_required",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_NAMES: dict[int, str] = {pb.SURFACE_CHAT: "chat.completions", pb.SURFACE_COMPLETIONS: "completions", pb.SURFACE_EMBEDDINGS: "embeddings"}
_PAGE, _MAX_LISTED, _AT_ONCE, _LISTED_S = 200, 2_000, 32, 5.0
"""Of `/v1/models`, which has no pages: it is looked up a page at a time, at most so long, and kept for some seconds."""
_STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
_SUPPORTED = {
    "text": ["max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "response_format"],
    "embedding": ["encoding_format", "dimensions"],
    "tensors": [],
    "upstream": ["whatever the upstream takes"],
}


def openai_error(error: PlacetError) -> Response:
    """An error as OpenAI's clients read it. Their 422 is 400."""
    note_outcome(error.code)
    status = 400 if error.http_status == 422 else error.http_status
    kind = _TYPES.get(status, "server_error")
    body = {"error": {"message": error.message, "type": kind, "param": error.field, "code": error.code}}
    headers = payment_headers(error) | ({"retry-after": str(error.extra.get("retryAfter", 1))} if error.retryable else {})
    return Response(orjson.dumps(body), status, media_type="application/json", headers=headers)


class OpenAiApi:
    """The routes of `/v1`."""

    def __init__(self, inference: InferenceService, authenticator: Authenticator, paywall: Paywall) -> None:
        self._inference = inference
        self._auth = authenticator
        self._paywall = paywall
        self._listed: tuple[float, list[dict[str, Any]]] | None = None

    def routes(self) -> list[Route]:
        """For the gateway's application."""
        return [
            Route("/v1/models", self._guard(self.models), methods=["GET"]),
            Route("/v1/models/{model:path}", self._guard(self.model), methods=["GET"]),
            Route("/v1/chat/completions", self._guard(self.chat, paid=True), methods=["POST"]),
            Route("/v1/completions", self._guard(self.completions, paid=True), methods=["POST"]),
            Route("/v1/embeddings", self._guard(self.embeddings, paid=True), methods=["POST"]),
        ]

    def _guard(
        self, handler: Callable[[Request, Any], Awaitable[Response]], *, paid: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                header = request.headers.get("authorization")
                return await handler(request, await (self._paywall.caller(request) if paid else self._auth.authenticate(header)))
            except PlacetError as error:
                return openai_error(error)
            except DATABASE_ERRORS as error:
                log.error("database: %s", error)
                return openai_error(Unavailable("the database does not answer"))
            except Exception:
                log.exception("unexpected error")
                return openai_error(Internal("something went wrong here; it has been logged"))

        return guarded

    async def chat(self, request: Request, key: ApiKey | None) -> Response:
        """A conversation's next message."""
        return await self._text(request, key, pb.SURFACE_CHAT)

    async def completions(self, request: Request, key: ApiKey | None) -> Response:
        """A text's continuation."""
        return await self._text(request, key, pb.SURFACE_COMPLETIONS)

    async def embeddings(self, request: Request, key: ApiKey | None) -> Response:
        """Vectors of texts."""
        return await self._text(request, key, pb.SURFACE_EMBEDDINGS)

    async def _text(self, request: Request, key: ApiKey | None, surface: int) -> Response:
        raw = await bounded_body(request, MAX_BODY_BYTES)
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise InvalidInput("body: not JSON", field="body") from None
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            raise InvalidInput("model: publisher/model wanted", field="model")
        stream = body.get("stream") is True and surface != pb.SURFACE_EMBEDDINGS
        call = Call(surface, body["model"], raw, wants_of(body.get("placet")), stream, "" if key is None else key.id)
        admission = await self._paywall.admit(request, raw, call, _NAMES[surface], key)
        if admission.replay is not None:
            return replay(admission.replay)
        opened = await self._paywall.open(call, admission)
        headers = {"placet-receipt-id": hex0x(opened.receipt_id), "placet-model": opened.resolved.name}
        if stream:
            events = _sse(opened, admission, self._paywall)
            return StreamingResponse(events, media_type="text/event-stream", headers={**headers, **_STREAM_HEADERS})
        async with aclosing(opened.events) as found:  # type: ignore[type-var]
            async for event in found:
                if event.HasField("finished"):
                    answer = reply(_with_receipt(event.finished, opened), headers=headers)
                    answer.headers.update(await self._paywall.finish(admission, event.finished, bytes(answer.body), "application/json"))
                    return answer
        raise Unavailable("the answer ended before its end")

    async def models(self, request: Request, key: ApiKey) -> Response:
        """Models that can be called by their alias `prod`."""
        now = time.monotonic()
        if self._listed is None or now - self._listed[0] > _LISTED_S:
            names: list[str] = []
            after = ""
            while len(names) < _MAX_LISTED:
                asked = hub_pb.ListModelsRequest(limit=_PAGE, after=after)
                page: hub_pb.ListModelsResponse = await self._inference.hub("ListModels", asked)
                names += [f"{item.publisher}/{item.name}" for item in page.models if "prod" in item.aliases]
                if len(page.models) < _PAGE:
                    break
                after = f"{page.models[-1].publisher}/{page.models[-1].name}"
            data: list[dict[str, Any]] = []
            for at in range(0, len(names), _AT_ONCE):
                data += await asyncio.gather(*(self._described(name) for name in names[at : at + _AT_ONCE]))
            self._listed = now, data
        return reply({"object": "list", "data": self._listed[1]})

    async def model(self, request: Request, key: ApiKey) -> Response:
        """One model."""
        return reply(await self._described(request.path_params["model"]))

    async def _described(self, name: str) -> dict[str, Any]:
        answer: hub_pb.ResolveResponse = await self._inference.hub("Resolve", hub_pb.ResolveRequest(reference=str(parse_reference(name))))
        manifest = decode_manifest(answer.version.manifest)
        return {
            "id": name,
            "object": "model",
            "created": answer.version.published_at,
            "owned_by": manifest.publisher,
            "placet": {
                "version": manifest.version,
                "sha256": hex0x(answer.version.sha256),
                "kind": manifest.kind.value,
                "contextLength": manifest.context_length,
                "dimensions": manifest.dimensions,
                "supportedParameters": _SUPPORTED[manifest.kind.value],
                "modes": self._inference.modes_of(Hash32(answer.version.sha256)),
                "prices": orjson.loads(answer.prices) if answer.prices else None,
                "deprecated": answer.version.deprecated or None,
            },
        }


def _with_receipt(finished: pb.Finished, opened: Opened) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(finished.body)
    document["placet"] = {"receipt": orjson.loads(finished.receipt), "routing": opened.routing()}
    if finished.evidence:
        document["placet"]["evidence"] = orjson.loads(finished.evidence)
    if opened.audit:
        document["placet"]["audit"] = [orjson.loads(receipt) for receipt in opened.audit]
    return document


async def _sse(opened: Opened, admission: Admission, paywall: Paywall) -> AsyncIterator[bytes]:
    """The stream's events. When the caller leaves, this is closed, and with it the call to the replica."""
    async with aclosing(opened.events) as events:  # type: ignore[type-var]
        seen = StreamCopy()
        try:
            async for event in events:
                match event.WhichOneof("event"):
                    case "chunk":
                        yield seen.add(b"data: " + event.chunk + b"\n\n")
                    case "finished":
                        document = _with_receipt(event.finished, opened)
                        seen.add(b"data: " + orjson.dumps(document) + b"\n\ndata: [DONE]\n\n")
                        payment = await paywall.finish_stream(admission, event.finished, seen)
                        if payment is not None:
                            document["placet"]["payment"] = payment
                        yield b"data: " + orjson.dumps(document) + b"\n\ndata: [DONE]\n\n"
                        return
                    case "failure":
                        raise Unavailable(event.failure.message)
            raise Unavailable("the answer ended before its end")
        except PlacetError as error:
            # Headers are gone; OpenAI's clients raise on an event that holds `error`.
            body = {"error": {"message": error.message, "type": "server_error", "param": error.field, "code": error.code}}
            yield b"data: " + orjson.dumps(body) + b"\n\n"
