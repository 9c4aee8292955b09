"""The local network with payments: settlement is configured there as it is deployed, by its environment when it is a process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from placet.core.evm.contracts import encode_call
from placet.core.gen import payment_pb2 as pb
from placet.core.gen import payment_pb2_grpc
from placet.core.payment.offers import Method, Offer, Scheme
from placet.core.payment.payload import parse_header
from placet.core.payment.verify import verify
from placet.core.types import hex0x
from placet.sdk.local.network import VAULT_FUNDS, LocalNetwork, LocalOptions
from placet.sdk.local.payments import TOKEN_NAME, TOKEN_VERSION, balance_of, mint
from tests.contract.settlement_payments.world import PAY_TO, PAYER, SETTLED, ended, waited
from tests.support.payment import header_of


@pytest.mark.parametrize("separate", [False, pytest.param(True, marks=pytest.mark.kafka)], ids=["inside", "processes"])
async def test_a_payment_is_settled_and_given_back(tmp_path: Path, separate: bool) -> None:
    options = LocalOptions(tmp_path / "net", operators=1, payments=True, separate=separate)
    async with LocalNetwork(options) as network:
        money = network.money
        assert money is not None
        token = money.contracts.token
        await mint(network.chain, network.owner, token, PAYER.address, 5000)
        offer = Offer(Scheme.EXACT, Method.EIP3009, 31337, token, 1000, PAY_TO, 120, TOKEN_NAME, TOKEN_VERSION)
        now = int(time.time())
        members: dict[str, Any] = {"validBefore": str(now + 100)}
        document = PAYER.signs(offer, **members)
        payment = verify(parse_header(header_of(document)), [offer], now=now, needed_s=1)
        async with grpc.aio.insecure_channel(network.settlement_address) as channel:
            gateway: Any = payment_pb2_grpc.PaymentServiceStub(channel)  # type: ignore[no-untyped-call]
            request = pb.SettlePaymentRequest(
                payment_id=payment.key.id,
                authorization=json.dumps(document).encode(),
                offer=json.dumps(offer.document()).encode(),
                charged="1000",
            )
            await gateway.SettlePayment(request)
            assert (await ended(gateway, payment.key.id)).state == SETTLED
            assert await balance_of(network.chain, token, PAY_TO) == 1000
            wanted = pb.RefundPaymentRequest(payment_id=payment.key.id, payer=PAYER.address, chain_id=31337, asset=token, amount="1000")
            await waited(lambda: gateway.RefundPayment(wanted), lambda answer: answer.refund.state == SETTLED)
        credited = await network.rpc.eth_call(money.vault, encode_call("refundOf(bytes32)", payment.key.id))
        assert int.from_bytes(credited[32:], "big") == 1000
        assert await balance_of(network.chain, token, money.vault) == VAULT_FUNDS
        assert hex0x(money.facilitator) != hex0x(network.owner)
