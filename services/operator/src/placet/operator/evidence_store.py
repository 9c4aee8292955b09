"""Evidence records: stored before a leaf is signed, so that what is signed can be shown (threats 26). One object a batch and group, found
again through an index in the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core import jsonx
from placet.core.db import insert_new
from placet.core.digests import EVIDENCE_PARTS
from placet.core.errors import NotFound, VerificationFailed
from placet.core.evidence import EvidenceRecord
from placet.core.objects import ObjectStore, sha256
from placet.core.types import Address, Hash32, hash_from, hex0x

_METADATA = sa.MetaData()
_INDEX = sa.Table(
    "evidence_index",
    _METADATA,
    sa.Column("operator", sa.LargeBinary(20), primary_key=True),
    sa.Column("evidence", sa.LargeBinary(32), primary_key=True),
    sa.Column("object_sha256", sa.LargeBinary(32)),
    sa.Column("created_at", sa.BigInteger),
)
MAX_OBJECT_BYTES = 256 << 20
_DAY_S = 86_400
_PRUNED_AT_ONCE = 500


def encode_record(record: EvidenceRecord) -> dict[str, Any]:
    """A record as JSON values; contents in hex, since they are bytes."""
    return {
        "evidence": hex0x(record.digest()),
        "salt": hex0x(record.salt),
        "parts": {name: hex0x(record.parts[name]) for name in EVIDENCE_PARTS},
    }


def decode_record(value: dict[str, Any]) -> EvidenceRecord:
    """A record from its JSON values."""
    return EvidenceRecord(hash_from(value["salt"]), {name: bytes.fromhex(value["parts"][name][2:]) for name in EVIDENCE_PARTS})


def _name(created_at: int, address: bytes) -> str:
    """Where an object lies: by day, so that a bucket's own rule may expire them too."""
    return f"evidence/{created_at // _DAY_S}/{address.hex()}"


class EvidenceStore:
    """One operator's records, kept for `keep_s` seconds. Operators with one store write the same objects; the shortest time counts."""

    def __init__(self, objects: ObjectStore, engine: AsyncEngine, operator: Address, keep_s: int) -> None:
        self._objects = objects
        self._engine = engine
        self._operator = operator
        self._keep_s = keep_s

    async def put(self, records: Sequence[EvidenceRecord], now: int) -> None:
        """Store records durably. Raises Unavailable."""
        digests = {record.digest(): record for record in records}
        query = sa.select(_INDEX.c.evidence).where(_INDEX.c.operator == self._operator, _INDEX.c.evidence.in_(list(digests)))
        async with self._engine.connect() as connection:
            known = set((await connection.execute(query)).scalars())
        entries = [encode_record(record) for digest, record in digests.items() if digest not in known]
        if not entries:
            return  # a Proposal's group of a batch that was signed whole
        content = jsonx.canonical(entries)
        address = sha256(content)
        await self._objects.put_named(_name(now, address), content)
        rows = [
            {"operator": self._operator, "evidence": hash_from(entry["evidence"]), "object_sha256": address, "created_at": now}
            for entry in entries
        ]
        async with self._engine.begin() as connection:
            await connection.execute(insert_new(_INDEX, connection.dialect), rows)

    async def get(self, evidence: Hash32) -> EvidenceRecord:
        """The record behind a leaf's `evidence`. Raises NotFound."""
        query = sa.select(_INDEX).where(_INDEX.c.operator == self._operator, _INDEX.c.evidence == evidence)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound("no record with this digest", field="evidence")
        try:
            raw = await self._objects.get_named(_name(row.created_at, row.object_sha256), max_bytes=MAX_OBJECT_BYTES)
        except NotFound:  # of a release that kept evidence among the blobs
            raw = await self._objects.get(Hash32(row.object_sha256), max_bytes=MAX_OBJECT_BYTES)
        if sha256(raw) != row.object_sha256:
            raise VerificationFailed("the object store returned bytes with another digest", field="sha256")
        for entry in jsonx.parse(raw, field="evidence", max_bytes=MAX_OBJECT_BYTES, max_depth=8):
            if entry["evidence"] == hex0x(evidence):
                return decode_record(entry)
        raise NotFound("no record with this digest", field="evidence")

    async def prune(self, now: int) -> None:
        """Remove records older than they are kept. Raises Unavailable."""
        old = (_INDEX.c.operator == self._operator, _INDEX.c.created_at < now - self._keep_s)
        while True:
            query = sa.select(_INDEX.c.created_at, _INDEX.c.object_sha256).where(*old).distinct().limit(_PRUNED_AT_ONCE)
            async with self._engine.connect() as connection:
                rows = (await connection.execute(query)).all()
            if not rows:
                return
            for row in rows:  # the object first: a row without one can be pruned again
                await self._objects.delete_named(_name(row.created_at, row.object_sha256))
                await self._objects.delete(Hash32(row.object_sha256))  # of a release that kept evidence among the blobs
            async with self._engine.begin() as connection:
                await connection.execute(sa.delete(_INDEX).where(*old, _INDEX.c.object_sha256.in_([row.object_sha256 for row in rows])))
