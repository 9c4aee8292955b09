"""State of Placet's contracts at one block, read in one round trip. What operators, aggregator and gateway base a batch on."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from placet.core.errors import Unavailable, VerificationFailed
from placet.core.evm import contracts
from placet.core.evm.rpc import Block, RpcClient, RpcError, block_of, call_request
from placet.core.evm.strangers import read_strangers
from placet.core.keccak import keccak256
from placet.core.types import Address, Hash32, OperatorSet, Ordering, Pins, hex0x

_CACHED_SETS = 64
_CACHED_BLOCKS = 256
_PINS_DIGITS = 2 + 2 * 160


@dataclass(frozen=True, slots=True)
class Deployment:
    """Placet's contracts on one chain; from deployments/<chainId>.json, the only source of addresses."""

    chain_id: int
    validator: Address
    operator_registry: Address
    policy_registry: Address
    block_number: int


@dataclass(frozen=True, slots=True)
class BlockState:
    """What the contracts said at a block. A client that is none, or reverts, has no pins; nor has one that is `unread`: no answer could be
    had from it within its share of time and size, while the node answered others."""

    block: Block
    epoch: int
    min_epoch: int
    operators: OperatorSet
    pins: Mapping[Address, Pins]
    sequences: Mapping[tuple[Address, Address], int]
    unread: frozenset[Address] = field(default=frozenset())


class ChainReader:
    """Reads one chain. Results are functions of the block hash, so every operator with a sane node gets the same."""

    def __init__(self, rpc: RpcClient, deployment: Deployment) -> None:
        self.rpc = rpc
        self.deployment = deployment
        self._sets: OrderedDict[bytes, OperatorSet] = OrderedDict()
        self._bases: OrderedDict[Hash32, tuple[Block, int, int, OperatorSet]] = OrderedDict()

    async def latest_block(self, back: int = 0) -> Block:
        """The newest block, or the one `back` before it (as a reference it is less likely to be reorganised away)."""
        newest = await self.rpc.block("latest")
        return newest if back == 0 or newest.number == 0 else await self.rpc.block(max(0, newest.number - back))

    async def at(
        self,
        block_hash: Hash32,
        *,
        clients: Iterable[Address] = (),
        sequences: Iterable[tuple[Address, Address]] = (),
        ordering: Ordering = Ordering.FREE,
    ) -> BlockState:
        """Epoch, operator set, pins of `clients`, and the counters of (client, sender) pairs, all at one block.

        Raises:
            Unavailable: no node answers, or none knows the block.
            VerificationFailed: the registry's answers do not hold together.
        """
        block, epoch, min_epoch, operators = await self._base(block_hash)
        clients, pairs = list(dict.fromkeys(clients)), list(dict.fromkeys(sequences))
        pins: dict[Address, Pins] = {}
        answers = await read_strangers(self.rpc, clients, contracts.PLACET_PINS, block_hash)
        for client, answer in zip(clients, answers, strict=True):
            if isinstance(answer, str) and len(answer) <= _PINS_DIGITS:
                try:
                    pins[client] = contracts.decode_pins(_must(answer))
                except (VerificationFailed, ValueError):
                    continue
        unread = frozenset(client for client, answer in zip(clients, answers, strict=True) if answer is None)
        counters = dict.fromkeys(pairs, 0) if ordering is Ordering.FREE else await self._counters(pairs, ordering, block_hash)
        return BlockState(block, epoch, min_epoch, operators, pins, counters, unread)

    async def _counters(
        self, pairs: Sequence[tuple[Address, Address]], ordering: Ordering, block_hash: Hash32
    ) -> dict[tuple[Address, Address], int]:
        """Counters of (client, sender) pairs; the validator's own, so they are read together."""
        validator = self.deployment.validator
        calls = [contracts.sequence_of_call(client, sender, ordering) for client, sender in pairs]
        answers = await self.rpc.batch_settled([call_request(validator, call, block_hash=block_hash) for call in calls])
        return {pair: contracts.decode_uint(_must(answer)) for pair, answer in zip(pairs, answers, strict=True)}

    async def _base(self, block_hash: Hash32) -> tuple[Block, int, int, OperatorSet]:
        """What does not depend on clients, kept by the block's hash: it can never change."""
        found = self._bases.get(block_hash)
        if found is not None:
            self._bases.move_to_end(block_hash)
            return found
        registry = self.deployment.operator_registry
        answers = await self.rpc.batch_settled(
            [
                ("eth_getBlockByHash", [hex0x(block_hash), False]),
                call_request(registry, contracts.CURRENT_EPOCH, block_hash=block_hash),
                call_request(registry, contracts.selector("minEpoch()"), block_hash=block_hash),
            ]
        )
        if isinstance(answers[0], RpcError) or answers[0] is None:
            raise Unavailable("the node does not know the reference block", field="blockHash")
        epoch, min_epoch = (contracts.decode_uint(_must(answer)) for answer in answers[1:])
        found = (block_of(answers[0]), epoch, min_epoch, await self.operator_set(epoch, block_hash))
        self._bases[block_hash] = found
        while len(self._bases) > _CACHED_BLOCKS:
            self._bases.popitem(last=False)
        return found

    async def operator_set(self, epoch: int, block_hash: Hash32) -> OperatorSet:
        """The operators of an epoch. Cached by the commitment the registry keeps for it, so a reorg cannot leave a wrong set behind."""
        registry = self.deployment.operator_registry
        commitment = await self.rpc.eth_call(registry, contracts.encode_call("setAt(uint64)", epoch), block_hash=block_hash)
        key = keccak256(epoch.to_bytes(8, "big") + commitment[:160])
        found = self._sets.get(key)
        if found is None:
            answer = await self.rpc.eth_call(registry, contracts.operators_at_call(epoch), block_hash=block_hash)
            found = await asyncio.to_thread(contracts.decode_operators, answer, commitment, epoch)
            self._sets[key] = found
            while len(self._sets) > _CACHED_SETS:
                self._sets.popitem(last=False)
        return found


def _must(answer: object) -> bytes:
    """An eth_call's bytes; what the registry itself must answer.

    Raises:
        VerificationFailed: the contract reverted, or its answer is no data.
        Unavailable: the node speaks of itself (behind, overloaded): another time it may answer.
    """
    if isinstance(answer, RpcError):
        if not answer.is_of_the_call:
            raise Unavailable(f"the node cannot say: {answer.message}")
        raise VerificationFailed(f"a contract of the deployment reverts: {answer.message}", field="chain")
    if not isinstance(answer, str):
        raise VerificationFailed("the node answered an eth_call without data", field="chain")
    return bytes.fromhex(answer.removeprefix("0x"))
