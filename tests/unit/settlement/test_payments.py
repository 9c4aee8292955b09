"""What settlement refuses to settle or to refund, whoever asks; what it says of jobs that ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest

from placet.core.errors import InvalidInput, PaymentMalformed, PaymentRefused
from placet.core.gen import payment_pb2 as pb
from placet.core.payment.calls import settlement_call
from placet.core.payment.offers import Offer
from placet.core.types import Address, Hash32, hex0x
from placet.settlement.payments import PaymentServicer, State, Terms, move_of, refund_reference
from placet.settlement.store import Job, Store
from tests.support.databases import NewEngine, database, postgres
from tests.support.payment import EXACT, EXACT_PERMIT2, FACILITATOR, NOW, PAY_TO, TOKEN, UPTO, Payer

__all__ = ["database", "postgres"]

PAYER, STRANGER = Payer(), Payer(b"\x22" * 32)
VAULT = Address(b"\x7a" * 20)
TX = b"\x01" * 32
TERMS = Terms(frozenset({(31337, TOKEN)}), {(31337, TOKEN): VAULT})
TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


class Node:
    """A node that knows one receipt."""

    def __init__(self) -> None:
        self.receipt: dict[str, Any] | None = None
        self.head = 100
        self.logs: list[dict[str, Any]] = []
        self.asked: list[Any] = []

    async def call(self, method: str, params: Any) -> Any:
        self.asked.append((method, params))
        return hex(self.head) if method == "eth_blockNumber" else self.logs

    async def batch(self, requests: Any) -> list[Any]:
        return [self.receipt, hex(self.head)]

    def mined(self, amount: int, *, payer: Address = PAYER.address, to: Address = PAY_TO, block: int = 90, token: Address = TOKEN) -> None:
        topics = [TRANSFER, hex0x(bytes(12) + payer), hex0x(bytes(12) + to)]
        entry = {"address": hex0x(token), "topics": topics, "data": hex0x(amount.to_bytes(32, "big"))}
        self.receipt = {"status": "0x1", "blockNumber": hex(block), "logs": [entry]}


class Desk:
    """The service over a database, and its node."""

    def __init__(self, store: Store) -> None:
        self.store, self.node, self.woken = store, Node(), 0
        self.service = PaymentServicer(
            store=store,
            chains={31337: self.node},  # type: ignore[dict-item]
            confirmations={31337: 3},
            sender=FACILITATOR,
            terms=TERMS,
            wake=self._wake,
            clock=lambda: float(NOW),
        )

    def _wake(self) -> None:
        self.woken += 1

    def asks(self, of: Offer = EXACT, /, payer: Payer = PAYER, **changes: Any) -> pb.SettlePaymentRequest:
        paid = payer.pays(of)
        values: dict[str, Any] = {
            "payment_id": paid.key.id,
            "authorization": paid.payload.raw,
            "offer": orjson.dumps(of.document()),
            "charged": str(of.amount),
        }
        return pb.SettlePaymentRequest(**{**values, **changes})

    async def settle(self, *arguments: Any, **changes: Any) -> pb.PaymentStatus:
        return (await self.service._settle(self.asks(*arguments, **changes))).payment

    async def ends(self, reference: Hash32, state: str, error: str = "") -> None:
        import sqlalchemy as sa

        from placet.settlement.store import _JOB

        async with self.store._engine.begin() as connection:
            change = sa.update(_JOB).where(_JOB.c.reference == reference)
            await connection.execute(change.values(state=state, error=error, transaction_hash=TX))

    async def status(self, payment_id: bytes) -> pb.PaymentStatus:
        return (await self.service._get(pb.GetPaymentsRequest(payment_id=[payment_id]))).payments[0]


@pytest.fixture
async def desk(database: NewEngine) -> Desk:
    return Desk(Store(await database("placet.settlement.migrations")))


@pytest.mark.parametrize("offer", [EXACT, EXACT_PERMIT2, UPTO], ids=["eip3009", "permit2", "upto"])
def test_a_call_says_what_it_moves(offer: Offer) -> None:
    paid = PAYER.pays(offer)
    move = move_of(*settlement_call(paid, offer.amount))
    assert move is not None
    assert (move.token, move.payer, move.pay_to, move.amount) == (TOKEN, PAYER.address, PAY_TO, offer.amount)
    assert move.nonce == paid.key.nonce
    assert move_of(TOKEN, b"\x01\x02\x03\x04" + bytes(64)) is None


async def test_of_upto_what_was_charged_moves(desk: Desk) -> None:
    await desk.settle(UPTO, charged="17")
    job = await desk.store.job(Hash32(PAYER.pays(UPTO).key.id))
    assert job is not None
    move = move_of(job.target, job.calldata)
    assert move is not None
    assert (move.amount, job.payer, job.valid_until) == (17, f"x402 {hex0x(PAYER.address)}", PAYER.pays(UPTO).valid_before)


async def test_a_payment_is_one_job_however_often_it_comes(desk: Desk) -> None:
    for _ in range(3):
        assert (await desk.settle()).state == State.STATE_IN_HAND
    assert len(await desk.store.queued(31337, 10, NOW)) == 1
    assert desk.woken == 1
    assert await desk.store.unannounced() == []  # nobody but gateways is told


BAD: Mapping[str, tuple[dict[str, Any], type[Exception]]] = {
    "another's id": ({"payment_id": b"\x01" * 32}, InvalidInput),
    "no id": ({"payment_id": b""}, InvalidInput),
    "no payment": ({"authorization": b"{}"}, PaymentMalformed),
    "a large one": ({"authorization": b" " * 9000}, PaymentMalformed),
    "no offer": ({"offer": b"!"}, InvalidInput),
    "a large offer": ({"offer": b" " * 5000}, InvalidInput),
    "another offer": ({"offer": orjson.dumps(replace(EXACT, pay_to=Address(b"\x09" * 20)).document())}, PaymentRefused),
    "more than was signed": ({"charged": "1001"}, InvalidInput),
    "less than exact": ({"charged": "999"}, InvalidInput),
    "nothing": ({"charged": "0"}, InvalidInput),
    "no number": ({"charged": "-1"}, InvalidInput),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_payment_is_not_sent(desk: Desk, name: str) -> None:
    changes, kind = BAD[name]
    with pytest.raises(kind):
        await desk.settle(**changes)
    assert await desk.store.queued(31337, 10, NOW) == []


async def test_other_tokens_and_other_facilitators_payments_are_not_sent(desk: Desk) -> None:
    other = replace(EXACT, asset=Address(b"\x71" * 20))
    with pytest.raises(InvalidInput, match="not settled here"):
        await desk.settle(other)
    with pytest.raises(InvalidInput, match="facilitator"):
        await desk.settle(replace(UPTO, facilitator=Address(b"\x0f" * 20)))


async def test_a_forged_signature_is_not_sent(desk: Desk) -> None:
    document = PAYER.signs(EXACT)
    document["payload"]["signature"] = hex0x(b"\x01" * 65)
    with pytest.raises(PaymentRefused):
        await desk.settle(authorization=orjson.dumps(document))


async def test_settled_is_what_the_token_says_and_deep_enough(desk: Desk) -> None:
    payment_id = (await desk.settle()).payment_id
    await desk.ends(Hash32(payment_id), "confirmed")
    wrongs: tuple[dict[str, Any], ...] = (
        {"amount": 999},
        {"amount": 1000, "to": Address(b"\x09" * 20)},
        {"amount": 1000, "payer": STRANGER.address},
        {"amount": 1000, "token": Address(b"\x71" * 20)},
        {"amount": 1000, "block": 99},
    )
    for wrong in wrongs:
        desk.node.mined(**wrong)
        assert (await desk.status(payment_id)).state == State.STATE_FAILED, wrong
    desk.node.mined(1000)
    status = await desk.status(payment_id)
    assert (status.state, status.tx_hash) == (State.STATE_SETTLED, TX)


async def test_a_payment_that_another_executed_is_settled_by_that(desk: Desk) -> None:
    payment_id = (await desk.settle()).payment_id
    await desk.ends(Hash32(payment_id), "refused", "would revert: authorization is used")
    assert (await desk.status(payment_id)).state == State.STATE_FAILED
    desk.node.logs = [{"transactionHash": hex0x(b"\x02" * 32)}]
    desk.node.mined(1000)
    status = await desk.status(payment_id)
    assert (status.state, status.tx_hash) == (State.STATE_SETTLED, b"\x02" * 32)
    (_, (asked,)) = next(item for item in desk.node.asked if item[0] == "eth_getLogs")
    assert asked["topics"][1:] == [hex0x(bytes(12) + PAYER.address), hex0x(PAYER.pays(EXACT).key.nonce)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("expired before it could be sent", "expired"),
        ("would revert: transfer amount exceeds balance", "insufficient_funds"),
        ("the payer's gas budget for today is used up", "gas_budget"),
        ("anything", "refused"),
    ],
)
async def test_a_failure_has_a_stable_code(desk: Desk, error: str, code: str) -> None:
    payment_id = (await desk.settle()).payment_id
    await desk.ends(Hash32(payment_id), "refused", error)
    status = await desk.status(payment_id)
    assert (status.state, status.failure) == (State.STATE_FAILED, code)
    assert (await desk.status(b"\x77" * 32)).state == State.STATE_NOT_KNOWN


def refund(payment_id: bytes, **changes: Any) -> pb.RefundPaymentRequest:
    values: dict[str, Any] = {"payment_id": payment_id, "payer": PAYER.address, "chain_id": 31337, "asset": TOKEN, "amount": "400"}
    return pb.RefundPaymentRequest(**{**values, **changes})


async def test_only_what_was_settled_is_refunded_to_its_payer_once(desk: Desk) -> None:
    payment_id = (await desk.settle()).payment_id
    with pytest.raises(InvalidInput, match="not settled"):
        await desk.service._refund(refund(payment_id))
    with pytest.raises(InvalidInput, match="not settled"):
        await desk.service._refund(refund(b"\x77" * 32))
    await desk.ends(Hash32(payment_id), "confirmed")
    desk.node.mined(1000)
    for wrong in (
        {"payer": STRANGER.address},
        {"amount": "1001"},
        {"amount": "0"},
        {"amount": "x"},
        {"asset": b"\x71" * 20},
        {"chain_id": 1},
    ):
        with pytest.raises(InvalidInput):
            await desk.service._refund(refund(payment_id, **wrong))
    assert await desk.store.queued(31337, 10, NOW) == []
    for amount in ("400", "1000"):  # the first stands
        said = (await desk.service._refund(refund(payment_id, amount=amount))).refund
        assert said.state == State.STATE_IN_HAND
    (job,) = await desk.store.queued(31337, 10, NOW)
    assert isinstance(job, Job)
    assert (job.reference, job.target) == (refund_reference(Hash32(payment_id)), VAULT)
    assert job.calldata[4:36] == payment_id
    assert int.from_bytes(job.calldata[68:100], "big") == 400
    await desk.ends(job.reference, "confirmed")
    assert (await desk.service._refund(refund(payment_id))).refund.state == State.STATE_SETTLED
