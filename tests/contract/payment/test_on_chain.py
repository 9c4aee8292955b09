"""What x402's stock client signs is verified here without a chain, and executed on one: the token and Permit2 are the second opinion."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from eth_account import Account
from x402 import x402Client
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.mechanisms.evm.upto import UptoEvmClientScheme

from placet.core.errors import PaymentRefused
from placet.core.evm.rpc import RpcClient
from placet.core.payment.calls import settlement_call
from placet.core.payment.eip712 import token_separator
from placet.core.payment.offers import Method, Offer, PaymentRequired, Scheme
from placet.core.payment.payload import parse_header
from placet.core.payment.verify import VerifiedPayment, verify
from placet.core.types import Address, address_from, hex0x
from placet.sdk.devservices.anvil import Anvil
from placet.sdk.local.chain import ChainError, DevChain, Sent
from placet.sdk.local.payments import (
    TOKEN_NAME,
    TOKEN_VERSION,
    PaymentContracts,
    approve_permit2,
    balance_of,
    deploy_payments,
    mint,
)
from tests.support.payment import Payer, header_of

CHAIN_ID = 31337
NETWORK = f"eip155:{CHAIN_ID}"
# The development node's well-known third account.
PAYER = Account.from_key("0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a")
PAY_TO = Address(b"\xb0" * 20)
TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


@pytest.fixture(scope="module")
def anvil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    with Anvil(tmp_path_factory.mktemp("anvil"), chain_id=CHAIN_ID) as node:
        yield node


@dataclass
class World:
    """A chain with money on it."""

    chain: DevChain
    contracts: PaymentContracts
    facilitator: Address
    payer: Address

    def offer(self, scheme: Scheme, method: Method, amount: int = 1000) -> Offer:
        facilitator = self.facilitator if scheme is Scheme.UPTO else None
        token = (TOKEN_NAME, TOKEN_VERSION)
        return Offer(scheme, method, CHAIN_ID, self.contracts.token, amount, PAY_TO, 120, *token, facilitator)

    async def paid(self) -> int:
        return await balance_of(self.chain, self.contracts.token, PAY_TO)

    async def settle(self, payment: VerifiedPayment, charged: int, sender: Address | None = None) -> Sent:
        to, data = settlement_call(payment, charged)
        return await self.chain.send(sender or self.facilitator, to, data)


@pytest.fixture
async def world(anvil: Anvil) -> AsyncIterator[World]:
    rpc = RpcClient([anvil.url])
    chain = DevChain(rpc)
    deployer, facilitator = (await chain.accounts())[:2]
    contracts = await deploy_payments(chain, deployer)
    payer = address_from(PAYER.address)
    await mint(chain, deployer, contracts.token, payer, 100_000)
    await approve_permit2(chain, payer, contracts.token)
    yield World(chain, contracts, facilitator, payer)
    await rpc.close()


async def stock_header(offers: list[Offer]) -> str:
    """What the stock client sends for the first offer of a 402's header."""
    client = x402Client(lambda _version, requirements: requirements[0])
    register_exact_evm_client(client, PAYER, NETWORK)
    client.register(NETWORK, UptoEvmClientScheme(PAYER))
    allowed: Any = [{"network": NETWORK, "asset": hex0x(offers[0].asset), "max_amount_per_payment": "1000000"}]
    client.set_spend_controls({"allowed_assets": allowed})
    required: Any = decode_payment_required_header(PaymentRequired(offers, "https://gateway.test/v1/chat/completions").header())
    payload: Any = await client.create_payment_payload(required)
    return encode_payment_signature_header(payload)


async def stock_payment(offer: Offer) -> VerifiedPayment:
    return verify(parse_header(await stock_header([offer])), [offer], now=int(time.time()), needed_s=60)


