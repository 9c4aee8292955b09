"""Second reading: contracts of callers that burn what a node allows for a read, against settlement (threats 28)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from placet.core.batch import BatchContext
from placet.core.db import connect, migrate
from placet.core.errors import Unavailable
from placet.core.evm.reader import BlockState
from placet.core.types import Address, Hash32
from placet.settlement.sender import Sender, SendingRules
from placet.settlement.store import Store
from tests.audit import test_settlement as first
from tests.support.authorization import CLIENT, FakeChain
from tests.unit.settlement.test_service import Stage

MALLORYS = Address(b"\x66" * 20)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    engines = []

    async def database(migrations: str) -> Any:
        engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'settlement.db'}")
        await migrate(engine, migrations)
        engines.append(engine)
        return engine

    made = Stage(database)
    await made.bus.start()
    yield made
    await made.kill()
    await made.bus.stop()
    await made.broker.stop()
    for engine in engines:
        await engine.dispose()


class _Burning(FakeChain):
    """Mallory's clients burn gas in `placetPins()` since their group was certified: a request with them is over the node's time."""

    async def at(self, block_hash: Hash32, *, clients: Iterable[Address] = (), **changes: Any) -> BlockState:
        clients = list(clients)
        if MALLORYS in clients:
            raise Unavailable("no RPC node answers (TimeoutError)")
        return await super().at(block_hash, clients=clients, **changes)


async def test_28_a_group_whose_state_cannot_be_read_lets_others_pass(stage: Stage) -> None:
    """Settlement asks again every second, for ever, before it reads the next attestation; after a restart it begins there again."""
    stage.world.chain = _Burning(stage.world.operators, stage.world.policy_id)
    await stage.start()
    plain = stage.relayed()
    task = replace(plain.batch.tasks[0], policy_client=MALLORYS)
    hers = BatchContext.of(replace(plain.batch, tasks=(task,)), {0: "mallory"})
    await stage.say(hers, stage.world.certified(hers))
    await asyncio.sleep(0.2)
    alices = stage.relayed()
    assert alices.batch.tasks[0].policy_client == CLIENT
    await stage.say(alices, stage.world.certified(alices))
    for _ in range(300):
        if await stage.store.job(alices.task_ids[0]) is not None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("Alice's attestation waits behind Mallory's")


class _Node(first._Node):
    """A dry run of Mallory's contract takes longer than the node, or the request, may take."""

    async def batch_settled(self, requests: list[tuple[str, list[Any]]]) -> list[Any]:
        if requests[0][1][0]["to"] == "0x" + first.HOSTILE.hex():
            raise Unavailable("no RPC node answers (TimeoutError)")
        return ["0x", hex(100_000)]


async def test_28_a_dry_run_without_an_answer_lets_others_pass(tmp_path: Path) -> None:
    """As audit 11, with a time-out in place of an error: the round ends at that job, which nothing puts off and which stands first again in
    the next round, as long as it is valid. One job of 7 days."""
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'settlement.db'}")
    try:
        await migrate(engine, "placet.settlement.migrations")
        store, node = Store(engine), _Node()
        rules = SendingRules(1, 30.0, 500 * 10**9, 10**9, 3_000_000, 50_000_000, 4)
        sender = Sender(rpc=cast(Any, node), chain_id=1, signer=first._Signer(), store=store, rules=rules)
        await store.add_job(first._job(1, first.HOSTILE, "mallory"))
        await store.add_job(first._job(9, first.HONEST, "alice"))
        lease = await store.acquire(first.SENDER, 1, "me", time.time(), 60.0)
        assert lease is not None
        for _ in range(5):
            with suppress(Unavailable):  # SettlementService goes on after it, too
                await sender.step(lease)
        assert node.sent and set(node.sent) == {"0x" + first.HONEST.hex()}
    finally:
        await engine.dispose()
