"""An httpx transport that pays: what the gateway asks for with 402 is paid within the wallet's rules and budget, once for each purchase.

The same bytes go again with the payment. After a time-out, a broken connection or an answer of 5xx the same payment is sent again, never
another: one signature a purchase. When no answer comes within the patience, the purchase stays open, and the same request later goes on
with it. Needs the extra `inference` of placet-sdk.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import orjson

from placet.core.errors import ALL_ERRORS, InvalidInput, PaymentConflict, PaymentMalformed, PaymentPending, PaymentRefused, Unavailable
from placet.core.payment.offers import REQUIRED_HEADER, RESPONSE_HEADER, SIGNATURE_HEADER
from placet.core.types import Hash32, hex0x
from placet.sdk.budget import Budget, BudgetExceeded
from placet.sdk.steps import AsyncTransport, Close, Do, Read, Send, Sleep, Step, Steps, Transport, Watch, plain, under, watched, with_body
from placet.sdk.wallet import Asset, PaymentNotAllowed, Rules, Signed, Wallet, choose, read_required

__all__ = ["AsyncPayingTransport", "BudgetExceeded", "Payer", "PayingTransport", "PaymentNotAllowed", "Purchase"]

PURCHASE: Final = "placet_purchase"
"""Extension of a response: the `Purchase` that paid for it."""
PURCHASE_KEY: Final = "placet_purchase_key"
"""Extension of a request: what makes it the same purchase as before, when its bytes are not."""
_MAX_OPEN = 1024
_FORGOTTEN_S = 3600
_STANDS = frozenset({"open_payments", "credit_limit", "insufficient_funds", "unpaid"})
"""Refusals that time can change: the same payment may be taken later."""
_RETRYABLE = {kind.code: kind.retryable for kind in ALL_ERRORS}


@dataclass(eq=False, slots=True)
class Purchase:
    """One payment for one request. `body` is what is sent, byte for byte; `response` what the gateway says became of it."""

    signed: Signed
    body: bytes = field(repr=False)
    scale: Asset
    tries: int = 0
    response: Mapping[str, Any] | None = None

    @property
    def id(self) -> Hash32:
        """The payment's id."""
        return self.signed.id


