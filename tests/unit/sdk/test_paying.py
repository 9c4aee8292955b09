"""A purchase is paid once, within rules and budget, whatever the gateway does; what is sent is read by the gate's own checks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest

from placet.core.errors import InvalidInput, PaymentConflict, PaymentMalformed, PaymentPending, PaymentRefused, Unavailable
from placet.core.payment.offers import Scheme
from placet.core.types import Address, hex0x
from placet.sdk.budget import Budget, BudgetExceeded
from placet.sdk.paying import AsyncPayingTransport, Payer, PayingTransport
from placet.sdk.wallet import Asset, PaymentNotAllowed, Rules, Wallet
from tests.support.payment import EXACT, EXACT_PERMIT2, PAY_TO, TOKEN, UPTO
from tests.support.payment import Payer as Stranger
from tests.unit.sdk.fake import ASSET, CHAT, METERED, SECRET, URL, WORDS, Gateway, problem

BODY = {"model": "alice/chat", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(autouse=True)
def waited_for(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("placet.sdk.steps.time.sleep", waited.append)
    return waited


def payer(*assets: Asset, budget: Budget | None = None, **more: Any) -> Payer:
    rules = more.pop("rules", Rules(assets or (ASSET,)))
    return Payer(URL, Wallet(SECRET), budget or Budget(per_payment="1"), rules, **more)


def client(gateway: Gateway | Callable[[httpx.Request], httpx.Response], paying: Payer | None = None) -> httpx.Client:
    return httpx.Client(base_url=URL, transport=PayingTransport(paying or payer(), httpx.MockTransport(gateway)))


def text_of(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


def test_the_same_bytes_go_again_with_a_payment_that_the_gate_takes() -> None:
    gateway = Gateway()
    response = client(gateway).post(CHAT, json=BODY)
    assert (response.status_code, text_of(response)) == (200, "".join(WORDS))
    assert len(gateway.bodies) == 2
    assert gateway.bodies[0] == gateway.bodies[1]
    (payment,) = gateway.payments
    assert (payment.scheme, payment.maximum, payment.payer) == (Scheme.EXACT, 1000, Stranger(SECRET).address)
    assert payment.payload.identifier is not None
    assert SIGNATURE not in gateway.seen[0].headers
    purchase = response.extensions["placet_purchase"]
    assert purchase.id == payment.key.id
    assert purchase.response["amount"] == "1000"


SIGNATURE = "payment-signature"


@pytest.mark.parametrize(("offer", "scheme"), [(EXACT, Scheme.EXACT), (EXACT_PERMIT2, Scheme.EXACT), (UPTO, Scheme.UPTO)])
def test_every_kind_of_offer_is_signed_as_the_gate_reads_it(offer: Any, scheme: Scheme) -> None:
    gateway = Gateway(offers=(offer,))
    assert client(gateway, payer(METERED)).post(CHAT, json=BODY).status_code == 200
    assert gateway.payments[0].scheme is scheme
    assert gateway.payments[0].offer == offer


def test_metered_is_taken_where_permit2_is_allowed_and_else_the_fixed_price() -> None:
    for asset, scheme in ((METERED, Scheme.UPTO), (replace(METERED, permit2_allowance=4999), Scheme.EXACT)):
        gateway = Gateway(offers=(EXACT, UPTO))
        client(gateway, payer(asset)).post(CHAT, json=BODY)
        assert gateway.payments[0].scheme is scheme


async def test_asynchronously_it_is_the_same() -> None:
    gateway = Gateway()
    paying = payer()
    transport = AsyncPayingTransport(paying, httpx.MockTransport(gateway))
    async with httpx.AsyncClient(base_url=URL, transport=transport) as http:
        answers = await asyncio.gather(*(http.post(CHAT, json={**BODY, "seed": at}) for at in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        async with http.stream("POST", CHAT, json={**BODY, "stream": True}) as stream:
            raw = b"".join([part async for part in stream.aiter_bytes()])
    assert raw.endswith(b"data: [DONE]\n\n")
    assert len({payment.key for payment in gateway.payments}) == gateway.runs == 9
    assert paying.budget.spent().total == "0.009"


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (Rules(()), "no asset that may be paid with"),
        (Rules((replace(ASSET, network="eip155:1"),)), "no asset"),
        (Rules((replace(ASSET, name="Another"),)), "calls itself"),
        (Rules((ASSET,), pay_to=frozenset({Address(b"\1" * 20)})), "nobody who may be paid"),
        (Rules((ASSET,), max_timeout_s=60), "valid for 120 s"),
    ],
)
def test_what_is_outside_the_rules_is_not_signed(rules: Rules, says: str) -> None:
    gateway = Gateway()
    paying = payer(rules=rules)
    with pytest.raises(PaymentNotAllowed, match=says):
        client(gateway, paying).post(CHAT, json=BODY)
    assert (len(gateway.seen), paying.budget.spent().total) == (1, "0")
    allowed = payer(rules=Rules((replace(ASSET, name="USD Coin", version="2"),), pay_to=frozenset({PAY_TO})))
    assert client(gateway, allowed).post(CHAT, json=BODY).status_code == 200


def test_a_server_that_asks_for_more_than_the_budget_gets_nothing() -> None:
    gateway = Gateway(offers=(replace(EXACT, amount=1001), replace(UPTO, amount=2**255)))
    for name in ("payment", "day", "total"):
        limit = {"total" if name == "total" else f"per_{name}": "0.001"}
        paying = payer(
            METERED if name == "payment" else ASSET,
            budget=Budget(**{"per_payment": None, **limit}),  # type: ignore[arg-type]
        )
        with pytest.raises(BudgetExceeded) as caught:
            client(gateway, paying).post(CHAT, json=BODY)
        assert caught.value.limit == name
        assert paying.budget.spent().total == "0"
    assert not gateway.payments
    assert all(SIGNATURE not in request.headers for request in gateway.seen)


def test_a_budget_is_used_up_and_a_refused_payment_counts() -> None:
    gateway = Gateway()
    paying = payer(budget=Budget(total="0.002"))
    http = client(gateway, paying)
    http.post(CHAT, json=BODY)
    gateway.before = [lambda: gateway.wants_payment("signature")]
    with pytest.raises(PaymentRefused):
        http.post(CHAT, json=BODY)
    with pytest.raises(BudgetExceeded, match=r"of which 0\.002 are spent"):
        http.post(CHAT, json=BODY)
    assert len(gateway.payments) == 2


def test_a_second_402_is_an_error_and_never_a_second_payment() -> None:
    for error in ("offer", "valid_before", "insufficient_funds"):
        gateway = Gateway()
        dearer = (replace(EXACT, amount=900_000),)
        gateway.before = [partial(gateway.wants_payment, error, dearer)]
        paying = payer()
        with pytest.raises(PaymentRefused) as caught:
            client(gateway, paying).post(CHAT, json=BODY)
        assert caught.value.check == error
        assert caught.value.extra["paymentId"] == hex0x(gateway.payments[0].key.id)
        assert (len(gateway.seen), len(gateway.payments), paying.budget.spent().total) == (2, 1, "0.001")


def test_what_time_can_change_is_tried_with_the_same_payment_and_what_it_cannot_with_a_new_one() -> None:
    for check, count in (("insufficient_funds", 1), ("valid_before", 2)):
        gateway = Gateway()
        gateway.before = [partial(gateway.wants_payment, check)]
        http = client(gateway)
        with pytest.raises(PaymentRefused):
            http.post(CHAT, json=BODY)
        assert http.post(CHAT, json=BODY).status_code == 200
        assert len({payment.key for payment in gateway.payments}) == count


def reset() -> Exception:
    return httpx.ReadTimeout("nothing came")


@pytest.mark.parametrize(
    "trouble",
    [
        reset,
        lambda: httpx.ConnectError("refused"),
        lambda: problem(503, "payment_pending", **{"retry-after": "7"}),
        lambda: problem(503, "unavailable"),
        lambda: problem(502, "audit_failed"),
        lambda: httpx.Response(504, text="<html>"),
        lambda: problem(429, "rate_limited", **{"retry-after": "7"}),
        lambda: httpx.Response(200, headers={"content-type": "application/json"}, stream=_broken()),
    ],
)
def test_trouble_after_paying_sends_the_same_payment_again(trouble: Callable[[], Any], waited_for: list[float]) -> None:
    gateway = Gateway(before=[trouble, trouble])
    response = client(gateway).post(CHAT, json=BODY)
    assert (response.status_code, text_of(response)) == (200, "".join(WORDS))
    assert len(gateway.payments) == 3
    assert len({payment.key for payment in gateway.payments}) == 1
    assert len(gateway.identifiers) == 1
    assert len(waited_for) == 2
    if "retry-after" in (getattr(trouble(), "headers", None) or {}):
        assert min(waited_for) >= 7


def _broken() -> Any:
    from tests.unit.sdk.fake import Bytes

    return Bytes([b'{"id": '], breaks=True)


def test_tries_are_bounded_and_the_same_request_goes_on_with_the_same_payment() -> None:
    cases: list[tuple[Callable[[], Any], type[Exception]]] = [
        (partial(problem, 503, "payment_pending"), PaymentPending),
        (reset, httpx.ReadTimeout),
    ]
    for trouble, kind in cases:
        gateway = Gateway(before=[trouble] * 4)
        paying = payer(tries=4)
        http = client(gateway, paying)
        with pytest.raises(kind):
            http.post(CHAT, json=BODY)
        assert len(gateway.payments) == 4
        assert http.post(CHAT, json={**BODY, "seed": 1}).status_code == 200, "another request is another purchase"
        assert http.post(CHAT, json=BODY).status_code == 200
        assert http.post(CHAT, json=BODY).status_code == 200, "an answered one is over: this is a new purchase"
        assert [len({item.key for item in gateway.payments[:at]}) for at in (4, 5, 6, 7)] == [1, 2, 2, 3]
        assert paying.budget.spent().total == "0.003"


def test_patience_ends_before_a_long_wait(waited_for: list[float]) -> None:
    gateway = Gateway(before=[lambda: problem(503, "payment_pending", **{"retry-after": "30"})] * 9)
    with pytest.raises(PaymentPending):
        client(gateway, payer(patience_s=20)).post(CHAT, json=BODY)
    assert waited_for == []


def test_what_no_retry_can_help_is_handed_over() -> None:
    for status, code in ((503, "mode_unavailable"), (400, "invalid_input"), (410, "refunded")):
        gateway = Gateway(before=[partial(problem, status, code)])
        response = client(gateway).post(CHAT, json=BODY)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert len(gateway.payments) == 1


def test_conflicts_and_defects_are_typed() -> None:
    for status, code, kind in ((409, "payment_conflict", PaymentConflict), (400, "payment_malformed", PaymentMalformed)):
        gateway = Gateway(before=[partial(problem, status, code)])
        with pytest.raises(kind):
            client(gateway).post(CHAT, json=BODY)


def test_nobody_but_the_gateway_is_paid_or_followed() -> None:
    elsewhere = {"location": "http://evil.test/v1/chat/completions"}
    gateway = Gateway(before=[lambda: httpx.Response(307, headers=elsewhere)])
    paying = payer()
    http = httpx.Client(base_url=URL, transport=PayingTransport(paying, httpx.MockTransport(gateway)), follow_redirects=True)
    with pytest.raises(Unavailable, match="sends elsewhere"):
        http.post(CHAT, json=BODY)
    assert {request.url.host for request in gateway.seen} == {"gateway.test"}
    for url in ("http://evil.test/v1/chat/completions", "https://gateway.test" + CHAT, "http://gateway.test:8080" + CHAT):
        with pytest.raises(InvalidInput, match="not the gateway"):
            http.post(url, json=BODY)
    with pytest.raises(Unavailable):
        client(lambda request: httpx.Response(302, headers=elsewhere)).post(CHAT, json=BODY)


def test_a_stream_passes_and_one_that_breaks_is_had_again_for_the_same_money() -> None:
    gateway = Gateway(cut=3)
    paying = payer()
    http = client(gateway, paying)
    with pytest.raises(httpx.ReadError), http.stream("POST", CHAT, json={**BODY, "stream": True}) as stream:
        stream.read()
    with http.stream("POST", CHAT, json={**BODY, "stream": True}) as stream:
        raw = stream.read()
    assert raw.endswith(b"data: [DONE]\n\n")
    assert gateway.runs == 1
    assert len({payment.key for payment in gateway.payments}) == 1
    assert paying.budget.spent().total == "0.001"


def test_a_body_that_is_read_once_is_sent_twice() -> None:
    gateway = Gateway()
    raw = httpx.Request("POST", URL, json=BODY).read()
    response = client(gateway).post(CHAT, content=(raw[at : at + 5] for at in range(0, len(raw), 5)))
    assert response.status_code == 200
    assert gateway.bodies == [raw, raw]


def test_what_is_charged_is_believed_of_receipts_and_of_a_gateway_only_when_told_to() -> None:
    for trusted, total in ((False, "0.005"), (True, "0.0004")):
        gateway = Gateway(offers=(UPTO,))
        paying = payer(METERED, trust_gateway=trusted)
        client(gateway, paying).post(CHAT, json=BODY)
        assert paying.budget.spent().total == total


@pytest.mark.parametrize("header", ["", "!", "e30=", "bnVsbA==", "A" * 100_000])
def test_a_402_that_cannot_be_read_pays_nothing(header: str) -> None:
    seen: list[httpx.Request] = []

    def odd(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(402, headers={"PAYMENT-REQUIRED": header})

    with pytest.raises(PaymentMalformed):
        client(odd).post(CHAT, json=BODY)
    assert len(seen) == 1


def test_a_402_without_an_offer_is_the_callers() -> None:
    assert client(lambda request: problem(402, "payment_refused")).post(CHAT, json=BODY).status_code == 402


async def test_a_caller_that_is_cancelled_goes_on_with_its_payment() -> None:
    gateway, started = Gateway(), asyncio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        if SIGNATURE in request.headers and not started.is_set():
            gateway(request)
            started.set()
            await asyncio.sleep(60)
        return gateway(request)

    paying = payer()
    async with httpx.AsyncClient(base_url=URL, transport=AsyncPayingTransport(paying, httpx.MockTransport(slow))) as http:
        task = asyncio.create_task(http.post(CHAT, json=BODY))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await http.post(CHAT, json=BODY)).status_code == 200
    assert gateway.runs == 1
    assert len({payment.key for payment in gateway.payments}) == 1


def test_the_payment_is_valid_for_as_long_as_the_offer_says() -> None:
    gateway = Gateway()
    client(gateway).post(CHAT, json=BODY)
    assert abs(gateway.payments[0].valid_before - time.time() - EXACT.max_timeout_s) < 5
    assert gateway.payments[0].key.contract == TOKEN
