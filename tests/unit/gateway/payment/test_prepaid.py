"""Prepaid keys over two replicas of the gateway, on SQLite and on PostgreSQL: money is neither made nor lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from placet.core.errors import Conflict, Forbidden, NotFound, PaymentRefused
from placet.core.types import Address, Hash32
from placet.gateway.payment.prepaid import Account, Prepaid, Wanted, check_model, key_id_of
from placet.gateway.store import Store
from tests.support.databases import NewEngine, database, postgres

__all__ = ["database", "postgres"]

GATEWAY = "placet.gateway.migrations"
NOW, DAY_S = 1_800_000_000, 86_400
PAYER, TOKEN, PAY_TO = Address(b"\x01" * 20), Address(b"\x70" * 20), Address(b"\xb0" * 20)
WANTED = Wanted(b"\x5e" * 32, "agent", PAYER, "eip155:31337", TOKEN)
PAID, MORE = Hash32(b"\x0a" * 32), Hash32(b"\x0b" * 32)
KEY = key_id_of(PAID)


def use(number: int) -> Hash32:
    return Hash32(number.to_bytes(32, "big"))


@pytest.fixture
async def replicas(database: NewEngine) -> list[Prepaid]:
    return [Prepaid(await database(GATEWAY)) for _ in range(2)]


async def bought(prepaid: Prepaid, amount: int = 1000, wanted: Wanted = WANTED) -> Account:
    await prepaid.order(PAID, KEY, amount, wanted, now=NOW)
    return await prepaid.credit(PAID, now=NOW)


def balanced(account: Account) -> bool:
    return account.credited == account.spent + account.held + account.available and account.held >= 0 and account.available >= 0


async def test_a_payment_makes_one_key_however_often_it_is_credited(database: NewEngine, replicas: list[Prepaid]) -> None:
    await replicas[0].order(PAID, KEY, 1000, WANTED, now=NOW)
    accounts = await asyncio.gather(*(replicas[at % 2].credit(PAID, now=NOW + at) for at in range(8)))
    assert {account.credited for account in accounts} == {1000}
    key = await Store(await database(GATEWAY)).find_key(KEY)
    assert key is not None
    assert (key.prepaid, key.secret_sha256, key.name) == (True, b"\x5e" * 32, "agent")


async def test_what_nobody_ordered_is_not_credited(replicas: list[Prepaid]) -> None:
    with pytest.raises(NotFound):
        await replicas[0].credit(PAID, now=NOW)


async def test_an_order_that_was_given_up_is_forgotten_by_the_next(replicas: list[Prepaid]) -> None:
    await replicas[0].order(PAID, KEY, 1000, WANTED, now=NOW)
    await replicas[1].order(PAID, KEY, 1000, replace(WANTED, models=("alice/linear",)), now=NOW)
    assert (await replicas[0].credit(PAID, now=NOW)).models == ("alice/linear",)
    await replicas[1].order(PAID, KEY, 5000, WANTED, now=NOW)  # credited: it stands
    assert (await replicas[0].credit(PAID, now=NOW)).credited == 1000


async def test_requests_at_once_never_hold_more_than_there_is(replicas: list[Prepaid]) -> None:
    await bought(replicas[0])

    async def hold(number: int) -> bool:
        try:
            await replicas[number % 2].hold(KEY, use(number), 300, PAY_TO, now=NOW)
        except PaymentRefused as refused:
            assert refused.check == "key_credit"
            return False
        return True

    held = await asyncio.gather(*(hold(number) for number in range(16)))
    assert sum(held) == 3
    account = await replicas[0].account(KEY)
    assert (account.held, account.available) == (900, 100)


async def test_a_request_pays_what_it_used_once(replicas: list[Prepaid]) -> None:
    await bought(replicas[0])
    await replicas[0].hold(KEY, use(1), 300, PAY_TO, now=NOW)
    await replicas[0].hold(KEY, use(2), 300, PAY_TO, now=NOW)
    for account in await asyncio.gather(*(replicas[at % 2].end(use(1), 120, now=NOW + 1) for at in range(6))):
        assert (account.spent, account.held, account.available) == (120, 300, 580)
    account = await replicas[1].end(use(2), 0, now=NOW + 1)  # it failed
    assert (account.spent, account.held, account.available) == (120, 0, 880)
    await replicas[0].hold(KEY, use(3), 10, PAY_TO, now=NOW)
    with pytest.raises(ValueError, match="held"):
        await replicas[0].end(use(3), 11, now=NOW)
    assert (await replicas[0].account(KEY)).held == 10  # nothing of it was written
    assert await replicas[0].owed() == [("eip155:31337", TOKEN, PAY_TO, 120)]


async def test_a_limit_holds_for_its_period(replicas: list[Prepaid]) -> None:
    await bought(replicas[0], wanted=replace(WANTED, limit=500, period_s=DAY_S))
    await replicas[0].hold(KEY, use(1), 400, PAY_TO, now=NOW + 10)
    with pytest.raises(PaymentRefused) as refused:
        await replicas[1].hold(KEY, use(2), 200, PAY_TO, now=NOW + 20)
    assert refused.value.check == "key_limit"
    await replicas[0].end(use(1), 100, now=NOW + 30)
    await replicas[1].hold(KEY, use(3), 400, PAY_TO, now=NOW + 40)
    later = NOW + 3 * DAY_S + 5
    await replicas[0].hold(KEY, use(4), 400, PAY_TO, now=later)  # another day
    account = await replicas[1].end(use(3), 0, now=later)  # of the first day: nothing of today's comes back
    assert (account.period_used, account.period_began) == (400, NOW + 3 * DAY_S)
    assert balanced(account)


async def test_a_limit_without_a_period_is_for_all(replicas: list[Prepaid]) -> None:
    await bought(replicas[0], wanted=replace(WANTED, limit=500))
    await replicas[0].hold(KEY, use(1), 500, PAY_TO, now=NOW)
    with pytest.raises(PaymentRefused):
        await replicas[0].hold(KEY, use(2), 1, PAY_TO, now=NOW + 1000 * DAY_S)


async def test_what_a_lost_replica_held_is_found(replicas: list[Prepaid]) -> None:
    await bought(replicas[0])
    await replicas[0].hold(KEY, use(1), 300, PAY_TO, now=NOW)
    await replicas[0].hold(KEY, use(2), 300, PAY_TO, now=NOW + 100)
    (found,) = await replicas[1].open_uses(before=NOW + 50)
    assert (found.id, found.payer, found.maximum, found.created_at) == (use(1), PAYER, 300, NOW)


async def test_a_closed_key_gives_back_what_is_left_by_payment(replicas: list[Prepaid]) -> None:
    await bought(replicas[0])
    await replicas[0].order(MORE, KEY, 400, WANTED, now=NOW + 5)
    with pytest.raises(Conflict, match="payment"):
        await replicas[0].close(KEY, now=NOW + 6, pending_since=NOW - 3600)
    assert (await replicas[1].credit(MORE, now=NOW + 7)).credited == 1400
    await replicas[0].hold(KEY, use(1), 300, PAY_TO, now=NOW + 8)
    with pytest.raises(Conflict, match="requests"):
        await replicas[0].close(KEY, now=NOW + 9, pending_since=NOW)
    await replicas[0].end(use(1), 300, now=NOW + 10)
    closed = await asyncio.gather(*(replicas[at % 2].close(KEY, now=NOW + 11 + at, pending_since=NOW) for at in range(4)))
    for refunds in closed:
        assert sorted((item.payment_id, item.amount) for item in refunds) == [(PAID, 700), (MORE, 400)]
    assert {(item.payer, item.chain_id, item.asset) for item in closed[0]} == {(PAYER, 31337, TOKEN)}
    with pytest.raises(PaymentRefused) as refused:
        await replicas[0].hold(KEY, use(2), 1, PAY_TO, now=NOW + 20)
    assert refused.value.check == "key_closed"
    await replicas[0].refunded(PAID, now=NOW + 21)
    assert [item.payment_id for item in await replicas[1].refunds()] == [MORE]


async def test_what_comes_after_a_key_was_closed_goes_back_whole(replicas: list[Prepaid]) -> None:
    await bought(replicas[0])
    await replicas[0].order(MORE, KEY, 400, WANTED, now=NOW - 7200)  # its payment was thought lost
    await replicas[0].close(KEY, now=NOW, pending_since=NOW - 3600)
    account = await replicas[1].credit(MORE, now=NOW + 1)
    assert account.credited == 1000
    assert {item.payment_id: item.amount for item in await replicas[0].refunds()} == {PAID: 1000, MORE: 400}


async def test_a_key_is_for_its_models(replicas: list[Prepaid]) -> None:
    account = await bought(replicas[0], wanted=replace(WANTED, models=("alice/linear",)))
    check_model(account, "alice/linear")
    with pytest.raises(Forbidden):
        check_model(account, "alice/other")
