"""gRPC: the services of inference.proto and hub.proto over the runner and the hub."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import orjson

from placet.core import models as documents
from placet.core.errors import InvalidInput, ModeUnavailable, PlacetError, TeeUnavailable
from placet.core.gen import hub_pb2 as hub_pb
from placet.core.gen import hub_pb2_grpc, inference_pb2_grpc
from placet.core.gen import inference_pb2 as pb
from placet.core.models import File, Kind, prices_document
from placet.core.receipts import key_id_of
from placet.core.rpc_errors import abort
from placet.core.types import Hash32
from placet.inference.hub.service import Hub, Signed
from placet.inference.hub.store import ModelRow, VersionRow
from placet.inference.pool import Loaded
from placet.inference.proofs.service import Proofs
from placet.inference.runner import Finished, Runner
from placet.inference.surfaces import Piece
from placet.inference.usage import Counts, Key, UsageLog

MAX_MESSAGE_BYTES = 64 << 20
_MAX_PAGE = 200
T = TypeVar("T")
Context = Any


async def _answered(context: Context, work: Awaitable[T]) -> T:
    """What `work` gives, or its error as the call's status."""
    try:
        return await work
    except PlacetError as error:
        await abort(context, error)
        raise AssertionError from None  # abort raises


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Requests."""

    def __init__(self, runner: Runner, *, version: str, is_draining: Callable[[], bool]) -> None:
        self._runner = runner
        self._version = version
        self._is_draining = is_draining

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        """What this replica is and has."""
        node = self._runner.node
        key = node.signer.public_key
        return pb.DescribeResponse(
            node=node.address or b"",
            receipt_key=key,
            key_id=key_id_of(key),
            jurisdiction=node.jurisdiction or "",
            models=[_loaded(item, self._runner) for item in self._runner.pool.loaded()],
            draining=self._is_draining(),
            version=self._version,
            modes=[
                *([pb.MODE_ZKML] if self._runner.proofs is not None else []),
                *([pb.MODE_TEE] if self._runner.attestor is not None else []),
            ],
        )

    async def Proof(self, request: pb.ProofRequest, context: Context) -> pb.ProofResponse:  # noqa: N802
        """The proof of an answer, or how far it is."""

        async def look() -> pb.ProofResponse:
            if self._runner.proofs is None:
                raise ModeUnavailable("this replica makes no proofs", field="mode")
            state, document, error = await self._runner.proofs.document(_digest(request.id, "id"), request.tenant)
            return pb.ProofResponse(state=state, document=document, error=error)

        return await _answered(context, look())

    async def Quote(self, request: pb.QuoteRequest, context: Context) -> pb.QuoteResponse:  # noqa: N802
        """How large a request is."""

        async def quote() -> pb.QuoteResponse:
            return await self._runner.quote(self._runner.request_of(request.request))

        return await _answered(context, quote())

    async def Run(self, request: pb.RunRequest, context: Context) -> AsyncIterator[pb.RunResponse]:  # noqa: N802
        """Run a request. When the caller leaves, gRPC cancels this coroutine, and closing the iterator stops the work."""
        try:
            events = self._runner.run(self._runner.request_of(request))
            async for event in events:
                yield _event(event)
        except PlacetError as error:
            await abort(context, error)

    async def Attest(self, request: pb.AttestRequest, context: Context) -> pb.AttestResponse:  # noqa: N802
        """Evidence for the receipt key and the key that prompts are sealed to."""

        async def attest() -> pb.AttestResponse:
            attestor = self._runner.attestor
            if attestor is None:
                raise TeeUnavailable("this replica runs in no TEE", field="mode")
            attested = await attestor.evidence(_digest(request.nonce, "nonce"), _digest(request.model_sha256, "model"))
            return pb.AttestResponse(evidence=attested.evidence, receipt_key=attestor.receipt_key, hpke_key=attestor.hpke_public)

        return await _answered(context, attest())


def _event(event: Piece | Finished) -> pb.RunResponse:
    if isinstance(event, Piece):
        return pb.RunResponse(chunk=orjson.dumps(event.document))
    answer = event.answer
    return pb.RunResponse(
        finished=pb.Finished(
            body=orjson.dumps(answer.document),
            tensors=[pb.Tensor(name=t.name, datatype=t.datatype, shape=t.shape, data=bytes(t.data)) for t in answer.tensors],
            usage=pb.Usage(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens, rows=answer.rows),
            receipt=event.receipt,
            evidence=event.evidence,
            queued_us=int(1e6 * answer.queued_s),
            computed_us=int(1e6 * answer.computed_s),
        )
    )


def _loaded(item: Loaded, runner: Runner) -> pb.LoadedModel:
    running, waiting = item.engine.load
    manifest, info = item.manifest, item.engine.info
    return pb.LoadedModel(
        model_sha256=item.row.sha256,
        publisher=manifest.publisher,
        name=manifest.name,
        version=manifest.version,
        state="ready",
        provider=info.provider,
        profile=info.profile or b"",
        modes=[
            pb.MODE_VANILLA,
            *([pb.MODE_TEE] if runner.attestor is not None else []),
            *([pb.MODE_AUDITED] if info.profile is not None else []),
            *([pb.MODE_ZKML] if manifest.zk_network_sha256 and runner.proofs is not None else []),
        ],
        running=running,
        waiting=waiting,
        concurrency=info.concurrency,
        first_ms=item.p95(item.first_ms),
        last_ms=item.p95(item.last_ms),
    )


class HubServicer(hub_pb2_grpc.HubServiceServicer):
    """The Model Hub."""

    def __init__(self, hub: Hub, usage: UsageLog, *, max_blob_bytes: int, proofs: Proofs | None = None) -> None:
        self._proofs = proofs
        self._hub = hub
        self._usage = usage
        self._max_blob_bytes = max_blob_bytes

    async def Upload(self, request_iterator: AsyncIterator[hub_pb.UploadRequest], context: Context) -> hub_pb.UploadResponse:  # noqa: N802
        """Take a blob in."""

        async def take() -> hub_pb.UploadResponse:
            first = await anext(aiter(request_iterator), None)
            if first is None:
                raise InvalidInput("sha256: nothing was sent", field="sha256")
            digest = _digest(first.sha256, "sha256")

            async def chunks() -> AsyncIterator[bytes]:
                yield first.content
                async for message in request_iterator:
                    yield message.content

            return hub_pb.UploadResponse(size=await self._hub.upload(chunks(), digest, max_bytes=self._max_blob_bytes))

        return await _answered(context, take())

    async def Has(self, request: hub_pb.HasRequest, context: Context) -> hub_pb.HasResponse:  # noqa: N802
        """Which blobs are there."""

        async def look() -> hub_pb.HasResponse:
            if len(request.sha256) > documents.MAX_FILES:
                raise InvalidInput(f"sha256: at most {documents.MAX_FILES}", field="sha256")
            digests = [_digest(value, "sha256") for value in request.sha256]
            return hub_pb.HasResponse(sha256=[digest for digest in digests if await self._hub.has(digest)])

        return await _answered(context, look())

    async def Draft(self, request: hub_pb.DraftRequest, context: Context) -> hub_pb.DraftResponse:  # noqa: N802
        """Check files, and say what to sign."""

        async def draft() -> hub_pb.DraftResponse:
            files = tuple(
                File(documents.check_path(item.path), _digest(item.sha256, "files"), item.size)
                for item in request.files[: documents.MAX_FILES + 1]
            )
            if len(files) > documents.MAX_FILES:
                raise InvalidInput(f"files: at most {documents.MAX_FILES}", field="files")
            try:
                kind = Kind(request.kind)
            except ValueError:
                raise InvalidInput(f"kind: one of {[kind.value for kind in Kind]}", field="kind") from None
            manifest = await self._hub.draft(
                kind, request.publisher, request.name, files, request.description, request.license, zkml=request.zkml
            )
            return hub_pb.DraftResponse(manifest=documents.encode_manifest(manifest))

        return await _answered(context, draft())

    async def Act(self, request: hub_pb.ActRequest, context: Context) -> hub_pb.ActResponse:  # noqa: N802
        """Do what a statement says."""

        async def act() -> hub_pb.ActResponse:
            signed = Signed(request.statement, request.signature)
            return hub_pb.ActResponse(document=orjson.dumps(await self._hub.act(signed, request.manifest or None)))

        return await _answered(context, act())

    async def RegisterSetup(  # noqa: N802
        self, request: hub_pb.RegisterSetupRequest, context: Context
    ) -> hub_pb.RegisterSetupResponse:
        """Take keys for a model's proofs."""

        async def register() -> hub_pb.RegisterSetupResponse:
            if self._proofs is None:
                raise ModeUnavailable("this hub takes no keys: it makes no proofs", field="mode")
            row = await self._hub.store.by_digest(_digest(request.model_sha256, "model"))
            owner = await self._hub.store.owner_of(row.manifest.publisher)
            made = await self._proofs.register(request.made_by, request.text, request.signature, owner, row.manifest, row.sha256)
            return hub_pb.RegisterSetupResponse(address=made.setup.address or b"", vk_sha256=made.vk_sha256)

        return await _answered(context, register())

    async def Resolve(self, request: hub_pb.ResolveRequest, context: Context) -> hub_pb.ResolveResponse:  # noqa: N802
        """What a reference means now, and what it costs."""

        async def resolve() -> hub_pb.ResolveResponse:
            reference = documents.parse_reference(request.reference)
            row = await self._hub.store.resolve(reference)
            model = await self._hub.store.model(reference.publisher, reference.name)
            return hub_pb.ResolveResponse(
                version=_version(row),
                prices=_prices(model.prices),
                previous_prices=_prices(model.previous_prices),
                priced_at=model.priced_at or 0,
            )

        return await _answered(context, resolve())

    async def ListModels(self, request: hub_pb.ListModelsRequest, context: Context) -> hub_pb.ListModelsResponse:  # noqa: N802
        """A page of models."""

        async def page() -> hub_pb.ListModelsResponse:
            after: tuple[str, str] | None = None
            if request.after:
                reference = documents.parse_reference(request.after, "after")
                after = reference.publisher, reference.name
            if len(request.search) > 256:
                raise InvalidInput("search: at most 256 characters", field="search")
            rows = await self._hub.store.page(
                search=request.search or None,
                publisher=request.publisher or None,
                after=after,
                limit=min(request.limit or 50, _MAX_PAGE),
            )
            return hub_pb.ListModelsResponse(models=[_summary(row) for row in rows], hub=self._hub.id)

        return await _answered(context, page())

    async def DescribeModel(self, request: hub_pb.DescribeModelRequest, context: Context) -> hub_pb.DescribeModelResponse:  # noqa: N802
        """A model with its versions and the history of its aliases."""

        async def describe() -> hub_pb.DescribeModelResponse:
            publisher, name = request.publisher, request.name
            model = await self._hub.store.model(publisher, name)
            moves = [
                hub_pb.AliasMove(alias=move.alias, version=move.version, previous=move.previous or 0, at=move.at)
                for move in await self._hub.store.moves(publisher, name)
            ]
            versions = [_version(row) for row in await self._hub.store.versions(publisher, name)]
            usage = [_usage(key, counts) for key, counts in await self._usage.of(publisher, name)]
            return hub_pb.DescribeModelResponse(model=_summary(model), versions=versions, moves=moves, usage=usage)

        return await _answered(context, describe())


