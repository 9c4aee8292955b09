"""The values that travel: records, their ids, and partitions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

Headers = tuple[tuple[str, bytes], ...]
"""Header names may repeat; order is kept."""


class TopicPartition(NamedTuple):
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class RecordId:
    """Where a published record lies."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read. `value` is None for a removal (tombstone) in a compacted topic."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    """When the broker appended it, Unix milliseconds."""

    @property
    def id(self) -> RecordId:
        return RecordId(self.topic, self.partition, self.offset)

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    def header(self, name: str) -> bytes | None:
        """The last header of that name, or None."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None


def next_offsets(records: Iterable[Record]) -> dict[TopicPartition, int]:
    """What to commit once all of `records` are done with: the offset after the last of each partition."""
    offsets: dict[TopicPartition, int] = {}
    for record in records:
        at = record.topic_partition
        offsets[at] = max(offsets.get(at, 0), record.offset + 1)
    return offsets


def size_of(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Bytes that count against a topic's limit."""
    return len(key or b"") + len(value or b"") + sum(len(name.encode()) + len(content) for name, content in headers)
