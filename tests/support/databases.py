"""A fresh, migrated database a test, on SQLite and on PostgreSQL: what must hold on both is tested on both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core.db import connect, migrate
from placet.sdk.devservices.postgres import Postgres

NewEngine = Callable[[str], Awaitable[AsyncEngine]]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres(durable=False) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NewEngine]:
    """A function that opens one more connection pool to this test's database, as one more replica would."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'test.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres").database()
    async with AsyncExitStack() as stack:

        async def open_engine(migrations: str) -> AsyncEngine:
            engine = connect(url)
            stack.push_async_callback(engine.dispose)
            await migrate(engine, migrations)
            return engine

        yield open_engine
