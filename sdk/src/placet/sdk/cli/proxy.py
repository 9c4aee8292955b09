"""`placet proxy`: a local OpenAI endpoint that pays from a wallet and refuses answers that do not verify."""

from __future__ import annotations

import asyncio
import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from placet.core.errors import InvalidInput
from placet.core.receipts import Mode
from placet.core.types import address_from, hex0x
from placet.sdk.cli.common import running_network

_DEVELOPMENT = "eip155:31337"
"""The chain of `placet up`."""
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--gateway", envvar="PLACET_GATEWAY", help="Its URL; default: a running `placet up`, whose keys are trusted.")
@click.option("--api-key", envvar="PLACET_API_KEY", help="A key of the gateway's, for what is free or prepaid.")
@click.option("--wallet", "wallet_file", type=FILE, help="File of the paying key; default: that of `placet up`, or PLACET_WALLET_KEY.")
@click.option("--budget", required=True, help="The most that is ever spent, in whole units of the token, for instance 5.")
@click.option("--per-day", default=None, help="The most that is spent on a day (UTC).")
@click.option("--per-payment", default="0.10", show_default=True, help="The most that one request may cost.")
@click.option(
    "--asset",
    "assets",
    multiple=True,
    help="Token that may be paid with, eip155:<chain>/0x…[:decimals]; default: USDC on Base, or that of `placet up`.",
)
@click.option("--permit2", default="0", show_default=True, help="What you allowed Permit2: then only what is used is charged.")
@click.option("--pay-to", "payees", multiple=True, help="Who may be paid; default: anybody.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Hand over verified answers only.")
@click.option("--key", "keys", multiple=True, help="0x Ed25519 key that may sign receipts; may be repeated.")
@click.option("--trust-first-use", is_flag=True, help="Trust the keys that the gateway names when first asked, and no others.")
@click.option("--mode", type=click.Choice([item.value for item in Mode]), default=None, help="Asked for where a request names none.")
@click.option("--tee-policy", type=FILE, help="Which TEE evidence counts (docs/reference/tee.md).")
@click.option(
    "--state", type=click.Path(file_okay=False, path_type=Path), default=None, help="Folder of what was spent and which keys are trusted."
)
@click.option("--listen", default="127.0.0.1:8402", show_default=True, help="Address and port.")
@click.option("--anywhere", is_flag=True, help="Allow an address that others can reach. They need the key.")
@click.option("--local-key", envvar="PLACET_PROXY_KEY", default=None, help="The key that tools send; default: a new one at each start.")
def proxy(**options: Any) -> None:
    """Serve OpenAI's interface here: base URL and key are printed, and what is asked is paid for, verified, and handed over."""
    try:
        from placet.sdk.access import FIRST_USE, Access
        from placet.sdk.proxy import Proxy
        from placet.sdk.verified import TrustOnFirstUse
        from placet.sdk.wallet import USDC, Asset, Rules, Wallet
    except ImportError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'placet-sdk[inference]'") from None
    from placet.core.payment.prices import atomic
    from placet.sdk.budget import Budget

    host, port = _listen(options["listen"])
    ready = {} if options["gateway"] else running_network()
    first_use = options["trust_first_use"] or (bool(ready) and not options["keys"])
    if options["verify"] and bool(options["keys"]) is first_use:
        raise InvalidInput("whose receipts? give --key (once for each node), or --trust-first-use, or --no-verify")
    wallet_file = options["wallet_file"] or (ready.get("wallet") and Path(ready["wallet"]))
    wallet = Wallet.from_file(wallet_file) if wallet_file else Wallet.from_env()
    state = options["state"] or Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "placet"
    named = options["assets"] or ([f"{_DEVELOPMENT}/{ready['token']}"] if "token" in ready else [])
    assets = [Asset.parse(text) for text in named] or list(USDC[:1])
    allowed = [replace(item, permit2_allowance=atomic(options["permit2"], item.decimals)) for item in assets]
    payees = frozenset(address_from(text, field="pay-to") for text in options["payees"]) or None
    path = state / f"{hex0x(wallet.address)}.budget"
    budget = Budget(per_payment=options["per_payment"], per_day=options["per_day"], total=options["budget"], path=path)
    keys: Any = FIRST_USE if first_use else options["keys"]
    more: dict[str, Any] = {}
    if options["verify"]:
        more = {
            "keys": keys,
            "pins": None if ready else state / "keys.json",
            "mode": None if options["mode"] is None else Mode(options["mode"]),
        }
        more["tee_policy"] = _policy(options["tee_policy"])
    elif options["mode"] or options["tee_policy"] or options["keys"]:
        raise InvalidInput("--no-verify goes without --key, --mode and --tee-policy")
    access = Access(
        options["gateway"] or ready.get("gateway"),
        api_key=options["api_key"] or ready.get("apiKey"),
        wallet=wallet,
        budget=budget,
        rules=Rules(tuple(allowed), payees),
        verify=options["verify"],
        **more,
    )
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", TrustOnFirstUse)

    async def run() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        serving = Proxy(access, key=options["local_key"])
        url = await serving.start(host, port, anywhere=options["anywhere"])
        try:
            spent = budget.spent()
            click.echo(f"OPENAI_BASE_URL={url}")
            click.echo(f"OPENAI_API_KEY={serving.key}")
            click.echo(f"pays from {hex0x(wallet.address)} at {access.gateway}; spent {spent.total} of {options['budget']}", err=True)
            if not options["verify"]:
                click.echo("answers are NOT verified", err=True)
            await stopped.wait()
        finally:
            await serving.stop()
            click.echo(f"stopped; spent {budget.spent().total} in all, {budget.spent().today} today", err=True)

    asyncio.run(run())


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise InvalidInput("--listen: address:port wanted, for instance 127.0.0.1:8402", field="listen")
    return host.strip("[]"), int(port)


def _policy(path: Path | None) -> Any:
    if path is None:
        return None
    from placet.verify.tee import parse_policy

    return parse_policy(path.read_bytes())


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    click.echo(f"placet: {message}", err=True)
