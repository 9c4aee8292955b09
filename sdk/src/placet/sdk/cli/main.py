"""The `placet` command: the network on one machine, policies, intents, operators, verification."""

from __future__ import annotations

import sys

import click

from placet.core.errors import PlacetError
from placet.sdk.cli import bus, intent, local, operator, policy, verify


class _Commands(click.Group):
    """Turns Placet's errors into one line that says what to do, and exit status 1."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except PlacetError as error:
            click.echo(f"placet: {error.message}", err=True)
            for item in error.extra.get("operators", []):
                click.echo(
                    f"  {item.get('operator')}: {item.get('code') or ''} {item.get('message') or item.get('reason') or ''}", err=True
                )
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="placet-sdk", prog_name="placet")
def cli() -> None:
    """Placet decides whether a transaction may execute before it does."""


cli.add_command(local.up)
cli.add_command(local.demo)
cli.add_command(intent.intent)
cli.add_command(policy.policy)
cli.add_command(operator.operator)
cli.add_command(verify.verify)
cli.add_command(bus.kafka)
cli.add_command(bus.topics)


def main() -> None:
    """Entry point."""
    cli()


if __name__ == "__main__":
    main()
