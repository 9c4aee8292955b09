"""Whose key made an ECDSA signature over secp256k1. One form of each signature counts: 65 bytes, v of 27 or 28, low s (EIP-2). Pure."""

from __future__ import annotations

import coincurve

from placet.core.keccak import keccak256
from placet.core.types import Address, Hash32

HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def recover(digest: Hash32, signature: bytes) -> Address | None:
    """The address whose key made this 65-byte signature (r ‖ s ‖ v); None when it is none, or has a high s (EIP-2)."""
    if len(signature) != 65 or signature[64] not in (27, 28) or int.from_bytes(signature[32:64], "big") > HALF_ORDER:
        return None
    try:
        key = coincurve.PublicKey.from_signature_and_message(signature[:64] + bytes([signature[64] - 27]), digest, hasher=None)
    except Exception:  # noqa: BLE001 - coincurve raises bare Exceptions
        return None
    return Address(keccak256(key.format(compressed=False)[1:])[12:])
