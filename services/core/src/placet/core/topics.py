"""The one table of topics: names, keys, partitions, retention, sizes, who writes and who reads.

The in-process bus, topic creation, the Strimzi manifests and docs/reference/topics.md come from this table.
It knows nothing of message contents and does no I/O. `python -m placet.core.topics --markdown` renders the reference page.

Rules that the table itself keeps (a test walks them):

* Topics keyed by `batch_id` share one partition count, fixed at creation: adding partitions moves keys and splits open batches.
* Timestamps are the broker's (LogAppendTime), so that a writer's clock cannot shorten retention or move a search by time.
* Retry topics exist only for the settlement and projection consumers. Everything before an attestation ends with its batch's
  deadline, and compacted topics are state that a consumer simply reads again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

BATCH_PARTITIONS = 12
"""Partitions of every topic keyed by batch_id, unless a deployment says otherwise before its first start."""

BATCH_RETENTION_MIN_MS = 24 * HOUR_MS
"""Tasks, observations, proposals and responses are kept at least this long."""

FRAMING_BYTES = 16 * 1024
"""Added to a topic's record size for `max.message.bytes`: Kafka's batch and record framing, with room to spare."""

DLQ_HEADROOM_BYTES = 2 * FRAMING_BYTES
"""Added to the source topic's record size in its dead-letter and retry topics: the x-error headers, and whatever a careless writer
could squeeze past the source topic's own limit."""


class Cleanup(Enum):
    DELETE = "delete"
    COMPACT = "compact"


class Key(Enum):
    """What a record's key is made of. The value is the text for the reference page."""

    BATCH_ID = "batch_id (32 bytes)"
    REFERENCE = "reference"
    POLICY_ID = "policyId (32 bytes)"
    POLICY_ID_OPERATOR = "policyId ‖ operator (32 + 20 bytes)"
    OPERATOR = "operator (20 bytes)"
    MODEL = "the model's digest (32 bytes)"
    ORIGINAL = "the original record's"


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. `max_record_bytes` bounds key + value + header names and values of one record, trace headers included."""

    name: str
    key: Key
    value: str
    partitions: int
    retention_ms: int | None
    """None where the topic is compacted: the newest record of a key stays for ever."""
    cleanup: Cleanup
    max_record_bytes: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    replication: int = 3
    """Wanted replicas; a cluster with fewer brokers gets as many as it has brokers."""

    @property
    def compacted(self) -> bool:
        return self.cleanup is Cleanup.COMPACT

    def config(self) -> dict[str, str]:
        """Topic-level Kafka configuration, complete (altering a topic in Kafka replaces all overrides at once)."""
        common = {
            "cleanup.policy": self.cleanup.value,
            "max.message.bytes": str(self.max_record_bytes + FRAMING_BYTES),
            "message.timestamp.type": "LogAppendTime",
            # `max.message.bytes` bounds what is sent: a compressed record would be any size at its readers.
            "compression.type": "uncompressed",
        }
        if self.retention_ms is not None:
            common["retention.ms"] = str(self.retention_ms)
        else:
            # A reader that is away for less than a day still sees a removal, whatever the cleaner did meanwhile.
            common["delete.retention.ms"] = str(DAY_MS)
            common["min.cleanable.dirty.ratio"] = "0.1"
        return common


TASKS = "placet.tasks.v1"
OBSERVATIONS = "placet.observations.v1"
PROPOSALS = "placet.proposals.v1"
RESPONSES = "placet.responses.v1"
ATTESTATIONS = "placet.attestations.v1"
SETTLEMENTS = "placet.settlements.v1"
RECEIPTS = "placet.receipts.v1"
POLICIES = "placet.policies.v1"
ADMISSIONS = "placet.admissions.v1"
OPERATORS = "placet.operators.v1"

RETRY_DELAYS_MS: Mapping[str, int] = MappingProxyType({"30s": 30 * SECOND_MS, "5m": 5 * MINUTE_MS})
"""Steps of the retry topics: suffix to delay before the next attempt."""

RETRYING: Mapping[str, tuple[str, ...]] = MappingProxyType({ATTESTATIONS: ("settlement", "projection"), SETTLEMENTS: ("projection",)})
"""Which consumers may put a record of which topic aside for later."""


def dlq(topic: str) -> str:
    """Name of a topic's dead-letter topic."""
    return f"{topic}.dlq"


