"""The Model Hub's tables. Every change by a publisher is one transaction that also notes the statement, so that none is taken twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from placet.core.db import insert_new
from placet.core.errors import Conflict, NotFound
from placet.core.models import Manifest, Prices, Reference, decode_manifest, encode_manifest, manifest_digest, prices_document, prices_of
from placet.core.types import Address, Hash32

_METADATA = sa.MetaData()
_PUBLISHER = sa.Table(
    "publisher",
    _METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("address", sa.LargeBinary(20)),
    sa.Column("claimed_at", sa.BigInteger),
)
_MODEL = sa.Table(
    "model",
    _METADATA,
    sa.Column("publisher", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("description", sa.Text),
    sa.Column("search", sa.Text),
    sa.Column("prices", sa.Text),
    sa.Column("previous_prices", sa.Text),
    sa.Column("priced_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger),
)
_VERSION = sa.Table(
    "version",
    _METADATA,
    sa.Column("publisher", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("sha256", sa.LargeBinary(32)),
    sa.Column("kind", sa.String(16)),
    sa.Column("manifest", sa.LargeBinary),
    sa.Column("statement", sa.LargeBinary),
    sa.Column("signature", sa.LargeBinary),
    sa.Column("published_at", sa.BigInteger),
    sa.Column("deprecated", sa.Text),
    sa.Column("deleted_at", sa.BigInteger),
)
_ALIAS = sa.Table(
    "alias",
    _METADATA,
    sa.Column("publisher", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("alias", sa.String(32), primary_key=True),
    sa.Column("version", sa.Integer),
)
_MOVE = sa.Table(
    "alias_move",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("publisher", sa.String(64)),
    sa.Column("name", sa.String(64)),
    sa.Column("alias", sa.String(32)),
    sa.Column("version", sa.Integer),
    sa.Column("previous", sa.Integer),
    sa.Column("at", sa.BigInteger),
    sa.Column("statement", sa.LargeBinary),
)
_STATEMENT = sa.Table("statement", _METADATA, sa.Column("digest", sa.LargeBinary(32), primary_key=True), sa.Column("at", sa.BigInteger))


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version as it stands. `deprecated` is the reason, when it is."""

    manifest: Manifest
    sha256: Hash32
    statement: bytes
    signature: bytes
    published_at: int
    deprecated: str | None


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model. `previous_prices` still hold for payments signed before `priced_at` plus the payment's own time."""

    publisher: str
    name: str
    prices: Prices | None
    previous_prices: Prices | None
    priced_at: int | None
    aliases: Mapping[str, int]
    newest: int
    kind: str
    description: str


@dataclass(frozen=True, slots=True)
class Move:
    """One move of an alias."""

    alias: str
    version: int
    previous: int | None
    at: int


