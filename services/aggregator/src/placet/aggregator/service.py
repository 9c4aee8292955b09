"""The aggregator's loop: one actor a batch, fed from five topics whose partitions of one number it holds together.

Everything it knows is rebuilt from the bus: offsets are committed only up to the first record of the oldest open batch, and after an
assignment proposals and attestations are read to their end before anything is published (architecture §3; threats 19).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from placet.aggregator.collection import Ballot, Collection, check_decided, verify_signature
from placet.aggregator.conduct import Conduct
from placet.aggregator.mailboxes import Mailbox, Mailboxes
from placet.aggregator.published import Published
from placet.core import limits, topics, wire
from placet.core.batch import BatchContext, quorum_of
from placet.core.bus import Bus, BusError, BusUnavailable, NotAssigned, Record, Subscription, TopicPartition
from placet.core.bus.tracing import context_of, fan_in, processing
from placet.core.envelope import MAX_ENVELOPE_BYTES, BusSigner, Kind, Message, open_envelope, seal
from placet.core.errors import InvalidInput, PlacetError, Unavailable, VerificationFailed
from placet.core.evm.reader import ChainReader
from placet.core.evm.rpc import RpcError
from placet.core.keccak import keccak256
from placet.core.messages import GroupFailure, Proposal
from placet.core.objects import ObjectStore
from placet.core.proposals import check_listable, fetch_observation, open_observations
from placet.core.telemetry import metrics, names
from placet.core.telemetry.scope import tracer
from placet.core.types import ZERO_HASH, Address, Hash32, hex0x

log = logging.getLogger(__name__)

GROUP = "aggregator"
_RESULTS = metrics.counter("placet_aggregator_results_total", "Tasks that ended, by outcome.", ["outcome"])
_SECONDS = metrics.histogram("placet_aggregator_certify_seconds", "Time from a batch's arrival to its last result.", [])
_INPUT = (topics.TASKS, topics.OBSERVATIONS, topics.PROPOSALS, topics.RESPONSES, topics.ATTESTATIONS)
_MAX_MESSAGES = 16
"""Of one operator for one batch: an observation, two responses, and redeliveries of them."""
_MAX_PAIRINGS = 1 + 2 * limits.MAX_GROUPS
"""Of one operator for one batch: the whole batch, and the groups of two Proposals (of which a restart may leave one behind). What holds is
not verified again."""
_MAX_RESULT_BYTES = MAX_ENVELOPE_BYTES - 4096
_RETRY_S = 0.25
_READ_WITHIN_S = 2.0
_KEEP_S = limits.BATCH_LIFETIME_S + limits.CLOCK_SKEW_PAST_S + 5


@dataclass(frozen=True, slots=True)
class Timing:
    """How long is waited for what."""

    linger_s: float = 0.25
    straggler_s: float = 0.01
    respond_within_s: float = 8.0


@dataclass(eq=False)
class _Actor:
    """One batch: its mailbox and, once its tasks were read, the coroutine that works on it."""

    mailbox: Mailbox
    task: asyncio.Task[None] | None = None
    closed: bool = False
    expires: float = 0.0


class AggregatorService:
    """One replica."""

    def __init__(
        self,
        *,
        bus: Bus,
        chains: Mapping[int, ChainReader],
        objects: ObjectStore,
        bus_signer: BusSigner,
        gateways: frozenset[bytes],
        timing: Timing,
        threads: int = 2,
        instance_id: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._chains = chains
        self._objects = objects
        self._signer = bus_signer
        self._gateways = gateways
        self._timing = timing
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bls")
        self._instance_id = instance_id
        self._clock = clock
        self._actors: dict[Hash32, _Actor] = {}
        self._waiting: dict[TopicPartition, deque[tuple[int, Hash32, float]]] = {}
        self._published = Published(bus_signer.public_key, 2 * _KEEP_S)
        self._conduct = Conduct()
        self._mailboxes = Mailboxes()
        self.subscription: Subscription | None = None

    # --- the loop

    async def run(self) -> None:
        """Consume until cancelled."""
        await self._learn_operators()
        self.subscription = await self._bus.subscribe(
            _INPUT, GROUP, instance_id=self._instance_id, on_assigned=self._on_assigned, on_revoked=self._on_revoked
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_house())
                async for records in self.subscription:
                    for record in records:
                        self._take(record)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _learn_operators(self) -> None:
        """Whose messages may wait for their batch. Without it there is less room for them."""
        for reader in self._chains.values():
            try:
                state = await reader.at((await reader.rpc.block("latest")).hash)
            except (PlacetError, RpcError) as error:
                log.warning("operators are not known yet: %s", error)
            else:
                self._mailboxes.learn(state.operators)

    async def drain(self, timeout_s: float) -> None:
        """Wait for open batches."""
        tasks = [actor.task for actor in self._actors.values() if actor.task is not None and not actor.task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def _on_assigned(self, _: Subscription, partitions: frozenset[TopicPartition]) -> None:
        """Read what was published for batches that may still be open, before publishing anything for them."""
        wanted = [at for at in partitions if at.topic in (topics.PROPOSALS, topics.ATTESTATIONS)]
        since = int((self._clock() - 2 * _KEEP_S) * 1000)
        while True:
            try:
                starts: dict[TopicPartition, int | None] = dict(await self._bus.offsets_at(wanted, since))
                found = await self._bus.read_many_to_end(starts)
                break
            except BusUnavailable as error:  # without it nothing may be published; no reason to end either
                log.warning("reading what was published: %s", error)
                await asyncio.sleep(_RETRY_S)
        for records in found.values():
            for record in records:
                self._published.note(record)

    async def _on_revoked(self, _: Subscription, partitions: frozenset[TopicPartition]) -> None:
        numbers = {at.partition for at in partitions}
        for at in list(self._waiting):
            if at in partitions:
                for _offset, batch_id, _expires in self._waiting.pop(at):
                    actor = self._actors.pop(batch_id, None)
                    if actor is not None:
                        actor.mailbox.clear()
                        if actor.task is not None:
                            actor.task.cancel()
        log.info("partitions %s given up", sorted(numbers))

    def _take(self, record: Record) -> None:
        key = record.key or b""
        if len(key) != 32:
            return
        batch_id = Hash32(key)
        expires = record.timestamp_ms / 1000 + _KEEP_S
        self._waiting.setdefault(record.topic_partition, deque()).append((record.offset, batch_id, expires))
        if record.topic in (topics.PROPOSALS, topics.ATTESTATIONS):
            self._published.note(record)
            return
        if expires < self._clock():
            return
        if record.topic == topics.TASKS:
            actor = self._actors.get(batch_id) or self._actors.setdefault(batch_id, _Actor(Mailbox(self._mailboxes)))
            actor.expires = max(actor.expires, expires)
            if actor.task is None and not actor.closed:
                actor.task = asyncio.create_task(self._work(actor, record), name=f"batch {batch_id.hex()[:8]}")
            return
        known = self._actors.get(batch_id)
        if known is not None and known.closed:
            self._note_late(record)
            return
        actor = known or _Actor(Mailbox(self._mailboxes))
        if self._mailboxes.put(actor.mailbox, record):
            self._actors[batch_id] = actor
            actor.expires = max(actor.expires, expires)

    def _note_late(self, record: Record) -> None:
        """Who answers after a batch has ended is slow, not silent."""
        if not self._conduct.has_silent():
            return
        try:
            opened = self._mailboxes.open(record)
        except (InvalidInput, VerificationFailed):
            return
        if opened is not None:
            self._conduct.note_present(Address(opened[0].sender))

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            now = self._clock()
            offsets: dict[TopicPartition, int] = {}
            for partition, waiting in self._waiting.items():
                while waiting and self._is_over(*waiting[0][1:], now, partition.topic):
                    offsets[partition] = waiting.popleft()[0] + 1
            if offsets and self.subscription is not None:
                try:
                    await self.subscription.commit(offsets)
                except NotAssigned:
                    pass  # the new owner reads these batches again
                except BusError as error:
                    log.warning("commit: %s", error)
            self._published.expire(now)
            for batch_id, actor in list(self._actors.items()):
                if actor.expires < now and (actor.task is None or actor.task.done()):
                    self._actors.pop(batch_id).mailbox.clear()

    def _is_over(self, batch_id: Hash32, expires: float, now: float, topic: str) -> bool:
        if expires < now or topic in (topics.PROPOSALS, topics.ATTESTATIONS):
            return True
        actor = self._actors.get(batch_id)
        return actor is not None and actor.closed

    # --- one batch

    def _gateway_key(self, kind: Kind, sender: bytes) -> bytes | None:
        return sender if kind is Kind.TASK_BATCH and sender in self._gateways else None

    async def _work(self, actor: _Actor, record: Record) -> None:
        started = time.perf_counter()
        with processing(record, GROUP) as span:
            try:
                collection = await self._open_patiently(actor, record)
                try:
                    await self._collect(collection, actor, record)
                except (BusError, NotAssigned):
                    raise
                except Exception:
                    log.exception("batch %s", hex0x(collection.context.id))
                    await self._fail(collection, collection.open_tasks, "internal", "the aggregator could not work on this batch")
                actor.closed = True
                actor.mailbox.clear()
                _SECONDS.observe(time.perf_counter() - started)
            except (InvalidInput, VerificationFailed) as error:
                actor.closed = True
                actor.mailbox.clear()
                span.set_attribute("error.type", error.code)
                log.warning("batch dropped: %s", error)
                await self._bus.publish_dlq(record, error, consumer="aggregator")
            except Exception as error:
                # Not closed: its offsets stay uncommitted, so whoever owns the partition next tries again until the batch expires.
                span.set_attribute("error.type", type(error).__name__)
                known = isinstance(error, PlacetError | BusError | RpcError)
                log.error("batch left open: %s", error, exc_info=None if known else error)

    async def _open_patiently(self, actor: _Actor, record: Record) -> Collection:
        """A node that is away for a moment must not cost a batch its result."""
        while True:
            try:
                return await self._open(record)
            except (Unavailable, RpcError) as error:
                if self._clock() > actor.expires:
                    raise
                log.warning("batch waits: %s", error)
                await asyncio.sleep(_RETRY_S)

    async def _open(self, record: Record) -> Collection:
        message = open_envelope(record.value or b"", self._gateway_key)
        batch, relays = wire.decode_batch(message.payload)
        context = await asyncio.to_thread(BatchContext.of, batch, relays)
        if context.id != message.batch_id or context.id != record.key or message.chain_id != batch.chain_id:
            raise VerificationFailed("the batch is not the one its envelope and key name", field="batchId")
        reader = self._chains.get(batch.chain_id)
        if reader is None or batch.validator != reader.deployment.validator:
            raise VerificationFailed("the batch's chain or validator is none of ours", field="validator")
        state = await reader.at(batch.block_hash, clients=context.clients())
        if state.epoch != batch.epoch:
            raise VerificationFailed(f"the batch names epoch {batch.epoch}, its reference block has {state.epoch}", field="epoch")
        quorum_bps = quorum_of(batch, state.pins)
        self._mailboxes.learn(state.operators)
        return Collection(context, state.operators, quorum_bps if quorum_bps is not None else 10_000)

    async def _collect(self, collection: Collection, actor: _Actor, origin: Record) -> None:
        """Take messages until every task has a result, or the time is over."""
        batch = collection.context.batch
        observe_until = batch.timestamp + batch.observe_for_ms / 1000
        give_up = min(observe_until + self._timing.respond_within_s, batch.timestamp + limits.BATCH_LIFETIME_S)
        # After a restart the answers are there and only need to be read.
        give_up = max(give_up, min(self._clock() + _READ_WITHIN_S, batch.timestamp + limits.CERTIFY_WITHIN_S))
        linger_until: float | None = None
        contributing: list[Record] = []
        while True:
            collection.closed |= self._published.closed_tasks(collection.context.id)
            if not collection.open_tasks:
                return
            now = self._clock()
            too_late = now > batch.timestamp + limits.CERTIFY_WITHIN_S
            for ballot in [] if too_late else collection.ready(now, self._timing.straggler_s):
                with fan_in(names.AGGREGATE, contributing or [origin], parent=context_of(origin)):
                    await self._certify(collection, ballot)
            if not collection.open_tasks:
                return
            await self._fail_what_is_lost(collection, now, give_up)
            if not collection.open_tasks:
                return
            if linger_until is None and collection.heard_quorum():
                linger_until = min(now + self._timing.linger_s, max(observe_until, now))
            if now >= observe_until or collection.has_heard_all():
                self._conduct.note_heard(collection)
            if self._may_propose(collection, now, linger_until, observe_until):
                await self._propose(collection)
            wake = [give_up]
            if collection.proposal_digest is None:
                wake += [at for at in (linger_until, observe_until) if at is not None and at > now]
            wake += [
                b.reached_at + self._timing.straggler_s
                for b in collection.ballots.values()
                if b.reached_at is not None and b.reached_at + self._timing.straggler_s > now
            ]
            try:
                await asyncio.wait_for(actor.mailbox.arrival(), max(0.001, min(wake) - now))
            except TimeoutError:
                continue
            while (taken := actor.mailbox.take()) is not None:
                if await self._hear(collection, *taken):
                    contributing.append(taken[0])

    async def _fail_what_is_lost(self, collection: Collection, now: float, give_up: float) -> None:
        if collection.proposal_digest is not None and (now >= give_up or collection.abandoned()):
            self._conduct.note_signed(collection, now)
        if now >= give_up:
            heard = collection.heard_quorum()
            code, message = (
                ("no_quorum", "too little stake signed one answer in time") if heard else ("timeout", "too few operators answered in time")
            )
            await self._fail(collection, collection.open_tasks, code, message)
        elif collection.has_heard_all() and collection.proposal_digest is None:
            await self._fail(collection, collection.hopeless(), "no_quorum", "operators with too much stake abstain")
        else:
            await self._fail(collection, collection.abandoned(), "no_quorum", "too little stake signed one answer")

    def _may_propose(self, collection: Collection, now: float, linger_until: float | None, observe_until: float) -> bool:
        if collection.proposal_digest is not None or not collection.heard_quorum():
            return False
        if any(ballot.reached_at is not None for ballot in collection.ballots.values()):
            return False  # the whole batch is certified as it is
        known = self._published.proposal(collection.context.id)
        if known is not None:
            return True
        if not collection.has_heard_all() and now < observe_until:
            if linger_until is None or now < linger_until:
                return False
            # Who answers at once may answer anything. What quorum stake said in the same bytes stands whatever comes; else the time that
            # the batch gives is given, to those that have been answering.
            # Who is doubted settles nothing, and hastens nothing.
            doubted = self._conduct.doubted(now)
            answered = self._conduct.waited_for(collection) <= collection.heard.keys() and collection.heard_quorum(doubted)
            if not answered and not collection.is_settled(doubted):
                return False
        # Without data, whole-batch signatures are on their way unless somebody abstained or they disagree.
        return collection.with_outputs or bool(collection.abstentions) or collection.has_heard_all()

    async def _certify(self, collection: Collection, ballot: Ballot) -> None:
        payload = wire.encode_attestation_group(await asyncio.to_thread(collection.group_of, ballot))
        if len(payload) > _MAX_RESULT_BYTES:
            await self._fail(collection, list(ballot.tasks), "too_large", "the decisions of one group do not fit into one message")
            return
        await self._publish(collection, Kind.ATTESTATION_GROUP, topics.ATTESTATIONS, payload)
        collection.closed |= set(ballot.tasks)
        _RESULTS.labels("certified").inc(len(ballot.tasks))

    async def _propose(self, collection: Collection) -> None:
        """Publish the Proposal, unless an earlier one stands (after a restart)."""
        known = self._published.proposal(collection.context.id)
        if known is None:
            payload = wire.encode_proposal(await self._proposal_of(collection))
            await self._publish(collection, Kind.PROPOSAL, topics.PROPOSALS, payload)
            collection.proposed = frozenset(collection.heard)
        else:
            payload = known.payload
            collection.proposed = await self._operators_in(collection, wire.decode_proposal(payload))
        collection.proposal_digest = Hash32(keccak256(payload))

    async def _operators_in(self, collection: Collection, proposal: Proposal) -> frozenset[Address]:
        """Whom a Proposal rests on, as far as the policy's kind is not known here; everybody, when that cannot be read now."""
        found: set[Address] = set()
        try:
            for with_data in (True, False):
                opened, _ = await open_observations(proposal, collection.context, collection.operators, self._objects, with_data=with_data)
                found |= opened.keys()
        except PlacetError as error:
            log.warning("batch %s: what its proposal lists: %s", hex0x(collection.context.id), error)
            return frozenset(operator.address for operator in collection.operators.operators)
        return frozenset(found)

    async def _proposal_of(self, collection: Collection) -> Proposal:
        """Everything heard, as long as it fits into the message; else the largest by their addresses in the object store."""
        envelopes = [collection.heard[address] for address in sorted(collection.heard)]
        inline, stored = [], []
        room = limits.MAX_PROPOSAL_BYTES
        for envelope in sorted(envelopes, key=len):
            if len(envelope) <= room:
                room -= len(envelope)
                inline.append(envelope)
            else:
                stored.append(await self._objects.put(envelope))
        return Proposal(tuple(inline), tuple(stored))

    async def _fail(self, collection: Collection, tasks: list[int], code: str, message: str) -> None:
        if not tasks:
            return
        failure = GroupFailure(tuple(collection.failure_of(task, code, message) for task in tasks))
        payload = wire.encode_group_failure(failure)
        if len(payload) > _MAX_RESULT_BYTES and len(tasks) > 1:  # many tasks, many operators' reasons
            half = len(tasks) // 2
            await self._fail(collection, tasks[:half], code, message)
            await self._fail(collection, tasks[half:], code, message)
            return
        await self._publish(collection, Kind.GROUP_FAILURE, topics.ATTESTATIONS, payload)
        collection.closed |= set(tasks)
        _RESULTS.labels(code).inc(len(tasks))

    async def _publish(self, collection: Collection, kind: Kind, topic: str, payload: bytes) -> None:
        envelope = seal(
            self._signer,
            kind=kind,
            chain_id=collection.context.batch.chain_id,
            sender=self._signer.public_key,
            payload=payload,
            batch_id=collection.context.id,
        )
        while True:  # what was said may have arrived: nothing else may be said in its place
            try:
                await self._bus.publish(topic, collection.context.id, envelope)
                return
            except BusUnavailable as error:
                if self._clock() > collection.context.batch.timestamp + limits.BATCH_LIFETIME_S:
                    raise
                log.warning("batch %s: %s", hex0x(collection.context.id), error)
                await asyncio.sleep(_RETRY_S)

    async def _hear(self, collection: Collection, record: Record, opened: Message | None, bus_key: bytes) -> bool:
        """Take one operator's message. Whatever does not hold is logged and ignored; it silences nobody."""

        def key_of(kind: Kind, sender: bytes) -> bytes | None:
            operator = collection.operators.by_address(Address(sender))
            return operator.bus_key if operator is not None and kind in (Kind.OBSERVATION, Kind.RESPONSE) else None

        try:
            # Opened as it arrived; again only where this batch's epoch has another key for the sender.
            again = opened is None or key_of(opened.kind, opened.sender) != bus_key
            message = open_envelope(record.value or b"", key_of) if opened is None or again else opened
            if message.batch_id != collection.context.id or message.chain_id != collection.context.batch.chain_id:
                raise VerificationFailed("the message belongs to another batch", field="batchId")
            operator = Address(message.sender)
            seen, digest = collection.seen.setdefault(operator, set()), keccak256(message.raw)
            counted = collection.repeats if digest in seen else collection.messages
            counted[operator] = counted.get(operator, 0) + 1
            if counted[operator] > _MAX_MESSAGES:
                raise InvalidInput(f"more than {_MAX_MESSAGES} messages of one operator for one batch", field="sender")
            seen.add(digest)
            if message.kind is Kind.OBSERVATION:
                await self._hear_observation(collection, message)
            else:
                with processing(record, GROUP), tracer("placet.aggregator").start_as_current_span(names.VERIFY):
                    await self._hear_response(collection, message)
        except PlacetError as error:
            log.warning("batch %s: %s ignored: %s", hex0x(collection.context.id), record.topic, error)
            return False
        self._conduct.note_present(operator)
        return True

    async def _hear_observation(self, collection: Collection, message: Message) -> None:
        operator = Address(message.sender)
        if operator in collection.heard:
            return
        listed = check_listable(message, collection.context, with_data=True)
        observation = await fetch_observation(listed, collection.size, self._objects)
        collection.note_observation(operator, message.raw, observation)

    async def _hear_response(self, collection: Collection, message: Message) -> None:
        operator = Address(message.sender)
        if message.proposal_digest != ZERO_HASH and message.proposal_digest != collection.proposal_digest:
            known = self._published.proposal(collection.context.id)
            if known is None or keccak256(known.payload) != message.proposal_digest:
                raise VerificationFailed("a response to a proposal that does not stand", field="proposalDigest")
        response = wire.decode_response(message.payload, collection.size)
        loop = asyncio.get_running_loop()
        for group in response.groups:
            certificate = await loop.run_in_executor(self._pool, check_decided, collection.context, group.decided)
            ballot = collection.ballot_for(group.decided, certificate)
            if operator in ballot.signatures:
                continue
            collection.pairings[operator] = collection.pairings.get(operator, 0) + 1
            if collection.pairings[operator] > _MAX_PAIRINGS:
                raise InvalidInput(f"more than {_MAX_PAIRINGS} signatures of one operator for one batch", field="blsSignature")
            held = await loop.run_in_executor(
                self._pool, verify_signature, collection.context, collection.operators, operator, certificate, group.bls_signature
            )
            if not held:
                raise VerificationFailed("a BLS signature does not hold", field="blsSignature")
            ballot.signatures[operator] = group.bls_signature
        if message.proposal_digest != ZERO_HASH:
            collection.responded.add(operator)
        elif operator not in collection.heard:
            collection.note_whole_response(operator, message.raw, check_listable(message, collection.context, with_data=False))
        collection.note_abstentions(operator, response.abstentions)
