"""Leading: one replica at a time works for one sending key on one chain, and keeps its lease while it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Protocol

from placet.core.bus import BusError
from placet.core.db import DATABASE_ERRORS
from placet.core.errors import PlacetError
from placet.core.evm.rpc import RpcError
from placet.core.types import Address
from placet.settlement.store import Lease, LeaseLost, Store

log = logging.getLogger(__name__)

LATER: tuple[type[Exception], ...] = (PlacetError, BusError, RpcError, *DATABASE_ERRORS)
"""Node, bus or database are away, or say something odd: the loops go on and try again."""
_RENEWALS = 3
"""How often the lease is renewed within its time while a round lasts."""
_ROUND_AT_MOST_S = 60.0
"""A round that lasts longer loses the lease: somebody else may fare better."""


class Work(Protocol):
    """What is done while the lease is held, round after round."""

    @property
    def address(self) -> Address:
        """The account whose key it is."""

    async def step(self, lease: Lease) -> None:
        """One round. Raises LeaseLost, or what is tried again."""


class Lead:
    """One key on one chain."""

    def __init__(
        self,
        work: Work,
        chain_id: int,
        *,
        store: Store,
        holder: str,
        lease_s: float,
        poll_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._work = work
        self._chain_id = chain_id
        self._store = store
        self._holder = holder
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._clock = clock
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    async def run(self) -> None:
        """Hold the lease as long as possible, and work while it is held; until cancelled."""
        lease: Lease | None = None
        try:
            while True:
                try:
                    lease = await self._acquire()
                    if lease is not None:
                        await self._step(lease)
                except LeaseLost:
                    log.warning("chain %d: another replica leads", self._chain_id)
                    lease = None
                except LATER as error:
                    log.warning("chain %d: %s", self._chain_id, error)
                except Exception:
                    log.exception("chain %d: the round failed", self._chain_id)
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), self._poll_s)
                except TimeoutError:
                    continue
        finally:
            if lease is not None:
                with contextlib.suppress(*DATABASE_ERRORS):
                    await self._store.release(lease)

    async def _acquire(self) -> Lease | None:
        return await self._store.acquire(self._work.address, self._chain_id, self._holder, self._clock(), self._lease_s)

    async def _step(self, lease: Lease) -> None:
        """One round, with the lease renewed while it lasts: a job that takes its time must not cost it."""
        done = asyncio.Event()
        renewing = asyncio.create_task(self._renew(done))
        try:
            await self._work.step(lease)
        finally:
            done.set()
            await renewing

    async def _renew(self, done: asyncio.Event) -> None:
        for _ in range(int(_ROUND_AT_MOST_S / self._lease_s * _RENEWALS)):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), self._lease_s / _RENEWALS)
                return
            try:
                if await self._acquire() is None:
                    return
            except DATABASE_ERRORS as error:
                log.warning("chain %d: the lease is not renewed: %s", self._chain_id, error)
