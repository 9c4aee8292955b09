"""What evidence must quote so that it is about *this* key, *this* question and *this* model: one digest, made of all three."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from placet.core.errors import InvalidInput

REPORT_DATA_TAG = b"placet/tee/report-data/v1"
GPU_NONCE_TAG = b"placet/tee/gpu-nonce/v1"
MAX_HPKE_KEY_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Quoted:
    """The fields of a document that its TEE chose. Nitro has three, the others only `report_data`."""

    report_data: bytes | None
    nonce: bytes | None = None
    public_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """What a caller expects the TEE to speak for.

    Attributes:
        signing_key: Ed25519 public key that signs receipts, born in the TEE: 32 bytes.
        nonce: the caller's, 32 bytes, fresh for every session.
        model_sha256: 32 bytes.
        hpke_key: public key to which prompts are sealed, in its KEM's encoding (RFC 9180 section 7.1.1); None when there is none.

    Raises:
        InvalidInput: a size is wrong.
    """

    signing_key: bytes
    nonce: bytes
    model_sha256: bytes
    hpke_key: bytes | None = None

    def __post_init__(self) -> None:
        for name in ("signing_key", "nonce", "model_sha256"):
            if len(getattr(self, name)) != 32:
                raise InvalidInput(f"{name}: 32 bytes wanted", field=name)
        if self.hpke_key is not None and not 0 < len(self.hpke_key) <= MAX_HPKE_KEY_BYTES:
            raise InvalidInput(f"hpke_key: 1 to {MAX_HPKE_KEY_BYTES} bytes wanted, or None", field="hpke_key")

    def report_data(self) -> bytes:
        """SHA-512 over tag and fields, each after its length as 4 big-endian bytes; an absent HPKE key has length 0. 64 bytes."""
        fields = (REPORT_DATA_TAG, self.signing_key, self.nonce, self.model_sha256, self.hpke_key or b"")
        return hashlib.sha512(length_prefixed(*fields)).digest()

    def quoted(self) -> Quoted:
        """What a document must hold: the digest; for Nitro the nonce and the key beside it, in the fields made for them."""
        return Quoted(self.report_data(), self.nonce, self.signing_key)


def gpu_nonce(report_data: bytes) -> bytes:
    """The nonce to ask a GPU's report with, from the processor's report data: 32 bytes. It ties the GPU to this TEE and this session."""
    return hashlib.sha256(length_prefixed(GPU_NONCE_TAG, report_data)).digest()


def length_prefixed(*fields: bytes) -> bytes:
    """Fields, each after its length as 4 big-endian bytes."""
    return b"".join(len(item).to_bytes(4, "big") + item for item in fields)
