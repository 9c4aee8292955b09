"""Evidence for this replica's receipt key: one a session, which is a caller's nonce and a model."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from placet.core.types import Hash32
from placet.inference.tee.collateral import Collaterals
from placet.inference.tee.providers import Provider
from placet.verify.tee import Binding, encode_evidence, evidence_sha256

_SESSIONS = 1024


@dataclass(frozen=True, slots=True)
class Attested:
    """Evidence as it travels, and its digest (what receipts name)."""

    evidence: bytes
    sha256: Hash32


class Attestor:
    """Asks the TEE, a session once. Both keys were made in this process and are nowhere else."""

    def __init__(self, provider: Provider, collaterals: Collaterals, receipt_key: bytes, hpke_key: X25519PrivateKey) -> None:
        self._provider = provider
        self._collaterals = collaterals
        self.receipt_key = receipt_key
        self.hpke_key = hpke_key
        self._sessions: OrderedDict[tuple[Hash32, Hash32], asyncio.Task[Attested]] = OrderedDict()

    @property
    def hpke_public(self) -> bytes:
        """To which prompts are sealed, 32 bytes."""
        return self.hpke_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    async def evidence(self, nonce: Hash32, model_sha256: Hash32) -> Attested:
        """Evidence for a session.

        Raises:
            TeeUnavailable: this machine has no TEE. Unavailable: it does not answer.
        """
        key = nonce, model_sha256
        task = self._sessions.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._sessions[key] = asyncio.create_task(self._make(nonce, model_sha256))
            while len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return await asyncio.shield(task)

    async def _make(self, nonce: Hash32, model_sha256: Hash32) -> Attested:
        binding = Binding(self.receipt_key, nonce, model_sha256, self.hpke_public)
        quoted = await asyncio.to_thread(self._provider.quote, binding.report_data())
        evidence = await self._collaterals.evidence(quoted)
        return Attested(encode_evidence(evidence), Hash32(evidence_sha256(evidence)))
