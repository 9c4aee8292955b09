"""`placet models`: the Model Hub from the command line. Publishers sign with a key; anybody may look."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from placet.core.errors import InvalidInput
from placet.core.models import Prices, Rate, parse_reference
from placet.core.types import address_from
from placet.sdk.cli.common import connect, gateway_options, output_option, show
from placet.sdk.client import Client

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@click.group()
def models() -> None:
    """Publish models, move aliases, set prices, look around."""


def _signing(function: F) -> F:
    """`--key-file` and `--hub`."""
    function = click.option("--hub", default=None, help="The hub's id, which is signed; default: what the gateway says.")(function)
    return click.option("--key-file", type=FILE, required=True, help="Hex secp256k1 key of the publisher.")(function)


def _ask(options: dict[str, Any], work: Callable[[Client], Awaitable[T]]) -> T:
    async def run() -> T:
        async with connect(options["gateway"], options["api_key"]) as client:
            return await work(client)

    return asyncio.run(run())


async def _publisher(client: Client, name: str, options: dict[str, Any]) -> Any:
    from placet.sdk.hub import Publisher, PublisherKey, hub_id_of  # a curve's library, which only publishers need

    try:
        secret = bytes.fromhex(options["key_file"].read_text().strip().removeprefix("0x"))
    except ValueError:
        raise InvalidInput("--key-file: 64 hex digits wanted") from None
    return Publisher(client, options["hub"] or await hub_id_of(client), name, PublisherKey(secret))


@models.command("list")
@click.option("--search", default="", help="Words that the name or the description holds.")
@click.option("--publisher", default="", help="Only of this publisher.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@gateway_options
@output_option
def list_models(search: str, publisher: str, limit: int, output: str, **options: Any) -> None:
    """List models by name, or search them."""
    from placet.sdk.hub import page

    async def work(client: Client) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after: str | None = ""
        while after is not None and len(found) < limit:
            rows, after = await page(client, search=search, publisher=publisher, after=after, limit=min(200, limit - len(found)))
            found += rows
        return found

    found = _ask(options, work)
    lines = [f"{item['name']:<40} {item['kind']:<10} {_aliases(item):<24} {_price_text(item)}" for item in found]
    show({"models": found}, output, lines or ["no model"])


def _aliases(item: dict[str, Any]) -> str:
    return ", ".join(f"{alias} → {version}" for alias, version in sorted(item["aliases"].items())) or f"newest {item['newest']}"


def _price_text(item: dict[str, Any]) -> str:
    prices = item["prices"]
    if prices is None:
        return "free"
    parts = [f"{amount} a {name}" for name, amount in prices["rate"].items() if amount != "0"]
    return f"{', '.join(parts) or '0'} ({prices['network']} {prices['asset'][:10]}…)"


@models.command("show")
@click.argument("model")
@gateway_options
@output_option
def show_model(model: str, output: str, **options: Any) -> None:
    """Describe MODEL (publisher/name): versions, aliases, tensors."""
    from placet.sdk.hub import describe

    document = _ask(options, lambda client: describe(client, parse_reference(model)))
    lines = [f"{document['name']}  {document['kind']}  {_price_text(document)}", document["description"]]
    for version in document["versions"]:
        manifest = version["manifest"]
        meant = [alias for alias, number in document["aliases"].items() if number == manifest["version"]]
        marks = [*meant, *(["deprecated: " + version["deprecated"]] if version["deprecated"] else [])]
        lines.append(f"version {manifest['version']:<4} {version['sha256'][:18]}…  {_time(version['publishedAt'])}  {', '.join(marks)}")
        for what in ("inputs", "outputs"):
            lines += [f"    {what[:-1]:<7} {spec['name']}: {spec['datatype']}{spec['shape']}" for spec in manifest[what]]
    show(document, output, [line for line in lines if line])


def _time(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M")


@models.command()
@click.argument("publisher")
@_signing
@gateway_options
@output_option
def claim(publisher: str, output: str, **options: Any) -> None:
    """Take the name PUBLISHER: it belongs to the key that claims it first."""

    async def work(client: Client) -> dict[str, Any]:
        found: dict[str, Any] = await (await _publisher(client, publisher, options)).claim()
        return found

    document = _ask(options, work)
    show(document, output, [f"{document['publisher']} belongs to {document['address']}"])


@models.command()
@click.argument("model")
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--kind", type=click.Choice(["tensors", "text", "embedding", "upstream"]), default="tensors", show_default=True)
@click.option("--description", default="")
@click.option("--license", "licence", default="")
@click.option("--alias", default=None, help="Let this alias mean the new version, for instance prod.")
@click.option("--breaking", is_flag=True, help="Move the alias also when its callers will notice.")
@click.option("--zkml", is_flag=True, help="Answers can be proven: refused when the network is not of that kind.")
@_signing
@gateway_options
@output_option
def publish(model: str, files: tuple[Path, ...], output: str, **options: Any) -> None:
    """Publish a version of MODEL (publisher/name) from FILES, or from a folder: `model.onnx` and what belongs to it.

    One .onnx file is uploaded as model.onnx whatever its name.
    """
    reference = parse_reference(model)
    if bool(files) is (options["kind"] == "upstream"):
        raise InvalidInput("FILES: a model of kind upstream has none, any other has some")
    found = _collect(files)

    async def work(client: Client) -> Any:
        publisher = await _publisher(client, reference.publisher, options)
        with click.progressbar(
            length=sum(path.stat().st_size for path in found.values()), label="uploading", hidden=output == "json"
        ) as bar:
            sent: dict[str, int] = {}

            def progress(name: str, done: int, _: int) -> None:
                bar.update(done - sent.get(name, 0))
                sent[name] = done

            manifest = await publisher.publish(
                reference.name,
                found,
                kind=options["kind"],
                description=options["description"],
                licence=options["licence"],
                zkml=options["zkml"],
                progress=progress,
            )
        if options["alias"] is not None:
            await publisher.move(reference.name, options["alias"], manifest.version, breaking=options["breaking"])
        return manifest

    from placet.core.models import manifest_digest, manifest_document
    from placet.core.types import hex0x

    manifest = _ask(options, work)
    digest = hex0x(manifest_digest(manifest))
    lines = [f"{reference.publisher}/{reference.name}@{manifest.version}  {digest}"]
    lines += [f"  {alias} → {manifest.version}" for alias in [options["alias"]] if alias]
    show({"manifest": manifest_document(manifest), "sha256": digest}, output, lines)


def _collect(files: tuple[Path, ...]) -> dict[str, Path]:
    if len(files) == 1 and files[0].is_file():
        return {"model.onnx": files[0]}
    out: dict[str, Path] = {}
    for path in files:
        if path.is_dir():
            out |= {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
        else:
            out[path.name] = path
    return out


@models.command()
@click.argument("model")
@click.argument("file", type=FILE)
@click.option("--by", type=click.Choice(["publisher", "client", "ceremony"]), default="publisher", show_default=True)
@_signing
@gateway_options
@output_option
def setup(model: str, file: Path, by: str, output: str, **options: Any) -> None:
    """Make keys for proofs of MODEL (publisher/name@version) from its FILE, here, and register them.

    What the keys are made from is thrown away when this ends. Whoever kept it could forge, so verifiers are told who ran this: the signer.
    """
    try:
        from placet.inference.proofs.prover import Prover, read_network
    except ImportError:
        raise InvalidInput("making keys needs the inference service's packages: pip install 'placet-sdk[ai]'") from None
    import tempfile

    from placet.core.models import manifest_of
    from placet.sdk.hub import describe

    reference = parse_reference(model)
    network = read_network(file)

    async def work(client: Client) -> dict[str, Any]:
        document = await describe(client, reference)
        wanted = reference.version or document["aliases"].get(reference.alias)
        found = [item["manifest"] for item in document["versions"] if item["manifest"]["version"] == wanted]
        if not found:
            raise InvalidInput(f"{reference} is no version of the model")
        manifest = manifest_of(found[0])
        if manifest.zk_network_sha256 != network.digest():
            raise InvalidInput(f"{file} is not the file of {reference}, or that is not published with --zkml")
        with tempfile.TemporaryDirectory(prefix="placet-setup-") as scratch:
            pk, vk = Path(scratch) / "proving.key", Path(scratch) / "verifying.key"
            click.echo("making keys; a network of 265,000 weights takes some 15 s", err=True)
            made = await asyncio.to_thread(Prover(network).setup)
            pk.write_bytes(made[0])
            vk.write_bytes(made[1])
            publisher = await _publisher(client, reference.publisher, options)
            registered: dict[str, Any] = await publisher.register_setup(manifest, pk, vk, by=by)
            return registered

    document = _ask(options, work)
    show(document, output, [f"verifying key {document['vkSha256']}, made by {document['address']}"])


@models.command()
@click.argument("model")
@click.argument("alias")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--breaking", is_flag=True, help="Also when tensor names, types or shapes differ.")
@_signing
@gateway_options
@output_option
def alias(model: str, alias: str, version: int, breaking: bool, output: str, **options: Any) -> None:
    """Let ALIAS of MODEL mean VERSION: forward or back."""
    reference = parse_reference(model)

    async def work(client: Client) -> dict[str, Any]:
        publisher = await _publisher(client, reference.publisher, options)
        found: dict[str, Any] = await publisher.move(reference.name, alias, version, breaking=breaking)
        return found

    document = _ask(options, work)
    show(document, output, [f"{document['model']}@{alias} → {version} (was {document['previous'] or 'nothing'})"])


@models.command()
@click.argument("model")
@click.argument("alias", default="prod")
@_signing
@gateway_options
@output_option
def rollback(model: str, alias: str, output: str, **options: Any) -> None:
    """Let ALIAS of MODEL mean what it meant before its last move."""
    from placet.sdk.hub import history

    reference = parse_reference(model)

    async def work(client: Client) -> dict[str, Any]:
        moves = [move for move in await history(client, reference) if move["alias"] == alias]
        if not moves or moves[0]["previous"] is None:
            raise InvalidInput(f"{alias} of {model} has not meant anything before")
        publisher = await _publisher(client, reference.publisher, options)
        found: dict[str, Any] = await publisher.move(reference.name, alias, moves[0]["previous"], breaking=True)
        return found

    document = _ask(options, work)
    show(document, output, [f"{document['model']}@{alias} → {document['version']} (was {document['previous']})"])


@models.command("history")
@click.argument("model")
@gateway_options
@output_option
def show_history(model: str, output: str, **options: Any) -> None:
    """Every move of MODEL's aliases, newest first."""
    from placet.sdk.hub import history

    moves = list(_ask(options, lambda client: history(client, parse_reference(model))))
    lines = [f"{_time(move['at'])}  {move['alias']:<12} {move['previous'] or '-'} → {move['version']}" for move in moves]
    show({"moves": moves}, output, lines or ["no alias was ever set"])


