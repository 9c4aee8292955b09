"""What the aggregator makes of answers: pure, with times as arguments."""

from __future__ import annotations

import pytest

from placet.aggregator.collection import Collection, check_decided, verify_signature
from placet.core import bls
from placet.core.batch import BatchContext
from placet.core.digests import certificate_digest
from placet.core.errors import VerificationFailed
from placet.core.messages import Abstention, DecidedTask, Observation, TaskObservation, positions_of
from placet.core.types import ZERO_HASH
from placet.verify import verify_group
from tests.support.authorization import CHAIN_ID, VALIDATOR, Member, World, other_leaf


def collection(world: World, context: BatchContext) -> Collection:
    return Collection(context, world.operators, 6667)


def vote(world: World, of: Collection, member: Member, decided: list[DecidedTask]) -> None:
    certificate = check_decided(of.context, decided)
    signature = bls.sign(member.bls_secret, certificate_digest(certificate, CHAIN_ID, VALIDATOR))
    assert verify_signature(of.context, of.operators, member.address, certificate, signature)
    of.ballot_for(tuple(decided), certificate).signatures[member.address] = signature


def test_quorum_is_reached_by_stake_and_waits_a_moment_for_stragglers() -> None:
    world = World()
    context = world.batch(3)
    of = collection(world, context)
    decided = world.decided(context)
    for member in world.members[:2]:
        vote(world, of, member, decided)
    assert of.ready(10.0, 0.5) == []
    vote(world, of, world.members[2], decided)
    assert of.ready(11.0, 0.5) == [], "the fourth may still come"
    assert of.ready(11.4, 0.5) == []
    (ballot,) = of.ready(11.5, 0.5)
    group = of.group_of(ballot)
    assert positions_of(group.signers, 4) == [0, 1, 2]
    verify_group(group, operators=world.operators, chain_id=CHAIN_ID, validator=VALIDATOR, quorum_bps=6667)


def test_with_everybody_there_nobody_is_waited_for() -> None:
    world = World()
    context = world.batch()
    of = collection(world, context)
    for member in world.members:
        vote(world, of, member, world.decided(context))
    assert len(of.ready(10.0, 99.0)) == 1


def test_two_different_roots_never_add_up() -> None:
    world = World()
    context = world.batch(2)
    of = collection(world, context)
    decided = world.decided(context)
    other = [other_leaf(decided[0]), decided[1]]
    for member in world.members[:2]:
        vote(world, of, member, decided)
    for member in world.members[2:]:
        vote(world, of, member, other)
    assert of.ready(99.0, 0.0) == []
    failure = of.failure_of(0, "no_quorum", "…")
    assert [reason.code for reason in failure.reasons] == ["signed"] * 4
    assert len({reason.message for reason in failure.reasons}) == 2


def test_a_batch_whose_quorum_is_everybody_needs_everybody() -> None:
    world = World()
    context = world.batch()
    of = Collection(context, world.operators, 10_000)
    for member in world.members[:3]:
        vote(world, of, member, world.decided(context))
    assert of.ready(99.0, 0.0) == []
    vote(world, of, world.members[3], world.decided(context))
    assert len(of.ready(99.0, 0.0)) == 1


def observed(of: Collection, member: Member, output: bytes | None) -> None:
    """`member` reports this output for every task; None vouches for them without data."""
    outputs = () if output is None else (output,)
    tasks = tuple(TaskObservation(task, outputs, tuple(ZERO_HASH for _ in outputs)) for task in range(of.size))
    of.note_observation(member.address, b"", Observation(tasks, (), "test"))


def test_a_batch_is_settled_when_quorum_stake_said_the_same_bytes_for_every_task() -> None:
    world = World()
    of = collection(world, world.batch(2))
    for member, output in zip(world.members[:3], (b"1", b"1", b"2"), strict=True):
        observed(of, member, output)
    assert of.heard_quorum()
    assert not of.is_settled()
    observed(of, world.members[3], b"1")
    assert of.is_settled()


def test_answers_of_two_worlds_make_no_quorum_together() -> None:
    """Observations of data and Responses to the whole batch exclude each other: what counts is one or the other."""
    world = World()
    context = world.batch()
    of = collection(world, context)
    for member in world.members[:2]:
        observed(of, member, b"1")
    for member in world.members[2:]:
        of.note_whole_response(member.address, b"", Observation((TaskObservation(0, (), ()),), (), "test"))
    assert of.has_heard_all()
    assert not of.heard_quorum()
    assert not of.with_outputs, "two against two: nobody can tell"
    neutral = collection(world, context)
    observed(neutral, world.members[0], b"1")
    for member in world.members[1:3]:
        observed(neutral, member, None)
    assert neutral.heard_quorum()
    assert neutral.with_outputs


def test_a_task_that_too_many_abstain_from_is_hopeless_and_the_others_are_not() -> None:
    world = World()
    context = world.batch(2)
    of = collection(world, context)
    for number, member in enumerate(world.members):
        spared = number < 2
        of.heard[member.address] = b""
        of.vouched[member.address] = frozenset({0} if spared else {0, 1})
        if spared:
            of.note_abstentions(member.address, [Abstention(1, "data_unavailable", "no answer")])
    assert of.has_heard_all()
    assert of.hopeless() == [1]
    codes = sorted(reason.code for reason in of.failure_of(1, "no_quorum", "…").reasons)
    assert codes == ["data_unavailable", "data_unavailable", "no_signature", "no_signature"]


def test_the_first_reason_of_an_operator_stands() -> None:
    world = World()
    of = collection(world, world.batch())
    address = world.members[0].address
    of.note_abstentions(address, [Abstention(0, "first", "1")])
    of.note_abstentions(address, [Abstention(0, "second", "2")])
    assert of.abstentions[address, 0].code == "first"


@pytest.mark.parametrize("wrong", ["task", "client", "outlives", "evidence", "decision", "verdict"])
def test_a_leaf_that_is_not_of_this_batch_counts_for_nothing(wrong: str) -> None:
    from dataclasses import replace

    world = World()
    context = world.batch(2)
    item, second = world.decided(context)
    changes = {
        "task": replace(item, leaf=replace(item.leaf, task_id=second.leaf.task_id)),
        "client": replace(item, leaf=replace(item.leaf, policy_client=VALIDATOR)),
        "outlives": replace(item, leaf=replace(item.leaf, expiration=context.batch.tasks[0].intent.deadline + 1)),
        "evidence": replace(item, leaf=replace(item.leaf, evidence=second.leaf.evidence)),
        "decision": replace(item, decision=second.decision + b" "),
        "verdict": replace(item, leaf=replace(item.leaf, allow=False)),
    }
    with pytest.raises(VerificationFailed):
        check_decided(context, [changes[wrong], second])


def test_garbage_in_place_of_a_signature_is_none() -> None:
    world = World()
    context = world.batch()
    certificate = check_decided(context, world.decided(context))
    for garbage in (b"", b"\x00" * 96, b"\xc0" + bytes(95), b"\xff" * 96, b"x" * 500):
        assert not verify_signature(context, world.operators, world.members[0].address, certificate, garbage)
    stranger = VALIDATOR
    assert not verify_signature(context, world.operators, stranger, certificate, b"\x00" * 96)
