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

_PINS = rig.POLICY_ID + b"".join(n.to_bytes(32, "big") for n in (0, 6667, 60, 600))


async def test_14_a_strangers_client_that_answers_much_takes_nobodys_pins() -> None:
    """`placetPins()` of all clients of a batch is one request, whose answer is read up to 8 MiB. A contract may return 4 MiB (33 million gas,
    which a node's eth_call gives), from a block of its choice on: so it passes the gateway's check, and then the gateway's queue, the
    aggregator, and every operator cannot read the state of anybody in the batch."""

    async def node(request: web.Request) -> web.Response:
        calls = orjson.loads(await request.read())
        answers = []
        for call in calls if isinstance(calls, list) else [calls]:
            hostile = call["params"][0]["to"] == hex0x(rig.OTHER_CLIENT)
            if hostile and int(call["params"][0].get("gas", hex(50_000_000)), 16) < 30_000_000:
                answers.append({"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32000, "message": "out of gas"}})
                continue
            answers.append({"jsonrpc": "2.0", "id": call["id"], "result": hex0x(bytes(4 << 20) if hostile else _PINS)})
        return web.Response(body=orjson.dumps(answers if isinstance(calls, list) else answers[0]))

    application = web.Application()
    application.router.add_post("/", node)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    rpc = RpcClient([f"http://127.0.0.1:{port}"])
    reader = ChainReader(rpc, Deployment(rig.CHAIN, rig.VALIDATOR, ZERO_ADDRESS, ZERO_ADDRESS, 0))
    reader._bases[rig.BLOCK.hash] = (rig.BLOCK, 1, 0, rig.operator_set(rig.identities()))
    try:
        state = await reader.at(rig.BLOCK.hash, clients=[rig.CLIENT, rig.OTHER_CLIENT])
        assert set(state.pins) == {rig.CLIENT}
    except Unavailable as error:
        pytest.fail(f"nobody's pins could be read: {error}")
    finally:
        await rpc.close()
        await runner.cleanup()


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
