"""Evidence as it travels: JSON within bounds, one encoding, and a digest over what was signed, not over bytes that anyone can change."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from placet.core import limits
from placet.core.errors import InvalidInput, TeeRejected, TooLarge
from placet.verify.tee import Evidence, EvidenceKind, decode_evidence, encode_evidence, evidence_sha256
from placet.verify.tee.verify import verify_quoted
from tests.support.tee import P256_ORDER, other_signature
from tests.support.tee_judging import accepting, quoted_by
from tests.support.tee_samples import NITRO, NVIDIA, SGX, SNP, TDX, TDX_AT

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
SAMPLES = [TDX, SGX, NITRO, SNP, NVIDIA, replace(SNP, gpu=NVIDIA)]


@pytest.mark.parametrize("evidence", SAMPLES, ids=lambda evidence: evidence.kind)
def test_json_carries_evidence_unchanged(evidence: Evidence) -> None:
    assert decode_evidence(encode_evidence(evidence)) == evidence


def changed(**members: Any) -> bytes:
    document = json.loads(encode_evidence(replace(SNP, gpu=NVIDIA)))
    document.update(members)
    return json.dumps({name: value for name, value in document.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"[]", "evidence"),
        (b"{", "evidence"),
        (changed(extra=1), "evidence"),
        (changed(v=2), "evidence/v"),
        (changed(v=True), "evidence/v"),
        (changed(v=None), "evidence/v"),
        (changed(kind="tpm"), "evidence/kind"),
        (changed(kind=None), "evidence/kind"),
        (changed(document=None), "evidence/document"),
        (changed(document="AA=A"), "evidence/document"),
        (changed(document="AB=="), "evidence/document"),
        (changed(document="A-_="), "evidence/document"),
        (changed(document=" AAAA"), "evidence/document"),
        (changed(document=""), "document"),
        (changed(certificates="AAAA"), "evidence/certificates"),
        (changed(certificates=[1]), "evidence/certificates/0"),
        (changed(gpu=[]), "evidence/gpu"),
        (changed(gpu={"v": 1, "kind": "sev-snp", "document": "AAAA"}), "gpu"),
        (changed(kind="nvidia-gpu"), "gpu"),
    ],
)
def test_other_json_is_refused_by_the_name_of_the_member(data: bytes, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_evidence(data)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "members",
    [
        {"document": b"\0" * (limits.MAX_TEE_DOCUMENT_BYTES + 1)},
        {"collateral": b"\0" * (limits.MAX_TEE_COLLATERAL_BYTES + 1)},
        {"certificates": (b"\0",) * (limits.MAX_TEE_CERTIFICATES + 1)},
        {"certificates": (b"\0" * (limits.MAX_TEE_CERTIFICATE_BYTES + 1),)},
        {"crls": (b"\0",) * (limits.MAX_TEE_CRLS + 1)},
        {"crls": (b"\0" * (limits.MAX_TEE_CRL_BYTES + 1),)},
    ],
)
def test_oversized_evidence_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(TooLarge):
        replace(SNP, **members)


def test_oversized_json_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(TooLarge):
        decode_evidence(b'"' + b"a" * limits.MAX_TEE_EVIDENCE_BYTES + b'"')


def test_nesting_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(TooLarge):
        decode_evidence(b'{"gpu":' * 5 + b"1" + b"}" * 5)


@pytest.mark.parametrize("evidence", SAMPLES, ids=lambda evidence: evidence.kind)
def test_collateral_and_revocation_lists_are_not_in_the_digest(evidence: Evidence) -> None:
    assert evidence_sha256(replace(evidence, collateral=b"other", crls=(b"other",))) == evidence_sha256(evidence)


def test_all_digests_differ() -> None:
    digests = {evidence_sha256(evidence) for evidence in SAMPLES}
    assert len(digests) == len(SAMPLES)
    assert all(len(digest) == 32 for digest in digests)


def test_the_same_document_under_another_kind_has_another_digest() -> None:
    assert evidence_sha256(replace(TDX, kind=EvidenceKind.SGX)) != evidence_sha256(TDX)


def test_an_ecdsa_twin_verifies_and_has_the_same_digest() -> None:
    """(r, n - s) verifies wherever (r, s) does, so whoever relays a quote can change its bytes."""
    begin = 632 + 4
    signature = TDX.document[begin : begin + 64]
    twin = replace(TDX, document=TDX.document[:begin] + other_signature(signature, P256_ORDER) + TDX.document[begin + 64 :])
    assert twin.document != TDX.document
    attested = verify_quoted(twin, quoted=quoted_by(TDX, TDX_AT), policy=accepting(TDX, TDX_AT), at=TDX_AT)
    assert attested.evidence_sha256 == evidence_sha256(TDX)


def test_evidence_that_cannot_be_read_has_no_digest() -> None:
    for evidence in (replace(TDX, document=b"\0"), replace(SNP, certificates=()), replace(NVIDIA, certificates=())):
        with pytest.raises(TeeRejected):
            evidence_sha256(evidence)


def test_base64_is_the_one_with_padding() -> None:
    assert json.loads(encode_evidence(SNP))["document"] == base64.b64encode(SNP.document).decode()
