"""Roots: built from the receipts that wait, laid into the object store, posted by a key of their own, and looked up once they are final.

Order: leaves into the object store, then root, leaves' places and job in one transaction, then the chain. To build a root twice makes
the same root only of the same receipts; to post one twice changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from placet.core.errors import PlacetError
from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import RpcClient
from placet.core.keccak import keccak256
from placet.core.merkle import root_and_proofs
from placet.core.objects import ObjectStore
from placet.core.receipts import ledger_leaf
from placet.core.telemetry import metrics
from placet.core.types import Address, Hash32, hex0x
from placet.settlement.receipts.inclusion import object_name
from placet.settlement.receipts.store import LeafEntry, ReceiptStore, RootEntry
from placet.settlement.sender import Sender
from placet.settlement.store import FOR_EVER, RECEIPTS, Lease, new_job

log = logging.getLogger(__name__)

_ROOTS = metrics.counter("placet_settlement_receipt_roots_total", "Roots of receipts, by what happened.", ["event"])
PAYER = "receipts"
"""Whose gas budget it is."""


@dataclass(frozen=True, slots=True)
class BatchRules:
    """A root is made of `count` receipts, or of fewer when the first of them waited for `wait_s` seconds."""

    count: int
    wait_s: float


def root_document(entry: RootEntry, leaves: Sequence[LeafEntry]) -> dict[str, Any]:
    """JSON values of a root's object."""
    return {
        "v": 1,
        "chainId": entry.chain_id,
        "ledger": hex0x(entry.ledger),
        "poster": hex0x(entry.poster),
        "root": hex0x(entry.root),
        "leaves": [{"receipt": hex0x(leaf.receipt_id), "digest": hex0x(leaf.digest)} for leaf in leaves],
    }


class ReceiptDesk:
    """One ledger's roots. `step` is called again and again by whoever holds the poster's lease."""

    def __init__(
        self,
        *,
        sender: Sender,
        rpc: RpcClient,
        chain_id: int,
        confirmations: int,
        ledger: Address,
        receipts: ReceiptStore,
        objects: ObjectStore,
        rules: BatchRules,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sender = sender
        self._rpc = rpc
        self._chain_id = chain_id
        self._confirmations = confirmations
        self._ledger = ledger
        self._receipts = receipts
        self._objects = objects
        self._rules = rules
        self._clock = clock

    @property
    def address(self) -> Address:
        """The poster."""
        return self._sender.address

    async def step(self, lease: Lease) -> None:
        """One round. Raises as `Sender.step`."""
        try:
            await self._build()
        except PlacetError as error:  # the object store is away, or another replica was faster: what was built before goes on
            log.warning("receipts wait: %s", error)
        await self._sender.step(lease)
        await self._look()

    async def _build(self) -> None:
        leaves, since = await self._receipts.waiting(self._rules.count)
        now = self._clock()
        if not leaves or (len(leaves) < self._rules.count and now < since + self._rules.wait_s):
            return
        leaves.sort(key=lambda leaf: (leaf.finished_at, leaf.receipt_id))
        root, _ = root_and_proofs([ledger_leaf(self._chain_id, self._ledger, self.address, leaf.digest) for leaf in leaves])
        reference = Hash32(keccak256(b"placet/receipt-job/v1\x00" + root))
        entry = RootEntry(root, reference, self._chain_id, self._ledger, self.address, len(leaves), now)
        await self._objects.put_named(object_name(root), orjson.dumps(root_document(entry, leaves)))
        first, last = leaves[0].finished_at // 1000, leaves[-1].finished_at // 1000
        place = keccak256(object_name(root).encode())
        data = encode_call("post(bytes32,uint32,uint64,uint64,bytes32)", root, len(leaves), first, last, place)
        job = new_job(reference, RECEIPTS, self._chain_id, (self._ledger, data), PAYER, FOR_EVER, now)
        await self._receipts.put_under(entry, leaves, job)
        _ROOTS.labels("built").inc()
        log.info("root %s over %d receipts", hex0x(root), len(leaves))

    async def _look(self) -> None:
        waiting = await self._receipts.unposted(self._chain_id)
        number = int(await self._rpc.call("eth_blockNumber", []), 16) + 1 - self._confirmations if waiting else -1
        if number < 0:
            return
        calls = [(item.ledger, encode_call("find(address,bytes32)", item.poster, item.root)) for item in waiting]
        reads = [("eth_call", [{"to": hex0x(to), "data": hex0x(data)}, hex(number)]) for to, data in calls]
        for item, answer in zip(waiting, await self._rpc.batch_settled(reads), strict=True):
            if not isinstance(answer, str) or len(answer) != 130:
                log.warning("root %s: the ledger cannot say: %s", hex0x(item.root), str(answer)[:200])
            elif int(answer[2:66], 16) == 1:
                await self._receipts.posted(item.root, int(answer[66:], 16))
                _ROOTS.labels("posted").inc()
                log.info("root %s is number %d", hex0x(item.root), int(answer[66:], 16))
