"""Operators' messages that wait: for their batch, which was not read yet and may not exist, or for the actor that works on it.

All of them share one room, bounded in bytes, and each operator has its share of it: when it is full, who holds most gives way, oldest
first. What no operator signed waits in a small part of its own at most; what belongs to another batch than its key says does not wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass

from placet.core.bus import Record
from placet.core.envelope import Kind, Message, open_envelope
from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.keccak import keccak256
from placet.core.types import Address, OperatorSet

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
MAX_STRANGERS_BYTES = 4 << 20
"""Of what no operator known here signed; none is known when no node answered at the start."""
MAX_OF_ONE_SENDER = 16
"""Messages of one operator that wait for one batch: it has three to say."""
_MAX_OF_STRANGERS = 512
"""That wait for one batch."""
_OVERHEAD_BYTES = 1024
_KEYS_KEPT = 2
"""Of one operator: the newest, and the one before it, which batches of the epoch before were signed with."""


@dataclass(eq=False, slots=True)
class _Letter:
    record: Record
    message: Message | None
    """Opened, with the key below; None: no operator known here signed it."""
    bus_key: bytes
    sender: Address | None
    digest: bytes
    size: int
    mailbox: Mailbox


class Mailbox:
    """What waits for one batch, in the order of its arrival."""

    def __init__(self, room: Mailboxes) -> None:
        self._room = room
        self._letters: OrderedDict[bytes, _Letter] = OrderedDict()
        """By the digest of their bytes."""
        self._of: dict[Address | None, int] = {}
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._letters)

    def take(self) -> tuple[Record, Message | None, bytes] | None:
        """The next record, opened with the key beside it if that was possible; None when nothing waits."""
        for letter in self._letters.values():
            self._room.release(letter)
            return letter.record, letter.message, letter.bus_key
        self._arrived.clear()
        return None

    async def arrival(self) -> None:
        """Wait until something may be there to take."""
        await self._arrived.wait()

    def clear(self) -> None:
        """Nothing waits here any more."""
        while self.take() is not None:
            pass


class Mailboxes:
    """Every mailbox of one replica."""

    def __init__(self) -> None:
        self._bus_keys: dict[Address, tuple[bytes, ...]] = {}
        self._held: dict[Address | None, int] = {}
        self._waiting: dict[Address | None, OrderedDict[_Letter, None]] = {}
        self.held_bytes = 0

    def learn(self, operators: OperatorSet) -> None:
        """Know these senders from now on."""
        for operator in operators.operators:
            known = self._bus_keys.get(operator.address, ())
            if operator.bus_key not in known[:1]:
                self._bus_keys[operator.address] = (operator.bus_key, *(key for key in known if key != operator.bus_key))[:_KEYS_KEPT]

    def open(self, record: Record) -> tuple[Message, bytes] | None:
        """A record as a message of an operator that is known, about the batch its key names, and the key it was signed with; None: no
        operator known here signed it.

        Raises:
            InvalidInput, VerificationFailed: it is nobody's.
        """
        for which in range(_KEYS_KEPT):
            used = b""

            def key_of(kind: Kind, sender: bytes, which: int = which) -> bytes | None:
                nonlocal used
                keys = self._bus_keys.get(Address(sender), ()) if kind in (Kind.OBSERVATION, Kind.RESPONSE) else ()
                used = keys[which] if which < len(keys) else b""
                return used or None

            try:
                message = open_envelope(record.value or b"", key_of)
            except VerificationFailed as error:
                if error.field == "signature":
                    continue  # perhaps with the key before
                return None
            if message.batch_id != record.key:
                raise VerificationFailed("the message belongs to another batch", field="batchId")
            return message, used
        return None  # perhaps with a key of an epoch that no batch was of yet: whoever works on its batch will know

    def put(self, mailbox: Mailbox, record: Record) -> bool:
        """Let a record wait, if it may. What waits already does not wait twice."""
        try:
            opened = self.open(record)
        except (InvalidInput, VerificationFailed):
            return False
        message, bus_key = opened if opened is not None else (None, b"")
        sender = Address(message.sender) if message is not None else None
        digest = keccak256(record.value or b"")
        most = MAX_OF_ONE_SENDER if sender is not None else _MAX_OF_STRANGERS
        if digest in mailbox._letters or mailbox._of.get(sender, 0) >= most:
            return False
        letter = _Letter(record, message, bus_key, sender, digest, _OVERHEAD_BYTES + len(record.value or b""), mailbox)
        if not self._make_room(letter):
            log.warning("%s: a record is dropped: too many are waiting", record.topic)
            return False
        mailbox._letters[digest] = letter
        mailbox._of[sender] = mailbox._of.get(sender, 0) + 1
        mailbox._arrived.set()
        self._waiting.setdefault(sender, OrderedDict())[letter] = None
        self._held[sender] = self._held.get(sender, 0) + letter.size
        self.held_bytes += letter.size
        return True

    def _make_room(self, letter: _Letter) -> bool:
        if letter.sender is None:
            return self._held.get(None, 0) + letter.size <= MAX_STRANGERS_BYTES
        while self.held_bytes + letter.size > MAX_BYTES:
            shares = {sender: held for sender, held in self._held.items() if sender is not None}
            shares[letter.sender] = shares.get(letter.sender, 0) + letter.size
            heaviest = max(shares, key=lambda sender: shares[sender])
            oldest = next(iter(self._waiting.get(heaviest, ())), None)
            if oldest is None:
                return False
            log.warning("a message of operator 0x%s is dropped: too many are waiting", heaviest.hex())
            self.release(oldest)
        return True

    def release(self, letter: _Letter) -> None:
        """A letter was taken, or gave way."""
        del letter.mailbox._letters[letter.digest]
        letter.mailbox._of[letter.sender] -= 1
        self.held_bytes -= letter.size
        self._held[letter.sender] -= letter.size
        waiting = self._waiting[letter.sender]
        del waiting[letter]
        if not waiting:
            del self._waiting[letter.sender], self._held[letter.sender]
