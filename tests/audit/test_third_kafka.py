"""Third reading: a record whose header's name is not UTF-8. The broker takes it; aiokafka raises where it unpacks it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.producer import message_accumulator, producer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from placet.core import topics
from placet.core.bus.kafka import KafkaBus
from placet.core.bus.kafka_client import KafkaSettings
from placet.core.bus.kafka_topics import apply_topics
from placet.sdk.devservices.kafka import KafkaBroker


class _Name(str):
    """A header's name as another client may write it."""

    def encode(self, *_: Any, **__: Any) -> bytes:
        return b"\xff\xfe"


@pytest.mark.kafka
async def test_16_a_record_that_cannot_be_unpacked_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One operator of four may write `observations` and `responses`. After one such record the aggregator's subscription ends with an
    UnicodeDecodeError; started again, it stands at the same offset, and ends again, until the record's retention is over (two days)."""
    row = replace(topics.TOPICS[topics.OBSERVATIONS], partitions=1)
    with KafkaBroker(tmp_path / "kafka", watchdog=True) as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap, client_id="audit")
        await apply_topics(settings, {row.name: row})
        bus = KafkaBus(settings, {row.name: row})
        await bus.start()
        try:
            subscription = await bus.subscribe([row.name], "aggregator")
            await bus.publish(row.name, b"k" * 32, b"before")
            with monkeypatch.context() as patch:
                for module in (message_accumulator, producer):  # the one in C takes plain strings only
                    patch.setattr(module, "DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
                evil = AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
                await evil.start()
                await evil.send_and_wait(row.name, b"poison", key=b"k" * 32, headers=[(_Name("x"), b"1")])
                await evil.stop()
            await bus.publish(row.name, b"k" * 32, b"after")
            found: list[bytes | None] = []
            async with asyncio.timeout(15):
                async for records in subscription:
                    found += [record.value for record in records]
                    if b"after" in found:
                        break
            assert b"after" in found
        finally:
            await bus.stop()


@pytest.mark.kafka
async def test_23_a_compressed_record_is_no_larger_than_its_topic_allows(tmp_path: Path) -> None:
    """`max.message.bytes` bounds what is compressed. 1 MiB of gzip is a gigabyte at whoever reads the topic, before any of our code sees a
    size; an aggregator that dies of it meets it again when it is started."""
    row = replace(topics.TOPICS[topics.OBSERVATIONS], partitions=1)
    with KafkaBroker(tmp_path / "kafka", watchdog=True) as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap, client_id="audit")
        await apply_topics(settings, {row.name: row})
        bus = KafkaBus(settings, {row.name: row})
        await bus.start()
        evil = AIOKafkaProducer(
            bootstrap_servers=broker.bootstrap, compression_type="gzip", max_request_size=1 << 30, max_batch_size=1 << 28
        )
        await evil.start()
        try:
            try:
                await evil.send_and_wait(row.name, bytes(64 << 20), key=b"k" * 32)
            except KafkaError:
                return  # the broker refused it
            found = await bus.read_many_to_end(dict.fromkeys(bus.partitions(row.name)))
            largest = max(len(record.value or b"") for records in found.values() for record in records)
            assert largest <= row.max_record_bytes, f"a record of {largest} bytes, in a topic of {row.max_record_bytes}"
        finally:
            await evil.stop()
            await bus.stop()


@pytest.mark.kafka
async def test_23_a_compressed_record_in_a_topic_that_takes_it_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster whose topics were made by hand. The reader does not inflate what it finds, and reads on."""
    row = replace(topics.TOPICS[topics.OBSERVATIONS], partitions=1)
    config = topics.Topic.config
    monkeypatch.setattr(
        topics.Topic, "config", lambda self: {key: value for key, value in config(self).items() if "compression" not in key}
    )
    with KafkaBroker(tmp_path / "kafka", watchdog=True) as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap, client_id="audit")
        await apply_topics(settings, {row.name: row})
        bus = KafkaBus(settings, {row.name: row})
        await bus.start()
        evil = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, compression_type="gzip", max_request_size=1 << 30)
        await evil.start()
        try:
            await bus.publish(row.name, b"k" * 32, b"before")
            await evil.send_and_wait(row.name, bytes(1 << 20), key=b"k" * 32)
            await bus.publish(row.name, b"k" * 32, b"after")
            found = await bus.read_many_to_end(dict.fromkeys(bus.partitions(row.name)))
            assert [record.value for records in found.values() for record in records] == [b"before", b"after"]
        finally:
            await evil.stop()
            await bus.stop()
