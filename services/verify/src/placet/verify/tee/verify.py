"""Verification of TEE evidence, as its numbered checks. The vendors' modules say what is claimed and prove it; here it is judged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from placet.core.errors import TeeRejected, TeeUnverifiable
from placet.verify.report import Check
from placet.verify.tee import intel, nitro, nvidia, snp, software
from placet.verify.tee.binding import Binding, Quoted, gpu_nonce, length_prefixed
from placet.verify.tee.checks import CHECKS, Claims, Step, reject, unverifiable
from placet.verify.tee.evidence import Evidence, EvidenceKind
from placet.verify.tee.policy import KindPolicy, TeePolicy

DIGEST_TAG = b"placet/tee/evidence/v1"
CLOCK_SKEW_S = 60
"""How far a document's clock may be ahead."""

_LEVELS = {
    EvidenceKind.TDX: "hardware: Intel TDX",
    EvidenceKind.SGX: "hardware: Intel SGX",
    EvidenceKind.SEV_SNP: "hardware: AMD SEV-SNP",
    EvidenceKind.NITRO: "hardware: AWS Nitro Enclaves",
    EvidenceKind.SOFTWARE_DEV: "none (development)",
}
GPU_LEVEL = "gpu: signature-only"
_TRUSTS = {
    EvidenceKind.TDX: "Intel, and who has had the machine in hand",
    EvidenceKind.SGX: "Intel, and who has had the machine in hand",
    EvidenceKind.SEV_SNP: "AMD, and who has had the machine in hand",
    EvidenceKind.NITRO: "AWS, which makes, runs and attests the machine",
    EvidenceKind.SOFTWARE_DEV: "whoever has the development attester's key",
}


class _Vendor(Protocol):
    def signed_parts(self, evidence: Evidence) -> tuple[bytes, ...]: ...

    def verify(self, evidence: Evidence, policy: KindPolicy, at: int) -> Claims: ...


_VENDORS: Mapping[EvidenceKind, _Vendor] = MappingProxyType(
    {
        EvidenceKind.TDX: intel,
        EvidenceKind.SGX: intel,
        EvidenceKind.SEV_SNP: snp,
        EvidenceKind.NITRO: nitro,
        EvidenceKind.NVIDIA_GPU: nvidia,
        EvidenceKind.SOFTWARE_DEV: software,
    }
)


@dataclass(frozen=True, slots=True)
class Attested:
    """Evidence that held, and what it says.

    Attributes:
        checks: all checks made, in their order; each held.
        measurement: register name to its bytes.
        tcb_status: None where the vendor says nothing.
        level: what a caller may be told, for instance `hardware: Intel TDX; gpu: signature-only`.
        evidence_sha256: what receipts name the evidence by.
        trusts, not_checked: what the verdict rests on, and what nobody looked at.
    """

    kind: EvidenceKind
    checks: tuple[Check, ...]
    measurement: Mapping[str, bytes]
    tcb_status: str | None
    advisories: tuple[str, ...]
    platform_id: bytes | None
    made_at: int | None
    level: str
    evidence_sha256: bytes
    trusts: tuple[str, ...]
    not_checked: tuple[str, ...]
    gpu_platform_id: bytes | None = None


def evidence_sha256(evidence: Evidence) -> bytes:
    """What identifies evidence: SHA-256 over its kind and what was signed, the GPU's digest included. 32 bytes.

    Collateral, revocation lists and the signatures themselves are not in it: the same evidence with fresh collateral, or with an ECDSA
    signature rewritten as its twin, has the same digest. It says nothing about whether the evidence holds.

    Raises:
        TeeRejected: the document cannot be read.
    """
    parts = [DIGEST_TAG, evidence.kind.encode(), *_VENDORS[evidence.kind].signed_parts(evidence)]
    if evidence.gpu is not None:
        parts.append(evidence_sha256(evidence.gpu))
    return hashlib.sha256(length_prefixed(*parts)).digest()


