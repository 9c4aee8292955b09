"""Waiting for attestations: every replica reads the whole topic, and answers the callers whose tasks it sent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from placet.core import jsonx, limits, topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import Bus, Record, Subscription
from placet.core.bus.tracing import processing
from placet.core.envelope import Kind, Message, open_envelope
from placet.core.errors import InvalidInput, PlacetError, VerificationFailed
from placet.core.evm import contracts
from placet.core.evm.reader import BlockState, ChainReader
from placet.core.messages import AttestationGroup, DecidedTask, positions_of
from placet.core.types import Certificate, Hash32, Leaf, OperatorSet, Task, hex0x
from placet.gateway.store import Store
from placet.verify import verify_group

log = logging.getLogger(__name__)

_KEEP_S = limits.BATCH_LIFETIME_S + 15


class _Pending:
    """A batch this replica sent, or found open when it started."""

    def __init__(self, context: BatchContext, operators: OperatorSet, quorum_of_task: list[int], sent_at: float) -> None:
        self.context = context
        self.operators = operators
        self.quorum_of_task = quorum_of_task
        self.sent_at = sent_at
        self.open = set(range(len(context.task_ids)))


class Results:
    """Results of tasks, as JSON answers."""

    def __init__(
        self,
        *,
        bus: Bus,
        chains: Mapping[int, ChainReader],
        store: Store,
        aggregators: frozenset[bytes],
        settlements: frozenset[bytes] = frozenset(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._chains = chains
        self._store = store
        self._aggregators = aggregators
        self._settlements = settlements
        self._clock = clock
        self._pending: dict[Hash32, _Pending] = {}
        self._waiters: dict[Hash32, list[asyncio.Future[dict[str, Any]]]] = {}
        self.subscription: Subscription | None = None

    def expect(self, context: BatchContext, state: BlockState) -> None:
        """Look out for the results of a batch."""
        quorums = [state.pins[task.policy_client].quorum_bps for task in context.batch.tasks]
        self._pending[context.id] = _Pending(context, state.operators, quorums, self._clock())

    def waiter(self, task_id: Hash32) -> asyncio.Future[dict[str, Any]]:
        """A future for the task's answer. Ask before the batch can have been answered."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(task_id, []).append(future)
        return future

    def forget(self, task_id: Hash32, future: asyncio.Future[dict[str, Any]]) -> None:
        """Nobody waits on this future any more."""
        waiting = self._waiters.get(task_id, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._waiters.pop(task_id, None)

    async def start(self) -> None:
        """Find tasks left open by an earlier run, subscribe, and read what came meanwhile."""
        since = int(self._clock()) - _KEEP_S
        await self._recover(since)
        self.subscription = await self._bus.subscribe([topics.ATTESTATIONS, topics.SETTLEMENTS], None, from_beginning=False)
        partitions = [*self._bus.partitions(topics.ATTESTATIONS), *self._bus.partitions(topics.SETTLEMENTS)]
        starts: dict[Any, int | None] = dict(await self._bus.offsets_at(partitions, since * 1000))
        for records in (await self._bus.read_many_to_end(starts)).values():
            for record in records:
                await self._take(record)

    async def _recover(self, since: int) -> None:
        rows = await self._store.open_tasks(since)
        for row in rows:
            if not row.batch:
                continue
            batch, relays = wire.decode_batch(row.batch)
            reader = self._chains.get(batch.chain_id)
            if reader is None:
                continue
            try:
                context = BatchContext.of(batch, relays)
                self.expect(context, await reader.at(batch.block_hash, clients=context.clients()))
            except (PlacetError, KeyError) as error:
                log.warning("an open batch could not be taken up again: %s", error)

    async def run(self) -> None:
        """Follow the topic until cancelled."""
        assert self.subscription is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._expire())
            async for records in self.subscription:
                for record in records:
                    await self._take(record)

    async def stop(self) -> None:
        """Stop following."""
        if self.subscription is not None:
            await self.subscription.close()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = self._clock()
            for batch_id, pending in list(self._pending.items()):
                if now > pending.sent_at + _KEEP_S:
                    self._pending.pop(batch_id)

    async def _take(self, record: Record) -> None:
        if record.topic == topics.SETTLEMENTS:
            await self._settled(record)
            return
        pending = self._pending.get(Hash32(record.key or b""))
        if pending is None:
            return  # another replica's
        with processing(record, None):
            try:
                message = open_envelope(
                    record.value or b"",
                    lambda kind, sender: (
                        sender if kind in (Kind.ATTESTATION_GROUP, Kind.GROUP_FAILURE) and sender in self._aggregators else None
                    ),
                )
                if message.batch_id != pending.context.id:
                    raise VerificationFailed("the record's key is not its batch", field="batchId")
                await self._apply(pending, message)
            except (InvalidInput, VerificationFailed) as error:
                log.warning("attestation ignored: %s", error)

    async def _settled(self, record: Record) -> None:
        """Note what settlement says of a task of this gateway."""
        with processing(record, None):
            await self._note_settlement(record)

    async def _note_settlement(self, record: Record) -> None:
        try:
            message = open_envelope(
                record.value or b"",
                lambda kind, sender: sender if kind is Kind.SETTLEMENT_EVENT and sender in self._settlements else None,
            )
            event = wire.decode_settlement_event(message.payload)
        except (InvalidInput, VerificationFailed) as error:
            log.warning("settlement event ignored: %s", error)
            return
        if len(event.reference) == 32 and event.reference == record.key:
            settlement = {
                "status": event.status,
                "transactionHash": hex0x(event.transaction_hash) if event.transaction_hash else None,
                "blockNumber": event.block_number or None,
                "gasUsed": event.gas_used or None,
                "error": event.error or None,
            }
            await self._store.set_settlement(Hash32(event.reference), settlement)

    async def _apply(self, pending: _Pending, message: Message) -> None:
        context = pending.context
        answers: list[tuple[Hash32, str, dict[str, Any], int]] = []
        if message.kind is Kind.ATTESTATION_GROUP:
            group = wire.decode_attestation_group(message.payload)
            fresh = {item.task for item in group.decided} & pending.open
            if not fresh:
                return
            if any(item.task >= len(context.task_ids) for item in group.decided):
                raise VerificationFailed("the group names a task outside the batch", field="decided")
            quorum_bps = max(pending.quorum_of_task[item.task] for item in group.decided)
            proofs = await asyncio.to_thread(
                verify_group,
                group,
                operators=pending.operators,
                chain_id=context.batch.chain_id,
                validator=context.batch.validator,
                quorum_bps=quorum_bps,
            )
            quorum = await asyncio.to_thread(
                contracts.quorum_proof,
                pending.operators,
                frozenset(positions_of(group.signers, len(pending.operators.operators)) or ()),
                group.aggregate_signature,
            )
            for index, (item, proof) in enumerate(zip(group.decided, proofs, strict=True)):
                if item.leaf.task_id != context.task_ids[item.task]:
                    raise VerificationFailed("a leaf stands under another task's number", field="decided")
                if item.task in fresh:
                    answer = certified_answer(context, group, item, index, proof, quorum)
                    answers.append((item.leaf.task_id, "certified", answer, item.leaf.expiration))
                    pending.open.discard(item.task)
        else:
            for failure in wire.decode_group_failure(message.payload).failures:
                if failure.task in pending.open and failure.task_id == context.task_ids[failure.task]:
                    pending.open.discard(failure.task)
                    answers.append((failure.task_id, "failed", failed_answer(failure), int(self._clock())))
        await self._store.set_results(answers)
        for task_id, _, answer, _ in answers:
            for waiter in self._waiters.pop(task_id, []):
                if not waiter.done():
                    waiter.set_result(answer)
        if not pending.open:
            self._pending.pop(context.id, None)


