"""The networks of the end-to-end tests, to be broken."""

from tests.e2e.conftest import make_vault

__all__ = ["make_vault"]