def verify_evidence(evidence: Evidence, *, binding: Binding, policy: TeePolicy, at: int, nonce_at: int | None = None) -> Attested:
    """Verify that `evidence` speaks for the key, nonce and model of `binding`, under `policy`, at `at` (unix seconds).

    1 kind: the policy names it; 2 document: it can be read in one way, to its last byte; 3 collateral: present and in force; 4 chain: to a
    pinned root, valid, not revoked; 5 signature; 6 debug: off; 7 isolation: no migration agent, no privilege level that the policy does not
    accept; 8 tcb: a status that the policy accepts, and the chain is for this firmware; 9 advisories: none open but those accepted;
    10 measurement: one that is allowed; 11 platform: one that is allowed; 12 age: not older than allowed, not from the future; 13 binding:
    this key, this nonce, this model; 14 gpu: the same for the GPU, and its nonce is bound to this document.

    `nonce_at` is when the caller made the nonce: with `max_age_s` in the policy it stands for the age of documents that bear no time.

    Raises:
        TeeRejected: a check failed; `check` names it. The evidence must not be used.
        TeeUnverifiable: collateral or a revocation list is missing or out of date at `at`. No verdict: it must not be used either.
    """
    return verify_quoted(evidence, quoted=binding.quoted(), policy=policy, at=at, nonce_at=nonce_at)


def verify_quoted(evidence: Evidence, *, quoted: Quoted, policy: TeePolicy, at: int, nonce_at: int | None = None) -> Attested:
    """As `verify_evidence`, for evidence whose fields were made some other way (a provider's own, published samples)."""
    accepted = _accepted(evidence.kind, policy)
    if evidence.kind is EvidenceKind.NVIDIA_GPU:
        reject(Step.KIND, "a GPU's evidence says nothing of the processor that feeds it; it counts beside a processor's")
    claims = _VENDORS[evidence.kind].verify(evidence, accepted, at)
    details: dict[Step, str] = dict(claims.details)
    _judge(claims, accepted, details)
    _check_age(claims, policy, at, nonce_at, details)
    _check_binding(claims, quoted)
    gpu = _check_gpu(evidence, claims, policy, at, details)
    level, left = _LEVELS[evidence.kind], _not_checked(evidence.kind)
    if gpu is not None:
        level += f"; {GPU_LEVEL}"
        left += ("the GPU's firmware and driver, and whether its certificate was revoked (NVIDIA's reference values and OCSP)",)
    return Attested(
        evidence.kind,
        tuple(Check(number, str(step), True, details.get(step, "")) for number, step in enumerate(CHECKS, 1)),
        MappingProxyType(dict(claims.measurement)),
        claims.tcb_status,
        claims.advisories,
        claims.platform_id,
        claims.made_at,
        level,
        evidence_sha256(evidence),
        (_TRUSTS[evidence.kind], "the policy and the clock given"),
        left,
        None if gpu is None else gpu.platform_id,
    )


def _accepted(kind: EvidenceKind, policy: TeePolicy) -> KindPolicy:
    if kind is EvidenceKind.SOFTWARE_DEV and policy.production:
        reject(Step.KIND, "development evidence proves nothing; the policy is a production policy")
    accepted = policy.kinds.get(kind)
    if accepted is None:
        reject(Step.KIND, f"the policy does not accept {kind}")
    return accepted


