"""Waiting for attestations: every replica reads the whole topic, and answers the callers whose tasks it sent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.exc import DataError, IntegrityError

from placet.core import jsonx, limits, topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import Bus, BusError, NotAssigned, Record, Subscription, TopicPartition, next_offsets
from placet.core.bus.tracing import processing
from placet.core.db import DATABASE_ERRORS
from placet.core.envelope import Kind, Message, open_envelope
from placet.core.errors import InvalidInput, PlacetError, Unavailable, VerificationFailed
from placet.core.evm import contracts
from placet.core.evm.reader import BlockState, ChainReader
from placet.core.evm.rpc import RpcError
from placet.core.messages import AttestationGroup, DecidedTask, TaskFailure, positions_of
from placet.core.types import Certificate, Hash32, Leaf, OperatorSet, Task, hex0x
from placet.gateway.store import Store
from placet.verify import verify_group

log = logging.getLogger(__name__)

_ORPHAN_S = 15
"""A batch this old of which a task is open belongs to nobody if this replica does not know it: its replica is gone."""
_SWEEP_S = 5.0
_PRUNE_EVERY_S = 3600
_HOPELESS_S = 3600
"""When a node still does not know a batch's reference block, it never will."""
_LATER: tuple[type[Exception], ...] = (PlacetError, BusError, RpcError, *DATABASE_ERRORS)
SETTLEMENT_GROUP = "gateway.settlements"
"""With the database's name behind it: each event is noted once in each of them."""

Resend = Callable[[BatchContext, bytes], Awaitable[None]]


