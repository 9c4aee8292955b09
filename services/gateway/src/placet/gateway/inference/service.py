"""A request's way through the gateway: the model it means, the replica that answers, and the answer's events. No HTTP here."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import orjson

from placet.core.errors import InvalidInput, NotFound, PaymentRequired, PlacetError, RateLimited, TeeUnavailable, Unavailable
from placet.core.gen import hub_pb2 as hub_pb
from placet.core.gen import inference_pb2 as pb
from placet.core.models import Manifest, Prices, Rate, Reference, decode_manifest, parse_reference, prices_of
from placet.core.payment.prices import PriceTable
from placet.core.receipts import Mode
from placet.core.rpc_errors import from_rpc
from placet.core.tensors import Tensor
from placet.core.types import Hash32
from placet.gateway.inference import auditing
from placet.gateway.inference.replicas import Replica, Replicas
from placet.gateway.inference.routing import Choice, Wants, choose

log = logging.getLogger(__name__)

_RESOLVED_S = 1.0
_RESOLVED = 1024
_TRIES = 3
_QUOTE_S = 60.0
"""A model may have to be loaded first."""
_MODES = {Mode.VANILLA: pb.MODE_VANILLA, Mode.TEE: pb.MODE_TEE, Mode.ZKML: pb.MODE_ZKML, Mode.AUDITED: pb.MODE_AUDITED}
_MODE_OF = {number: mode for mode, number in _MODES.items()}


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means now."""

    manifest: Manifest
    sha256: Hash32
    prices: Prices | None
    deprecated: str
    tables: tuple[PriceTable, ...] = ()
    """Its prices, and those before them; none: it is free."""

    @property
    def name(self) -> str:
        """publisher/name@version."""
        return f"{self.manifest.publisher}/{self.manifest.name}@{self.manifest.version}"


@dataclass(frozen=True, slots=True)
class _Candidate:
    key_id: bytes
    jurisdiction: str
    modes: frozenset[Mode]
    is_loaded: bool
    busy: float
    first_ms: float
    last_ms: float


@dataclass(slots=True)
class Opened:
    """An answer that has begun. `events` must be closed; its first event was received already."""

    receipt_id: Hash32
    resolved: Resolved
    why: str
    jurisdiction: str
    provider: str
    events: AsyncIterator[pb.RunResponse]
    audit: tuple[bytes, ...] = ()
    """Receipts of the other nodes that gave the same answer."""

    def routing(self) -> dict[str, Any]:
        """What was chosen and why, for the answer."""
        said: dict[str, Any] = {"model": self.resolved.name, "why": self.why}
        if self.provider:
            said["provider"] = self.provider
        if self.jurisdiction:
            said["jurisdiction"] = {"declared": self.jurisdiction}
        if self.resolved.deprecated:
            said["deprecated"] = self.resolved.deprecated
        return said


@dataclass(frozen=True, slots=True)
class Call:
    """A request as a public form gives it."""

    surface: int
    model: str
    body: bytes
    wants: Wants
    stream: bool
    tenant: str
    tensors: Sequence[Tensor] = ()
    outputs: Sequence[str] = ()
    without_receipt: bool = False
    timeout_ms: int = 0
    sealed: bytes = b""
    terms: pb.PaymentTerms | None = None


