"""Evidence records: found again, checked, and removed when their time is over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from placet.core.db import connect, migrate
from placet.core.digests import EVIDENCE_PARTS
from placet.core.errors import NotFound, VerificationFailed
from placet.core.evidence import EvidenceRecord
from placet.core.objects import ObjectStore
from placet.core.types import Address, Hash32
from placet.operator.evidence_store import EvidenceStore

DAY_S = 86_400
NOW = 20_000 * DAY_S + 100


def record(number: int) -> EvidenceRecord:
    return EvidenceRecord(Hash32(bytes([number]) * 32), {name: name.encode() for name in EVIDENCE_PARTS})


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[list[EvidenceStore]]:
    """Of two operators, over one object store."""
    objects = ObjectStore((tmp_path / "objects").as_uri())
    engines = [connect(f"sqlite+aiosqlite:///{tmp_path / name}") for name in ("0.db", "1.db")]
    for engine in engines:
        await migrate(engine, "placet.operator.migrations")
    yield [EvidenceStore(objects, engine, Address(bytes([at]) * 20), 90 * DAY_S) for at, engine in enumerate(engines)]
    for engine in engines:
        await engine.dispose()


def objects_in(folder: Path) -> list[Path]:
    return [path for path in (folder / "objects").rglob("*") if path.is_file()]


async def test_operators_with_one_store_keep_one_object(tmp_path: Path, stores: list[EvidenceStore]) -> None:
    for store in stores:
        await store.put([record(1), record(2)], NOW)
        assert await store.get(record(2).digest()) == record(2)
    (kept,) = objects_in(tmp_path)
    assert kept.parts[-3:-1] == ("evidence", "20000")


async def test_what_is_older_than_it_is_kept_goes_and_nothing_else(tmp_path: Path, stores: list[EvidenceStore]) -> None:
    for store in stores:
        await store.put([record(1)], NOW)
        await store.put([record(2)], NOW + 1)
        await store.prune(NOW + 90 * DAY_S)  # to the second: not yet
        assert await store.get(record(1).digest()) == record(1)
    for store in stores:  # the second finds the object gone
        await store.prune(NOW + 90 * DAY_S + 1)
        with pytest.raises(NotFound):
            await store.get(record(1).digest())
        assert await store.get(record(2).digest()) == record(2)
    assert len(objects_in(tmp_path)) == 1


async def test_26_an_overwritten_record_is_not_shown(tmp_path: Path, stores: list[EvidenceStore]) -> None:
    store = stores[0]
    await store.put([record(1)], NOW)
    (path,) = objects_in(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"0x", b"0X"))
    with pytest.raises(VerificationFailed):
        await store.get(record(1).digest())
