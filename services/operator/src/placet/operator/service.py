"""The operator's loop: which batches it takes, and from which of their tasks it abstains unseen (architecture §4).

Reads `tasks` and `proposals` in the group `op.<address>`; partitions of one number come to one replica. A task's offset is committed when
its batch has expired, so after a crash every batch that is still open is read again, and answered with the bytes the signing log holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from placet.core import limits, topics, wire
from placet.core.batch import BatchContext, quorum_of
from placet.core.bus import Bus, BusError, NotAssigned, Record, Subscription, TopicPartition
from placet.core.bus.tracing import processing
from placet.core.db import DATABASE_ERRORS
from placet.core.digests import action_key
from placet.core.envelope import BusSigner, Kind, Message, open_envelope
from placet.core.errors import InvalidInput, NotFound, PlacetError, Unavailable, VerificationFailed
from placet.core.evm.reader import BlockState, ChainReader
from placet.core.evm.rpc import RpcError
from placet.core.messages import Abstention
from placet.core.objects import ObjectStore
from placet.core.telemetry import metrics
from placet.core.types import ZERO_HASH, Hash32, TaskBatch
from placet.operator.answers import BATCHES, PASSED_ON, Answered, Answers, OperatorIdentity, Refused, Run, why_not
from placet.operator.evaluation import Evaluator
from placet.operator.evidence_store import EvidenceStore
from placet.operator.observing import Observer
from placet.operator.policies import LoadedPolicy, PolicyStore
from placet.operator.senders import unsigned
from placet.operator.signing import BlsSigner
from placet.operator.signing_log import SigningLog

log = logging.getLogger(__name__)

_SECONDS = metrics.histogram("placet_operator_respond_seconds", "Time from a batch's arrival to its response.", [])


T = TypeVar("T")
_PRUNE_EVERY_S = 600.0
_PRUNING: tuple[type[Exception], ...] = (Unavailable, *DATABASE_ERRORS)
_TROUBLE: tuple[type[Exception], ...] = (PlacetError, BusError, RpcError, *PASSED_ON)


class OperatorService:
    """One replica of one operator identity."""

    def __init__(
        self,
        *,
        identity: OperatorIdentity,
        bus: Bus,
        chains: Mapping[int, ChainReader],
        policies: PolicyStore,
        evaluator: Evaluator,
        observer: Observer,
        signing_log: SigningLog,
        evidence: EvidenceStore,
        objects: ObjectStore,
        bls: BlsSigner,
        bus_signer: BusSigner,
        instance_id: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._bus = bus
        self._chains = chains
        self._policies = policies
        self._log = signing_log
        self._evidence = evidence
        self._answers = Answers(
            identity=identity,
            bus=bus,
            evaluator=evaluator,
            observer=observer,
            signing_log=signing_log,
            evidence=evidence,
            objects=objects,
            bls=bls,
            bus_signer=bus_signer,
            clock=clock,
        )
        self._instance_id = instance_id
        self._clock = clock
        self._group = f"op.{identity.address.hex()}"
        self._runs: dict[Hash32, asyncio.Future[Run | None]] = {}
        self._proposals: dict[Hash32, Message] = {}
        self._expiries: dict[TopicPartition, deque[tuple[int, float]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.subscription: Subscription | None = None

    # --- the loop

    async def run(self) -> None:
        """Consume until cancelled."""
        self.subscription = await self._bus.subscribe(
            [topics.TASKS, topics.PROPOSALS], self._group, instance_id=self._instance_id, on_revoked=self._on_revoked
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_house())
            group.create_task(self._prune_evidence())
            async for records in self.subscription:
                for record in records:
                    self._take(record)

    async def _on_revoked(self, _: Subscription, partitions: frozenset[TopicPartition]) -> None:
        for partition in partitions:
            self._expiries.pop(partition, None)

    def _take(self, record: Record) -> None:
        expires = record.timestamp_ms / 1000 + limits.BATCH_LIFETIME_S + limits.CLOCK_SKEW_PAST_S
        self._expiries.setdefault(record.topic_partition, deque()).append((record.offset, expires))
        handler = self._on_tasks if record.topic == topics.TASKS else self._on_proposal
        task = asyncio.create_task(self._guarded(handler, record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, handler: Callable[[Record], object], record: Record) -> None:
        with processing(record, self._group) as span:
            try:
                await handler(record)  # type: ignore[misc]
            except (InvalidInput, VerificationFailed) as error:
                log.warning("%s: record dropped: %s", record.topic, error)
                span.set_attribute("error.type", error.code)
                await self._bus.publish_dlq(record, error, consumer="operator")
            except _TROUBLE as error:
                BATCHES.labels("refused").inc()
                log.warning("%s: %s", record.topic, error)
                span.set_attribute("error.type", type(error).__name__)

    async def drain(self, timeout_s: float) -> None:
        """Wait for the batches in hand."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def _keep_house(self) -> None:
        """Commit offsets whose batches have expired, forget old runs, keep the log's heart beating."""
        beat = 0
        while True:
            await asyncio.sleep(1.0)
            now = self._clock()
            offsets: dict[TopicPartition, int] = {}
            for partition, waiting in self._expiries.items():
                while waiting and waiting[0][1] < now:
                    offsets[partition] = waiting.popleft()[0] + 1
            if offsets and self.subscription is not None:
                try:
                    await self.subscription.commit(offsets)
                except NotAssigned:
                    pass  # the new owner reads these batches again, and answers from the log
                except BusError as error:
                    log.warning("commit: %s", error)
            for batch_id in [key for key, run in self._runs.items() if run.done() and self._is_over(run, now)]:
                self._runs.pop(batch_id, None)
                self._proposals.pop(batch_id, None)
            beat += 1
            try:
                if beat % 20 == 0:
                    await self._log.heartbeat(int(now))
                if beat % 600 == 0:
                    await self._log.prune(int(now))
            except DATABASE_ERRORS as error:
                log.warning("signing log: %s", error)

    async def _prune_evidence(self) -> None:
        """Beside the housekeeping: an object store that is slow must not stop the signing log's heart."""
        while True:
            await asyncio.sleep(_PRUNE_EVERY_S)
            try:
                await self._evidence.prune(int(self._clock()))
            except _PRUNING as error:
                log.warning("evidence: %s", error)

    @staticmethod
    def _is_over(run: asyncio.Future[Run | None], now: float) -> bool:
        if run.cancelled() or run.exception() is not None:
            return True
        result = run.result()
        return result is None or now > result.context.batch.timestamp + limits.BATCH_LIFETIME_S + limits.CLOCK_SKEW_PAST_S

    # --- batches

    def _gateway_key(self, kind: Kind, sender: bytes) -> bytes | None:
        return sender if kind is Kind.TASK_BATCH and sender in self._identity.gateways else None

    def _aggregator_key(self, kind: Kind, sender: bytes) -> bytes | None:
        return sender if kind is Kind.PROPOSAL and sender in self._identity.aggregators else None

    async def _on_tasks(self, record: Record) -> None:
        started = time.perf_counter()
        message = open_envelope(record.value or b"", self._gateway_key)
        batch, relays = wire.decode_batch(message.payload)
        context = BatchContext.of(batch, relays) if len(batch.tasks) < 16 else await asyncio.to_thread(BatchContext.of, batch, relays)
        if context.id != message.batch_id or context.id != record.key or message.chain_id != batch.chain_id:
            raise VerificationFailed("the batch is not the one its envelope and key name", field="batchId")
        if context.id in self._runs:
            return  # delivered twice
        future: asyncio.Future[Run | None] = asyncio.get_running_loop().create_future()
        self._runs[context.id] = future
        try:
            run = await self._persistently(batch, lambda: self._begin(context))
        except BaseException as error:
            future.set_result(None)
            if isinstance(error, Exception) and not isinstance(error, DATABASE_ERRORS):
                await self._abstain_for(context, error)
            raise
        future.set_result(run)
        if run is None:
            return
        try:
            await self._persistently(batch, lambda: self._answer(run))
        except Exception as error:
            if not isinstance(error, DATABASE_ERRORS):
                await self._abstain_for(context, error)
            raise
        _SECONDS.observe(time.perf_counter() - started)

    async def _answer(self, run: Run) -> None:
        await self._answers.first(run)
        message = self._proposals.get(run.id)  # it may have been read before its batch was ready
        if message is not None and not run.proposal.done():
            run.proposal.set_result(message)
        if run.proposal.done():
            await self._answers.to_proposal(run, run.proposal.result())

    async def _abstain_for(self, context: BatchContext, error: Exception) -> None:
        """Whatever went wrong, the others hear that there is no answer; unless there is one, which is not taken back."""
        if self._clock() > context.batch.timestamp + limits.BATCH_LIFETIME_S or await self._answers.has_answered(context):
            return
        code, message = (error.code, str(error)) if isinstance(error, Refused) else why_not(error)
        await self._answers.abstain_from_all(context, code, message)

    async def _persistently(self, batch: TaskBatch, action: Callable[[], Awaitable[T]]) -> T:
        """Do something that begins with a look at the signing log again, as long as the batch is open and the database is away."""
        while True:
            try:
                return await action()
            except DATABASE_ERRORS as error:
                if self._clock() > batch.timestamp + limits.BATCH_LIFETIME_S:
                    raise
                log.warning("signing log: %s", error)
                await asyncio.sleep(0.5)

    async def _begin(self, context: BatchContext) -> Run | None:
        """Check a batch as a whole: time, chain, validator, reference block, epoch, policy."""
        batch, now = context.batch, self._clock()
        answered = await self._answers.resend(context)
        if answered is Answered.WITH_NOTHING:
            return None  # what was refused stays refused, however often it is delivered
        if (
            answered is Answered.NOT
            and not batch.timestamp - limits.CLOCK_SKEW_FUTURE_S <= now <= batch.timestamp + limits.CLOCK_SKEW_PAST_S
        ):
            raise Refused("clock_skew", f"its timestamp is {now - batch.timestamp:.1f} s from this clock")
        if batch.timestamp < self._log.not_before:
            raise Refused("signing_log_young", "stamped before this signing log began")
        reader = self._chains.get(batch.chain_id)
        if reader is None or batch.validator != reader.deployment.validator:
            raise Refused("wrong_chain", "chain or validator is none of ours")
        state = await self._reference_state(reader, context)
        if state.operators.by_address(self._identity.address) is None:
            raise Refused("not_an_operator", f"not an operator in epoch {batch.epoch}")
        try:
            loaded = await self._policies.get(batch.policy_id)
        except (NotFound, InvalidInput, VerificationFailed, Unavailable) as error:
            await self._answers.abstain_from_all(context, "policy_not_admitted", str(error))
            return None
        state = await reader.at(
            batch.block_hash,
            clients=context.clients(),
            sequences=context.sequence_keys(loaded.policy.ordering),
            ordering=loaded.policy.ordering,
        )
        quorum_bps = quorum_of(batch, state.pins)
        if quorum_bps is None:
            message = "no client in the batch follows this policy at the reference block"
            await self._answers.abstain_from_all(context, "wrong_policy", message)
            return None
        abstentions = await self._abstentions(context, state, loaded, reader, quorum_bps)
        return Run(context, state, loaded, quorum_bps, abstentions)

    async def _reference_state(self, reader: ChainReader, context: BatchContext) -> BlockState:
        """The reference block must be canonical here, recent, and of the epoch the batch names (threats 6, 7)."""
        batch = context.batch
        try:
            head = await reader.rpc.block("latest")
            named = await reader.rpc.block(batch.block_number) if batch.block_number <= head.number else None
            following = head if batch.block_number >= head.number - 1 else await reader.rpc.block(batch.block_number + 1)
        except RpcError as error:
            raise Unavailable(f"node: {error}") from None
        if named is None or named.hash != batch.block_hash:
            raise Refused("unknown_block", "the reference block is not in this node's chain")
        if head.number - batch.block_number > self._identity.max_reference_block_age:
            raise Refused("old_block", f"the reference block is {head.number - batch.block_number} blocks old")
        # By the chain's clock too: else the gateway may choose the block that suits it among all of a few minutes.
        behind_s = head.timestamp - following.timestamp
        if behind_s > self._identity.max_reference_lag_s:
            raise Refused("old_block", f"the reference block was superseded {behind_s} s before this node's newest")
        state = await reader.at(batch.block_hash)
        if state.epoch != batch.epoch:
            raise Refused("wrong_epoch", f"epoch {batch.epoch}, the reference block has {state.epoch}")
        return state

    async def _abstentions(
        self, context: BatchContext, state: BlockState, loaded: LoadedPolicy, reader: ChainReader, quorum_bps: int
    ) -> tuple[Abstention, ...]:
        """Tasks this operator gives no leaf for, before it has looked at any data."""
        batch = context.batch
        actions = [action_key(task.policy_client, task.intent) for task in batch.tasks]
        denied = await self._log.denied_until(actions) if loaded.policy.retry_after else {}
        # Who has not signed must neither read behind secrets nor start (or escape) the time for which a denied action is refused.
        signed_only = loaded.policy.retry_after > 0 or any(info.needs_secrets for info in loaded.data)
        out: list[Abstention] = []
        to_ask: list[int] = []
        for index, task in enumerate(batch.tasks):
            pins = state.pins.get(task.policy_client)
            if pins is None or pins.policy_id != batch.policy_id:
                out.append(Abstention(index, "wrong_policy", "the client does not follow this policy at the reference block"))
                continue
            if pins.quorum_bps != quorum_bps:
                out.append(Abstention(index, "wrong_quorum", f"the batch's quorum is {quorum_bps} bps, the client's {pins.quorum_bps}"))
                continue
            until, denied_task = denied.get(actions[index], (0, ZERO_HASH))
            if batch.timestamp < until and denied_task != context.task_ids[index]:
                out.append(Abstention(index, "retry_after", f"this action was denied; ask again after {until}"))
                continue
            to_ask.append(index)
        if signed_only:
            out += await unsigned(reader.rpc, context, to_ask)
        return tuple(sorted(out, key=lambda item: item.task))

    # --- proposals

    async def _on_proposal(self, record: Record) -> None:
        message = open_envelope(record.value or b"", self._aggregator_key)
        if message.batch_id != record.key:
            raise VerificationFailed("the proposal's batch is not its key", field="batchId")
        if message.batch_id in self._proposals:
            return  # the first valid one in the partition is the one
        self._proposals[message.batch_id] = message
        future = self._runs.get(message.batch_id)
        if future is None:
            asyncio.get_running_loop().call_later(limits.BATCH_LIFETIME_S, self._proposals.pop, message.batch_id, None)
            return  # its batch has not been read yet, or is none of ours
        if not future.done():
            return  # the batch's own handler looks for it
        run = future.result()
        if run is not None and not run.proposal.done():
            run.proposal.set_result(message)
            await self._persistently(run.context.batch, lambda: self._answers.to_proposal(run, message))
