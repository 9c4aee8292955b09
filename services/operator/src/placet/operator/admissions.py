"""This operator's word on policies, and that it stands: every operator may write under every key of `placet.admissions.v1` (threats 29).

What this operator did not say is written over, at most once a minute a policy. A newer word of the same operator (another replica, or
this one before a restart with a clock that was ahead) stands. Gateways that run pass over what is not the operator's; a gateway that
starts reads what compaction has left.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from placet.core import topics, wire
from placet.core.bus import Bus, BusError, Record
from placet.core.envelope import BusSigner, Kind, open_envelope, seal
from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.messages import Admission
from placet.core.types import Address, Hash32, hex0x

log = logging.getLogger(__name__)
REPAIR_S = 60.0
_RETRY_S = 5.0


class Admissions:
    """Says and repeats."""

    def __init__(self, bus: Bus, operator: Address, signer: BusSigner) -> None:
        self._bus = bus
        self._operator = operator
        self._signer = signer
        self._said: dict[Hash32, bytes] = {}
        self._said_at: dict[Hash32, int] = {}
        self._not_before: dict[Hash32, float] = {}
        self._waiting: dict[Hash32, asyncio.TimerHandle] = {}
        self._repairs: asyncio.Queue[Hash32] = asyncio.Queue()

    async def say(self, admission: Admission) -> None:
        """Publish this operator's word on a policy. `said_at` is set here: later than whatever was said of this policy before."""
        said_at = max(time.time_ns() // 10**6, self._said_at.get(admission.policy_id, 0) + 1)
        admission = Admission(admission.policy_id, admission.admitted, admission.checker, admission.reason, said_at)
        envelope = seal(self._signer, kind=Kind.ADMISSION, chain_id=0, sender=self._operator, payload=wire.encode_admission(admission))
        self._said[admission.policy_id] = envelope
        self._said_at[admission.policy_id] = said_at
        await self._publish(admission.policy_id)

    async def _publish(self, policy_id: Hash32) -> None:
        """Say what stands. A bus that is away ends nothing: it is said again."""
        try:
            await self._bus.publish(topics.ADMISSIONS, policy_id + self._operator, self._said[policy_id])
        except BusError as error:
            log.warning("this operator's word on policy %s is not said yet: %s", hex0x(policy_id), error)
            self._say_again(policy_id, _RETRY_S)

    def _say_again(self, policy_id: Hash32, delay_s: float) -> None:
        if policy_id not in self._waiting:
            self._waiting[policy_id] = asyncio.get_running_loop().call_later(delay_s, self._repairs.put_nowait, policy_id)

    async def run(self) -> None:
        """Watch what is written under this operator's keys."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._repair())

    def stop(self) -> None:
        """Repeat nothing any more."""
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()

    async def _follow(self) -> None:
        subscription = await self._bus.subscribe([topics.ADMISSIONS], None, from_beginning=False)
        try:
            async for records in subscription:
                for record in records:
                    self._see(record)
        finally:
            with suppress(Exception):
                await subscription.close()

    def _see(self, record: Record) -> None:
        key = record.key or b""
        if len(key) != 52 or key[32:] != self._operator:
            return
        policy_id = Hash32(key[:32])
        said = self._said.get(policy_id)
        if said is None or record.value == said:
            return
        if self._is_newer_word(policy_id, record.value):
            return
        if policy_id in self._waiting:
            return
        log.warning("somebody wrote over this operator's word on policy %s; it is said again", hex0x(policy_id))
        self._say_again(policy_id, max(0.0, self._not_before.get(policy_id, 0.0) - time.monotonic()))

    def _is_newer_word(self, policy_id: Hash32, value: bytes | None) -> bool:
        """Whether it is this operator's own, said later: then that is what it says now."""
        mine = self._signer.public_key
        try:
            if value is None:
                return False
            message = open_envelope(value, lambda kind, sender: mine if kind is Kind.ADMISSION and sender == self._operator else None)
            word = wire.decode_admission(message.payload)
        except (InvalidInput, VerificationFailed):
            return False
        if word.policy_id != policy_id or word.said_at <= self._said_at[policy_id]:
            return False
        self._said[policy_id], self._said_at[policy_id] = value, word.said_at
        return True

    async def _repair(self) -> None:
        while True:
            policy_id = await self._repairs.get()
            self._waiting.pop(policy_id, None)
            self._not_before[policy_id] = time.monotonic() + REPAIR_S
            await self._publish(policy_id)
