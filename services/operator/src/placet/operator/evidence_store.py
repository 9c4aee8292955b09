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
from placet.core.errors import NotFound
from placet.core.evidence import EvidenceRecord
from placet.core.objects import ObjectStore
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


class EvidenceStore:
    """One operator's records."""

    def __init__(self, objects: ObjectStore, engine: AsyncEngine, operator: Address) -> None:
        self._objects = objects
        self._engine = engine
        self._operator = operator

    async def put(self, records: Sequence[EvidenceRecord], now: int) -> None:
        """Store records durably. Raises Unavailable."""
        entries = [encode_record(record) for record in records]
        address = await self._objects.put(jsonx.canonical(entries))
        rows = [
            {"operator": self._operator, "evidence": hash_from(entry["evidence"]), "object_sha256": address, "created_at": now}
            for entry in entries
        ]
        async with self._engine.begin() as connection:
            await connection.execute(insert_new(_INDEX, connection.dialect), rows)

    async def get(self, evidence: Hash32) -> EvidenceRecord:
        """The record behind a leaf's `evidence`. Raises NotFound."""
        query = sa.select(_INDEX.c.object_sha256).where(_INDEX.c.operator == self._operator, _INDEX.c.evidence == evidence)
        async with self._engine.connect() as connection:
            address = (await connection.execute(query)).scalar_one_or_none()
        if address is None:
            raise NotFound("no record with this digest", field="evidence")
        raw = await self._objects.get(Hash32(address), max_bytes=MAX_OBJECT_BYTES)
        for entry in jsonx.parse(raw, field="evidence", max_bytes=MAX_OBJECT_BYTES, max_depth=8):
            if entry["evidence"] == hex0x(evidence):
                return decode_record(entry)
        raise NotFound("no record with this digest", field="evidence")
