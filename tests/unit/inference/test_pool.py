"""Models in memory: fetched whole or not at all, loaded once, freed for others, and never while somebody uses them."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from placet.core.errors import InvalidInput, Unavailable
from placet.core.models import File, Kind, Manifest, manifest_digest
from placet.core.objects import ObjectStore
from placet.core.types import Hash32
from placet.inference.hub.store import VersionRow
from placet.inference.pool import ModelPool

SIZE = 100


class Engine:
    def __init__(self) -> None:
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class Shelf:
    """A pool over files, with engines that only know whether they were closed."""

    def __init__(self, folder: Path, max_models: int) -> None:
        self.objects = ObjectStore((folder / "objects").as_uri())
        self.folder = folder
        self.now = 0.0
        self.loads = 0
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.pool = ModelPool(
            objects=self.objects, cache=folder / "cache", load=self.load, max_bytes=max_models * SIZE, clock=lambda: self.now
        )

    async def load(self, manifest: Manifest, folder: Path) -> Any:
        self.loads += 1
        assert (folder / "model.onnx").stat().st_size == SIZE
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return Engine()

    async def row(self, number: int) -> VersionRow:
        content = bytes([number]) * SIZE
        await self.objects.put(content)
        file = File("model.onnx", Hash32(hashlib.sha256(content).digest()), SIZE)
        manifest = Manifest("a", f"m{number}", 1, Kind.TENSORS, (file,))
        return VersionRow(manifest, manifest_digest(manifest), b"", b"", 0, None)


async def test_a_model_is_loaded_once_however_many_ask(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 2)
    row = await shelf.row(1)
    taken = await asyncio.gather(*(shelf.pool.take(row) for _ in range(10)))
    assert shelf.loads == 1
    assert all(item is taken[0] for item in taken)
    assert taken[0].in_use == 10


async def test_the_least_recently_used_goes_and_never_one_in_use(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 2)
    rows = [await shelf.row(number) for number in range(4)]
    first, second = [await shelf.pool.take(row) for row in rows[:2]]
    await shelf.pool.give(second)
    third = await shelf.pool.take(rows[2])
    assert (first.engine.closed, second.engine.closed) == (False, True)  # type: ignore[union-attr]
    waiting = asyncio.create_task(shelf.pool.take(rows[3]))
    await asyncio.sleep(0)
    assert not waiting.done()
    await shelf.pool.give(third)
    await waiting
    assert third.engine.closed  # type: ignore[union-attr]
    assert not first.engine.closed  # type: ignore[union-attr]


async def test_one_that_cannot_be_loaded_is_refused_for_a_while_and_then_tried_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 1)
    row = await shelf.row(1)
    shelf.failure = RuntimeError("secret of the inside")
    for _ in range(3):
        with pytest.raises(Unavailable, match="RuntimeError") as caught:
            await shelf.pool.take(row)
        assert "secret" not in caught.value.message
    assert shelf.loads == 1
    shelf.failure = None
    shelf.now += 11
    await shelf.pool.take(row)


async def test_what_never_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="100 bytes"):
        await Shelf(tmp_path, 0).pool.take(await Shelf(tmp_path, 0).row(1))


async def test_a_folder_is_there_in_full_or_not_at_all(tmp_path: Path) -> None:
    """Two replicas of one machine share the folder; a fetch that fails leaves nothing behind."""
    first, second = Shelf(tmp_path, 1), Shelf(tmp_path, 1)
    row = await first.row(1)
    await asyncio.gather(first.pool.take(row), second.pool.take(row))
    models = tmp_path / "cache" / "models"
    assert [path.name for path in models.iterdir()] == [row.sha256.hex()]
    missing = File("model.onnx", Hash32(b"\x01" * 32), SIZE)
    manifest = Manifest("a", "gone", 1, Kind.TENSORS, (missing,))
    await first.pool.give(first.pool.loaded()[0])
    with pytest.raises(Exception, match="no blob"):
        await first.pool.take(VersionRow(manifest, manifest_digest(manifest), b"", b"", 0, None))
    assert [path.name for path in models.iterdir()] == [row.sha256.hex()]


async def test_who_asks_and_leaves_does_not_stop_the_load_of_others(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 1)
    row = await shelf.row(1)
    shelf.gate.clear()
    leaving, staying = (asyncio.create_task(shelf.pool.take(row)) for _ in range(2))
    while not shelf.loads:
        await asyncio.sleep(0)
    leaving.cancel()
    shelf.gate.set()
    assert (await staying).in_use == 1
