"""Reads of contracts that anybody may have written, next to others': what one of them does with its call takes nothing from the rest.

Each call has a bound on gas (`limits.MAX_CLIENT_READ_GAS`), so its time and the size of its answer are bounded too. Calls travel a few in
one request. A request that fails while the node is well is made again one call at a time, and a call that fails alone is unread.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from placet.core import limits
from placet.core.errors import Unavailable
from placet.core.evm.rpc import RpcClient, RpcError, call_request
from placet.core.types import Address, Hash32

log = logging.getLogger(__name__)

_CALLS_A_REQUEST = 12
"""Memory is priced quadratically: the gas of a read pays for answers of some 280 KB (560 KB of hex). So many fit what is read of one
answer. Revert reasons are sent as text as well, escaped, and may be larger: then it is one call a request."""
_REQUESTS_AT_ONCE = 4
_ALONE_WITHIN_S = 2.0


async def read_strangers(rpc: RpcClient, contracts: Sequence[Address], data: bytes, block_hash: Hash32) -> list[str | RpcError | None]:
    """The same read at each of some contracts, at one block: the answer in hex, the error the node ended it with, or None: the node
    could not be brought to answer this one, and answers others.

    Raises:
        Unavailable: no node answers, also not when it is asked for something of its own.
    """
    requests = [call_request(contract, data, block_hash=block_hash, gas=limits.MAX_CLIENT_READ_GAS) for contract in contracts]
    parts = [requests[at : at + _CALLS_A_REQUEST] for at in range(0, len(requests), _CALLS_A_REQUEST)]
    room = asyncio.Semaphore(_REQUESTS_AT_ONCE)
    answers = await _all(room, [functools.partial(_together, rpc, part) for part in parts])
    alone = [at for at, found in enumerate(answers) if found is None]
    if alone:
        await rpc.call("eth_chainId", [])  # raises Unavailable when it was not the calls
    for at in alone:
        answers[at] = await _all(room, [functools.partial(_alone, rpc, request) for request in parts[at]])
    return list(itertools.chain.from_iterable(answers))


async def _all(room: asyncio.Semaphore, asked: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    async def one(ask: Callable[[], Awaitable[Any]]) -> Any:
        async with room:
            return await ask()

    return list(await asyncio.gather(*(one(ask) for ask in asked)))


async def _together(rpc: RpcClient, requests: Sequence[tuple[str, list[Any]]]) -> list[str | RpcError] | None:
    """Answers of one request, or None when there is none as a whole."""
    try:
        return await rpc.batch_settled(requests)
    except Unavailable:
        return None


async def _alone(rpc: RpcClient, request: tuple[str, list[Any]]) -> str | RpcError | None:
    try:
        async with asyncio.timeout(_ALONE_WITHIN_S):
            (answer,) = await rpc.batch_settled([request])
    except (Unavailable, TimeoutError) as error:
        log.warning("contract %s cannot be read: %s", request[1][0]["to"], str(error) or "no answer in time")
        return None
    found: str | RpcError = answer
    return found
