"""A policy file accepts what it names and nothing else; what is wrong with it is said by the member's name."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from placet.core import limits
from placet.core.errors import InvalidInput, TooLarge
from placet.verify.tee import EvidenceKind, TeePolicy, parse_policy, verify_quoted
from placet.verify.tee.chain import fingerprint
from placet.verify.tee.intel import parse
from placet.verify.tee.policy import PINNED_ROOTS
from tests.support.tee_judging import quoted_by
from tests.support.tee_samples import NVIDIA, TDX_AT, read
from tests.support.tee_samples import TDX as TDX_QUOTE

HEX48 = "4d" * 48
TDX = {"mr_td": HEX48, "rt_mr0": HEX48, "rt_mr1": HEX48, "rt_mr2": HEX48, "rt_mr3": HEX48}
TCB = {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 209}
REFERENCE = Path(__file__).parents[4] / "docs" / "reference" / "tee.md"


def policy(kinds: Any, **members: Any) -> TeePolicy:
    return parse_policy(json.dumps({"version": 1, "kinds": kinds, **members}).encode())


def test_what_is_not_said_is_the_strict_value() -> None:
    parsed = policy({"tdx": {"measurements": [TDX]}, "sev-snp": {"measurements": [{"measurement": HEX48}]}})
    assert (parsed.production, parsed.require_gpu, parsed.max_age_s) == (True, False, None)
    tdx, snp = parsed.kinds[EvidenceKind.TDX], parsed.kinds[EvidenceKind.SEV_SNP]
    assert tdx.tcb_statuses == {"UpToDate"}
    assert not tdx.advisories
    assert tdx.platforms is None
    assert tdx.roots == PINNED_ROOTS[EvidenceKind.TDX]
    assert snp.crl_required
    assert snp.vmpls == {0}


def test_the_example_of_the_reference_is_a_policy() -> None:
    examples = re.findall(r"```json\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    assert examples
    parsed = parse_policy(examples[0].encode())
    assert EvidenceKind.NVIDIA_GPU in parsed.kinds
    assert parsed.production
    attested = verify_quoted(TDX_QUOTE, quoted=quoted_by(TDX_QUOTE, TDX_AT), policy=parsed, at=TDX_AT, nonce_at=TDX_AT)
    assert attested.tcb_status == "UpToDate"


@pytest.mark.parametrize(
    ("kinds", "members", "field"),
    [
        ({}, {}, "kinds"),
        (None, {}, "kinds"),
        ({"tpm": {}}, {}, "kinds/tpm"),
        ({"tdx": []}, {}, "kinds/tdx"),
        ({"tdx": {}}, {}, "kinds/tdx/measurements"),
        ({"tdx": {"measurements": []}}, {}, "kinds/tdx/measurements"),
        ({"tdx": {"measurements": [{"mr_td": HEX48}]}}, {}, "kinds/tdx/measurements/0/rt_mr0"),
        ({"tdx": {"measurements": [{**TDX, "pcr0": HEX48}]}}, {}, "kinds/tdx/measurements/0/pcr0"),
        ({"tdx": {"measurements": [{**TDX, "mr_td": HEX48.upper()}]}}, {}, "kinds/tdx/measurements/0/mr_td"),
        ({"tdx": {"measurements": [{**TDX, "mr_td": "4d"}]}}, {}, "kinds/tdx/measurements/0/mr_td"),
        ({"tdx": {"measurements": [TDX], "tcb_statuses": ["Revoked"]}}, {}, "kinds/tdx/tcb_statuses/0"),
        ({"tdx": {"measurements": [TDX], "tcb_statuses": "UpToDate"}}, {}, "kinds/tdx/tcb_statuses"),
        ({"tdx": {"measurements": [TDX], "advisories": ["intel"]}}, {}, "kinds/tdx/advisories/0"),
        ({"tdx": {"measurements": [TDX], "platforms": ["00"]}}, {}, "kinds/tdx/platforms/0"),
        ({"tdx": {"measurements": [TDX], "roots": []}}, {}, "kinds/tdx/roots"),
        ({"tdx": {"measurements": [TDX], "min_tcb": {}}}, {}, "kinds/tdx/min_tcb"),
        ({"tdx": {"measurements": [TDX], "min_tcb_evaluation": -1}}, {}, "kinds/tdx/min_tcb_evaluation"),
        ({"tdx": {"measurements": [TDX], "min_tcb_evaluation": True}}, {}, "kinds/tdx/min_tcb_evaluation"),
        ({"sgx": {"measurements": [{"mr_signer": "00" * 32}]}}, {}, "kinds/sgx/measurements/0/mr_enclave"),
        ({"nitro": {"measurements": [{"pcr0": HEX48, "pcr1": HEX48}]}}, {}, "kinds/nitro/measurements/0/pcr2"),
        ({"nitro": {"measurements": [], "platforms": []}}, {}, "kinds/nitro/platforms"),
        ({"sev-snp": {"measurements": [{"measurement": HEX48}], "vmpls": [4]}}, {}, "kinds/sev-snp/vmpls/0"),
        ({"sev-snp": {"measurements": [{"measurement": HEX48}], "min_tcb": {"milan": TCB}}}, {}, "kinds/sev-snp/min_tcb/milan"),
        (
            {"sev-snp": {"measurements": [{"measurement": HEX48}], "min_tcb": {"Milan": {"snp": 1}}}},
            {},
            "kinds/sev-snp/min_tcb/Milan/bootloader",
        ),
        (
            {"sev-snp": {"measurements": [{"measurement": HEX48}], "min_tcb": {"Milan": {**TCB, "snp": 256}}}},
            {},
            "kinds/sev-snp/min_tcb/Milan/snp",
        ),
        ({"sev-snp": {"measurements": [{"measurement": HEX48}], "crl_required": 0}}, {}, "kinds/sev-snp/crl_required"),
        ({"software-dev": {}}, {"production": False}, "kinds/software-dev/roots"),
        ({"software-dev": {"roots": ["00" * 32], "measurements": []}}, {"production": False}, "kinds/software-dev/measurements"),
        ({"nvidia-gpu": {"measurements": []}}, {}, "kinds/nvidia-gpu/measurements"),
        ({"tdx": {"measurements": [TDX]}}, {"require_gpu": True}, "require_gpu"),
        ({"tdx": {"measurements": [TDX]}}, {"max_age_s": 0}, "max_age_s"),
        ({"tdx": {"measurements": [TDX]}}, {"production": 1}, "production"),
        ({"tdx": {"measurements": [TDX]}}, {"version": 2}, "version"),
        ({"tdx": {"measurements": [TDX]}}, {"comment": "x"}, "policy/comment"),
    ],
)
def test_what_is_wrong_is_named(kinds: Any, members: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        policy(kinds, **members)
    assert caught.value.field == field
    assert field in caught.value.message


def test_pinned_roots_are_the_certificates_that_the_vendors_publish() -> None:
    def of(pem: bytes) -> bytes:
        return fingerprint(x509.load_pem_x509_certificates(pem)[-1])

    ark = {of(read(f"amd_{name}.pem")) for name in ("ask_ark_milan", "ark_genoa", "ark_turin")}
    intel = {fingerprint(parse(TDX_QUOTE.document).pck_chain[-1])}
    published = {
        EvidenceKind.TDX: intel,
        EvidenceKind.SGX: intel,
        EvidenceKind.SEV_SNP: ark,
        EvidenceKind.NITRO: {of(read("aws_nitro_root.pem"))},
        EvidenceKind.NVIDIA_GPU: {hashlib.sha256(NVIDIA.certificates[-1]).digest()},
        EvidenceKind.SOFTWARE_DEV: set(),
    }
    assert published == PINNED_ROOTS


def test_duplicate_members_are_refused() -> None:
    with pytest.raises(InvalidInput):
        parse_policy(b'{"version":1,"kinds":{},"kinds":{}}')


def test_an_oversized_file_is_refused() -> None:
    with pytest.raises(TooLarge):
        parse_policy(b" " * (limits.MAX_TEE_POLICY_BYTES + 1))
