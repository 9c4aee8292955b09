"""Migrations only expand (docs/attestation-cycle.md)."""

import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core.db import _config, migrate, no_downgrade, schema_problem
from tests.support.databases import NewEngine, database, postgres

__all__ = ["database", "postgres"]

SERVICES = ["gateway", "operator", "settlement"]
OPERATOR = "placet.operator.migrations"


async def _at(database: NewEngine, revision: str) -> AsyncEngine:
    engine = await database(OPERATOR)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    return engine


@pytest.mark.parametrize("service", SERVICES)
def test_no_migration_has_a_way_back(service: str) -> None:
    revisions = list(ScriptDirectory.from_config(_config(f"placet.{service}.migrations")).walk_revisions())
    assert revisions
    assert all(revision.module.downgrade is no_downgrade for revision in revisions)
    with pytest.raises(NotImplementedError, match="run the older program"):
        no_downgrade()


async def test_a_program_starts_with_the_schema_of_a_later_release(database: NewEngine) -> None:
    engine = await _at(database, "operator_0099")
    await migrate(engine, OPERATOR)
    assert await schema_problem(engine, OPERATOR) is None


async def test_a_program_does_not_start_with_another_services_schema(database: NewEngine) -> None:
    engine = await _at(database, "gateway_0001")
    with pytest.raises(CommandError):
        await migrate(engine, OPERATOR)
    assert await schema_problem(engine, OPERATOR) == "schema is at ['gateway_0001'], operator_0001 is needed"
