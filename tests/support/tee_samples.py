"""Real evidence (tests/fixtures/tee/README.md), with the times at which it was valid and what it says."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from placet.verify.tee import Evidence, EvidenceKind
from placet.verify.tee.intel import without_padding

FIXTURES = Path(__file__).parent.parent / "fixtures" / "tee"
TODAY = 1_795_600_000
"""November 2026: long after the collateral of these samples."""


def read(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def pem_chain(name: str) -> tuple[bytes, ...]:
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in x509.load_pem_x509_certificates(read(name)))


TDX = Evidence(EvidenceKind.TDX, without_padding(read("tdx_quote.bin")), read("tdx_quote_collateral.json"))
TDX_AT = 1_750_414_563
SGX = Evidence(EvidenceKind.SGX, read("sgx_quote.bin"), read("sgx_quote_collateral.json"))
SGX_AT = 1_750_416_971
NITRO = Evidence(EvidenceKind.NITRO, read("nitro_valid.cbor"))
NITRO_AT = 1_665_651_482
NITRO_DEBUG = Evidence(EvidenceKind.NITRO, read("nitro_debug_mode.cbor"))
NITRO_DEBUG_AT = 1_665_582_606
SNP = Evidence(
    EvidenceKind.SEV_SNP, read("sev_snp_report.bin"), certificates=(read("sev_snp_vcek.der"), *pem_chain("amd_ask_ark_milan.pem"))
)
NVIDIA = Evidence(EvidenceKind.NVIDIA_GPU, read("nvidia_h100_report.bin"), certificates=pem_chain("nvidia_h100_chain.pem"))