def retry(topic: str, consumer: str, step: str) -> str:
    """Name of the topic where `consumer` puts a record of `topic` aside for `step` (a key of RETRY_DELAYS_MS).

    Raises KeyError where architecture allows no late retry: those records go to the DLQ at once.
    """
    if consumer not in RETRYING.get(topic, ()) or step not in RETRY_DELAYS_MS:
        raise KeyError(f"no retry topic of {topic} for {consumer} after {step}")
    return f"{topic}.retry.{consumer}.{step}"


def _delete(name: str, key: Key, value: str, days: int, max_record_bytes: int, writers: tuple[str, ...], readers: tuple[str, ...]) -> Topic:
    return Topic(name, key, value, BATCH_PARTITIONS, days * DAY_MS, Cleanup.DELETE, max_record_bytes, writers, readers)


def _compact(name: str, key: Key, value: str, max_record_bytes: int, writers: tuple[str, ...], readers: tuple[str, ...]) -> Topic:
    # One partition: a reader sees one ordered history over all keys.
    return Topic(name, key, value, 1, None, Cleanup.COMPACT, max_record_bytes, writers, readers)


_ALL = ("gateway", "operator", "aggregator", "settlement", "projection")

_MAIN: tuple[Topic, ...] = (
    # A TaskBatch closes at 512 KiB; the task that closes it, the signature and the headers come on top.
    _delete(TASKS, Key.BATCH_ID, "TaskBatch", 2, 768 * 1024, ("gateway",), ("operator", "aggregator")),
    # At most 256 tasks of 1 KiB inline, their digests and reasons.
    _delete(OBSERVATIONS, Key.BATCH_ID, "Observation", 2, 1024 * 1024, ("operator",), ("aggregator",)),
    _delete(PROPOSALS, Key.BATCH_ID, "Proposal", 2, 1024 * 1024, ("aggregator",), ("operator", "aggregator")),
    _delete(RESPONSES, Key.BATCH_ID, "Response", 2, 1024 * 1024, ("operator",), ("aggregator",)),
    _delete(
        ATTESTATIONS,
        Key.BATCH_ID,
        "AttestationGroup or GroupFailure",
        7,
        1024 * 1024,
        ("aggregator",),
        ("gateway", "settlement", "projection", "aggregator"),
    ),
    _delete(SETTLEMENTS, Key.REFERENCE, "SettlementEvent", 7, 64 * 1024, ("settlement",), ("gateway", "projection")),
    _delete(RECEIPTS, Key.MODEL, "InferenceReceipt", 7, 64 * 1024, ("inference",), ("gateway", "settlement", "projection")),
    _compact(POLICIES, Key.POLICY_ID, "where the policy's artefacts lie", 64 * 1024, ("gateway", "controller"), _ALL),
    _compact(
        ADMISSIONS,
        Key.POLICY_ID_OPERATOR,
        "Admitted(policyId, checker version), or the reason why not",
        64 * 1024,
        ("operator",),
        ("gateway", "projection", "operator"),
    ),
    _compact(OPERATORS, Key.OPERATOR, "registry events", 64 * 1024, ("settlement",), _ALL),
)


def _dlq_of(source: Topic) -> Topic:
    return Topic(
        name=dlq(source.name),
        key=Key.ORIGINAL,
        value=f"original bytes of {source.name} + x-error headers",
        partitions=1,
        retention_ms=14 * DAY_MS,
        cleanup=Cleanup.DELETE,
        max_record_bytes=source.max_record_bytes + DLQ_HEADROOM_BYTES,
        writers=source.readers,
        readers=("replay command",),
    )


def _retries_of(source: Topic) -> Iterable[Topic]:
    for consumer in RETRYING.get(source.name, ()):
        for step in RETRY_DELAYS_MS:
            yield Topic(
                name=retry(source.name, consumer, step),
                key=Key.ORIGINAL,
                value=f"original bytes of {source.name} + x-attempt, x-not-before, x-error headers",
                partitions=3,
                retention_ms=2 * DAY_MS,
                cleanup=Cleanup.DELETE,
                max_record_bytes=source.max_record_bytes + DLQ_HEADROOM_BYTES,
                writers=(consumer,),
                readers=(consumer,),
            )


