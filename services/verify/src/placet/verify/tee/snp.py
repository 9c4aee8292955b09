"""AMD SEV-SNP: the attestation report, its VCEK and AMD's chain.

Sources: AMD 56860 (SEV-SNP firmware ABI), table "ATTESTATION_REPORT"; AMD 57230 (VCEK certificate and KDS), which names the extensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

from placet.verify.tee.chain import check_chain, load_certificates, p384_key
from placet.verify.tee.checks import Claims, Step, reject
from placet.verify.tee.evidence import Evidence, EvidenceKind
from placet.verify.tee.policy import UP_TO_DATE, KindPolicy

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
_VERSIONS = range(2, 6)
_ECDSA_P384_SHA384 = 1
_POLICY_MIGRATION_AGENT = 1 << 18
_POLICY_DEBUG = 1 << 19
_NO_MIGRATION_AGENT = b"\xff" * 32
_OID = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, _HWID = _OID + "2", _OID + "4"
_EXTENSIONS = {"bootloader": _OID + "3.1", "tee": _OID + "3.2", "snp": _OID + "3.3", "microcode": _OID + "3.8", "fmc": _OID + "3.9"}
_LAYOUT = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
_LAYOUT_WITH_FMC = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}  # from Turin on


@dataclass(frozen=True, slots=True)
class Report:
    """An attestation report, parsed."""

    raw: bytes

    def number(self, offset: int, size: int) -> int:
        """A little-endian integer of the report."""
        return int.from_bytes(self.raw[offset : offset + size], "little")

    def field(self, offset: int, size: int) -> bytes:
        """Bytes of the report."""
        return self.raw[offset : offset + size]

    @property
    def signature(self) -> bytes:
        """DER of the signature: r and s stand as 72 little-endian bytes each."""
        return encode_dss_signature(self.number(SIGNED_BYTES, 72), self.number(SIGNED_BYTES + 72, 72))


def parse(document: bytes) -> Report:
    """A report from its bytes, exactly. Rejects another size, version or algorithm, and bytes in the signature's padding."""
    if len(document) != REPORT_BYTES:
        reject(Step.DOCUMENT, f"a report has {REPORT_BYTES} bytes, this has {len(document)}")
    report = Report(document)
    if report.number(0, 4) not in _VERSIONS:
        reject(Step.DOCUMENT, f"report version {report.number(0, 4)} is not known here")
    if report.number(0x34, 4) != _ECDSA_P384_SHA384:
        reject(Step.DOCUMENT, f"signature algorithm {report.number(0x34, 4)} is not ECDSA P-384 with SHA-384")
    if any(document[SIGNED_BYTES + 144 :]):
        reject(Step.DOCUMENT, "bytes after the signature")
    return report


def signed_parts(evidence: Evidence) -> tuple[bytes, ...]:
    """What identifies the evidence: the signed part of the report, and of the certificate that speaks for its key."""
    parse(evidence.document)
    chain = load_certificates(evidence.certificates[:1])
    if not chain:
        reject(Step.CHAIN, "the VCEK certificate is missing")
    return evidence.document[:SIGNED_BYTES], chain[0].tbs_certificate_bytes


