"""A TaskBatch with everything every reader computes from it once: task ids, intent hashes, argument hashes, batch id. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from placet.core.digests import args_hash, batch_id, intent_hash, task_id
from placet.core.types import Address, Hash32, Ordering, Pins, TaskBatch


@dataclass(frozen=True, slots=True)
class BatchContext:
    """`task_ids[i]`, `intent_hashes[i]` belong to `batch.tasks[i]`. `relays` maps a task to the payer who asked for its relay."""

    batch: TaskBatch
    id: Hash32
    task_ids: tuple[Hash32, ...]
    intent_hashes: tuple[Hash32, ...]
    relays: Mapping[int, str]

    @classmethod
    def of(cls, batch: TaskBatch, relays: Mapping[int, str] | None = None) -> BatchContext:
        """Compute the identities of a batch."""
        intents = tuple(intent_hash(task.intent, task.policy_client) for task in batch.tasks)
        tasks = tuple(
            task_id(
                chain_id=batch.chain_id,
                validator=batch.validator,
                policy_client=task.policy_client,
                policy_id=batch.policy_id,
                intent_hash=intent,
                args_hash=args_hash(task.args, task.attachments, task.salt),
                timestamp=batch.timestamp,
            )
            for task, intent in zip(batch.tasks, intents, strict=True)
        )
        return cls(batch, batch_id(batch, tasks), tasks, intents, dict(relays or {}))

    def clients(self) -> list[Address]:
        """The policy clients in the batch, each once."""
        return list(dict.fromkeys(task.policy_client for task in self.batch.tasks))

    def sequence_keys(self, ordering: Ordering) -> list[tuple[Address, Address]]:
        """The (client, sender) pairs whose counters the tasks are bound to."""
        if ordering is Ordering.FREE:
            return []
        return list(dict.fromkeys((task.policy_client, task.intent.sender) for task in self.batch.tasks))


def quorum_of(batch: TaskBatch, pins: Mapping[Address, Pins]) -> int | None:
    """The one threshold of a batch: that of its first task whose client follows the batch's policy; None when none does.

    Tasks of clients with another threshold are abstained from, so that no client sets the quorum of another's task (threats 14).
    """
    found = (pins.get(task.policy_client) for task in batch.tasks)
    return next((item.quorum_bps for item in found if item is not None and item.policy_id == batch.policy_id), None)