class HubStore:
    """All access to the hub's database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def change(self, digest: Hash32, at: int) -> AsyncIterator[HubChange]:
        """One statement's transaction. Raises Conflict when the statement was taken before."""
        async with self._engine.begin() as connection:
            inserted = await connection.execute(insert_new(_STATEMENT, connection.dialect), {"digest": digest, "at": at})
            if inserted.rowcount != 1:
                raise Conflict("this statement was taken before; sign a new one", field="statement")
            yield HubChange(connection)

    async def forget_statements(self, before: int) -> None:
        """Forget statements that are too old to be taken anyway."""
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(_STATEMENT).where(_STATEMENT.c.at < before))

    async def owner_of(self, publisher: str) -> Address | None:
        """Whose name it is."""
        async with self._engine.connect() as connection:
            found = (await connection.execute(sa.select(_PUBLISHER.c.address).where(_PUBLISHER.c.name == publisher))).scalar_one_or_none()
        return None if found is None else Address(found)

    async def resolve(self, reference: Reference) -> VersionRow:
        """The version that a reference means now. Raises NotFound."""
        where = (_VERSION.c.publisher == reference.publisher, _VERSION.c.name == reference.name, _VERSION.c.deleted_at.is_(None))
        if reference.version is not None:
            query = sa.select(_VERSION).where(*where, _VERSION.c.version == reference.version)
        else:
            same = sa.and_(
                _ALIAS.c.publisher == _VERSION.c.publisher, _ALIAS.c.name == _VERSION.c.name, _ALIAS.c.version == _VERSION.c.version
            )
            query = sa.select(_VERSION).join(_ALIAS, same).where(*where, _ALIAS.c.alias == reference.alias)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound(f"no model {reference}", field="model")
        return _version(row)

    async def by_digest(self, sha256: Hash32) -> VersionRow:
        """A version by its manifest's digest. Raises NotFound."""
        query = sa.select(_VERSION).where(_VERSION.c.sha256 == sha256, _VERSION.c.deleted_at.is_(None))
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound("no model with this digest", field="modelSha256")
        return _version(row)

    async def versions(self, publisher: str, name: str) -> list[VersionRow]:
        """All versions that were not deleted, newest first."""
        query = sa.select(_VERSION).where(_VERSION.c.publisher == publisher, _VERSION.c.name == name, _VERSION.c.deleted_at.is_(None))
        async with self._engine.connect() as connection:
            return [_version(row) for row in (await connection.execute(query.order_by(_VERSION.c.version.desc()))).all()]

    async def moves(self, publisher: str, name: str, alias: str | None = None) -> list[Move]:
        """The history of a model's aliases, newest first, 1,000 at most."""
        query = sa.select(_MOVE).where(_MOVE.c.publisher == publisher, _MOVE.c.name == name)
        if alias is not None:
            query = query.where(_MOVE.c.alias == alias)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query.order_by(_MOVE.c.id.desc()).limit(1000))).all()
        return [Move(row.alias, row.version, row.previous, row.at) for row in rows]

    async def model(self, publisher: str, name: str) -> ModelRow:
        """One model. Raises NotFound."""
        found = await self._models(sa.select(_MODEL).where(_MODEL.c.publisher == publisher, _MODEL.c.name == name))
        if not found:
            raise NotFound(f"no model {publisher}/{name}", field="model")
        return found[0]

    async def page(
        self, *, search: str | None = None, publisher: str | None = None, after: tuple[str, str] | None = None, limit: int = 50
    ) -> list[ModelRow]:
        """Models by name, after a place; those whose name or description holds every word of `search`."""
        query = sa.select(_MODEL).order_by(_MODEL.c.publisher, _MODEL.c.name).limit(limit)
        if publisher is not None:
            query = query.where(_MODEL.c.publisher == publisher)
        for word in (search or "").lower().split()[:8]:
            query = query.where(_MODEL.c.search.contains(word, autoescape=True))
        if after is not None:
            query = query.where(sa.tuple_(_MODEL.c.publisher, _MODEL.c.name) > sa.tuple_(*map(sa.literal, after)))
        return await self._models(query)

    async def _models(self, query: Any) -> list[ModelRow]:
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
            keys = [(row.publisher, row.name) for row in rows]
            if not keys:
                return []
            aliases = (await connection.execute(sa.select(_ALIAS).where(sa.tuple_(_ALIAS.c.publisher, _ALIAS.c.name).in_(keys)))).all()
            newest = sa.select(
                _VERSION.c.publisher,
                _VERSION.c.name,
                sa.func.max(_VERSION.c.version).label("newest"),
                sa.func.max(_VERSION.c.kind).label("kind"),
            ).where(sa.tuple_(_VERSION.c.publisher, _VERSION.c.name).in_(keys), _VERSION.c.deleted_at.is_(None))
            versions = (await connection.execute(newest.group_by(_VERSION.c.publisher, _VERSION.c.name))).all()
        of_model: dict[tuple[str, str], dict[str, int]] = {}
        for item in aliases:
            of_model.setdefault((item.publisher, item.name), {})[item.alias] = item.version
        latest = {(item.publisher, item.name): (item.newest, item.kind) for item in versions}
        return [_model(row, of_model.get(key, {}), *latest.get(key, (0, ""))) for row, key in zip(rows, keys, strict=True)]


