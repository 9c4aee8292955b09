"""One caller's jobs against everybody's (threats 28)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

from placet.core.db import connect, migrate
from placet.core.evm.rpc import Block, RpcError
from placet.core.types import Address, Hash32
from placet.settlement.sender import Sender, SendingRules
from placet.settlement.store import Job, Store

SENDER = Address(b"\x5e" * 20)
HOSTILE = Address(b"\xbb" * 20)
HONEST = Address(b"\xaa" * 20)


class _Node:
    """Runs everything but the hostile contract, whose code meets INVALID (geth's words; there is no revert data)."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def block(self, which: str | int = "latest") -> Block:
        return Block(10, Hash32(bytes(32)), Hash32(bytes(32)), int(time.time()), 10**9)

    async def batch_settled(self, requests: list[tuple[str, list[Any]]]) -> list[Any]:
        if requests[0][1][0]["to"] == "0x" + HOSTILE.hex():
            return [RpcError(-32000, "invalid opcode: INVALID")] * len(requests)
        return ["0x", hex(100_000)]

    async def receipt(self, transaction_hash: Hash32) -> None:
        return None

    async def call(self, method: str, params: list[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            self.sent.append(params[0])
        return hex(0)


class _Signer:
    address = SENDER

    def sign(self, transaction: dict[str, Any]) -> tuple[bytes, Hash32]:
        return bytes(transaction["to"]), Hash32(bytes(transaction["to"]).ljust(32, b"\0"))


def _job(number: int, target: Address, payer: str) -> Job:
    reference = Hash32(number.to_bytes(32, "big"))
    until = int(time.time()) + 7 * 86_400
    return Job(reference, 1, target, b"", 0, payer, until, "queued", "queued", "", b"", 0, 0, time.time() + number / 1000, "")


async def test_28_jobs_that_wait_let_others_pass(tmp_path: Path) -> None:
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'settlement.db'}")
    try:
        await migrate(engine, "placet.settlement.migrations")
        store, node = Store(engine), _Node()
        rules = SendingRules(1, 30.0, 500 * 10**9, 10**9, 3_000_000, 50_000_000, 4)
        sender = Sender(rpc=cast(Any, node), chain_id=1, signer=_Signer(), store=store, rules=rules)
        for number in range(4):  # as many as may be in flight
            await store.add_job(_job(number, HOSTILE, "mallory"))
        await store.add_job(_job(9, HONEST, "alice"))
        lease = await store.acquire(SENDER, 1, "me", time.time(), 60.0)
        assert lease is not None
        for _ in range(3):
            await sender.step(lease)
        assert set(node.sent) == {"0x" + HONEST.hex()}
    finally:
        await engine.dispose()
