"""The paywall of the inference surfaces: who may call, what it costs, what is said of a payment. Whether one is taken: `payment.gate`."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from placet.core.errors import InvalidInput, PaymentRefused, PaymentRequired, PlacetError, Unauthenticated
from placet.core.gen import inference_pb2 as pb
from placet.core.models import Rate, parse_reference
from placet.core.payment.offers import REQUIRED_HEADER, RESPONSE_HEADER, SIGNATURE_HEADER, Scheme
from placet.core.payment.prices import Size
from placet.core.receipts import decode
from placet.core.types import Hash32, hex0x
from placet.gateway.inference.service import Call, InferenceService, Opened, Resolved
from placet.gateway.keys import Authenticator
from placet.gateway.payment.assets import Priced
from placet.gateway.payment.gate import Gate, Replayed, Taken, answer_of
from placet.gateway.payment.ledger import MAX_ANSWER_BYTES
from placet.gateway.payment.prepaid import Account, Use, check_model
from placet.gateway.payment.records import Answer, PaidRequest, Payment, request_hash
from placet.gateway.payment.states import State
from placet.gateway.store import ApiKey

_METERED = frozenset({pb.SURFACE_CHAT, pb.SURFACE_COMPLETIONS})


@dataclass(slots=True)
class Admission:
    """What a request may do. `resolved` where it is paid, and `taken` or `use` (a prepaid key's); `replay`: it was answered before."""

    resolved: Resolved | None = None
    taken: Taken | None = None
    replay: Replayed | None = None
    use: Use | None = None
    rate: Rate | None = None
    began: bool = field(default=False, init=False)


class Paywall:
    """Before and after a request. Without a gate nothing is sold, and everybody has a key."""

    def __init__(self, inference: InferenceService, authenticator: Authenticator, gate: Gate | None) -> None:
        self._inference = inference
        self._auth = authenticator
        self._gate = gate

    async def caller(self, request: Request) -> ApiKey | None:
        """Who asks; None: somebody without a key, who may pay. Raises Unauthenticated, RateLimited."""
        header = request.headers.get("authorization")
        if self._gate is None:
            return await self._auth.authenticate(header)
        return await self._auth.authenticate_or_pay(header, request.client.host if request.client else "")

    async def admit(self, request: Request, raw: bytes, call: Call, surface: str, key: ApiKey | None) -> Admission:
        """Price a request and take its payment.

        Raises:
            PaymentRequired: it costs something, and nobody paid. PaymentMalformed, PaymentRefused, PaymentConflict, PaymentPending.
            Unauthenticated: it is free, and free requests need a key. InvalidInput: it costs more than `max_price`.
        """
        if self._gate is None:
            return Admission()
        payload = self._gate.read(request.headers.getlist(SIGNATURE_HEADER))
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        paid_for = PaidRequest(request_hash(request.method, path, raw), surface, None if key is None else key.id)
        if payload is not None and (replay := await self._gate.replayed(payload, paid_for)) is not None:
            return Admission(replay=replay)
        resolved = await self._inference.resolve(parse_reference(call.model))
        account = None
        if payload is None and key is not None and key.prepaid and self._gate.prepaid is not None:
            account = await self._gate.prepaid.account(key.id)
            check_model(account, f"{resolved.manifest.publisher}/{resolved.manifest.name}")
        mode = call.wants.mode.value
        priced = None
        if resolved.tables:
            if call.wants.fallbacks:
                raise InvalidInput("placet/models: a model that is paid for has no fallbacks", field="placet/models")
            quote = await self._inference.quote(call, resolved)
            size = Size(quote.prompt_tokens, quote.max_completion_tokens, quote.rows)
            priced = self._gate.price(resolved.tables, size, mode, is_metered=call.surface in _METERED)
        if priced is None:
            if key is None:
                raise Unauthenticated("this model is free, and free requests need an API key")
            return Admission()
        amount = priced.offers[0].amount
        if call.wants.max_price is not None and amount > call.wants.max_price:
            raise InvalidInput(
                f"placet/max_price: the request may cost {amount}, at most {call.wants.max_price} is wanted", field="placet/max_price"
            )
        if account is not None:
            return await self._hold(account, resolved, priced, mode)
        url, description = str(request.url), f"{resolved.name}, {mode}"
        if payload is None:
            wanted = PaymentRequired(
                f"{resolved.name} costs {amount} at most for this request; pay by x402", field="model", amount=str(amount)
            )
            wanted.required = self._gate.wanted(priced, url, description)  # type: ignore[attr-defined]
            raise wanted
        try:
            found = await self._gate.take(payload, paid_for, priced, mode)
        except PaymentRefused as refused:
            refused.required = self._gate.wanted(priced, url, description, refused.check)  # type: ignore[attr-defined]
            raise
        return Admission(replay=found) if isinstance(found, Replayed) else Admission(resolved, found)

    async def _hold(self, account: Account, resolved: Resolved, priced: Priced, mode: str) -> Admission:
        """Hold what a prepaid request may cost."""
        assert self._gate is not None
        assert self._gate.prepaid is not None
        prices = priced.prices[0]
        if (prices.network, prices.asset) != (account.network, account.asset):
            raise PaymentRefused(
                f"the model is priced in {hex0x(prices.asset)} on {prices.network}, not in this key's asset", check="asset"
            )
        use_id = Hash32(secrets.token_bytes(32))
        use = await self._gate.prepaid.hold(account.key_id, use_id, priced.offers[0].amount, prices.pay_to, now=self._gate.now())
        return Admission(resolved, use=use, rate=prices.rate_of(mode))

    async def open(self, call: Call, admission: Admission) -> Opened:
        """Begin the answer. A payment for which nothing began may be used again."""
        if admission.use is not None:
            return await self._open_held(call, admission, admission.use)
        taken = admission.taken
        if taken is None or admission.resolved is None:
            return await self._inference.open(call)
        assert self._gate is not None
        try:
            opened = await self._inference.open_paid(call, admission.resolved, _terms(taken), self._gate.rules.longest_s)
        except BaseException:
            await self._gate.gave_up(taken)
            raise
        await self._gate.began(taken)
        return opened

    async def _open_held(self, call: Call, admission: Admission, use: Use) -> Opened:
        assert self._gate is not None
        assert self._gate.prepaid is not None
        assert admission.resolved is not None
        assert admission.rate is not None
        terms = pb.PaymentTerms(
            payer=use.account.payer,
            network=use.account.network,
            asset=use.account.asset,
            payment_id=hex0x(use.id),
            max_amount=str(use.maximum),
            rate=_rate(admission.rate),
        )
        try:
            return await self._inference.open_paid(call, admission.resolved, terms, self._gate.rules.longest_s)
        except BaseException:
            await self._gate.prepaid.end(use.id, 0, now=self._gate.now())
            raise

    async def _end(self, use: Use, finished: pb.Finished) -> Account:
        assert self._gate is not None
        assert self._gate.prepaid is not None
        receipt = decode(finished.receipt)
        charged = 0 if receipt.price is None else min(receipt.price.amount, use.maximum)
        return await self._gate.prepaid.end(use.id, charged, now=self._gate.now())

    async def finish(self, admission: Admission, finished: pb.Finished, body: bytes, media_type: str) -> dict[str, str]:
        """The answer is complete, and not sent yet. Returns headers for it.

        Raises:
            PaymentRefused: what was authorized will never be executed, so the answer is not given out.
        """
        if admission.use is not None:
            account = await self._end(admission.use, finished)
            return {"placet-charged": _charged(finished), "placet-credit": str(account.available)}
        payment = await self._ended(admission, finished, body, media_type)
        return {} if payment is None else said_of(payment)

    async def _ended(self, admission: Admission, finished: pb.Finished, body: bytes, media_type: str) -> Payment | None:
        if admission.taken is None:
            return None
        assert self._gate is not None
        receipt = decode(finished.receipt)
        charged = 0 if receipt.price is None else receipt.price.amount
        payment = await self._gate.ended(admission.taken, charged, answer_of(body, media_type, receipt.id))
        if payment.state is State.FAILED:
            failed = PaymentRefused(f"the payment could not be settled ({payment.failure}); sign a new one", check="settlement_failed")
            failed.response = payment.response().header()  # type: ignore[attr-defined]
            raise failed
        return payment

    async def finish_stream(self, admission: Admission, finished: pb.Finished, seen: StreamCopy) -> dict[str, Any] | None:
        """The same at the end of a stream; what is said of the payment goes into its last chunk."""
        if admission.use is not None:
            account = await self._end(admission.use, finished)
            return {"charged": _charged(finished), "credit": str(account.available)}
        payment = await self._ended(admission, finished, seen.bytes(), "text/event-stream")
        return None if payment is None else payment.response().document()


class StreamCopy:
    """What a stream sent, as far as it is kept for the same payment's next try."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> bytes:
        """Remember a part; returns it."""
        self._size += len(part)
        if self._size <= MAX_ANSWER_BYTES:
            self._parts.append(part)
        return part

    def bytes(self) -> bytes:
        """All of it; when it was too large, something of that size, which the ledger keeps the digest of only."""
        whole = b"".join(self._parts)
        return whole if self._size <= MAX_ANSWER_BYTES else whole.ljust(MAX_ANSWER_BYTES + 1)


def _terms(taken: Taken) -> pb.PaymentTerms:
    payment, offer = taken.payment, taken.payment.offer
    exact = payment.scheme is Scheme.EXACT
    return pb.PaymentTerms(
        payer=payment.payer,
        network=offer.network,
        asset=offer.asset,
        payment_id=hex0x(payment.id),
        amount=str(payment.maximum) if exact else "",
        max_amount="" if exact else str(payment.maximum),
        rate=_rate(taken.rate),
    )


def _charged(finished: pb.Finished) -> str:
    price = decode(finished.receipt).price
    return "0" if price is None else str(price.amount)


def _rate(rate: Rate) -> pb.PaymentRate:
    return pb.PaymentRate(
        request=str(rate.request),
        row=str(rate.row),
        million_prompt_tokens=str(rate.million_prompt_tokens),
        million_completion_tokens=str(rate.million_completion_tokens),
    )


def said_of(payment: Payment) -> dict[str, str]:
    """Headers of a paid answer."""
    return {RESPONSE_HEADER: payment.response().header(), "cache-control": "private, no-store"}


def replay(found: Replayed) -> Response:
    """The answer that a payment had before."""
    answer: Answer = found.answer
    headers = {**said_of(found.payment), "placet-replayed": "true"}
    if answer.receipt_id is not None:
        headers["placet-receipt-id"] = hex0x(answer.receipt_id)
    return Response(answer.body, answer.status, media_type=answer.media_type, headers=headers)


def payment_headers(error: PlacetError) -> dict[str, str]:
    """What an error says about paying, in headers."""
    headers: dict[str, str] = {}
    if isinstance(error, PaymentRequired | PaymentRefused):
        for header, name in ((REQUIRED_HEADER, "required"), (RESPONSE_HEADER, "response")):
            if (value := getattr(error, name, None)) is not None:
                headers[header] = value
    if headers:
        headers["cache-control"] = "no-store"
    return headers


def tenant_of(payment: Payment) -> str:
    """Whose receipts those of a payer without a key are, in 32 characters."""
    return "p" + hashlib.sha256(b"placet/payer/v1\0" + payment.payer).hexdigest()[:31]
