"""The Open Inference Protocol V2 over REST, `/v2/…`, with the binary tensor extension and the repository index."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from placet.core.db import DATABASE_ERRORS
from placet.core.errors import Internal, InvalidInput, PlacetError, Unavailable
from placet.core.gen import hub_pb2 as hub_pb
from placet.core.gen import inference_pb2 as pb
from placet.core.models import Kind, Manifest, parse_reference
from placet.core.receipts import Mode
from placet.core.tensors import Tensor, decode_request, encode_response
from placet.core.types import hex0x
from placet.gateway.http import bounded_body, reply
from placet.gateway.inference.paid import Paywall, payment_headers, replay
from placet.gateway.inference.routing import wants_of
from placet.gateway.inference.service import Call, InferenceService, Opened
from placet.gateway.keys import Authenticator
from placet.gateway.payment.gate import Replayed
from placet.gateway.store import ApiKey
from placet.gateway.tracing import note_outcome

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 48 << 20
_JSON_LENGTH = "inference-header-content-length"
EXTENSIONS = ["binary_tensor_data", "model_repository"]


def v2_error(error: PlacetError) -> Response:
    """An error as the protocol has it."""
    note_outcome(error.code)
    status = 400 if error.http_status == 422 else error.http_status
    headers = payment_headers(error) | ({"retry-after": str(error.extra.get("retryAfter", 1))} if error.retryable else {})
    return Response(orjson.dumps({"error": f"{error.code}: {error.message}"}), status, media_type="application/json", headers=headers)


class V2Api:
    """The routes of `/v2`. A model's name holds one '/', written as it is or as %2F."""

    def __init__(self, inference: InferenceService, authenticator: Authenticator, version: str, paywall: Paywall) -> None:
        self._paywall = paywall
        self._inference = inference
        self._auth = authenticator
        self._version = version

    def routes(self) -> list[Route]:
        """For the gateway's application."""
        model = "/v2/models/{publisher}/{name}"
        return [
            Route("/v2", self.server, methods=["GET"]),
            Route("/v2/", self.server, methods=["GET"]),
            Route("/v2/health/live", self.live, methods=["GET"]),
            Route("/v2/health/ready", self.ready, methods=["GET"]),
            Route("/v2/repository/index", self._guard(self.index), methods=["POST"]),
            *(
                Route(f"{model}{version}{path}", self._guard(handler, paid=path == "/infer"), methods=[method])
                for version in ("", "/versions/{version}")
                for path, handler, method in (
                    ("", self.metadata, "GET"),
                    ("/ready", self.model_ready, "GET"),
                    ("/infer", self.infer, "POST"),
                )
            ),
        ]

    def _guard(
        self, handler: Callable[[Request, Any], Awaitable[Response]], *, paid: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                header = request.headers.get("authorization")
                return await handler(request, await (self._paywall.caller(request) if paid else self._auth.authenticate(header)))
            except PlacetError as error:
                return v2_error(error)
            except DATABASE_ERRORS as error:
                log.error("database: %s", error)
                return v2_error(Unavailable("the database does not answer"))
            except Exception:
                log.exception("unexpected error")
                return v2_error(Internal("something went wrong here; it has been logged"))

        return guarded

    async def server(self, request: Request) -> Response:
        """What this is."""
        return reply({"name": "placet", "version": self._version, "extensions": EXTENSIONS})

    async def live(self, request: Request) -> Response:
        """Whether this answers at all."""
        return Response(status_code=200)

    async def ready(self, request: Request) -> Response:
        """Whether a replica answers."""
        return Response(status_code=200 if self._inference.replicas.living() else 503)

    async def index(self, request: Request, key: ApiKey) -> Response:
        """Models of tensors, by their aliases."""
        raw = await bounded_body(request, 4096)
        try:
            wanted = orjson.loads(raw) if raw else {}
        except orjson.JSONDecodeError:
            raise InvalidInput("body: not JSON", field="body") from None
        return reply(await index_of(self._inference, only_ready=isinstance(wanted, dict) and wanted.get("ready") is True))

    async def metadata(self, request: Request, key: ApiKey) -> Response:
        """A model's inputs and outputs."""
        manifest = (await self._inference.resolve(parse_reference(_reference(request)))).manifest
        return reply(
            {
                "name": f"{manifest.publisher}/{manifest.name}",
                "versions": [str(manifest.version)],
                "platform": "onnxruntime_onnx",
                "inputs": _specs(manifest, "inputs"),
                "outputs": _specs(manifest, "outputs"),
            }
        )

    async def model_ready(self, request: Request, key: ApiKey) -> Response:
        """Whether a model can be called: one that is not loaded is loaded when it is called."""
        await self._inference.resolve(parse_reference(_reference(request)))
        return Response(status_code=200 if self._inference.replicas.living() else 503)

    async def infer(self, request: Request, key: ApiKey | None) -> Response:
        """Run a model on tensors."""
        declared = request.headers.get(_JSON_LENGTH)
        if declared is not None and not declared.isdigit():
            raise InvalidInput("Inference-Header-Content-Length: a number wanted", field="Inference-Header-Content-Length")
        raw = await bounded_body(request, MAX_BODY_BYTES)
        asked = decode_request(raw, None if declared is None else int(declared))
        name = _reference(request)
        parameters = dict(asked.parameters)
        wants = parameters.pop("placet", None)
        if parameters:
            raise InvalidInput(f"parameters/{min(parameters)}: is not honoured here", field=f"parameters/{min(parameters)}")
        call = Call(
            surface=pb.SURFACE_TENSORS,
            model=name,
            body=orjson.dumps({"parameters": asked.parameters}),
            wants=wants_of(orjson.loads(wants) if isinstance(wants, str) else wants),
            stream=False,
            tenant="" if key is None else key.id,
            tensors=asked.tensors,
            outputs=[item.name for item in asked.wanted],
        )
        admission = await self._paywall.admit(request, raw, call, "tensors", key)
        if admission.replay is not None:
            return _replayed(admission.replay)
        opened = await self._paywall.open(call, admission)
        if opened.resolved.manifest.kind is not Kind.TENSORS:
            raise InvalidInput("model: takes no tensors", field="model")
        async with aclosing(opened.events) as events:  # type: ignore[type-var]
            async for event in events:
                if event.HasField("finished"):
                    answer = self._answer(event.finished, asked, opened)
                    kind = f"{answer.media_type};{answer.headers.get(_JSON_LENGTH, '')}"
                    answer.headers.update(await self._paywall.finish(admission, event.finished, bytes(answer.body), kind))
                    if call.wants.mode is Mode.ZKML:
                        answer.headers["placet-proof"] = f"/api/v1/proofs/{hex0x(opened.receipt_id)}"
                    return answer
        raise Unavailable("the answer ended before its end")

    def _answer(self, finished: pb.Finished, asked: Any, opened: Opened) -> Response:
        manifest = opened.resolved.manifest
        outputs = [Tensor(t.name, t.datatype, tuple(t.shape), t.data) for t in finished.tensors]
        # Parameters are texts, numbers and truth values in this protocol, so the receipt travels as text.
        parameters = receipt_parameters(finished, opened)
        head: dict[str, Any] = {"model_name": f"{manifest.publisher}/{manifest.name}", "model_version": str(manifest.version)}
        if asked.id is not None:
            head["id"] = asked.id
        body, json_bytes = encode_response({**head, "parameters": parameters}, outputs, asked, max_bytes=2 * MAX_BODY_BYTES)
        headers = {"placet-receipt-id": hex0x(opened.receipt_id)}
        if json_bytes is None:
            return Response(body, media_type="application/json", headers=headers)
        headers[_JSON_LENGTH] = str(json_bytes)
        return Response(body, media_type="application/octet-stream", headers=headers)


def receipt_parameters(finished: pb.Finished, opened: Opened) -> dict[str, str]:
    """What is said of an answer, in this protocol's parameters."""
    said = {"placet_receipt": finished.receipt.decode(), "placet_routing": orjson.dumps(opened.routing()).decode()}
    if finished.evidence:
        said["placet_evidence"] = finished.evidence.decode()
    if opened.audit:
        said["placet_audit"] = f"[{','.join(receipt.decode() for receipt in opened.audit)}]"
    return said


def _replayed(found: Replayed) -> Response:
    """The answer of before: how long its JSON is was kept with its media type."""
    media_type, _, json_bytes = found.answer.media_type.partition(";")
    answer = replay(Replayed(found.payment, dataclasses.replace(found.answer, media_type=media_type)))
    if json_bytes:
        answer.headers[_JSON_LENGTH] = json_bytes
    return answer


async def index_of(inference: InferenceService, *, only_ready: bool) -> list[dict[str, str]]:
    """Models of the hub that an alias means, and whether some replica has them in memory."""
    page: hub_pb.ListModelsResponse = await inference.hub("ListModels", hub_pb.ListModelsRequest(limit=200))
    loaded = {(m.publisher, m.name, m.version) for replica in inference.replicas.living() for m in replica.models.values()}
    out = []
    for item in page.models:
        for version in sorted(set(item.aliases.values()) or {item.newest}):
            is_loaded = (item.publisher, item.name, version) in loaded
            if is_loaded or not only_ready:
                state, reason = ("READY", "") if is_loaded else ("UNAVAILABLE", "loaded when it is called")
                out.append({"name": f"{item.publisher}/{item.name}", "version": str(version), "state": state, "reason": reason})
    return out


def _reference(request: Request) -> str:
    parts = request.path_params
    reference = f"{parts['publisher']}/{parts['name']}"
    return reference if "version" not in parts else f"{reference}@{parts['version']}"


def _specs(manifest: Manifest, which: str) -> list[dict[str, Any]]:
    specs = manifest.inputs if which == "inputs" else manifest.outputs
    return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
