"""The wire: what is encoded decodes to the same, and nothing malformed becomes a domain type."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placet.core import limits, wire
from placet.core.errors import InvalidInput, TooLarge
from placet.core.gen import authorization_pb2 as pb
from placet.core.messages import (
    Abstention,
    AttestationGroup,
    DecidedTask,
    GroupFailure,
    GroupResponse,
    Observation,
    OperatorReason,
    Proposal,
    RelayedTask,
    Response,
    SettlementEvent,
    TaskFailure,
    TaskObservation,
    bitmap_of,
    positions_of,
)
from placet.core.types import Address, Attachment, Certificate, Hash32, Intent, Leaf, Task, TaskBatch

HASH = st.binary(min_size=32, max_size=32).map(Hash32)
ADDRESS = st.binary(min_size=20, max_size=20).map(Address)
U64 = st.integers(0, 2**64 - 1)
U256 = st.integers(0, 2**256 - 1)
INTENT = st.builds(
    Intent,
    sender=ADDRESS,
    to=ADDRESS,
    value=U256,
    data=st.binary(max_size=64),
    chain_id=U64,
    function_signature=st.text(max_size=50),
    nonce=U256,
    deadline=U64,
)
TASK = st.builds(
    Task,
    policy_client=ADDRESS,
    intent=INTENT,
    salt=HASH,
    signature=st.binary(max_size=65),
    args=st.binary(max_size=30),
    attachments=st.lists(st.builds(Attachment, kind=st.text(max_size=10), sha256=HASH, uri=st.text(max_size=10)), max_size=3).map(tuple),
)
BATCH = st.builds(
    TaskBatch,
    chain_id=U64,
    validator=ADDRESS,
    policy_id=HASH,
    epoch=U64,
    timestamp=U64,
    block_number=U64,
    block_hash=HASH,
    observe_for_ms=st.integers(0, limits.MAX_OBSERVE_FOR_MS),
    tasks=st.lists(TASK, min_size=1, max_size=4).map(tuple),
)
LEAF = st.builds(
    Leaf,
    task_id=HASH,
    policy_client=ADDRESS,
    policy_id=HASH,
    intent_hash=HASH,
    sequence=U64,
    allow=st.booleans(),
    output=HASH,
    evidence=HASH,
    expiration=U64,
)


def decided(task: int) -> st.SearchStrategy[DecidedTask]:
    parts = st.tuples(*[HASH] * 6)
    return st.builds(DecidedTask, task=st.just(task), leaf=LEAF, evidence_parts=parts, decision=st.binary(max_size=20))


ADDRESS_OF_ZEROS = Address(bytes(20))
PAYER = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=limits.MAX_PAYER_BYTES)


@given(BATCH, st.dictionaries(st.integers(0, 3), PAYER))
def test_batches(batch: TaskBatch, relays: dict[int, str]) -> None:
    relays = {index: payer for index, payer in relays.items() if index < len(batch.tasks)}
    assert wire.decode_batch(wire.encode_batch(batch, relays)) == (batch, relays)


@pytest.mark.parametrize("payer", ["", "m" * (limits.MAX_PAYER_BYTES + 1), "a\0b", "a b", "a\nb", "é"])
def test_28_a_payer_that_no_column_or_log_line_should_hold_is_refused(payer: str) -> None:
    task = Task(ADDRESS_OF_ZEROS, Intent(ADDRESS_OF_ZEROS, ADDRESS_OF_ZEROS, 0, b"", 1, "()", 0, 1), Hash32(bytes(32)))
    batch = TaskBatch(1, ADDRESS_OF_ZEROS, Hash32(bytes(32)), 1, 1, 1, Hash32(bytes(32)), 0, (task,))
    leaf = Leaf(Hash32(bytes(32)), ADDRESS_OF_ZEROS, Hash32(bytes(32)), Hash32(bytes(32)), 0, True, Hash32(bytes(32)), Hash32(bytes(32)), 1)
    item = DecidedTask(0, leaf, (Hash32(bytes(32)),) * 6, b"")
    certificate = Certificate(Hash32(bytes(32)), 1, 1, 1)
    group = AttestationGroup(1, ADDRESS_OF_ZEROS, certificate, (item,), b"\1", bytes(96), (RelayedTask(0, task.intent, b"", payer),))
    with pytest.raises(InvalidInput):
        wire.decode_batch(wire.encode_batch(batch, {0: payer}))
    with pytest.raises(InvalidInput):
        wire.decode_attestation_group(wire.encode_attestation_group(group))


@given(st.data())
def test_observations(data: st.DataObject) -> None:
    outputs = data.draw(st.lists(st.binary(max_size=20), max_size=3))
    observation = Observation(
        (TaskObservation(1, tuple(outputs), tuple(Hash32(bytes(32)) for _ in outputs)),), (Abstention(0, "code", "why"),), "runtime"
    )
    assert wire.decode_observation(wire.encode_observation(observation), 2) == observation
    blob = Observation((), (), "runtime", Hash32(b"\1" * 32))
    assert wire.decode_observation(wire.encode_observation(blob), 2) == blob


@given(decided(0), decided(2))
def test_responses_and_groups(first: DecidedTask, second: DecidedTask) -> None:
    response = Response((GroupResponse((first, second), b"\1" * 96),), (Abstention(1, "c", "m"),), "r")
    assert wire.decode_response(wire.encode_response(response), 3) == response
    intent = Intent(Address(bytes(20)), Address(bytes(20)), 0, b"", 1, "()", 0, 1)
    group = AttestationGroup(
        1,
        Address(b"\2" * 20),
        Certificate(Hash32(b"\3" * 32), 2, 1, 9),
        (first, second),
        b"\5",
        b"\4" * 96,
        (RelayedTask(2, intent, b"sig", "payer"),),
    )
    assert wire.decode_attestation_group(wire.encode_attestation_group(group)) == group


def test_failures_proposals_and_settlements() -> None:
    reasons = (OperatorReason(Address(b"\1" * 20), "code", "message"),)
    failure = GroupFailure((TaskFailure(3, Hash32(b"\2" * 32), "no_quorum", "why", True, reasons),))
    assert wire.decode_group_failure(wire.encode_group_failure(failure)) == failure
    assert wire.decode_proposal(wire.encode_proposal(Proposal((b"a", b"b")))) == Proposal((b"a", b"b"))
    for status in ("submitted", "confirmed", "reverted", "refused"):
        event = SettlementEvent(b"r", status, b"h", 1, 2, "e")
        assert wire.decode_settlement_event(wire.encode_settlement_event(event)) == event


DECODERS = [
    wire.decode_batch,
    lambda raw: wire.decode_observation(raw, 4),
    wire.decode_proposal,
    lambda raw: wire.decode_response(raw, 4),
    wire.decode_attestation_group,
    wire.decode_group_failure,
    wire.decode_admission,
    wire.decode_policy_announcement,
    wire.decode_settlement_event,
]


@given(st.binary(max_size=300), st.sampled_from(DECODERS))
def test_any_bytes_are_taken_or_refused_with_a_typed_error(raw: bytes, decode: Any) -> None:
    try:
        decode(raw)
    except InvalidInput as error:
        assert error.field


def response_with(*tasks: int, signature: bytes = b"\1" * 96) -> bytes:
    hashes = {"task_id": bytes(32), "policy_id": bytes(32), "intent_hash": bytes(32), "output": bytes(32), "evidence": bytes(32)}
    leaf = pb.Leaf(policy_client=bytes(20), **hashes)  # type: ignore[arg-type]
    items = [pb.DecidedTask(task=task, leaf=leaf, evidence_parts=[bytes(32)] * 6, decision=b"{}") for task in tasks]
    return pb.Response(groups=[pb.GroupResponse(decided=items, bls_signature=signature)]).SerializeToString()


@pytest.mark.parametrize(
    "raw",
    [
        response_with(1, 0),
        response_with(0, 0),
        response_with(4),
        response_with(),
        response_with(0, signature=b"\1" * 95),
        pb.Response(groups=[pb.GroupResponse()] * 17).SerializeToString(),
        response_with(0) + response_with(0),
    ],
)
def test_task_lists_ascend_stay_in_range_and_never_repeat(raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        wire.decode_response(raw, 4)


def test_observations_with_a_task_both_seen_and_abstained_from_are_refused() -> None:
    raw = pb.Observation(tasks=[pb.TaskObservation(task=0)], abstentions=[pb.Abstention(task=0)]).SerializeToString()
    with pytest.raises(InvalidInput, match="both observed and abstained"):
        wire.decode_observation(raw, 1)


def test_limits_of_a_batch() -> None:
    with pytest.raises(InvalidInput, match="empty"):
        wire.decode_batch(pb.TaskBatch(validator=bytes(20), policy_id=bytes(32), block_hash=bytes(32)).SerializeToString())
    with pytest.raises(TooLarge, match="at most 256"):
        wire.decode_batch(pb.TaskBatch(tasks=[pb.Task()] * 257).SerializeToString())
    with pytest.raises(TooLarge):
        wire.decode_batch(bytes(limits.MAX_BATCH_BYTES + 5000))


@given(st.integers(0, 2**256 - 1))
def test_big_integers(value: int) -> None:
    assert wire.uint_from_bytes(wire.uint_to_bytes(value), "x") == value


@pytest.mark.parametrize("raw", [b"\0", b"\0\1", b"\1" * 33])
def test_integers_have_one_encoding(raw: bytes) -> None:
    with pytest.raises(InvalidInput, match="minimal"):
        wire.uint_from_bytes(raw, "x")


@given(st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)))))
def test_bitmaps(case: tuple[int, set[int]]) -> None:
    size, positions = case
    assert positions_of(bitmap_of(positions, size), size) == sorted(positions)
    assert positions_of(bitmap_of(positions, size) + b"\0", size) is None
    if size % 8:
        assert positions_of(bytes((size + 7) // 8 - 1) + b"\x80", size) is None
