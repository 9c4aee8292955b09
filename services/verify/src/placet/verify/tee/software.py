"""The development attester's evidence: for a machine without any TEE, so that everything around it can be run. It proves nothing.

It cannot be mistaken for more: another format, another root (an Ed25519 key that the checkout made and a policy must pin), another kind
(which a policy must name, and a production policy refuses whatever it names), a measurement of zeros, and INSECURE in the document.
"""

from __future__ import annotations

import re
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from placet.core import jsonx
from placet.core.errors import InvalidInput
from placet.verify.tee.binding import length_prefixed
from placet.verify.tee.checks import Claims, Step, reject
from placet.verify.tee.evidence import Evidence, EvidenceKind
from placet.verify.tee.policy import KindPolicy

SIGNING_TAG = b"placet/tee/software-dev/v1"
MEASUREMENT = bytes(48)
_MEMBERS = {"INSECURE", "kind", "made_at", "measurement", "report_data", "root", "signature", "v"}
MAX_DOCUMENT_BYTES = 1024


def statement(root: bytes, report_data: bytes, made_at: int) -> dict[str, Any]:
    """What a development attester states. `root` is its Ed25519 public key, `report_data` 64 bytes, `made_at` unix seconds."""
    return {
        "v": 1,
        "kind": EvidenceKind.SOFTWARE_DEV.value,
        "INSECURE": True,
        "root": root.hex(),
        "report_data": report_data.hex(),
        "measurement": MEASUREMENT.hex(),
        "made_at": made_at,
    }


def signing_bytes(stated: dict[str, Any]) -> bytes:
    """The bytes that the root signs."""
    return length_prefixed(SIGNING_TAG, jsonx.canonical(stated))


def document(stated: dict[str, Any], signature: bytes) -> bytes:
    """The document, for `Evidence.document`."""
    return jsonx.canonical({**stated, "signature": signature.hex()})


def _parse(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Statement and signature of a document, which must be canonical."""
    try:
        value = jsonx.parse(data, field="document", max_bytes=MAX_DOCUMENT_BYTES, max_depth=1, max_values=32)
    except InvalidInput as error:
        reject(Step.DOCUMENT, error.message)
    if not isinstance(value, dict) or set(value) != _MEMBERS or jsonx.canonical(value) != data:
        reject(Step.DOCUMENT, f"canonical JSON with exactly {', '.join(sorted(_MEMBERS))} wanted")
    root = _hex(value["root"], 32, "root")
    signature = _hex(value.pop("signature"), 64, "signature")
    report_data = _hex(value["report_data"], 64, "report_data")
    made_at = value["made_at"]
    if not isinstance(made_at, int) or isinstance(made_at, bool) or not 0 < made_at < 2**40:
        reject(Step.DOCUMENT, "made_at: unix seconds wanted")
    if jsonx.canonical(value) != jsonx.canonical(statement(root, report_data, made_at)):
        reject(Step.DOCUMENT, "INSECURE, kind, measurement or version are not those of a development attester")
    return value, signature


def _hex(value: Any, size: int, name: str) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", value):
        reject(Step.DOCUMENT, f"{name}: {2 * size} lower-case hexadecimal digits wanted")
    return bytes.fromhex(value)


def signed_parts(evidence: Evidence) -> tuple[bytes, ...]:
    """What identifies the evidence: the statement."""
    return (signing_bytes(_parse(evidence.document)[0]),)


def verify(evidence: Evidence, policy: KindPolicy, at: int) -> Claims:
    """Verify the statement under a pinned root; say what it claims.

    Raises:
        TeeRejected.
    """
    if evidence.certificates or evidence.crls or evidence.collateral:
        reject(Step.DOCUMENT, "certificates or collateral beside a statement that has none")
    stated, signature = _parse(evidence.document)
    root = bytes.fromhex(stated["root"])
    if root not in policy.roots:
        reject(Step.CHAIN, f"the development attester's key {root.hex()} is not pinned")
    try:
        Ed25519PublicKey.from_public_bytes(root).verify(signature, signing_bytes(stated))
    except (InvalidSignature, ValueError):
        reject(Step.SIGNATURE, "the statement's signature does not hold")
    return Claims(
        EvidenceKind.SOFTWARE_DEV,
        report_data=bytes.fromhex(stated["report_data"]),
        measurement={"measurement": MEASUREMENT},
        made_at=stated["made_at"],
    )
