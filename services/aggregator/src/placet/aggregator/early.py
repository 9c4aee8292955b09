"""Operators' messages that come before their batch, which was not read yet and may not exist.

They are bounded in number and bytes, and signed, as far as operators are known here: a stranger fills a small part of the room at most.
"""

from __future__ import annotations

import logging

from placet.core.bus import Record
from placet.core.envelope import Kind, open_envelope
from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.types import Address, Hash32, OperatorSet

log = logging.getLogger(__name__)

_MAX_RECORDS = 512
"""Of one batch."""
_MAX_BYTES = 64 << 20
_MAX_STRANGERS_BYTES = 4 << 20
"""When a sender is not known to be an operator, as none is at the start."""
_OVERHEAD_BYTES = 1024


class EarlyMessages:
    """How many messages wait, and whose may."""

    def __init__(self) -> None:
        self._bus_keys: dict[Address, bytes] = {}
        self._waiting: dict[Hash32, list[int]] = {}
        self.held_bytes = 0

    def learn(self, operators: OperatorSet) -> None:
        """Know these senders from now on."""
        self._bus_keys |= {operator.address: operator.bus_key for operator in operators.operators}

    def admit(self, batch_id: Hash32, record: Record) -> bool:
        """Whether a record may wait for its batch. What may is counted until `release`."""
        try:
            open_envelope(record.value or b"", self._key_of)
            budget = _MAX_BYTES
        except InvalidInput:
            return False
        except VerificationFailed as error:
            if error.field != "sender":
                return False
            budget = _MAX_STRANGERS_BYTES
        size = _OVERHEAD_BYTES + len(record.value or b"")
        if self.held_bytes + size > budget or len(self._waiting.get(batch_id, ())) >= _MAX_RECORDS:
            log.warning("%s: a record of an unknown batch is dropped: too many are waiting", record.topic)
            return False
        self._waiting.setdefault(batch_id, []).append(size)
        self.held_bytes += size
        return True

    def release(self, batch_id: Hash32) -> None:
        """What waited for a batch waits no more."""
        self.held_bytes -= sum(self._waiting.pop(batch_id, ()))

    def _key_of(self, kind: Kind, sender: bytes) -> bytes | None:
        return self._bus_keys.get(Address(sender)) if kind in (Kind.OBSERVATION, Kind.RESPONSE) else None
