"""keccak-256, the hash of the EVM (the padding of Keccak's submission, not that of FIPS 202)."""

from __future__ import annotations

from Crypto.Hash import keccak as _keccak


def keccak256(data: bytes) -> bytes:
    """keccak-256 of `data`, 32 bytes."""
    digest: bytes = _keccak.new(digest_bits=256, data=data).digest()
    return digest
