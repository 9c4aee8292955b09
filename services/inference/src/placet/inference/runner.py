"""A request's way through a replica: checked, run, answered, and a signed receipt of it. No gRPC here."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import orjson

from placet.core import receipts, sealing, topics
from placet.core.bus import Bus, BusError
from placet.core.envelope import BusSigner, Kind, seal
from placet.core.errors import InvalidInput, ModeUnavailable, PlacetError, TeeUnavailable
from placet.core.gen import inference_pb2 as pb
from placet.core.models import Kind as ModelKind
from placet.core.models import Rate
from placet.core.receipts import Execution, Finish, Mode, ModelRef, Price, Receipt, TensorDigest
from placet.core.telemetry import metrics
from placet.core.tensors import Tensor
from placet.core.types import Address, Hash32
from placet.inference import openai, relaying
from placet.inference.engines.base import EmbeddingEngine, RelayEngine, TensorEngine, TextEngine
from placet.inference.hub.store import HubStore, VersionRow
from placet.inference.pool import Loaded, ModelPool
from placet.inference.proofs.service import Proofs
from placet.inference.surfaces import Answer, Piece
from placet.inference.tee.attestor import Attestor
from placet.inference.usage import UsageLog
from placet.verify.zk.statement import SYSTEM

log = logging.getLogger(__name__)

SURFACES: Mapping[int, str] = {
    pb.SURFACE_CHAT: "chat.completions",
    pb.SURFACE_COMPLETIONS: "completions",
    pb.SURFACE_EMBEDDINGS: "embeddings",
    pb.SURFACE_TENSORS: "tensors",
}
MODES: Mapping[int, Mode] = {
    pb.MODE_VANILLA: Mode.VANILLA,
    pb.MODE_TEE: Mode.TEE,
    pb.MODE_ZKML: Mode.ZKML,
    pb.MODE_AUDITED: Mode.AUDITED,
}
_KIND_OF_SURFACE: Mapping[str, frozenset[ModelKind]] = {
    "chat.completions": frozenset({ModelKind.TEXT, ModelKind.UPSTREAM}),
    "completions": frozenset({ModelKind.TEXT}),
    "embeddings": frozenset({ModelKind.EMBEDDING}),
    "tensors": frozenset({ModelKind.TENSORS}),
}
_REQUESTS = metrics.counter("placet_inference_requests_total", "Requests that ended, by surface and outcome.", ["surface", "outcome"])
_SECONDS = metrics.histogram("placet_inference_request_seconds", "Time from a request to its last byte.", ["surface"])


_ROW_S = 60.0
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Node:
    """Who signs receipts here. `jurisdiction` is what the operator of this replica declares."""

    address: Address | None
    signer: BusSigner
    bus_signer: BusSigner
    jurisdiction: str | None


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose outer form was checked."""

    receipt_id: Hash32
    surface: str
    mode: Mode
    model_sha256: Hash32
    model_name: str
    body: Any
    tensors: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    client_nonce: Hash32 | None
    payment: pb.PaymentTerms | None
    deadline: float
    alone: bool
    jurisdiction: str
    tenant: str
    with_receipt: bool
    sealed: bytes = b""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer, with its receipt."""

    answer: Answer
    receipt: bytes
    evidence: bytes = b""


class Runner:
    """Runs requests of one replica."""

    def __init__(
        self,
        *,
        node: Node,
        pool: ModelPool,
        store: HubStore,
        usage: UsageLog,
        bus: Bus | None,
        longest_s: float,
        proofs: Proofs | None = None,
        attestor: Attestor | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.node = node
        self.proofs = proofs
        self.attestor = attestor
        self.pool = pool
        self._store = store
        self.usage = usage
        self._bus = bus
        self._longest_s = longest_s
        self._clock = clock
        self._rows: dict[Hash32, tuple[float, VersionRow]] = {}
        self._publishing: set[asyncio.Task[None]] = set()

    def request_of(self, message: pb.RunRequest) -> Request:
        """A request from its message. Raises InvalidInput."""
        surface, mode = SURFACES.get(message.surface), MODES.get(message.mode)
        if surface is None or mode is None:
            raise InvalidInput("surface and mode must be ones that are known", field="surface")
        for name, value, sizes in (
            ("receipt_id", message.receipt_id, (32,)),
            ("model_sha256", message.model_sha256, (32,)),
            ("client_nonce", message.client_nonce, (0, 32)),
        ):
            if len(value) not in sizes:
                raise InvalidInput(f"{name}: {len(value)} bytes, {sizes} wanted", field=name)
        if len(message.body) > receipts.MAX_REQUEST_BYTES:
            raise InvalidInput(f"body: {len(message.body)} bytes, at most {receipts.MAX_REQUEST_BYTES}", field="body")
        if message.sealed and (message.body or message.tensors or mode is not Mode.TEE):
            raise InvalidInput("sealed: stands alone, in mode tee", field="sealed")
        try:
            body = {"sealed": base64.b64encode(message.sealed).decode()} if message.sealed else orjson.loads(message.body)
        except orjson.JSONDecodeError:
            raise InvalidInput("body: not JSON", field="body") from None
        paid = message.HasField("payment")
        if message.without_receipt and (paid or mode is not Mode.VANILLA):
            raise InvalidInput("a request that is paid or proven has a receipt", field="without_receipt")
        if message.jurisdiction and message.jurisdiction != self.node.jurisdiction:
            raise ModeUnavailable(f"this replica declares {self.node.jurisdiction or 'no jurisdiction'}", field="jurisdiction")
        wanted_s = min(message.timeout_ms / 1000 or self._longest_s, self._longest_s)
        return Request(
            receipt_id=Hash32(message.receipt_id),
            surface=surface,
            mode=mode,
            model_sha256=Hash32(message.model_sha256),
            model_name=message.model_name,
            body=body,
            tensors=tuple(Tensor(t.name, t.datatype, tuple(t.shape), t.data) for t in message.tensors),
            outputs=tuple(message.outputs),
            client_nonce=Hash32(message.client_nonce) if message.client_nonce else None,
            payment=message.payment if paid else None,
            deadline=asyncio.get_running_loop().time() + wanted_s,
            alone=message.alone or mode is Mode.AUDITED,
            jurisdiction=message.jurisdiction,
            tenant=message.tenant,
            with_receipt=not message.without_receipt,
            sealed=message.sealed,
        )

    async def _take(self, request: Request, row: VersionRow | None = None) -> Loaded:
        row = row or await self._row(request.model_sha256)
        if row.manifest.kind not in _KIND_OF_SURFACE[request.surface]:
            raise InvalidInput(f"model: a model of kind {row.manifest.kind.value} does not answer {request.surface}", field="model")
        proven = request.mode is Mode.ZKML and self.proofs is not None and request.surface == "tensors"
        if request.mode is Mode.TEE:
            if self.attestor is None:
                raise TeeUnavailable("mode: this replica runs in no TEE", field="mode")
            if request.client_nonce is None:
                raise InvalidInput("nonce: mode tee wants a fresh one of yours, or old evidence would do", field="placet/nonce")
        elif request.mode not in (Mode.VANILLA, Mode.AUDITED) and not proven:
            raise ModeUnavailable(f"mode: {request.mode.value} is not offered for this model here", field="mode")
        loaded = await self.pool.take(row)
        if request.mode is Mode.AUDITED and loaded.engine.info.profile is None:
            await self.pool.give(loaded)
            raise ModeUnavailable(
                "mode: outputs are equal bit for bit in no execution profile here, so nothing can be audited", field="mode"
            )
        return loaded

    async def quote(self, request: Request) -> pb.QuoteResponse:
        """How large a request is; nothing runs. Raises PlacetError."""
        loaded = await self._take(request)
        try:
            engine: Any = loaded.engine
            if loaded.manifest.kind is ModelKind.UPSTREAM:
                engine.check(request.body)
                prompt, most = relaying.size_of(request.body, loaded.engine.info.context_length)
                return pb.QuoteResponse(prompt_tokens=prompt, max_completion_tokens=most)
            match request.surface:
                case "chat.completions" | "completions":
                    text = await openai.text_request(request.body, engine, chat=request.surface == "chat.completions")
                    return pb.QuoteResponse(prompt_tokens=len(text.prompt.tokens), max_completion_tokens=text.sampling.max_tokens)
                case "embeddings":
                    asked = openai.embedding_request(request.body, engine, loaded.manifest.dimensions)
                    return pb.QuoteResponse(prompt_tokens=await engine.count(asked.inputs), rows=len(asked.inputs))
                case _:
                    return pb.QuoteResponse(rows=_rows(request.tensors))
        finally:
            await self.pool.give(loaded)

    async def _row(self, sha256: Hash32) -> VersionRow:
        """A version by its digest. It never changes, and the gateway has just looked whether it is still there, so a minute old is fine."""
        now = self._clock()
        cached = self._rows.get(sha256)
        if cached is None or now - cached[0] > _ROW_S:
            cached = self._rows[sha256] = now, await self._store.by_digest(sha256)
            while len(self._rows) > _ROWS:
                del self._rows[next(iter(self._rows))]
        return cached[1]

    async def run(self, request: Request, row: VersionRow | None = None) -> AsyncIterator[Piece | Finished]:
        """Run a request; the last event is Finished. Closing the iterator before stops the work, and the receipt goes to the bus. `row`:
        the version, when it is known already.

        Raises:
            PlacetError: nothing was delivered, or the stream ends here.
        """
        started, started_ms = time.perf_counter(), int(1000 * self._clock())
        outcome = "failed"
        try:
            loaded = await self._take(request, row)
            try:
                first_s: float | None = None
                async with aclosing(self._events(request, loaded, started_ms)) as events:  # type: ignore[type-var]
                    async for event in events:
                        if first_s is None:
                            first_s = time.perf_counter() - started
                        if isinstance(event, Finished):
                            outcome = "interrupted" if event.answer.finish is Finish.INTERRUPTED else "answered"
                            loaded.note(first_s, time.perf_counter() - started)
                            self.usage.note(loaded.manifest, event.answer, _price(request.payment, event.answer))
                        yield event
            except PlacetError:
                self.usage.note(loaded.manifest, None, None)
                raise
            finally:
                await self.pool.give(loaded)
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "interrupted"
            raise
        except PlacetError as error:
            outcome = error.code
            raise
        finally:
            _REQUESTS.labels(request.surface, outcome).inc()
            _SECONDS.labels(request.surface).observe(time.perf_counter() - started)

    async def _events(self, request: Request, loaded: Loaded, started_ms: int) -> AsyncIterator[Piece | Finished]:
        if request.mode is not Mode.TEE:
            async for event in self._plain(request, loaded, started_ms):
                yield event
            return
        assert self.attestor is not None
        assert request.client_nonce is not None
        attested = await self.attestor.evidence(request.client_nonce, request.model_sha256)
        session: dict[str, Any] = {}
        inner, answer_key = request, b""
        if request.sealed:
            session = {"surface": request.surface, "model_sha256": request.model_sha256, "nonce": request.client_nonce}
            body, answer_key = await asyncio.to_thread(sealing.open_request, request.sealed, self.attestor.hpke_key, **session)
            if not isinstance(body, dict) or body.get("stream"):
                raise InvalidInput("sealed: an object, not streamed, wanted inside", field="sealed")
            inner = replace(request, body=body)
        async with aclosing(self._plain(replace(inner, with_receipt=False), loaded, started_ms)) as events:  # type: ignore[type-var]
            async for event in events:
                if not isinstance(event, Finished):
                    yield event
                    continue
                answer = replace(event.answer, evidence_sha256=attested.sha256)
                if answer_key:
                    sealed = await asyncio.to_thread(sealing.seal_answer, answer.document, answer_key, **session)
                    document = {"sealed": base64.b64encode(sealed).decode()}
                    answer = replace(answer, document=document, digested=document)
                yield replace(self._finished(request, loaded, answer, started_ms), evidence=attested.evidence)

    async def _plain(self, request: Request, loaded: Loaded, started_ms: int) -> AsyncIterator[Piece | Finished]:
        engine: Any = loaded.engine
        if loaded.manifest.kind is ModelKind.UPSTREAM:
            async for event in self._relayed(request, loaded, engine, started_ms):
                yield event
            return
        if request.surface in ("chat.completions", "completions"):
            async for event in self._text(request, loaded, engine, started_ms):
                yield event
            return
        if request.surface == "embeddings":
            answers = self._embeddings(request, loaded, engine)
        elif request.mode is Mode.ZKML:
            answers = self._proven(request, loaded)
        else:
            answers = self._tensors(request, engine)
        async for answer in answers:
            yield self._finished(request, loaded, answer, started_ms)

    async def _text(self, request: Request, loaded: Loaded, engine: TextEngine, started_ms: int) -> AsyncIterator[Piece | Finished]:
        chat = request.surface == "chat.completions"
        asked = await openai.text_request(request.body, engine, chat=chat)
        fingerprint = "fp_" + (loaded.engine.info.profile or loaded.row.sha256).hex()[:16]
        shape = openai.Shape(request.receipt_id, started_ms // 1000, request.model_name, fingerprint, chat)
        progress = openai.Progress()
        try:
            async with aclosing(openai.answer_text(asked, engine, shape, progress, deadline=request.deadline)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield self._finished(request, loaded, event, started_ms) if isinstance(event, Answer) else event
        except (asyncio.CancelledError, GeneratorExit):
            if progress.tokens:
                cut = openai.cut_answer(asked, shape, progress)
                self.usage.note(loaded.manifest, cut, _price(request.payment, cut))
                self._publish(request, self._receipt(request, loaded, cut, started_ms))
            raise

    async def _relayed(self, request: Request, loaded: Loaded, engine: RelayEngine, started_ms: int) -> AsyncIterator[Piece | Finished]:
        shape = openai.Shape(request.receipt_id, started_ms // 1000, request.model_name, "fp_" + loaded.row.sha256.hex()[:16], True)
        seen = relaying.Relayed(shape, stream=bool(request.body.get("stream")))
        try:
            async with aclosing(relaying.relay(request.body, engine, seen, deadline=request.deadline)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield self._finished(request, loaded, event, started_ms) if isinstance(event, Answer) else event
        except (asyncio.CancelledError, GeneratorExit):
            if seen.parts:
                cut = seen.answer(Finish.INTERRUPTED, 0, seen.parts)
                self.usage.note(loaded.manifest, cut, _price(request.payment, cut))
                self._publish(request, self._receipt(request, loaded, cut, started_ms))
            raise

    async def _embeddings(self, request: Request, loaded: Loaded, engine: EmbeddingEngine) -> AsyncIterator[Answer]:
        asked = openai.embedding_request(request.body, engine, loaded.manifest.dimensions)
        answers = openai.answer_embeddings(asked, engine, request.model_name, deadline=request.deadline, alone=request.alone)
        async for answer in answers:
            assert isinstance(answer, Answer)
            yield answer

    async def _tensors(self, request: Request, engine: TensorEngine) -> AsyncIterator[Answer]:
        result = await engine.infer(request.tensors, request.outputs, deadline=request.deadline, alone=request.alone)
        digested = {"outputs": receipts.tensors_document([_digest(tensor) for tensor in result.outputs])} if request.with_receipt else None
        yield Answer(
            document={},
            digested=digested,
            finish=Finish.COMPLETE,
            rows=result.rows,
            tensors=result.outputs,
            queued_s=result.queued_s,
            computed_s=result.computed_s,
        )

    async def _proven(self, request: Request, loaded: Loaded) -> AsyncIterator[Answer]:
        """The numbers that are going to be proven. The proof is queued before they are given out."""
        assert self.proofs is not None
        if request.outputs not in ((), (loaded.manifest.outputs[0].name,)):
            raise InvalidInput("outputs: in mode zkml there is the one output", field="outputs")
        started = time.perf_counter()
        proven = await self.proofs.answer(loaded.row, loaded.folder, request.tensors)
        await self.proofs.queue(request.receipt_id, request.tenant, proven.statement)
        yield Answer(
            document={},
            digested={"outputs": receipts.tensors_document([_digest(proven.output)])},
            finish=Finish.COMPLETE,
            rows=1,
            tensors=(proven.output,),
            computed_s=time.perf_counter() - started,
            evidence_sha256=proven.statement.digest(),
        )

    # --- receipts

    def _finished(self, request: Request, loaded: Loaded, answer: Answer, started_ms: int) -> Finished:
        if not request.with_receipt:
            return Finished(answer, b"")
        raw = self._receipt(request, loaded, answer, started_ms)
        self._publish(request, raw)
        return Finished(answer, raw)

    def _receipt(self, request: Request, loaded: Loaded, answer: Answer, started_ms: int) -> bytes:
        manifest, info = loaded.manifest, loaded.engine.info
        body = request.body
        if request.surface == "tensors":
            inputs = receipts.tensors_document([_digest(tensor) for tensor in request.tensors])
            body = {"inputs": inputs, "outputs": list(request.outputs), "parameters": request.body.get("parameters") or {}}
        alone = request.alone or not info.batches
        relayed = getattr(loaded.engine, "relayed", None)
        execution = Execution(info.engine, info.provider, info.profile if alone else None, relayed)
        if request.mode is Mode.ZKML:
            execution = Execution("fixed point", SYSTEM)
        receipt = Receipt(
            id=request.receipt_id,
            surface=request.surface,
            request_sha256=receipts.request_digest(request.surface, request.model_name, body),
            response_sha256=receipts.response_digest(answer.digested),
            model=ModelRef(manifest.publisher, manifest.name, manifest.version, loaded.row.sha256),
            mode=request.mode,
            execution=execution,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            rows=answer.rows,
            finish=answer.finish,
            started_at=started_ms,
            finished_at=int(1000 * self._clock()),
            node=self.node.address,
            key_id=receipts.key_id_of(self.node.signer.public_key),
            price=_price(request.payment, answer),
            client_nonce=request.client_nonce,
            evidence_sha256=answer.evidence_sha256,
            jurisdiction=self.node.jurisdiction,
        )
        return receipts.encode(receipts.sign(receipt, self.node.signer))

    def _publish(self, request: Request, receipt: bytes) -> None:
        """The receipt onto the bus, beside the answer: it is there also when the answer does not arrive."""
        if self._bus is None:
            return
        task = asyncio.create_task(self._publish_patiently(self._bus, request, receipt))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _publish_patiently(self, bus: Bus, request: Request, receipt: bytes) -> None:
        payload = pb.InferenceReceipt(receipt=receipt, tenant=request.tenant).SerializeToString()
        sender = self.node.bus_signer.public_key
        envelope = seal(self.node.bus_signer, kind=Kind.INFERENCE_RECEIPT, chain_id=0, sender=sender, payload=payload)
        for pause in (0.25, 1.0, 5.0, 15.0, 30.0):
            try:
                await bus.publish(topics.RECEIPTS, request.model_sha256, envelope)
                return
            except BusError as error:
                log.warning("receipt %s waits: %s", request.receipt_id.hex(), error)
                await asyncio.sleep(pause)
        log.error("receipt %s was not published", request.receipt_id.hex())

    async def drain(self) -> None:
        """Wait for receipts under way."""
        if self._publishing:
            await asyncio.wait(self._publishing)


def _rows(tensors: tuple[Tensor, ...]) -> int:
    return max((tensor.shape[0] for tensor in tensors if tensor.shape), default=1)


def _digest(tensor: Tensor) -> TensorDigest:
    return TensorDigest(tensor.name, tensor.datatype, tensor.shape, Hash32(hashlib.sha256(tensor.data).digest()))


def _price(terms: pb.PaymentTerms | None, answer: Answer) -> Price | None:
    if terms is None:
        return None
    amount = int(terms.amount) if terms.amount else min(int(terms.max_amount), _metered(terms, answer))
    return Price(amount, Address(terms.asset), terms.network, Address(terms.payer), terms.payment_id)


def _metered(terms: pb.PaymentTerms, answer: Answer) -> int:
    rate = Rate(
        request=int(terms.rate.request or 0),
        row=int(terms.rate.row or 0),
        million_prompt_tokens=int(terms.rate.million_prompt_tokens or 0),
        million_completion_tokens=int(terms.rate.million_completion_tokens or 0),
    )
    return rate.amount(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens, rows=answer.rows)
