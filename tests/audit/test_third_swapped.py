"""Third reading: an operator's blob that is overwritten while the others read it."""

from __future__ import annotations

import pytest

from placet.core import wire
from placet.core.errors import NotFound, Unavailable
from placet.core.messages import Observation, Proposal
from placet.core.objects import ObjectStore, _blob
from placet.core.proposals import open_observations
from tests.audit import rig


@pytest.mark.parametrize("content", [b"other bytes", bytes(5 << 20)])
async def test_16_a_swapped_blob_is_unknown_and_not_unlisted(content: bytes) -> None:
    """Decision 9.1: what does not hold counts as not listed, *for everybody*; what cannot be fetched is unknown, and the operator abstains.
    A blob that was overwritten (operators write the shared store) is counted as not listed by who reads late, and as listed by who read
    early: honest operators compute two agreements and sign two leaves, which their logs then hold against each other."""
    members, context, objects = rig.identities(), rig.batch(rig.task()), ObjectStore("memory:///")
    address = await objects.put(wire.encode_observation(rig.observed(context)))
    envelopes = [rig.sealed_observation(members[0], context, Observation((), (), "", address))]
    envelopes += [rig.sealed_observation(who, context, rig.observed(context)) for who in members[1:]]
    proposal, operators = Proposal(tuple(envelopes)), rig.operator_set(members)
    early, _ = await open_observations(proposal, context, operators, objects, with_data=True)
    await objects.put_named(_blob(address), content)
    try:
        late, _ = await open_observations(proposal, context, operators, objects, with_data=True)
    except (NotFound, Unavailable):
        return  # it abstains
    assert set(late) == set(early), "two honest operators rest on different observations of one Proposal"