def _judge(claims: Claims, accepted: KindPolicy, details: dict[Step, str]) -> None:
    """What is claimed, against what is accepted of its kind."""
    if claims.debug:
        reject(Step.DEBUG, claims.debug)
    if claims.exposed:
        reject(Step.ISOLATION, claims.exposed)
    if claims.tcb_status is None:
        details[Step.TCB] = "the vendor gives no status"
    elif claims.tcb_status not in accepted.tcb_statuses:
        reject(Step.TCB, f"status {claims.tcb_status}, the policy accepts {', '.join(sorted(accepted.tcb_statuses))}")
    open_advisories = sorted(set(claims.advisories) - accepted.advisories)
    if open_advisories:
        reject(Step.ADVISORIES, f"open advisories that the policy does not accept: {', '.join(open_advisories)}")
    if claims.kind not in (EvidenceKind.NVIDIA_GPU, EvidenceKind.SOFTWARE_DEV) and not any(
        all(claims.measurement.get(register) == value for register, value in entry.items()) for entry in accepted.measurements
    ):
        found = ", ".join(f"{register}={value.hex()}" for register, value in claims.measurement.items() if any(value))
        reject(Step.MEASUREMENT, f"the policy allows no such measurement: {found}")
    if accepted.platforms is None:
        details[Step.PLATFORM] = "any"
    elif claims.platform_id not in accepted.platforms:
        reject(Step.PLATFORM, f"platform {'unnamed' if claims.platform_id is None else claims.platform_id.hex()} is not in the list")


def _check_age(claims: Claims, policy: TeePolicy, at: int, nonce_at: int | None, details: dict[Step, str]) -> None:
    made_at = nonce_at if claims.made_at is None else claims.made_at
    if made_at is not None and made_at > at + CLOCK_SKEW_S:
        reject(Step.AGE, f"made at {made_at}, after {at}")
    if policy.max_age_s is None:
        details[Step.AGE] = "any; the nonce makes it fresh"
        return
    if made_at is None:
        reject(Step.AGE, "the document bears no time and the policy has max_age_s: say when the nonce was made (nonce_at)")
    if at - made_at > policy.max_age_s:
        reject(Step.AGE, f"made at {made_at}, {at - made_at} s ago, the policy accepts {policy.max_age_s} s")


def _check_binding(claims: Claims, quoted: Quoted) -> None:
    if claims.report_data != quoted.report_data:
        reject(Step.BINDING, "the document was made for another key, nonce or model")
    if claims.kind is EvidenceKind.NITRO and (claims.nonce, claims.public_key) != (quoted.nonce, quoted.public_key):
        reject(Step.BINDING, "the document's nonce or public_key is another one")


def _check_gpu(evidence: Evidence, claims: Claims, policy: TeePolicy, at: int, details: dict[Step, str]) -> Claims | None:
    if evidence.gpu is None:
        if policy.require_gpu:
            reject(Step.GPU, "the policy wants a GPU's evidence, there is none")
        details[Step.GPU] = "none"
        return None
    accepted = policy.kinds.get(EvidenceKind.NVIDIA_GPU)
    if accepted is None:
        reject(Step.GPU, "the policy does not accept nvidia-gpu")
    try:
        gpu = nvidia.verify(evidence.gpu, accepted, at)
    except TeeRejected as error:
        reject(Step.GPU, error.message)
    except TeeUnverifiable as error:
        unverifiable(Step.GPU, error.message)
    if claims.report_data is None or gpu.nonce != gpu_nonce(claims.report_data):
        reject(Step.GPU, "the GPU's report was made for another TEE or session")
    if accepted.platforms is not None and gpu.platform_id not in accepted.platforms:
        reject(Step.GPU, f"the GPU {gpu.platform_id.hex() if gpu.platform_id else 'unnamed'} is not in the list")
    details[Step.GPU] = f"{GPU_LEVEL}; {gpu.details[Step.MEASUREMENT]}"
    return gpu


def _not_checked(kind: EvidenceKind) -> tuple[str, ...]:
    if kind is EvidenceKind.SOFTWARE_DEV:
        return ("everything: there is no TEE",)
    left = ["that the measured code does what it should (whoever allowed the measurement vouches for it)"]
    if kind is not EvidenceKind.NITRO:
        left.append("that nobody with the machine in hand took its keys or read its memory bus")
    if kind is EvidenceKind.SEV_SNP:
        left.append("whether AMD would call the firmware current (the policy's min_tcb stands for it)")
    return tuple(left)
