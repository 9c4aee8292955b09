"""AMD SEV-SNP: a real report, and what chips of the tests' own sign."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509

from placet.core.errors import TeeRejected, TeeUnverifiable
from placet.verify.tee import EvidenceKind, KindPolicy, Quoted, TeePolicy, verify_quoted
from tests.support.tee import DAY, MEASUREMENT, NOW, Amd, certify, p384, revocation_list, rsa_key
from tests.support.tee_judging import accepting, claims_of, flipped, quoted_by
from tests.support.tee_samples import SNP, TODAY, read

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
REPORT_DATA = bytes(range(64))
AMD = Amd()
ROOTS = [AMD.ark.root]
TCB = {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 209}
TURIN_TCB = {"fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 200}


def kind_policy(amd: Amd = AMD, **changes: Any) -> TeePolicy:
    kind = KindPolicy(
        measurements=({"measurement": MEASUREMENT},), roots=frozenset({amd.ark.root}), min_tcb={"Milan": TCB}, crl_required=True
    )
    return TeePolicy({EvidenceKind.SEV_SNP: replace(kind, **changes)})


def test_a_real_report_holds_today() -> None:
    claims = claims_of(SNP, TODAY)
    assert claims.report_data is not None
    assert claims.report_data[:5] == bytes([1, 2, 3, 4, 5])
    assert claims.measurement["measurement"].hex().startswith("b07af9620f3b839b")
    assert claims.details["tcb"] == "bootloader 2, tee 0, snp 5, microcode 68"  # type: ignore[index]  # Step is a str


def test_a_real_report_of_a_guest_that_allows_debugging_is_refused() -> None:
    with pytest.raises(TeeRejected) as caught:
        verify_quoted(SNP, quoted=quoted_by(SNP, TODAY), policy=accepting(SNP, TODAY), at=TODAY)
    assert (caught.value.code, caught.value.check) == ("tee_rejected", "debug")


@pytest.mark.parametrize(
    ("document", "check"),
    [
        pytest.param(flipped(SNP.document, 0x50), "signature", id="report data"),
        pytest.param(flipped(SNP.document, 0x90), "signature", id="measurement"),
        pytest.param(flipped(SNP.document, 0x0A, 0x08), "signature", id="debug bit taken away"),
        pytest.param(flipped(SNP.document, 0x30), "signature", id="vmpl"),
        pytest.param(flipped(SNP.document, 0x187), "signature", id="reported firmware"),
        pytest.param(flipped(SNP.document, 0x1A0), "chain", id="chip"),
        pytest.param(flipped(SNP.document, 0x48, 0x04), "chain", id="signed by a VLEK"),
        pytest.param(flipped(SNP.document, 0x2A0), "signature", id="signature"),
        pytest.param(flipped(SNP.document, 0x34), "document", id="algorithm"),
        pytest.param(flipped(SNP.document, 0x4A0 - 1), "document", id="padding of the signature"),
        pytest.param(flipped(SNP.document, 0x00, 0x0A), "document", id="version"),
        pytest.param(SNP.document[:-1], "document", id="cut"),
        pytest.param(SNP.document + b"\0", "document", id="trailing byte"),
    ],
)
def test_a_changed_report_is_refused(document: bytes, check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(replace(SNP, document=document), TODAY)
    assert caught.value.check == check


VCEK, ASK, ARK = SNP.certificates


@pytest.mark.parametrize(
    "certificates",
    [
        pytest.param((), id="none"),
        pytest.param((VCEK,), id="no issuers"),
        pytest.param((VCEK, ASK), id="no root"),
        pytest.param((ASK, VCEK, ARK), id="another order"),
        pytest.param((VCEK, ASK, ASK, ARK), id="one too many"),
        pytest.param((VCEK, ARK, ARK), id="without the ASK"),
        pytest.param((flipped(VCEK, len(VCEK) - 1), ASK, ARK), id="VCEK's signature"),
        pytest.param((flipped(VCEK, 300), ASK, ARK), id="VCEK's content"),
        pytest.param((VCEK, flipped(ASK, len(ASK) - 1), ARK), id="ASK's signature"),
        pytest.param((VCEK, ASK, flipped(ARK, len(ARK) - 1)), id="ARK"),
        pytest.param((VCEK + b"\0", ASK, ARK), id="trailing byte"),
        pytest.param((VCEK, AMD.ask.der, AMD.ark.der), id="a foreign chain"),
        pytest.param((AMD.vcek.der, ASK, ARK), id="a foreign VCEK"),
    ],
)
def test_another_chain_is_refused(certificates: tuple[bytes, ...]) -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(replace(SNP, certificates=certificates), TODAY)
    assert caught.value.check == "chain"


def test_a_root_that_is_not_pinned_is_refused() -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(SNP, TODAY, roots=ROOTS)
    assert caught.value.check == "chain"


@pytest.mark.parametrize("at", [0, 1_600_000_000, 2_000_000_000], ids=["1970", "2020", "2033"])
def test_outside_the_certificates_time_it_is_refused(at: int) -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(SNP, at)
    assert caught.value.check == "chain"


def test_a_vcek_has_serial_number_0_and_this_release_of_cryptography_reads_it() -> None:
    """When this fails, cryptography has done what its warning announces: docs/decisions/0010 says what then."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        certificate = x509.load_der_x509_certificate(read("sev_snp_vcek.der"))
    assert certificate.serial_number == 0
    assert any("future release" in str(warning.message) for warning in caught)