def failed_answer(failure: Any) -> dict[str, Any]:
    """The JSON of a task that ended without a certificate."""
    return {
        "taskId": hex0x(failure.task_id),
        "error": failure.code,
        "message": failure.message,
        "retryable": failure.retryable,
        "operators": [{"operator": hex0x(r.operator), "code": r.code, "message": r.message} for r in failure.reasons],
    }


def leaf_json(leaf: Leaf) -> dict[str, Any]:
    """A leaf as JSON."""
    return {
        "taskId": hex0x(leaf.task_id),
        "policyClient": hex0x(leaf.policy_client),
        "policyId": hex0x(leaf.policy_id),
        "intentHash": hex0x(leaf.intent_hash),
        "sequence": leaf.sequence,
        "allow": leaf.allow,
        "output": hex0x(leaf.output),
        "evidence": hex0x(leaf.evidence),
        "expiration": leaf.expiration,
    }


def certificate_json(certificate: Certificate) -> dict[str, Any]:
    """A certificate as JSON."""
    return {
        "root": hex0x(certificate.root),
        "count": certificate.count,
        "epoch": certificate.epoch,
        "timestamp": certificate.timestamp,
    }


def certified_answer(
    context: BatchContext, group: AttestationGroup, item: DecidedTask, index: int, proof: tuple[Hash32, ...], quorum: bytes
) -> dict[str, Any]:
    """The JSON of a signed decision, with the very call that executes it."""
    task: Task = context.batch.tasks[item.task]
    decision = jsonx.parse(item.decision, field="decision", max_bytes=limits.MAX_DECISION_BYTES)
    remember = group.certificate.count > 1
    attestation = contracts.attestation_tuple(item.leaf, index, proof, group.certificate, remember=remember, quorum=quorum)
    return {
        "taskId": hex0x(item.leaf.task_id),
        "decision": "allow" if item.leaf.allow else "deny",
        "reasons": [{"message": reason} for reason in decision.get("reasons", [])],
        "expiresAt": item.leaf.expiration,
        "attestation": {
            "chainId": context.batch.chain_id,
            "validator": hex0x(context.batch.validator),
            "leaf": leaf_json(item.leaf),
            "index": index,
            "proof": [hex0x(sibling) for sibling in proof],
            "certificate": certificate_json(group.certificate),
            "signers": hex0x(group.signers),
            "aggregateSignature": hex0x(group.aggregate_signature),
            "quorumProof": hex0x(quorum),
            "salt": hex0x(task.salt),
        },
        "call": {
            "to": hex0x(task.policy_client),
            "data": hex0x(contracts.execute_intent_call(task.intent, task.signature, attestation)),
            "value": str(task.intent.value),
        },
    }
