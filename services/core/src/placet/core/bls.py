"""BLS12-381 signatures (public keys in G1, proof-of-possession scheme) over 32-byte digests.

Two back ends behind one interface: `blspy` (fast, used to run) and `arkworks` (`py_arkworks_bls12381`, the second opinion, and the encoder
for EIP-2537). A conformance test runs Ethereum's vectors on both and pins the four places where blspy departs from the specification;
they are guarded here: secret key 0, empty lists, infinity keys and infinity signatures are refused before the library sees them.

Sources: draft-irtf-cfrg-bls-signature-05, RFC 9380, EIP-2537; facts measured in docs/decisions/0002-bls12-381.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import blspy
import py_arkworks_bls12381 as ark

from placet.core.errors import InvalidInput, VerificationFailed

SIGNATURE_DST = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
POP_DST = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"

PUBLIC_KEY_SIZE = 48
SIGNATURE_SIZE = 96
SECRET_KEY_SIZE = 32

CURVE_ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001

_INFINITY_KEY = b"\xc0" + bytes(47)
_INFINITY_SIGNATURE = b"\xc0" + bytes(95)


class BlsBackend(Protocol):
    """What a library must do. Inputs are checked for size and infinity by the functions of this module, not here."""

    def public_key(self, secret: bytes) -> bytes: ...
    def sign(self, secret: bytes, message: bytes) -> bytes: ...
    def prove_possession(self, secret: bytes) -> bytes: ...
    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool: ...
    def verify_possession(self, key: bytes, proof: bytes) -> bool: ...
    def aggregate(self, signatures: Sequence[bytes]) -> bytes: ...
    def fast_aggregate_verify(self, keys: Sequence[bytes], message: bytes, signature: bytes) -> bool: ...
    def check_key(self, key: bytes) -> None: ...
    def check_signature(self, signature: bytes) -> None: ...


class BlspyBackend:
    """blspy 2.0.3 (blst underneath), PopSchemeMPL. Releases the GIL in its calls."""

    def public_key(self, secret: bytes) -> bytes:
        return bytes(blspy.PrivateKey.from_bytes(secret).get_g1())

    def sign(self, secret: bytes, message: bytes) -> bytes:
        return bytes(blspy.PopSchemeMPL.sign(blspy.PrivateKey.from_bytes(secret), message))

    def prove_possession(self, secret: bytes) -> bytes:
        return bytes(blspy.PopSchemeMPL.pop_prove(blspy.PrivateKey.from_bytes(secret)))

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        return bool(blspy.PopSchemeMPL.verify(blspy.G1Element.from_bytes(key), message, blspy.G2Element.from_bytes(signature)))

    def verify_possession(self, key: bytes, proof: bytes) -> bool:
        return bool(blspy.PopSchemeMPL.pop_verify(blspy.G1Element.from_bytes(key), blspy.G2Element.from_bytes(proof)))

    def aggregate(self, signatures: Sequence[bytes]) -> bytes:
        return bytes(blspy.PopSchemeMPL.aggregate([blspy.G2Element.from_bytes(s) for s in signatures]))

    def fast_aggregate_verify(self, keys: Sequence[bytes], message: bytes, signature: bytes) -> bool:
        points = [blspy.G1Element.from_bytes(k) for k in keys]
        return bool(blspy.PopSchemeMPL.fast_aggregate_verify(points, message, blspy.G2Element.from_bytes(signature)))

    def check_key(self, key: bytes) -> None:
        blspy.G1Element.from_bytes(key)

    def check_signature(self, signature: bytes) -> None:
        blspy.G2Element.from_bytes(signature)


class ArkworksBackend:
    """py_arkworks_bls12381 0.5.0, by composition. It accepts non-canonical infinities, so decoded points are encoded again and compared."""

    def _g1(self, key: bytes) -> ark.G1Point:
        point = ark.G1Point.from_compressed_bytes(key)
        if bytes(point.to_compressed_bytes()) != key:
            raise ValueError("not the canonical encoding of a G1 point")
        return point

    def _g2(self, signature: bytes) -> ark.G2Point:
        point = ark.G2Point.from_compressed_bytes(signature)
        if bytes(point.to_compressed_bytes()) != signature:
            raise ValueError("not the canonical encoding of a G2 point")
        return point

    def _scalar(self, secret: bytes) -> ark.Scalar:
        if not 0 < int.from_bytes(secret, "big") < CURVE_ORDER:
            raise ValueError("secret key out of range")
        return ark.Scalar.from_be_bytes(secret)

    def public_key(self, secret: bytes) -> bytes:
        return bytes((ark.G1Point() * self._scalar(secret)).to_compressed_bytes())

    def _sign(self, secret: bytes, message: bytes, dst: bytes) -> bytes:
        return bytes((ark.G2Point.hash_to_curve(message, dst) * self._scalar(secret)).to_compressed_bytes())

    def sign(self, secret: bytes, message: bytes) -> bytes:
        return self._sign(secret, message, SIGNATURE_DST)

    def prove_possession(self, secret: bytes) -> bytes:
        return self._sign(secret, self.public_key(secret), POP_DST)

    def _check(self, key: ark.G1Point, message: bytes, dst: bytes, signature: bytes) -> bool:
        return bool(ark.GT.pairing_check([key, -ark.G1Point()], [ark.G2Point.hash_to_curve(message, dst), self._g2(signature)]))

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        return self._check(self._g1(key), message, SIGNATURE_DST, signature)

    def verify_possession(self, key: bytes, proof: bytes) -> bool:
        return self._check(self._g1(key), key, POP_DST, proof)

    def aggregate(self, signatures: Sequence[bytes]) -> bytes:
        total = self._g2(signatures[0])
        for signature in signatures[1:]:
            total = total + self._g2(signature)
        return bytes(total.to_compressed_bytes())

    def fast_aggregate_verify(self, keys: Sequence[bytes], message: bytes, signature: bytes) -> bool:
        total = self._g1(keys[0])
        for key in keys[1:]:
            total = total + self._g1(key)
        if bytes(total.to_compressed_bytes()) == _INFINITY_KEY:
            return False
        return self._check(total, message, SIGNATURE_DST, signature)

    def check_key(self, key: bytes) -> None:
        self._g1(key)

    def check_signature(self, signature: bytes) -> None:
        self._g2(signature)


BLSPY: BlsBackend = BlspyBackend()
ARKWORKS: BlsBackend = ArkworksBackend()


def _guard_secret(secret: bytes) -> None:
    if len(secret) != SECRET_KEY_SIZE or not 0 < int.from_bytes(secret, "big") < CURVE_ORDER:
        raise InvalidInput("a BLS secret key is 32 bytes, a number from 1 to the curve order - 1", field="secret_key")


def _guard_digest(digest: bytes) -> None:
    if len(digest) != 32:
        raise InvalidInput("a BLS message here is a 32-byte digest", field="digest")


def check_public_key(key: bytes, backend: BlsBackend = BLSPY) -> None:
    """Refuse what is not a canonical point of G1's prime-order subgroup, or is infinity.

    Raises:
        VerificationFailed: says why.
    """
    if len(key) != PUBLIC_KEY_SIZE or key == _INFINITY_KEY:
        raise VerificationFailed("BLS public key: 48 bytes of a point that is not infinity wanted", field="public_key")
    try:
        backend.check_key(key)
    except Exception as error:  # noqa: BLE001 - the libraries raise their own kinds
        raise VerificationFailed(f"BLS public key is not a valid G1 point: {error}", field="public_key") from None


def check_signature(signature: bytes, backend: BlsBackend = BLSPY) -> None:
    """Refuse what is not a canonical point of G2's prime-order subgroup, or is infinity. Raises VerificationFailed."""
    if len(signature) != SIGNATURE_SIZE or signature == _INFINITY_SIGNATURE:
        raise VerificationFailed("BLS signature: 96 bytes of a point that is not infinity wanted", field="signature")
    try:
        backend.check_signature(signature)
    except Exception as error:  # noqa: BLE001
        raise VerificationFailed(f"BLS signature is not a valid G2 point: {error}", field="signature") from None