# --- chips of the tests' own


def test_a_report_that_the_policy_accepts_is_accepted() -> None:
    policy = kind_policy(platforms=frozenset({AMD.chip_id}))
    attested = verify_quoted(AMD.evidence(REPORT_DATA), quoted=Quoted(REPORT_DATA), policy=policy, at=NOW)
    assert attested.tcb_status == "UpToDate"
    assert attested.platform_id == AMD.chip_id
    assert attested.level == "hardware: AMD SEV-SNP"


def test_turins_layout_of_firmware_versions_is_its_own() -> None:
    turin = Amd("Turin", chip_id=b"\7" * 8 + bytes(56), tcb=TURIN_TCB)
    policy = kind_policy(turin, min_tcb={"Turin": TURIN_TCB})
    assert verify_quoted(turin.evidence(REPORT_DATA), quoted=Quoted(REPORT_DATA), policy=policy, at=NOW).tcb_status == "UpToDate"


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        pytest.param({0x08: (0xB0000).to_bytes(8, "little")}, "debug", id="debugging allowed"),
        pytest.param({0x08: (0x70000).to_bytes(8, "little")}, "isolation", id="migration agent allowed"),
        pytest.param({0x160: b"\0" * 32}, "isolation", id="migration agent bound"),
        pytest.param({0x30: b"\1"}, "isolation", id="VMPL 1"),
        pytest.param({0x30: b"\xff\xff\xff\xff"}, "isolation", id="asked for by the host"),
        pytest.param({0x90: b"\0" * 48}, "measurement", id="other measurement"),
        pytest.param({0x50: b"\0" * 64}, "binding", id="other report data"),
        pytest.param({0x1A0: b"\0" * 64}, "chain", id="chip hidden"),
        pytest.param({0x180: b"\2"}, "tcb", id="older firmware than the VCEK's"),
        pytest.param({0x180: b"\4"}, "tcb", id="newer firmware than the VCEK's"),
    ],
)
def test_what_a_genuine_chip_signs_may_still_be_refused(changes: dict[int, bytes], check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        verify_quoted(AMD.evidence(REPORT_DATA, changes=changes), quoted=Quoted(REPORT_DATA), policy=kind_policy(), at=NOW)
    assert caught.value.check == check


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"min_tcb": {}}, "tcb"),
        ({"min_tcb": {"Genoa": TCB}}, "tcb"),
        ({"min_tcb": {"Milan": {**TCB, "microcode": 210}}}, "tcb"),
        ({"platforms": frozenset({b"\0" * 64})}, "platform"),
        ({"measurements": ({"measurement": MEASUREMENT, "host_data": b"\1" * 32},)}, "measurement"),
        ({"vmpls": frozenset({2})}, "isolation"),
    ],
)
def test_a_policy_that_wants_more_refuses(changes: dict[str, Any], check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        verify_quoted(AMD.evidence(REPORT_DATA), quoted=Quoted(REPORT_DATA), policy=kind_policy(**changes), at=NOW)
    assert caught.value.check == check


def test_firmware_that_nobody_judged_is_accepted_only_by_name() -> None:
    policy = kind_policy(min_tcb={}, tcb_statuses=frozenset({"Unknown"}))
    assert verify_quoted(AMD.evidence(REPORT_DATA), quoted=Quoted(REPORT_DATA), policy=policy, at=NOW).tcb_status == "Unknown"


def test_a_vcek_of_another_product_is_refused() -> None:
    other = Amd(vcek_product="Genoa")
    with pytest.raises(TeeRejected) as caught:
        claims_of(other.evidence(REPORT_DATA), NOW, roots=[other.ark.root])
    assert caught.value.check == "chain"


def test_a_vcek_of_another_chip_is_refused() -> None:
    other = Amd(chip_id=b"\xc2" * 64)
    evidence = replace(AMD.evidence(REPORT_DATA), certificates=(other.vcek.der, other.ask.der, other.ark.der), crls=())
    with pytest.raises(TeeRejected) as caught:
        claims_of(evidence, NOW, roots=[other.ark.root])
    assert caught.value.check == "chain"


def test_a_certificate_that_may_not_sign_makes_no_chain() -> None:
    """The VCEK's own key, or an ASK without the right to sign, could otherwise issue VCEKs."""
    no_ca = certify("SEV-Milan", rsa_key("ask"), AMD.ark, ca=False)
    with pytest.raises(TeeRejected, match="may not sign certificates"):
        claims_of(replace(AMD.evidence(REPORT_DATA), certificates=(AMD.vcek.der, no_ca.der, AMD.ark.der)), NOW, roots=ROOTS)


def test_a_leaf_that_may_sign_certificates_signs_no_reports() -> None:
    leaf = certify("SEV-VCEK", p384(), AMD.ask, ca=True)
    with pytest.raises(TeeRejected, match="not one that signs documents"):
        claims_of(replace(AMD.evidence(REPORT_DATA), certificates=(leaf.der, AMD.ask.der, AMD.ark.der)), NOW, roots=ROOTS)


# --- revocation


@pytest.mark.parametrize(
    "crls",
    [
        pytest.param((), id="missing"),
        pytest.param((revocation_list(AMD.ark, until=NOW - 1),), id="expired"),
        pytest.param((revocation_list(AMD.ark, since=NOW + DAY),), id="from the future"),
        pytest.param((revocation_list(AMD.ask),), id="only the ASK's"),
    ],
)
def test_without_a_current_revocation_list_there_is_no_verdict(crls: tuple[bytes, ...]) -> None:
    with pytest.raises(TeeUnverifiable) as caught:
        verify_quoted(AMD.evidence(REPORT_DATA, crls=crls), quoted=Quoted(REPORT_DATA), policy=kind_policy(), at=NOW)
    assert (caught.value.code, caught.value.check) == ("tee_unverifiable", "collateral")


@pytest.mark.parametrize(
    ("crls", "check"),
    [
        pytest.param((revocation_list(AMD.ark, [AMD.ask.certificate]),), "chain", id="ASK revoked"),
        pytest.param((revocation_list(AMD.ark), revocation_list(AMD.ask, [AMD.vcek.certificate])), "chain", id="VCEK revoked"),
        pytest.param((revocation_list(certify("ARK-Milan", p384(), None, ca=True)),), "collateral", id="signed by another"),
        pytest.param((b"\x30\x00",), "collateral", id="unreadable"),
    ],
)
def test_a_revoked_chain_or_a_foreign_list_is_refused(crls: tuple[bytes, ...], check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        verify_quoted(AMD.evidence(REPORT_DATA, crls=crls), quoted=Quoted(REPORT_DATA), policy=kind_policy(), at=NOW)
    assert caught.value.check == check


def test_collateral_that_the_kind_does_not_have_is_refused() -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(replace(SNP, collateral=b"{}"), TODAY)
    assert caught.value.check == "document"
