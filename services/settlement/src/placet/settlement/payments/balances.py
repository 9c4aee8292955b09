"""What a payer has, and lets Permit2 move: read at one block, and kept for a moment."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from placet.core.errors import InvalidInput, Unavailable
from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import RpcClient, RpcError, call_request
from placet.core.payment.eip712 import PERMIT2
from placet.core.types import Address

_CACHED = 10_000


@dataclass(frozen=True, slots=True)
class Balance:
    """Atomic units. `at`: unix seconds of the reading; what was settled later is not in it."""

    balance: int
    permit2_allowance: int
    at: int


class Balances:
    """Of the assets that are settled here."""

    def __init__(
        self,
        rpcs: Mapping[int, RpcClient],
        assets: Collection[tuple[int, Address]],
        *,
        keep_s: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rpcs = dict(rpcs)
        self._assets = frozenset(assets)
        self._keep_s = keep_s
        self._clock = clock
        self._kept: OrderedDict[tuple[int, Address, Address], tuple[float, Balance]] = OrderedDict()

    async def of(self, chain_id: int, asset: Address, payer: Address) -> Balance:
        """A payer's balance. Raises InvalidInput: an asset that is not settled here. Unavailable: the node cannot say."""
        if (chain_id, asset) not in self._assets:
            raise InvalidInput("the asset is not settled here", field="asset")
        key, now = (chain_id, asset, payer), self._clock()
        kept = self._kept.get(key)
        if kept is not None and now < kept[0] + self._keep_s:
            return kept[1]
        found = await self._read(chain_id, asset, payer, now)
        self._kept[key] = (now, found)
        self._kept.move_to_end(key)
        while len(self._kept) > _CACHED:
            self._kept.popitem(last=False)
        return found

    async def _read(self, chain_id: int, asset: Address, payer: Address, now: float) -> Balance:
        rpc = self._rpcs[chain_id]
        reads = (encode_call("balanceOf(address)", payer), encode_call("allowance(address,address)", payer, PERMIT2))
        try:
            block = await rpc.block("latest")
            answers = await rpc.batch([call_request(asset, data, block_hash=block.hash) for data in reads])
        except RpcError as error:
            raise Unavailable(f"the node cannot say what the payer has: {error.message}") from None
        if any(not isinstance(answer, str) or len(answer) != 66 for answer in answers):
            raise Unavailable("the asset answers no balance: is it a token?")
        balance, allowance = (int(answer, 16) for answer in answers)
        # The earlier of both clocks: counting what left twice refuses a payer for seconds, not counting it would lose money.
        return Balance(balance, allowance, min(int(now), block.timestamp))
