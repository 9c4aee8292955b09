"""Third reading: a header without a value. Kafka has them (`null`), aiokafka hands them on as None, and they were decoded unseen."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from placet.core import topics, wire
from placet.core.bus import InProcessBroker, InProcessBus, Record, TopicPartition
from placet.core.bus.tracing import fan_in, processing
from placet.core.db import connect, migrate
from placet.core.envelope import Kind, open_envelope
from placet.gateway.results import Results
from placet.gateway.store import Store, TaskRow
from tests.audit import rig

_NULL = cast(Any, (("traceparent", None),))


def _write(bus: InProcessBus, topic: str, key: bytes, value: bytes) -> None:
    """As another Kafka client writes it."""
    bus.broker.append(TopicPartition(topic, bus.partition_for(topic, key)), key, value, _NULL)


def test_a_header_without_a_value_is_no_trace() -> None:
    record = Record(topics.RESPONSES, 0, 0, b"k", b"v", _NULL, 0)
    with processing(record, "g"), fan_in("f", [record]):
        pass


@pytest.mark.parametrize("kind", ["observation", "response"])
async def test_16_one_operators_header_fails_no_task(kind: str) -> None:
    """One operator of four sends its own, properly signed message with the header `traceparent: null`. The aggregator's actor meets an
    AttributeError when it opens a span, and ends the whole batch as `internal`, though three honest operators signed it."""
    members, context = rig.identities(), rig.batch(rig.task())
    async with rig.aggregator(rig.operator_set(members), {rig.CLIENT: rig.pins()}, straggler_s=0.3) as network:
        await network.bus.publish(topics.TASKS, context.id, rig.sealed_batch(context))
        if kind == "response":
            _write(network.bus, topics.RESPONSES, context.id, rig.sealed_response(members[0], context, rig.policy()))
        else:
            _write(network.bus, topics.OBSERVATIONS, context.id, rig.sealed_observation(members[0], context, rig.observed(context)))
        await asyncio.sleep(0.1)
        for who in members[1:]:
            await network.bus.publish(topics.RESPONSES, context.id, rig.sealed_response(who, context, rig.policy()))
        record = await network.first(topics.ATTESTATIONS, within_s=8.0)
        assert record is not None
        message = open_envelope(record.value or b"", lambda kind, sender: sender)
        if message.kind is Kind.GROUP_FAILURE:
            pytest.fail(wire.decode_group_failure(message.payload).failures[0].code)


async def test_a_header_on_the_attestations_topic_ends_no_gateway(tmp_path: Path) -> None:
    """Whoever may write the topic; no signature is looked at before. It ended the process, at every start while the batch was open."""
    context = rig.batch(rig.task())
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}")
    await migrate(engine, "placet.gateway.migrations")
    store, broker = Store(engine), InProcessBroker()
    bus = InProcessBus(broker)
    await bus.start()
    reader = rig.StubReader(rig.operator_set(rig.identities()), {rig.CLIENT: rig.pins()})
    results = Results(bus=bus, chains={rig.CHAIN: cast(Any, reader)}, store=store, aggregators=frozenset({rig.AGGREGATOR.public_key}))

    async def resend(*_: Any) -> None: ...

    await results.start(resend)
    running = asyncio.create_task(results.run())
    try:
        row = TaskRow(
            context.task_ids[0],
            "t",
            context.id,
            wire.encode_batch(context.batch, {}),
            0,
            context.id,
            context.id,
            "submitted",
            None,
            1,
            2**40,
        )
        await store.add_tasks([row])
        results.expect(context, reader.state)
        _write(bus, topics.ATTESTATIONS, context.id, b"anything")
        await asyncio.sleep(0.3)
        assert not running.done(), f"the gateway's results ended: {running.exception()!r}"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await results.stop()
        await engine.dispose()
        await bus.stop()
        await broker.stop()
