"""What several commands share: options, output, the connection file of `placet up`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson

from placet.core.errors import InvalidInput
from placet.sdk.client import Client

F = TypeVar("F", bound=Callable[..., Any])

READY_FILE = Path(".run/up/ready.json")


def output_option(function: F) -> F:
    """`--output text|json`."""
    return click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)(function)


def gateway_options(function: F) -> F:
    """`--gateway` and `--api-key`, from the environment or from a running `placet up`."""
    function = click.option("--gateway", envvar="PLACET_GATEWAY", help="The gateway's URL; default: that of a running `placet up`.")(
        function
    )
    return click.option("--api-key", envvar="PLACET_API_KEY", help="API key; default: that of a running `placet up`.")(function)


def running_network() -> dict[str, Any]:
    """What a running `placet up` of this folder says of itself: gateway, apiKey, rpc, deployments, objectStore, account. Else nothing."""
    found: dict[str, Any] = orjson.loads(READY_FILE.read_bytes()) if READY_FILE.exists() else {}
    return found


def connect(gateway: str | None, api_key: str | None) -> Client:
    """A client of the gateway named by options, environment, or a running `placet up`.

    Raises:
        InvalidInput: says what to set.
    """
    if gateway is None or api_key is None:
        ready = running_network()
        gateway, api_key = gateway or ready.get("gateway"), api_key or ready.get("apiKey")
    if gateway is None or api_key is None:
        raise InvalidInput("which gateway? give --gateway and --api-key, or PLACET_GATEWAY and PLACET_API_KEY, or run `placet up` here")
    return Client(gateway, api_key)


def read_json(path: Path, what: str) -> Any:
    """A JSON file. Raises InvalidInput naming it."""
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{what}: {path}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInput(f"{what}: {path} is not JSON: {error}") from None


def show(value: Any, output: str, lines: list[str]) -> None:
    """Print a result as JSON or as lines."""
    if output == "json":
        click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    else:
        for line in lines:
            click.echo(line)


def cache_folder() -> Path:
    """Compiled code, per user and shared by all operators of the machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "placet"
