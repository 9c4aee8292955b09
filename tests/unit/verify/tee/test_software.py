"""Development evidence is accepted only where a policy that is not for production names it and pins its key; it is called what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from placet.core.errors import TeeRejected
from placet.verify.tee import Binding, Evidence, EvidenceKind, KindPolicy, TeePolicy, parse_policy, verify_evidence
from tests.support.tee import NOW, software_evidence
from tests.support.tee_judging import flipped

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
BINDING = Binding(b"\1" * 32, b"\2" * 32, b"\3" * 32)
EVIDENCE = software_evidence(KEY, BINDING.report_data())


def policy(**members: Any) -> TeePolicy:
    file = {"version": 1, "production": False, "kinds": {"software-dev": {"roots": [KEY.public_key().public_bytes_raw().hex()]}}}
    return parse_policy(json.dumps({**file, **members}).encode())


def test_it_is_accepted_where_it_was_asked_for_by_name() -> None:
    attested = verify_evidence(EVIDENCE, binding=BINDING, policy=policy(), at=NOW)
    assert attested.level == "none (development)"
    assert attested.not_checked == ("everything: there is no TEE",)
    assert not any(attested.measurement["measurement"])
    assert json.loads(EVIDENCE.document)["INSECURE"] is True


HARDWARE = {"nitro": {"measurements": [dict.fromkeys(("pcr0", "pcr1", "pcr2"), "00" * 48)]}}


@pytest.mark.parametrize(
    "accepted",
    [
        pytest.param(policy(production=True), id="production"),
        pytest.param(parse_policy(json.dumps({"version": 1, "production": False, "kinds": HARDWARE}).encode()), id="not named"),
        pytest.param(TeePolicy({EvidenceKind.SOFTWARE_DEV: KindPolicy()}), id="production by default"),
    ],
)
def test_a_policy_that_did_not_ask_for_it_refuses_it(accepted: TeePolicy) -> None:
    with pytest.raises(TeeRejected) as caught:
        verify_evidence(EVIDENCE, binding=BINDING, policy=accepted, at=NOW)
    assert (caught.value.code, caught.value.check) == ("tee_rejected", "kind")


CHANGED = json.loads(EVIDENCE.document)


def written(**changes: Any) -> bytes:
    return json.dumps({**CHANGED, **changes}, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("evidence", "check"),
    [
        pytest.param(software_evidence(OTHER, BINDING.report_data()), "chain", id="another key"),
        pytest.param(software_evidence(KEY, bytes(64)), "binding", id="other report data"),
        pytest.param(software_evidence(KEY, BINDING.report_data(), NOW - 301), "age", id="stale"),
        pytest.param(software_evidence(KEY, BINDING.report_data(), NOW + 61), "age", id="from the future"),
        pytest.param(software_evidence(KEY, BINDING.report_data(), INSECURE=False), "document", id="claims to be secure"),
        pytest.param(software_evidence(KEY, BINDING.report_data(), measurement="01" * 48), "document", id="claims a measurement"),
        pytest.param(software_evidence(KEY, BINDING.report_data(), kind="tdx"), "document", id="claims to be TDX"),
        pytest.param(replace(EVIDENCE, document=written(report_data="00" * 64)), "signature", id="changed report data"),
        pytest.param(replace(EVIDENCE, document=written(made_at=NOW + 1)), "signature", id="changed time"),
        pytest.param(replace(EVIDENCE, document=written(signature="00" * 64)), "signature", id="no signature"),
        pytest.param(replace(EVIDENCE, document=written(extra=1)), "document", id="unknown member"),
        pytest.param(replace(EVIDENCE, document=EVIDENCE.document + b" "), "document", id="trailing byte"),
        pytest.param(replace(EVIDENCE, document=json.dumps(CHANGED).encode()), "document", id="another encoding"),
        pytest.param(replace(EVIDENCE, document=EVIDENCE.document[:-1]), "document", id="cut"),
        pytest.param(replace(EVIDENCE, document=b"[]"), "document", id="no object"),
        pytest.param(replace(EVIDENCE, document=b"a" * 2000), "document", id="oversized"),
        pytest.param(replace(EVIDENCE, certificates=(b"\0",)), "document", id="certificates"),
    ],
)
def test_other_statements_are_refused(evidence: Evidence, check: str) -> None:
    with pytest.raises(TeeRejected) as caught:
        verify_evidence(evidence, binding=BINDING, policy=policy(max_age_s=300), at=NOW)
    assert caught.value.check == check


def test_no_byte_of_it_can_be_changed() -> None:
    for offset in range(len(EVIDENCE.document)):
        with pytest.raises(TeeRejected):
            verify_evidence(replace(EVIDENCE, document=flipped(EVIDENCE.document, offset)), binding=BINDING, policy=policy(), at=NOW)


@pytest.mark.parametrize("kind", [kind for kind in EvidenceKind if kind is not EvidenceKind.SOFTWARE_DEV])
def test_it_passes_for_no_other_kind(kind: EvidenceKind) -> None:
    root = KEY.public_key().public_bytes_raw()
    lax = TeePolicy(dict.fromkeys(EvidenceKind, KindPolicy(measurements=({},), roots=frozenset({root}))), production=False)
    disguised = replace(EVIDENCE, kind=kind, collateral=b"{}" if kind in (EvidenceKind.TDX, EvidenceKind.SGX) else b"")
    with pytest.raises(TeeRejected):
        verify_evidence(disguised, binding=BINDING, policy=lax, at=NOW)
