"""Offline verification of TEE evidence: Intel TDX and SGX, AMD SEV-SNP, AWS Nitro, NVIDIA GPUs.

Pure: clock, roots and policy are arguments.
Needs the extra `tee` of placet-verify for Intel and Nitro. Specified in docs/reference/tee.md.
"""

from placet.core.errors import TeeRejected, TeeUnverifiable
from placet.verify.tee.binding import Binding, Quoted, gpu_nonce
from placet.verify.tee.checks import CHECKS
from placet.verify.tee.evidence import Evidence, EvidenceKind, decode_evidence, encode_evidence
from placet.verify.tee.policy import KindPolicy, TeePolicy, parse_policy
from placet.verify.tee.verify import Attested, evidence_sha256, verify_evidence, verify_quoted

__all__ = [
    "CHECKS",
    "Attested",
    "Binding",
    "Evidence",
    "EvidenceKind",
    "KindPolicy",
    "Quoted",
    "TeePolicy",
    "TeeRejected",
    "TeeUnverifiable",
    "decode_evidence",
    "encode_evidence",
    "evidence_sha256",
    "gpu_nonce",
    "parse_policy",
    "verify_evidence",
    "verify_quoted",
]
