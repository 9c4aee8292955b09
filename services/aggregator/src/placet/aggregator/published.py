"""What the aggregator has published of batches that may still be open, read back from the bus: nothing else is said in its place."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from placet.core import wire
from placet.core.bus import Record
from placet.core.envelope import Kind, Message, open_envelope
from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.types import Hash32

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Said:
    expires: float
    proposal: Message | None = None
    results: list[Message] = field(default_factory=list)


class Published:
    """The first Proposal, and all results, batch by batch. Only what this identity signed counts."""

    def __init__(self, public_key: bytes, keep_s: float) -> None:
        self._public_key = public_key
        self._keep_s = keep_s
        self._said: dict[Hash32, _Said] = {}

    def note(self, record: Record) -> None:
        """Remember a record of the topics of proposals and attestations."""
        try:
            message = open_envelope(record.value or b"", self._own_key)
        except (InvalidInput, VerificationFailed) as error:
            log.warning("%s: record ignored: %s", record.topic, error)
            return
        if message.batch_id != record.key:
            return
        expires = record.timestamp_ms / 1000 + self._keep_s
        said = self._said.setdefault(message.batch_id, _Said(expires))
        said.expires = max(said.expires, expires)
        if message.kind is Kind.PROPOSAL:
            said.proposal = said.proposal or message
        elif all(message.raw != known.raw for known in said.results):
            said.results.append(message)

    def proposal(self, batch_id: Hash32) -> Message | None:
        """The Proposal that stands for a batch."""
        said = self._said.get(batch_id)
        return None if said is None else said.proposal

    def closed_tasks(self, batch_id: Hash32) -> set[int]:
        """The tasks of a batch that have a result."""
        closed: set[int] = set()
        for message in self._said[batch_id].results if batch_id in self._said else ():
            if message.kind is Kind.ATTESTATION_GROUP:
                closed |= {item.task for item in wire.decode_attestation_group(message.payload).decided}
            else:
                closed |= {item.task for item in wire.decode_group_failure(message.payload).failures}
        return closed

    def expire(self, now: float) -> None:
        """Forget batches that are over."""
        for batch_id in [batch_id for batch_id, said in self._said.items() if said.expires < now]:
            del self._said[batch_id]

    def _own_key(self, kind: Kind, sender: bytes) -> bytes | None:
        published = (Kind.PROPOSAL, Kind.ATTESTATION_GROUP, Kind.GROUP_FAILURE)
        return sender if kind in published and sender == self._public_key else None
