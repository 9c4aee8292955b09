"""Every digest against the golden vectors that Solidity is tested with too (computed with ethers), and intents against eth-account."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from placet.core import digests
from placet.core.keccak import keccak256
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.types import (
    ArgumentBinding,
    Attachment,
    BindingSource,
    Certificate,
    GovernedCall,
    Intent,
    Leaf,
    Ordering,
    Policy,
    RegoModule,
    Task,
    TaskBatch,
    address_from,
    hash_from,
)
from placet.gateway.intents import typed_data

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[3] / "contracts" / "test" / "vectors" / "digests.json").read_text()
)


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def intent_of(item: dict[str, Any]) -> Intent:
    return Intent(
        address_from(item["from"]),
        address_from(item["to"]),
        int(item["value"]),
        unhex(item["data"]),
        int(item["chainId"]),
        item["functionSignature"],
        int(item["nonce"]),
        int(item["deadline"]),
    )


@pytest.mark.parametrize("item", VECTORS["intent"])
def test_intent_hash_equals_the_golden_vector(item: dict[str, Any]) -> None:
    assert digests.intent_hash(intent_of(item), address_from(item["client"])) == unhex(item["digest"])


@pytest.mark.parametrize("item", VECTORS["leaf"])
def test_leaf_hashes_equal_the_golden_vector(item: dict[str, Any]) -> None:
    leaf = Leaf(
        hash_from(item["taskId"]),
        address_from(item["policyClient"]),
        hash_from(item["policyId"]),
        hash_from(item["intentHash"]),
        int(item["sequence"]),
        item["allow"],
        hash_from(item["output"]),
        hash_from(item["evidence"]),
        int(item["expiration"]),
    )
    assert digests.leaf_struct_hash(leaf) == unhex(item["structHash"])
    assert leaf_hash(digests.leaf_struct_hash(leaf)) == unhex(item["leafHash"])


@pytest.mark.parametrize("item", VECTORS["certificate"])
def test_certificate_digest_equals_the_golden_vector(item: dict[str, Any]) -> None:
    certificate = Certificate(hash_from(item["root"]), int(item["count"]), int(item["epoch"]), int(item["timestamp"]))
    assert digests.certificate_digest(certificate, int(item["chainId"]), address_from(item["validator"])) == unhex(item["digest"])


@pytest.mark.parametrize("item", VECTORS["task"])
def test_task_id_equals_the_golden_vector(item: dict[str, Any]) -> None:
    found = digests.task_id(
        chain_id=int(item["chainId"]),
        validator=address_from(item["validator"]),
        policy_client=address_from(item["policyClient"]),
        policy_id=hash_from(item["policyId"]),
        intent_hash=hash_from(item["intentHash"]),
        args_hash=hash_from(item["argsHash"]),
        timestamp=int(item["timestamp"]),
    )
    assert found == unhex(item["taskId"])


@pytest.mark.parametrize("item", VECTORS["registerKey"])
def test_registration_digest_equals_the_golden_vector(item: dict[str, Any]) -> None:
    found = digests.register_key_digest(
        address_from(item["operator"]),
        hash_from(item["keyId"]),
        unhex(item["busKey"]),
        int(item["chainId"]),
        address_from(item["registry"]),
    )
    assert found == unhex(item["digest"])


@pytest.mark.parametrize("item", VECTORS["merkle"])
def test_merkle_roots_and_proofs_equal_the_golden_vector(item: dict[str, Any]) -> None:
    root, proofs = root_and_proofs([unhex(leaf) for leaf in item["leaves"]])
    assert root == unhex(item["root"])
    assert proofs == [[unhex(sibling) for sibling in proof] for proof in item["proofs"]]


@pytest.mark.parametrize("item", VECTORS["policy"])
def test_policy_id_from_hashed_members_equals_the_golden_vector(item: dict[str, Any]) -> None:
    members = b""
    for name in digests.policy_preimage(policy()):
        name = name.removesuffix("Hash")
        value = item[name]
        members += unhex(value) if str(value).startswith("0x") else int(value).to_bytes(32, "big")
    assert keccak256(keccak256(digests.POLICY_TYPE.encode()) + members) == unhex(item["policyId"])


ADDRESSES = st.binary(min_size=20, max_size=20).map(address_from)
INTENTS = st.builds(
    Intent,
    sender=ADDRESSES,
    to=ADDRESSES,
    value=st.integers(0, 2**256 - 1),
    data=st.binary(max_size=100),
    chain_id=st.integers(1, 2**53),
    function_signature=st.text(max_size=40),
    nonce=st.integers(0, 2**256 - 1),
    deadline=st.integers(0, 2**64 - 1),
)


@given(INTENTS, ADDRESSES)
def test_intent_hash_equals_eth_accounts_for_any_intent(intent: Intent, client: Any) -> None:
    message = encode_typed_data(full_message=typed_data(intent, client))
    theirs = keccak256(b"\x19" + message.version + message.header + message.body)
    assert digests.intent_hash(intent, client) == theirs


def hash_of(text: str) -> Any:
    return hash_from(keccak256(text.encode()))


def policy(**changes: Any) -> Policy:
    values: dict[str, Any] = {
        "modules": (RegoModule("a.rego", b"package a"), RegoModule("b.rego", b"package b")),
        "entrypoint": "data.a.decision",
        "params": b"{}",
        "schema": b"{}",
        "policy_data_ids": (hash_of("one"), hash_of("two")),
        "bindings": (ArgumentBinding(0, "address", BindingSource.INTENT, "/to"),),
        "calls": (GovernedCall(True, address_from(bytes(20)), "f(uint256)"),),
        "ordering": Ordering.SENDER,
        "valid_for": 60,
        "retry_after": 5,
        "inference": b"",
        "engine_sha256": hash_of("engine"),
        "rego_fuel": 10**9,
        "rego_memory": 1 << 26,
    }
    return Policy(**{**values, **changes})


def test_policy_id_equals_eth_accounts_struct_hash() -> None:
    fields = {
        "ArgumentBinding": [("policyData", "uint32"), ("name", "string"), ("source", "uint8"), ("value", "string")],
        "GovernedCall": [("self", "bool"), ("target", "address"), ("signature", "string"), ("unpack", "string")],
        "RegoModule": [("name", "string"), ("source", "bytes")],
        "Policy": [
            ("modules", "RegoModule[]"),
            ("entrypoint", "string"),
            ("params", "bytes"),
            ("schema", "bytes"),
            ("policyDataIds", "bytes32[]"),
            ("bindings", "ArgumentBinding[]"),
            ("calls", "GovernedCall[]"),
            ("ordering", "uint8"),
            ("validFor", "uint64"),
            ("retryAfter", "uint64"),
            ("inference", "bytes"),
            ("engineSha256", "bytes32"),
            ("regoFuel", "uint64"),
            ("regoMemory", "uint64"),
        ],
    }
    types = {name: [{"name": member, "type": kind} for member, kind in members] for name, members in fields.items()}
    item = policy()
    message = {
        "modules": [{"name": m.name, "source": m.source} for m in item.modules],
        "entrypoint": item.entrypoint,
        "params": item.params,
        "schema": item.schema,
        "policyDataIds": list(item.policy_data_ids),
        "bindings": [{"policyData": b.policy_data, "name": b.name, "source": int(b.source), "value": b.value} for b in item.bindings],
        "calls": [{"self": c.to_self, "target": "0x" + c.target.hex(), "signature": c.signature, "unpack": c.unpack} for c in item.calls],
        "ordering": int(item.ordering),
        "validFor": item.valid_for,
        "retryAfter": item.retry_after,
        "inference": item.inference,
        "engineSha256": item.engine_sha256,
        "regoFuel": item.rego_fuel,
        "regoMemory": item.rego_memory,
    }
    signable = encode_typed_data(domain_data={"name": "x"}, message_types=types, message_data=message)
    assert signable.body == digests.policy_id(item)


@pytest.mark.parametrize(
    "changes",
    [
        {"modules": (RegoModule("a.rego", b"package a"), RegoModule("b.rego", b"package c"))},
        {"modules": (RegoModule("a.rego", b"package a"), RegoModule("c.rego", b"package b"))},
        {"entrypoint": "data.a.other"},
        {"params": b"{ }"},
        {"schema": b"{ }"},
        {"policy_data_ids": (hash_of("two"), hash_of("one"))},
        {"bindings": (ArgumentBinding(0, "address", BindingSource.CALLER, "/to"),)},
        {"calls": (GovernedCall(False, address_from(bytes(20)), "f(uint256)"),)},
        {"calls": (GovernedCall(True, address_from(bytes(20)), "f(uint256)", "[]"),)},
        {"ordering": Ordering.FREE},
        {"valid_for": 61},
        {"retry_after": 6},
        {"inference": b"x"},
        {"engine_sha256": hash_of("other engine")},
        {"rego_fuel": 10**9 + 1},
        {"rego_memory": 1 << 27},
    ],
)
def test_13_nothing_that_decides_an_outcome_is_outside_the_policy_id(changes: dict[str, Any]) -> None:
    assert digests.policy_id(policy(**changes)) != digests.policy_id(policy())


def test_13_a_laxer_manifest_is_another_policy_data() -> None:
    assert digests.policy_data_id(b"component", b'{"rule":"median"}') != digests.policy_data_id(b"component", b'{"rule":"max"}')


def batch(**changes: Any) -> TaskBatch:
    intent = Intent(address_from(b"\1" * 20), address_from(b"\2" * 20), 0, b"", 1, "()", 0, 100)
    values: dict[str, Any] = {
        "chain_id": 1,
        "validator": address_from(b"\3" * 20),
        "policy_id": hash_of("policy"),
        "epoch": 1,
        "timestamp": 50,
        "block_number": 7,
        "block_hash": hash_of("block"),
        "observe_for_ms": 100,
        "tasks": (Task(address_from(b"\4" * 20), intent, hash_of("salt")),),
    }
    return TaskBatch(**{**values, **changes})


def batch_id(item: TaskBatch) -> bytes:
    return digests.batch_id(item, [digests.task_id_in(item, task) for task in item.tasks])


@pytest.mark.parametrize(
    "changes",
    [
        {"chain_id": 2},
        {"validator": address_from(b"\5" * 20)},
        {"policy_id": hash_of("other")},
        {"epoch": 2},
        {"timestamp": 51},
        {"block_number": 8},
        {"block_hash": hash_of("other")},
        {"observe_for_ms": 101},
        {"tasks": (Task(address_from(b"\4" * 20), batch().tasks[0].intent, hash_of("other salt")),)},
        {"tasks": (Task(address_from(b"\4" * 20), batch().tasks[0].intent, hash_of("salt"), signature=b"x"),)},
        {"tasks": batch().tasks * 2},
    ],
)
def test_14_a_batch_id_binds_chain_validator_policy_epoch_and_every_task(changes: dict[str, Any]) -> None:
    assert batch_id(batch(**changes)) != batch_id(batch())


def test_11_a_later_attempt_is_another_task() -> None:
    first, later = batch(), batch(timestamp=51)
    assert digests.task_id_in(first, first.tasks[0]) != digests.task_id_in(later, later.tasks[0])


def test_11_attachments_and_arguments_are_part_of_the_task() -> None:
    plain = digests.args_hash(b"{}")
    assert digests.args_hash(b'{"a":1}') != plain
    assert digests.args_hash(b"{}", [Attachment("receipt", hash_of("r"), "")]) != plain


def test_05_one_signed_intent_is_good_for_one_client_and_one_chain() -> None:
    intent = batch().tasks[0].intent
    here = digests.intent_hash(intent, address_from(b"\4" * 20))
    assert digests.intent_hash(intent, address_from(b"\6" * 20)) != here
    other = Intent(intent.sender, intent.to, intent.value, intent.data, 2, intent.function_signature, intent.nonce, intent.deadline)
    assert digests.intent_hash(other, address_from(b"\4" * 20)) != here
