"""Settlement's loops: attestations in, jobs out; one leader a key; events about what became of them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from google.protobuf.message import DecodeError

from placet.core import topics, wire
from placet.core.bus import Bus, BusError, Record, Subscription
from placet.core.bus.tracing import capture, item, processing, restore
from placet.core.db import DATABASE_ERRORS
from placet.core.digests import intent_hash
from placet.core.envelope import MAX_ENVELOPE_BYTES, BusSigner, Kind, Message, open_envelope, seal
from placet.core.errors import InvalidInput, PlacetError, Unavailable, VerificationFailed
from placet.core.evm import contracts
from placet.core.evm.reader import ChainReader
from placet.core.evm.rpc import RpcError
from placet.core.gen import authorization_pb2 as pb
from placet.core.messages import AttestationGroup, SettlementEvent, positions_of
from placet.core.telemetry import metrics, names
from placet.core.types import ZERO_ADDRESS, Hash32, OperatorSet, hex0x
from placet.settlement.inbox import Inbox, Outcome
from placet.settlement.leading import LATER, Lead
from placet.settlement.sender import Sender
from placet.settlement.store import FINAL, Job, Store, cannot_be_held
from placet.verify import verify_group

log = logging.getLogger(__name__)

_GIVEN_UP = metrics.counter("placet_settlement_given_up_total", "Attestations (by error code) and events that were given up.", ["why"])
_UNREAD = metrics.counter("placet_settlement_unread_pins_total", "Groups with a client whose pins could not be read.")

GROUP = "settlement"
_DATABASE = -1
"""Stands beside the chains' ids for what is away."""
_FUTURE_S = 60
"""A certificate stamped further ahead of this clock than that is refused; contracts take none from the future."""
_SIGNED_BPS = 1


