"""The binding on top of the vendors' checks: evidence is about this key, this nonce and this model, or it is nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from placet.core.errors import PlacetError, TeeRejected, TeeUnverifiable, VerificationFailed
from placet.verify.tee import CHECKS, Binding, Evidence, EvidenceKind, KindPolicy, TeePolicy, evidence_sha256, verify_evidence
from tests.support.tee import MEASUREMENT, NOW, PPID, Amd, Aws, Intel

AMD, AWS, INTEL = Amd(), Aws(), Intel()
BINDING = Binding(b"\1" * 32, b"\2" * 32, b"\3" * 32, b"\4" * 32)
POLICY = TeePolicy(
    {
        EvidenceKind.TDX: KindPolicy(
            measurements=(dict.fromkeys(("mr_td", "rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3"), MEASUREMENT),),
            platforms=frozenset({PPID}),
            roots=frozenset({INTEL.root.root}),
        ),
        EvidenceKind.SGX: KindPolicy(measurements=({"mr_enclave": b"\x4d" * 32},), roots=frozenset({INTEL.root.root})),
        EvidenceKind.SEV_SNP: KindPolicy(
            measurements=({"measurement": MEASUREMENT},), roots=frozenset({AMD.ark.root}), min_tcb={"Milan": AMD.tcb}, crl_required=True
        ),
        EvidenceKind.NITRO: KindPolicy(
            measurements=(dict.fromkeys(("pcr0", "pcr1", "pcr2"), MEASUREMENT),), roots=frozenset({AWS.root.root})
        ),
    }
)
MAKERS: dict[EvidenceKind, Callable[[Binding], Evidence]] = {
    EvidenceKind.TDX: lambda binding: INTEL.evidence(binding.report_data()),
    EvidenceKind.SGX: lambda binding: Evidence(
        EvidenceKind.SGX, INTEL.sgx_quote(binding.report_data()), INTEL.collateral(kind=EvidenceKind.SGX)
    ),
    EvidenceKind.SEV_SNP: lambda binding: AMD.evidence(binding.report_data()),
    EvidenceKind.NITRO: lambda binding: AWS.evidence(binding.report_data(), binding.nonce, binding.signing_key),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_bound_evidence_is_accepted_with_all_checks_in_order(kind: EvidenceKind) -> None:
    evidence = MAKERS[kind](BINDING)
    attested = verify_evidence(evidence, binding=BINDING, policy=POLICY, at=NOW)
    assert [check.what for check in attested.checks] == list(CHECKS)
    assert [check.number for check in attested.checks] == list(range(1, len(CHECKS) + 1))
    assert all(check.ok for check in attested.checks)
    assert attested.evidence_sha256 == evidence_sha256(evidence)
    assert attested.trusts
    assert attested.not_checked


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"signing_key": b"\x09" * 32}, id="another key"),
        pytest.param({"nonce": b"\x09" * 32}, id="another nonce"),
        pytest.param({"model_sha256": b"\x09" * 32}, id="another model"),
        pytest.param({"hpke_key": b"\x09" * 32}, id="another sealing key"),
        pytest.param({"hpke_key": None}, id="no sealing key"),
        pytest.param({"signing_key": b"\2" * 32, "nonce": b"\1" * 32}, id="key and nonce exchanged"),
    ],
)
def test_evidence_for_something_else_is_refused(kind: EvidenceKind, other: dict[str, Any]) -> None:
    with pytest.raises(TeeRejected) as caught:
        verify_evidence(MAKERS[kind](replace(BINDING, **other)), binding=BINDING, policy=POLICY, at=NOW)
    assert (caught.value.code, caught.value.check) == ("tee_rejected", "binding")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_kind_that_the_policy_does_not_name_is_refused(kind: EvidenceKind) -> None:
    kinds = {name: accepted for name, accepted in POLICY.kinds.items() if name is not kind}
    with pytest.raises(TeeRejected) as caught:
        verify_evidence(MAKERS[kind](BINDING), binding=BINDING, policy=TeePolicy(kinds), at=NOW)
    assert caught.value.check == "kind"


@pytest.mark.parametrize("kind", [EvidenceKind.TDX, EvidenceKind.SGX, EvidenceKind.SEV_SNP])
def test_a_document_without_a_time_is_as_old_as_the_nonce(kind: EvidenceKind) -> None:
    evidence, policy = MAKERS[kind](BINDING), replace(POLICY, max_age_s=300)
    assert verify_evidence(evidence, binding=BINDING, policy=policy, at=NOW, nonce_at=NOW - 300).made_at is None
    for nonce_at in (NOW - 301, NOW + 61, None):
        with pytest.raises(TeeRejected) as caught:
            verify_evidence(evidence, binding=BINDING, policy=policy, at=NOW, nonce_at=nonce_at)
        assert caught.value.check == "age"


def test_a_documents_own_time_cannot_be_made_younger_by_the_nonce() -> None:
    evidence = AWS.evidence(BINDING.report_data(), BINDING.nonce, BINDING.signing_key, timestamp=(NOW - 500) * 1000)
    with pytest.raises(TeeRejected) as caught:
        verify_evidence(evidence, binding=BINDING, policy=replace(POLICY, max_age_s=300), at=NOW, nonce_at=NOW)
    assert caught.value.check == "age"


@pytest.mark.parametrize("kind", MAKERS)
def test_evidence_of_one_kind_passes_for_no_other(kind: EvidenceKind) -> None:
    for other in MAKERS:
        if other is not kind:
            evidence = replace(MAKERS[other](BINDING), document=MAKERS[kind](BINDING).document)
            with pytest.raises(TeeRejected):
                verify_evidence(evidence, binding=BINDING, policy=POLICY, at=NOW)


def test_rejected_and_unverifiable_are_told_apart() -> None:
    """A caller that catches failed verifications does not catch a missing verdict with them, nor the other way round."""
    assert issubclass(TeeRejected, VerificationFailed)
    assert not issubclass(TeeUnverifiable, VerificationFailed)
    errors: list[PlacetError] = []
    for evidence in (
        replace(MAKERS[EvidenceKind.TDX](BINDING), collateral=b""),
        MAKERS[EvidenceKind.TDX](replace(BINDING, nonce=b"\0" * 32)),
    ):
        with pytest.raises(PlacetError) as caught:
            verify_evidence(evidence, binding=BINDING, policy=POLICY, at=NOW)
        errors.append(caught.value)
    assert [(error.code, error.retryable, error.problem()["check"]) for error in errors] == [
        ("tee_unverifiable", True, "collateral"),
        ("tee_rejected", False, "binding"),
    ]


def test_importing_it_loads_neither_library_of_the_extra() -> None:
    """Images that do not ask for the extra verify AMD's and the development attester's evidence all the same."""
    program = "import sys, placet.verify.tee; print(sorted({'dcap_qvl', 'cbor2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
