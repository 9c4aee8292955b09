"""The `placet` command: the network on one machine, policies, intents, operators, verification."""

from __future__ import annotations

import importlib
import sys

import click

from placet.core.errors import PlacetError

_MODULES = {
    "up": "local",
    "demo": "local",
    "intent": "intent",
    "policy": "policy",
    "operator": "operator",
    "models": "models",
    "serve": "serve",
    "verify": "verify",
    "proxy": "proxy",
    "kafka": "bus",
    "topics": "bus",
    "completion": "completion",
}
"""Command -> module of `placet.sdk.cli` that has it under its name: imported when it is used, since some need much."""


class _Commands(click.Group):
    """Turns Placet's errors into one line that says what to do, and exit status 1."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        found = getattr(importlib.import_module(f"placet.sdk.cli.{_MODULES[name]}"), name)
        assert isinstance(found, click.Command)
        return found

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


def main() -> None:
    """Entry point."""
    cli()


if __name__ == "__main__":
    main()
