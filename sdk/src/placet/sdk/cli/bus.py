"""`placet kafka` and `placet topics`: the broker of development, and the topics of any."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from placet.core import topics as table
from placet.sdk.devservices.kafka import apply_topics
from placet.sdk.devservices.kafka import main as kafka_main


@click.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=Path(".run/kafka"), show_default=True)
@click.option("--port", type=int, default=0, help="A free one by default.")
def kafka(folder: Path, port: int) -> None:
    """A real Apache Kafka broker for development, watched and started again when it dies. Ctrl-C stops it."""
    raise SystemExit(kafka_main([str(folder), "--port", str(port), "--topics"]))


@click.group()
def topics() -> None:
    """The bus's topics."""


@topics.command("apply")
@click.option("--bootstrap", required=True, help="Broker as host:port.")
def apply_command(bootstrap: str) -> None:
    """Create the topics that are missing."""
    created = asyncio.run(apply_topics(bootstrap))
    click.echo("\n".join(created) if created else "nothing to do")


@topics.command("list")
def list_command() -> None:
    """The table of topics, as the reference page has it."""
    click.echo(table.to_markdown())