def public_key(secret: bytes, backend: BlsBackend = BLSPY) -> bytes:
    """Compressed public key (48 bytes) of a secret scalar (32 bytes, big-endian)."""
    _guard_secret(secret)
    return backend.public_key(secret)


def sign(secret: bytes, digest: bytes, backend: BlsBackend = BLSPY) -> bytes:
    """Signature (96 bytes) over a 32-byte digest."""
    _guard_secret(secret)
    _guard_digest(digest)
    return backend.sign(secret, digest)


def prove_possession(secret: bytes, backend: BlsBackend = BLSPY) -> bytes:
    """Proof of possession (96 bytes) over the compressed public key, under its own DST."""
    _guard_secret(secret)
    return backend.prove_possession(secret)


def verify(key: bytes, digest: bytes, signature: bytes, backend: BlsBackend = BLSPY) -> bool:
    """Whether `signature` over `digest` was made with `key`'s secret. Malformed input is False."""
    try:
        check_public_key(key, backend)
        check_signature(signature, backend)
    except VerificationFailed:
        return False
    _guard_digest(digest)
    return backend.verify(key, digest, signature)


def verify_possession(key: bytes, proof: bytes, backend: BlsBackend = BLSPY) -> bool:
    """Whether the holder of `key` proved possession of its secret. Malformed input is False."""
    try:
        check_public_key(key, backend)
        check_signature(proof, backend)
    except VerificationFailed:
        return False
    return backend.verify_possession(key, proof)


