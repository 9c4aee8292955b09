"""Second reading: what callers, and an operator's own housekeeping, do to its answers (threats 18, 21, 26)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from placet.core.evm import contracts
from placet.core.evm.reader import ChainReader, Deployment
from placet.core.evm.rpc import RpcClient
from placet.core.types import ZERO_ADDRESS, Address, hex0x
from placet.operator import service as service_module
from placet.operator.evidence_store import EvidenceStore
from tests.audit import rig
from tests.audit.test_operators import operator
from tests.unit.operator.test_evidence_store import DAY_S, NOW, objects_in, record, stores
from tests.unit.operator.test_service import Evidence, Stage, stage

__all__ = ["stage", "stores"]


# --- contracts of callers that take their time


class _SlowRpc(rig.StubRpc):
    """A node on which a caller's contract burns the node's whole allowance (50 million gas by default): here 0.25 s a call."""

    async def eth_call(self, *_: Any, **__: Any) -> bytes:
        await asyncio.sleep(0.25)
        return b""


async def test_21_contract_accounts_that_burn_gas_fail_no_other_task(tmp_path: Path) -> None:
    """`isValidSignature` of each task's sender is asked one after the other and without a bound: 255 tasks of half a second outlast a batch,
    and with it Alice's task. Policies with `retryAfter`, or with data behind secrets."""
    async with operator(tmp_path, retry_after=3_600) as honest:
        cast(Any, honest.service._chains[rig.CHAIN]).rpc = _SlowRpc()
        alice = rig.signed_batch(rig.task(1)).batch.tasks[0]
        mallory = [rig.task(number) for number in range(2, 34)]
        wallets = [
            replace(task, intent=replace(task.intent, sender=Address(bytes([number]) * 20)), signature=b"\x01")
            for number, task in enumerate(mallory, 2)
        ]
        context = rig.batch(alice, *wallets)
        await honest.give(context)
        responses, observations = await honest.answers(context, within_s=3.0)
        answered = {item.task for observation in observations for item in observation.tasks}
        answered |= {item.task for response in responses for group in response.groups for item in group.decided}
        assert 0 in answered, "nothing is said of Alice's task for as long as all the others' contracts take"


# --- evidence


async def test_26_a_second_group_with_the_same_decision_leaves_nothing_behind(tmp_path: Path, stores: list[EvidenceStore]) -> None:
    """The whole batch was decided, then somebody abstained and the Proposal's group was: the second object is written, no row names it, and
    nothing ever removes it. One operator that abstains from one task of every batch doubles what is kept, for ever."""
    store = stores[0]
    await store.put([record(1), record(2)], NOW)
    await store.put([record(1)], NOW)
    await store.prune(NOW + 91 * DAY_S)
    assert objects_in(tmp_path) == []


class _Pruning(Evidence):
    """5,000 objects of a bucket that takes 30 ms to remove one: ten minutes at eight batches a second."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def prune(self, now: int) -> None:
        for _ in range(5_000):
            self._stage.clock.now += 0.03
            if _ % 100 == 0:
                await asyncio.sleep(0)


class _Hasty:
    """asyncio, but its sleep takes no time: the stage's clock goes on instead."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        self._stage.clock.now += seconds
        await asyncio.sleep(0)


async def test_20_the_logs_heart_beats_while_evidence_is_pruned(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Housekeeping waits for the pruning; after 120 s without a heartbeat the log takes itself for a restored copy, and every batch of the
    next seconds is refused as `signing_log_young`: at every operator, every ten minutes."""
    await stage.log.open(int(stage.clock.now))
    since, began = stage.log.not_before, stage.clock.now
    monkeypatch.setattr(service_module, "asyncio", _Hasty(stage))
    service = await stage.start()
    service._evidence = cast(Any, _Pruning(stage))
    ends = time.monotonic() + 20
    while stage.clock.now < began + 900 and time.monotonic() < ends:
        await asyncio.sleep(0.01)
    assert stage.clock.now >= began + 800
    assert stage.log.not_before == since
