"""A compacted topic as a mapping: read whole at start, then followed.

    policies = await bus.snapshot(topics.POLICIES)     # everything that is there now
    record = policies.get(policy_id)
    async for record in policies.changes(): ...        # what comes afterwards; value None is a removal

The newest record of each key stands, unless `replaces` is given and says of it that it does not (a topic with several writers keeps
whatever any of them puts under a key); order over all keys is the topic's (compacted topics have one partition). Losing the broker leaves
the snapshot as it was; `failure` says if it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, ItemsView, Iterator
from types import TracebackType
from typing import Self

from placet.core.bus.errors import Closed
from placet.core.bus.interface import Bus, Subscription
from placet.core.bus.records import Record, TopicPartition

Replaces = Callable[[Record | None, Record], bool]
"""Whether a record takes the place of the one before it (None: there was none)."""


class Snapshot:
    """Made by `Bus.snapshot`. Read by any number of tasks of the same loop."""

    def __init__(self, bus: Bus, topic: str, subscription: Subscription, replaces: Replaces | None) -> None:
        self.topic = topic
        self._replaces = replaces
        self._bus = bus
        self._subscription = subscription
        self._current: dict[bytes, Record] = {}
        self._next: dict[TopicPartition, int] = {}
        self._changed = asyncio.Condition()
        self._listeners: list[asyncio.Queue[Record | None]] = []
        self._task: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None

    @classmethod
    async def load(cls, bus: Bus, topic: str, replaces: Replaces | None = None) -> Snapshot:
        """Reads `topic` to its end as of now. Raises ValueError for a topic that is not compacted, UnknownTopic, BusUnavailable."""
        if not bus.topic(topic).compacted:
            raise ValueError(f"{topic} is not compacted: it has no snapshot")
        partitions = bus.partitions(topic)
        ends = await bus.end_offsets(partitions)
        stored = await bus.read_many_to_end(dict.fromkeys(partitions))
        subscription = await bus.subscribe([topic], None, from_beginning=True)
        self = cls(bus, topic, subscription, replaces)
        self._next.update(ends)
        for records in stored.values():
            await self._apply(records)
        for at, offset in self._next.items():
            subscription.seek(at, offset)
        self._task = asyncio.create_task(self._follow(), name=f"snapshot {topic}")
        return self

    async def _follow(self) -> None:
        try:
            async for records in self._subscription:
                await self._apply(records)
            self.failure = Closed(f"the snapshot of {self.topic} was closed")
        except asyncio.CancelledError:
            self.failure = Closed(f"the snapshot of {self.topic} was closed")
            raise
        except Exception as error:  # noqa: BLE001 - whoever waits for this snapshot gets it
            self.failure = error
        finally:
            for listener in self._listeners:
                listener.put_nowait(None)
            async with self._changed:
                self._changed.notify_all()

    async def _apply(self, records: list[Record]) -> None:
        for record in records:
            self._next[record.topic_partition] = max(self._next.get(record.topic_partition, 0), record.offset + 1)
            key = record.key or b""
            if self._replaces is not None and not self._replaces(self._current.get(key), record):
                continue
            if record.value is None:
                self._current.pop(key, None)
            else:
                self._current[key] = record
            for listener in self._listeners:
                listener.put_nowait(record)
        async with self._changed:
            self._changed.notify_all()

    # Reading.

    def get(self, key: bytes) -> Record | None:
        return self._current.get(key)

    def __getitem__(self, key: bytes) -> Record:
        return self._current[key]

    def __contains__(self, key: object) -> bool:
        return key in self._current

    def __len__(self) -> int:
        return len(self._current)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._current)

    def items(self) -> ItemsView[bytes, Record]:
        return self._current.items()

    async def wait_for(self, condition: Callable[[Snapshot], bool]) -> None:
        """Waits until `condition(self)` holds; raises what ended the snapshot, if that comes first."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self) or self.failure is not None)
        if not condition(self) and self.failure is not None:
            raise self.failure

    async def caught_up(self) -> None:
        """Waits until everything that is in the topic at this moment has been applied: read your own (acknowledged) writes."""
        ends = await self._bus.end_offsets(self._bus.partitions(self.topic))
        await self.wait_for(lambda _: all(self._next.get(at, 0) >= end for at, end in ends.items()))

    def changes(self) -> AsyncIterator[Record]:
        """Every record applied from this call on, in order. Ends when the snapshot is closed; raises what broke it.

        Iterate it to the end or close it: what was not taken yet is kept for it.
        """
        queue: asyncio.Queue[Record | None] = asyncio.Queue()
        self._listeners.append(queue)
        return self._drain(queue)

    async def _drain(self, queue: asyncio.Queue[Record | None]) -> AsyncIterator[Record]:
        try:
            while True:
                record = await queue.get() if self.failure is None or not queue.empty() else None
                if record is None:
                    break
                yield record
        finally:
            self._listeners.remove(queue)
        if self.failure is not None and not isinstance(self.failure, Closed):
            raise self.failure

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._subscription.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
