"""Third reading: an attestation that the contract refuses for ever, and `placet verify` takes."""

from __future__ import annotations

import time

from placet.core import bls
from placet.core.digests import certificate_digest, leaf_struct_hash
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import bitmap_of
from placet.core.types import ZERO_HASH, Certificate, Leaf
from placet.verify import Attestation, verify_attestation
from tests.audit import rig


def test_07_a_certificate_of_a_revoked_epoch_is_not_verified_in_silence() -> None:
    """Operators were ejected because their keys were stolen; `minEpoch` was raised. The thief signs a certificate of the old epoch, stamped
    now. The validator reverts with EpochRevoked. Offline all checks pass, and the report does not say that the epoch was not looked at."""
    members, now = rig.identities(), int(time.time())
    leaf = Leaf(ZERO_HASH, rig.CLIENT, rig.POLICY_ID, ZERO_HASH, 0, True, ZERO_HASH, ZERO_HASH, now + 600)
    root, _ = root_and_proofs([leaf_hash(leaf_struct_hash(leaf))])
    certificate = Certificate(root, 1, 1, now)  # epoch 1 of, say, 7
    digest = certificate_digest(certificate, rig.CHAIN, rig.VALIDATOR)
    stolen = bls.aggregate([bls.sign(who.secret, digest) for who in members[:3]])
    attestation = Attestation(rig.CHAIN, rig.VALIDATOR, leaf, 0, (), certificate, bitmap_of({0, 1, 2}, 4), stolen)
    report = verify_attestation(
        attestation, operators=rig.operator_set(members), validator=rig.VALIDATOR, chain_id=rig.CHAIN, quorum_bps=6667, now=now
    )
    assert not report.ok or any("epoch" in item for item in report.not_checked), report.not_checked
