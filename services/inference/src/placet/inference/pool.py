"""Models that are loaded. A version is fetched once, loaded on first use, and freed when memory is wanted for another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from placet.core.errors import InvalidInput, PlacetError, Unavailable
from placet.core.models import Manifest
from placet.core.objects import ObjectStore
from placet.core.telemetry import metrics
from placet.core.types import Hash32
from placet.inference.engines.base import EmbeddingEngine, RelayEngine, TensorEngine, TextEngine
from placet.inference.hub.inspector import Inspector
from placet.inference.hub.store import VersionRow

log = logging.getLogger(__name__)

Engine = TensorEngine | TextEngine | EmbeddingEngine | RelayEngine
_LOADED = metrics.gauge("placet_inference_loaded_bytes", "Files of the models in memory.", [])
_LOADS = metrics.counter("placet_inference_model_loads_total", "Loads of a model version, by outcome.", ["outcome"])
_RETRY_S = 10.0
"""How long a version that could not be loaded is refused without trying again."""
_WINDOW = 512


class Loader(Protocol):
    """Makes an engine of a folder with a model's files."""

    async def __call__(self, manifest: Manifest, folder: Path) -> Engine:
        """Load. Raises PlacetError."""


@dataclass
class Loaded:
    """One version in memory."""

    row: VersionRow
    engine: Engine
    folder: Path
    size: int
    in_use: int = 0
    used_at: float = 0.0
    first_ms: list[float] = field(default_factory=list)
    last_ms: list[float] = field(default_factory=list)

    @property
    def manifest(self) -> Manifest:
        """What it is."""
        return self.row.manifest

    def note(self, first_s: float, last_s: float) -> None:
        """Remember how long an answer took, to its first byte and to its last."""
        for values, taken in ((self.first_ms, first_s), (self.last_ms, last_s)):
            values.append(1000 * taken)
            if len(values) > _WINDOW:
                del values[: _WINDOW // 2]

    @staticmethod
    def p95(values: list[float]) -> float:
        """The 95th percentile of what was measured lately; 0 when nothing was."""
        return sorted(values)[int(0.95 * (len(values) - 1))] if values else 0.0


class ModelPool:
    """Engines by their model's digest."""

    def __init__(
        self,
        *,
        objects: ObjectStore,
        cache: Path,
        load: Loader,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetcher = Inspector(objects, cache)
        self._cache = cache
        self._load = load
        self._max_bytes = max_bytes
        self._clock = clock
        self._loaded: OrderedDict[Hash32, Loaded] = OrderedDict()
        self._loading: dict[Hash32, asyncio.Task[Loaded]] = {}
        self._failed: dict[Hash32, tuple[float, PlacetError]] = {}
        self._freed = asyncio.Condition()

    def loaded(self) -> list[Loaded]:
        """What is in memory, least recently used first."""
        return list(self._loaded.values())

    async def take(self, row: VersionRow) -> Loaded:
        """The version, loaded if need be. Give it back with `give`.

        Raises:
            InvalidInput: it is of a kind that is not run here, or too large. Unavailable: it cannot be loaded now. NotFound.
        """
        while (loaded := self._loaded.get(row.sha256)) is None:  # again, if it was freed for another before we came to use it
            failed = self._failed.get(row.sha256)
            if failed is not None and self._clock() < failed[0] + _RETRY_S:
                raise failed[1]
            if row.sha256 not in self._loading:
                task = asyncio.create_task(self._bring(row), name=f"load {row.sha256.hex()[:8]}")
                self._loading[row.sha256] = task
                task.add_done_callback(lambda done: self._brought(row.sha256, done))
            await asyncio.shield(self._loading[row.sha256])
        loaded.in_use += 1
        loaded.used_at = self._clock()
        self._loaded.move_to_end(row.sha256)
        return loaded

    async def give(self, loaded: Loaded) -> None:
        """Not needed any more."""
        loaded.in_use -= 1
        if not loaded.in_use:
            async with self._freed:
                self._freed.notify_all()

    def _brought(self, sha256: Hash32, task: asyncio.Task[Loaded]) -> None:
        self._loading.pop(sha256, None)
        if task.cancelled():
            return
        error = task.exception()
        _LOADS.labels("loaded" if error is None else "failed").inc()
        if isinstance(error, PlacetError):
            self._failed[sha256] = self._clock(), error
        elif error is not None:
            log.error("model %s", sha256.hex(), exc_info=error)

    async def _bring(self, row: VersionRow) -> Loaded:
        manifest = row.manifest
        size = sum(file.size for file in manifest.files)
        if size > self._max_bytes:
            raise InvalidInput(f"model: {size} bytes; this replica holds {self._max_bytes}", field="model")
        await self._make_room(size)
        folder = self._cache / "models" / row.sha256.hex()
        if not await asyncio.to_thread(folder.is_dir):
            await self._fill(folder, manifest)
        try:
            engine = await self._load(manifest, folder)
        except PlacetError:
            raise
        except Exception as error:
            log.exception("model %s/%s@%d", manifest.publisher, manifest.name, manifest.version)
            raise Unavailable(f"the model could not be loaded ({type(error).__name__})") from None
        loaded = Loaded(row, engine, folder, size, used_at=self._clock())
        self._loaded[row.sha256] = loaded
        _LOADED.set(sum(item.size for item in self._loaded.values()))
        return loaded

    async def _fill(self, folder: Path, manifest: Manifest) -> None:
        """The model's files under a name that is there in full or not at all, whichever replica of this machine comes first."""
        await asyncio.to_thread(folder.parent.mkdir, parents=True, exist_ok=True)
        part = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="part-", dir=folder.parent))
        try:
            await self._fetcher.fetch(manifest.files, part)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(part.rename, folder)
            if not await asyncio.to_thread(folder.is_dir):
                raise Unavailable(f"{folder.parent} cannot be written")
        finally:
            await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)

    async def _make_room(self, size: int) -> None:
        """Free models that nobody uses, least recently used first; wait for those in use."""
        async with asyncio.timeout(60), self._freed:
            while sum(item.size for item in self._loaded.values()) + size > self._max_bytes:
                idle = next((item for item in self._loaded.values() if not item.in_use), None)
                if idle is None:
                    await self._freed.wait()
                    continue
                del self._loaded[idle.row.sha256]
                _LOADED.set(sum(item.size for item in self._loaded.values()))
                await idle.engine.close()

    async def close(self) -> None:
        """Free everything."""
        for task in list(self._loading.values()):
            task.cancel()
        for loaded in self._loaded.values():
            await loaded.engine.close()
        self._loaded.clear()
