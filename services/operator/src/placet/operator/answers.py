"""What an operator says of a batch (architecture §4, steps 2 to 5): observations, and responses with one signature a group.

Everything is committed to the signing log before it leaves; what stands there leaves, also when another replica wrote it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from placet.core import limits, topics, wire
from placet.core.agreement import Agreement, Group, agree, whole_batch
from placet.core.batch import BatchContext
from placet.core.bus import Bus
from placet.core.db import DATABASE_ERRORS
from placet.core.decision import early_denial, is_of_policy
from placet.core.digests import action_key, leaf_struct_hash
from placet.core.envelope import BusSigner, Kind, Message, open_envelope, seal
from placet.core.errors import PlacetError, VerificationFailed
from placet.core.evm.reader import BlockState
from placet.core.evm.rpc import RpcError
from placet.core.keccak import keccak256
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import Abstention, GroupResponse, Observation, Response, TaskObservation
from placet.core.objects import ObjectStore
from placet.core.proposals import fetch_observation, open_observations
from placet.core.telemetry import metrics, names
from placet.core.telemetry.scope import tracer
from placet.core.types import ZERO_HASH, Address, Certificate, Hash32, hex0x
from placet.operator.evaluation import Decided, Evaluator, OverBudget, TaskToDecide, Undecided
from placet.operator.evidence_store import EvidenceStore
from placet.operator.observing import ObservationFailed, Observer
from placet.operator.policies import LoadedPolicy
from placet.operator.signing import BlsSigner
from placet.operator.signing_log import LeafConflict, LeafEntry, SigningLog

log = logging.getLogger(__name__)

BATCHES = metrics.counter("placet_operator_batches_total", "Batches handled, by outcome.", ["outcome"])
_LEFT_FOR_A_PROPOSAL_S = 10.0
_WHOLE_BATCH_S = 3.0
"""After the time of observing, for the answer to a whole batch. The aggregator waits 8 s by default, and what one task takes (2.5 s), a
Proposal and its answer have to fit into that as well: who answers later fails everybody's tasks with those that are slow."""
_TASKS = metrics.counter("placet_operator_tasks_total", "Tasks decided or abstained from.", ["outcome"])


@dataclass(frozen=True, slots=True)
class OperatorIdentity:
    """Who this operator is and whom it listens to."""

    address: Address
    gateways: frozenset[bytes]
    aggregators: frozenset[bytes]
    max_reference_block_age: int
    runtime_id: str
    max_reference_lag_s: int = 90


@dataclass(eq=False)
class Run:
    """One batch in hand."""

    context: BatchContext
    state: BlockState
    loaded: LoadedPolicy
    quorum_bps: int
    abstentions: tuple[Abstention, ...]
    observation: Observation | None = None
    computed: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    """Outputs of components that reach nothing outside: computed here, agreed by construction."""
    decided: dict[int, Decided] = field(default_factory=dict)
    """Without observations: what was decided stays so, in whatever group it is signed."""
    proposal: asyncio.Future[Message] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def id(self) -> Hash32:
        return self.context.id


class Answered(Enum):
    """What this identity has said of a batch before."""

    NOT = 0
    WITH_NOTHING = 1
    """It abstained from all tasks."""
    WITH_SOMETHING = 2


class Refused(Exception):
    """A batch that this operator does not take at all, with a stable code and the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


PASSED_ON: tuple[type[Exception], ...] = (Refused, *DATABASE_ERRORS)


def why_not(error: Exception) -> tuple[str, str]:
    """Code and text of an abstention. A defect's text stays here."""
    if isinstance(error, LeafConflict):
        return "equivocation_refused", str(error)
    if isinstance(error, OverBudget):
        return "batch_budget", str(error)
    if isinstance(error, ObservationFailed):
        return error.code, error.message
    return ("unavailable", str(error)) if isinstance(error, PlacetError | RpcError) else ("internal", type(error).__name__)


def _abstentions_from(tasks: Sequence[int], already: Sequence[Abstention], code: str, message: str) -> list[Abstention]:
    spared = {item.task for item in already}
    return [Abstention(task, code, message) for task in tasks if task not in spared]


