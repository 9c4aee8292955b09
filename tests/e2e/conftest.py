"""Networks for end-to-end tests: real chain, real contracts, real services; in-process or as processes over Kafka and PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from placet.core.evm.contracts import encode_call
from placet.core.types import Address, address_from, hex0x
from placet.sdk.client import Client
from placet.sdk.local.network import LocalNetwork, LocalOptions
from placet.sdk.packs import load_pack

ROOT = Path(__file__).parents[2]
WITHDRAW = "withdraw(uint256,address,address)"
BLOCKED = "0x" + "ba" * 20


@dataclass(slots=True)
class Vault:
    """A guarded vault on a network, with Alice's deposit in it."""

    network: LocalNetwork
    client: Client
    address: Address
    token: Address
    alice: Address

    async def ask(self, amount: int, receiver: str | None = None, **options: Any) -> dict[str, Any]:
        """Prepare and submit a withdrawal; the answer with its intent."""
        arguments = [str(amount), receiver or hex0x(self.alice), hex0x(self.alice)]
        call = {"from": hex0x(self.alice), "functionSignature": WITHDRAW, "arguments": arguments}
        prepared = await self.client.prepare(hex0x(self.address), call)
        answer = await self.client.submit(hex0x(self.address), prepared["intent"], **options)
        return {**answer, "intent": prepared["intent"]}

    async def execute(self, answer: dict[str, Any], data: bytes | None = None) -> Any:
        """Send the answer's call from Alice."""
        call = answer["call"]
        payload = data if data is not None else bytes.fromhex(call["data"][2:])
        return await self.network.chain.send(self.alice, address_from(call["to"]), payload, gas=2_000_000)

    async def shares(self) -> int:
        """Alice's shares."""
        answer = await self.network.rpc.eth_call(self.address, encode_call("balanceOf(address)", self.alice))
        return int.from_bytes(answer, "big")


async def open_vault(stack: AsyncExitStack, network: LocalNetwork, config: tuple[Any, ...]) -> Vault:
    """A vault guarded as `config` says, with a deposit of 10^6 by Alice; `stack` closes its client."""
    chain, alice = network.chain, network.accounts[3]
    token = await chain.deploy(network.owner, "TestToken", "Test", "TST", 18)
    vault = await chain.deploy(network.owner, "GuardedVault", token, "Vault", "vTST", config)
    await chain.send(network.owner, token, encode_call("mint(address,uint256)", alice, 10**9))
    await chain.send(alice, token, encode_call("approve(address,uint256)", vault, 10**9))
    await chain.send(alice, vault, encode_call("deposit(uint256,address)", 10**6, alice))
    client = await stack.enter_async_context(network.client())
    return Vault(network, client, vault, token, alice)


MakeVault = Callable[..., Awaitable[Vault]]


@pytest.fixture
async def make_vault(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MakeVault]:
    """A function that brings up a network with a vault; everything is stopped when the test ends."""
    cache = tmp_path_factory.getbasetemp().parent / "placet-compiled"
    cache.mkdir(mode=0o700, exist_ok=True)
    async with AsyncExitStack() as stack:

        async def make(*, limit: int = 1000, client_changes: dict[str, Any] | None = None, **options: Any) -> Vault:
            folder = tmp_path / "net"
            network = await stack.enter_async_context(LocalNetwork(LocalOptions(folder, compiled_cache=cache, **options)))
            params = {"max_amount": str(limit), "max_count": 1000, "blocked": [BLOCKED]}
            bundle = load_pack(ROOT / "policies" / "spend-limit", params=params).bundle
            await network.publish(bundle)
            return await open_vault(stack, network, network.client_config(bundle.id, **(client_changes or {})))

        yield make
