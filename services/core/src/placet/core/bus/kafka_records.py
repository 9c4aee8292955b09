"""What the client library unpacks from fetched bytes, without what a hostile writer can put there to end every reader of a topic.

The library (aiokafka 0.14) raises where it meets a header name that is not UTF-8, which a broker takes; the reader stands at the same
offset then, for as long as the record is kept. And it inflates a compressed batch before anybody sees its size: 1 MiB of gzip is a
gigabyte. A batch of records comes from one writer, so a batch that cannot be unpacked, or is compressed (no writer of ours does that,
and topics are made with `compression.type=uncompressed`), is passed over whole, with a line in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher

log = logging.getLogger(__name__)


class _Batch:
    """A record batch of the library's, whose records are unpacked together or not at all."""

    def __init__(self, partition: Any, batch: Any) -> None:
        self._partition = partition
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        if self._batch.compression_type:
            self._passed_over("it is compressed")
            return iter(())
        try:
            return iter(list(self._batch))
        except ValueError as error:  # UnicodeDecodeError among them
            self._passed_over(type(error).__name__)
            return iter(())

    def __next__(self) -> Any:
        return next(self._batch)

    def _passed_over(self, why: str) -> None:
        log.error(
            "records %d to %d of partition %d of %s are passed over: %s",
            self._batch.base_offset,
            self._batch.next_offset - 1,
            self._partition.partition,
            self._partition.topic,
            why,
        )


class _Batches:
    """The library's `MemoryRecords`, with its batches wrapped."""

    def __init__(self, partition: Any, records: Any) -> None:
        self._partition = partition
        self._records = records

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> _Batch:
        return _Batch(self._partition, self._records.next_batch())


class CheckedPartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Takes the place of the library's class of this name, in this process."""

    def __init__(self, tp: Any, records: Any, *arguments: Any, **named: Any) -> None:
        super().__init__(tp, _Batches(tp, records), *arguments, **named)


def install() -> None:
    """Makes every consumer of this process read through CheckedPartitionRecords. There is no other way into the library's fetcher."""
    fetcher.PartitionRecords = CheckedPartitionRecords
