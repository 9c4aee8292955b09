"""`placet serve`: from a model's file to an address that sells its answers, in one command."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import click

from placet.core.errors import InvalidInput
from placet.core.models import Prices, Rate, parse_reference
from placet.core.payment.prices import atomic
from placet.core.types import address_from, hex0x
from placet.sdk.cli.common import connect, gateway_options, output_option, show

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("file", type=FILE)
@click.option("--as", "model", default=None, help="publisher/name; default: a name of your key, and the file's.")
@click.option("--price", required=True, help="What a request costs, in whole units of the token, for instance 0.001; 0: nothing.")
@click.option("--alias", default="prod", show_default=True)
@click.option("--asset", default=None, help="The token's address; default: the one that the gateway takes.")
@click.option("--pay-to", default=None, help="Who receives; default: the key's address.")
@click.option("--zkml", is_flag=True, help="Answers can be proven: refused when the network is not of that kind.")
@click.option("--breaking", is_flag=True, help="Move the alias also when its callers will notice.")
@click.option("--key-file", type=FILE, required=True, help="Hex secp256k1 key of the publisher.")
@gateway_options
@output_option
def serve(file: Path, output: str, **options: Any) -> None:
    """Upload FILE (.onnx), let `prod` mean it, set its price, and print where it is called."""
    from placet.sdk.hub import Publisher, PublisherKey, hub_id_of

    try:
        key = PublisherKey(bytes.fromhex(options["key_file"].read_text().strip().removeprefix("0x")))
    except ValueError:
        raise InvalidInput("--key-file: 64 hex digits wanted") from None
    name = options["model"] or f"p-{key.address.hex()[:12]}/{_name_of(file)}"
    reference, size = parse_reference(name, "as"), file.stat().st_size

    async def run() -> dict[str, Any]:
        async with connect(options["gateway"], options["api_key"]) as client:
            asset = await _asset(client, options["asset"], free=options["price"] == "0")
            amount = 0 if asset is None else atomic(options["price"], asset["decimals"])
            publisher = Publisher(client, await hub_id_of(client), reference.publisher, key)
            await publisher.claim()
            with click.progressbar(length=size, label="uploading", hidden=output == "json") as bar:
                sent = 0

                def progress(_: str, done: int, __: int) -> None:
                    nonlocal sent
                    bar.update(done - sent)
                    sent = done

                manifest = await publisher.publish(reference.name, {"model.onnx": file}, zkml=options["zkml"], progress=progress)
            if asset is not None:
                pay_to = key.address if options["pay_to"] is None else address_from(options["pay_to"], field="pay-to")
                token = address_from(asset["asset"], field="asset")
                # The price stands before callers can come.
                await publisher.price(reference.name, Prices(asset["network"], token, pay_to, Rate(request=amount)))
            await publisher.move(reference.name, options["alias"], manifest.version, breaking=options["breaking"])
            return {
                "model": f"{reference.publisher}/{reference.name}",
                "version": manifest.version,
                "url": f"{client.url}/v2/models/{reference.publisher}/{reference.name}/infer",
                "price": str(amount),
                "asset": None if asset is None else asset["asset"],
                "network": None if asset is None else asset["network"],
                "payTo": None if asset is None else hex0x(key.address) if options["pay_to"] is None else options["pay_to"],
            }

    document = asyncio.run(run())
    cost = "free, with an API key" if document["asset"] is None else f"{document['price']} of {document['asset']} on {document['network']}"
    lines = [f"{document['model']}@{document['version']} is served", f"POST {document['url']}", f"a request costs {cost}"]
    show(document, output, lines)


def _name_of(file: Path) -> str:
    """A model's name of a file's."""
    name = re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("-._")
    return name[:64].rstrip("-._") or "model"


async def _asset(client: Any, wanted: str | None, *, free: bool) -> dict[str, Any] | None:
    if free:
        return None
    taken: list[dict[str, Any]] = (await client.request("GET", "/api/v1/payments/assets"))[1]["assets"]
    found = [item for item in taken if wanted is None or item["asset"].lower() == wanted.lower()]
    if len(found) != 1:
        known = ", ".join(f"{item['asset']} on {item['network']} ({item['name']})" for item in taken) or "none"
        raise InvalidInput(f"--asset: one of those that the gateway takes wanted: {known}")
    return found[0]
