"""Publishing a policy: its bundle into the object store, its id on chain, its announcement to the operators."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from eth_account import Account

from placet.core.bundle import PolicyBundle, store_bundle
from placet.core.errors import InvalidInput, PolicyNotAdmitted, SettlementFailed
from placet.core.evm.contracts import encode_call, publish_policy_call
from placet.core.evm.reverts import name_of_revert
from placet.core.evm.rpc import RpcClient, RpcError
from placet.core.objects import ObjectStore
from placet.core.settings import load_deployment
from placet.core.stake import meets
from placet.core.types import Address, address_from, hash_from, hex0x
from placet.sandbox.manifest import Manifest
from placet.sdk.client import Client
from placet.sdk.policybuild.build import warnings_of

MINED_S = 60
_QUORUM_BPS = 6667


@dataclass(frozen=True, slots=True)
class Signing:
    """Who pays: a key file (hex, or a JSON keystore with its password), or an account that the node holds unlocked."""

    key_file: Path | None = None
    password_file: Path | None = None
    unlocked: str | None = None

    def account(self) -> Any:
        """The account behind the key file. Raises InvalidInput, never with the file's content."""
        assert self.key_file is not None
        text = self.key_file.read_text(encoding="utf-8").strip()
        try:
            if text.startswith("{"):
                if self.password_file is None:
                    raise InvalidInput("the key file is a keystore: give --password-file", field="password_file")
                return Account.from_key(Account.decrypt(orjson.loads(text), self.password_file.read_text(encoding="utf-8").rstrip("\r\n")))
            return Account.from_key(text)
        except InvalidInput:
            raise
        except Exception as error:  # noqa: BLE001 - eth_account raises many kinds, some with the key in their text
            raise InvalidInput(f"{self.key_file} holds no usable key ({type(error).__name__})", field="key_file") from None


async def publish_pack(
    bundle: PolicyBundle,
    *,
    client: Client,
    object_store: str,
    rpc: str,
    deployments: Path,
    signing: Signing,
    wait_s: float,
) -> dict[str, Any]:
    """The whole of it; repeating it changes nothing and costs nothing.

    Raises:
        SettlementFailed: the transaction reverts. PolicyNotAdmitted: operators refuse the policy, with their reasons.
        Unavailable: node, store or gateway does not answer.
    """
    address = await store_bundle(ObjectStore(object_store), bundle)
    async with RpcClient([rpc], timeout_s=30) as node:
        chain_id = await node.chain_id()
        registry = load_deployment(deployments, chain_id).policy_registry
        transaction = None
        if not await _is_published(node, registry, bundle.id):
            data = publish_policy_call(bundle.policy, f"sha256:{address.hex()}")
            transaction = await _send(node, signing, chain_id, registry, data)
    await client.announce_policy(hex0x(bundle.id), hex0x(address))
    admissions = await _admissions(client, bundle, chain_id, wait_s)
    warnings = [warning for item in bundle.policy_data for warning in warnings_of(Manifest.parse(item.manifest))]
    return {
        "policyId": hex0x(bundle.id),
        "bundleSha256": hex0x(address),
        "chainId": chain_id,
        "transactionHash": transaction,
        "admissions": admissions,
        "warnings": warnings,
    }


async def _is_published(node: RpcClient, registry: Address, policy_id: bytes) -> bool:
    try:
        await node.eth_call(registry, encode_call("orderingOf(bytes32)", policy_id))
    except RpcError as error:
        if (name_of_revert(error.revert_data or b"") or "").startswith("UnknownPolicy"):
            return False
        raise SettlementFailed(f"the policy registry {hex0x(registry)} does not answer: {error.message}") from None
    return True


async def _send(node: RpcClient, signing: Signing, chain_id: int, to: Address, data: bytes) -> str:
    try:
        if signing.key_file is not None:
            digest = await _send_signed(node, signing.account(), chain_id, to, data)
        else:
            sender = address_from(signing.unlocked or "", field="from")
            transaction = {"from": hex0x(sender), "to": hex0x(to), "data": hex0x(data)}
            gas = int(await node.call("eth_estimateGas", [transaction]), 16) * 6 // 5
            digest = await node.call("eth_sendTransaction", [{**transaction, "gas": hex(gas)}])
    except RpcError as error:
        raise SettlementFailed(f"publishing reverts: {name_of_revert(error.revert_data or b'') or error.message}") from None
    end = time.monotonic() + MINED_S
    while time.monotonic() < end:
        receipt = await node.receipt(hash_from(digest))
        if receipt is not None:
            if int(receipt["status"], 16) != 1:
                raise SettlementFailed(f"transaction {digest} reverted")
            return str(digest)
        await asyncio.sleep(0.1)
    raise SettlementFailed(f"transaction {digest} was not mined within {MINED_S} s: publish again to look for it")


async def _send_signed(node: RpcClient, account: Any, chain_id: int, to: Address, data: bytes) -> Any:
    call = {"from": account.address, "to": hex0x(to), "data": hex0x(data)}
    gas = int(await node.call("eth_estimateGas", [call]), 16) * 6 // 5
    nonce = int(await node.call("eth_getTransactionCount", [account.address, "pending"]), 16)
    tip = 10**9
    fields = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "to": bytes(to),
        "value": 0,
        "data": data,
        "gas": gas,
        "maxFeePerGas": 2 * (await node.block("latest")).base_fee + tip,
        "maxPriorityFeePerGas": tip,
    }
    return await node.call("eth_sendRawTransaction", [hex0x(bytes(account.sign_transaction(fields).raw_transaction))])


async def _admissions(client: Client, bundle: PolicyBundle, chain_id: int, wait_s: float) -> list[dict[str, Any]]:
    """What every operator of the epoch says; waits until none is silent, or `wait_s` is over.

    Raises:
        PolicyNotAdmitted: so much stake refuses that two thirds cannot admit it any more. Less refuses nothing: the policy can be used.
    """
    end = time.monotonic() + wait_s
    while True:
        said: list[dict[str, Any]] = (await client.policy(hex0x(bundle.id)))["admissions"].get(str(chain_id), [])
        refused = [item for item in said if item["admitted"] is False]
        stake = sum(int(item["stake"]) for item in said)
        if refused and not meets(stake - sum(int(item["stake"]) for item in refused), stake, _QUORUM_BPS):
            reasons = [{"operator": item["operator"], "code": "refused", "reason": item["reason"]} for item in refused]
            raise PolicyNotAdmitted("operators refuse the policy", operators=reasons)
        if (said and all(item["admitted"] is not None for item in said)) or time.monotonic() >= end:
            return said
        await asyncio.sleep(0.2)
