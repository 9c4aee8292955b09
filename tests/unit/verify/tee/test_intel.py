"""Intel's quotes: real ones at their own time, changed ones, and what a genuine platform signs that must still be refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest

from placet.core.errors import TeeRejected, TeeUnverifiable
from placet.verify.tee import Evidence, EvidenceKind, Quoted, verify_quoted
from placet.verify.tee.intel import parse, without_padding
from tests.support.tee import CPU_SVN, DAY, NOW, PPID, Intel
from tests.support.tee_judging import accepting, claims_of, flipped, quoted_by
from tests.support.tee_samples import SGX, SGX_AT, TDX, TDX_AT, TODAY, read

REPORT_DATA = bytes(range(64))
INTEL = Intel()
HEADER, SIGNATURE_SIZE = 48, 632


def test_a_real_tdx_quote_is_accepted_at_its_time() -> None:
    attested = verify_quoted(TDX, quoted=quoted_by(TDX, TDX_AT), policy=accepting(TDX, TDX_AT), at=TDX_AT)
    assert attested.tcb_status == "UpToDate"
    assert attested.advisories == ()
    assert attested.platform_id is not None
    assert attested.platform_id.hex() == "811dca2a26b952e85bb6448b097ba4fd"
    assert attested.measurement["mr_td"].hex().startswith("91eb2b44d141d4ec")
    assert attested.level == "hardware: Intel TDX"


def test_a_real_sgx_quote_is_accepted_where_the_policy_accepts_its_status() -> None:
    attested = verify_quoted(SGX, quoted=quoted_by(SGX, SGX_AT), policy=accepting(SGX, SGX_AT), at=SGX_AT)
    assert attested.tcb_status == "ConfigurationAndSWHardeningNeeded"
    assert attested.advisories == ("INTEL-SA-00289", "INTEL-SA-00615")


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"tcb_statuses": frozenset({"UpToDate"})}, "tcb"),
        ({"tcb_statuses": frozenset({"UpToDate", "SWHardeningNeeded"})}, "tcb"),
        ({"advisories": frozenset({"INTEL-SA-00289"})}, "advisories"),
        ({"advisories": frozenset()}, "advisories"),
        ({"platforms": frozenset({b"\0" * 16})}, "platform"),
        ({"platforms": frozenset()}, "platform"),
        ({"measurements": ({"mr_enclave": b"\0" * 32},)}, "measurement"),
        ({"measurements": ()}, "measurement"),
        ({"min_tcb_evaluation": 18}, "tcb"),
        ({"roots": frozenset({b"\0" * 32})}, "chain"),
    ],
)
def test_a_genuine_quote_that_the_policy_does_not_accept_is_refused(changes: dict[str, Any], check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        verify_quoted(SGX, quoted=quoted_by(SGX, SGX_AT), policy=accepting(SGX, SGX_AT, **changes), at=SGX_AT)
    assert (caught.value.code, caught.value.check) == ("tee_rejected", check)


def test_a_policy_for_the_other_kind_does_not_accept_it() -> None:
    with pytest.raises(TeeRejected) as caught:
        verify_quoted(TDX, quoted=quoted_by(TDX, TDX_AT), policy=accepting(SGX, SGX_AT), at=TDX_AT)
    assert caught.value.check == "kind"


@pytest.mark.parametrize(
    ("document", "check"),
    [
        pytest.param(flipped(TDX.document, HEADER + 520), "signature", id="report data"),
        pytest.param(flipped(TDX.document, HEADER + 136), "signature", id="mr_td"),
        pytest.param(flipped(TDX.document, HEADER + 472), "signature", id="rt_mr3"),
        pytest.param(flipped(TDX.document, HEADER + 120), "signature", id="debug attribute"),
        pytest.param(flipped(TDX.document, SIGNATURE_SIZE + 4), "signature", id="signature"),
        pytest.param(flipped(TDX.document, SIGNATURE_SIZE + 4 + 64), "signature", id="attestation key"),
        pytest.param(flipped(TDX.document, SIGNATURE_SIZE + 4 + 128 + 6), "signature", id="quoting enclave's report"),
        pytest.param(TDX.document.replace(b"MIIE", b"MIIF", 1), "chain", id="PCK certificate"),
        pytest.param(TDX.document[:-1], "document", id="cut by a byte"),
        pytest.param(TDX.document[:600], "document", id="cut in the body"),
        pytest.param(TDX.document[:20], "document", id="cut in the header"),
        pytest.param(TDX.document + b"\0", "document", id="a trailing zero"),
        pytest.param(TDX.document + b"trailing", "document", id="trailing bytes"),
        pytest.param(read("tdx_quote.bin"), "document", id="padding as the quoting service leaves it"),
        pytest.param(flipped(TDX.document, 0, 7), "document", id="version 3 for a TD"),
        pytest.param(flipped(TDX.document, 2), "document", id="another key type"),
        pytest.param(flipped(TDX.document, 4, 0x81), "document", id="an SGX header before a TD's report"),
        pytest.param(SGX.document, "document", id="a quote of the other kind"),
    ],
)
def test_a_changed_quote_is_refused(document: bytes, check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(replace(TDX, document=document), TDX_AT)
    assert caught.value.check == check


def collateral(**changes: Any) -> bytes:
    members = json.loads(TDX.collateral)
    members.update(changes)
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


SGX_COLLATERAL = json.loads(SGX.collateral)


@pytest.mark.parametrize(
    ("data", "check"),
    [
        pytest.param(
            collateral(tcb_info=json.loads(TDX.collateral)["tcb_info"].replace('"svn":5', '"svn":4', 1)), "collateral", id="edited"
        ),
        pytest.param(collateral(tcb_info_signature="00" * 64), "collateral", id="signature"),
        pytest.param(collateral(qe_identity_signature="00" * 64), "collateral", id="signature of the identity"),
        pytest.param(SGX.collateral, "collateral", id="of the other kind"),
        pytest.param(collateral(tcb_info=SGX_COLLATERAL["tcb_info"]), "collateral", id="half of the other kind"),
        pytest.param(collateral(pck_crl=SGX_COLLATERAL["pck_crl"]), "chain", id="another issuer's revocation list"),
        pytest.param(collateral(extra="x"), "collateral", id="unknown member"),
        pytest.param(collateral(pck_crl=None), "collateral", id="missing member"),
        pytest.param(collateral(pck_crl="zz"), "collateral", id="not hexadecimal"),
        pytest.param(collateral(root_ca_crl="3000"), "collateral", id="not a list"),
        pytest.param(collateral(tcb_info="{}"), "collateral", id="no dates"),
        pytest.param(collateral(tcb_info_issuer_chain=""), "collateral", id="no issuers"),
        pytest.param(b"{}", "collateral", id="nothing"),
        pytest.param(b"not JSON", "collateral", id="not JSON"),
    ],
)
def test_changed_collateral_is_refused(data: bytes, check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(replace(TDX, collateral=data), TDX_AT)
    assert caught.value.check == check


@pytest.mark.parametrize(
    ("evidence", "at"),
    [
        pytest.param(replace(TDX, collateral=b""), TDX_AT, id="missing"),
        pytest.param(TDX, TODAY, id="today"),
        pytest.param(TDX, TDX_AT + 30 * DAY, id="a month later"),
        pytest.param(TDX, TDX_AT - 2 * DAY, id="before it was issued"),
        pytest.param(
            Evidence(EvidenceKind.TDX, INTEL.tdx_quote(REPORT_DATA), INTEL.collateral(crl_until=NOW - 1)), NOW, id="old revocation lists"
        ),
        pytest.param(Evidence(EvidenceKind.TDX, INTEL.tdx_quote(REPORT_DATA), INTEL.collateral(until=NOW - 1)), NOW, id="old statements"),
    ],
)
def test_collateral_that_is_not_in_force_is_no_verdict(evidence: Evidence, at: int) -> None:
    with pytest.raises(TeeUnverifiable) as caught:
        claims_of(evidence, at, roots=None if evidence.document[:700] == TDX.document[:700] else [INTEL.root.root])
    assert (caught.value.code, caught.value.check, caught.value.retryable) == ("tee_unverifiable", "collateral", True)


def test_without_the_extra_nothing_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    with pytest.raises(TeeUnverifiable, match=r"placet-verify\[tee\]"):
        claims_of(TDX, TDX_AT)


def test_certificates_beside_a_quote_are_refused() -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(replace(TDX, certificates=(b"\0",)), TDX_AT)
    assert caught.value.check == "document"


def test_padding_of_zeros_is_cut_and_nothing_else() -> None:
    assert without_padding(read("tdx_quote.bin")) == TDX.document
    assert without_padding(SGX.document) == SGX.document
    with pytest.raises(TeeRejected):
        without_padding(TDX.document + b"\0\1")


# --- a platform of the tests' own


@pytest.mark.parametrize(
    ("version", "body_type"), [pytest.param(4, 2, id="version 4"), pytest.param(5, 2, id="version 5"), pytest.param(5, 3, id="TDX 1.5")]
)
def test_every_layout_of_a_quote_is_read(version: int, body_type: int) -> None:
    claims = claims_of(INTEL.evidence(REPORT_DATA, version=version, body_type=body_type), NOW, roots=[INTEL.root.root])
    assert claims.report_data == REPORT_DATA
    assert claims.platform_id == PPID
    assert {claims.measurement[name] for name in ("mr_td", "rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3")} == {b"\x4d" * 48}


@pytest.mark.parametrize(
    ("arguments", "check"),
    [
        pytest.param({"changes": {120: b"\1"}}, "debug", id="debug mode"),
        pytest.param({"changes": {123: b"\0"}}, "debug", id="page faults visible to the host"),
        pytest.param({"changes": {121: b"\1"}}, "debug", id="reserved attribute"),
        pytest.param({"version": 5, "body_type": 3, "changes": {600: b"\1"}}, "isolation", id="service TD"),
        pytest.param({"changes": {0: b"\1"}}, "tcb", id="old TDX module"),
        pytest.param({"version": 5, "body_type": 4}, "document", id="unknown body"),
        pytest.param({"before_chain": "text before the chain\n"}, "document", id="text before the chain"),
        pytest.param({"before_chain": INTEL.tcb_signing.pem.replace("CERTIFICATE", "X509 CRL")}, "document", id="another block"),
        pytest.param({"before_chain": INTEL.tcb_signing.pem}, "signature", id="another certificate"),
    ],
)
def test_what_a_genuine_platform_signs_may_still_be_refused(arguments: dict[str, Any], check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(INTEL.evidence(REPORT_DATA, **arguments), NOW, roots=[INTEL.root.root])
    assert caught.value.check == check


def test_an_sgx_enclave_in_debug_mode_is_refused() -> None:
    data = INTEL.collateral(kind=EvidenceKind.SGX)
    good = Evidence(EvidenceKind.SGX, INTEL.sgx_quote(REPORT_DATA), data)
    assert claims_of(good, NOW, roots=[INTEL.root.root]).report_data == REPORT_DATA
    with pytest.raises(TeeRejected) as caught:
        claims_of(Evidence(EvidenceKind.SGX, INTEL.sgx_quote(REPORT_DATA, attributes=b"\7"), data), NOW, roots=[INTEL.root.root])
    assert caught.value.check == "debug"


@pytest.mark.parametrize("which", ["pck", "platform_ca"])
def test_a_revoked_platform_is_refused(which: str) -> None:
    revoked = INTEL.collateral(revoked=[getattr(INTEL, which).certificate])
    with pytest.raises(TeeRejected) as caught:
        claims_of(INTEL.evidence(REPORT_DATA, collateral=revoked), NOW, roots=[INTEL.root.root])
    assert caught.value.check == "chain"


def test_a_foreign_root_is_refused_whatever_it_signs() -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(INTEL.evidence(REPORT_DATA), NOW)
    assert caught.value.check == "chain"


def test_collateral_of_a_foreign_root_is_refused() -> None:
    with pytest.raises(TeeRejected) as caught:
        claims_of(INTEL.evidence(REPORT_DATA, collateral=Intel().collateral()), NOW, roots=[INTEL.root.root])
    assert caught.value.check == "collateral"


@pytest.mark.parametrize("component", [index for index, svn in enumerate(CPU_SVN) if svn])
def test_a_tcb_level_is_met_in_every_component(component: int) -> None:
    """dcap-qvl once compared component lists as words are compared: a higher first component hid a lower later one."""
    behind = Intel(cpu_svn=[svn - 1 if index == component else svn + (index < component) for index, svn in enumerate(CPU_SVN)])
    with pytest.raises(TeeRejected) as caught:
        claims_of(behind.evidence(REPORT_DATA), NOW, roots=[behind.root.root])
    assert caught.value.check == "tcb"


@pytest.mark.parametrize("status", ["OutOfDate", "SWHardeningNeeded", "ConfigurationNeeded", "Revoked"])
def test_by_default_only_an_up_to_date_platform_is_accepted(status: str) -> None:
    platform = Intel(status=status)
    evidence = platform.evidence(REPORT_DATA)
    policy = accepting(INTEL.evidence(REPORT_DATA), NOW, roots=[INTEL.root.root])
    roots = replace(policy.kinds[EvidenceKind.TDX], roots=frozenset({platform.root.root}))
    with pytest.raises(TeeRejected) as caught:
        verify_quoted(evidence, quoted=Quoted(REPORT_DATA), policy=replace(policy, kinds={EvidenceKind.TDX: roots}), at=NOW)
    assert caught.value.check == "tcb"


def test_a_quote_names_where_it_ends() -> None:
    quote = parse(TDX.document)
    assert quote.signed == TDX.document[:SIGNATURE_SIZE]
    assert len(quote.pck_chain) == 3