def table(batch_partitions: int = BATCH_PARTITIONS, attestation_retention_ms: int = 7 * DAY_MS) -> Mapping[str, Topic]:
    """Every topic by name, with `batch_partitions` partitions for each topic keyed by batch_id.

    Both numbers are the same for every service of a deployment; the count is chosen once, before the first start.
    """
    if batch_partitions < 1:
        raise ValueError(f"batch_partitions must be at least 1, not {batch_partitions}")
    rows: dict[str, Topic] = {}
    for main in _MAIN:
        topic = replace(main, partitions=batch_partitions) if main.key is Key.BATCH_ID else main
        if topic.name == ATTESTATIONS:
            topic = replace(topic, retention_ms=attestation_retention_ms)
        for row in (topic, _dlq_of(topic), *_retries_of(topic)):
            rows[row.name] = row
    return MappingProxyType(rows)


TOPICS: Mapping[str, Topic] = table()


def check(longest_validity_ms: int, topics: Mapping[str, Topic] = TOPICS) -> list[str]:
    """What is wrong with the table for a deployment whose longest attestation validity is `longest_validity_ms`; empty if nothing.

    Services ask at start: a certificate that is still valid must still be found in the log.
    """
    problems = []
    for name in (TASKS, OBSERVATIONS, PROPOSALS, RESPONSES):
        kept = topics[name].retention_ms
        if kept is not None and kept < BATCH_RETENTION_MIN_MS:
            problems.append(f"{name} keeps records {kept} ms; at least {BATCH_RETENTION_MIN_MS} ms are needed")
    kept = topics[ATTESTATIONS].retention_ms
    if kept is not None and kept < longest_validity_ms:
        problems.append(f"{ATTESTATIONS} keeps records {kept} ms; the longest validity is {longest_validity_ms} ms")
    counts = {topic.partitions for topic in topics.values() if topic.key is Key.BATCH_ID}
    if len(counts) > 1:
        problems.append(f"topics keyed by batch_id must have one partition count, not {sorted(counts)}")
    return problems


def to_markdown(topics: Mapping[str, Topic] = TOPICS) -> str:
    """The reference page."""

    def size(n: int) -> str:
        return f"{n // 1024} KiB"

    def age(n: int | None) -> str:
        return "newest of each key, for ever" if n is None else f"{n // DAY_MS} d"

    lines = [
        "# Topics",
        "",
        "Generated from `placet.core.topics` by `python -m placet.core.topics --markdown`; a test fails when this page is behind.",
        "",
        "Delivery is at least once; handlers are idempotent. Topics keyed by batch_id have one partition count, so that all records of a",
        "batch lie in partitions of the same number. Timestamps are the broker's. A record larger than its topic's limit (key, value and",
        "headers together) is refused before it is sent.",
        "",
        "| topic | key | value | partitions | kept | largest record | written by | read by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for t in topics.values():
        lines.append(
            f"| `{t.name}` | {t.key.value} | {t.value} | {t.partitions} | {age(t.retention_ms)} | {size(t.max_record_bytes)}"
            f" | {', '.join(t.writers)} | {', '.join(t.readers)} |"
        )
    return "\n".join(lines) + "\n"


def to_strimzi(cluster: str, namespace: str, topics: Mapping[str, Topic] = TOPICS, replicas: int = 3) -> str:
    """KafkaTopic manifests for a Strimzi cluster, as one YAML stream."""
    documents = []
    for t in topics.values():
        lines = [
            "apiVersion: kafka.strimzi.io/v1",
            "kind: KafkaTopic",
            "metadata:",
            f"  name: {t.name.lower()}",
            f"  namespace: {namespace}",
            f"  labels: {{strimzi.io/cluster: {cluster}}}",
            "spec:",
            f"  topicName: {t.name}",
            f"  partitions: {t.partitions}",
            f"  replicas: {min(replicas, t.replication)}",
            "  config:",
            *(f'    {name}: "{value}"' for name, value in t.config().items()),
        ]
        documents.append("\n".join(lines) + "\n")
    return "---\n".join(documents)


def main(arguments: list[str]) -> int:
    if arguments == ["--markdown"]:
        sys.stdout.write(to_markdown())
        return 0
    if len(arguments) == 3 and arguments[0] == "--strimzi":
        sys.stdout.write(to_strimzi(cluster=arguments[1], namespace=arguments[2]))
        return 0
    sys.stderr.write("usage: python -m placet.core.topics --markdown | --strimzi CLUSTER NAMESPACE\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
