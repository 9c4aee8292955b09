"""The Model Hub over REST, `/api/v1/models` and `/api/v1/blobs`. Publishers sign what they do; an API key only says who asks."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from placet.core import models as documents
from placet.core.errors import InvalidInput, NotFound, ProofFailed, TooLarge, Unavailable
from placet.core.gen import hub_pb2 as hub_pb
from placet.core.gen import inference_pb2 as pb
from placet.core.models import Reference, parse_reference
from placet.core.receipts import Mode
from placet.core.rpc_errors import from_rpc
from placet.core.types import hash_from, hex0x
from placet.gateway.http import bounded_body, reply
from placet.gateway.inference.routing import wants_of
from placet.gateway.inference.service import Call, InferenceService
from placet.gateway.keys import Authenticator
from placet.gateway.payment.assets import PaymentAsset
from placet.gateway.store import ApiKey

MAX_DOCUMENT_BYTES = 512 << 10
MAX_BLOB_BYTES = 8 << 30
_CHUNK = 1 << 20
_HEX32 = re.compile(r"(?:0x)?([0-9a-f]{64})\Z")
_MAX_SEALED_BODY_BYTES = 12 << 20
_SEALED = {"chat.completions": pb.SURFACE_CHAT, "completions": pb.SURFACE_COMPLETIONS, "embeddings": pb.SURFACE_EMBEDDINGS}
_UPLOAD_S = 3600.0
_CHECK_S = 300.0

Guard = Callable[[Callable[[Request, ApiKey], Awaitable[Response]]], Callable[[Request], Awaitable[Response]]]


class ModelsApi:
    """The routes of the hub."""

    def __init__(self, inference: InferenceService, authenticator: Authenticator, assets: Sequence[PaymentAsset] = ()) -> None:
        self._assets = tuple(assets)
        self._inference = inference
        self._auth = authenticator

    def routes(self, guard: Guard) -> list[Route]:
        """For the gateway's application; `guard` authenticates and renders errors."""
        model = "/api/v1/models/{publisher}/{name}"
        return [
            Route("/api/v1/models", guard(self.page), methods=["GET"]),
            Route("/api/v1/models/draft", guard(self.draft), methods=["POST"]),
            Route("/api/v1/models/statements", guard(self.act), methods=["POST"]),
            Route(model, guard(self.describe), methods=["GET"]),
            Route(f"{model}/aliases", guard(self.history), methods=["GET"]),
            Route(f"{model}/versions/{{version:int}}", guard(self.version), methods=["GET"]),
            Route("/api/v1/models/setups", guard(self.register_setup), methods=["POST"]),
            Route("/api/v1/proofs/{id}", guard(self.proof), methods=["GET"]),
            Route("/api/v1/attestation", guard(self.attestation), methods=["GET"]),
            Route("/api/v1/sealed", guard(self.sealed), methods=["POST"]),
            Route("/api/v1/payments/assets", guard(self.assets), methods=["GET"]),
            Route("/api/v1/nodes", guard(self.nodes), methods=["GET"]),
            Route("/api/v1/blobs/{sha256}", guard(self.upload), methods=["PUT"]),
            Route("/api/v1/blobs/{sha256}", guard(self.has), methods=["HEAD"]),
        ]

    async def page(self, request: Request, key: ApiKey) -> Response:
        """Models by name: `search`, `publisher`, `after` (the last name seen) and `limit`."""
        query = request.query_params
        limit = query.get("limit", "50")
        if not limit.isdigit() or not 1 <= int(limit) <= 200:
            raise InvalidInput("limit: 1 to 200 wanted", field="limit")
        asked = hub_pb.ListModelsRequest(
            search=query.get("search", ""), publisher=query.get("publisher", ""), after=query.get("after", ""), limit=int(limit)
        )
        answer: hub_pb.ListModelsResponse = await self._inference.hub("ListModels", asked)
        found = [_summary(item) for item in answer.models]
        after = found[-1]["name"] if len(found) == int(limit) else None
        return reply({"hub": answer.hub, "models": found, "after": after})

    async def describe(self, request: Request, key: ApiKey) -> Response:
        """A model with its versions, aliases and usage."""
        answer = await self._describe(request)
        return reply(
            {
                **_summary(answer.model),
                "versions": [_version(item) for item in answer.versions],
                "usage": [_usage(item) for item in answer.usage],
            }
        )

    async def history(self, request: Request, key: ApiKey) -> Response:
        """Every move of a model's aliases, newest first."""
        answer = await self._describe(request)
        moves = [{"alias": move.alias, "version": move.version, "previous": move.previous or None, "at": move.at} for move in answer.moves]
        return reply({"moves": moves})

    async def version(self, request: Request, key: ApiKey) -> Response:
        """One version: its manifest, and the statement by which it was published."""
        parts = request.path_params
        reference = Reference(parts["publisher"], parts["name"], None, parts["version"])
        parse_reference(str(reference))
        answer: hub_pb.ResolveResponse = await self._inference.hub("Resolve", hub_pb.ResolveRequest(reference=str(reference)))
        return reply(_version(answer.version))

    async def draft(self, request: Request, key: ApiKey) -> Response:
        """Check files that were uploaded; answers the manifest to sign."""
        value = _object(await bounded_body(request, MAX_DOCUMENT_BYTES))
        self._auth.checking(key)
        files = value.get("files", [])
        if not isinstance(files, list) or len(files) > documents.MAX_FILES:
            raise InvalidInput(f"files: a list of at most {documents.MAX_FILES} wanted", field="files")
        asked = hub_pb.DraftRequest(
            kind=_text(value, "kind"),
            publisher=_text(value, "publisher"),
            name=_text(value, "name"),
            files=[_file(item, at) for at, item in enumerate(files)],
            description=_text(value, "description", ""),
            license=_text(value, "license", ""),
            zkml=value.get("zkml") is True,
        )
        answer: hub_pb.DraftResponse = await self._inference.hub("Draft", asked, timeout_s=_CHECK_S)
        return Response(answer.manifest, media_type="application/json")

    async def act(self, request: Request, key: ApiKey) -> Response:
        """Do what a publisher's statement says."""
        value = _object(await bounded_body(request, MAX_DOCUMENT_BYTES))
        asked = hub_pb.ActRequest(
            statement=_text(value, "statement").encode(),
            signature=_hex(_text(value, "signature"), "signature"),
            manifest=_text(value, "manifest", "").encode(),
        )
        if asked.manifest:
            self._auth.checking(key)
        answer: hub_pb.ActResponse = await self._inference.hub("Act", asked, timeout_s=_CHECK_S)
        return Response(answer.document, media_type="application/json")

    async def register_setup(self, request: Request, key: ApiKey) -> Response:
        """Take keys for a model's proofs, with the signature of whoever made them."""
        value = _object(await bounded_body(request, MAX_DOCUMENT_BYTES))
        asked = hub_pb.RegisterSetupRequest(
            model_sha256=_hex(_text(value, "model"), "model"),
            made_by=_text(value, "by"),
            text=_text(value, "text").encode(),
            signature=_hex(_text(value, "signature"), "signature"),
        )
        answer: hub_pb.RegisterSetupResponse = await self._inference.hub("RegisterSetup", asked)
        return reply({"address": hex0x(answer.address), "vkSha256": hex0x(answer.vk_sha256)}, 201)

    async def proof(self, request: Request, key: ApiKey) -> Response:
        """The proof of an answer in mode zkml, by its receipt's id: 202 while it is made, 200 with its document, 500 when it failed."""
        asked = pb.ProofRequest(id=hash_from(request.path_params["id"], field="id"), tenant=key.id)
        found: pb.ProofResponse = await self._inference.ask("Proof", asked)
        if found.state == "failed":
            raise ProofFailed(found.error or "the proof could not be made")
        if found.state != "done":
            return reply({"state": found.state}, 202, {"retry-after": "2"})
        return Response(found.document, media_type="application/json")

    async def attestation(self, request: Request, key: ApiKey) -> Response:
        """Evidence of a replica in a TEE, over `nonce` (32 bytes) and `model`: for the key that signs receipts, and the one that prompts
        are sealed to."""
        resolved = await self._inference.resolve(parse_reference(request.query_params.get("model", "")))
        nonce = hash_from(request.query_params.get("nonce", ""), field="nonce")
        answer, key_id = await self._inference.attest(resolved, nonce)
        return reply(
            {
                "evidence": orjson.loads(answer.evidence),
                "receiptKey": hex0x(answer.receipt_key),
                "keyId": hex0x(key_id),
                "hpkeKey": hex0x(answer.hpke_key),
                "modelSha256": hex0x(resolved.sha256),
            }
        )

    async def sealed(self, request: Request, key: ApiKey) -> Response:
        """A request that only the enclave reads. Seen here are the model, the surface, and how large it is."""
        value = _object(await bounded_body(request, _MAX_SEALED_BODY_BYTES))
        surface = _SEALED.get(_text(value, "surface"))
        if surface is None:
            raise InvalidInput(f"surface: one of {', '.join(_SEALED)}", field="surface")
        if unknown := value.keys() - {"model", "surface", "sealed", "placet"}:
            raise InvalidInput(f"{min(unknown)}: is not known", field=min(unknown))
        try:
            sealed = base64.b64decode(_text(value, "sealed"), validate=True)
        except binascii.Error:
            raise InvalidInput("sealed: base64 wanted", field="sealed") from None
        wants = wants_of(value.get("placet"))
        if wants.mode is not Mode.TEE or wants.key_id is None or wants.nonce is None:
            raise InvalidInput("placet: mode tee, with the key and the nonce of an attestation, wanted", field="placet")
        call = Call(surface, _text(value, "model"), b"", wants, False, key.id, sealed=sealed)
        opened = await self._inference.open(call)
        async with aclosing(opened.events) as events:  # type: ignore[type-var]
            async for event in events:
                if event.HasField("finished"):
                    said = {"receipt": orjson.loads(event.finished.receipt), "routing": opened.routing()}
                    return reply(
                        {**orjson.loads(event.finished.body), "placet": said}, headers={"placet-receipt-id": hex0x(opened.receipt_id)}
                    )
        raise Unavailable("the answer ended before its end")

    async def assets(self, request: Request, key: ApiKey) -> Response:
        """Tokens that models may be priced in here."""
        return reply({"assets": [item.model_dump() for item in self._assets]})

    async def nodes(self, request: Request, key: ApiKey) -> Response:
        """Replicas that answer now, and the keys that they sign receipts with, as they say themselves."""
        said = [replica.said for replica in self._inference.replicas.living() if replica.said is not None]
        return reply(
            {
                "nodes": [
                    {
                        "node": hex0x(item.node) if item.node else None,
                        "keyId": hex0x(item.key_id),
                        "receiptKey": hex0x(item.receipt_key),
                        "jurisdiction": {"declared": item.jurisdiction} if item.jurisdiction else None,
                        "version": item.version,
                        "models": [f"{model.publisher}/{model.name}@{model.version}" for model in item.models],
                    }
                    for item in said
                ]
            }
        )

    async def upload(self, request: Request, key: ApiKey) -> Response:
        """Upload a file under its sha-256; nothing lies there when its bytes have another."""
        digest = _digest(request)
        announced = request.headers.get("content-length")
        if announced is not None and (not announced.isdigit() or int(announced) > MAX_BLOB_BYTES):
            raise TooLarge(f"body: at most {MAX_BLOB_BYTES} bytes", field="body")
        if announced is None:
            raise InvalidInput("content-length: how large the file is must be said before it is sent", field="content-length")
        self._auth.uploading(key, int(announced))

        async def chunks() -> AsyncIterator[hub_pb.UploadRequest]:
            yield hub_pb.UploadRequest(sha256=digest)
            async for chunk in request.stream():
                for at in range(0, len(chunk), _CHUNK):
                    yield hub_pb.UploadRequest(content=chunk[at : at + _CHUNK])

        replica = self._inference.replicas.any()
        try:
            answer: hub_pb.UploadResponse = await replica.hub.Upload(chunks(), timeout=_UPLOAD_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        return reply({"sha256": hex0x(digest), "bytes": answer.size}, 201)

    async def has(self, request: Request, key: ApiKey) -> Response:
        """Whether a file is there already."""
        digest = _digest(request)
        answer: hub_pb.HasResponse = await self._inference.hub("Has", hub_pb.HasRequest(sha256=[digest]))
        if digest not in answer.sha256:
            raise NotFound("no such file", field="sha256")
        return Response(status_code=200)

    async def _describe(self, request: Request) -> hub_pb.DescribeModelResponse:
        parts = request.path_params
        parse_reference(f"{parts['publisher']}/{parts['name']}")
        asked = hub_pb.DescribeModelRequest(publisher=parts["publisher"], name=parts["name"])
        answer: hub_pb.DescribeModelResponse = await self._inference.hub("DescribeModel", asked)
        return answer


def _summary(item: hub_pb.ModelSummary) -> dict[str, Any]:
    return {
        "name": f"{item.publisher}/{item.name}",
        "kind": item.kind,
        "description": item.description,
        "newest": item.newest,
        "aliases": dict(item.aliases),
        "prices": orjson.loads(item.prices) if item.prices else None,
    }


def _version(item: hub_pb.ModelVersion) -> dict[str, Any]:
    return {
        "manifest": orjson.loads(item.manifest),
        "sha256": hex0x(item.sha256),
        "statement": item.statement.decode(),
        "signature": hex0x(item.signature),
        "publishedAt": item.published_at,
        "deprecated": item.deprecated or None,
    }


def _usage(item: hub_pb.ModelUsage) -> dict[str, Any]:
    return {
        "version": item.version,
        "day": item.day,
        "asset": item.asset or None,
        "requests": item.requests,
        "failures": item.failures,
        "promptTokens": item.prompt_tokens,
        "completionTokens": item.completion_tokens,
        "rows": item.rows,
        "revenue": item.revenue,
        "computedMs": item.computed_ms,
    }


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidInput("body: not JSON", field="body") from None
    if not isinstance(value, dict):
        raise InvalidInput("body: an object wanted", field="body")
    return value


def _text(value: dict[str, Any], name: str, default: str | None = None) -> str:
    found = value.get(name, default)
    if not isinstance(found, str):
        raise InvalidInput(f"{name}: text wanted", field=name)
    return found


def _hex(text: str, name: str) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise InvalidInput(f"{name}: 0x hex wanted", field=name) from None


def _file(value: Any, at: int) -> hub_pb.ModelFile:
    field = f"files/{at}"
    if not isinstance(value, dict) or set(value) != {"path", "sha256", "bytes"} or not isinstance(value["bytes"], int):
        raise InvalidInput(f"{field}: an object of path, sha256 and bytes wanted", field=field)
    match = _HEX32.match(value["sha256"]) if isinstance(value["sha256"], str) else None
    if match is None or not 0 <= value["bytes"] <= MAX_BLOB_BYTES:
        raise InvalidInput(f"{field}: sha256 in hex and a size of at most {MAX_BLOB_BYTES} wanted", field=field)
    return hub_pb.ModelFile(path=documents.check_path(value["path"], f"{field}/path"), sha256=bytes.fromhex(match[1]), size=value["bytes"])


def _digest(request: Request) -> bytes:
    match = _HEX32.match(request.path_params["sha256"])
    if match is None:
        raise InvalidInput("sha256: 32 bytes in hex wanted", field="sha256")
    return bytes.fromhex(match[1])