def _failed_tasks(context: BatchContext, group: Group, error: LeafConflict | Undecided) -> list[Abstention]:
    if isinstance(error, LeafConflict):
        return [Abstention(task, *why_not(error)) for task in group.tasks if context.task_ids[task] in error.tasks]
    return [Abstention(task, *why_not(failure)) for task, failure in sorted(error.failures.items())]


class Answers:
    """What one replica of an operator identity observes, decides and signs."""

    def __init__(
        self,
        *,
        identity: OperatorIdentity,
        bus: Bus,
        evaluator: Evaluator,
        observer: Observer,
        signing_log: SigningLog,
        evidence: EvidenceStore,
        objects: ObjectStore,
        bls: BlsSigner,
        bus_signer: BusSigner,
        clock: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._bus = bus
        self._evaluator = evaluator
        self._observer = observer
        self._log = signing_log
        self._evidence = evidence
        self._objects = objects
        self._bls = bls
        self._bus_signer = bus_signer
        self._clock = clock

    # --- what was said already

    async def has_answered(self, context: BatchContext) -> bool:
        return any([await self._log.sent(context.id, kind) is not None for kind in (Kind.OBSERVATION, Kind.RESPONSE)])

    async def resend(self, context: BatchContext) -> Answered:
        """After a redelivery: what was committed for this batch leaves again, byte for byte; who answered may take part in a Proposal."""
        answered = Answered.NOT
        observation = await self._log.sent(context.id, Kind.OBSERVATION)
        if observation is not None:
            await self._bus.publish(topics.OBSERVATIONS, context.id, observation)
            said = wire.decode_observation(open_envelope(observation, self._own_key).payload, len(context.batch.tasks))
            answered = Answered.WITH_SOMETHING if said.tasks or said.blob_sha256 is not None else Answered.WITH_NOTHING
        response = await self._log.sent(context.id, Kind.RESPONSE)
        if response is not None:
            await self._bus.publish(topics.RESPONSES, context.id, response)
            answered = Answered.WITH_SOMETHING
        return answered

    def _own_key(self, kind: Kind, sender: bytes) -> bytes:
        return self._bus_signer.public_key

    # --- step 2: observing

    async def abstain_from_all(self, context: BatchContext, code: str, message: str) -> None:
        """Say that there is no answer to any task of a batch, and why."""
        await self._publish_observation(context, self._all_abstain(context, code, message))

    def _all_abstain(self, context: BatchContext, code: str, message: str) -> Observation:
        abstentions = tuple(Abstention(index, code, message) for index in range(len(context.batch.tasks)))
        return Observation((), abstentions, self._identity.runtime_id)

    async def first(self, run: Run) -> None:
        """Without PolicyData: respond to the whole batch, or say what is abstained from. With it: observe."""
        context = run.context
        if run.loaded.needs_observation:
            await self._observe(run)
            return
        if run.loaded.data:
            await self._compute(run)
        if run.abstentions:
            await self._vouch(run, run.abstentions)
        else:
            await self._respond(run, whole_batch(len(context.batch.tasks), run.state.operators), (), ZERO_HASH)

    async def _look(self, run: Run, indices: Sequence[int], deadline: float) -> tuple[list[TaskObservation], dict[int, Exception]]:
        """Run the policy's components for tasks until a time (unix seconds): what was seen, and why the others were not."""
        context = run.context
        with tracer("placet.operator").start_as_current_span(names.OBSERVE, attributes={names.BATCH_TASKS: len(indices)}):
            results = await asyncio.gather(
                *(self._observer.observe(run.loaded, context, index, run.state, deadline) for index in indices), return_exceptions=True
            )
        seen: list[TaskObservation] = []
        missed: dict[int, Exception] = {}
        for index, result in zip(indices, results, strict=True):
            if isinstance(result, TaskObservation):
                seen.append(result)
            elif isinstance(result, Exception):
                missed[index] = result
                if not isinstance(result, ObservationFailed):
                    log.error("observing failed", exc_info=result)
            else:
                raise result
        return seen, missed

    def _not_spared(self, run: Run) -> list[int]:
        spared = {item.task for item in run.abstentions}
        return [index for index in range(len(run.context.batch.tasks)) if index not in spared]

    async def _compute(self, run: Run) -> None:
        """Components that reach nothing outside: their outputs are a function of the task, so nobody needs to agree on them.

        What is not computed while the others observe is abstained from; after that time, as after a restart, this operator has vouched
        for its tasks, or somebody waits for nothing but its answer.
        """
        batch = run.context.batch
        observing_ends = batch.timestamp + batch.observe_for_ms / 1000
        deadline = observing_ends if self._clock() < observing_ends else batch.timestamp + limits.BATCH_LIFETIME_S
        seen, missed = await self._look(run, self._not_spared(run), deadline)
        run.computed = {item.task: item.outputs for item in seen}
        added = [Abstention(index, *why_not(error)) for index, error in missed.items()]
        run.abstentions = tuple(sorted([*run.abstentions, *added], key=lambda item: item.task))

    async def _compute_missing(self, run: Run, tasks: Sequence[int]) -> None:
        """Compute, for a group that names this operator, what it vouched for and does not have: it may be another process since.

        Raises:
            Undecided: some cannot be computed here.
        """
        missing = [index for index in tasks if index not in run.computed]
        if run.loaded.needs_observation or not run.loaded.data or not missing:
            return
        seen, missed = await self._look(run, missing, run.context.batch.timestamp + limits.BATCH_LIFETIME_S)
        run.computed.update({item.task: item.outputs for item in seen})
        if missed:
            raise Undecided(missed, ())

    async def _observe(self, run: Run) -> None:
        context = run.context
        stored = await self._log.sent(run.id, Kind.OBSERVATION)
        if stored is not None:
            run.observation = await self._observation_of(stored, len(context.batch.tasks))
            return
        deadline = context.batch.timestamp + context.batch.observe_for_ms / 1000
        seen, missed = await self._look(run, self._not_spared(run), deadline)
        added = [Abstention(index, *why_not(error)) for index, error in missed.items()]
        abstentions = tuple(sorted([*run.abstentions, *added], key=lambda item: item.task))
        observation = Observation(tuple(seen), abstentions, self._identity.runtime_id)
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

    async def to_proposal(self, run: Run, message: Message) -> None:
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

    async def _respond(self, run: Run, agreement: Agreement, observations: Sequence[bytes], proposal_digest: Hash32) -> None:
        """Decide, store evidence, commit leaves, sign once a group, publish."""
        context, batch = run.context, run.context.batch
        if self._clock() > batch.timestamp + limits.BATCH_LIFETIME_S:
            raise Refused("too_late", "too late to sign")
        if await self._log.sent(run.id, Kind.RESPONSE, proposal_digest) is not None:
            return  # `resend` has sent it
        # A whole batch is answered while there is time for a Proposal: what is not decided by then fails alone.
        until: float = batch.timestamp + limits.BATCH_LIFETIME_S
        if proposal_digest == ZERO_HASH:
            observing_ends = batch.timestamp + batch.observe_for_ms / 1000
            until = min(until - _LEFT_FOR_A_PROPOSAL_S, max(observing_ends, self._clock()) + _WHOLE_BATCH_S)
        groups: list[GroupResponse] = []
        abstentions: list[Abstention] = list(run.abstentions)
        for group in agreement.groups:
            if self._identity.address not in group.operators:
                abstentions += _abstentions_from(group.tasks, abstentions, "outvoted", "what was observed here is not what was agreed")
                continue
            try:
                signed_group, left_out = await self._sign_group(run, agreement, group, observations, until)
                groups.append(signed_group)
                abstentions += [item for item in left_out if item.task not in {other.task for other in abstentions}]
            except PASSED_ON:
                raise
            except (LeafConflict, Undecided) as error:
                failed = _failed_tasks(context, group, error)
                log.warning("batch %s: %s", hex0x(run.id), error)
                if proposal_digest == ZERO_HASH:
                    await self._vouch_for_the_rest(run, failed)
                    return
                abstentions += [item for item in failed if item.task not in {other.task for other in abstentions}]
                text = "its group holds a task that was not decided here, or signed otherwise"
                abstentions += _abstentions_from(group.tasks, abstentions, "no_signature", text)
            except Exception as error:
                code, message = why_not(error)
                log.warning("batch %s: group abstained from: %s", hex0x(run.id), error, exc_info=error if code == "internal" else None)
                abstentions += _abstentions_from(group.tasks, abstentions, code, message)
        for disagreed in agreement.failed:
            abstentions += _abstentions_from([disagreed.task], abstentions, "no_agreement", disagreed.message)
        if not groups and proposal_digest == ZERO_HASH:
            await self._publish_observation(context, self._all_abstain(context, abstentions[0].code, abstentions[0].message))
            return
        signed = {item.task for group in groups for item in group.decided}
        missing = sorted((item for item in abstentions if item.task not in signed), key=lambda item: item.task)
        response = Response(tuple(groups), tuple(missing), self._identity.runtime_id)
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
        BATCHES.labels("responded").inc()

    async def _vouch(self, run: Run, abstentions: Sequence[Abstention]) -> None:
        """Without data to observe: an Observation that vouches for every task not abstained from."""
        spared = {item.task for item in abstentions}
        vouched = tuple(TaskObservation(i, (), ()) for i in range(len(run.context.batch.tasks)) if i not in spared)
        await self._publish_observation(run.context, Observation(vouched, tuple(abstentions), self._identity.runtime_id))

    async def _vouch_for_the_rest(self, run: Run, failed: Sequence[Abstention]) -> None:
        """A batch that may not be signed whole: a Proposal will make a group of the rest."""
        known = {item.task for item in run.abstentions}
        added = [item for item in failed if item.task not in known]
        run.abstentions = tuple(sorted([*run.abstentions, *added], key=lambda item: item.task))
        await self._vouch(run, run.abstentions)

    async def _decide(self, run: Run, agreement: Agreement, group: Group, observations: Sequence[bytes], until: float) -> list[Decided]:
        """The decisions on a group's tasks. Raises Undecided, naming those that have none here."""
        batch, known = run.context.batch, run.decided
        await self._compute_missing(run, group.tasks)
        tasks = [
            TaskToDecide(
                index,
                run.state.sequences.get((batch.tasks[index].policy_client, batch.tasks[index].intent.sender), 0),
                agreement.agreed[index].outputs if run.loaded.needs_observation else run.computed.get(index, ()),
                until,
            )
            for index in group.tasks
            if index not in known
        ]
        results: Sequence[Decided] = ()
        try:
            with tracer("placet.operator").start_as_current_span(names.EVALUATE, attributes={names.BATCH_TASKS: len(tasks)}):
                results = await self._evaluator.decide(run.loaded, run.context, tasks, observations) if tasks else ()
        except Undecided as error:
            results = error.decided
            if self._clock() > batch.timestamp + limits.BATCH_LIFETIME_S:
                raise Refused("too_late", "deciding took until it was too late to sign") from None
            raise
        finally:
            if not run.loaded.needs_observation:
                known.update({item[0].task: item for item in results})
        made = {item[0].task: item for item in results} | known
        return [made[index] for index in group.tasks]

    async def _sign_group(
        self, run: Run, agreement: Agreement, group: Group, observations: Sequence[bytes], until: float
    ) -> tuple[GroupResponse, list[Abstention]]:
        """A group's answer, without the tasks for which the batch's fuel did not suffice: where every operator decides the same list of
        tasks, under a Proposal of observations, those are the same tasks everywhere, and the others' leaves one root."""
        batch, policy = run.context.batch, run.loaded.policy
        left_out: list[Abstention] = []
        try:
            results: Sequence[Decided] = await self._decide(run, agreement, group, observations, until)
        except Undecided as error:
            same_everywhere = run.loaded.needs_observation and all(isinstance(item, OverBudget) for item in error.failures.values())
            if not same_everywhere or not error.decided:
                raise
            results, left_out = error.decided, _failed_tasks(run.context, group, error)
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
                raise Refused("too_late", "deciding took until it was too late to sign")
            signature = await self._bls.sign_certificate(certificate, batch.chain_id, batch.validator)
        for item in decided:
            _TASKS.labels("allow" if item.leaf.allow else "deny").inc()
        return GroupResponse(tuple(decided), signature), left_out