class HubChange:
    """What one statement may change."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def owner_of(self, publisher: str) -> Address | None:
        """Whose name it is, and nobody else changes it before this transaction ends."""
        query = sa.select(_PUBLISHER.c.address).where(_PUBLISHER.c.name == publisher).with_for_update()
        found = (await self._connection.execute(query)).scalar_one_or_none()
        return None if found is None else Address(found)

    async def claim(self, publisher: str, address: Address, now: int) -> bool:
        """Take a name; False when somebody has it."""
        row = {"name": publisher, "address": address, "claimed_at": now}
        return bool((await self._connection.execute(insert_new(_PUBLISHER, self._connection.dialect), row)).rowcount == 1)

    async def transfer(self, publisher: str, address: Address) -> None:
        """Give a name to another address."""
        await self._connection.execute(sa.update(_PUBLISHER).where(_PUBLISHER.c.name == publisher).values(address=address))

    async def newest_version(self, publisher: str, name: str) -> int:
        """The highest number ever given, deleted ones included; 0 when there is none."""
        query = sa.select(sa.func.max(_VERSION.c.version)).where(_VERSION.c.publisher == publisher, _VERSION.c.name == name)
        return int((await self._connection.execute(query)).scalar_one_or_none() or 0)

    async def publish(self, manifest: Manifest, statement: bytes, signature: bytes, now: int) -> None:
        """Add a version, and the model with its first."""
        search = f"{manifest.publisher}/{manifest.name} {manifest.description}".lower()
        shown = {"description": manifest.description, "search": search}
        row = {"publisher": manifest.publisher, "name": manifest.name, "created_at": now, **shown}
        await self._connection.execute(insert_new(_MODEL, self._connection.dialect), row)
        same = (_MODEL.c.publisher == manifest.publisher, _MODEL.c.name == manifest.name)
        await self._connection.execute(sa.update(_MODEL).where(*same).values(**shown))
        await self._connection.execute(
            sa.insert(_VERSION).values(
                publisher=manifest.publisher,
                name=manifest.name,
                version=manifest.version,
                sha256=manifest_digest(manifest),
                kind=manifest.kind.value,
                manifest=encode_manifest(manifest),
                statement=statement,
                signature=signature,
                published_at=now,
            )
        )

    async def version(self, publisher: str, name: str, version: int) -> VersionRow:
        """A version that was not deleted. Raises NotFound."""
        query = sa.select(_VERSION).where(
            _VERSION.c.publisher == publisher, _VERSION.c.name == name, _VERSION.c.version == version, _VERSION.c.deleted_at.is_(None)
        )
        row = (await self._connection.execute(query)).first()
        if row is None:
            raise NotFound(f"no version {version} of {publisher}/{name}", field="version")
        return _version(row)

    async def alias(self, publisher: str, name: str, alias: str) -> int | None:
        """Which version an alias means."""
        query = sa.select(_ALIAS.c.version).where(_ALIAS.c.publisher == publisher, _ALIAS.c.name == name, _ALIAS.c.alias == alias)
        found = (await self._connection.execute(query)).scalar_one_or_none()
        return None if found is None else int(found)

    async def aliases_of(self, publisher: str, name: str, version: int) -> list[str]:
        """Aliases that mean a version."""
        query = sa.select(_ALIAS.c.alias).where(_ALIAS.c.publisher == publisher, _ALIAS.c.name == name, _ALIAS.c.version == version)
        return sorted((await self._connection.execute(query)).scalars())

    async def move(self, publisher: str, name: str, alias: str, version: int, previous: int | None, statement: bytes, now: int) -> None:
        """Move an alias, and write it down."""
        key = {"publisher": publisher, "name": name, "alias": alias}
        if previous is None:
            await self._connection.execute(sa.insert(_ALIAS).values(**key, version=version))
        else:
            same = (_ALIAS.c.publisher == publisher, _ALIAS.c.name == name, _ALIAS.c.alias == alias)
            await self._connection.execute(sa.update(_ALIAS).where(*same).values(version=version))
        await self._connection.execute(sa.insert(_MOVE).values(**key, version=version, previous=previous, at=now, statement=statement))

    async def price(self, publisher: str, name: str, prices: Prices, now: int) -> None:
        """Set prices; the ones before are kept, because payments are under way. Raises NotFound."""
        same = (_MODEL.c.publisher == publisher, _MODEL.c.name == name)
        text = orjson.dumps(prices_document(prices)).decode()
        values = {"previous_prices": _MODEL.c.prices, "prices": text, "priced_at": now}
        if (await self._connection.execute(sa.update(_MODEL).where(*same).values(**values))).rowcount != 1:
            raise NotFound(f"no model {publisher}/{name}", field="model")

    async def deprecate(self, publisher: str, name: str, version: int, reason: str) -> None:
        """Mark a version; an empty reason takes the mark away."""
        same = (_VERSION.c.publisher == publisher, _VERSION.c.name == name, _VERSION.c.version == version)
        await self._connection.execute(sa.update(_VERSION).where(*same).values(deprecated=reason or None))

    async def delete(self, publisher: str, name: str, version: int, now: int) -> None:
        """Take a version away. Its number is never given again."""
        same = (_VERSION.c.publisher == publisher, _VERSION.c.name == name, _VERSION.c.version == version)
        await self._connection.execute(sa.update(_VERSION).where(*same).values(deleted_at=now))


def _version(row: Any) -> VersionRow:
    return VersionRow(decode_manifest(row.manifest), Hash32(row.sha256), row.statement, row.signature, row.published_at, row.deprecated)


def _model(row: Any, aliases: Mapping[str, int], newest: int, kind: str) -> ModelRow:
    return ModelRow(
        row.publisher,
        row.name,
        prices_of(orjson.loads(row.prices)) if row.prices else None,
        prices_of(orjson.loads(row.previous_prices)) if row.previous_prices else None,
        row.priced_at,
        aliases,
        newest,
        kind,
        row.description,
    )
