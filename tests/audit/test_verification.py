"""What a reader of the attestations topic takes for verified (threats 24): the aggregator may delay or refuse, never alter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from placet.core import bls, wire
from placet.core.decision import decision_content
from placet.core.digests import certificate_digest, leaf_struct_hash
from placet.core.envelope import open_envelope
from placet.core.errors import VerificationFailed
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import AttestationGroup, bitmap_of
from placet.core.types import Certificate
from placet.verify import verify_group
from tests.audit import rig


def _group(tampered: bool) -> AttestationGroup:
    members, context = rig.identities(), rig.batch(rig.task())
    envelope = rig.sealed_response(members[0], context, rig.policy(), allow=False)
    response = wire.decode_response(open_envelope(envelope, lambda kind, sender: members[0].bus.public_key).payload, 1)
    decided = response.groups[0].decided
    root, _ = root_and_proofs([leaf_hash(leaf_struct_hash(item.leaf)) for item in decided])
    certificate = Certificate(root, 1, 1, context.batch.timestamp)
    digest = certificate_digest(certificate, rig.CHAIN, rig.VALIDATOR)
    signature = bls.aggregate([bls.sign(member.secret, digest) for member in members])
    if tampered:
        decided = tuple(replace(item, decision=decision_content(False, ["you are on a sanctions list"], None)) for item in decided)
    return AttestationGroup(rig.CHAIN, rig.VALIDATOR, certificate, decided, bitmap_of({0, 1, 2, 3}, 4), signature)


def _verify(group: AttestationGroup) -> None:
    operators = rig.operator_set(rig.identities())
    verify_group(group, operators=operators, chain_id=rig.CHAIN, validator=rig.VALIDATOR, quorum_bps=6667, salts=[rig.task().salt])


def test_an_honest_group_is_verified() -> None:
    _verify(_group(tampered=False))


def test_24_an_aggregator_cannot_change_the_reasons() -> None:
    with pytest.raises(VerificationFailed):
        _verify(_group(tampered=True))
