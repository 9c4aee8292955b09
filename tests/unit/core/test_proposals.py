"""What a Proposal rests on: whatever one operator puts into it, the others' observations are found (threats 16, 23)."""

from __future__ import annotations

import pytest

from placet.core import limits
from placet.core.batch import BatchContext
from placet.core.errors import NotFound, Unavailable
from placet.core.messages import Observation, Proposal
from placet.core.objects import ObjectStore, sha256
from placet.core.proposals import open_observations
from placet.core.types import Hash32
from tests.audit import rig

MEMBERS = rig.identities()
OPERATORS = rig.operator_set(MEMBERS)
HONEST = [item.address for item in MEMBERS[1:]]
STRANGER = next(item for item in rig.identities(5) if item.address not in {member.address for member in MEMBERS})


def envelopes(context: BatchContext) -> list[bytes]:
    return [rig.sealed_observation(item, context, rig.observed(context)) for item in MEMBERS[1:]]


@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.parametrize("poison", ["nothing", "garbage", "a stranger's", "another batch's", "a proposal's", "large", "no observation"])
async def test_16_what_does_not_hold_counts_as_not_listed(poison: str, with_data: bool) -> None:
    context, other = rig.batch(rig.task(1)), rig.batch(rig.task(2))
    liar, seen = MEMBERS[0], rig.observed(context)
    listed = {
        "nothing": b"",
        "garbage": b"\xff" * 100,
        "a stranger's": rig.sealed_observation(STRANGER, context, seen),
        "another batch's": rig.sealed_observation(liar, other, seen),
        "a proposal's": rig.sealed_observation(liar, context, seen, digest=Hash32(b"\1" * 32)),
        "large": rig.sealed_observation(liar, context, rig.observed(context, b'"' + b"x" * limits.MAX_INLINE_OBSERVATION_BYTES + b'"')),
        "no observation": rig.sealed_batch(context),
    }[poison]
    store = ObjectStore("memory:///")
    proposal = Proposal((listed, *envelopes(context)))
    opened, raw = await open_observations(proposal, context, OPERATORS, store, with_data=with_data)
    assert sorted(opened) == sorted(HONEST)
    assert list(raw) == envelopes(context)


async def test_16_the_first_of_two_messages_of_one_operator_counts() -> None:
    context = rig.batch(rig.task())
    first, second = (rig.sealed_observation(MEMBERS[0], context, rig.observed(context, text)) for text in (b"1", b"2"))
    opened, raw = await open_observations(Proposal((first, second)), context, OPERATORS, ObjectStore("memory:///"), with_data=True)
    assert opened[MEMBERS[0].address].tasks[0].outputs == (b"1",)
    assert raw == (first,)


async def test_a_response_to_the_whole_batch_vouches_where_the_policy_needs_no_data_only() -> None:
    context = rig.batch(rig.task(1), rig.task(2))
    proposal = Proposal((rig.sealed_response(MEMBERS[0], context, rig.policy()),))
    store = ObjectStore("memory:///")
    opened, _ = await open_observations(proposal, context, OPERATORS, store, with_data=False)
    assert [(item.task, item.outputs) for item in opened[MEMBERS[0].address].tasks] == [(0, ()), (1, ())]
    assert (await open_observations(proposal, context, OPERATORS, store, with_data=True))[0] == {}


async def test_23_observations_listed_by_address_are_fetched_and_what_is_not_there_leaves_the_outcome_unknown() -> None:
    context, store = rig.batch(rig.task()), ObjectStore("memory:///")
    addresses = [await store.put(envelope) for envelope in envelopes(context)]
    opened, raw = await open_observations(Proposal((), tuple(addresses)), context, OPERATORS, store, with_data=True)
    assert sorted(opened) == sorted(HONEST)
    assert list(raw) == envelopes(context)
    with pytest.raises(NotFound):
        await open_observations(Proposal((), (sha256(b"never stored"),)), context, OPERATORS, store, with_data=True)
    blob = rig.sealed_observation(MEMBERS[0], context, Observation((), (), "", sha256(b"never stored")))
    with pytest.raises(NotFound):
        await open_observations(Proposal((blob,)), context, OPERATORS, store, with_data=True)


async def test_23_a_blob_that_is_none_counts_as_not_listed() -> None:
    context, store = rig.batch(rig.task()), ObjectStore("memory:///")
    blob = rig.sealed_observation(MEMBERS[0], context, Observation((), (), "", await store.put(b"\xff" * 100)))
    opened, _ = await open_observations(Proposal((blob, *envelopes(context))), context, OPERATORS, store, with_data=True)
    assert sorted(opened) == sorted(HONEST)


async def test_23_a_blob_of_another_size_than_any_observation_is_not_known() -> None:
    """Whether it was listed so, or something else lies there now, cannot be told from its size."""
    context, store = rig.batch(rig.task()), ObjectStore("memory:///")
    large = await store.put(b"\0" * (limits.MAX_OBSERVATION_BLOB_BYTES + 1))
    blob = rig.sealed_observation(MEMBERS[0], context, Observation((), (), "", large))
    with pytest.raises(Unavailable):
        await open_observations(Proposal((blob, *envelopes(context))), context, OPERATORS, store, with_data=True)
