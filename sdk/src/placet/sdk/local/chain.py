"""Putting Placet on a development chain: contracts through the CREATE2 factory, operators, clients. Uses the node's unlocked accounts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import orjson
from eth_abi import abi

from placet.core import bls
from placet.core.digests import key_id, register_key_digest
from placet.core.evm.contracts import encode_call, publish_policy_call, words
from placet.core.evm.reverts import name_of_revert
from placet.core.evm.rpc import RpcClient, RpcError
from placet.core.keccak import keccak256
from placet.core.types import Address, Hash32, Policy, address_from, hash_from, hex0x


class ChainError(RuntimeError):
    """A transaction of the set-up failed; `name` is the contract's named error, if it is one."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


def artifact(name: str) -> dict[str, Any]:
    """ABI and bytecode of a contract."""
    document: dict[str, Any] = orjson.loads((resources.files("placet.sdk") / "artifacts" / f"{name}.json").read_bytes())
    return document


@dataclass(frozen=True, slots=True)
class Sent:
    """A mined transaction."""

    hash: Hash32
    gas_used: int
    block_number: int
    contract: Address | None
    logs: list[dict[str, Any]]


class DevChain:
    """A development node whose accounts are unlocked."""

    def __init__(self, rpc: RpcClient) -> None:
        self.rpc = rpc

    async def accounts(self) -> list[Address]:
        """The node's accounts."""
        return [address_from(item) for item in await self.rpc.call("eth_accounts", [])]

    async def send(self, sender: Address, to: Address | None, data: bytes, *, value: int = 0, gas: int | None = None) -> Sent:
        """Send and wait until mined.

        Raises:
            ChainError: it reverts; `name` is the contract's named error.
        """
        transaction = {"from": hex0x(sender), "data": hex0x(data), "value": hex(value)}
        if to is not None:
            transaction["to"] = hex0x(to)
        try:
            if gas is None:
                estimate = int(await self.rpc.call("eth_estimateGas", [transaction]), 16)
                gas = min(estimate * 5 // 4, 30_000_000)
            transaction["gas"] = hex(gas)
            digest = hash_from(await self.rpc.call("eth_sendTransaction", [transaction]))
        except RpcError as error:
            name = name_of_revert(error.revert_data or b"")
            raise ChainError(f"reverts: {name or error.message}", name) from None
        end = time.monotonic() + 60
        while time.monotonic() < end:
            receipt = await self.rpc.receipt(digest)
            if receipt is not None:
                if int(receipt["status"], 16) != 1:
                    raise ChainError(f"transaction {hex0x(digest)} failed", await self._reason(transaction, receipt))
                created = receipt.get("contractAddress")
                return Sent(
                    digest,
                    int(receipt["gasUsed"], 16),
                    int(receipt["blockNumber"], 16),
                    address_from(created) if created else None,
                    receipt["logs"],
                )
            await asyncio.sleep(0.02)
        raise ChainError(f"transaction {hex0x(digest)} was not mined")

    async def _reason(self, transaction: dict[str, Any], receipt: dict[str, Any]) -> str | None:
        try:
            await self.rpc.call("eth_call", [transaction, receipt["blockNumber"]])
        except RpcError as error:
            return name_of_revert(error.revert_data or b"")
        return None

    async def deploy(self, sender: Address, name: str, *arguments: Any) -> Address:
        """Deploy a contract by name; arguments as its constructor takes them."""
        document = artifact(name)
        code = _creation_code(document, arguments)
        sent = await self.send(sender, None, code)
        assert sent.contract is not None
        return sent.contract

    async def deploy_protocol(self, owner: Address, activation_delay_s: int, file: Path) -> dict[str, Address]:
        """Deploy Placet's contracts through the CREATE2 factory as the plan says, and write deployments/<chainId>.json."""
        plan = orjson.loads((resources.files("placet.sdk") / "artifacts" / "deploy-plan.json").read_bytes())
        factory = address_from(plan["factory"])
        parameters: dict[str, Any] = {"owner": owner, "activationDelay": activation_delay_s}
        block = await self.rpc.block("latest")
        for step in plan["steps"]:
            document = artifact(step["contract"])
            code = _creation_code(document, [parameters[name.removeprefix("$")] for name in step["arguments"]])
            salt = keccak256(step["salt"].encode())
            address = Address(keccak256(b"\xff" + factory + salt + keccak256(code))[12:])
            if await self.rpc.call("eth_getCode", [hex0x(address), "latest"]) == "0x":
                await self.send(owner, factory, salt + code)
            parameters[step["key"]] = address
        chain_id = await self.rpc.chain_id()
        addresses = {step["key"]: parameters[step["key"]] for step in plan["steps"]}
        document = {"chainId": chain_id, "blockNumber": block.number, **{key: hex0x(value) for key, value in addresses.items()}}
        await asyncio.to_thread(_write, file, orjson.dumps(document, option=orjson.OPT_INDENT_2))
        return addresses

    async def register_operator(
        self, owner: Address, addresses: dict[str, Address], operator: Address, bls_secret: bytes, bus_key: bytes, weight: int
    ) -> None:
        """Give an operator stake and register its keys. For development: here the secret is at hand."""
        chain_id = await self.rpc.chain_id()
        registry = addresses["operatorRegistry"]
        await self.send(owner, addresses["stakeSource"], encode_call("setWeight(address,uint96)", operator, weight))
        public = bls.encode_g1(bls.public_key(bls_secret))
        binding = bls.sign(bls_secret, register_key_digest(operator, key_id(public), bus_key, chain_id, registry))
        g1, g2 = "(bytes32,bytes32,bytes32,bytes32)", "(" + ",".join(["bytes32"] * 8) + ")"
        data = encode_call(
            f"register(address,{g1},bytes32,{g2},{g2})",
            operator,
            words(public),
            bus_key,
            words(bls.encode_g2(bls.prove_possession(bls_secret))),
            words(bls.encode_g2(binding)),
        )
        await self.send(owner, registry, data)

    async def activate(self, sender: Address, addresses: dict[str, Address]) -> None:
        """Make what is queued an epoch."""
        await self.send(sender, addresses["operatorRegistry"], encode_call("activate()"))

    async def publish_policy(self, sender: Address, addresses: dict[str, Address], policy: Policy, uri: str) -> None:
        """Put a policy's id on chain."""
        await self.send(sender, addresses["policyRegistry"], publish_policy_call(policy, uri))


def _creation_code(document: dict[str, Any], arguments: Sequence[Any]) -> bytes:
    inputs: list[dict[str, Any]] = next((item["inputs"] for item in document["abi"] if item["type"] == "constructor"), [])
    return bytes.fromhex(document["bytecode"].removeprefix("0x")) + abi.encode([_type_of(item) for item in inputs], arguments)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _type_of(item: dict[str, Any]) -> str:
    """Canonical ABI type of an ABI entry."""
    kind: str = item["type"]
    if kind.startswith("tuple"):
        return "(" + ",".join(_type_of(member) for member in item["components"]) + ")" + kind.removeprefix("tuple")
    return kind