async def test_deploying_again_changes_nothing_and_the_token_has_the_domain_we_offer(world: World) -> None:
    before = await world.paid()
    assert await deploy_payments(world.chain, world.facilitator) == world.contracts
    assert await world.paid() == before
    separator = await world.chain.rpc.eth_call(world.contracts.token, bytes.fromhex("3644e515"))
    assert separator == token_separator(TOKEN_NAME, TOKEN_VERSION, CHAIN_ID, world.contracts.token)


@pytest.mark.parametrize(
    ("scheme", "method", "charged"),
    [(Scheme.EXACT, Method.EIP3009, 1000), (Scheme.EXACT, Method.PERMIT2, 1000), (Scheme.UPTO, Method.PERMIT2, 123)],
    ids=["exact-eip3009", "exact-permit2", "upto"],
)
async def test_a_stock_payment_is_verified_here_and_executes_there_once(world: World, scheme: Scheme, method: Method, charged: int) -> None:
    payment = await stock_payment(world.offer(scheme, method))
    assert payment.payer == world.payer
    assert payment.valid_before - int(time.time()) <= 120
    before = await world.paid()
    sent = await world.settle(payment, charged)
    assert await world.paid() == before + charged
    moved = [log for log in sent.logs if log["topics"][0] == TRANSFER_TOPIC]
    assert [(log["topics"][1][-40:], log["topics"][2][-40:], int(log["data"], 16)) for log in moved] == [
        (world.payer.hex(), PAY_TO.hex(), charged)
    ]
    with pytest.raises(ChainError):
        await world.settle(payment, charged)
    assert await world.paid() == before + charged


@pytest.mark.parametrize("method", Method)
async def test_what_we_refuse_for_its_signature_the_chain_refuses_too(world: World, method: Method) -> None:
    offer = world.offer(Scheme.EXACT, method)
    payment = await stock_payment(offer)
    flipped = bytearray(payment.payload.signature)
    flipped[40] ^= 1
    tampered = replace(payment.payload, signature=bytes(flipped))
    with pytest.raises(PaymentRefused) as caught:
        verify(tampered, [offer], now=int(time.time()), needed_s=60)
    assert caught.value.check == "signature"
    before = await world.paid()
    with pytest.raises(ChainError):
        await world.settle(replace(payment, payload=tampered), 1000)
    assert await world.paid() == before
    await world.settle(payment, 1000)


async def test_only_the_facilitator_that_was_signed_charges_and_never_more(world: World) -> None:
    payment = await stock_payment(world.offer(Scheme.UPTO, Method.PERMIT2))
    for charged in (0, 1001):
        with pytest.raises(ValueError):
            settlement_call(payment, charged)
    with pytest.raises(ChainError) as caught:
        await world.settle(payment, 10, sender=(await world.chain.accounts())[5])
    assert caught.value.name == "UnauthorizedFacilitator()"


async def test_permit2_takes_a_nonce_once_whatever_the_scheme(world: World) -> None:
    """So payments with one nonce have one key here, and the second is never served."""
    exact, upto = world.offer(Scheme.EXACT, Method.PERMIT2), world.offer(Scheme.UPTO, Method.PERMIT2)
    now = int(time.time())
    payer = Payer(bytes(PAYER.key))
    one, two = (
        verify(parse_header(header_of(payer.signs(offer, nonce=4242, deadline=str(now + 120)))), [offer], now=now, needed_s=60)
        for offer in (exact, upto)
    )
    assert one.key == two.key
    await world.settle(one, 1000)
    with pytest.raises(ChainError) as caught:
        await world.settle(two, 10)
    assert caught.value.name == "InvalidNonce()"


async def test_the_stock_client_takes_the_first_of_our_offers_that_it_knows(world: World) -> None:
    offers = [
        world.offer(Scheme.EXACT, Method.EIP3009),
        world.offer(Scheme.EXACT, Method.PERMIT2),
        world.offer(Scheme.UPTO, Method.PERMIT2),
    ]
    for first in range(3):
        ordered = offers[first:] + offers[:first]
        payment = verify(parse_header(await stock_header(ordered)), offers, now=int(time.time()), needed_s=60)
        assert payment.offer == ordered[0]
