"""`placet up` and `placet demo`."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import secrets
import shutil
import signal
from pathlib import Path

import click
import orjson
from eth_account import Account

from placet.core.errors import InvalidInput
from placet.core.types import address_from, hex0x
from placet.sdk.cli.common import cache_folder
from placet.sdk.demo import deploy_vault, tell
from placet.sdk.devservices.process import repository
from placet.sdk.local.network import LocalNetwork, LocalOptions
from placet.sdk.local.payments import TOKEN_DECIMALS, mint
from placet.sdk.local.pidfile import end_predecessor, record_self
from placet.sdk.packs import load_pack


def _quiet_logging(folder: Path) -> None:
    """Service logs go to a file; the terminal is for the story."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "services.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _fresh(folder: Path) -> None:
    if end_predecessor(folder):
        click.echo(f"the network that was running in {folder} is stopped: one at a time (another --dir runs beside it)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    record_self(folder)


@click.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=Path(".run/up"), show_default=True, help="Where its state lies.")
@click.option("--bus", type=click.Choice(["inprocess", "kafka"]), default="inprocess", show_default=True, help="kafka: separate processes.")
@click.option("--postgres", is_flag=True, help="PostgreSQL instead of SQLite.")
@click.option("--port", type=int, default=0, help="The gateway's port; a free one by default.")
@click.option("--vault/--no-vault", default=True, show_default=True, help="Deploy a vault under the pack spend-limit, to try things with.")
@click.option("--inference", type=click.IntRange(0, 8), default=0, show_default=True, help="Replicas that run models (extra `ai`).")
@click.option("--payments", is_flag=True, help="A dollar, Permit2 and a refund vault on the chain, and a wallet with 1,000 of it.")
@click.option("--otlp", default=None, help="OTLP/HTTP endpoint for traces, e.g. http://127.0.0.1:4318.")
def up(folder: Path, bus: str, postgres: bool, port: int, vault: bool, inference: int, payments: bool, otlp: str | None) -> None:
    """The whole network on this machine: chain, contracts, four operators, every service. Ctrl-C stops all of it."""
    if inference and importlib.util.find_spec("onnxruntime") is None:
        raise InvalidInput("--inference needs the extra `ai`: make install-ai, or pip install 'placet-sdk[ai]'")
    if payments and not inference:
        raise InvalidInput("--payments: there is nothing to be paid for without --inference")
    _fresh(folder)
    _quiet_logging(folder)
    options = LocalOptions(
        folder,
        separate=bus == "kafka",
        postgres=postgres,
        gateway_port=port,
        otlp_endpoint=otlp,
        compiled_cache=cache_folder(),
        inference=inference,
        payments=payments,
    )

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        async with LocalNetwork(options) as network:
            ready: dict[str, object] = {
                "gateway": network.gateway_url,
                "apiKey": network.api_key,
                "rpc": network.anvil.url,
                "deployments": str(network.deployments.resolve()),
                "objectStore": network.objects_url,
                "account": hex0x(network.accounts[3]),
                "operators": [hex0x(operator.address) for operator in network.operators],
            }
            if vault:
                bundle = load_pack(repository() / "policies" / "spend-limit").bundle
                await network.publish(bundle)
                _, address = await deploy_vault(network, bundle.id, network.accounts[3])
                ready["vault"] = hex0x(address)
            if payments:
                ready |= await _money(network, folder)
            (folder / "ready.json").write_bytes(orjson.dumps(ready, option=orjson.OPT_INDENT_2))
            click.echo("development keys and a development chain: nothing here is for production")
            click.echo(f"ready  gateway {network.gateway_url}  rpc {network.anvil.url}  state {folder}")
            click.echo(f"       api key {network.api_key}")
            if vault:
                click.echo(f"       vault {ready['vault']} under the pack spend-limit; account {ready['account']} has shares")
            if inference:
                click.echo(f"       models  OpenAI {network.gateway_url}/v1  Open Inference V2 {network.gateway_url}/v2")
            if payments:
                click.echo(f"       money   {ready['token']} (EIP-3009, Permit2); 1,000 of it in the wallet {ready['wallet']}")
            click.echo(f"try    placet intent send (docs/how-to/first-intent.md); API: {network.gateway_url}/api/v1/openapi.json")
            await stop.wait()
            click.echo("stopping")
            for name in ("ready.json", "pid.json"):
                (folder / name).unlink(missing_ok=True)

    asyncio.run(run())


async def _money(network: LocalNetwork, folder: Path) -> dict[str, object]:
    """A wallet to pay with."""
    assert network.money is not None
    secret = secrets.token_bytes(32)
    (folder / "wallet.key").touch(mode=0o600)
    (folder / "wallet.key").write_text(secret.hex())
    wallet, token = address_from(Account.from_key(secret).address), network.money.contracts.token
    await mint(network.chain, network.owner, token, wallet, 1_000 * 10**TOKEN_DECIMALS)
    return {"token": hex0x(token), "refundVault": hex0x(network.money.vault), "wallet": str(folder / "wallet.key")}


@click.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=Path(".run/demo"), show_default=True)
@click.option("--bus", type=click.Choice(["inprocess", "kafka"]), default="inprocess", show_default=True)
@click.option("--postgres", is_flag=True, help="PostgreSQL instead of SQLite.")
def demo(folder: Path, bus: str, postgres: bool) -> None:
    """Bring the network up and tell the story of an intent, with real output."""
    _fresh(folder)
    _quiet_logging(folder)
    options = LocalOptions(folder, separate=bus == "kafka", postgres=postgres, compiled_cache=cache_folder())
    asyncio.run(tell(options, click.echo))
