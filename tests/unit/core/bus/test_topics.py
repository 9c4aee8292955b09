"""The table of topics: what it must keep for the protocol to hold, and what is generated from it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from placet.core import topics
from placet.core.topics import DAY_MS, HOUR_MS, TOPICS, Key

ROOT = Path(__file__).parents[4]
BATCH_TOPICS = [topics.TASKS, topics.OBSERVATIONS, topics.PROPOSALS, topics.RESPONSES, topics.ATTESTATIONS]


def test_topics_keyed_by_batch_id_share_one_partition_count() -> None:
    for count in (1, 3, 12, 48):
        table = topics.table(batch_partitions=count)
        assert {t.partitions for t in table.values() if t.key is Key.BATCH_ID} == {count}
        assert {t.name for t in table.values() if t.key is Key.BATCH_ID} == set(BATCH_TOPICS)
    with pytest.raises(ValueError):
        topics.table(batch_partitions=0)


def test_every_topic_has_a_dead_letter_topic_that_takes_its_largest_record() -> None:
    for topic in TOPICS.values():
        if topic.key is not Key.ORIGINAL:
            letters = TOPICS[topics.dlq(topic.name)]
            assert letters.max_record_bytes >= topic.max_record_bytes + topics.FRAMING_BYTES
            assert letters.writers == topic.readers


def test_23_nothing_before_an_attestation_is_retried_late() -> None:
    retried = {name for name in TOPICS if ".retry." in name}
    assert retried == {
        f"{topic}.retry.{consumer}.{step}"
        for topic, consumers in {topics.ATTESTATIONS: ("settlement", "projection"), topics.SETTLEMENTS: ("projection",)}.items()
        for consumer in consumers
        for step in ("30s", "5m")
    }
    for topic in (topics.TASKS, topics.OBSERVATIONS, topics.PROPOSALS, topics.RESPONSES):
        for consumer in ("operator", "aggregator", "settlement", "projection"):
            with pytest.raises(KeyError):
                topics.retry(topic, consumer, "30s")
    with pytest.raises(KeyError):
        topics.retry(topics.ATTESTATIONS, "gateway", "30s")
    with pytest.raises(KeyError):
        topics.retry(topics.ATTESTATIONS, "settlement", "1h")


def test_23_retention_is_checked_against_the_longest_validity() -> None:
    assert topics.check(HOUR_MS) == []
    assert topics.check(7 * DAY_MS) == []
    assert "longest validity" in topics.check(7 * DAY_MS + 1)[0]
    assert topics.check(30 * DAY_MS, topics.table(attestation_retention_ms=30 * DAY_MS)) == []
    for name in BATCH_TOPICS[:4]:
        short = {**TOPICS, name: replace(TOPICS[name], retention_ms=24 * HOUR_MS - 1)}
        assert name in topics.check(HOUR_MS, short)[0]
    split = {**TOPICS, topics.TASKS: replace(TOPICS[topics.TASKS], partitions=6)}
    assert "one partition count" in topics.check(HOUR_MS, split)[0]


def test_23_a_batch_that_closed_at_512_kib_fits_into_its_topic() -> None:
    assert TOPICS[topics.TASKS].max_record_bytes > 512 * 1024 + 1024


def test_compacted_topics_keep_the_newest_of_each_key_and_have_one_order() -> None:
    compacted = [topic for topic in TOPICS.values() if topic.compacted]
    assert {topic.name for topic in compacted} == {topics.POLICIES, topics.ADMISSIONS, topics.OPERATORS}
    for topic in compacted:
        assert topic.partitions == 1
        assert topic.retention_ms is None
        assert topic.config()["cleanup.policy"] == "compact"
        assert "retention.ms" not in topic.config()


def test_an_admission_is_kept_for_each_operator() -> None:
    assert TOPICS[topics.ADMISSIONS].key is Key.POLICY_ID_OPERATOR


def test_time_is_the_brokers() -> None:
    assert {topic.config()["message.timestamp.type"] for topic in TOPICS.values()} == {"LogAppendTime"}


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TOPICS["x"] = TOPICS[topics.TASKS]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        TOPICS[topics.TASKS].partitions = 3  # type: ignore[misc]


def test_the_reference_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "reference" / "topics.md"
    assert page.read_text() == topics.to_markdown(), f"run: python -m placet.core.topics --markdown > {page.relative_to(ROOT)}"


def test_manifests_say_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert topics.main(["--strimzi", "bus", "placet"]) == 0
    documents = capsys.readouterr().out.split("---\n")
    assert len(documents) == len(TOPICS)
    for document, topic in zip(documents, TOPICS.values(), strict=True):
        head, config = document.split("  config:\n")
        assert head.splitlines() == [
            "apiVersion: kafka.strimzi.io/v1",
            "kind: KafkaTopic",
            "metadata:",
            f"  name: {topic.name}",
            "  namespace: placet",
            "  labels: {strimzi.io/cluster: bus}",
            "spec:",
            f"  topicName: {topic.name}",
            f"  partitions: {topic.partitions}",
            "  replicas: 3",
        ]
        assert config.splitlines() == [f'    {name}: "{value}"' for name, value in topic.config().items()]


def test_the_command_line_renders_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert topics.main(["--markdown"]) == 0
    assert capsys.readouterr().out == topics.to_markdown()
    assert topics.main([]) == 2
