"""The operator's loop: batches in, observations and responses out (architecture §4, steps 2 to 5).

Reads `tasks` and `proposals` in the group `op.<address>`; partitions of one number come to one replica. A task's offset is committed when
its batch has expired, so after a crash every batch that is still open is read again, and answered with the bytes the signing log holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from placet.core import limits, topics, wire
from placet.core.agreement import Agreement, Group, agree, whole_batch
from placet.core.batch import BatchContext, quorum_of
from placet.core.bus import Bus, BusError, NotAssigned, Record, Subscription, TopicPartition
from placet.core.bus.tracing import processing
from placet.core.db import DATABASE_ERRORS
from placet.core.decision import early_denial, is_of_policy
from placet.core.digests import action_key, leaf_struct_hash
from placet.core.envelope import BusSigner, Kind, Message, open_envelope, seal
from placet.core.errors import InvalidInput, NotFound, PlacetError, Unavailable, VerificationFailed
from placet.core.evidence import EvidenceRecord
from placet.core.evm.reader import BlockState, ChainReader
from placet.core.evm.rpc import RpcError
from placet.core.keccak import keccak256
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import Abstention, DecidedTask, GroupResponse, Observation, Response, TaskObservation
from placet.core.objects import ObjectStore
from placet.core.proposals import fetch_observation, open_observations
from placet.core.senders import is_signed_by
from placet.core.telemetry import metrics, names
from placet.core.telemetry.scope import tracer
from placet.core.types import ZERO_HASH, Address, Certificate, Hash32, TaskBatch, hex0x
from placet.operator.evaluation import Evaluator, TaskToDecide
from placet.operator.evidence_store import EvidenceStore
from placet.operator.observing import ObservationFailed, Observer
from placet.operator.policies import LoadedPolicy, PolicyStore
from placet.operator.signing import BlsSigner
from placet.operator.signing_log import LeafConflict, LeafEntry, SigningLog

log = logging.getLogger(__name__)

_BATCHES = metrics.counter("placet_operator_batches_total", "Batches handled, by outcome.", ["outcome"])
_TASKS = metrics.counter("placet_operator_tasks_total", "Tasks decided or abstained from.", ["outcome"])
_SECONDS = metrics.histogram("placet_operator_respond_seconds", "Time from a batch's arrival to its response.", [])


@dataclass(eq=False)
class _Run:
    """One batch in hand."""

    context: BatchContext
    state: BlockState
    loaded: LoadedPolicy
    quorum_bps: int
    abstentions: tuple[Abstention, ...]
    observation: Observation | None = None
    computed: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    """Outputs of components that reach nothing outside: computed here, agreed by construction."""
    proposal: asyncio.Future[Message] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def id(self) -> Hash32:
        return self.context.id


@dataclass(frozen=True, slots=True)
class OperatorIdentity:
    """Who this operator is and whom it listens to."""

    address: Address
    gateways: frozenset[bytes]
    aggregators: frozenset[bytes]
    max_reference_block_age: int
    runtime_id: str


class _Answered(Enum):
    """What this identity has said of a batch before."""

    NOT = 0
    WITH_NOTHING = 1
    """It abstained from all tasks."""
    WITH_SOMETHING = 2


class _Refused(Exception):
    """A batch that this operator does not take at all, with a stable code and the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


T = TypeVar("T")
_PASSED_ON: tuple[type[Exception], ...] = (_Refused, *DATABASE_ERRORS)
_TROUBLE: tuple[type[Exception], ...] = (PlacetError, BusError, RpcError, *_PASSED_ON)


def _why_not(error: Exception) -> tuple[str, str]:
    """Code and text of an abstention. A defect's text stays here."""
    if isinstance(error, LeafConflict):
        return "equivocation_refused", str(error)
    return ("unavailable", str(error)) if isinstance(error, PlacetError | RpcError) else ("internal", type(error).__name__)


