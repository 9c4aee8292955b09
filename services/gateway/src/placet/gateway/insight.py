"""What a caller can learn beyond the signed decision: simulations, evidence, and the places in a policy that made a denial."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from placet.core import wire
from placet.core.batch import BatchContext
from placet.core.digests import EVIDENCE_PARTS
from placet.core.errors import NotFound
from placet.core.types import Hash32, Task, TaskBatch, hash_from, hex0x
from placet.gateway.batcher import new_salt
from placet.gateway.evidence import EvidenceClient
from placet.gateway.intents import Intents
from placet.gateway.keys import Authenticator
from placet.gateway.policybook import PolicyBook
from placet.gateway.requests import SimulationRequest
from placet.gateway.simulation import Simulator
from placet.gateway.store import ApiKey, Store

log = logging.getLogger(__name__)

_PLACES_WITHIN_S = 2.0
_ADMITTED_BPS = 6667
"""Share of the stake that must have admitted a policy before its components run here."""


class Insight:
    """Reads policies, evidence and batches; signs and changes nothing."""

    def __init__(
        self,
        *,
        intents: Intents,
        policies: PolicyBook,
        simulator: Simulator,
        evidence: EvidenceClient,
        store: Store,
        authenticator: Authenticator,
    ) -> None:
        self._intents = intents
        self._policies = policies
        self._simulator = simulator
        self._evidence = evidence
        self._store = store
        self._auth = authenticator

    async def start(self) -> None:
        """Start the simulation workers. Raises Unavailable."""
        await self._simulator.start()

    async def close(self) -> None:
        """End workers and connections."""
        await self._simulator.close()
        await self._evidence.close()

    async def simulate(self, asked: SimulationRequest, key: ApiKey) -> dict[str, Any]:
        """The policy's answer with the rules that gave it. Charged to the key's CPU budget."""
        with self._auth.simulating(key):
            return await self._simulate(asked)

    async def _simulate(self, asked: SimulationRequest) -> dict[str, Any]:
        state, pins = await self._intents.state_of(asked.intent.chain_id, asked.policy_client)
        policy_id = asked.policy_id or pins.policy_id
        bundle = await self._policies.bundle(policy_id)
        # The client is whatever contract the caller names; what may run here is not for its pins to say.
        live = self._policies.is_admitted(policy_id, state.operators, max(pins.quorum_bps, _ADMITTED_BPS))
        task = Task(asked.policy_client, asked.intent, new_salt(), b"", asked.args)
        batch = TaskBatch(
            chain_id=asked.intent.chain_id,
            validator=self._intents.validator_of(asked.intent.chain_id),
            policy_id=policy_id,
            epoch=state.epoch,
            timestamp=int(time.time()),
            block_number=state.block.number,
            block_hash=state.block.hash,
            observe_for_ms=0,
            tasks=(task,),
        )
        sequence = await self._intents.sequence_of(asked.intent.chain_id, asked.policy_client, asked.intent.sender, bundle.policy.ordering)
        simulated = await self._simulator.simulate(bundle, BatchContext.of(batch), sequence, outputs=asked.outputs, live=live)
        return {"simulated": True, "policyId": hex0x(policy_id), "blockNumber": state.block.number, **simulated.answer}

    async def evidence(self, digest: Hash32, key: ApiKey) -> dict[str, Any]:
        """The record behind a decision of this tenant; nobody else's exists for it. Raises NotFound."""
        row = await self._store.by_evidence(digest, key.id)
        if row is None or row.result is None:
            raise NotFound("no decision of yours rests on this evidence", evidence=hex0x(digest))
        record = await self._evidence.get(digest)
        parts = {name: record.parts[name] for name in EVIDENCE_PARTS}
        return {
            "evidence": hex0x(digest),
            "taskId": hex0x(row.task_id),
            "salt": hex0x(record.salt),
            "parts": {name: content.decode() if name != "observations" else hex0x(content) for name, content in parts.items()},
            "partHashes": {name: hex0x(value) for name, value in record.part_hashes().items()},
        }

    async def with_places(self, answer: dict[str, Any]) -> dict[str, Any]:
        """A denial's reasons with rule, file and line. For people; left as it is when that cannot be had quickly."""
        if answer.get("decision") != "deny" or not answer["reasons"]:
            return answer
        try:
            async with asyncio.timeout(_PLACES_WITHIN_S):
                reasons = await self._places(answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, a denial that was signed is answered
            log.info("no places for a denial: %s", error)
            return answer
        return {**answer, "reasons": reasons} if reasons else answer

    async def _places(self, answer: dict[str, Any]) -> list[Any]:
        row = await self._store.task_any(hash_from(answer["taskId"]))
        raw = None if row is None else await self._store.batch_of(row.batch_id)
        if row is None or raw is None:
            return []
        leaf = answer["attestation"]["leaf"]
        bundle = await self._policies.bundle(hash_from(leaf["policyId"]))
        context = await asyncio.to_thread(lambda: BatchContext.of(*wire.decode_batch(raw)))
        data = b"[]"
        if bundle.policy_data:
            data = (await self._evidence.get(hash_from(leaf["evidence"]))).parts["data"]
        found = await self._simulator.explain_denial(bundle, context, row.position, leaf["sequence"], data)
        by_message = {item["message"]: item for item in found}
        return [by_message.get(item["message"], item) for item in answer["reasons"]]
