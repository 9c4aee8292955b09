"""Evidence of a TEE as it travels, and its JSON. What the bytes mean is the vendors' modules' business; nothing here verifies.

Two different encodings of the same evidence are possible (ECDSA signatures, base64, refreshed collateral), so nothing may identify evidence
by a hash of these bytes: `placet.verify.tee.evidence_sha256` does it over what was signed.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from placet.core import jsonx, limits
from placet.core.errors import InvalidInput, TooLarge


class EvidenceKind(StrEnum):
    """Who vouches, and in which format."""

    TDX = "tdx"
    SGX = "sgx"
    SEV_SNP = "sev-snp"
    NITRO = "nitro"
    NVIDIA_GPU = "nvidia-gpu"
    SOFTWARE_DEV = "software-dev"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A document with what it takes to verify it.

    Attributes:
        document: the quote, report or attestation document, exactly; no byte before or after it.
        collateral: Intel's collateral as JSON; empty for the others.
        certificates: DER, leaf first, root last; for sev-snp VCEK, ASK, ARK, for nvidia-gpu the device's chain, empty for the others.
        crls: DER.
        gpu: evidence of a GPU that works for this TEE.

    Raises:
        InvalidInput, TooLarge: beyond a limit, or a GPU where none can be.
    """

    kind: EvidenceKind
    document: bytes
    collateral: bytes = b""
    certificates: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()
    gpu: Evidence | None = None

    def __post_init__(self) -> None:
        _at_most("document", len(self.document), limits.MAX_TEE_DOCUMENT_BYTES, "bytes")
        _at_most("collateral", len(self.collateral), limits.MAX_TEE_COLLATERAL_BYTES, "bytes")
        _at_most("certificates", len(self.certificates), limits.MAX_TEE_CERTIFICATES, "certificates")
        _at_most("crls", len(self.crls), limits.MAX_TEE_CRLS, "lists")
        for index, certificate in enumerate(self.certificates):
            _at_most(f"certificates/{index}", len(certificate), limits.MAX_TEE_CERTIFICATE_BYTES, "bytes")
        for index, crl in enumerate(self.crls):
            _at_most(f"crls/{index}", len(crl), limits.MAX_TEE_CRL_BYTES, "bytes")
        if not self.document:
            raise InvalidInput("document: empty", field="document")
        if self.gpu is not None and (self.gpu.kind is not EvidenceKind.NVIDIA_GPU or self.kind is EvidenceKind.NVIDIA_GPU):
            raise InvalidInput("gpu: evidence of kind nvidia-gpu, beside a processor's evidence, wanted", field="gpu")


def encode_evidence(evidence: Evidence) -> bytes:
    """Canonical JSON; members that are empty are left out."""
    return jsonx.canonical(_document(evidence))


def decode_evidence(data: bytes) -> Evidence:
    """Evidence from JSON.

    Raises:
        InvalidInput: not of the form; `field` names the member.
        TooLarge: beyond a limit.
    """
    value = jsonx.parse(data, field="evidence", max_bytes=limits.MAX_TEE_EVIDENCE_BYTES, max_depth=4, max_values=128)
    return _evidence(value, "evidence")


def _document(evidence: Evidence) -> dict[str, Any]:
    document: dict[str, Any] = {"v": 1, "kind": evidence.kind.value, "document": _text(evidence.document)}
    if evidence.collateral:
        document["collateral"] = _text(evidence.collateral)
    if evidence.certificates:
        document["certificates"] = [_text(certificate) for certificate in evidence.certificates]
    if evidence.crls:
        document["crls"] = [_text(crl) for crl in evidence.crls]
    if evidence.gpu is not None:
        document["gpu"] = _document(evidence.gpu)
    return document


def _evidence(value: Any, name: str) -> Evidence:
    if not isinstance(value, dict):
        raise InvalidInput(f"{name}: an object wanted", field=name)
    unknown = sorted(value.keys() - {"v", "kind", "document", "collateral", "certificates", "crls", "gpu"})
    if unknown:
        raise InvalidInput(f"{name}: unknown member {unknown[0][:40]!r}", field=name)
    if value.get("v") != 1 or isinstance(value.get("v"), bool):
        raise InvalidInput(f"{name}/v: only version 1 is known", field=f"{name}/v")
    try:
        kind = EvidenceKind(value["kind"])
    except (KeyError, ValueError):
        raise InvalidInput(f"{name}/kind: one of {', '.join(EvidenceKind)} wanted", field=f"{name}/kind") from None
    return Evidence(
        kind,
        _data(value.get("document"), f"{name}/document"),
        _data(value["collateral"], f"{name}/collateral") if "collateral" in value else b"",
        _list(value.get("certificates", []), f"{name}/certificates"),
        _list(value.get("crls", []), f"{name}/crls"),
        _evidence(value["gpu"], f"{name}/gpu") if "gpu" in value else None,
    )


def _list(value: Any, name: str) -> tuple[bytes, ...]:
    if not isinstance(value, list):
        raise InvalidInput(f"{name}: a list wanted", field=name)
    return tuple(_data(item, f"{name}/{index}") for index, item in enumerate(value))


def _data(value: Any, name: str) -> bytes:
    """Base64 of RFC 4648 section 4, with padding, in its one canonical form."""
    if not isinstance(value, str):
        raise InvalidInput(f"{name}: base64 wanted", field=name)
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{name}: not base64", field=name) from None
    if _text(data) != value:
        raise InvalidInput(f"{name}: not canonical base64", field=name)
    return data


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _at_most(name: str, size: int, bound: int, unit: str) -> None:
    if size > bound:
        raise TooLarge(f"{name}: {size} {unit}, at most {bound}", field=name)