def _abstentions_from(tasks: Sequence[int], already: Sequence[Abstention], code: str, message: str) -> list[Abstention]:
    spared = {item.task for item in already}
    return [Abstention(task, code, message) for task in tasks if task not in spared]


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
        self._evaluator = evaluator
        self._observer = observer
        self._log = signing_log
        self._evidence = evidence
        self._objects = objects
        self._bls = bls
        self._bus_signer = bus_signer
        self._instance_id = instance_id
        self._clock = clock
        self._group = f"op.{identity.address.hex()}"
        self._runs: dict[Hash32, asyncio.Future[_Run | None]] = {}
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
                _BATCHES.labels("refused").inc()
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

    @staticmethod
    def _is_over(run: asyncio.Future[_Run | None], now: float) -> bool:
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
        future: asyncio.Future[_Run | None] = asyncio.get_running_loop().create_future()
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
            await self._persistently(batch, lambda: self._first_answer(run))
        except Exception as error:
            if not isinstance(error, DATABASE_ERRORS):
                await self._abstain_for(context, error)
            raise
        _SECONDS.observe(time.perf_counter() - started)

    async def _abstain_for(self, context: BatchContext, error: Exception) -> None:
        """Whatever went wrong, the others hear that there is no answer; unless there is one, which is not taken back."""
        if self._clock() > context.batch.timestamp + limits.BATCH_LIFETIME_S or await self._has_answered(context):
            return
        code, message = (error.code, str(error)) if isinstance(error, _Refused) else _why_not(error)
        await self._publish_observation(context, self._all_abstain(context, code, message))

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

    async def _has_answered(self, context: BatchContext) -> bool:
        return any([await self._log.sent(context.id, kind) is not None for kind in (Kind.OBSERVATION, Kind.RESPONSE)])

    async def _begin(self, context: BatchContext) -> _Run | None:
        """Check a batch as a whole: time, chain, validator, reference block, epoch, policy."""
        batch, now = context.batch, self._clock()
        answered = await self._resend(context)
        if answered is _Answered.WITH_NOTHING:
            return None  # what was refused stays refused, however often it is delivered
        if (
            answered is _Answered.NOT
            and not batch.timestamp - limits.CLOCK_SKEW_FUTURE_S <= now <= batch.timestamp + limits.CLOCK_SKEW_PAST_S
        ):
            raise _Refused("clock_skew", f"its timestamp is {now - batch.timestamp:.1f} s from this clock")
        if batch.timestamp < self._log.not_before:
            raise _Refused("signing_log_young", "stamped before this signing log began")
        reader = self._chains.get(batch.chain_id)
        if reader is None or batch.validator != reader.deployment.validator:
            raise _Refused("wrong_chain", "chain or validator is none of ours")
        state = await self._reference_state(reader, context)
        if state.operators.by_address(self._identity.address) is None:
            raise _Refused("not_an_operator", f"not an operator in epoch {batch.epoch}")
        try:
            loaded = await self._policies.get(batch.policy_id)
        except (NotFound, InvalidInput, VerificationFailed, Unavailable) as error:
            await self._publish_observation(context, self._all_abstain(context, "policy_not_admitted", str(error)))
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
            await self._publish_observation(context, self._all_abstain(context, "wrong_policy", message))
            return None
        abstentions = await self._abstentions(context, state, loaded, reader, quorum_bps)
        return _Run(context, state, loaded, quorum_bps, abstentions)

    async def _reference_state(self, reader: ChainReader, context: BatchContext) -> BlockState:
        """The reference block must be canonical here, recent, and of the epoch the batch names (threats 6, 7)."""
        batch = context.batch
        try:
            head = await reader.rpc.block("latest")
            named = await reader.rpc.block(batch.block_number) if batch.block_number <= head.number else None
        except RpcError as error:
            raise Unavailable(f"node: {error}") from None
        if named is None or named.hash != batch.block_hash:
            raise _Refused("unknown_block", "the reference block is not in this node's chain")
        if head.number - batch.block_number > self._identity.max_reference_block_age:
            raise _Refused("old_block", f"the reference block is {head.number - batch.block_number} blocks old")
        state = await reader.at(batch.block_hash)
        if state.epoch != batch.epoch:
            raise _Refused("wrong_epoch", f"epoch {batch.epoch}, the reference block has {state.epoch}")
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
        out = []
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
            if signed_only and not await is_signed_by(
                reader.rpc, task.intent.sender, context.intent_hashes[index], task.signature, block_hash=batch.block_hash
            ):
                out.append(Abstention(index, "signature_required", "this policy judges intents signed by their sender only"))
        return tuple(out)

    def _all_abstain(self, context: BatchContext, code: str, message: str) -> Observation:
        abstentions = tuple(Abstention(index, code, message) for index in range(len(context.batch.tasks)))
        return Observation((), abstentions, self._identity.runtime_id)

    async def _resend(self, context: BatchContext) -> _Answered:
        """After a redelivery: what was committed for this batch leaves again, byte for byte; who answered may take part in a Proposal."""
        answered = _Answered.NOT
        observation = await self._log.sent(context.id, Kind.OBSERVATION)
        if observation is not None:
            await self._bus.publish(topics.OBSERVATIONS, context.id, observation)
            said = wire.decode_observation(open_envelope(observation, self._own_key).payload, len(context.batch.tasks))
            answered = _Answered.WITH_SOMETHING if said.tasks or said.blob_sha256 is not None else _Answered.WITH_NOTHING
        response = await self._log.sent(context.id, Kind.RESPONSE)
        if response is not None:
            await self._bus.publish(topics.RESPONSES, context.id, response)
            answered = _Answered.WITH_SOMETHING
        return answered

    def _own_key(self, kind: Kind, sender: bytes) -> bytes:
        return self._bus_signer.public_key

    # --- step 2: observing

    async def _first_answer(self, run: _Run) -> None:
        """Without PolicyData: respond to the whole batch, or say what is abstained from. With it: observe."""
        context = run.context
        if run.loaded.needs_observation:
            await self._observe(run)
            await self._answer_waiting_proposal(run)
            return
        if run.loaded.data:
            await self._compute(run)
        if run.abstentions:
            await self._vouch(run, run.abstentions)
        else:
            await self._respond(run, whole_batch(len(context.batch.tasks), run.state.operators), (), ZERO_HASH)
        await self._answer_waiting_proposal(run)

    async def _answer_waiting_proposal(self, run: _Run) -> None:
        """A Proposal may have been read before its batch was ready."""
        message = self._proposals.get(run.id)
        if message is not None and not run.proposal.done():
            run.proposal.set_result(message)
        if run.proposal.done():
            await self._answer_proposal(run, run.proposal.result())

    async def _look(self, run: _Run) -> tuple[list[TaskObservation], list[Abstention]]:
        """Run the policy's components for every task not abstained from."""
        context = run.context
        deadline = context.batch.timestamp + context.batch.observe_for_ms / 1000
        spared = {item.task for item in run.abstentions}
        indices = [index for index in range(len(context.batch.tasks)) if index not in spared]
        with tracer("placet.operator").start_as_current_span(names.OBSERVE, attributes={names.BATCH_TASKS: len(indices)}):
            results = await asyncio.gather(
                *(self._observer.observe(run.loaded, context, index, run.state, deadline) for index in indices), return_exceptions=True
            )
        seen: list[TaskObservation] = []
        missed = list(run.abstentions)
        for index, result in zip(indices, results, strict=True):
            if isinstance(result, TaskObservation):
                seen.append(result)
            elif isinstance(result, ObservationFailed):
                missed.append(Abstention(index, result.code, result.message))
            else:
                log.error("observing failed", exc_info=result)
                missed.append(Abstention(index, "internal", type(result).__name__))
        return seen, sorted(missed, key=lambda item: item.task)

    async def _compute(self, run: _Run) -> None:
        """Components that reach nothing outside: their outputs are a function of the task, so nobody needs to agree on them."""
        seen, missed = await self._look(run)
        run.computed = {item.task: item.outputs for item in seen}
        run.abstentions = tuple(missed)

    async def _observe(self, run: _Run) -> None:
        context = run.context
        stored = await self._log.sent(run.id, Kind.OBSERVATION)
        if stored is not None:
            run.observation = await self._observation_of(stored, len(context.batch.tasks))
            return
        seen, missed = await self._look(run)
        observation = Observation(tuple(seen), tuple(missed), self._identity.runtime_id)
        run.observation = await self._publish_observation(context, observation)

    async def _publish_observation(self, context: BatchContext, observation: Observation) -> Observation:
        """Commit, then publish. Returns what stands, which is another replica's if that was first."""
        payload = wire.encode_observation(observation)
        if len(payload) > limits.MAX_INLINE_OBSERVATION_BYTES:
            address = await self._objects.put(payload)
            payload = wire.encode_observation(Observation((), (), self._identity.runtime_id, address))
        envelope = seal(
            self._bus_signer,
            kind=Kind.OBSERVATION,
            chain_id=context.batch.chain_id,
            sender=self._identity.address,
            payload=payload,
            batch_id=context.id,
        )
        stands = await self._log.commit_sent(context.id, Kind.OBSERVATION, envelope, context.batch.timestamp)
        await self._bus.publish(topics.OBSERVATIONS, context.id, stands)
        return observation if stands == envelope else await self._observation_of(stands, len(context.batch.tasks))

    async def _observation_of(self, envelope: bytes, task_count: int) -> Observation:
        message = open_envelope(envelope, self._own_key)
        return await fetch_observation(wire.decode_observation(message.payload, task_count), task_count, self._objects)

    # --- steps 3 to 5: proposals, groups, leaves

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
            await self._persistently(run.context.batch, lambda: self._answer_proposal(run, message))

    async def _answer_proposal(self, run: _Run, message: Message) -> None:
        digest = Hash32(keccak256(message.payload))
        stored = await self._log.sent(run.id, Kind.RESPONSE, digest)
        if stored is not None:
            await self._bus.publish(topics.RESPONSES, run.id, stored)
            return
        proposal = wire.decode_proposal(message.payload)
        observations, opened = await open_observations(
            proposal, run.context, run.state.operators, self._objects, with_data=run.loaded.needs_observation
        )
        if run.state.operators.stake_of(frozenset(observations)) * 10_000 < run.state.operators.total_stake * run.quorum_bps:
            raise VerificationFailed("the proposal rests on less than quorum stake", field="observations")
        size = len(run.context.batch.tasks)
        components = run.loaded.components if run.loaded.needs_observation else ()
        denied = frozenset(i for i in range(size) if components and early_denial(run.context, i, run.loaded.policy) is not None)
        agreement = await asyncio.to_thread(agree, size, observations, components, run.state.operators, run.quorum_bps, denied)
        envelopes = opened if run.loaded.needs_observation else ()
        await self._respond(run, agreement, envelopes, digest)

    async def _respond(self, run: _Run, agreement: Agreement, observations: Sequence[bytes], proposal_digest: Hash32) -> None:
        """Decide, store evidence, commit leaves, sign once a group, publish."""
        context, batch = run.context, run.context.batch
        if self._clock() > batch.timestamp + limits.BATCH_LIFETIME_S:
            raise _Refused("too_late", "too late to sign")
        if await self._log.sent(run.id, Kind.RESPONSE, proposal_digest) is not None:
            return  # `_resend` has sent it
        groups: list[GroupResponse] = []
        abstentions: list[Abstention] = list(run.abstentions)
        for group in agreement.groups:
            if self._identity.address not in group.operators:
                abstentions += _abstentions_from(group.tasks, abstentions, "outvoted", "what was observed here is not what was agreed")
                continue
            try:
                groups.append(await self._sign_group(run, agreement, group, observations))
            except _PASSED_ON:
                raise
            except LeafConflict as error:
                clashing = [task for task in group.tasks if context.task_ids[task] in error.tasks]
                log.warning("batch %s: %s", hex0x(run.id), error)
                if proposal_digest == ZERO_HASH:
                    await self._vouch_for_the_rest(run, clashing, error)
                    return
                abstentions += _abstentions_from(clashing, abstentions, *_why_not(error))
                rest = [task for task in group.tasks if task not in clashing]
                abstentions += _abstentions_from(rest, abstentions, "no_signature", "its group holds a task that was signed otherwise")
            except Exception as error:
                code, message = _why_not(error)
                log.warning("batch %s: group abstained from: %s", hex0x(run.id), error, exc_info=error if code == "internal" else None)
                abstentions += _abstentions_from(group.tasks, abstentions, code, message)
        for failed in agreement.failed:
            abstentions += _abstentions_from([failed.task], abstentions, "no_agreement", failed.message)
        if not groups and proposal_digest == ZERO_HASH:
            await self._publish_observation(context, self._all_abstain(context, abstentions[0].code, abstentions[0].message))
            return
        response = Response(tuple(groups), tuple(sorted(abstentions, key=lambda item: item.task)), self._identity.runtime_id)
        envelope = seal(
            self._bus_signer,
            kind=Kind.RESPONSE,
            chain_id=batch.chain_id,
            sender=self._identity.address,
            payload=wire.encode_response(response),
            batch_id=run.id,
            proposal_digest=proposal_digest,
        )
        stands = await self._log.commit_sent(run.id, Kind.RESPONSE, envelope, batch.timestamp, proposal_digest)
        await self._bus.publish(topics.RESPONSES, run.id, stands)
        _BATCHES.labels("responded").inc()

    async def _vouch(self, run: _Run, abstentions: Sequence[Abstention]) -> None:
        """Without data to observe: an Observation that vouches for every task not abstained from."""
        spared = {item.task for item in abstentions}
        vouched = tuple(TaskObservation(i, (), ()) for i in range(len(run.context.batch.tasks)) if i not in spared)
        await self._publish_observation(run.context, Observation(vouched, tuple(abstentions), self._identity.runtime_id))

    async def _vouch_for_the_rest(self, run: _Run, clashing: Sequence[int], error: LeafConflict) -> None:
        """A batch that may not be signed whole: a Proposal will make a group of the rest."""
        added = _abstentions_from(clashing, run.abstentions, *_why_not(error))
        run.abstentions = tuple(sorted([*run.abstentions, *added], key=lambda item: item.task))
        await self._vouch(run, run.abstentions)

    async def _sign_group(self, run: _Run, agreement: Agreement, group: Group, observations: Sequence[bytes]) -> GroupResponse:
        context, batch, policy = run.context, run.context.batch, run.loaded.policy
        tasks = [
            TaskToDecide(
                index,
                run.state.sequences.get((batch.tasks[index].policy_client, batch.tasks[index].intent.sender), 0),
                agreement.agreed[index].outputs if run.loaded.needs_observation else run.computed.get(index, ()),
            )
            for index in group.tasks
        ]
        with tracer("placet.operator").start_as_current_span(names.EVALUATE, attributes={names.BATCH_TASKS: len(tasks)}):
            results: list[tuple[DecidedTask, EvidenceRecord]] = await self._evaluator.decide(run.loaded, context, tasks, observations)
        await self._evidence.put([record for _, record in results], batch.timestamp)
        decided = [item for item, _ in results]
        leaves = [leaf_hash(leaf_struct_hash(item.leaf)) for item in decided]
        entries = [
            LeafEntry(
                item.leaf.task_id,
                leaf,
                max(item.leaf.expiration, batch.timestamp),
                None
                if item.leaf.allow or not policy.retry_after or not is_of_policy(item.decision)
                else (
                    action_key(item.leaf.policy_client, batch.tasks[item.task].intent),
                    batch.timestamp + policy.retry_after,
                ),
            )
            for item, leaf in zip(decided, leaves, strict=True)
        ]
        with tracer("placet.operator").start_as_current_span(names.SIGN):
            await self._log.commit_leaves(entries)
            root, _ = root_and_proofs(leaves)
            certificate = Certificate(root, len(leaves), batch.epoch, batch.timestamp)
            if self._clock() > batch.timestamp + limits.BATCH_LIFETIME_S:
                raise _Refused("too_late", "deciding took until it was too late to sign")
            signature = await self._bls.sign_certificate(certificate, batch.chain_id, batch.validator)
        for item in decided:
            _TASKS.labels("allow" if item.leaf.allow else "deny").inc()
        return GroupResponse(tuple(decided), signature)
