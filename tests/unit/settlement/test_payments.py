"""What becomes of a payment, whatever dies, lies or lags: executed once, failed only when that is certain, else in hand."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from placet.core.payment.calls import settlement_call
from placet.core.payment.payload import parse_json
from placet.core.payment.verify import VerifiedPayment, key_of
from placet.core.types import Address, Hash32, hex0x
from placet.settlement.payments.book import Allowed, PaymentBook, Status
from placet.settlement.payments.desk import PaymentDesk
from placet.settlement.payments.outcome import AUTHORIZATION_USED, DOUBT_S
from placet.settlement.payments.store import FAILED, IN_HAND, SETTLED, PaymentStore
from placet.settlement.sender import Sender, SendingRules
from placet.settlement.signer import LocalTransactionSigner
from placet.settlement.store import PAYMENTS, Lease, Store
from tests.support.authorization import Clock
from tests.support.databases import NewEngine
from tests.support.payment import EXACT, NOW, TIMEOUT_S, Payer
from tests.unit.settlement.node import Node

GWEI = 10**9
LEASE_S = 10.0
RULES = SendingRules(
    confirmations=1,
    bump_after_s=30.0,
    max_fee=500 * GWEI,
    tip=GWEI,
    gas_ceiling=500_000,
    gas_per_payer_per_day=10_000_000,
    max_in_flight=16,
    lane=PAYMENTS,
    patient=True,
)


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Replica:
    """One process."""

    desk: PaymentDesk
    book: PaymentBook
    store: Store
    payments: PaymentStore
    lease: Lease


@dataclass
class Stage:
    node: Node
    database: NewEngine
    signer: LocalTransactionSigner
    clock: Clock
    payer: Payer = field(default_factory=Payer)
    last: Replica | None = None

    async def replica(self, **rules: Any) -> Replica:
        engine = await self.database("placet.settlement.migrations")
        store, payments = Store(engine), PaymentStore(engine)
        changed = replace(RULES, **rules)
        sender = Sender(rpc=self.node, chain_id=31337, signer=self.signer, store=store, rules=changed, clock=self.clock)  # type: ignore[arg-type]
        desk = PaymentDesk(
            sender=sender,
            rpc=self.node,  # type: ignore[arg-type]
            chain_id=31337,
            confirmations=changed.confirmations,
            store=store,
            payments=payments,
            clock=self.clock,
        )
        allowed = [Allowed(EXACT.scheme, EXACT.chain_id, EXACT.asset)]
        book = PaymentBook(store=store, payments=payments, allowed=allowed, facilitator=self.signer.address, vaults={}, clock=self.clock)
        self.clock.now += LEASE_S + 1 if self.last is not None else 0
        lease = await store.acquire(self.signer.address, 31337, secrets.token_hex(4), self.clock.now, 1e9)
        if lease is None:  # who led before is dead, and its lease runs out
            assert self.last is not None
            await self.last.store.release(self.last.lease)
            lease = await store.acquire(self.signer.address, 31337, secrets.token_hex(4), self.clock.now, 1e9)
        assert lease is not None
        self.last = Replica(desk, book, store, payments, lease)
        return self.last

    def signs(self, nonce: int = 7, payer: Payer | None = None) -> tuple[VerifiedPayment, bytes]:
        who = payer or self.payer
        return who.pays(nonce=nonce), json.dumps(who.signs(EXACT, nonce=nonce)).encode()

    async def take(self, replica: Replica, nonce: int = 7, payer: Payer | None = None) -> VerifiedPayment:
        verified, raw = self.signs(nonce, payer)
        await replica.book.settle(verified.key.id, raw, json.dumps(EXACT.document()).encode(), 1000)
        return verified

    async def round(self, replica: Replica, *, seconds: int = 1) -> None:
        """One round, a block and some seconds."""
        await replica.desk.step(replica.lease)
        self.node.mine(seconds=seconds)
        self.clock.now += seconds

    async def rounds(self, replica: Replica, payment: VerifiedPayment, *, at_most: int = 12, seconds: int = 1) -> Status:
        """Until the payment ended, or so many."""
        for _ in range(at_most):
            await self.round(replica, seconds=seconds)
            found = (await replica.book.statuses([payment.key.id]))[0]
            if found.state != IN_HAND:
                return found
        return found


@pytest.fixture
async def stage(database: NewEngine, tmp_path: Path) -> Stage:
    key = tmp_path / "facilitator.key"
    key.write_text(secrets.token_hex(32))
    signer = LocalTransactionSigner(key)
    node = Node()
    node.sender = hex0x(signer.address)
    made = Stage(node, database, signer, Clock(NOW + 0.5))
    node.balances[made.payer.address] = 10_000
    return made


# --- crashes

POINTS = ["bind", "sent", "set_state", "close_nonce", "settled"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("point", POINTS)
async def test_whatever_dies_when_a_payment_is_executed_once_and_known(stage: Stage, point: str, after: bool) -> None:
    one = await stage.replica(confirmations=2)
    payment = await stage.take(one)
    owner: Any = {"settled": one.payments, "sent": stage.node}.get(point, one.store)
    name = "eth_sendRawTransaction" if point == "sent" else point
    genuine = getattr(owner, name)
    died = []

    async def dies(*arguments: Any, **named: Any) -> Any:
        died.append(point)
        if after:
            await genuine(*arguments, **named)
        raise Crash

    def dies_at_once(*arguments: Any) -> Any:
        died.append(point)
        if after:
            genuine(*arguments)
        raise Crash

    setattr(owner, name, dies_at_once if point == "sent" else dies)
    with pytest.raises(Crash):
        await stage.rounds(one, payment)
    assert died == [point]
    if point == "sent":
        del stage.node.__dict__[name]
    two = await stage.replica(confirmations=2)
    done = await stage.rounds(two, payment)
    assert done.state == SETTLED
    assert len(stage.node.transfers) == 1
    assert hex0x(done.tx_hash) == stage.node.transfers[0]["transactionHash"]
    job = await two.store.job((await two.payments.get([payment.key.id]))[payment.key.id].payment.reference)
    assert job is not None
    assert len(await two.store.sent_hashes(job.reference)) == 1


async def test_a_payment_and_its_job_are_recorded_together_or_not_at_all(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await stage.replica()

    async def dies(*_: Any) -> bool:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr("placet.settlement.payments.store.insert_job", dies)
        with pytest.raises(Crash):
            await stage.take(one)
    verified, _ = stage.signs()
    assert (await one.book.statuses([verified.key.id]))[0].state is None
    await stage.take(one)
    assert (await stage.rounds(one, verified)).state == SETTLED


# --- who was first


async def test_somebody_else_was_first_and_the_payer_has_paid(stage: Stage) -> None:
    one = await stage.replica()
    payment = await stage.take(one)
    theirs = stage.node.stranger(settlement_call(payment, 1000)[1])
    done = await stage.rounds(one, payment)
    assert (done.state, done.tx_hash) == (SETTLED, theirs)
    assert stage.node.sent == []
    known = (await one.payments.get([payment.key.id]))[payment.key.id]
    assert (known.job_state, known.job_error) == ("refused", "executed already"), "and is tried no more"


def another(payment: VerifiedPayment, **signed: Any) -> bytes:
    """Another authorization of the same payer with the same nonce."""
    changed = replace(payment.payload, signed=replace(payment.payload.signed, **signed))
    maximum = signed.get("value", payment.maximum)
    return settlement_call(replace(payment, payload=changed, maximum=maximum), maximum)[1]


async def test_another_amount_under_the_same_nonce_pays_nothing(stage: Stage) -> None:
    one = await stage.replica()
    payment = await stage.take(one)
    stage.node.stranger(another(payment, value=999))
    done = await stage.rounds(one, payment)
    assert (done.state, done.failure) == (FAILED, "authorization_used")


async def test_another_payments_transfer_in_the_same_transaction_pays_nothing(stage: Stage) -> None:
    one = await stage.replica()
    diverted, good = [await stage.take(one, nonce) for nonce in (1, 2)]
    theirs = stage.node.stranger(another(diverted, to=Address(b"\x0d" * 20)), settlement_call(good, 1000)[1])
    lost = await stage.rounds(one, diverted)
    assert (lost.state, lost.failure) == (FAILED, "authorization_used")
    done = await stage.rounds(one, good)
    assert (done.state, done.tx_hash) == (SETTLED, theirs)


async def test_a_token_that_does_not_revert_settles_by_the_first_transfer(stage: Stage) -> None:
    stage.node.reverts_on_used_nonce = False
    one = await stage.replica()
    payment = await stage.take(one)
    theirs = stage.node.stranger(settlement_call(payment, 1000)[1])
    done = await stage.rounds(one, payment)
    assert (done.state, done.tx_hash) == (SETTLED, theirs)
    assert len(stage.node.transfers) == 1


async def test_a_token_that_does_not_revert_settles_nothing_that_was_cancelled(stage: Stage) -> None:
    """Our transaction succeeds, and moves nothing."""
    stage.node.reverts_on_used_nonce = False
    one = await stage.replica()
    payment = await stage.take(one)
    stage.node.cancel(stage.payer.address, payment.key.nonce)
    done = await stage.rounds(one, payment)
    assert (done.state, done.failure) == (FAILED, "authorization_used")
    assert stage.node.receipts[hex0x(done.tx_hash)]["status"] == "0x1"


async def test_in_a_strangers_transaction_with_several_payments_each_is_settled_by_its_own_transfer(stage: Stage) -> None:
    one = await stage.replica()
    payments = [await stage.take(one, nonce) for nonce in (1, 2, 3)]
    theirs = stage.node.stranger(*(settlement_call(payment, 1000)[1] for payment in payments))
    for payment in payments:
        done = await stage.rounds(one, payment)
        assert (done.state, done.tx_hash) == (SETTLED, theirs)


async def test_one_transfer_settles_one_payment(stage: Stage) -> None:
    one = await stage.replica()
    first, second = [await stage.take(one, nonce) for nonce in (1, 2)]
    known = await one.payments.get([first.key.id, second.key.id])
    transfer = (Hash32(b"\x09" * 32), 3)
    assert await one.payments.settled(known[first.key.id].payment, *transfer)
    assert not await one.payments.settled(known[second.key.id].payment, *transfer)
    assert [status.state for status in await one.book.statuses([first.key.id, second.key.id])] == [SETTLED, IN_HAND]


# --- lies, lags, and what cannot be said


@pytest.mark.parametrize("status", [0, 1])
async def test_whatever_the_receipts_status_says_the_transfer_decides(stage: Stage, status: int) -> None:
    stage.node.status_of_receipts = status
    one = await stage.replica()
    paid = await stage.take(one, 1)
    assert (await stage.rounds(one, paid)).state == SETTLED
    stage.node.balances[stage.payer.address] = 10_000
    drained = await stage.take(one, 2)
    await one.desk.step(one.lease)
    stage.node.balances[stage.payer.address] = 0  # between the dry run and the block
    done = await stage.rounds(one, drained)
    assert done.state == IN_HAND, "it may still be executed"
    stage.node.mine(timestamp=NOW + TIMEOUT_S + 1)
    stage.clock.now = NOW + TIMEOUT_S + 1
    done = await stage.rounds(one, drained, seconds=5)
    assert (done.state, done.failure) == (FAILED, "insufficient_funds")


async def test_a_used_nonce_that_no_node_explains_is_in_hand_until_that_is_no_delay_any_more(stage: Stage) -> None:
    stage.node.events_are_hidden = True
    one = await stage.replica()
    payment = await stage.take(one)
    stage.node.stranger(settlement_call(payment, 1000)[1])
    assert (await stage.rounds(one, payment)).state == IN_HAND
    assert (await stage.rounds(one, payment, seconds=60)).state == IN_HAND, "and over, but in doubt"
    stage.node.events_are_hidden = False
    assert (await stage.rounds(one, payment, seconds=20)).state == SETTLED
    lost = await stage.replica()
    stage.node.events_are_hidden = True
    assert stage.node.timestamp < NOW + TIMEOUT_S + DOUBT_S + 600
    assert (await lost.book.statuses([payment.key.id]))[0].state == SETTLED, "and stays so"


async def test_what_no_node_ever_explains_fails_in_the_end(stage: Stage) -> None:
    stage.node.events_are_hidden = True
    one = await stage.replica()
    payment = await stage.take(one)
    stage.node.stranger(settlement_call(payment, 1000)[1])
    while stage.node.timestamp <= NOW + TIMEOUT_S + DOUBT_S - 60:
        await stage.round(one, seconds=60)
        assert (await one.book.statuses([payment.key.id]))[0].state == IN_HAND
    done = await stage.rounds(one, payment, seconds=60)
    assert (done.state, done.failure) == (FAILED, "authorization_used")


async def test_an_event_whose_transaction_a_node_does_not_know_yet_says_nothing(stage: Stage) -> None:
    stage.node.receipts_are_hidden = True
    one = await stage.replica()
    payment = await stage.take(one)
    theirs = stage.node.stranger(settlement_call(payment, 1000)[1])
    assert (await stage.rounds(one, payment)).state == IN_HAND
    stage.node.receipts_are_hidden = False
    done = await stage.rounds(one, payment, seconds=5)
    assert (done.state, done.tx_hash) == (SETTLED, theirs)


@pytest.mark.parametrize("method", ["everything", "eth_getLogs", "eth_call", "eth_getTransactionReceipt", "eth_blockNumber"])
async def test_while_a_node_is_away_nothing_is_said(stage: Stage, method: str) -> None:
    one = await stage.replica()
    payment = await stage.take(one)
    stage.node.stranger(settlement_call(payment, 1000)[1])
    stage.node.away = {method}
    for _ in range(5):
        try:
            await stage.round(one)
        except Exception as error:
            assert "no RPC node" in str(error)  # the lead goes on and tries again
        assert (await one.book.statuses([payment.key.id]))[0].state == IN_HAND
        stage.node.mine()
        stage.clock.now += 2
    stage.node.away = set()
    assert (await stage.rounds(one, payment, seconds=15)).state == SETTLED


async def test_only_final_blocks_count(stage: Stage) -> None:
    one = await stage.replica(confirmations=4)
    payment = await stage.take(one)
    await one.desk.step(one.lease)
    stage.node.mine()
    for _ in range(2):
        await one.desk.step(one.lease)
        assert (await one.book.statuses([payment.key.id]))[0].state == IN_HAND
        stage.node.mine()
        stage.clock.now += 1
    assert (await stage.rounds(one, payment)).state == SETTLED


async def test_what_ended_fails_only_when_a_final_block_is_past_its_end(stage: Stage) -> None:
    stage.node.balances[stage.payer.address] = 0
    one = await stage.replica(confirmations=3)
    payment = await stage.take(one)
    await stage.round(one)
    stage.node.balances[stage.payer.address] = 10_000
    stage.clock.now = NOW + TIMEOUT_S + 60.0
    await one.desk.step(one.lease)
    assert (await one.book.statuses([payment.key.id]))[0].state == IN_HAND, "our clock alone says nothing"
    stage.node.mine(timestamp=NOW + TIMEOUT_S + 1)
    stage.clock.now += 20
    await one.desk.step(one.lease)
    assert (await one.book.statuses([payment.key.id]))[0].state == IN_HAND, "the block is not final"
    done = await stage.rounds(one, payment, seconds=16)
    assert (done.state, done.failure, done.tx_hash) == (FAILED, "expired", b"")
    assert stage.node.sent == []


async def test_what_ends_in_the_pool_is_cancelled_and_failed(stage: Stage) -> None:
    one = await stage.replica()
    payment = await stage.take(one)
    await one.desk.step(one.lease)
    waiting = dict(stage.node.pool)
    assert len(waiting) == 1
    stage.node.pool.clear()
    stage.node.mine(timestamp=NOW + TIMEOUT_S + 1)
    stage.clock.now = NOW + TIMEOUT_S + 1
    done = await stage.rounds(one, payment, seconds=16)
    assert (done.state, done.failure) == (FAILED, "expired")
    assert stage.node.transfers == []
    for _ in range(3):
        await stage.round(one)
    assert await one.store.open_attempts(one.lease) == {}, "the account nonce is free again"


# --- order and bounds


async def test_what_ends_first_is_sent_first(stage: Stage) -> None:
    one = await stage.replica(max_in_flight=1)
    ends = {}
    for nonce, end in ((1, 100), (2, 20), (3, 60)):
        document = stage.payer.signs(EXACT, nonce=nonce, validBefore=str(NOW + end))
        raw = json.dumps(document).encode()
        key = key_of(parse_json(raw))
        assert key is not None
        await one.book.settle(key.id, raw, json.dumps(EXACT.document()).encode(), 1000)
        ends[key.nonce] = end
    for _ in range(8):
        await stage.round(one)
    logs = [log for receipt in stage.node.receipts.values() for log in receipt["logs"]]
    order = [ends[bytes.fromhex(log["topics"][2][2:])] for log in logs if log["topics"][0] == hex0x(AUTHORIZATION_USED)]
    assert len(stage.node.transfers) == 3
    assert order == [20, 60, 100]


async def test_a_payer_whose_gas_budget_is_used_up_waits_and_holds_up_nobody(stage: Stage) -> None:
    other = Payer(b"\x22" * 32)
    stage.node.balances[other.address] = 10_000
    one = await stage.replica(gas_per_payer_per_day=100_000)
    own = [await stage.take(one, nonce) for nonce in (1, 2)]
    theirs = await stage.take(one, 3, other)
    assert (await stage.rounds(one, theirs)).state == SETTLED
    await stage.round(one)
    states = [str(status.state) for status in await one.book.statuses([payment.key.id for payment in own])]
    assert sorted(states) == [IN_HAND, SETTLED]
    assert len(stage.node.transfers) == 2


async def test_the_key_has_a_budget_too(stage: Stage) -> None:
    one = await stage.replica(gas_per_day=100_000)
    payments = [await stage.take(one, nonce) for nonce in range(3)]
    for _ in range(6):
        await stage.round(one)
    states = [status.state for status in await one.book.statuses([payment.key.id for payment in payments])]
    assert sorted(map(str, states)) == [IN_HAND, IN_HAND, SETTLED]


async def test_who_can_pay_nothing_is_put_off_and_costs_nothing(stage: Stage) -> None:
    poor = [Payer(bytes([number]) * 32) for number in range(100, 120)]
    one = await stage.replica()
    for number, payer in enumerate(poor):
        await stage.take(one, number, payer)
    good = await stage.take(one, 99, Payer(b"\x33" * 32))
    stage.node.balances[Payer(b"\x33" * 32).address] = 1000
    assert (await stage.rounds(one, good)).state == SETTLED
    assert len(set(stage.node.sent)) == 1
    stage.node.balances[poor[3].address] = 1000
    late = poor[3].pays(nonce=3)
    assert (await stage.rounds(one, late, seconds=3)).state == SETTLED, "one that is funded in time is settled"
