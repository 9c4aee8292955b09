"""Databases: PostgreSQL (asyncpg) where deployed, SQLite for the all-in-one. One schema a service; nobody reads another's tables.

Migrations are alembic scripts inside the service's package. They only expand, so a service runs with any schema at least as new as its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from importlib import resources
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Dialect, Table, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from placet.core.errors import Unavailable

DATABASE_ERRORS: tuple[type[Exception], ...] = (OSError, DBAPIError, PoolTimeout, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What using a database raises while it is away, starting or gone in between. A loop that must go on catches these and tries again."""

VERSION_TABLE = "alembic_version"
_migrating: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
"""alembic keeps its context in module globals: one migration at a time in a loop (the all-in-one starts several services in one)."""


def connect(url: str, *, pool_size: int = 8) -> AsyncEngine:
    """An engine for `postgresql://…` (through asyncpg) or `sqlite+aiosqlite:///…`."""
    if url.startswith("sqlite"):
        engine = create_async_engine(url)

        @event.listens_for(engine.sync_engine, "connect")
        def prepare(connection: Any, _: Any) -> None:
            cursor = connection.cursor()
            # FULL: a signing log that loses its last commit in a power cut could sign twice.
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        return engine
    url = url.replace("postgresql://", "postgresql+asyncpg://", 1)
    return create_async_engine(url, pool_size=pool_size, max_overflow=pool_size, pool_pre_ping=True)


def insert_new(table: Table, dialect: Dialect) -> Any:
    """INSERT … ON CONFLICT DO NOTHING for the dialect: `rowcount` is 1 for whoever came first."""
    make = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
    return make(table).on_conflict_do_nothing()


def _config(package: str, connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files(package)))
    config.attributes["connection"] = connection
    return config


def no_downgrade() -> NoReturn:
    """Every migration's `downgrade`. The way back is the older program, which runs with the newer schema and loses nothing."""
    raise NotImplementedError("migrations only expand: run the older program with this schema")


def _is_newer(current: set[str], script: ScriptDirectory) -> bool:
    """Whether a schema is the same service's (`operator_0001`) and of a later release, whose migrations are not known here."""
    service = (script.get_current_head() or "").rpartition("_")[0]
    known = {revision.revision for revision in script.walk_revisions()}
    return bool(current) and not current & known and all(name.rpartition("_")[0] == service for name in current)


async def migrate(engine: AsyncEngine, package: str) -> None:
    """Bring the schema up to the newest migration of `package` (e.g. `placet.operator.migrations`). A newer one is left as it is.

    Raises:
        Unavailable: the database does not answer.
    """

    def run(connection: Connection) -> None:
        config = _config(package, connection)
        current = set(MigrationContext.configure(connection).get_current_heads())
        if not _is_newer(current, ScriptDirectory.from_config(config)):
            command.upgrade(config, "head")

    try:
        lock = _migrating.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        async with lock, engine.begin() as connection:
            if connection.dialect.name == "postgresql":  # several replicas start at once
                await connection.execute(text("SELECT pg_advisory_xact_lock(7012911)"))
            await connection.run_sync(run)
    except DATABASE_ERRORS as error:
        raise Unavailable(f"database: {type(error).__name__}") from None


async def schema_problem(engine: AsyncEngine, package: str) -> str | None:
    """Why the schema is older than this program needs, or None. A newer schema is fine: migrations only expand."""
    script = await asyncio.to_thread(lambda: ScriptDirectory.from_config(_config(package)))
    try:
        async with engine.connect() as connection:
            rows: Iterable[Any] = (await connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}"))).all()  # noqa: S608
    except Exception as error:  # noqa: BLE001 - every driver has its own
        return f"database: {type(error).__name__}"
    current = {row[0] for row in rows}
    head = script.get_current_head()
    if head in current or _is_newer(current, script):
        return None
    return f"schema is at {sorted(current)}, {head} is needed"
