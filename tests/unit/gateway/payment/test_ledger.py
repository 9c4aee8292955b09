"""The ledger over two replicas of the gateway, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from placet.core.errors import NotFound, PaymentConflict, PaymentRefused
from placet.core.payment.payload import parse_header
from placet.core.payment.verify import VerifiedPayment
from placet.core.types import Address, Hash32, hex0x
from placet.gateway.payment.ledger import MAX_ANSWER_BYTES, Ledger
from placet.gateway.payment.records import (
    Answer,
    Answered,
    Exposure,
    InProgress,
    Outcome,
    PaidRequest,
    Payment,
    Reserved,
    Unanswered,
    request_hash,
)
from placet.gateway.payment.states import BEFORE, OPEN, IllegalMove, State
from tests.support.databases import NewEngine, database, postgres
from tests.support.payment import EXACT, EXACT_PERMIT2, NOW, TIMEOUT_S, UPTO, Payer, an_offer, edited, header_of

__all__ = ["database", "postgres"]

GATEWAY = "placet.gateway.migrations"
PAYER, STRANGER = Payer(), Payer(b"\x22" * 32)
REQUEST = PaidRequest(request_hash("POST", "/v1/chat/completions", b"{}"), "openai")
OTHER_REQUEST = PaidRequest(request_hash("POST", "/v1/chat/completions", b"{ }"), "openai")
PLENTY = Exposure(limit=10**9, max_open=1000)
TX, TX2 = Hash32(b"\x01" * 32), Hash32(b"\x02" * 32)
LONGEST_S = 300
ANSWER = Answer(Hash32(b"\x0a" * 32), Hash32(b"\x0b" * 32), b'{"ok":true}')


@dataclass
class Replicas:
    """Two gateways over one database."""

    one: Ledger
    two: Ledger
    open: Callable[[str], Awaitable[Ledger]]


@pytest.fixture
async def replicas(database: NewEngine) -> Replicas:
    async def open_ledger(instance: str) -> Ledger:
        return Ledger(await database(GATEWAY), instance, longest_s=LONGEST_S)

    return Replicas(await open_ledger("one"), await open_ledger("two"), open_ledger)


@pytest.fixture
def ledger(replicas: Replicas) -> Ledger:
    return replicas.one


async def reserve(
    ledger: Ledger, payment: VerifiedPayment, request: PaidRequest = REQUEST, exposure: Exposure = PLENTY, now: int = NOW
) -> Outcome:
    return await ledger.reserve(payment, request, exposure, now=now)


async def refusal(ledger: Ledger, payment: VerifiedPayment, exposure: Exposure = PLENTY, request: PaidRequest = REQUEST) -> str:
    with pytest.raises(PaymentRefused) as caught:
        await reserve(ledger, payment, request, exposure)
    return caught.value.check


# --- one payment, one run


async def test_of_32_concurrent_copies_over_two_replicas_one_is_reserved(replicas: Replicas) -> None:
    payment = PAYER.pays(EXACT)
    outcomes = await asyncio.gather(*(reserve(replicas.one if at % 2 else replicas.two, payment) for at in range(32)))
    assert [type(outcome) for outcome in outcomes].count(Reserved) == 1
    assert [type(outcome) for outcome in outcomes].count(InProgress) == 31
    assert len({outcome.payment.id for outcome in outcomes}) == 1


async def test_of_12_distinct_payments_over_a_balance_for_one_one_is_reserved(replicas: Replicas) -> None:
    payments = [PAYER.pays(EXACT, nonce=nonce) for nonce in range(12)]
    exposure = Exposure(limit=10**9, max_open=1000, balance=1999, balance_at=NOW)
    tries = (reserve(replicas.one if at % 2 else replicas.two, item, exposure=exposure) for at, item in enumerate(payments))
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(outcome, Reserved) for outcome in outcomes) == 1
    assert [outcome.check for outcome in outcomes if isinstance(outcome, PaymentRefused)] == ["insufficient_funds"] * 11


async def test_concurrent_payments_under_one_identifier_are_one_purchase(replicas: Replicas) -> None:
    payments = [_named(nonce) for nonce in range(12)]
    outcomes = await asyncio.gather(*(reserve(replicas.one if at % 2 else replicas.two, item) for at, item in enumerate(payments)))
    assert [type(outcome) for outcome in outcomes].count(Reserved) == 1
    assert len({outcome.payment.id for outcome in outcomes}) == 1


def _named(nonce: int, name: str = "purchase-0123456789", payer: Payer = PAYER) -> VerifiedPayment:
    return payer.pays(EXACT, nonce=nonce, extensions={"payment-identifier": {"info": {"required": False, "id": name}}})


async def test_a_sequential_replay_gets_what_was_answered_and_never_a_second_run(replicas: Replicas) -> None:
    for offer in (EXACT, EXACT_PERMIT2, UPTO):
        payment = PAYER.pays(offer)
        if offer is UPTO:  # the same nonce of Permit2 as the payment before, though another scheme
            with pytest.raises(PaymentConflict):
                await reserve(replicas.two, payment, OTHER_REQUEST)
            payment = PAYER.pays(offer, nonce=8)
        assert isinstance(await reserve(replicas.one, payment), Reserved)
        assert isinstance(await reserve(replicas.two, payment), InProgress)
        await replicas.one.due(payment.key.id, payment.maximum, now=NOW, answer=ANSWER)
        await replicas.one.settled(payment.key.id, TX, now=NOW)
        again = await reserve(replicas.two, payment)
        assert isinstance(again, Answered)
        assert again.answer == ANSWER
        assert again.payment.response().document() == {
            "success": True,
            "payer": hex0x(PAYER.address),
            "transaction": hex0x(TX),
            "network": "eip155:31337",
            "amount": str(payment.maximum),
            "extra": {"paymentId": hex0x(payment.key.id)},
        }


async def test_the_same_payment_for_another_request_is_a_conflict_at_every_stage(ledger: Ledger) -> None:
    payment = PAYER.pays(EXACT)
    await reserve(ledger, payment)
    steps: list[Callable[[], Awaitable[Payment]]] = [
        lambda: ledger.serve(payment.key.id, now=NOW),
        lambda: ledger.due(payment.key.id, 1000, now=NOW, answer=ANSWER),
        lambda: ledger.settled(payment.key.id, TX, now=NOW),
    ]
    for step in steps:
        for other in (OTHER_REQUEST, PaidRequest(REQUEST.hash, "openai", "another-tenant")):
            with pytest.raises(PaymentConflict):
                await reserve(ledger, payment, other)
            with pytest.raises(PaymentConflict):
                await ledger.find(payment.payload, other, now=NOW)
        await step()


async def test_an_identifier_stands_for_its_purchase_whatever_payment_comes_with_it(ledger: Ledger) -> None:
    first, second = _named(1), _named(2)
    await reserve(ledger, first)
    await ledger.due(first.key.id, 1000, now=NOW, answer=ANSWER)
    again = await reserve(ledger, second)
    assert isinstance(again, Answered)
    assert again.payment.id == first.key.id
    with pytest.raises(NotFound):
        await ledger.get(second.key.id)
    with pytest.raises(PaymentConflict):
        await reserve(ledger, _named(3), OTHER_REQUEST)


async def test_an_identifier_is_its_payers(ledger: Ledger) -> None:
    assert isinstance(await reserve(ledger, _named(1)), Reserved)
    assert isinstance(await reserve(ledger, _named(1, payer=STRANGER), OTHER_REQUEST), Reserved)


async def test_a_payment_that_was_taken_is_found_when_it_is_too_old_to_be_taken(ledger: Ledger) -> None:
    payment = PAYER.pays(EXACT)
    assert await ledger.find(payment.payload, REQUEST, now=NOW) is None
    await reserve(ledger, payment)
    await ledger.due(payment.key.id, 1000, now=NOW, answer=ANSWER)
    later = await ledger.find(payment.payload, REQUEST, now=NOW + 10 * TIMEOUT_S)
    assert isinstance(later, Answered)


async def test_only_who_has_the_signature_finds_a_payment(ledger: Ledger) -> None:
    payment = PAYER.pays(EXACT)
    await reserve(ledger, payment)
    await ledger.due(payment.key.id, 1000, now=NOW, answer=ANSWER)
    document = PAYER.signs(EXACT)
    for path, value in (
        ("payload/signature", "0x" + "00" * 65),
        ("payload/authorization/validBefore", str(NOW + 10**6)),
        ("accepted/network", "eip155:1"),
        ("accepted/asset", "nowhere"),
    ):
        assert await ledger.find(parse_header(header_of(edited(document, path, value))), REQUEST, now=NOW) is None


async def test_what_was_sent_is_kept_to_be_settled_after_a_crash(replicas: Replicas) -> None:
    payment = PAYER.pays(UPTO)
    reserved = await reserve(replicas.one, payment, PaidRequest(REQUEST.hash, "v2", "tenant-1"))
    kept = await replicas.two.get(payment.key.id)
    assert kept == reserved.payment
    assert (kept.offer, kept.payload(), kept.maximum, kept.valid_before) == (UPTO, payment.payload, 5000, NOW + TIMEOUT_S)
    assert kept.verified() == payment
    assert (kept.request.surface, kept.request.tenant, kept.state, kept.charged) == ("v2", "tenant-1", State.RESERVED, None)


def test_requests_differ_in_every_byte() -> None:
    hashes = {
        request_hash(*parts)
        for parts in (("POST", "/a", b""), ("GET", "/a", b""), ("POST", "/", b"a"), ("POST", "/a?x", b""), ("POST", "/a", b"\0"))
    }
    assert len(hashes) == 5


# --- exposure


async def test_open_payments_of_a_payer_stay_within_its_credit(ledger: Ledger) -> None:
    exposure = Exposure(limit=2500, max_open=100)
    first, second, third = (PAYER.pays(EXACT, nonce=nonce) for nonce in range(3))
    await reserve(ledger, first, exposure=exposure)
    await reserve(ledger, second, exposure=exposure)
    assert await refusal(ledger, third, exposure) == "credit_limit"
    assert isinstance(await reserve(ledger, STRANGER.pays(EXACT), exposure=exposure), Reserved), "others are not held by it"
    await ledger.due(first.key.id, 1000, now=NOW, answer=ANSWER)
    for step in (ledger.broadcast(first.key.id, TX, now=NOW), ledger.unknown(first.key.id, now=NOW)):
        await step
        assert await refusal(ledger, third, exposure) == "credit_limit"
    await ledger.settled(first.key.id, TX, now=NOW)
    assert isinstance(await reserve(ledger, third, exposure=exposure), Reserved)


async def test_what_is_charged_counts_instead_of_the_maximum_once_it_is_decided(ledger: Ledger) -> None:
    exposure = Exposure(limit=7000, max_open=100)
    await reserve(ledger, PAYER.pays(UPTO, nonce=1), exposure=exposure)
    second = PAYER.pays(UPTO, nonce=2)
    assert await refusal(ledger, second, exposure) == "credit_limit"
    await ledger.due(PAYER.pays(UPTO, nonce=1).key.id, 1234, now=NOW)
    assert isinstance(await reserve(ledger, second, exposure=exposure), Reserved)


async def test_a_payer_has_so_many_payments_open_at_once(ledger: Ledger) -> None:
    exposure = Exposure(limit=10**9, max_open=2)
    for nonce in range(2):
        await reserve(ledger, PAYER.pays(EXACT, nonce=nonce), exposure=exposure)
    assert await refusal(ledger, PAYER.pays(EXACT, nonce=2), exposure) == "open_payments"
    await ledger.release(PAYER.pays(EXACT, nonce=0).key.id)
    assert isinstance(await reserve(ledger, PAYER.pays(EXACT, nonce=2), exposure=exposure), Reserved)


async def test_what_was_settled_since_the_balance_was_read_counts_as_gone(ledger: Ledger) -> None:
    """Otherwise a balance read before the transfer would pay a second time."""
    first, second = PAYER.pays(EXACT, nonce=1), PAYER.pays(EXACT, nonce=2)
    await reserve(ledger, first)
    await ledger.due(first.key.id, 1000, now=NOW, answer=ANSWER)
    await ledger.settled(first.key.id, TX, now=NOW + 2)
    assert await refusal(ledger, second, Exposure(10**9, 10, balance=1500, balance_at=NOW)) == "insufficient_funds"
    assert isinstance(await reserve(ledger, second, exposure=Exposure(10**9, 10, balance=1500, balance_at=NOW + 3)), Reserved)


async def test_amounts_beyond_a_databases_integers_are_added_exactly(ledger: Ledger) -> None:
    large = an_offer(amount=2**200)
    exposure = Exposure(limit=2**201, max_open=10)
    for nonce in (1, 2):
        await reserve(ledger, PAYER.pays(large, nonce=nonce), exposure=exposure)
    assert await refusal(ledger, PAYER.pays(an_offer(amount=1), nonce=3), exposure) == "credit_limit"


async def test_assets_are_added_up_apart(ledger: Ledger) -> None:
    exposure = Exposure(limit=1000, max_open=10)
    await reserve(ledger, PAYER.pays(EXACT, nonce=1), exposure=exposure)
    another = an_offer(asset=Address(b"\x01" * 20))
    assert isinstance(await reserve(ledger, PAYER.pays(another, nonce=1), exposure=exposure), Reserved)


async def test_who_was_served_and_did_not_pay_is_served_no_more_until_it_did(ledger: Ledger) -> None:
    first, second = PAYER.pays(EXACT, nonce=1), PAYER.pays(EXACT, nonce=2)
    await reserve(ledger, first)
    await ledger.serve(first.key.id, now=NOW)
    await ledger.due(first.key.id, 1000, now=NOW)
    await ledger.failed(first.key.id, "insufficient_balance", now=NOW)
    assert await refusal(ledger, first) == "failed"
    assert await refusal(ledger, second) == "unpaid"
    await ledger.settled(first.key.id, TX, now=NOW)
    assert isinstance(await reserve(ledger, second), Reserved)


async def test_a_payment_that_failed_before_anything_was_served_is_no_debt(ledger: Ledger) -> None:
    first, second = PAYER.pays(EXACT, nonce=1), PAYER.pays(EXACT, nonce=2)
    await reserve(ledger, first)
    await ledger.due(first.key.id, 1000, now=NOW)
    await ledger.failed(first.key.id, "insufficient_balance", now=NOW)
    assert isinstance(await reserve(ledger, second), Reserved)


# --- moves

Move = Callable[[Ledger, Hash32], Awaitable[Any]]
MOVES: dict[State, Move] = {
    State.SERVING: lambda ledger, payment_id: ledger.serve(payment_id, now=NOW + 1),
    State.DUE: lambda ledger, payment_id: ledger.due(payment_id, 1000, now=NOW + 2),
    State.BROADCAST: lambda ledger, payment_id: ledger.broadcast(payment_id, TX, now=NOW + 3),
    State.UNKNOWN: lambda ledger, payment_id: ledger.unknown(payment_id, now=NOW + 4),
    State.SETTLED: lambda ledger, payment_id: ledger.settled(payment_id, TX, now=NOW + 5),
    State.FAILED: lambda ledger, payment_id: ledger.failed(payment_id, "reverted", now=NOW + 6),
}
WAYS: dict[State, list[State]] = {
    State.RESERVED: [],
    State.SERVING: [State.SERVING],
    State.DUE: [State.SERVING, State.DUE],
    State.BROADCAST: [State.SERVING, State.DUE, State.BROADCAST],
    State.UNKNOWN: [State.SERVING, State.DUE, State.UNKNOWN],
    State.SETTLED: [State.SERVING, State.DUE, State.BROADCAST, State.SETTLED],
    State.FAILED: [State.SERVING, State.DUE, State.BROADCAST, State.FAILED],
}


async def _at(ledger: Ledger, state: State, nonce: int = 7, payer: Payer = PAYER) -> Payment:
    payment = payer.pays(EXACT, nonce=nonce)
    await reserve(ledger, payment)
    for step in WAYS[state]:
        await MOVES[step](ledger, payment.key.id)
    found = await ledger.get(payment.key.id)
    assert found.state is state
    return found


LATE = {State.DUE: (State.BROADCAST, State.UNKNOWN, State.SETTLED, State.FAILED), State.BROADCAST: (State.SETTLED, State.FAILED)}
"""A move that is told a second time after the next one changed nothing: the same charge, the same transaction."""


@pytest.mark.parametrize("at", State)
async def test_every_move_is_made_where_it_may_and_refused_elsewhere(ledger: Ledger, at: State) -> None:
    for count, (to, move) in enumerate(MOVES.items()):
        payment = await _at(ledger, at, nonce=count, payer=Payer(bytes([count + 1]) * 32))
        if at in BEFORE[to]:
            await move(ledger, payment.id)
            assert (await ledger.get(payment.id)).state is to
        elif at is to or at in LATE.get(to, ()) or (to is State.SERVING and at not in (State.FAILED,)):
            await move(ledger, payment.id)
            assert await ledger.get(payment.id) == payment, "told again, it changes nothing"
        else:
            with pytest.raises(IllegalMove):
                await move(ledger, payment.id)
            assert await ledger.get(payment.id) == payment


async def test_moves_of_what_is_not_there_are_not_found(ledger: Ledger) -> None:
    for move in MOVES.values():
        with pytest.raises(NotFound):
            await move(ledger, Hash32(b"\x09" * 32))
    with pytest.raises(NotFound):
        await ledger.answer(Hash32(b"\x09" * 32), ANSWER, now=NOW)


async def test_a_charge_is_what_its_scheme_allows(ledger: Ledger) -> None:
    exact, upto = PAYER.pays(EXACT), PAYER.pays(UPTO)
    await reserve(ledger, exact)
    await reserve(ledger, upto)
    for payment, charges in ((exact, (0, 999, 1001, -1)), (upto, (5001, -1))):
        for charged in charges:
            with pytest.raises(ValueError):
                await ledger.due(payment.key.id, charged, now=NOW)
        assert (await ledger.get(payment.key.id)).state is State.RESERVED
    assert (await ledger.due(upto.key.id, 1234, now=NOW)).charged == 1234
    with pytest.raises(IllegalMove):
        await ledger.due(upto.key.id, 1235, now=NOW)


async def test_a_charge_of_nothing_is_settled_without_a_transaction(ledger: Ledger) -> None:
    payment = PAYER.pays(UPTO)
    await reserve(ledger, payment)
    ended = await ledger.due(payment.key.id, 0, now=NOW, answer=ANSWER)
    assert (ended.state, ended.tx_hash, ended.charged) == (State.SETTLED, None, 0)
    assert ended.response().document()["amount"] == "0"


async def test_a_transaction_may_be_replaced_and_the_one_that_settled_stands(ledger: Ledger) -> None:
    payment = await _at(ledger, State.BROADCAST)
    assert (await ledger.broadcast(payment.id, TX2, now=NOW)).tx_hash == TX2
    assert (await ledger.settled(payment.id, TX, now=NOW)).tx_hash == TX
    for late in (ledger.broadcast(payment.id, TX2, now=NOW), ledger.settled(payment.id, TX2, now=NOW)):
        with pytest.raises(IllegalMove):
            await late
    assert (await ledger.get(payment.id)).tx_hash == TX


async def test_a_charge_may_be_due_and_settled_while_the_answer_is_still_made(ledger: Ledger) -> None:
    payment = await _at(ledger, State.SETTLED)
    assert isinstance(await reserve(ledger, PAYER.pays(EXACT)), InProgress), "it is settled, and still being answered"
    await ledger.answer(payment.id, ANSWER, now=NOW)
    again = await reserve(ledger, PAYER.pays(EXACT))
    assert isinstance(again, Answered)


async def test_serving_after_the_transfer_was_waited_for_is_remembered(ledger: Ledger) -> None:
    payment = PAYER.pays(EXACT)
    await reserve(ledger, payment)
    await ledger.due(payment.key.id, 1000, now=NOW)
    await ledger.settled(payment.key.id, TX, now=NOW)
    served = await ledger.serve(payment.key.id, now=NOW + 9)
    assert (served.state, served.served_at) == (State.SETTLED, NOW + 9)


async def test_the_first_answer_stands(ledger: Ledger) -> None:
    payment = await _at(ledger, State.SERVING)
    await ledger.answer(payment.id, ANSWER, now=NOW)
    again = await ledger.answer(payment.id, Answer(Hash32(b"\x0c" * 32), None, b"other"), now=NOW)
    assert again.answer == ANSWER


async def test_of_a_large_answer_digest_and_receipt_are_kept(ledger: Ledger) -> None:
    payment = await _at(ledger, State.SERVING)
    large = Answer(ANSWER.sha256, ANSWER.receipt_id, bytes(MAX_ANSWER_BYTES + 1))
    kept = (await ledger.answer(payment.id, large, now=NOW)).answer
    assert kept == Answer(ANSWER.sha256, ANSWER.receipt_id, None)


async def test_nothing_is_answered_that_is_only_reserved(ledger: Ledger) -> None:
    payment = await _at(ledger, State.RESERVED)
    with pytest.raises(IllegalMove):
        await ledger.answer(payment.id, ANSWER, now=NOW)


@pytest.mark.parametrize("at", [state for state in State if state is not State.RESERVED])
async def test_nothing_is_released_once_anything_was_sent_or_charged(ledger: Ledger, at: State) -> None:
    payment = await _at(ledger, at)
    with pytest.raises(IllegalMove):
        await ledger.release(payment.id)
    assert await ledger.get(payment.id) == payment


async def test_a_released_payment_may_be_used_again_and_another_replica_releases_nothing(replicas: Replicas) -> None:
    payment = PAYER.pays(EXACT)
    await reserve(replicas.one, payment)
    with pytest.raises(IllegalMove):
        await replicas.two.release(payment.key.id)
    await replicas.one.release(payment.key.id)
    assert isinstance(await reserve(replicas.two, payment, OTHER_REQUEST), Reserved)


async def test_a_reservation_is_never_released_by_time(ledger: Ledger) -> None:
    payment = PAYER.pays(EXACT)
    await reserve(ledger, payment)
    assert isinstance(await reserve(ledger, payment, now=NOW + 10**6), InProgress)


async def test_what_is_not_settled_is_said_to_be_pending_and_what_failed_to_have_failed(ledger: Ledger) -> None:
    for count, at in enumerate(sorted(OPEN - {State.RESERVED})):
        document = (await _at(ledger, at, nonce=count)).response().document()
        assert (document["success"], document["errorReason"]) == (False, "settlement_pending")
        assert "amount" not in document
    failed = (await _at(ledger, State.FAILED, nonce=99)).response()
    assert (failed.success, failed.error_reason) == (False, "reverted")


# --- after a crash


async def test_a_restarted_replica_is_told_at_once_what_died_with_it_and_not_what_others_do(replicas: Replicas) -> None:
    begun = [await _at(replicas.one, state, nonce=count) for count, state in enumerate(sorted(OPEN))]
    for count, state in enumerate((State.RESERVED, State.SERVING, State.DUE)):
        await _at(replicas.two, state, nonce=count, payer=STRANGER)
    restarted = await replicas.open("one")
    assert {item.id for item in await restarted.sweep(now=NOW + 5)} == {item.id for item in begun}
    assert await replicas.one.sweep(now=NOW + 5) == []
    reserved = next(item for item in begun if item.state is State.RESERVED)
    await restarted.release(reserved.id)
    assert isinstance(await reserve(replicas.two, reserved.verified()), Reserved)


async def test_what_is_not_settled_is_taken_up_by_any_replica_and_soon(replicas: Replicas) -> None:
    """Its authorization ends: it cannot wait until a replica that is gone comes back."""
    for count, state in enumerate(State):
        await _at(replicas.one, state, nonce=count, payer=Payer(bytes([count + 1]) * 32))
    assert await replicas.two.sweep(now=NOW + 10) == []
    for ledger in (replicas.one, replicas.two):
        swept = await ledger.sweep(now=NOW + 15)
        assert {item.state for item in swept} == {State.DUE, State.BROADCAST, State.UNKNOWN}
    assert len(await replicas.two.sweep(now=NOW + 15, limit=2)) == 2


async def test_what_is_served_for_longer_than_any_answer_takes_is_taken_up_by_another(replicas: Replicas) -> None:
    serving = await _at(replicas.one, State.SERVING)
    assert await replicas.two.sweep(now=NOW + LONGEST_S) == []
    assert [item.id for item in await replicas.two.sweep(now=NOW + LONGEST_S + 2)] == [serving.id]
    assert await replicas.one.sweep(now=NOW + LONGEST_S + 2) == [], "it knows that it still serves it"


async def test_what_was_lost_while_it_was_served_is_owed_until_it_is_answered(replicas: Replicas) -> None:
    payment = PAYER.pays(EXACT)
    settled = await _at(replicas.one, State.SETTLED)
    restarted = await replicas.open("one")
    lost = await reserve(restarted, payment)
    assert isinstance(lost, Unanswered)
    assert isinstance(await reserve(replicas.two, payment), InProgress), "for all that another replica knows"
    assert isinstance(await reserve(replicas.two, payment, now=NOW + LONGEST_S + 1), Unanswered)
    assert [item.id for item in await replicas.two.owed(now=NOW + LONGEST_S + 1)] == [settled.id]
    refunded = Answer(Hash32(b"\x0d" * 32), None, b'{"error":{"code":"refunded"}}', status=500)
    await replicas.two.answer(settled.id, refunded, now=NOW)
    assert await replicas.two.owed(now=NOW + LONGEST_S + 1) == []
    again = await reserve(replicas.two, payment, now=NOW + LONGEST_S + 1)
    assert isinstance(again, Answered)
    assert again.answer.status == 500


async def test_pruning_forgets_what_ended_and_keeps_debts_and_what_is_open(ledger: Ledger) -> None:
    kept = [await _at(ledger, state, nonce=count) for count, state in enumerate(sorted(OPEN - {State.RESERVED}))]
    kept.append(await _at(ledger, State.SETTLED, nonce=50))  # never answered: owed
    kept.append(await _at(ledger, State.FAILED, nonce=51))  # served: a debt
    gone = [await _at(ledger, State.RESERVED, nonce=60, payer=STRANGER), await _at(ledger, State.SETTLED, nonce=61, payer=STRANGER)]
    await ledger.answer(gone[1].id, ANSWER, now=NOW)
    unserved = STRANGER.pays(EXACT, nonce=62)
    await reserve(ledger, unserved)
    await ledger.due(unserved.key.id, 1000, now=NOW)
    gone.append(await ledger.failed(unserved.key.id, "reverted", now=NOW))
    free = STRANGER.pays(UPTO, nonce=63)
    await reserve(ledger, free)
    gone.append(await ledger.due(free.key.id, 0, now=NOW))
    assert await ledger.prune(now=NOW + TIMEOUT_S + 600, horizon_s=600) == 0
    assert await ledger.prune(now=NOW + TIMEOUT_S + 601, horizon_s=600) == len(gone)
    for item in kept:
        await ledger.get(item.id)
    for item in gone:
        with pytest.raises(NotFound):
            await ledger.get(item.id)
