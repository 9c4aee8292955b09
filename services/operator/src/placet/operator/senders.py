"""Which intents of a batch their senders did not sign. Keys are checked here; contract wallets (EIP-1271) are strangers' code on our own
node, so they are asked together, within gas and time, and one that is slow costs its own task only.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from placet.core.batch import BatchContext
from placet.core.ecdsa import recover
from placet.core.errors import Unavailable
from placet.core.evm.rpc import RpcClient
from placet.core.messages import Abstention
from placet.core.senders import is_signed_by
from placet.core.types import Address

_AT_ONCE = 32
_ONE_S = 1.0
_ALL_S = 2.0


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
    places = asyncio.Semaphore(_AT_ONCE)

    async def ask(index: int) -> Abstention | None:
        task = context.batch.tasks[index]
        digest, block = context.intent_hashes[index], context.batch.block_hash
        async with places:
            try:
                async with asyncio.timeout(_ONE_S):
                    signed = await is_signed_by(rpc, task.intent.sender, digest, task.signature, block_hash=block)
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
