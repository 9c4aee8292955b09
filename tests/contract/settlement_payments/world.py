"""Settlement as it is deployed, on a development chain with money, asked over gRPC as a gateway asks it."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from eth_account import Account

from placet.core.bus import InProcessBroker, InProcessBus
from placet.core.envelope import LocalBusSigner
from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import RpcClient
from placet.core.gen import payment_pb2 as pb
from placet.core.gen import payment_pb2_grpc
from placet.core.objects import ObjectStore
from placet.core.payment.offers import Method, Offer, Scheme
from placet.core.payment.payload import parse_header
from placet.core.payment.verify import VerifiedPayment, verify
from placet.core.runtime import Resources, connect_chains
from placet.core.types import Address, address_from, hex0x
from placet.sdk.devservices.anvil import Anvil
from placet.sdk.local.chain import DevChain
from placet.sdk.local.payments import TOKEN_NAME, TOKEN_VERSION, PaymentContracts, approve_permit2, balance_of, deploy_payments, mint
from placet.settlement.config import AcceptedPayment, Ledger, SettlementSettings, Vault
from placet.settlement.main import Settlement
from tests.support.payment import Payer, header_of

CHAIN_ID = 31337
NETWORK = f"eip155:{CHAIN_ID}"
# The development node's well-known third account: unlocked there, so it can also approve, cancel and spend.
PAYER = Payer(bytes.fromhex("5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a"))
PAY_TO = Address(b"\xb0" * 20)
INFERENCE = LocalBusSigner(b"i" * 32)
TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
IN_HAND, SETTLED, FAILED = pb.PaymentStatus.STATE_IN_HAND, pb.PaymentStatus.STATE_SETTLED, pb.PaymentStatus.STATE_FAILED


@dataclass(frozen=True)
class Signed:
    """What a client sent, and what the gateway makes of it."""

    document: dict[str, Any]
    verified: VerifiedPayment

    @property
    def id(self) -> bytes:
        return self.verified.key.id

    def request(self, charged: int | None = None) -> pb.SettlePaymentRequest:
        amount = self.verified.maximum if charged is None else charged
        offer = json.dumps(self.verified.offer.document()).encode()
        return pb.SettlePaymentRequest(
            payment_id=self.id, authorization=json.dumps(self.document).encode(), offer=offer, charged=str(amount)
        )


@dataclass
class World:
    """A chain with contracts, and as many replicas of settlement as a test starts."""

    anvil: Anvil
    rpc: RpcClient
    folder: Path
    contracts: PaymentContracts
    vault: Address
    ledger: Address
    owner: Address
    keys: dict[str, Address]
    broker: InProcessBroker = field(default_factory=InProcessBroker)
    nonces: Any = field(default_factory=lambda: itertools.count(secrets.randbits(200)))
    running: list[tuple[Settlement, asyncio.Task[None], Resources, InProcessBus]] = field(default_factory=list)
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @classmethod
    async def make(cls, anvil: Anvil, folder: Path) -> World:
        rpc = RpcClient([anvil.url])
        chain = DevChain(rpc)
        owner = (await chain.accounts())[0]
        contracts = await deploy_payments(chain, owner)
        keys = {}
        for name in ("sender", "facilitator", "refunds", "receipts"):
            secret = secrets.token_hex(32)
            (folder / f"{name}.key").write_text(secret)
            keys[name] = address_from(Account.from_key(secret).address)
            await rpc.call("anvil_setBalance", [hex0x(keys[name]), hex(10**20)])
        (folder / "bus.key").write_text("11" * 32)
        zero = hex0x(bytes(20))
        deployment = {"chainId": CHAIN_ID, "blockNumber": 0, "validator": zero, "operatorRegistry": zero, "policyRegistry": zero}
        (folder / "deployments.json").write_text(json.dumps(deployment))
        vault = await chain.deploy(owner, "RefundVault", contracts.token, keys["refunds"], owner)
        ledger = await chain.deploy(owner, "ReceiptLedger", owner)
        await chain.send(owner, ledger, encode_call("setPoster(address,bool)", keys["receipts"], True))
        await mint(chain, owner, contracts.token, PAYER.address, 1_000_000)
        await approve_permit2(chain, PAYER.address, contracts.token)
        return cls(anvil, rpc, folder, contracts, vault, ledger, owner, keys)

    @property
    def chain(self) -> DevChain:
        return DevChain(self.rpc)

    def settings(self, **changes: Any) -> SettlementSettings:
        accepted = [AcceptedPayment(scheme=scheme, network=NETWORK, asset=hex0x(self.contracts.token)) for scheme in ("exact", "upto")]
        values: dict[str, Any] = {
            "chains": [{"id": CHAIN_ID, "rpc": [self.anvil.url], "deployments": self.folder / "deployments.json"}],
            "bus": "inprocess",
            "object_store": (self.folder / "objects").as_uri(),
            "database": f"sqlite+aiosqlite:///{self.folder / 'settlement.db'}",
            "bus_key_file": self.folder / "bus.key",
            "sender_key_file": self.folder / "sender.key",
            "trusted_aggregators": ["0x" + "22" * 32],
            "lease_s": 1.5,
            "poll_s": 0.05,
            "grpc_port": 0,
            "accepted_payments": accepted,
            "facilitator_key_file": self.folder / "facilitator.key",
            "balance_cache_s": 0,
            "refund_key_file": self.folder / "refunds.key",
            "refund_vaults": [Vault(network=NETWORK, asset=hex0x(self.contracts.token), vault=hex0x(self.vault))],
            "receipts_key_file": self.folder / "receipts.key",
            "receipt_ledger": Ledger(network=NETWORK, address=hex0x(self.ledger)),
            "trusted_inference": [hex0x(INFERENCE.public_key)],
            "receipts_per_root": 4,
            "receipts_wait_s": 0.5,
        }
        return SettlementSettings(**(values | changes))

    async def start(self, **changes: Any) -> payment_pb2_grpc.PaymentServiceStub:
        """One replica; a gateway's connection to it."""
        settings = self.settings(**changes)
        bus = InProcessBus(self.broker)
        await bus.start()
        resources = Resources(bus, connect_chains(settings), ObjectStore(settings.object_store))
        service = Settlement(settings, resources)
        await service.start()
        self.running.append((service, asyncio.create_task(service.run()), resources, bus))
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}")
        self.channels.append(channel)
        return payment_pb2_grpc.PaymentServiceStub(channel)  # type: ignore[no-untyped-call]

    async def kill(self) -> None:
        """End every replica where it stands."""
        for channel in self.channels:
            await channel.close()
        for service, task, resources, bus in self.running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await service.stop()
            await bus.stop()
            for reader in resources.chains.values():
                await reader.rpc.close()
        self.channels.clear()
        self.running.clear()

    # --- payments

    def offer(self, scheme: Scheme = Scheme.EXACT, method: Method = Method.EIP3009, amount: int = 1000, **changes: Any) -> Offer:
        facilitator = self.keys["facilitator"] if scheme is Scheme.UPTO else None
        values: dict[str, Any] = {
            "scheme": scheme,
            "method": method,
            "chain_id": CHAIN_ID,
            "asset": self.contracts.token,
            "amount": amount,
            "pay_to": PAY_TO,
            "max_timeout_s": 120,
            "token_name": TOKEN_NAME,
            "token_version": TOKEN_VERSION,
            "facilitator": facilitator,
        }
        return Offer(**(values | changes))

    def signed(self, offer: Offer, *, payer: Payer = PAYER, valid_for: int = 100, nonce: int | None = None) -> Signed:
        now = int(time.time())
        end = "deadline" if offer.method is Method.PERMIT2 else "validBefore"
        members: dict[str, Any] = {end: str(now + valid_for)}
        document = payer.signs(offer, nonce=next(self.nonces) if nonce is None else nonce, **members)
        return Signed(document, verify(parse_header(header_of(document)), [offer], now=now, needed_s=1))

    async def payer(self, balance: int) -> Payer:
        """A new payer with so much, and nothing approved."""
        made = Payer(secrets.token_bytes(32))
        if balance:
            await mint(self.chain, self.owner, self.contracts.token, made.address, balance)
        return made

    async def paid(self) -> int:
        return await balance_of(self.chain, self.contracts.token, PAY_TO)

    async def transfers_in(self, tx_hash: bytes) -> list[tuple[str, str, int]]:
        receipt = await self.rpc.call("eth_getTransactionReceipt", [hex0x(tx_hash)])
        return [
            (log["topics"][1][-40:], log["topics"][2][-40:], int(log["data"], 16))
            for log in receipt["logs"]
            if log["topics"][0] == TRANSFER_TOPIC
        ]

    async def sent_by(self, name: str) -> int:
        return int(await self.rpc.call("eth_getTransactionCount", [hex0x(self.keys[name]), "latest"]), 16)


async def status(gateway: Any, payment_id: bytes) -> pb.PaymentStatus:
    answer: pb.GetPaymentsResponse = await gateway.GetPayments(pb.GetPaymentsRequest(payment_id=[payment_id]))
    return answer.payments[0]


async def ended(gateway: Any, payment_id: bytes, within_s: float = 20.0) -> pb.PaymentStatus:
    """What became of a payment."""
    found: pb.PaymentStatus = await waited(lambda: status(gateway, payment_id), lambda item: item.state in (SETTLED, FAILED), within_s)
    return found


async def waited(read: Callable[[], Coroutine[Any, Any, Any]], is_it: Callable[[Any], bool], within_s: float = 20.0) -> Any:
    ends = time.monotonic() + within_s
    while not is_it(found := await read()):
        assert time.monotonic() < ends, f"not within {within_s:.0f} s; the last was {found}"
        await asyncio.sleep(0.03)
    return found
