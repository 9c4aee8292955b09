"""How many bytes a decision leaves behind, store by store: alone, and in batches. Run `python -m bench.storage [--intents N]`."""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

from bench.authorization import ask
from placet.core import topics
from placet.core.bus import Bus, TopicPartition
from placet.sdk.cli.common import cache_folder
from placet.sdk.devservices.process import repository
from placet.sdk.local.network import LocalNetwork, LocalOptions
from placet.sdk.packs import load_pack

TOPICS = (topics.TASKS, topics.OBSERVATIONS, topics.PROPOSALS, topics.RESPONSES, topics.ATTESTATIONS)


async def on_topics(bus: Bus) -> dict[str, int]:
    """Bytes of keys, values and headers of everything in each topic."""
    sizes = {}
    for topic in TOPICS:
        starts = dict.fromkeys((TopicPartition(topic, number) for number in range(topics.BATCH_PARTITIONS)), None)
        records = [record for found in (await bus.read_many_to_end(starts)).values() for record in found]
        sizes[topic] = sum(len(r.key or b"") + len(r.value or b"") + sum(len(k) + len(v) for k, v in r.headers) for r in records)
    return sizes


def in_database(path: Path) -> int:
    """Bytes of the pages in use."""
    with sqlite3.connect(path) as connection:
        pages, free, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)


async def stores(network: LocalNetwork, bus: Bus) -> dict[str, int]:
    """Bytes by store now."""
    folder = network.folder
    return {
        **await on_topics(bus),
        "gateway database": in_database(folder / "gateway.db"),
        "one operator's database": in_database(folder / "operator-0.db"),
        "object store": sum(file.stat().st_size for file in (folder / "objects").rglob("*") if file.is_file()),
    }


async def measure(intents: int) -> dict[str, Any]:
    """Bytes a decision, each way."""
    out = {}
    with tempfile.TemporaryDirectory(prefix="placet-bench-") as folder:
        async with LocalNetwork(LocalOptions(Path(folder) / "net", compiled_cache=cache_folder())) as network:
            bundle = load_pack(
                repository() / "policies" / "spend-limit", params={"max_amount": "1000", "max_count": 10**6, "blocked": []}
            ).bundle
            await network.publish(bundle)
            token = await network.chain.deploy(network.owner, "TestToken", "Bench", "BNC", 18)
            vault = await network.chain.deploy(network.owner, "GuardedVault", token, "Vault", "vBNC", network.client_config(bundle.id))
            bus = network.bus()
            await bus.start()
            async with network.client() as client:
                for way in ("alone", "together"):
                    before = await stores(network, bus)
                    if way == "alone":
                        for _ in range(intents):
                            await ask(client, vault, network.accounts[3])
                    else:
                        await asyncio.gather(*(ask(client, vault, network.accounts[3]) for _ in range(intents)))
                    await asyncio.sleep(1)  # what is written after the answer
                    after = await stores(network, bus)
                    out[way] = {name: round((after[name] - before[name]) / intents) for name in after}
            await bus.stop()
    return out


def main() -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--intents", type=int, default=200)
    result = asyncio.run(measure(parser.parse_args().intents))
    sys.stdout.write(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode() + "\n")


if __name__ == "__main__":
    main()