@models.command()
@click.argument("model")
@click.option("--network", required=True, help="CAIP-2, for instance eip155:8453.")
@click.option("--asset", required=True, help="The token's address.")
@click.option("--pay-to", required=True, help="Who receives.")
@click.option("--request", "per_request", default="0", help="Atomic units a request.")
@click.option("--row", default="0", help="Atomic units a row of a tensor.")
@click.option("--million-prompt-tokens", default="0")
@click.option("--million-completion-tokens", default="0")
@_signing
@gateway_options
@output_option
def price(model: str, output: str, **options: Any) -> None:
    """Set what MODEL costs, in atomic units of one token."""
    reference = parse_reference(model)
    rate = Rate(
        _amount(options["per_request"], "--request"),
        _amount(options["row"], "--row"),
        _amount(options["million_prompt_tokens"], "--million-prompt-tokens"),
        _amount(options["million_completion_tokens"], "--million-completion-tokens"),
    )
    asset, pay_to = address_from(options["asset"], field="asset"), address_from(options["pay_to"], field="pay-to")
    prices = Prices(options["network"], asset, pay_to, rate)

    async def work(client: Client) -> dict[str, Any]:
        found: dict[str, Any] = await (await _publisher(client, reference.publisher, options)).price(reference.name, prices)
        return found

    document = _ask(options, work)
    show(document, output, [f"{document['model']}: {_price_text(document)}"])


