"""Whatever is changed in evidence, nothing is accepted that says something else, and nothing but a verdict comes out.

A changed document may pass where the change changes nothing: white space around a certificate's PEM, the second of two ECDSA signatures.
Then what it claims and its digest must be those of the original.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from placet.core.errors import TeeRejected, TeeUnverifiable
from placet.verify.tee import Evidence, evidence_sha256
from placet.verify.tee.checks import Claims
from tests.support.tee import NOW, Amd, Intel
from tests.support.tee_judging import claims_of, flipped
from tests.support.tee_samples import NITRO, NITRO_AT, NVIDIA, SGX, SGX_AT, SNP, TDX, TDX_AT, TODAY

pytestmark = [
    pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive"),
    pytest.mark.filterwarnings("ignore:Attribute's length must be"),  # of a changed name in a certificate
]
AMD, INTEL = Amd(), Intel()
REAL = {
    "tdx": (TDX, TDX_AT, None),
    "sgx": (SGX, SGX_AT, None),
    "nitro": (NITRO, NITRO_AT, None),
    "snp": (SNP, TODAY, None),
    "nvidia": (NVIDIA, TODAY, None),
}
MADE_UP = {"own intel": (INTEL.evidence(bytes(64)), NOW, [INTEL.root.root]), "own amd": (AMD.evidence(bytes(64)), NOW, [AMD.ark.root])}
SAMPLES: dict[str, tuple[Evidence, int, list[bytes] | None]] = {**REAL, **MADE_UP}


def harmless(changed: Evidence, original: Evidence, at: int, roots: list[bytes] | None, claims: Claims) -> bool:
    """Whether the change is refused, or says and is the same."""
    try:
        passed = claims_of(changed, at, roots=roots)
    except (TeeRejected, TeeUnverifiable):
        return True
    return passed == claims and evidence_sha256(changed) == evidence_sha256(original)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_no_byte_of_a_real_document_can_be_changed_into_other_claims(name: str) -> None:
    evidence, at, roots = SAMPLES[name]
    claims, bits = claims_of(evidence, at, roots=roots), random.Random(name)
    for offset in range(len(evidence.document)):
        changed = replace(evidence, document=flipped(evidence.document, offset, 1 << bits.randrange(8)))
        assert harmless(changed, evidence, at, roots, claims), offset


def _of_one(change: Callable[[bytes], bytes], items: tuple[bytes, ...], index: int) -> tuple[bytes, ...]:
    index %= len(items)
    return (*items[:index], change(items[index]), *items[index + 1 :])


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    where=st.sampled_from(["document", "collateral", "certificates", "crls"]),
    index=st.integers(0, 8),
    at=st.integers(0, 1 << 20),
    cut=st.integers(0, 8),
    insert=st.binary(max_size=8),
)
def test_nothing_but_a_verdict_comes_out_of_cut_and_filled_evidence(
    name: str, where: str, index: int, at: int, cut: int, insert: bytes
) -> None:
    evidence, time, roots = SAMPLES[name]
    part = getattr(evidence, where)
    if not part:
        return

    def change(data: bytes) -> bytes:
        offset = at % len(data)
        return data[:offset] + insert + data[offset + cut :]

    members: dict[str, Any] = {where: _of_one(change, part, index) if isinstance(part, tuple) else change(part) or b"\0"}
    changed = replace(evidence, **members)
    assert harmless(changed, evidence, time, roots, claims_of(evidence, time, roots=roots))


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(SAMPLES)), document=st.binary(min_size=1, max_size=2000))
def test_nothing_but_a_verdict_comes_out_of_noise(kind: str, document: bytes) -> None:
    evidence, at, roots = SAMPLES[kind]
    with pytest.raises(TeeRejected):
        claims_of(replace(evidence, document=document), at, roots=roots)
