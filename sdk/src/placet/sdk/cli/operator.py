"""`placet operator`: make keys, register them, look at the set."""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path
from typing import Any

import click
import orjson
from eth_account import Account

from placet.core import bls
from placet.core.digests import key_id, register_key_digest
from placet.core.envelope import LocalBusSigner
from placet.core.errors import InvalidInput, SettlementFailed
from placet.core.evm.contracts import G1, G2, encode_call, words
from placet.core.evm.reader import ChainReader
from placet.core.evm.reverts import name_of_revert
from placet.core.evm.rpc import RpcClient, RpcError
from placet.core.keystore import decrypt, encrypt, write_private
from placet.core.settings import load_deployment
from placet.core.types import Address, address_from, hash_from, hex0x
from placet.sdk.cli.common import output_option, read_json, show
from placet.sdk.documents import operator_set_json

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def operator() -> None:
    """Operators' keys and registration."""


@operator.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--password-file", type=FILE, help="Password of the keystore; asked for when not given.")
@output_option
def keygen(folder: Path, password_file: Path | None, output: str) -> None:
    """Make an operator's keys in FOLDER: bls.json (EIP-2335 keystore), bus.key, password. Existing files are never overwritten."""
    if password_file is not None:
        password = password_file.read_text().rstrip("\r\n")
    elif sys.stdin.isatty():
        password = click.prompt("Keystore password", hide_input=True, confirmation_prompt=True)
    else:
        raise InvalidInput("no terminal to ask for a password: give --password-file")
    if len(password) < 8:
        raise InvalidInput("the keystore's password needs at least 8 characters")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("bls.json", "bus.key", "password"):
        if (folder / name).exists():
            raise InvalidInput(f"{folder / name} exists: choose another folder")
    secret = (1 + secrets.randbelow(bls.CURVE_ORDER - 1)).to_bytes(32, "big")
    seed = secrets.token_bytes(32)
    write_private(folder / "bls.json", encrypt(secret, password))
    write_private(folder / "bus.key", seed.hex().encode())
    write_private(folder / "password", password.encode())
    public = {
        "blsKey": hex0x(bls.public_key(secret)),
        "keyId": hex0x(key_id(bls.encode_g1(bls.public_key(secret)))),
        "busKey": hex0x(LocalBusSigner(seed).public_key),
    }
    show(public, output, [f"keys in {folder}", *(f"  {name} {value}" for name, value in public.items())])


@operator.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rpc", required=True, help="Node's JSON-RPC URL.")
@click.option("--deployments", type=FILE, required=True)
@click.option("--key-file", type=FILE, required=True, help="Hex key of the operator's account (or of the registry's owner).")
@click.option("--operator", "operator_address", default=None, help="The operator's address; default: the account's own.")
@output_option
def register(folder: Path, rpc: str, deployments: Path, key_file: Path, operator_address: str | None, output: str) -> None:
    """Register the keys in FOLDER: proof of possession and binding signature, sent from the account in --key-file."""
    account = Account.from_key(key_file.read_text().strip())
    who = address_from(operator_address or account.address)
    secret = decrypt((folder / "bls.json").read_bytes(), (folder / "password").read_text().rstrip("\r\n"))
    bus_key = LocalBusSigner(bytes.fromhex((folder / "bus.key").read_text().strip())).public_key

    async def run() -> dict[str, Any]:
        async with RpcClient([rpc], timeout_s=30) as node:
            chain_id = await node.chain_id()
            deployment = load_deployment(deployments, chain_id)
            public = bls.encode_g1(bls.public_key(secret))
            digest = register_key_digest(who, key_id(public), bus_key, chain_id, deployment.operator_registry)
            data = encode_call(
                f"register(address,{G1},bytes32,{G2},{G2})",
                who,
                words(public),
                bus_key,
                words(bls.encode_g2(bls.prove_possession(secret))),
                words(bls.encode_g2(bls.sign(secret, digest))),
            )
            receipt = await send_transaction(node, account, chain_id, deployment.operator_registry, data)
            return {"operator": hex0x(who), "keyId": hex0x(key_id(public)), "transactionHash": receipt["transactionHash"]}

    done = asyncio.run(run())
    note = "it counts from the next activation on (`activate()` by anyone, once the activation delay is over)"
    show(done, output, [f"registered {done['operator']} with key {done['keyId']}", f"  transaction {done['transactionHash']}", f"  {note}"])


async def send_transaction(node: RpcClient, account: Any, chain_id: int, to: Address, data: bytes) -> dict[str, Any]:
    """Sign, send and wait for one transaction.

    Raises:
        SettlementFailed: it would revert (named error), or did.
    """
    call = {"from": account.address, "to": hex0x(to), "data": hex0x(data)}
    try:
        gas = int(await node.call("eth_estimateGas", [call]), 16) * 6 // 5
        nonce = int(await node.call("eth_getTransactionCount", [account.address, "pending"]), 16)
        fee = 2 * (await node.block("latest")).base_fee + 10**9
        fields = {
            "type": 2,
            "chainId": chain_id,
            "nonce": nonce,
            "to": bytes(to),
            "value": 0,
            "data": data,
            "gas": gas,
            "maxFeePerGas": fee,
            "maxPriorityFeePerGas": min(fee, 10**9),
        }
        digest = await node.call("eth_sendRawTransaction", [hex0x(bytes(account.sign_transaction(fields).raw_transaction))])
    except RpcError as error:
        raise SettlementFailed(f"would revert: {name_of_revert(error.revert_data or b'') or error.message}") from None
    for _ in range(600):
        receipt = await node.receipt(hash_from(digest))
        if receipt is not None:
            if int(receipt["status"], 16) != 1:
                raise SettlementFailed(f"transaction {digest} reverted")
            return receipt
        await asyncio.sleep(0.1)
    raise SettlementFailed(f"transaction {digest} was not mined within a minute")


@operator.command()
@click.option("--rpc", required=True, help="Node's JSON-RPC URL.")
@click.option("--deployments", type=FILE, required=True)
@click.option("--epoch", type=int, default=None, help="Default: the current one.")
@click.option("--record", is_flag=True, help="Write the set into the deployments file, for `placet verify`.")
@output_option
def status(rpc: str, deployments: Path, epoch: int | None, record: bool, output: str) -> None:
    """Show the operators of an epoch."""

    async def run() -> dict[str, Any]:
        async with RpcClient([rpc], timeout_s=30) as node:
            deployment = load_deployment(deployments, await node.chain_id())
            reader = ChainReader(node, deployment)
            block = await node.block("latest")
            state = await reader.at(block.hash)
            wanted = state.epoch if epoch is None else epoch
            found = operator_set_json(await reader.operator_set(wanted, block.hash))
            return {"current": state.epoch, "minEpoch": state.min_epoch, "block": block.number, **found}

    found = asyncio.run(run())
    if record:
        document = read_json(deployments, "deployments")
        kept = [item for item in document.get("epochs", []) if item["epoch"] != found["epoch"]]
        entry = {name: found[name] for name in ("epoch", "vacantStake", "operators")}
        document["epochs"] = sorted([*kept, entry], key=lambda item: item["epoch"])
        deployments.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    lines = [f"epoch {found['epoch']} (current {found['current']}, oldest usable {found['minEpoch']}) at block {found['block']}"]
    lines += [f"  {item['operator']}  stake {item['stake']:>8}  key {item['keyId'][:18]}…" for item in found["operators"]]
    show(found, output, lines)