def _digest(value: bytes, name: str) -> Hash32:
    if len(value) != 32:
        raise InvalidInput(f"{name}: 32 bytes wanted", field=name)
    return Hash32(value)


def _version(row: VersionRow) -> hub_pb.ModelVersion:
    return hub_pb.ModelVersion(
        manifest=documents.encode_manifest(row.manifest),
        sha256=row.sha256,
        statement=row.statement,
        signature=row.signature,
        published_at=row.published_at,
        deprecated=row.deprecated or "",
    )


def _usage(key: Key, counts: Counts) -> hub_pb.ModelUsage:
    return hub_pb.ModelUsage(
        version=key.version,
        day=key.day,
        asset=key.asset,
        requests=counts.requests,
        failures=counts.failures,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        rows=counts.rows,
        revenue=str(counts.revenue),
        computed_ms=counts.computed_ms,
    )


def _prices(prices: documents.Prices | None) -> bytes:
    return b"" if prices is None else orjson.dumps(prices_document(prices))


def _summary(row: ModelRow) -> hub_pb.ModelSummary:
    return hub_pb.ModelSummary(
        publisher=row.publisher,
        name=row.name,
        kind=row.kind,
        description=row.description,
        newest=row.newest,
        aliases=dict(row.aliases),
        prices=_prices(row.prices),
    )


def make_server(inference: InferenceServicer, hub: HubServicer) -> grpc.aio.Server:
    """A server with both services; the caller gives it a port and starts it."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ],
        maximum_concurrent_rpcs=4096,
    )
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)  # type: ignore[no-untyped-call]
    hub_pb2_grpc.add_HubServiceServicer_to_server(hub, server)  # type: ignore[no-untyped-call]
    return server
