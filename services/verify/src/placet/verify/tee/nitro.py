"""AWS Nitro Enclaves: the attestation document, a COSE_Sign1 that carries its own chain.

Source: "Verifying the root of trust", AWS Nitro Enclaves user guide, and docs/attestation_process.md of aws-nitro-enclaves-nsm-api.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from placet.verify.tee.chain import check_chain, load_certificates, p384_key
from placet.verify.tee.checks import Claims, Step, reject, unverifiable
from placet.verify.tee.evidence import Evidence, EvidenceKind
from placet.verify.tee.policy import KindPolicy

PROTECTED = bytes.fromhex("a1013822")  # {1: -35}: ES384
MAX_DOCUMENT_BYTES = 16_384 + 256  # a payload of at most 16,384, and what is around it
_MEMBERS = {"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "public_key", "user_data", "nonce"}
_OPTIONAL_BYTES = {"public_key": 1024, "user_data": 512, "nonce": 512}
_ZERO = bytes(48)


@dataclass(frozen=True, slots=True)
class Document:
    """An attestation document, parsed. `chain` is DER, leaf first, root last."""

    payload: bytes
    signature: bytes
    module_id: str
    timestamp_ms: int
    pcrs: Mapping[int, bytes]
    chain: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None


def parse(data: bytes) -> Document:
    """A document from its bytes, exactly.

    Refused: anything but the one encoding that the Nitro security module writes (definite lengths, shortest forms, no tags, no duplicate
    keys, nothing after the end), a filled unprotected header (it is not signed), members that the format does not have.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        reject(Step.DOCUMENT, f"{len(data)} bytes, a document has at most {MAX_DOCUMENT_BYTES}")
    match _cbor(data):
        case [bytes() as protected, dict() as unprotected, bytes() as payload, bytes() as signature]:
            pass
        case _:
            reject(Step.DOCUMENT, "not a COSE_Sign1 of four members")
    if protected != PROTECTED:
        reject(Step.DOCUMENT, "the protected header names another algorithm than ES384")
    if unprotected:
        reject(Step.DOCUMENT, "the unprotected header is not empty, and nobody signed it")
    if len(signature) != 96:
        reject(Step.DOCUMENT, "a signature of 96 bytes wanted")
    members = _cbor(payload)
    if not isinstance(members, dict) or set(members) != _MEMBERS:
        reject(Step.DOCUMENT, f"a map with exactly {', '.join(sorted(_MEMBERS))} wanted")
    return _document(members, payload, signature)


def _document(members: Mapping[str, Any], payload: bytes, signature: bytes) -> Document:
    if members["digest"] != "SHA384":
        reject(Step.DOCUMENT, "digest: SHA384 wanted")
    module_id, timestamp, pcrs, bundle = members["module_id"], members["timestamp"], members["pcrs"], members["cabundle"]
    if not isinstance(module_id, str) or not 0 < len(module_id) <= 256:
        reject(Step.DOCUMENT, "module_id: text of 1 to 256 characters wanted")
    if not isinstance(timestamp, int) or isinstance(timestamp, bool) or not 0 < timestamp < 2**53:
        reject(Step.DOCUMENT, "timestamp: milliseconds since 1970 wanted")
    if (
        not isinstance(pcrs, dict)
        or not {0, 1, 2} <= pcrs.keys()
        or not all(
            isinstance(index, int) and not isinstance(index, bool) and 0 <= index < 32 and isinstance(value, bytes) and len(value) == 48
            for index, value in pcrs.items()
        )
    ):
        reject(Step.DOCUMENT, "pcrs: registers of 48 bytes wanted, 0, 1 and 2 among them")
    if not isinstance(bundle, list | tuple) or not 1 <= len(bundle) <= 8:
        reject(Step.DOCUMENT, "cabundle: 1 to 8 certificates wanted")
    chain = (members["certificate"], *reversed(bundle))
    if not all(isinstance(certificate, bytes) and 0 < len(certificate) <= 1024 for certificate in chain):
        reject(Step.DOCUMENT, "certificates of 1 to 1024 bytes wanted")
    for name, bound in _OPTIONAL_BYTES.items():
        value = members[name]
        if value is not None and not (isinstance(value, bytes) and len(value) <= bound):
            reject(Step.DOCUMENT, f"{name}: at most {bound} bytes wanted, or null")
    return Document(
        payload,
        signature,
        module_id,
        timestamp,
        MappingProxyType(dict(pcrs)),
        chain,
        members["public_key"],
        members["user_data"],
        members["nonce"],
    )


class _NoTags(dict[int, Any]):
    """Semantic decoders of which each refuses: a document has no tags, and some tags make a decoder work hard."""

    def __getitem__(self, tag: int) -> NoReturn:
        raise ValueError(f"tag {tag}")


def _cbor(data: bytes) -> Any:
    try:
        import cbor2  # of the extra `tee`
    except ImportError:  # pragma: no cover
        unverifiable(Step.DOCUMENT, "needs cbor2: install placet-verify[tee]")
    try:
        value = cbor2.loads(data, max_depth=4, allow_indefinite=False, allow_duplicate_keys=False, semantic_decoders=_NoTags())
        canonical = cbor2.dumps(value)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError):
        reject(Step.DOCUMENT, "not CBOR of the form that the security module writes")
    if canonical != data:
        reject(Step.DOCUMENT, "not the encoding that the security module writes, or bytes after the end")
    return value


def signed_parts(evidence: Evidence) -> tuple[bytes, ...]:
    """What identifies the evidence: protected header and payload, which holds the certificate."""
    return PROTECTED, parse(evidence.document).payload


def verify(evidence: Evidence, policy: KindPolicy, at: int) -> Claims:
    """Verify document and chain; say what they claim.

    The bundle's first certificate is the pinned root. The leaf lives for three hours, so an older document is refused by its chain. AWS
    uses no revocation lists; any that are given are checked.

    Raises:
        TeeRejected, TeeUnverifiable.
    """
    if evidence.certificates or evidence.collateral:
        reject(Step.DOCUMENT, "certificates or collateral beside a document that carries its own")
    document = parse(evidence.document)
    chain = load_certificates(document.chain)
    check_chain(chain, roots=policy.roots, at=at, crls=evidence.crls, crl_required=policy.crl_required)
    r, s = (int.from_bytes(half, "big") for half in (document.signature[:48], document.signature[48:]))
    try:
        p384_key(chain[0]).verify(encode_dss_signature(r, s), _to_be_signed(document.payload), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        reject(Step.SIGNATURE, "the document's signature does not hold")
    zero = [f"PCR{index}" for index in (0, 1, 2) if document.pcrs[index] == _ZERO]
    return Claims(
        EvidenceKind.NITRO,
        report_data=document.user_data,
        nonce=document.nonce,
        public_key=document.public_key,
        measurement={f"pcr{index}": value for index, value in sorted(document.pcrs.items())},
        made_at=document.timestamp_ms // 1000,
        debug=f"the enclave runs in debug mode ({', '.join(zero)} zero)" if zero else "",
        details={Step.CHAIN: f"{len(chain)} certificates", Step.DOCUMENT: document.module_id},
    )


def _to_be_signed(payload: bytes) -> bytes:
    """Sig_structure of RFC 9052 section 4.4: ["Signature1", protected, external_aad, payload]."""
    return b"\x84\x6aSignature1" + b"\x44" + PROTECTED + b"\x40" + b"\x59" + len(payload).to_bytes(2, "big") + payload
