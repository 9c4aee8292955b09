"""Settlement's loops: attestations in, jobs out; one leader a key; events about what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from placet.core import topics, wire
from placet.core.bus import Bus, BusError, NotAssigned, Record, Subscription, next_offsets
from placet.core.bus.tracing import capture, item, processing, restore
from placet.core.db import DATABASE_ERRORS
from placet.core.envelope import BusSigner, Kind, Message, open_envelope, seal
from placet.core.errors import InvalidInput, PlacetError, VerificationFailed
from placet.core.evm import contracts
from placet.core.evm.reader import ChainReader
from placet.core.evm.rpc import RpcError
from placet.core.messages import SettlementEvent, positions_of
from placet.core.telemetry import names
from placet.core.types import ZERO_ADDRESS, Hash32, hex0x
from placet.settlement.sender import Sender
from placet.settlement.store import FINAL, Job, Lease, LeaseLost, Store
from placet.verify import verify_group

log = logging.getLogger(__name__)

GROUP = "settlement"
_LATER: tuple[type[Exception], ...] = (PlacetError, BusError, RpcError, *DATABASE_ERRORS)
"""Node, bus or database are away, or say something odd: the loops go on and try again."""


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
        self._holder = holder
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._instance_id = instance_id
        self._clock = clock
        self._wake = asyncio.Event()
        self.subscription: Subscription | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        self.subscription = await self._bus.subscribe([topics.ATTESTATIONS], GROUP, instance_id=self._instance_id)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._announce())
            for chain_id, sender in self._senders.items():
                group.create_task(self._lead(chain_id, sender))
            async for records in self.subscription:
                for record in records:
                    await self._take(record)
                try:
                    await self.subscription.commit(next_offsets(records))
                except NotAssigned:
                    pass  # whoever owns the partition now finds these jobs recorded
                except BusError as error:
                    log.warning("commit: %s", error)  # delivered again, and recorded already

    # --- attestations become jobs

    def _key_of(self, kind: Kind, sender: bytes) -> bytes | None:
        published = (Kind.ATTESTATION_GROUP, Kind.GROUP_FAILURE)
        return sender if kind in published and sender in self._aggregators else None

    async def _take(self, record: Record) -> None:
        """Record the jobs of a group. Retried until the database and the node answer: an attestation is never lost here."""
        with processing(record, GROUP):
            while True:
                try:
                    message = open_envelope(record.value or b"", self._key_of)
                    if message.kind is Kind.ATTESTATION_GROUP:
                        await self._jobs_of(message)
                    else:
                        await self._note_failures(message)
                    return
                except (InvalidInput, VerificationFailed) as error:
                    log.warning("attestation refused: %s", error)
                    await self._bus.publish_dlq(record, error, consumer="settlement")
                    return
                except _LATER as error:
                    log.warning("attestation waits: %s", error)
                    await asyncio.sleep(1.0)

    async def _note_failures(self, message: Message) -> None:
        """The first result of a task is the one: what failed is not executed, should a certificate turn up later (threats 19)."""
        for failure in wire.decode_group_failure(message.payload).failures:
            await self._store.add_job(self._refused(failure.task_id, message.chain_id, f"the task had failed: {failure.code}"))

    def _refused(self, reference: Hash32, chain_id: int, error: str) -> Job:
        """A job that is over before it began, of which nobody is told."""
        return Job(reference, chain_id, ZERO_ADDRESS, b"", 0, "", 0, "refused", "refused", error, b"", 0, 0, self._clock(), "")

    async def _jobs_of(self, message: Message) -> None:
        group = wire.decode_attestation_group(message.payload)
        if not group.relayed:
            return
        reader = self._chains.get(group.chain_id)
        if reader is None or group.chain_id not in self._senders:
            raise VerificationFailed(f"chain {group.chain_id} is not settled here", field="chainId")
        block = await reader.latest_block()
        state = await reader.at(block.hash, clients=[item.leaf.policy_client for item in group.decided])
        operators = await reader.operator_set(group.certificate.epoch, block.hash)
        thresholds = [pins.quorum_bps for pins in state.pins.values()] or [10_000]
        proofs = await asyncio.to_thread(
            verify_group,
            group,
            operators=operators,
            chain_id=group.chain_id,
            validator=reader.deployment.validator,
            quorum_bps=min(thresholds),
        )
        signers = frozenset(positions_of(group.signers, len(operators.operators)) or ())
        quorum = await asyncio.to_thread(contracts.quorum_proof, operators, signers, group.aggregate_signature)
        for index, decided in enumerate(group.decided):
            relayed = next((entry for entry in group.relayed if entry.task == decided.task), None)
            if relayed is None or not decided.leaf.allow:
                continue
            if relayed.intent.value:
                # It would be paid from settlement's own account. The gateway refuses this too; here it is what counts.
                refusal = self._refused(decided.leaf.task_id, group.chain_id, "a relayed intent carries no value")
                await self._store.add_job(replace(refusal, announced="queued"))
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
                self._wake.set()

    # --- leading

    async def _lead(self, chain_id: int, sender: Sender) -> None:
        """Hold the lease as long as possible, and work while it is held."""
        lease: Lease | None = None
        try:
            while True:
                try:
                    lease = await self._store.acquire(sender.address, chain_id, self._holder, self._clock(), self._lease_s)
                    if lease is not None:
                        await sender.step(lease)
                except LeaseLost:
                    log.warning("chain %d: another replica leads", chain_id)
                    lease = None
                except _LATER as error:
                    log.warning("chain %d: %s", chain_id, error)
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), self._poll_s)
                except TimeoutError:
                    continue
        finally:
            if lease is not None:
                with contextlib.suppress(*DATABASE_ERRORS):
                    await self._store.release(lease)

    # --- events

    async def _announce(self) -> None:
        """Publish every new state of a job; at least once, and after it was written down."""
        while True:
            try:
                for job in await self._store.unannounced():
                    await self._publish(job)
                    await self._store.announced(job.reference, job.state)
            except _LATER as error:
                log.warning("announcing waits: %s", error)
            await asyncio.sleep(self._poll_s)

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
