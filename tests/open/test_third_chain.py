"""Third reading: what a stranger's contract makes of a read that holds others' too."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from placet.core.errors import Unavailable
from placet.core.evm.reader import ChainReader, Deployment
from placet.core.evm.rpc import RpcClient
from placet.core.types import ZERO_ADDRESS, Address, hex0x
from tests.audit import rig
from tests.audit.test_operators import operator


async def test_21_contract_wallets_are_asked_together_and_spoil_no_others_task(tmp_path: Path) -> None:
    """An intent's sender may be a contract, whose `isValidSignature` may use all the gas a node gives it (half a second) and then say yes.
    The gateway asks for each request by itself; operators ask one task after the other. Forty such tasks of one caller, and everybody's in
    the batch is late. Policies with `retryAfter` or secrets."""
    asked: list[float] = []

    async def eth_call(self: Any, to: Address, data: bytes, **_: Any) -> bytes:
        asked.append(time.monotonic())
        await asyncio.sleep(0.5)
        return bytes.fromhex("1626ba7e") + bytes(28)

    tasks = [task for task in rig.signed_batch(*(rig.task(n) for n in range(1))).batch.tasks]
    wallets = [rig.Task(t.policy_client, t.intent, t.salt, b"\x01") for t in (rig.task(n + 1) for n in range(40))]
    context = rig.batch(*wallets, *tasks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.StubRpc, "eth_call", eth_call, raising=False)
        async with operator(tmp_path, retry_after=60) as network:
            await network.give(context)
            responses, _ = await network.answers(context, within_s=8.0)
            assert responses, f"after 8 s it has asked {len(asked)} of 40 wallets"
