"""Both buses behind one fixture. `world` gives a fresh set of topics and as many bus connections as a test wants.

The Kafka half runs on a real broker, started once. Without Java or Maven it fails; PLACET_TEST_NO_KAFKA=1 leaves it out on purpose.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from placet.core import topics
from placet.core.bus import Bus, InProcessBroker, InProcessBus, Record, Subscription
from placet.core.bus.kafka import KafkaBus
from placet.core.bus.kafka_client import KafkaSettings
from placet.core.bus.kafka_topics import apply_topics
from placet.sdk.devservices.kafka import KafkaBroker

NO_KAFKA = os.environ.get("PLACET_TEST_NO_KAFKA") == "1"
SESSION_TIMEOUT_S = 6.0
_numbers = itertools.count(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if NO_KAFKA:
        gone = [item for item in items if item.get_closest_marker("kafka") and "contract/bus" in str(item.path)]
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path_factory.mktemp("kafka"), watchdog=True) as running:
        yield running


class World:
    """Topics of their own for one test, and connections that are closed when it ends."""

    kind: str

    def __init__(self) -> None:
        prefix = f"t{next(_numbers)}."
        wanted = {topics.TASKS: 4, topics.PROPOSALS: 4, topics.POLICIES: 1, topics.dlq(topics.TASKS): 1}
        rows = [replace(topics.TOPICS[name], name=prefix + name, partitions=count) for name, count in wanted.items()]
        self.topics = {row.name: row for row in rows}
        self.tasks, self.proposals, self.policies, self.tasks_dlq = self.topics
        self.group = f"{prefix}group"
        self._open: list[Bus] = []

    async def prepare(self) -> None: ...

    def new_bus(self) -> Bus:
        raise NotImplementedError

    async def bus(self) -> Bus:
        bus = self.new_bus()
        await bus.start()
        self._open.append(bus)
        return bus

    async def close(self) -> None:
        for bus in self._open:
            await bus.stop()


class InProcessWorld(World):
    kind = "inprocess"

    async def prepare(self) -> None:
        self.broker = InProcessBroker(self.topics, session_timeout_s=1.0)

    def new_bus(self) -> Bus:
        return InProcessBus(self.broker)

    async def close(self) -> None:
        await super().close()
        await self.broker.stop()


class KafkaWorld(World):
    kind = "kafka"

    def __init__(self, broker: KafkaBroker) -> None:
        super().__init__()
        self.broker = broker
        self.settings = KafkaSettings(
            bootstrap_servers=broker.bootstrap,
            client_id="contract",
            session_timeout_ms=int(SESSION_TIMEOUT_S * 1000),
            heartbeat_interval_ms=200,
            metadata_max_age_ms=2000,
        )

    async def prepare(self) -> None:
        await apply_topics(self.settings, self.topics)

    def new_bus(self) -> Bus:
        return KafkaBus(self.settings, self.topics)


@pytest.fixture(params=["inprocess", pytest.param("kafka", marks=pytest.mark.kafka)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world = InProcessWorld() if request.param == "inprocess" else KafkaWorld(request.getfixturevalue("broker"))
    await world.prepare()
    yield world
    await world.close()


@pytest.fixture
async def kafka_world(broker: KafkaBroker) -> AsyncIterator[KafkaWorld]:
    world = KafkaWorld(broker)
    await world.prepare()
    yield world
    await world.close()


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Every span that ends during the test."""
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


Collect = Callable[[Subscription, int], Awaitable[list[Record]]]
Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def collect() -> Collect:
    async def collect(subscription: Subscription, count: int) -> list[Record]:
        """Exactly `count` records, within 20 s."""
        found: list[Record] = []
        async with asyncio.timeout(20):
            while len(found) < count:
                found += await subscription.batch()
        assert len(found) == count
        return found

    return collect


@pytest.fixture
def eventually() -> Eventually:
    async def eventually(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)

    return eventually


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path