class Payer:
    """Pays one gateway's requests. Shared by transports, threads and tasks.

    `trust_gateway`: what the gateway says in PAYMENT-RESPONSE lowers what is counted as spent. Without it only receipts that were verified
    do, and everything signed counts in full until then.
    """

    def __init__(
        self,
        gateway: str,
        wallet: Wallet,
        budget: Budget,
        rules: Rules | None = None,
        *,
        tries: int = 6,
        patience_s: float = 180.0,
        trust_gateway: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.gateway = gateway_url(gateway)
        self.wallet = wallet
        self.budget = budget
        self.rules = rules or Rules()
        self._tries = max(1, tries)
        self._patience_s = patience_s
        self._trusts = trust_gateway
        self._clock = clock
        self._open: dict[bytes, list[Purchase]] = {}
        self._lock = threading.Lock()

    def steps(self, request: httpx.Request, body: bytes) -> Steps:
        """A request's conversation.

        Raises:
            PaymentNotAllowed, BudgetExceeded: nothing was signed. PaymentRefused: names the gateway's check; the payment counts as spent.
            PaymentPending: it was paid, and no answer came; the same request goes on with the same payment. PaymentConflict.
            Unavailable: the gateway sends elsewhere. httpx.TransportError: it does not answer.
        """
        if under(self.gateway, request.url) is None:
            raise InvalidInput(f"{request.url.scheme}://{request.url.netloc.decode()} is not the gateway that is paid", field="url")
        key = self._key(request, body)
        purchase = self._resume(key)
        if purchase is None:
            response: httpx.Response = yield Send(with_body(request, body))
            yield from _not_elsewhere(response)
            wanted = response.headers.get_list(REQUIRED_HEADER)
            if response.status_code != 402 or not wanted:
                return response
            yield Read(response)
            if len(wanted) > 1:
                raise PaymentMalformed("PAYMENT-REQUIRED stands more than once", field=REQUIRED_HEADER)
            purchase = yield from self._buy(wanted[0], body)
        try:
            return (yield from self._deliver(request, key, purchase))
        except PaymentRefused as refused:
            if refused.check in _STANDS:
                self._leave(key, purchase)
            raise
        except (PaymentConflict, PaymentMalformed):
            raise
        except BaseException:
            self._leave(key, purchase)
            raise

    def _buy(self, header: str, body: bytes) -> Generator[Step, Any, Purchase]:
        chosen = choose(read_required(header), self.rules, self.budget)
        asset = self.rules.asset_of(chosen.offer)
        assert asset is not None
        nonce = secrets.token_bytes(32)
        key = self.wallet.key_of(chosen.offer, nonce)
        yield Do(lambda: self.budget.reserve(key.id, asset.scaled(chosen.offer.amount)))
        signed = self.wallet.sign(chosen.offer, chosen.entry, nonce, f"placet_{secrets.token_hex(16)}", now=int(self._clock()))
        return Purchase(signed, body, asset)

    def _deliver(self, request: httpx.Request, key: bytes, purchase: Purchase) -> Steps:
        until = time.monotonic() + self._patience_s
        for again in range(self._tries):
            purchase.tries += 1
            failed: Exception | httpx.Response
            wait = min(0.25 * 2**again, 8.0)
            try:
                response: httpx.Response = yield Send(with_body(request, purchase.body, {SIGNATURE_HEADER: purchase.signed.header}))
                yield from _not_elsewhere(response)
                if response.is_success and is_stream(response):
                    yield from self._note(purchase, response)
                    return watched(response, _Tail(self, key, purchase), **{PURCHASE: purchase})
                content: bytes = yield Read(response)
            except httpx.TransportError as error:
                failed = error
            else:
                code, text = problem_of(content)
                if response.is_success:
                    yield from self._note(purchase, response)
                    return plain(response, content, **{PURCHASE: purchase})
                if response.status_code == 402:
                    raise _refused(response, text, purchase)
                if code == PaymentConflict.code:
                    raise PaymentConflict(text, paymentId=hex0x(purchase.id))
                if code == PaymentMalformed.code:
                    raise PaymentMalformed(text, paymentId=hex0x(purchase.id))
                failed = plain(response, content, **{PURCHASE: purchase})
                busy = response.status_code == 429 or response.status_code >= 500
                if not busy or not _RETRYABLE.get(code, True):
                    break
                wait = max(wait, _retry_after(response))
            if again + 1 == self._tries or time.monotonic() + wait > until:
                break
            yield Sleep(wait)
        if isinstance(failed, Exception):
            raise failed
        if problem_of(failed.content)[0] == PaymentPending.code:
            raise PaymentPending(
                "it was paid, and there is no answer yet; send the same request again, it goes on with the same payment",
                paymentId=hex0x(purchase.id),
            )
        if failed.status_code != 410:  # 410: refunded, so there is nothing to go on with
            self._leave(key, purchase)
        return failed

    def _note(self, purchase: Purchase, response: httpx.Response) -> Generator[Step, Any, None]:
        purchase.response = _payment_response(response.headers.get(RESPONSE_HEADER))
        said = purchase.response
        if self._trusts and said is not None and said.get("success") is True and str(said.get("amount", "")).isdecimal():
            yield Do(lambda: self.charged(purchase, int(said["amount"])))

    def charged(self, purchase: Purchase, amount: int) -> None:
        """A purchase cost so many atomic units: of `exact` all, of `upto` what was used."""
        self.budget.charged(purchase.id, purchase.scale.scaled(min(amount, purchase.signed.maximum)))

    # --- purchases without an answer yet

    def _key(self, request: httpx.Request, body: bytes) -> bytes:
        given = request.extensions.get(PURCHASE_KEY)
        digest = hashlib.sha256()
        for part in (
            request.method.encode(),
            str(request.url).encode(),
            request.headers.get("authorization", "").encode(),
            given if isinstance(given, bytes) else body,
        ):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()

    def _resume(self, key: bytes) -> Purchase | None:
        with self._lock:
            now = self._clock()
            found = [item for item in self._open.pop(key, []) if item.signed.valid_before + _FORGOTTEN_S > now]
            if not found:
                return None
            purchase = found.pop(0)
            if found:
                self._open[key] = found
            return purchase

    def _leave(self, key: bytes, purchase: Purchase) -> None:
        with self._lock:
            self._open.setdefault(key, []).append(purchase)
            while len(self._open) > _MAX_OPEN:
                del self._open[next(iter(self._open))]


class _Tail(Watch):
    """Watches a paid stream: one that breaks off leaves its purchase open, so that the same request gets the answer it paid for."""

    def __init__(self, payer: Payer, key: bytes, purchase: Purchase) -> None:
        self._payer, self._key, self._purchase = payer, key, purchase

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""

    def broken(self, error: BaseException) -> None:
        if isinstance(error, httpx.TransportError):
            self._payer._leave(self._key, self._purchase)


class PayingTransport(Transport):
    """For `httpx.Client(transport=…)`."""

    def __init__(self, payer: Payer, inner: httpx.BaseTransport | None = None) -> None:
        super().__init__(payer.steps, inner)


class AsyncPayingTransport(AsyncTransport):
    """For `httpx.AsyncClient(transport=…)`."""

    def __init__(self, payer: Payer, inner: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(payer.steps, inner)


def gateway_url(text: str) -> httpx.URL:
    """A gateway's URL without path of a surface. Raises InvalidInput."""
    try:
        url = httpx.URL(text.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput("gateway: a URL wanted, for instance https://gateway.example", field="gateway")
    return url


def _not_elsewhere(response: httpx.Response) -> Generator[Step, Any, None]:
    if 300 <= response.status_code < 400:
        yield Close(response)
        raise Unavailable(f"the gateway answers {response.status_code} and sends elsewhere; nobody else is paid or asked")


def is_stream(response: httpx.Response) -> bool:
    return bool(response.headers.get("content-type", "").lower().startswith("text/event-stream"))


def problem_of(content: bytes) -> tuple[str, str]:
    """Code and text of an error, in any surface's form."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return "", ""
    if not isinstance(document, dict):
        return "", ""
    error = document.get("error")
    if isinstance(error, str):
        code, colon, text = error.partition(": ")
        return (code, text) if colon else ("", error)
    inner = error if isinstance(error, dict) else document
    said = inner.get("message", inner.get("detail", ""))
    return str(inner.get("code", "")), said if isinstance(said, str) else ""


def _refused(response: httpx.Response, text: str, purchase: Purchase) -> PaymentRefused:
    check = ""
    with suppress(binascii.Error, ValueError):  # it names no check that can be read; the text stands
        document = orjson.loads(base64.b64decode(response.headers.get(REQUIRED_HEADER, ""), validate=True))
        if isinstance(document, dict) and isinstance(document.get("error"), str):
            check = document["error"][:64]
    said = _payment_response(response.headers.get(RESPONSE_HEADER))
    if not check and said is not None:
        check = "settlement_failed"
    text = text[:500] or "the gateway did not take the payment, and does not say why"
    return PaymentRefused(text, check=check, paymentId=hex0x(purchase.id))


def _payment_response(header: str | None) -> dict[str, Any] | None:
    try:
        document = orjson.loads(base64.b64decode(header or "", validate=True))
    except (binascii.Error, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return min(float(text), 60.0) if text.isascii() and text.isdecimal() and len(text) < 6 else 0.0