class InferenceService:
    """Inference, as the gateway offers it."""

    def __init__(self, replicas: Replicas, clock: Callable[[], float] = time.monotonic) -> None:
        self.replicas = replicas
        self._clock = clock
        self._resolved: OrderedDict[str, tuple[float, Resolved]] = OrderedDict()

    async def hub(self, method: str, request: Any, *, timeout_s: float = 10.0) -> Any:
        """Ask the Model Hub. Raises PlacetError."""
        replica = self.replicas.any()
        try:
            return await getattr(replica.hub, method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None

    async def ask(self, method: str, request: Any, *, timeout_s: float = 10.0) -> Any:
        """Ask any replica what all of them know. Raises PlacetError."""
        try:
            return await getattr(self.replicas.any().inference, method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None

    async def attest(self, resolved: Resolved, nonce: Hash32) -> tuple[pb.AttestResponse, bytes]:
        """Evidence of a replica in a TEE, and its key's id. Raises TeeUnavailable, Unavailable."""
        for replica in sorted(self.replicas.living(), key=lambda item: (resolved.sha256 not in item.models, item.sent)):
            if replica.said is not None and pb.MODE_TEE in replica.said.modes:
                try:
                    asked = pb.AttestRequest(nonce=nonce, model_sha256=resolved.sha256)
                    return await replica.inference.Attest(asked, timeout=60.0), replica.said.key_id
                except grpc.aio.AioRpcError as error:
                    raise from_rpc(error) from None
        raise TeeUnavailable("no replica runs in a TEE", field="mode")

    async def resolve(self, reference: Reference) -> Resolved:
        """What a reference means (at most a second ago). Raises NotFound, Unavailable."""
        key, now = str(reference), self._clock()
        cached = self._resolved.get(key)
        if cached is None or now - cached[0] > _RESOLVED_S:
            answer: hub_pb.ResolveResponse = await self.hub("Resolve", hub_pb.ResolveRequest(reference=key))
            manifest = decode_manifest(answer.version.manifest)
            prices = prices_of(orjson.loads(answer.prices)) if answer.prices else None
            previous = prices_of(orjson.loads(answer.previous_prices)) if answer.previous_prices else None
            tables: tuple[PriceTable, ...] = ()
            if prices is not None:
                tables = (PriceTable(2, answer.priced_at, prices), *([PriceTable(1, 0, previous)] if previous is not None else []))
            cached = (now, Resolved(manifest, Hash32(answer.version.sha256), prices, answer.version.deprecated, tables))
            self._resolved[key] = cached
            while len(self._resolved) > _RESOLVED:
                self._resolved.popitem(last=False)
        return cached[1]

    def modes_of(self, sha256: Hash32) -> list[str]:
        """Modes in which some replica that has the model in memory offers it, `vanilla` always."""
        offered = {Mode.VANILLA}
        for replica in self.replicas.living():
            loaded = replica.models.get(sha256)
            offered |= {_MODE_OF[mode] for mode in (loaded.modes if loaded is not None else ()) if mode in _MODE_OF}
        return [mode.value for mode in Mode if mode in offered]

    async def open(self, call: Call) -> Opened:
        """Begin an answer: by the model that was named, or the first of its fallbacks that answers.

        Nothing was delivered before this returns, so another replica or model may be tried; afterwards none is.

        Raises:
            PlacetError: the last one's.
        """
        failure: PlacetError | None = None
        for reference in (parse_reference(call.model), *call.wants.fallbacks):
            try:
                resolved = await self.resolve(reference)
                if not _is_free(resolved, call.wants.mode):
                    raise PaymentRequired(f"{resolved.name} has a price: it is paid for by x402, over HTTP, and named first", field="model")
                return await self._open(call, resolved)
            except (NotFound, Unavailable, RateLimited) as error:
                failure = failure or error
        assert failure is not None
        raise failure

    async def open_paid(self, call: Call, resolved: Resolved, terms: pb.PaymentTerms, longest_s: int) -> Opened:
        """Begin an answer that is paid for: by that version and no other, within the time that the payment is valid. Raises as `open`."""
        most = 1000 * longest_s
        return await self._open(replace(call, timeout_ms=min(call.timeout_ms or most, most), terms=terms), resolved)

    async def quote(self, call: Call, resolved: Resolved) -> pb.QuoteResponse:
        """How large a request is and may become; nothing runs. Raises PlacetError: it would be refused."""
        living = self.replicas.living()
        choices = choose([_candidate(replica, resolved) for replica in living], call.wants, stream=call.stream)
        asked = pb.QuoteRequest(request=_request_of(call, resolved, Hash32(bytes(32))))
        try:
            answer: pb.QuoteResponse = await living[choices[0].index].inference.Quote(asked, timeout=_QUOTE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        return answer

    async def _open(self, call: Call, resolved: Resolved) -> Opened:
        living = self.replicas.living()
        choices = choose([_candidate(replica, resolved) for replica in living], call.wants, stream=call.stream)
        if call.wants.mode is Mode.AUDITED:
            return await self._audited(call, resolved, living, choices)
        failure: PlacetError | None = None
        for choice in choices[:_TRIES]:
            try:
                return await self._begin(call, resolved, living[choice.index], choice)
            except (Unavailable, RateLimited) as error:
                failure = failure or error
        assert failure is not None
        raise failure

    async def _audited(self, call: Call, resolved: Resolved, living: Sequence[Replica], choices: Sequence[Choice]) -> Opened:
        """The answer on which several replicas agree. It is there in full before any of it is delivered."""
        if call.stream:
            raise InvalidInput("stream: an audited answer is not streamed, it is delivered when the nodes agree", field="stream")
        drawn = auditing.draw(choices, living, resolved.sha256, call.wants.auditors)
        opened = await asyncio.gather(
            *(
                # One payment, one receipt that names it; the others say that nobody paid them for it.
                self._begin(call if at == 0 else replace(call, terms=None), resolved, living[choice.index], choice)
                for at, choice in enumerate(drawn)
            ),
            return_exceptions=True,
        )
        begun = [item for item in opened if isinstance(item, Opened)]
        try:
            for item in opened:
                if isinstance(item, BaseException):
                    raise item
            finished = await asyncio.gather(*(_finished(item.events) for item in begun))
        finally:
            await asyncio.gather(*(item.events.aclose() for item in begun), return_exceptions=True)  # type: ignore[attr-defined]
        auditing.compare(finished)
        first = begun[0]
        first.events = _only(finished[0])
        first.why = f"{len(begun)} nodes agree, drawn from {len(choices)}"
        first.audit = tuple(answer.receipt for answer in finished[1:])
        return first

    async def _begin(self, call: Call, resolved: Resolved, replica: Replica, choice: Choice) -> Opened:
        receipt_id = Hash32(secrets.token_bytes(32))
        request = _request_of(call, resolved, receipt_id)
        events = _events(replica, request)
        try:
            first = await anext(events)
        except StopAsyncIteration:
            raise Unavailable("the inference service gave no answer") from None
        loaded = replica.models.get(resolved.sha256)
        return Opened(
            receipt_id=receipt_id,
            resolved=resolved,
            why=choice.why,
            jurisdiction=replica.said.jurisdiction if replica.said is not None else "",
            provider=loaded.provider if loaded is not None else "",
            events=_with_first(first, events),
        )


def _is_free(resolved: Resolved, mode: Mode) -> bool:
    return resolved.prices is None or resolved.prices.rate_of(mode.value) == Rate()


def _request_of(call: Call, resolved: Resolved, receipt_id: Hash32) -> pb.RunRequest:
    return pb.RunRequest(
        receipt_id=receipt_id,
        surface=call.surface,  # type: ignore[arg-type]
        mode=_MODES[call.wants.mode],
        model_sha256=resolved.sha256,
        model_name=call.model,
        body=call.body,
        tensors=[pb.Tensor(name=t.name, datatype=t.datatype, shape=t.shape, data=bytes(t.data)) for t in call.tensors],
        outputs=call.outputs,
        client_nonce=call.wants.nonce or b"",
        payment=call.terms,
        timeout_ms=call.timeout_ms,
        jurisdiction=call.wants.jurisdiction or "",
        tenant=call.tenant,
        without_receipt=call.without_receipt,
        sealed=call.sealed,
    )


def _candidate(replica: Replica, resolved: Resolved) -> _Candidate:
    assert replica.said is not None
    loaded = replica.models.get(resolved.sha256)
    if loaded is None:
        modes = {Mode.VANILLA, Mode.AUDITED}
        if resolved.manifest.zk_network_sha256 is not None and pb.MODE_ZKML in replica.said.modes:
            modes.add(Mode.ZKML)
        if pb.MODE_TEE in replica.said.modes:
            modes.add(Mode.TEE)
        return _Candidate(replica.said.key_id, replica.said.jurisdiction, frozenset(modes), False, float(replica.sent), 0.0, 0.0)
    offered = frozenset(_MODE_OF[mode] for mode in loaded.modes if mode in _MODE_OF)
    busy = max(loaded.running + loaded.waiting, replica.sent) / max(1, loaded.concurrency)
    return _Candidate(
        replica.said.key_id, replica.said.jurisdiction, offered, loaded.state == "ready", busy, loaded.first_ms, loaded.last_ms
    )


async def _events(replica: Replica, request: pb.RunRequest) -> AsyncIterator[pb.RunResponse]:
    """A call's events. Closing it cancels the call, and the replica stops."""
    replica.sent += 1
    call = replica.inference.Run(request)
    try:
        async for event in call:
            yield event
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None
    finally:
        replica.sent -= 1
        call.cancel()


async def _finished(events: AsyncIterator[pb.RunResponse]) -> pb.Finished:
    async for event in events:
        if event.HasField("finished"):
            return event.finished
        if event.HasField("failure"):
            raise Unavailable(event.failure.message)
    raise Unavailable("the answer ended before its end")


async def _only(answer: pb.Finished) -> AsyncIterator[pb.RunResponse]:
    yield pb.RunResponse(finished=answer)


async def _with_first(first: pb.RunResponse, rest: AsyncIterator[pb.RunResponse]) -> AsyncIterator[pb.RunResponse]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()  # type: ignore[attr-defined]
