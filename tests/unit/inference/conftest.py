"""Databases of both kinds."""

from tests.support.databases import database, postgres

__all__ = ["database", "postgres"]
