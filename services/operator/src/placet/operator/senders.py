"""Which intents of a batch their senders did not sign. Keys are checked here; contract wallets (EIP-1271) are strangers' code on our own
node, so they are asked together, within gas and time, and one that is slow costs its own task only.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import cast

from placet.core.batch import BatchContext
from placet.core.errors import Unavailable
from placet.core.evm.rpc import RpcClient, call_request
from placet.core.messages import Abstention
from placet.core.senders import is_signed_by, recover
from placet.core.types import Address, Hash32

WALLET_GAS = 2_000_000
"""For one `isValidSignature`: several times what the signature of a passkey takes in Solidity, and some 20 ms of a node."""
_AT_ONCE = 32
_ONE_S = 1.0
_ALL_S = 2.0


class _WithinGas:
    """A node's client whose contract reads may use WALLET_GAS."""

    def __init__(self, rpc: RpcClient) -> None:
        self._rpc = rpc

    async def eth_call(self, to: Address, data: bytes, *, block_hash: Hash32) -> bytes:
        method, parameters = call_request(to, data, block_hash=block_hash)
        parameters[0]["gas"] = hex(WALLET_GAS)
        answer = await self._rpc.call(method, parameters)
        try:
            return bytes.fromhex(answer.removeprefix("0x"))
        except (AttributeError, ValueError):
            raise Unavailable("the RPC node answered something that is not hex") from None


async def unsigned(rpc: RpcClient, context: BatchContext, indices: Sequence[int]) -> list[Abstention]:
    """Abstentions from those of the tasks whose intent its sender did not sign, or whose sender, a contract, gave no answer in time."""
    batch, out = context.batch, []
    wallets: list[int] = []
    for index in indices:
        task = batch.tasks[index]
        if recover(context.intent_hashes[index], task.signature) == task.intent.sender:
            continue
        if task.signature:
            wallets.append(index)
        else:
            out.append(_not_signed(index))
    return out + await _ask(rpc, context, wallets)


async def _ask(rpc: RpcClient, context: BatchContext, indices: Sequence[int]) -> list[Abstention]:
    if not indices:
        return []
    places, node = asyncio.Semaphore(_AT_ONCE), cast(RpcClient, _WithinGas(rpc))

    async def ask(index: int) -> Abstention | None:
        task = context.batch.tasks[index]
        digest, block = context.intent_hashes[index], context.batch.block_hash
        async with places:
            try:
                async with asyncio.timeout(_ONE_S):
                    signed = await is_signed_by(node, task.intent.sender, digest, task.signature, block_hash=block)
            except TimeoutError:
                return _no_answer(index)
            except Unavailable as error:
                return Abstention(index, "unavailable", str(error))
        return None if signed else _not_signed(index)

    asked = {index: asyncio.create_task(ask(index)) for index in _one_of_each_sender_first(context, indices)}
    try:
        await asyncio.wait(asked.values(), timeout=_ALL_S)
        said = {index: task.result() if task.done() else _no_answer(index) for index, task in asked.items()}
    finally:
        for task in asked.values():
            task.cancel()
        await asyncio.gather(*asked.values(), return_exceptions=True)
    return [item for item in said.values() if item is not None]


def _one_of_each_sender_first(context: BatchContext, indices: Sequence[int]) -> list[int]:
    seen: Counter[Address] = Counter()
    turns = {}
    for index in indices:
        sender = context.batch.tasks[index].intent.sender
        turns[index] = seen[sender]
        seen[sender] += 1
    return sorted(indices, key=lambda index: turns[index])


def _not_signed(index: int) -> Abstention:
    return Abstention(index, "signature_required", "this policy judges intents signed by their sender only")


def _no_answer(index: int) -> Abstention:
    return Abstention(index, "unavailable", "the sender is a contract that did not say in time whether it signed")
