"""Verification of an attestation, as its numbered checks in the order of the specification (architecture §4).

`verify_attestation` answers with every check it made, what it trusts, and what it did not check; nothing raises for a bad attestation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from placet.core import bls
from placet.core.decided import check_form
from placet.core.digests import (
    EVIDENCE_PARTS,
    certificate_digest,
    evidence_hash,
    evidence_part_hash,
    intent_hash,
    leaf_struct_hash,
    part_salt,
)
from placet.core.errors import VerificationFailed
from placet.core.merkle import leaf_hash, root_and_proofs, verify_inclusion
from placet.core.messages import AttestationGroup, positions_of
from placet.core.stake import meets
from placet.core.types import Address, Certificate, Hash32, Intent, Leaf, OperatorSet
from placet.verify.report import Check, Report


@dataclass(frozen=True, slots=True)
class Attestation:
    """One leaf with its inclusion proof, its certificate, and who signed. What a caller holds."""

    chain_id: int
    validator: Address
    leaf: Leaf
    index: int
    proof: tuple[Hash32, ...]
    certificate: Certificate
    signers: bytes
    aggregate_signature: bytes


def verify_attestation(
    attestation: Attestation,
    *,
    operators: OperatorSet,
    validator: Address,
    chain_id: int,
    quorum_bps: int,
    now: int,
    max_certificate_age_s: int | None = None,
    intent: Intent | None = None,
    evidence: Mapping[str, bytes] | None = None,
    salt: Hash32 | None = None,
    min_epoch: int | None = None,
) -> Report:
    """Verify one attestation.

    1 chain and validator are the expected ones; 2 the operator set is that of the certificate's epoch; 3 the leaf stands at its index under
    the certified root; 4 the signer bitmap is well formed and not empty; 5 the signers' stake meets the quorum; 6 the aggregate signature
    over the certificate verifies under the signers' keys; 7 the leaf has not expired; 8 the certificate is not from the future and not too
    old; 9 (with `intent`) the intent is the attested one; 10 (with `evidence`) each shown part is what the leaf commits to; 11 (with
    `min_epoch`) the certificate's epoch is not revoked.

    `operators` is the trust root: who they are must come from the registry at a block the caller trusts. So must `min_epoch`, which is
    `minEpoch()` there (`ChainReader.at(block).min_epoch`): an ejection raises it, and certificates of older epochs are worthless from that
    block on, whoever signs them. `now` in unix seconds.
    """
    checks: list[Check] = []

    def check(number: int, what: str, ok: bool, detail: str = "") -> bool:
        checks.append(Check(number, what, ok, "" if ok else detail))
        return ok

    leaf, certificate = attestation.leaf, attestation.certificate
    check(
        1,
        "chain and validator",
        attestation.chain_id == chain_id and attestation.validator == validator,
        f"made for chain {attestation.chain_id}, validator 0x{attestation.validator.hex()}",
    )
    check(2, "epoch", operators.epoch == certificate.epoch, f"certificate of epoch {certificate.epoch}, operators of {operators.epoch}")
    included = verify_inclusion(
        leaf_hash(leaf_struct_hash(leaf)), attestation.index, certificate.count, attestation.proof, certificate.root
    )
    check(3, "inclusion", included, "the leaf does not stand at its index under the root")
    positions = positions_of(attestation.signers, len(operators.operators))
    if check(4, "signers", bool(positions), "the bitmap is malformed or empty") and positions is not None:
        signers = [operators.operators[position] for position in positions]
        signed = sum(operator.stake for operator in signers)
        check(
            5,
            "quorum",
            meets(signed, operators.total_stake, quorum_bps),
            f"{signed} of {operators.total_stake} stake signed, {quorum_bps} bps wanted",
        )
        digest = certificate_digest(certificate, attestation.chain_id, attestation.validator)
        check(
            6,
            "signature",
            bls.fast_aggregate_verify([operator.bls_key for operator in signers], digest, attestation.aggregate_signature),
            "the aggregate signature does not verify",
        )
    else:
        check(5, "quorum", False, "no signers")
        check(6, "signature", False, "no signers")
    check(7, "expiration", now <= leaf.expiration, f"expired at {leaf.expiration}")
    fresh = certificate.timestamp <= now + 60 and (max_certificate_age_s is None or now - certificate.timestamp <= max_certificate_age_s)
    check(8, "certificate time", fresh, f"certified at {certificate.timestamp}, now {now}")
    not_checked = ["that nobody executed it already (nonce)", "that the client still follows this policy and the counter still stands"]
    if min_epoch is None:
        not_checked.append("that the epoch is not revoked (the registry's minEpoch), nor superseded longer than the client's grace")
    else:
        check(11, "epoch not revoked", certificate.epoch >= min_epoch, f"epoch {certificate.epoch}; all below {min_epoch} are revoked")
        not_checked.append("that the epoch is not superseded longer than the client's grace")
    if intent is not None:
        check(9, "intent", intent_hash(intent, leaf.policy_client) == leaf.intent_hash, "the intent is not the attested one")
    else:
        not_checked.append("which intent it is (only its hash is known)")
    if evidence is not None and salt is not None:
        _check_evidence(leaf, evidence, salt, check, not_checked)
    else:
        not_checked.append("the evidence record (not given)")
    return Report(
        tuple(checks),
        ("the operator set given (read it from the registry at a block you trust)", "the clock given", "the validator address given"),
        tuple(not_checked),
    )


def _check_evidence(
    leaf: Leaf, evidence: Mapping[str, bytes], salt: Hash32, check: Callable[[int, str, bool, str], bool], not_checked: list[str]
) -> None:
    missing = [name for name in EVIDENCE_PARTS if name not in evidence]
    if missing:
        not_checked.append(f"evidence parts withheld: {', '.join(missing)}")
        return
    hashes = {name: evidence_part_hash(name, part_salt(salt, name), evidence[name]) for name in EVIDENCE_PARTS}
    check(10, "evidence", evidence_hash(hashes) == leaf.evidence, "the parts are not what the leaf commits to")


def verify_group(
    group: AttestationGroup,
    *,
    operators: OperatorSet,
    chain_id: int,
    validator: Address,
    quorum_bps: int,
    salts: Sequence[Hash32] | None = None,
) -> list[tuple[Hash32, ...]]:
    """Verify a whole certified group at once, and return the inclusion proof of each of its leaves.

    For services that read the attestations topic: one pairing for the group, whatever its size. With `salts`, those of the batch's tasks by
    their numbers, each decision shown is also what its leaf commits to; without, nothing vouches for `decided.decision`, and for reasons
    least of all: who shows them to anybody must give the salts. What a client's own few operators certify may still be of any form, so the
    form is checked here, for all who read groups (`check_form`).

    Raises:
        VerificationFailed: naming what does not hold.
    """
    if (group.chain_id, group.validator) != (chain_id, validator):
        raise VerificationFailed("the group is for another chain or validator", field="validator")
    if operators.epoch != group.certificate.epoch:
        raise VerificationFailed("the group is of another epoch", field="epoch")
    for decided in group.decided:
        check_form(decided, group.certificate)
    leaves = [leaf_hash(leaf_struct_hash(decided.leaf)) for decided in group.decided]
    root, proofs = root_and_proofs(leaves)
    if root != group.certificate.root or len(leaves) != group.certificate.count:
        raise VerificationFailed("the leaves do not make the certified root", field="root")
    positions = positions_of(group.signers, len(operators.operators))
    if not positions:
        raise VerificationFailed("the signer bitmap is malformed or empty", field="signers")
    signers = [operators.operators[position] for position in positions]
    if not meets(sum(operator.stake for operator in signers), operators.total_stake, quorum_bps):
        raise VerificationFailed("the signers hold less than quorum stake", field="signers")
    digest = certificate_digest(group.certificate, chain_id, validator)
    if not bls.fast_aggregate_verify([operator.bls_key for operator in signers], digest, group.aggregate_signature):
        raise VerificationFailed("the aggregate signature does not verify", field="aggregateSignature")
    for decided in group.decided:
        parts = dict(zip(EVIDENCE_PARTS, decided.evidence_parts, strict=True))
        if evidence_hash(parts) != decided.leaf.evidence:
            raise VerificationFailed("the evidence parts do not make the leaf's digest", field="evidence")
        if salts is None:
            continue
        if decided.task >= len(salts):
            raise VerificationFailed("the group names a task outside the batch", field="decided")
        if evidence_part_hash("decision", part_salt(salts[decided.task], "decision"), decided.decision) != parts["decision"]:
            raise VerificationFailed("the decision shown is not the one the leaf commits to", field="decision")
    return [tuple(proof) for proof in proofs]