class SettlementService:
    """One replica."""

    def __init__(
        self,
        *,
        bus: Bus,
        chains: Mapping[int, ChainReader],
        senders: Mapping[int, Sender],
        store: Store,
        bus_signer: BusSigner,
        aggregators: frozenset[bytes],
        holder: str,
        lease_s: float,
        poll_s: float,
        instance_id: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._chains = chains
        self._senders = senders
        self._store = store
        self._signer = bus_signer
        self._aggregators = aggregators
        self._poll_s = poll_s
        self._instance_id = instance_id
        self._clock = clock
        self._leads = {
            chain_id: Lead(sender, chain_id, store=store, holder=holder, lease_s=lease_s, poll_s=poll_s, clock=clock)
            for chain_id, sender in senders.items()
        }
        self._away_until: dict[int, float] = {}
        self._inbox = Inbox(self._take, self._never, _chain_of)
        self.subscription: Subscription | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        self.subscription = await self._bus.subscribe(
            [topics.ATTESTATIONS], GROUP, instance_id=self._instance_id, on_revoked=self._inbox.revoked
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._announce())
            for lead in self._leads.values():
                group.create_task(lead.run())
            await self._inbox.run(self.subscription)

    # --- attestations become jobs

    def _key_of(self, kind: Kind, sender: bytes) -> bytes | None:
        published = (Kind.ATTESTATION_GROUP, Kind.GROUP_FAILURE)
        return sender if kind in published and sender in self._aggregators else None

    async def _take(self, record: Record) -> Outcome:
        """Record the jobs of a group. What can never be taken is a dead letter. What can be taken later is told apart: does it need what is
        away for others too, or is it this one record's?"""
        with processing(record, GROUP):
            try:
                return await self._work(record)
            except BusError as error:
                log.warning("dead letter waits: %s", error)
                return Outcome.AWAY

    async def _work(self, record: Record) -> Outcome:
        chain_id = 0
        try:
            message = open_envelope(record.value or b"", self._key_of)
            chain_id = message.chain_id
            if max(self._away_until.get(chain_id, 0.0), self._away_until.get(_DATABASE, 0.0)) > time.monotonic():
                return Outcome.AWAY
            if message.kind is Kind.ATTESTATION_GROUP:
                await self._jobs_of(message)
            else:
                await self._note_failures(message)
        except (InvalidInput, VerificationFailed) as error:
            await self._give_up(record, error)
        except DATABASE_ERRORS as error:
            if not cannot_be_held(error):
                log.warning("attestation waits: %s", error)
                return self._away(_DATABASE)
            await self._give_up(record, InvalidInput("the database cannot hold what it says"))
        except (PlacetError, RpcError) as error:
            log.warning("attestation waits: %s", error)
            return Outcome.FAILED if await self._is_well(chain_id) else self._away(chain_id)
        except Exception:
            log.exception("attestation")
            return Outcome.FAILED
        return Outcome.DONE

    def _away(self, what: int) -> Outcome:
        """Ask a chain's node, or the database, for nothing in the next second."""
        self._away_until[what] = time.monotonic() + 1.0
        return Outcome.AWAY

    async def _is_well(self, chain_id: int) -> bool:
        try:
            await self._chains[chain_id].latest_block()
        except (PlacetError, RpcError):
            return False
        return True

    async def _give_up(self, record: Record, error: PlacetError) -> None:
        await self._bus.publish_dlq(record, error, consumer="settlement")
        _GIVEN_UP.labels(error.code).inc()
        log.warning("attestation refused: %s", error)

    async def _never(self, record: Record) -> None:
        await self._give_up(record, Unavailable("tried again and again, while node and database are well"))

    async def _note_failures(self, message: Message) -> None:
        """The first result of a task is the one: what failed is not executed, should a certificate turn up later (threats 19)."""
        for failure in wire.decode_group_failure(message.payload).failures:
            await self._store.add_job(self._refused(failure.task_id, message.chain_id, f"the task had failed: {failure.code}"))

    def _refused(self, reference: Hash32, chain_id: int, error: str) -> Job:
        """A job that is over before it began, of which nobody is told unless it is made to be announced."""
        return Job(reference, chain_id, ZERO_ADDRESS, b"", 0, "", 0, "refused", "refused", error, b"", 0, 0, self._clock(), "")

    async def _refuse(self, reference: Hash32, chain_id: int, error: str) -> None:
        """Record a job that is refused, and let it be announced."""
        await self._store.add_job(replace(self._refused(reference, chain_id, error), announced="queued"))

    async def _jobs_of(self, message: Message) -> None:
        group = wire.decode_attestation_group(message.payload)
        asked = {entry.task: entry for entry in group.relayed}
        wanted = [
            (index, decided, asked[decided.task])
            for index, decided in enumerate(group.decided)
            if decided.task in asked and decided.leaf.allow
        ]
        if not wanted:
            return
        reader = self._chains.get(group.chain_id)
        if group.chain_id != message.chain_id:
            raise VerificationFailed("the group is of another chain than its envelope", field="chainId")
        if reader is None or group.chain_id not in self._senders:
            raise VerificationFailed(f"chain {group.chain_id} is not settled here", field="chainId")
        if group.certificate.timestamp > self._clock() + _FUTURE_S:
            raise VerificationFailed("the certificate is from the future", field="timestamp")
        for _, decided, relayed in wanted:
            if intent_hash(relayed.intent, decided.leaf.policy_client) != decided.leaf.intent_hash:
                raise VerificationFailed("the intent to be relayed is not the attested one", field="relayed.intent")
        if all(decided.leaf.expiration < self._clock() for _, decided, _ in wanted):
            for _, decided, _ in wanted:
                await self._refuse(decided.leaf.task_id, group.chain_id, "expired before it could be looked at")
            return
        block = await reader.latest_block()
        operators = await self._operators(reader, group, block.hash)
        quorum_bps = await self._quorum_of(reader, group, block.hash)
        proofs = await asyncio.to_thread(
            verify_group,
            group,
            operators=operators,
            chain_id=group.chain_id,
            validator=reader.deployment.validator,
            quorum_bps=quorum_bps,
        )
        signers = frozenset(positions_of(group.signers, len(operators.operators)) or ())
        quorum = await asyncio.to_thread(contracts.quorum_proof, operators, signers, group.aggregate_signature)
        for index, decided, relayed in wanted:
            if relayed.intent.value:
                # It would be paid from settlement's own account. The gateway refuses this too; here it is what counts.
                await self._refuse(decided.leaf.task_id, group.chain_id, "a relayed intent carries no value")
                continue
            attestation = contracts.attestation_tuple(
                decided.leaf, index, proofs[index], group.certificate, remember=group.certificate.count > 1, quorum=quorum
            )
            job = Job(
                reference=decided.leaf.task_id,
                chain_id=group.chain_id,
                target=decided.leaf.policy_client,
                calldata=contracts.execute_intent_call(relayed.intent, relayed.intent_signature, attestation),
                value=0,
                payer=relayed.payer,
                valid_until=decided.leaf.expiration,
                state="queued",
                announced="queued",
                error="",
                transaction_hash=b"",
                block_number=0,
                gas_used=0,
                created_at=self._clock(),
                trace=json.dumps(capture()),
            )
            if await self._store.add_job(job):
                self._leads[group.chain_id].wake()

    @staticmethod
    async def _operators(reader: ChainReader, group: AttestationGroup, block_hash: Hash32) -> OperatorSet:
        try:
            return await reader.operator_set(group.certificate.epoch, block_hash)
        except RpcError as error:
            if error.is_of_the_call:
                raise VerificationFailed(f"the registry knows no epoch {group.certificate.epoch}", field="epoch") from None
            raise

    async def _quorum_of(self, reader: ChainReader, group: AttestationGroup, block_hash: Hash32) -> int:
        """The least that a client of the group demands, basis points; everything when none of them is a client.

        A client whose pins no node can be brought to say demands nothing here: its own contract does, in the dry run, which is put off
        until it answers or the attestation expires. So no other's attestation waits for it. Raises Unavailable: the node is away.
        """
        clients = frozenset(decided.leaf.policy_client for decided in group.decided)
        try:
            state = await reader.at(block_hash, clients=clients)
            pins, unread = state.pins, state.unread
        except (Unavailable, RpcError) as error:
            await reader.latest_block()
            log.warning("pins of %d clients cannot be read: %s", len(clients), error)
            pins, unread = {}, clients
        thresholds = [pins[client].quorum_bps for client in clients if client in pins]
        if unread:
            _UNREAD.inc()
            return min([*thresholds, _SIGNED_BPS])
        return min(thresholds, default=10_000)

    # --- events

    async def _announce(self) -> None:
        """Publish every new state of a job; at least once, and after it was written down."""
        while True:
            try:
                for job in await self._store.unannounced():
                    await self._announce_one(job)
            except LATER as error:
                log.warning("announcing waits: %s", error)
            await asyncio.sleep(self._poll_s)

    async def _announce_one(self, job: Job) -> None:
        try:
            await self._publish(job)
        except (ValueError, TypeError):
            log.exception("job %s: its state makes no event", hex0x(job.reference))
            _GIVEN_UP.labels("event").inc()
        await self._store.announced(job.reference, job.state)

    async def _publish(self, job: Job) -> None:
        status = job.state if job.state in FINAL else "submitted"
        event = SettlementEvent(job.reference, status, job.transaction_hash, job.block_number, job.gas_used, job.error)
        envelope = seal(
            self._signer,
            kind=Kind.SETTLEMENT_EVENT,
            chain_id=job.chain_id,
            sender=self._signer.public_key,
            payload=wire.encode_settlement_event(event),
        )
        with item(names.settlement_span(status), restore(json.loads(job.trace or "{}"))):
            await self._bus.publish(topics.SETTLEMENTS, job.reference, envelope)
        log.info("job %s: %s", hex0x(job.reference), status)


def _chain_of(record: Record) -> int:
    """Of which chain a record says it is: what it may have to wait for. 0: it says nothing that can be read."""
    try:
        return int(pb.Envelope.FromString((record.value or b"")[:MAX_ENVELOPE_BYTES]).chain_id)
    except DecodeError:
        return 0
