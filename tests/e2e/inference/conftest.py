"""A gateway with two inference replicas in this process, and a publisher."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from placet.sdk.client import Client
from placet.sdk.hub import Publisher, PublisherKey
from placet.sdk.local.network import LocalNetwork, LocalOptions
from tests.support import onnx_files


@dataclass
class Town:
    """What the tests talk to."""

    network: LocalNetwork
    client: Client
    alice: Publisher
    folder: Path

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    async def publish(self, name: str, content: bytes, alias: str | None = "prod") -> int:
        """Publish a model of tensors, and let an alias mean it."""
        version = (await self.alice.publish(name, {"model.onnx": self.file(f"{name}.onnx", content)})).version
        if alias is not None:
            await self.alice.move(name, alias, version)
        return version

    async def linear(self) -> None:
        await self.publish("linear", onnx_files.linear())


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    options = LocalOptions(tmp_path / "net", operators=1, inference=2, inference_overrides={"jurisdiction": "DE"})
    async with LocalNetwork(options) as network, network.client() as client:
        alice = Publisher(client, "placet:31337", "alice", PublisherKey(b"\x11" * 32))
        await alice.claim()
        yield Town(network, client, alice, tmp_path)