def verify(evidence: Evidence, policy: KindPolicy, at: int) -> Claims:
    """Verify report and chain; say what they claim.

    VCEK, ASK, ARK up to a pinned ARK; the VCEK is for this product, this chip and the firmware that the report names; the report's
    signature holds. Reports that a VLEK signed are refused: a cloud provider shares it among machines, so it names none.

    Raises:
        TeeRejected, TeeUnverifiable.
    """
    report = parse(evidence.document)
    if evidence.collateral:
        reject(Step.DOCUMENT, "collateral, where certificates and revocation lists are wanted")
    signing_key = report.number(0x48, 4) >> 2 & 0b111
    if signing_key != 0:
        reject(Step.CHAIN, f"signed by key type {signing_key}, not by the chip's VCEK (a VLEK names no machine)")
    chain = load_certificates(evidence.certificates)
    if len(chain) != 3:
        reject(Step.CHAIN, f"VCEK, ASK and ARK wanted, {len(chain)} certificates given")
    check_chain(chain, roots=policy.roots, at=at, crls=evidence.crls, crl_required=policy.crl_required)
    vcek, ark = chain[0], chain[2]
    product = _product(vcek, ark)
    hwid = _extension(vcek, _HWID)
    if len(hwid) not in (8, 64) or hwid.ljust(64, b"\0") != report.field(0x1A0, 64):
        reject(Step.CHAIN, "the VCEK is another chip's, or the report hides its chip")
    try:
        p384_key(vcek).verify(report.signature, report.raw[:SIGNED_BYTES], ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        reject(Step.SIGNATURE, "the report's signature does not hold")
    reported = _reported_tcb(vcek, report, product)
    guest_policy = report.number(0x08, 8)
    return Claims(
        EvidenceKind.SEV_SNP,
        report_data=report.field(0x50, 64),
        measurement={
            "measurement": report.field(0x90, 48),
            "host_data": report.field(0xC0, 32),
            "id_key_digest": report.field(0xE0, 48),
            "author_key_digest": report.field(0x110, 48),
            "family_id": report.field(0x10, 16),
            "image_id": report.field(0x20, 16),
        },
        tcb_status=_status(reported, policy.min_tcb.get(product)),
        platform_id=report.field(0x1A0, 64),
        debug="the guest's policy lets the host debug it (bit 19)" if guest_policy & _POLICY_DEBUG else "",
        exposed=_exposed(report, policy),
        details={
            Step.CHAIN: f"VCEK, ASK, ARK of {product}",
            Step.TCB: ", ".join(f"{part} {number}" for part, number in reported.items()),
        },
    )


def _product(vcek: x509.Certificate, ark: x509.Certificate) -> str:
    """The ARK's product, which the VCEK must be for: the layout of firmware versions depends on it."""
    names = [str(attribute.value) for attribute in ark.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(names) != 1 or not names[0].startswith("ARK-"):
        reject(Step.CHAIN, "the root is no ARK")
    product = names[0].removeprefix("ARK-")
    name = _extension(vcek, _PRODUCT_NAME)
    if len(name) < 2 or name[0] != 0x16 or name[1] != len(name) - 2 or name[2:].partition(b"-")[0] != product.encode():
        reject(Step.CHAIN, f"the VCEK is for another product than {product}")
    return product


def _reported_tcb(vcek: x509.Certificate, report: Report, product: str) -> Mapping[str, int]:
    """The firmware's versions as reported, which are those that the VCEK was derived for."""
    reported = report.field(0x180, 8)
    layout = _LAYOUT if product in ("Milan", "Genoa") else _LAYOUT_WITH_FMC
    versions = {part: reported[offset] for part, offset in layout.items()}
    for part, version in versions.items():
        if _small_integer(_extension(vcek, _EXTENSIONS[part])) != version:
            reject(Step.TCB, f"the VCEK is for another {part} than the report's {version}")
    return versions


def _extension(vcek: x509.Certificate, oid: str) -> bytes:
    try:
        value = vcek.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid)).value
    except x509.ExtensionNotFound:
        reject(Step.CHAIN, f"the VCEK lacks the extension {oid}")
    return value.value if isinstance(value, x509.UnrecognizedExtension) else b""


def _small_integer(der: bytes) -> int:
    """A DER INTEGER from 0 to 255; -1 for anything else."""
    if len(der) == 3 and der[:2] == b"\x02\x01" and der[2] < 0x80:
        return der[2]
    if len(der) == 4 and der[:3] == b"\x02\x02\x00" and der[3] >= 0x80:
        return der[3]
    return -1


def _status(reported: Mapping[str, int], least: Mapping[str, int] | None) -> str:
    """AMD gives no verdict, so the policy's least versions do. Without them nobody knows."""
    if least is None:
        return "Unknown"
    return UP_TO_DATE if all(number >= least.get(part, 0) for part, number in reported.items()) else "OutOfDate"


def _exposed(report: Report, policy: KindPolicy) -> str:
    if report.number(0x08, 8) & _POLICY_MIGRATION_AGENT or report.field(0x160, 32) != _NO_MIGRATION_AGENT:
        return "a migration agent may move the guest to another machine"
    vmpl = report.number(0x30, 4)
    return "" if vmpl in policy.vmpls else f"the report was asked for at VMPL {vmpl}, the policy accepts {sorted(policy.vmpls)}"