class _Pending:
    """A batch this replica sent, or found open when it started."""

    def __init__(self, context: BatchContext, operators: OperatorSet, quorum_of_task: list[int]) -> None:
        self.context = context
        self.operators = operators
        self.quorum_of_task = quorum_of_task
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
        instance_id: str | None = None,
        keep_s: int = 30 * 86_400,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._chains = chains
        self._store = store
        self._aggregators = aggregators
        self._settlements = settlements
        self._instance_id = instance_id
        self._keep_s = keep_s
        self._clock = clock
        self._pruned_at = 0.0
        self._pending: dict[Hash32, _Pending] = {}
        self._waiters: dict[Hash32, list[asyncio.Future[dict[str, Any]]]] = {}
        self.subscription: Subscription | None = None
        self._settled: Subscription | None = None
        self._settlement_group = SETTLEMENT_GROUP

    def expect(self, context: BatchContext, state: BlockState) -> None:
        """Look out for the results of a batch.

        Raises:
            Unavailable: what its clients demand cannot be read.
        """
        known = {client: state.pins[client].quorum_bps for client in context.clients() if client in state.pins}
        if not known:
            raise Unavailable("the clients of a batch cannot be read")
        # One threshold a batch: a client that cannot be read just now demands what the others do.
        quorums = [known.get(task.policy_client, max(known.values())) for task in context.batch.tasks]
        self._pending[context.id] = _Pending(context, state.operators, quorums)

    def is_open(self, batch_id: Hash32) -> bool:
        """Whether a batch of this replica waits for results."""
        return batch_id in self._pending

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

    async def start(self, resend: Resend) -> None:
        """Subscribe, then take up every batch that an earlier run left open, however long ago.

        One that was recorded and never published is published now if operators would still take it (`resend`), and failed if not.
        """
        self.subscription = await self._bus.subscribe([topics.ATTESTATIONS], None, from_beginning=False)
        self._settlement_group = f"{SETTLEMENT_GROUP}.{await self._store.identity()}"
        self._settled = await self._bus.subscribe([topics.SETTLEMENTS], self._settlement_group, instance_id=self._instance_id)
        await self._take_up(await self._store.open_batches(int(self._clock())), resend)

    async def _take_up(self, batch_ids: Sequence[Hash32], resend: Resend | None = None) -> None:
        """Read what was published of batches whose results this replica has not followed."""
        batches: dict[Hash32, tuple[BatchContext, bytes]] = {}
        for batch_id in batch_ids:
            payload = await self._store.batch_of(batch_id)
            if payload is None:
                continue
            try:
                context = BatchContext.of(*wire.decode_batch(payload))
            except PlacetError as error:
                log.error("batch %s cannot be read back: %s", hex0x(batch_id), error)
                await self._fail_unread(batch_id)
                continue
            try:
                reader = self._chains[context.batch.chain_id]
                self.expect(context, await reader.at(context.batch.block_hash, clients=context.clients()))
            except (PlacetError, RpcError, KeyError) as error:
                log.warning("batch %s cannot be taken up again: %s", hex0x(batch_id), error)
                if self._clock() > context.batch.timestamp + _HOPELESS_S:
                    await self._fail(_Pending(context, OperatorSet(0, ()), []), "what was decided cannot be checked any more")
                continue
            batches[batch_id] = context, payload
        if not batches:
            return
        since = min(context.batch.timestamp for context, _ in batches.values()) - limits.CLOCK_SKEW_PAST_S
        log.info("%d open batches taken up again", len(batches))
        if resend is not None:
            published = {record.key for record in await self._read(topics.TASKS, batches, since)}
            for batch_id, (context, payload) in batches.items():
                if batch_id in published:
                    continue
                if self._clock() < context.batch.timestamp + limits.CLOCK_SKEW_PAST_S - 1:
                    await resend(context, payload)
                else:
                    await self._fail(self._pending[batch_id], "the gateway stopped before it could publish the task; ask again")
        for record in await self._read(topics.ATTESTATIONS, batches, since):
            await self._patiently(self._take, record)

    async def _read(self, topic: str, batch_ids: Iterable[Hash32], since: int) -> list[Record]:
        """What a topic holds of some batches since a time."""
        wanted = frozenset(batch_ids)
        partitions = {TopicPartition(topic, self._bus.partition_for(topic, batch_id)) for batch_id in wanted}
        starts: dict[TopicPartition, int | None] = dict(await self._bus.offsets_at(partitions, since * 1000))
        found = await self._bus.read_many_to_end(starts)
        return [record for records in found.values() for record in records if record.key in wanted]

    async def run(self) -> None:
        """Follow the topics until cancelled."""
        assert self.subscription is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep())
            group.create_task(self._follow_settlements())
            async for records in self.subscription:
                for record in records:
                    await self._patiently(self._take, record)

    async def stop(self) -> None:
        """Stop following."""
        for subscription in (self.subscription, self._settled):
            if subscription is not None:
                await subscription.close()

    async def _patiently(self, handler: Callable[[Record], Awaitable[None]], record: Record) -> None:
        """A result is not lost because the database is away."""
        while True:
            try:
                await handler(record)
                return
            except (DataError, IntegrityError) as error:
                log.error("%s: record ignored, the database cannot hold it: %s", record.topic, type(error).__name__)
                return
            except DATABASE_ERRORS as error:
                log.warning("%s waits: %s", record.topic, error)
                await asyncio.sleep(0.5)
            except Exception:
                log.exception("%s: record ignored", record.topic)  # one record never ends the loop for all
                return

    async def _sweep(self) -> None:
        """End what nobody else ends: tasks without a result long after the last moment for one, and those of replicas that are gone."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                await self.sweep()
            except _LATER as error:
                log.warning("sweeping waits: %s", error)

    async def sweep(self) -> None:
        """One round of it."""
        now = self._clock()
        if now > self._pruned_at + _PRUNE_EVERY_S:
            self._pruned_at = now
            await self._store.prune(int(now) - self._keep_s)
        orphans = await self._store.open_batches(int(now) - _ORPHAN_S)
        await self._take_up([batch_id for batch_id in orphans if batch_id not in self._pending])
        for pending in list(self._pending.values()):
            if now > pending.context.batch.timestamp + limits.RESULT_WITHIN_S:
                await self._fail(pending, "no result in time")

    async def _fail(self, pending: _Pending, message: str) -> None:
        """The typed failure of a batch's open tasks, for those that have no result yet."""
        failures = [TaskFailure(at, pending.context.task_ids[at], "timeout", message, True, ()) for at in sorted(pending.open)]
        await self._conclude([(failure.task_id, "failed", failed_answer(failure), int(self._clock())) for failure in failures])
        self._pending.pop(pending.context.id, None)

    async def _fail_unread(self, batch_id: Hash32) -> None:
        """The typed failure of tasks whose batch is not readable: nobody can have decided them."""
        failures = [
            TaskFailure(0, task_id, "internal", "what was recorded of the task cannot be read; ask again", True, ())
            for task_id in await self._store.open_tasks_of(batch_id)
        ]
        await self._conclude([(failure.task_id, "failed", failed_answer(failure), int(self._clock())) for failure in failures])

    async def _take(self, record: Record) -> None:
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

    # --- what settlement says

    async def _follow_settlements(self) -> None:
        """Each event is noted once by some replica, also those that came while none was there."""
        assert self._settled is not None
        async for records in self._settled:
            for record in records:
                with processing(record, self._settlement_group):
                    await self._patiently(self._note_settlement, record)
            try:
                await self._settled.commit(next_offsets(records))
            except NotAssigned:
                pass  # noted again by whoever reads them next, with the same words
            except BusError as error:
                log.warning("commit: %s", error)

    async def _note_settlement(self, record: Record) -> None:
        """Note what settlement says of a task."""
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
        ended: set[int] = set()
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
                salts=[task.salt for task in context.batch.tasks],  # the reasons are shown, so they are held against the evidence
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
                    ended.add(item.task)
        else:
            for failure in wire.decode_group_failure(message.payload).failures:
                if failure.task in pending.open and failure.task_id == context.task_ids[failure.task]:
                    ended.add(failure.task)
                    answers.append((failure.task_id, "failed", failed_answer(failure), int(self._clock())))
        await self._conclude(answers)
        pending.open -= ended
        if not pending.open:
            self._pending.pop(context.id, None)

    async def _conclude(self, answers: Sequence[tuple[Hash32, str, dict[str, Any], int]]) -> None:
        """Write results down, then tell whoever waits what stands."""
        for task_id, answer in (await self._store.set_results(answers)).items():
            for waiter in self._waiters.pop(task_id, []):
                if not waiter.done():
                    waiter.set_result(answer)


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
