"""`/api/v1/keys`: prepaid keys are bought and filled by x402, looked at, and closed."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from placet.core import jsonx
from placet.core.db import DATABASE_ERRORS
from placet.core.errors import Forbidden, InvalidInput, PaymentPending, PaymentRefused, PaymentRequired, PlacetError, Unavailable
from placet.core.models import parse_reference
from placet.core.payment.offers import SIGNATURE_HEADER
from placet.core.payment.payload import PaymentPayload
from placet.core.types import Address, address_from, hash_from, hex0x
from placet.gateway import requests as parsing
from placet.gateway.http import bounded_body, problem, reply
from placet.gateway.inference.paid import payment_headers, replay, said_of
from placet.gateway.keys import Authenticator
from placet.gateway.payment.assets import Priced, topup
from placet.gateway.payment.gate import Gate, Replayed
from placet.gateway.payment.prepaid import MAX_MODELS, PERIODS, SURFACE, Wanted, key_id_of
from placet.gateway.payment.records import PaidRequest, request_hash
from placet.gateway.payment.states import State
from placet.gateway.store import ApiKey

log = logging.getLogger(__name__)
Guard = Callable[[Callable[[Request, ApiKey], Awaitable[Response]]], Callable[[Request], Awaitable[Response]]]

_MAX_BODY_BYTES = 16 << 10
_NAME = re.compile(r"[\x20-\x7e]{1,64}\Z")
_MAX_AMOUNT = 10**30
_MEMBERS = frozenset({"secretSha256", "name", "amount", "network", "asset", "limit", "period", "models"})


class KeysApi:
    """The routes. A key's secret is its buyer's; this service is given its hash."""

    def __init__(self, gate: Gate, authenticator: Authenticator, pay_to: Address, horizon_s: int) -> None:
        assert gate.prepaid is not None
        self._gate = gate
        self._prepaid = gate.prepaid
        self._auth = authenticator
        self._pay_to = pay_to
        self._horizon_s = horizon_s

    def routes(self, guard: Guard) -> list[Route]:
        """For the gateway's application."""
        return [
            Route("/api/v1/keys", self._open(self.buy), methods=["POST"]),
            Route("/api/v1/keys/{id}", guard(self.one), methods=["GET"]),
            Route("/api/v1/keys/{id}/credit", self._open(self.fill), methods=["POST"]),
            Route("/api/v1/keys/{id}/close", guard(self.close), methods=["POST"]),
        ]

    def _open(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """For callers without a key: who pays needs none."""

        async def guarded(request: Request) -> Response:
            try:
                await self._auth.authenticate_or_pay(None, request.client.host if request.client else "")
                return await handler(request)
            except PlacetError as error:
                answer = problem(error)
                answer.headers.update(payment_headers(error))
                return answer
            except DATABASE_ERRORS as error:
                log.error("database: %s", error)
                return problem(Unavailable("the database does not answer"))

        return guarded

    async def buy(self, request: Request) -> Response:
        """A new key: 201 once the payment is final. Sending the same again gives the same answer."""
        raw = await bounded_body(request, _MAX_BODY_BYTES)
        body = _body(raw, _MEMBERS)
        secret = hash_from(body.get("secretSha256", ""), field="secretSha256")
        name = body.get("name", "prepaid")
        if not isinstance(name, str) or not _NAME.match(name):
            raise InvalidInput("name: 1 to 64 printable characters wanted", field="name")
        network, asset = self._asset(body)
        amount = parsing.uint(body.get("amount", ""), "amount", _MAX_AMOUNT)
        limit = None if body.get("limit") is None else parsing.uint(body["limit"], "limit", _MAX_AMOUNT)
        period = body.get("period")
        if period is not None and (limit is None or period not in PERIODS):
            raise InvalidInput(f"period: one of {', '.join(PERIODS)} wanted, beside a limit", field="period")
        models = _models(body.get("models", []))
        seconds = None if period is None else PERIODS[period]

        def wanted(payer: Address) -> Wanted:
            return Wanted(secret, name, payer, network, asset, limit, seconds, models)

        return await self._paid(request, raw, amount, network, asset, wanted, None)

    async def fill(self, request: Request) -> Response:
        """More money on a key, from who bought it: what is left goes back there."""
        raw = await bounded_body(request, _MAX_BODY_BYTES)
        body = _body(raw, frozenset({"amount"}))
        account = await self._prepaid.account(request.path_params["id"])
        if account.closed_at is not None:
            raise PaymentRefused("this key was closed; buy another", check="key_closed")
        amount = parsing.uint(body.get("amount", ""), "amount", _MAX_AMOUNT)

        def wanted(payer: Address) -> Wanted:
            if payer != account.payer:
                raise PaymentRefused(f"this key is filled by {hex0x(account.payer)}, who bought it", check="payer")
            return Wanted(bytes(32), "", payer, account.network, account.asset)

        return await self._paid(request, raw, amount, account.network, account.asset, wanted, account.key_id)

    async def one(self, request: Request, key: ApiKey) -> Response:
        """What is left of your key."""
        return reply((await self._prepaid.account(_own(request, key))).at(self._gate.now()).document())

    async def close(self, request: Request, key: ApiKey) -> Response:
        """Close your key. What is left is credited at RefundVault by the ids of the payments that filled it."""
        now = self._gate.now()
        refunds = await self._prepaid.close(_own(request, key), now=now, pending_since=now - self._horizon_s)
        said = [{"paymentId": hex0x(item.payment_id), "payer": hex0x(item.payer), "amount": str(item.amount)} for item in refunds]
        return reply({"id": key.id, "refunds": said})

    async def _paid(
        self,
        request: Request,
        raw: bytes,
        amount: int,
        network: str,
        asset: Address,
        wanted: Callable[[Address], Wanted],
        key_id: str | None,
    ) -> Response:
        if not amount:
            raise InvalidInput("amount: more than 0 wanted", field="amount")
        payload = self._gate.read(request.headers.getlist(SIGNATURE_HEADER))
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        paid_for = PaidRequest(request_hash(request.method, path, raw), SURFACE)
        if payload is not None and (before := await self._gate.replayed(payload, paid_for)) is not None:
            return replay(before)
        priced = topup(self._gate.assets, network, asset, amount, self._pay_to, self._gate.rules.max_timeout_s)
        url, description = str(request.url), "prepaid key"
        if payload is None:
            missing = PaymentRequired(f"a prepaid key of {amount} is paid for by x402", field="amount", amount=str(amount))
            missing.required = self._gate.wanted(priced, url, description)  # type: ignore[attr-defined]
            raise missing
        try:
            return await self._take(payload, paid_for, priced, wanted, key_id)
        except PaymentRefused as refused:
            if refused.check != "settlement_failed":
                refused.required = self._gate.wanted(priced, url, description, refused.check)  # type: ignore[attr-defined]
            raise

    async def _take(
        self, payload: PaymentPayload, paid_for: PaidRequest, priced: Priced, wanted: Callable[[Address], Wanted], key_id: str | None
    ) -> Response:
        found = await self._gate.take(payload, paid_for, priced, "", risked=False)
        if isinstance(found, Replayed):
            return replay(found)
        payment = found.payment
        try:
            order = wanted(payment.payer)
            await self._prepaid.order(payment.id, key_id or key_id_of(payment.id), payment.maximum, order, now=self._gate.now())
        except BaseException:
            await self._gate.gave_up(found)
            raise
        await self._gate.began(found)
        ended = await self._gate.settler.ended(payment.id, self._gate.rules.wait_s)
        if ended.state is State.FAILED:
            failed = PaymentRefused(f"the payment could not be settled ({ended.failure}); sign a new one", check="settlement_failed")
            failed.response = ended.response().header()  # type: ignore[attr-defined]
            raise failed
        if ended.state is not State.SETTLED:
            raise PaymentPending("the payment is not final yet; send the same again for the key", retryAfter=1)
        account = await self._prepaid.credit(payment.id, now=self._gate.now())
        return reply(account.document(), 201, headers=said_of(ended))

    def _asset(self, body: dict[str, Any]) -> tuple[str, Address]:
        if "network" not in body and "asset" not in body:
            return next(iter(self._gate.assets))
        network = body.get("network")
        if not isinstance(network, str):
            raise InvalidInput("network: CAIP-2 wanted, beside the asset", field="network")
        return network, address_from(body.get("asset", ""), field="asset")


def _body(raw: bytes, members: frozenset[str]) -> dict[str, Any]:
    body = jsonx.parse(raw, field="body", max_bytes=_MAX_BODY_BYTES, max_depth=3)
    if not isinstance(body, dict):
        raise InvalidInput("an object wanted", field="body")
    unknown = sorted(set(body) - members)
    if unknown:
        raise InvalidInput(f"{unknown[0]}: not known here", field=unknown[0])
    return body


def _models(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_MODELS or not all(isinstance(item, str) for item in value):
        raise InvalidInput(f"models: at most {MAX_MODELS} names wanted", field="models")
    names = []
    for item in value:
        reference = parse_reference(item)
        names.append(f"{reference.publisher}/{reference.name}")
    return tuple(dict.fromkeys(names))


def _own(request: Request, key: ApiKey) -> str:
    """A key speaks for itself only."""
    if not key.prepaid or request.path_params["id"] != key.id:
        raise Forbidden("a prepaid key is looked at and closed with that key itself", field="id")
    return key.id
