"""Payments through settlement's own interface, on a chain: executed once, judged by the token's events, given back once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from eth_account import Account

from placet.core.errors import Conflict, InvalidInput, NotFound, PaymentConflict, PaymentMalformed, PaymentRefused, PlacetError
from placet.core.evm.contracts import encode_call
from placet.core.gen import payment_pb2 as pb
from placet.core.payment.calls import settlement_call
from placet.core.payment.eip712 import PERMIT2, token_separator
from placet.core.payment.offers import Method, Scheme
from placet.core.rpc_errors import from_rpc
from placet.core.types import Address, hex0x
from placet.sdk.local.payments import TOKEN_NAME, TOKEN_VERSION, approve_permit2, mint
from tests.contract.settlement_payments.world import (
    CHAIN_ID,
    FAILED,
    IN_HAND,
    PAY_TO,
    PAYER,
    SETTLED,
    Signed,
    World,
    ended,
    status,
    waited,
)
from tests.support.payment import Payer


async def refused(call: Awaitable[Any]) -> PlacetError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc(caught.value)


@pytest.mark.parametrize(
    ("scheme", "method", "charged"),
    [(Scheme.EXACT, Method.EIP3009, 1000), (Scheme.EXACT, Method.PERMIT2, 1000), (Scheme.UPTO, Method.PERMIT2, 123)],
    ids=["exact-eip3009", "exact-permit2", "upto"],
)
async def test_a_payment_is_settled_by_its_transfer(world: World, scheme: Scheme, method: Method, charged: int) -> None:
    gateway = await world.start()
    payment = world.signed(world.offer(scheme, method))
    before = await world.paid()
    assert (await status(gateway, payment.id)).state == pb.PaymentStatus.STATE_NOT_KNOWN
    taken = (await gateway.SettlePayment(payment.request(charged))).payment
    assert taken.state in (IN_HAND, SETTLED)
    done = await ended(gateway, payment.id)
    assert (done.state, done.failure) == (SETTLED, "")
    assert await world.transfers_in(done.tx_hash) == [(PAYER.address.hex(), PAY_TO.hex(), charged)]
    again = (await gateway.SettlePayment(payment.request(charged))).payment
    assert again == done, "doing it twice changes nothing"
    assert await world.paid() == before + charged
    assert await world.sent_by("facilitator") == 1


async def test_one_id_is_of_one_content(world: World) -> None:
    gateway = await world.start()
    payment = world.signed(world.offer(Scheme.UPTO, Method.PERMIT2))
    before = await world.paid()
    await gateway.SettlePayment(payment.request(400))
    assert isinstance(await refused(gateway.SettlePayment(payment.request(401))), PaymentConflict)
    assert (await ended(gateway, payment.id)).state == SETTLED
    assert isinstance(await refused(gateway.SettlePayment(payment.request(1000))), PaymentConflict)
    assert await world.paid() == before + 400


async def test_settlement_believes_no_gateway(world: World) -> None:
    gateway = await world.start()
    exact, upto = world.offer(), world.offer(Scheme.UPTO, Method.PERMIT2)
    good = world.signed(exact)

    def changed(payment: Signed, **members: Any) -> pb.SettlePaymentRequest:
        request = payment.request()
        for name, value in members.items():
            setattr(request, name, value)
        return request

    async def of(request: pb.SettlePaymentRequest, kind: type[PlacetError]) -> PlacetError:
        error = await refused(gateway.SettlePayment(request))
        assert type(error) is kind, error
        return error

    flipped = json.loads(json.dumps(good.document))
    digits = flipped["payload"]["signature"]
    flipped["payload"]["signature"] = digits[:20] + ("0" if digits[20] != "0" else "1") + digits[21:]
    cheaper = json.dumps(replace(exact, amount=1).document()).encode()
    elsewhere = json.dumps(replace(exact, asset=Address(b"\x07" * 20)).document()).encode()
    other_chain = json.dumps(replace(exact, chain_id=1).document()).encode()
    assert (await of(changed(good, authorization=json.dumps(flipped).encode()), PaymentRefused)).extra["check"] == "signature"
    assert (await of(changed(good, offer=cheaper), PaymentRefused)).extra["check"] == "offer"
    await of(changed(good, offer=elsewhere), InvalidInput)
    await of(changed(good, offer=other_chain), InvalidInput)
    await of(changed(good, offer=b"{}"), PaymentMalformed)
    await of(changed(good, authorization=good.request().authorization[:-1]), PaymentMalformed)
    await of(changed(good, payment_id=bytes(32)), InvalidInput)
    await of(changed(good, payment_id=bytes(31)), InvalidInput)
    for charged, kind in (("999", InvalidInput), ("0", InvalidInput), ("1001", InvalidInput), ("01000", PaymentMalformed)):
        await of(changed(good, charged=charged), kind)
    await of(changed(world.signed(upto), charged="1001"), InvalidInput)
    await of(world.signed(replace(upto, facilitator=Address(b"\x08" * 20))).request(), InvalidInput)
    assert (await status(gateway, good.id)).state == pb.PaymentStatus.STATE_NOT_KNOWN
    assert await world.sent_by("facilitator") == 0


async def test_twenty_at_once_are_settled_once_each(world: World) -> None:
    gateway, second = await world.start(), await world.start()
    kinds = [(Scheme.EXACT, Method.EIP3009), (Scheme.EXACT, Method.PERMIT2), (Scheme.UPTO, Method.PERMIT2)]
    payments = [world.signed(world.offer(*kinds[number % 3])) for number in range(20)]
    before = await world.paid()
    calls = [replica.SettlePayment(payment.request()) for payment in payments for replica in (gateway, second)]
    await asyncio.gather(*calls)
    done = [await ended(second, payment.id) for payment in payments]
    assert {item.state for item in done} == {SETTLED}
    assert len({item.tx_hash for item in done}) == 20
    assert await world.paid() == before + 20 * 1000
    assert await world.sent_by("facilitator") == 20


@pytest.mark.parametrize("method", Method)
async def test_what_somebody_sent_first_is_settled_by_that(world: World, method: Method) -> None:
    payment = world.signed(world.offer(method=method))
    stranger = (await world.chain.accounts())[7]
    sent = await world.chain.send(stranger, *settlement_call(payment.verified, 1000))
    gateway = await world.start()
    before = await world.paid()
    await gateway.SettlePayment(payment.request())
    done = await ended(gateway, payment.id)
    assert (done.state, done.tx_hash) == (SETTLED, sent.hash)
    assert await world.paid() == before
    assert await world.sent_by("facilitator") == 0, "what would revert is not sent"


async def test_a_permit_that_somebody_sent_is_found_among_many_transfers_of_its_amount(world: World) -> None:
    payment = world.signed(world.offer(method=Method.PERMIT2))
    sent = await world.chain.send((await world.chain.accounts())[7], *settlement_call(payment.verified, 1000))
    same = encode_call("transfer(address,uint256)", PAY_TO, 1000)
    for _ in range(70):
        await world.chain.send(PAYER.address, world.contracts.token, same, gas=100_000)
    gateway = await world.start()
    await gateway.SettlePayment(payment.request())
    done = await ended(gateway, payment.id)
    assert (done.state, done.tx_hash) == (SETTLED, sent.hash)


async def test_what_somebody_sent_between_dry_run_and_block_is_settled_by_that(world: World) -> None:
    await world.rpc.call("evm_setAutomine", [False])
    gateway = await world.start()
    payment = world.signed(world.offer())
    before = await world.paid()
    await gateway.SettlePayment(payment.request())
    ours = await waited(lambda: status(gateway, payment.id), lambda found: bool(found.tx_hash))
    await world.kill()
    await world.rpc.call("anvil_dropAllTransactions", [])  # ours is signed, and on its way through a slow network
    await world.rpc.call("evm_setAutomine", [True])
    theirs = await world.chain.send((await world.chain.accounts())[7], *settlement_call(payment.verified, 1000))
    gateway = await world.start()
    done = await ended(gateway, payment.id)
    assert (done.state, done.tx_hash) == (SETTLED, theirs.hash)
    receipt = await world.rpc.call("eth_getTransactionReceipt", [hex0x(ours.tx_hash)])
    assert int(receipt["status"], 16) == 0
    assert await world.paid() == before + 1000


async def test_a_cancelled_authorization_failed(world: World) -> None:
    payer = await world.payer(5000)
    payment = world.signed(world.offer(), payer=payer)
    message = {"authorizer": hex0x(payer.address), "nonce": payment.verified.key.nonce}
    typed = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}],
        },
        "primaryType": "CancelAuthorization",
        "domain": {
            "name": TOKEN_NAME,
            "version": TOKEN_VERSION,
            "chainId": CHAIN_ID,
            "verifyingContract": hex0x(world.contracts.token),
        },
        "message": message,
    }
    assert len(token_separator(TOKEN_NAME, TOKEN_VERSION, CHAIN_ID, world.contracts.token)) == 32
    _, signature = payer.digest_and_signature(typed)
    cancel = encode_call("cancelAuthorization(address,bytes32,bytes)", payer.address, payment.verified.key.nonce, signature)
    await world.chain.send(world.owner, world.contracts.token, cancel)
    gateway = await world.start()
    await gateway.SettlePayment(payment.request())
    done = await ended(gateway, payment.id)
    assert (done.state, done.failure, done.tx_hash) == (FAILED, "authorization_used", b"")


async def test_another_payment_of_the_same_amount_settles_no_permit_whose_nonce_was_given_up(world: World) -> None:
    gateway = await world.start()
    offer = world.offer(method=Method.PERMIT2)
    lost, good = world.signed(offer), world.signed(offer)
    nonce = int.from_bytes(lost.verified.key.nonce, "big")
    give_up = encode_call("invalidateUnorderedNonces(uint256,uint256)", nonce >> 8, 1 << (nonce & 0xFF))
    await world.chain.send(PAYER.address, PERMIT2, give_up)
    await gateway.SettlePayment(good.request())
    await gateway.SettlePayment(lost.request())
    assert (await ended(gateway, good.id)).state == SETTLED
    done = await ended(gateway, lost.id)
    assert (done.state, done.failure) == (FAILED, "authorization_used")


async def test_who_has_too_little_is_waited_for_until_the_payment_ends(world: World) -> None:
    gateway = await world.start()
    poor, late = await world.payer(999), await world.payer(0)
    approving = await world.payer(0)
    payments = [world.signed(world.offer(), payer=payer, valid_for=seconds) for payer, seconds in ((poor, 3), (late, 60))]
    without = world.signed(world.offer(method=Method.PERMIT2), payer=await world.payer(5000), valid_for=3)
    assert approving.address != late.address
    for payment in (*payments, without):
        await gateway.SettlePayment(payment.request())
    await asyncio.sleep(0.5)
    assert (await status(gateway, payments[1].id)).state == IN_HAND
    await mint(world.chain, world.owner, world.contracts.token, late.address, 1000)
    assert (await ended(gateway, payments[1].id)).state == SETTLED, "one that is funded in time is settled"
    while time.time() < payments[0].verified.valid_before + 1:
        await asyncio.sleep(0.1)
    assert (await status(gateway, payments[0].id)).state == IN_HAND, "no block says that it is over"
    await world.rpc.call("evm_mine", [])
    done = await ended(gateway, payments[0].id)
    assert (done.state, done.failure, done.tx_hash) == (FAILED, "insufficient_funds", b"")
    assert (await ended(gateway, without.id)).failure == "insufficient_allowance"
    assert await world.sent_by("facilitator") == 1


async def test_what_was_taken_before_a_crash_is_settled_after_it(world: World) -> None:
    await world.rpc.call("evm_setAutomine", [False])
    gateway = await world.start()
    payments = [world.signed(world.offer()) for _ in range(3)]
    before = await world.paid()
    for payment in payments:
        await gateway.SettlePayment(payment.request())
    await waited(lambda: status(gateway, payments[0].id), lambda found: bool(found.tx_hash))
    await world.kill()
    await world.rpc.call("anvil_dropAllTransactions", [])
    await world.rpc.call("evm_setAutomine", [True])
    gateway = await world.start()
    for payment in payments:
        assert (await ended(gateway, payment.id)).state == SETTLED
    assert await world.paid() == before + 3000
    assert await world.sent_by("facilitator") == 3


async def test_balances_are_read_where_they_count(world: World) -> None:
    gateway = await world.start()
    payer = Payer(bytes(Account.create().key))
    request = pb.GetBalanceRequest(chain_id=CHAIN_ID, asset=world.contracts.token, payer=payer.address)
    assert (await gateway.GetBalance(request)).balance == "0"
    await mint(world.chain, world.owner, world.contracts.token, payer.address, 77)
    await world.rpc.call("anvil_setBalance", [hex0x(payer.address), hex(10**18)])
    await world.rpc.call("anvil_impersonateAccount", [hex0x(payer.address)])
    await approve_permit2(world.chain, payer.address, world.contracts.token, 5)
    found = await gateway.GetBalance(request)
    assert (found.balance, found.permit2_allowance) == ("77", "5")
    assert abs(found.at - time.time()) < 60
    request.asset = bytes(20)
    assert isinstance(await refused(gateway.GetBalance(request)), InvalidInput)


# --- refunds


def refund_of(payment: Signed, amount: int, **changes: Any) -> pb.RefundPaymentRequest:
    values: dict[str, Any] = {
        "payment_id": payment.id,
        "payer": payment.verified.payer,
        "chain_id": CHAIN_ID,
        "asset": payment.verified.offer.asset,
        "amount": str(amount),
    }
    return pb.RefundPaymentRequest(**(values | changes))


async def credited(world: World, payment: Signed) -> tuple[bytes, int]:
    answer = await world.rpc.eth_call(world.vault, encode_call("refundOf(bytes32)", payment.id))
    return answer[12:32], int.from_bytes(answer[32:], "big")


async def test_a_refund_is_credited_once(world: World) -> None:
    gateway, second = await world.start(), await world.start()
    payment = world.signed(world.offer())
    await gateway.SettlePayment(payment.request())
    assert (await ended(gateway, payment.id)).state == SETTLED
    asked = await asyncio.gather(*(replica.RefundPayment(refund_of(payment, 600)) for replica in (gateway, second) for _ in range(4)))
    assert {answer.refund.state for answer in asked} <= {IN_HAND, SETTLED}
    await asyncio.sleep(0.3)
    assert await credited(world, payment) == (bytes(20), 0), "the vault is empty, so it waits"
    await mint(world.chain, world.owner, world.contracts.token, world.vault, 10_000)
    done = await waited(lambda: gateway.RefundPayment(refund_of(payment, 600)), lambda answer: answer.refund.state != IN_HAND)
    assert done.refund.state == SETTLED
    assert done.refund.tx_hash
    assert await credited(world, payment) == (PAYER.address, 600)
    assert await world.sent_by("refunds") == 1
    assert isinstance(await refused(gateway.RefundPayment(refund_of(payment, 601))), Conflict)


async def test_only_what_was_settled_is_given_back_and_only_to_its_payer(world: World) -> None:
    gateway = await world.start()
    payment = world.signed(world.offer())
    assert isinstance(await refused(gateway.RefundPayment(refund_of(payment, 1000))), NotFound)
    await gateway.SettlePayment(payment.request())
    assert (await ended(gateway, payment.id)).state == SETTLED
    for request in (
        refund_of(payment, 1001),
        refund_of(payment, 0),
        refund_of(payment, 1000, payer=b"\x09" * 20),
        refund_of(payment, 1000, asset=b"\x09" * 20),
        refund_of(payment, 1000, chain_id=1),
    ):
        assert isinstance(await refused(gateway.RefundPayment(request)), InvalidInput)
    assert await world.sent_by("refunds") == 0
