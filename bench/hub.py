"""How long paging and searching take over 2,000 models, in SQLite. Run `python -m bench.hub`."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import orjson

from placet.core.db import connect, migrate
from placet.core.models import Kind, Manifest
from placet.core.types import Hash32
from placet.inference.hub.store import HubStore

MODELS = 2000


async def measure() -> dict[str, float]:
    """Median milliseconds of each question."""
    with tempfile.TemporaryDirectory(prefix="placet-bench-") as folder:
        engine = connect(f"sqlite+aiosqlite:///{Path(folder) / 'hub.db'}")
        await migrate(engine, "placet.inference.migrations")
        store = HubStore(engine)
        async with store.change(Hash32(bytes(32)), 1) as change:
            for number in range(MODELS):
                manifest = Manifest(f"p{number % 50:02}", f"m{number:04}", 1, Kind.UPSTREAM, (), description=f"model number {number}")
                await change.publish(manifest, b"", b"", 1)
        out = {}
        for search in ("", "m1999", "number 7", "p49 model"):
            taken = []
            for _ in range(20):
                started = time.perf_counter()
                await store.page(search=search, limit=50)
                taken.append(1000 * (time.perf_counter() - started))
            out[search or "first page"] = round(statistics.median(taken), 2)
        await engine.dispose()
        return out


def main() -> None:
    """Print the measurements as JSON."""
    sys.stdout.write(orjson.dumps(asyncio.run(measure()), option=orjson.OPT_INDENT_2).decode() + "\n")


if __name__ == "__main__":
    main()