def aggregate(signatures: Sequence[bytes], backend: BlsBackend = BLSPY) -> bytes:
    """Sum of signatures (each already checked).

    Raises:
        InvalidInput: none given.
    """
    if not signatures:
        raise InvalidInput("nothing to aggregate", field="signatures")
    return backend.aggregate(signatures)


def fast_aggregate_verify(keys: Sequence[bytes], digest: bytes, signature: bytes, backend: BlsBackend = BLSPY) -> bool:
    """Whether `signature` is the aggregate over one digest by all `keys`, whose possession was proven at registration."""
    if not keys:
        return False
    try:
        for key in keys:
            check_public_key(key, backend)
        check_signature(signature, backend)
    except VerificationFailed:
        return False
    _guard_digest(digest)
    return backend.fast_aggregate_verify(keys, digest, signature)


def _pad48(coordinates: bytes) -> bytes:
    return b"".join(bytes(16) + coordinates[i : i + 48] for i in range(0, len(coordinates), 48))


def encode_g1(key: bytes) -> bytes:
    """EIP-2537 encoding (128 bytes, x then y) of a compressed G1 point."""
    return _pad48(bytes(ark.G1Point.from_compressed_bytes(key).to_xy_bytes_be()))


def encode_g2(signature: bytes) -> bytes:
    """EIP-2537 encoding (256 bytes, x.c0 x.c1 y.c0 y.c1) of a compressed G2 point."""
    return _pad48(bytes(ark.G2Point.from_compressed_bytes(signature).to_xy_bytes_be()))


def decode_g1(encoded: bytes) -> bytes:
    """Compressed key (48 bytes) from its EIP-2537 encoding.

    Raises:
        VerificationFailed: not an encoding of a valid point.
    """
    half = (0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB - 1) // 2
    if len(encoded) != 128 or any(encoded[0:16]) or any(encoded[64:80]):
        raise VerificationFailed("G1: 128 bytes in EIP-2537 encoding wanted", field="public_key")
    flag = 0xA0 if int.from_bytes(encoded[80:128], "big") > half else 0x80
    compressed = bytes([encoded[16] | flag]) + encoded[17:64]
    check_public_key(compressed)
    if encode_g1(compressed) != encoded:
        raise VerificationFailed("G1: not a point of the curve", field="public_key")
    return compressed


def aggregate_keys(keys: Sequence[bytes]) -> bytes:
    """Compressed sum of public keys (whose possession was proven).

    Raises:
        InvalidInput: none given.
    """
    if not keys:
        raise InvalidInput("no keys to aggregate", field="keys")
    total = blspy.G1Element.from_bytes(keys[0])
    for key in keys[1:]:
        total = total + blspy.G1Element.from_bytes(key)
    return bytes(total)
