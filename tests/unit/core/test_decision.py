"""From a task to what Rego is asked, and to a leaf: pure, bound by the policy, the same for every operator."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from eth_abi import abi

from placet.core import limits
from placet.core.batch import BatchContext, quorum_of
from placet.core.calls import parse_signature
from placet.core.decision import (
    DeniedBeforeEvaluation,
    bound_arguments,
    component_failure,
    decide,
    decision_content,
    early_denial,
    failure_in,
    is_of_policy,
    max_decision_bytes,
    task_input,
)
from placet.core.digests import evidence_hash
from placet.core.types import (
    ZERO_ADDRESS,
    Address,
    ArgumentBinding,
    BindingSource,
    GovernedCall,
    Hash32,
    Intent,
    Ordering,
    Pins,
    Policy,
    RegoModule,
    Task,
    TaskBatch,
)

CLIENT = Address(b"\xcc" * 20)
WITHDRAW = "withdraw(uint256,address,address)"
RECEIVER = "0x" + "b0" * 20
ALICE = "0x" + "a1" * 20


def binding(name: str, source: BindingSource, value: str) -> ArgumentBinding:
    return ArgumentBinding(0, name, source, value)


def policy(*bindings: ArgumentBinding, params: bytes = b'{"url":"https://x"}') -> Policy:
    return Policy(
        (RegoModule("a.rego", b"package a"),),
        "data.a.decision",
        params,
        b"{}",
        (Hash32(bytes(32)),) if bindings else (),
        bindings,
        (GovernedCall(True, ZERO_ADDRESS, WITHDRAW),),
        Ordering.SENDER,
        60,
        0,
        b"",
        Hash32(bytes(32)),
        10**9,
        1 << 26,
    )


def context(*, args: bytes = b"", chain_id: int = 1, deadline: int = 2000, signature: str = WITHDRAW, **batch: Any) -> BatchContext:
    data = parse_signature(WITHDRAW).selector + abi.encode(["uint256", "address", "address"], [5, RECEIVER, ALICE])
    intent = Intent(Address(bytes.fromhex(ALICE[2:])), CLIENT, 0, data, chain_id, signature, 0, deadline)
    values: dict[str, Any] = {
        "chain_id": 1,
        "validator": Address(b"\3" * 20),
        "policy_id": Hash32(b"\4" * 32),
        "epoch": 1,
        "timestamp": 1000,
        "block_number": 7,
        "block_hash": Hash32(b"\5" * 32),
        "observe_for_ms": 100,
        "tasks": (Task(CLIENT, intent, Hash32(b"\6" * 32), args=args),),
    }
    return BatchContext.of(TaskBatch(**{**values, **batch}))


def test_03_what_is_screened_comes_from_the_intent_whatever_the_caller_sends() -> None:
    screened = policy(binding("address", BindingSource.INTENT, "/arguments/1"))
    caller = context(args=b'{"address":"0x' + b"11" * 20 + b'"}')
    source = task_input(caller, 0, screened, 0)
    assert json.loads(bound_arguments(screened, 0, source)) == {"address": RECEIVER}


def test_03_each_source_of_an_argument() -> None:
    all_kinds = policy(
        binding("a", BindingSource.CONST, '{"n":1}'),
        binding("b", BindingSource.PARAMS, "/url"),
        binding("c", BindingSource.INTENT, "/from"),
        binding("d", BindingSource.CALLER, "note"),
    )
    source = task_input(context(args=b'{"note":"hi"}'), 0, all_kinds, 0)
    assert json.loads(bound_arguments(all_kinds, 0, source)) == {"a": {"n": 1}, "b": "https://x", "c": ALICE, "d": "hi"}


@pytest.mark.parametrize(
    "missing",
    [
        binding("x", BindingSource.PARAMS, "/nothing"),
        binding("x", BindingSource.INTENT, "/arguments/9"),
        binding("x", BindingSource.CALLER, "nothing"),
    ],
)
def test_a_binding_to_nothing_denies(missing: ArgumentBinding) -> None:
    assert "bound to" in (early_denial(context(), 0, policy(missing)) or "")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"chain_id": 2}, "chain 2"),
        ({"deadline": 999}, "deadline"),
        ({"signature": "transfer(address,uint256)"}, "no function that the policy governs"),
        ({"args": b"[1]"}, "an object wanted"),
        ({"args": b'{"a":1.5}'}, "exact integer"),
        ({"args": b"{"}, "not JSON"),
    ],
)
def test_intents_that_the_policy_cannot_judge_are_denied_before_evaluation(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(DeniedBeforeEvaluation, match=told):
        task_input(context(**changes), 0, policy(), 0)
    assert told in (early_denial(context(**changes), 0, policy()) or "")


def test_rego_sees_the_decoded_intent_under_placets_and_newtons_names() -> None:
    seen = task_input(context(args=b'{"k":[1]}'), 0, policy(), 3)
    assert seen.input["arguments"] == ["5", RECEIVER, ALICE]
    assert seen.input["decoded_function_arguments"] == ["5", RECEIVER, ALICE]
    assert seen.input["chain_id"] == seen.input["chainId"] == 1
    assert seen.args == {"k": [1]}
    assert seen.task["sequence"] == 3
    assert seen.task["timestamp"] == 1000


def leaf_of(where: BatchContext, outputs: tuple[bytes, ...] = (), observations: tuple[bytes, ...] = ()) -> Any:
    content = decision_content(True, [], "true")
    return decide(where, 0, policy(), sequence=2, allow=True, decision=content, outputs=outputs, observations=observations)


def test_17_every_field_of_a_leaf_is_a_function_of_batch_proposal_and_policy() -> None:
    decided, record = leaf_of(context(), (b'{"p":1}',), (b"one", b"two"))
    again, _ = leaf_of(context(), (b'{"p":1}',), (b"two", b"one"))
    assert decided == again
    assert decided.leaf.expiration == 1060
    assert leaf_of(context(deadline=1010))[0].leaf.expiration == 1010
    assert decided.leaf.evidence == record.digest() == evidence_hash(record.part_hashes())
    assert leaf_of(context(), (b'{"p":2}',), (b"one", b"two"))[0].leaf.evidence != decided.leaf.evidence
    assert leaf_of(context(), (b'{"p":1}',), (b"one",))[0].leaf.evidence != decided.leaf.evidence


def test_a_component_failure_is_told_from_any_output_a_component_may_give() -> None:
    assert failure_in(component_failure("error", "no such token")) == "a component failed (error) no such token"
    assert failure_in(component_failure("trap", "wasmtime 50: unreachable at 0x12")) == "a component failed (trap)", "runtime texts differ"
    for output in (b"{}", b'{"message":"x"}', b'{"message":"placet:failed"}', b'{"message":"","placet:failed":"error","z":1}'):
        assert failure_in(output) is None


@pytest.mark.parametrize("rest", [b'"x":1e99999}', b'"message":"twice"}', b'"x":' + b"[" * 200, b'"x":' + b"9" * 99 + b"}", b""])
def test_16_an_output_that_only_looks_like_a_failure_spoils_no_batch(rest: bytes) -> None:
    assert failure_in(b'{"message":"placet:failed",' + rest) is None


def test_the_quorum_of_a_batch_is_that_of_its_first_task_whose_client_follows_the_policy() -> None:
    mine, other = Hash32(b"\1" * 32), Hash32(b"\2" * 32)

    def pins(policy_id: Hash32, bps: int) -> Pins:
        return Pins(policy_id, Ordering.FREE, bps, 1, 1)

    one = context().batch
    clients = [Address(bytes([number]) * 20) for number in range(1, 4)]
    batch = replace(one, policy_id=mine, tasks=tuple(replace(one.tasks[0], policy_client=client) for client in clients))
    first, second, third = clients
    assert quorum_of(batch, {third: pins(mine, 8000), second: pins(mine, 5000), first: pins(other, 9999)}) == 5000
    assert quorum_of(batch, {first: pins(other, 9999)}) is None
    assert quorum_of(batch, {}) is None


def test_the_share_of_a_decision_in_a_full_batch_is_kept_by_showing_digests() -> None:
    assert max_decision_bytes(1) == limits.MAX_DECISION_BYTES
    assert 256 * max_decision_bytes(256) <= limits.MAX_DECISIONS_BYTES
    value, reasons = json.dumps({"allow": True, "note": "n" * 2000}), ["r" * 500] * 3
    whole = json.loads(decision_content(True, reasons, value))
    assert (whole["value"], whole["reasons"]) == (value, reasons)
    without_value = json.loads(decision_content(True, reasons, value, max_bytes=1800))
    assert without_value == {
        "allow": True,
        "reasons": reasons,
        "value": None,
        "valueSha256": "0x" + hashlib.sha256(value.encode()).hexdigest(),
    }
    digests = decision_content(True, reasons, value, max_bytes=max_decision_bytes(256))
    assert len(digests) < max_decision_bytes(256)
    assert json.loads(digests)["allow"] is True
    assert json.loads(digests)["reasons"] == []
    for content in (decision_content(True, reasons, value), decision_content(True, reasons, value, max_bytes=1000)):
        assert is_of_policy(content)
    assert not is_of_policy(decision_content(False, ["the intent's deadline has passed"], None))
