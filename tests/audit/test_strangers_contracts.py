"""Anybody may deploy a contract that says it is a client of somebody else's policy, and ask in the same batch (threats 14, 16)."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from eth_abi.grammar import TupleType, parse

from placet.core.abi_strict import NotCanonical, decode_strict
from placet.core.agreement import Component, agree
from placet.core.batch import quorum_of
from placet.core.bundle import PolicyBundle, check_bundle
from placet.core.errors import InvalidInput
from placet.core.evm import contracts
from placet.core.evm.reader import ChainReader, Deployment
from placet.core.evm.rpc import Block
from placet.core.types import ZERO_ADDRESS, GovernedCall, Hash32, OperatorSet, hex0x
from tests.audit import rig
from tests.audit.test_operators import operator as rig_of_operator


class _Node:
    """A node where one client answers `placetPins()` with 160 bytes of its own choice."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def block_by_hash(self, block_hash: Hash32) -> Block:
        return rig.BLOCK

    async def batch_settled(self, requests: list[tuple[str, list[Any]]]) -> list[Any]:
        return [self._result(method, params) for method, params in requests]

    def _result(self, method: str, params: list[Any]) -> Any:
        if method == "eth_getBlockByHash":
            return {"number": "0x64", "hash": hex0x(rig.BLOCK.hash), "parentHash": hex0x(rig.BLOCK.parent_hash), "timestamp": "0x0"}
        if params[0]["data"] == hex0x(contracts.PLACET_PINS):
            return hex0x(self._answer)
        return hex0x((1).to_bytes(32, "big"))


class _Reader(ChainReader):
    async def operator_set(self, epoch: int, block_hash: Hash32) -> OperatorSet:
        return rig.operator_set(rig.identities())


def _pins_answer(quorum_bps: int, ordering: int = 0) -> bytes:
    words = (int.from_bytes(rig.POLICY_ID, "big"), ordering, quorum_bps, 60, 600)
    return b"".join(word.to_bytes(32, "big") for word in words)


def _reader(answer: bytes) -> _Reader:
    return _Reader(cast(Any, _Node(answer)), Deployment(rig.CHAIN, rig.VALIDATOR, ZERO_ADDRESS, ZERO_ADDRESS, 0))


async def test_16_a_client_with_dirty_pins_has_none() -> None:
    state = await _reader(_pins_answer(1 << 200)).at(rig.BLOCK.hash, clients=[rig.CLIENT])
    assert state.pins == {}


@pytest.mark.parametrize("quorum_bps", [0, 10_001, 65_535])
async def test_14_pins_out_of_bounds_are_no_pins(quorum_bps: int) -> None:
    """The validator refuses such pins (PinsOutOfBounds); everybody else takes the largest of a batch as its threshold."""
    state = await _reader(_pins_answer(quorum_bps)).at(rig.BLOCK.hash, clients=[rig.CLIENT])
    assert state.pins == {}


def test_14_a_strangers_quorum_is_not_everybodys() -> None:
    """Three of four have seen both tasks, which is what the victim's client demands."""
    members = rig.identities()
    operators = rig.operator_set(members)
    context = rig.batch(rig.task(1), rig.task(2, client=rig.OTHER_CLIENT))
    pins = {rig.CLIENT: rig.pins(), rig.OTHER_CLIENT: rig.pins(10_000)}
    quorum_bps = quorum_of(context.batch, pins)
    assert quorum_bps is not None
    seen = {item.address: rig.observed(context) for item in members[:3]}
    result = agree(2, seen, [Component({}, fractions=False)], operators, quorum_bps)
    assert 0 in result.agreed


async def test_14_a_strangers_quorum_is_not_everybodys_without_data_either(tmp_path: Path) -> None:
    """An operator abstains from the stranger's task and vouches for the other."""
    async with rig_of_operator(tmp_path, {rig.CLIENT: rig.pins(), rig.OTHER_CLIENT: rig.pins(10_000)}) as operator:
        context = rig.batch(rig.task(1), rig.task(2, client=rig.OTHER_CLIENT))
        await operator.give(context)
        responses, observations = await operator.answers(context)
        assert not responses
        assert [(item.task, item.code) for item in observations[0].abstentions] == [(1, "wrong_quorum")]
        assert [item.task for item in observations[0].tasks] == [0]


def test_a_fixed_array_costs_no_more_than_its_data() -> None:
    """`f(string[4000000000])` is a governed call like any other; decoding one word of calldata for it takes 32 GB, outside any sandbox."""
    kinds = cast(TupleType, parse("(string[4000000])")).components
    tracemalloc.start()
    try:
        with pytest.raises(NotCanonical):
            decode_strict(kinds, (32).to_bytes(32, "big"))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_policy_may_not_govern_a_call_larger_than_any_intent() -> None:
    rules = rig.policy()
    huge = GovernedCall(True, ZERO_ADDRESS, "f(string[4000000000])")
    with pytest.raises(InvalidInput):
        check_bundle(PolicyBundle(replace(rules, calls=(huge,)), ()))


def test_the_reader_takes_proper_pins() -> None:
    """The stub above is not what fails."""
    assert contracts.decode_pins(_pins_answer(6667)).quorum_bps == 6667
