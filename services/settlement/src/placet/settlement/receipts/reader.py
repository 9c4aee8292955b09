"""Receipts from the bus into the database. What cannot be a receipt of ours is a dead letter; nothing else is passed over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from placet.core import receipts as core
from placet.core import topics
from placet.core.bus import Bus, BusError, NotAssigned, Record, Subscription, next_offsets
from placet.core.db import DATABASE_ERRORS
from placet.core.envelope import Kind, open_envelope
from placet.core.errors import InvalidInput, PlacetError, VerificationFailed
from placet.core.gen import inference_pb2 as pb
from placet.settlement.receipts.store import LeafEntry, ReceiptStore

log = logging.getLogger(__name__)

GROUP = "settlement.receipts"
FUTURE_S = 60
"""A receipt that ends further ahead of this clock is refused: the ledger takes none from the future, and one would hold up its root."""
_AGAIN_S = 0.5


class ReceiptReader:
    """Follows the topic. `trusted`: bus keys of inference."""

    def __init__(
        self,
        bus: Bus,
        store: ReceiptStore,
        trusted: frozenset[bytes],
        instance_id: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._store = store
        self._trusted = trusted
        self._instance_id = instance_id
        self._clock = clock
        self.subscription: Subscription | None = None

    async def run(self) -> None:
        """Record until cancelled. What is recorded twice changes nothing, so a commit that fails costs nothing."""
        self.subscription = await self._bus.subscribe([topics.RECEIPTS], GROUP, instance_id=self._instance_id)
        async for records in self.subscription:
            leaves = []
            for record in records:
                leaf = await self._open(record)
                if leaf is not None:
                    leaves.append(leaf)
            while True:
                try:
                    await self._store.add(leaves, self._clock())
                    break
                except DATABASE_ERRORS as error:
                    log.warning("receipts wait: %s", error)
                    await asyncio.sleep(_AGAIN_S)
            try:
                await self.subscription.commit(next_offsets(records))
            except NotAssigned:
                pass  # recorded again by whoever reads them next
            except BusError as error:
                log.warning("commit: %s", error)

    async def _open(self, record: Record) -> LeafEntry | None:
        try:
            return self._read(record)
        except (InvalidInput, VerificationFailed, ValueError) as error:
            refused = error if isinstance(error, PlacetError) else InvalidInput("the record is no receipt")
        log.warning("receipt refused: %s", refused)
        while True:
            try:
                await self._bus.publish_dlq(record, refused, consumer="settlement")
                return None
            except BusError as error:
                log.warning("dead letter waits: %s", error)
                await asyncio.sleep(_AGAIN_S)

    def _read(self, record: Record) -> LeafEntry:
        message = open_envelope(
            record.value or b"", lambda kind, sender: sender if kind is Kind.INFERENCE_RECEIPT and sender in self._trusted else None
        )
        receipt = core.decode(pb.InferenceReceipt.FromString(message.payload).receipt)
        if receipt.finished_at > (self._clock() + FUTURE_S) * 1000:
            raise InvalidInput("the receipt is from the future", field="receipt/finishedAt")
        return LeafEntry(receipt.id, core.digest_of(receipt), receipt.finished_at)
