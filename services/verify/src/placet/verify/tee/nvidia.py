"""NVIDIA GPUs in confidential mode: the attestation report (SPDM 1.1 measurements) and the device's chain.

This shows that a genuine GPU signed a report over this nonce, and no more: whether its firmware and driver are NVIDIA's would take the
reference values (RIM) and OCSP of NVIDIA's services. Hence the level `gpu: signature-only`.

Source: DMTF DSP0274 1.1, GET_MEASUREMENTS and MEASUREMENTS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from placet.verify.tee.chain import check_chain, load_certificates, p384_key
from placet.verify.tee.checks import Claims, Step, reject
from placet.verify.tee.evidence import Evidence, EvidenceKind
from placet.verify.tee.policy import KindPolicy

REQUEST_BYTES = 37
SIGNATURE_BYTES = 96
_NONCE = slice(4, 36)
_SPDM_11, _GET_MEASUREMENTS, _MEASUREMENTS = 0x11, 0xE0, 0x60
_WITH_SIGNATURE, _ALL = 0x01, 0xFF
_DMTF = 1
_OPAQUE_NAMES = {3: "driver_version", 6: "vbios_version"}


@dataclass(frozen=True, slots=True)
class Report:
    """Request and response. `blocks` are the measurements by index; `opaque` are NVIDIA's own fields by their number."""

    nonce: bytes
    signed: bytes
    signature: bytes
    blocks: Mapping[int, bytes]
    opaque: Mapping[int, bytes]


def parse(document: bytes) -> Report:
    """A report from its bytes, exactly: the request of 37 bytes, then the response."""
    if len(document) < REQUEST_BYTES + 8 + 32 + 2 + SIGNATURE_BYTES:
        reject(Step.DOCUMENT, "the report is cut off")
    if document[:2] != bytes([_SPDM_11, _GET_MEASUREMENTS]) or not document[2] & _WITH_SIGNATURE or document[3] != _ALL:
        reject(Step.DOCUMENT, "not a request for all measurements with a signature (SPDM 1.1)")
    response = document[REQUEST_BYTES:]
    if response[:2] != bytes([_SPDM_11, _MEASUREMENTS]):
        reject(Step.DOCUMENT, "not a response with measurements (SPDM 1.1)")
    count, length = response[4], int.from_bytes(response[5:8], "little")
    record, rest = response[8 : 8 + length], response[8 + length :]
    opaque_length = int.from_bytes(rest[32:34], "little")
    if len(record) != length or len(rest) != 32 + 2 + opaque_length + SIGNATURE_BYTES:
        reject(Step.DOCUMENT, "the report is longer or shorter than its parts")
    return Report(
        document[_NONCE],
        document[:-SIGNATURE_BYTES],
        document[-SIGNATURE_BYTES:],
        _blocks(record, count),
        _opaque(rest[34 : 34 + opaque_length]),
    )


def _blocks(record: bytes, count: int) -> Mapping[int, bytes]:
    """Index, specification, size (2 bytes), measurement: `count` times."""
    blocks: dict[int, bytes] = {}
    while record:
        size = int.from_bytes(record[2:4], "little")
        if len(record) < 4 + size or record[1] != _DMTF or record[0] in blocks:
            reject(Step.DOCUMENT, "the measurements cannot be read")
        blocks[record[0]] = record[4 : 4 + size]
        record = record[4 + size :]
    if len(blocks) != count or not count:
        reject(Step.DOCUMENT, "the report names another number of measurements than it has")
    return blocks


def _opaque(data: bytes) -> Mapping[int, bytes]:
    """Type (2 bytes), size (2 bytes), value."""
    fields: dict[int, bytes] = {}
    while data:
        kind, size = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
        if len(data) < 4 + size or kind in fields:
            reject(Step.DOCUMENT, "the report's opaque fields cannot be read")
        fields[kind] = data[4 : 4 + size]
        data = data[4 + size :]
    return fields


def signed_parts(evidence: Evidence) -> tuple[bytes, ...]:
    """What identifies the evidence: request and response without signature, and the attestation key's certificate."""
    report = parse(evidence.document)
    chain = load_certificates(evidence.certificates[:1])
    if not chain:
        reject(Step.CHAIN, "the device's certificates are missing")
    return report.signed, chain[0].tbs_certificate_bytes


def verify(evidence: Evidence, policy: KindPolicy, at: int) -> Claims:
    """Verify report and chain; say what they claim. The platform is the SHA-256 of the device's identity key (the leaf's issuer).

    Raises:
        TeeRejected, TeeUnverifiable.
    """
    if evidence.collateral:
        reject(Step.DOCUMENT, "collateral, where certificates and revocation lists are wanted")
    report = parse(evidence.document)
    chain = load_certificates(evidence.certificates)
    check_chain(chain, roots=policy.roots, at=at, crls=evidence.crls, crl_required=policy.crl_required)
    r, s = (int.from_bytes(half, "big") for half in (report.signature[:48], report.signature[48:]))
    try:
        p384_key(chain[0]).verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        reject(Step.SIGNATURE, "the report's signature does not hold")
    identity = chain[1].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Claims(
        EvidenceKind.NVIDIA_GPU,
        report_data=None,
        nonce=report.nonce,
        measurement={name: report.opaque[number].rstrip(b"\0") for number, name in _OPAQUE_NAMES.items() if number in report.opaque},
        platform_id=hashlib.sha256(identity).digest(),
        details={Step.MEASUREMENT: f"{len(report.blocks)} measurements, compared with nothing (no RIM)"},
    )