def _amount(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise InvalidInput(f"{name}: a whole number of atomic units wanted")
    return int(text)


@models.command()
@click.argument("model")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--reason", required=True, help="Why; an empty one takes the mark away.")
@_signing
@gateway_options
@output_option
def deprecate(model: str, version: int, reason: str, output: str, **options: Any) -> None:
    """Mark VERSION of MODEL as one not to use any more."""
    reference = parse_reference(model)

    async def work(client: Client) -> dict[str, Any]:
        publisher = await _publisher(client, reference.publisher, options)
        found: dict[str, Any] = await publisher.deprecate(reference.name, version, reason)
        return found

    document = _ask(options, work)
    show(document, output, [f"{document['model']}@{version}: {document['deprecated'] or 'in use'}"])


@models.command()
@click.argument("model")
@click.argument("version", type=click.IntRange(min=1))
@_signing
@gateway_options
@output_option
def delete(model: str, version: int, output: str, **options: Any) -> None:
    """Delete VERSION of MODEL, if no alias means it. Its number is never given again."""
    reference = parse_reference(model)

    async def work(client: Client) -> dict[str, Any]:
        publisher = await _publisher(client, reference.publisher, options)
        found: dict[str, Any] = await publisher.delete(reference.name, version)
        return found

    document = _ask(options, work)
    show(document, output, [f"{document['model']}@{version} is deleted"])


@models.command()
@click.argument("model")
@gateway_options
@output_option
def revenue(model: str, output: str, **options: Any) -> None:
    """Requests, tokens and income of MODEL, by version and day."""
    from placet.sdk.hub import describe

    usage = _ask(options, lambda client: describe(client, parse_reference(model)))["usage"]
    lines = [
        f"{_day(item['day'])}  version {item['version']:<4} {item['requests']:>8} requests  {item['failures']:>5} failed  "
        f"{item['promptTokens']:>10} + {item['completionTokens']:<10} tokens  {item['rows']:>8} rows  "
        f"{item['revenue'] + ' of ' + item['asset'] if item['asset'] else 'unpaid'}"
        for item in usage
    ]
    show({"usage": usage}, output, lines or ["not used yet"])


def _day(number: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=number)).isoformat()
