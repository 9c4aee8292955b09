"""Reads of strangers' contracts: each has its share of gas, size and time, and a node that is away is told apart."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from placet.core import limits
from placet.core.errors import Unavailable
from placet.core.evm import strangers
from placet.core.evm.rpc import RpcClient, RpcError
from placet.core.types import Address, Hash32, hex0x

BLOCK = Hash32(b"\x0b" * 32)
SOME = [Address(bytes([number]) * 20) for number in range(1, 31)]


class Node:
    """Answers each contract with its own address. `odd` is what some do instead."""

    def __init__(self, **odd: Any) -> None:
        self.odd = {hex0x(SOME[int(number.removeprefix("at_"))]): what for number, what in odd.items()}
        self.away = False
        self.requests: list[int] = []
        self.at_once = self.most = 0

    async def call(self, method: str, params: list[Any]) -> Any:
        if self.away:
            raise Unavailable("no RPC node answers")
        return "0x1"

    async def batch_settled(self, requests: list[tuple[str, list[Any]]]) -> list[Any]:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.requests.append(len(requests))
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.away:
            raise Unavailable("no RPC node answers")
        out = []
        for method, (transaction, block) in requests:
            assert method == "eth_call"
            assert int(transaction["gas"], 16) == limits.MAX_CLIENT_READ_GAS
            assert block == {"blockHash": hex0x(BLOCK)}
            what = self.odd.get(transaction["to"], transaction["to"])
            if what == "hangs":
                await asyncio.sleep(60)
            if isinstance(what, Unavailable):
                raise what
            out.append(what)
        return out


async def read(node: Node) -> list[Any]:
    return list(await strangers.read_strangers(cast(RpcClient, node), SOME, b"\x12\x34\x56\x78", BLOCK))


async def test_all_are_read_a_few_a_request_and_a_few_requests_at_once() -> None:
    node = Node()
    assert await read(node) == [hex0x(contract) for contract in SOME]
    assert node.requests == [12, 12, 6]
    assert node.most <= 4


async def test_21_those_that_spoil_their_request_are_unread_and_nobody_else() -> None:
    node = Node(
        at_0=Unavailable("ClientPayloadError"), at_13=Unavailable("TimeoutError"), at_14="0x", at_29=RpcError(3, "execution reverted")
    )
    found = await read(node)
    assert [at for at, answer in enumerate(found) if answer is None] == [0, 13]
    assert isinstance(found[29], RpcError)
    assert found[14] == "0x"
    assert found[1:13] == [hex0x(contract) for contract in SOME[1:13]]


async def test_21_a_call_that_hangs_alone_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "_ALONE_WITHIN_S", 0.01)
    node = Node(at_3=Unavailable("ClientPayloadError"), at_4="hangs")
    found = await read(node)
    assert [at for at, answer in enumerate(found) if answer is None] == [3, 4]


async def test_a_node_that_is_away_is_no_contracts_fault() -> None:
    node = Node()
    node.away = True
    with pytest.raises(Unavailable):
        await read(node)
    assert node.requests == [12, 12, 6], "and they are not asked for one by one"
