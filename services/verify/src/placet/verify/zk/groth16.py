"""Groth16 over BN254: verifying, and the forms that an EVM contract takes (https://eprint.iacr.org/2016/260).

The pairing and the points come from zksnake (arkworks), which takes what a verifier must refuse: public numbers beyond the field's order,
and points at infinity. They are refused here, as is any encoding but the one of a point. The library is young and was not audited: the
tests check it against another implementation and against the precompiles of an EVM node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from placet.core.errors import Unavailable, VerificationFailed
from placet.verify.zk.field import ORDER

PROOF_BYTES: Final = 128
"""A (32), B (64), C (32), compressed."""
MAX_KEY_BYTES: Final = 1 << 20
_G1, _G2 = 32, 64
_FIXED: Final = _G1 + 3 * _G2


def _ec() -> Any:
    try:
        from zksnake._algebra import ec_bn254
    except ImportError:
        raise Unavailable("proofs are checked with zksnake: pip install 'placet-verify[zk]'") from None
    return ec_bn254


def _point(kind: Any, raw: bytes, what: str, *, infinity: bool = False) -> Any:
    try:
        point = kind.from_bytes(raw)
    except ValueError:
        raise VerificationFailed(f"{what} is no point of the curve", field="proof") from None
    if bytes(point.to_bytes()) != raw:
        raise VerificationFailed(f"{what} is not in its only form", field="proof")
    if point.is_zero() and not infinity:
        raise VerificationFailed(f"{what} is the point at infinity", field="proof")
    return point


@dataclass(frozen=True)
class VerifyingKey:
    """`ic` has one point for 1 and one for each public number."""

    alpha: Any
    beta: Any
    gamma: Any
    delta: Any
    ic: tuple[Any, ...]

    @classmethod
    def from_bytes(cls, raw: bytes) -> VerifyingKey:
        """alpha ‖ beta ‖ gamma ‖ delta ‖ number of the rest (8 bytes, little-endian) ‖ the rest, compressed.

        Raises:
            VerificationFailed: not of the form. Unavailable: zksnake is not installed.
        """
        if not _FIXED + 8 < len(raw) <= MAX_KEY_BYTES or (len(raw) - _FIXED - 8) % _G1:
            raise VerificationFailed("not a verifying key", field="vk")
        if int.from_bytes(raw[_FIXED : _FIXED + 8], "little") != (len(raw) - _FIXED - 8) // _G1:
            raise VerificationFailed("not a verifying key: its length is not its own", field="vk")
        ec = _ec()
        at = _G1
        two = {}
        for name in ("beta", "gamma", "delta"):
            two[name] = _point(ec.PointG2, raw[at : at + _G2], name)
            at += _G2
        rest = tuple(_point(ec.PointG1, raw[i : i + _G1], "a point of the key", infinity=True) for i in range(_FIXED + 8, len(raw), _G1))
        return cls(_point(ec.PointG1, raw[:_G1], "alpha"), two["beta"], two["gamma"], two["delta"], rest)

    def to_bytes(self) -> bytes:
        """The form `from_bytes` reads."""
        points = [self.alpha, self.beta, self.gamma, self.delta]
        head = b"".join(bytes(point.to_bytes()) for point in points) + len(self.ic).to_bytes(8, "little")
        return head + b"".join(bytes(point.to_bytes()) for point in self.ic)

    def words(self) -> list[int]:
        """As Groth16Verifier.sol takes it: alpha, beta, gamma, delta, then the rest; of G2 the imaginary part first (EIP-197)."""
        out = _g1(self.alpha)
        for point in (self.beta, self.gamma, self.delta):
            out += _g2(point)
        for point in self.ic:
            out += _g1(point)
        return out


@dataclass(frozen=True)
class Proof:
    """Three points, none of them infinity."""

    a: Any
    b: Any
    c: Any

    @classmethod
    def from_bytes(cls, raw: bytes) -> Proof:
        """Raises VerificationFailed: not three points in their only form; Unavailable."""
        if len(raw) != PROOF_BYTES:
            raise VerificationFailed(f"a proof has {PROOF_BYTES} bytes", field="proof")
        ec = _ec()
        return cls(
            _point(ec.PointG1, raw[:_G1], "A"),
            _point(ec.PointG2, raw[_G1 : _G1 + _G2], "B"),
            _point(ec.PointG1, raw[_G1 + _G2 :], "C"),
        )

    def words(self) -> list[int]:
        """As Groth16Verifier.sol takes it."""
        return [*_g1(self.a), *_g2(self.b), *_g1(self.c)]


def _g1(point: Any) -> list[int]:
    return [0, 0] if point.is_zero() else [int(point.x), int(point.y)]


def _g2(point: Any) -> list[int]:
    return [int(point.x[1]), int(point.x[0]), int(point.y[1]), int(point.y[0])]


def check(key: VerifyingKey, numbers: Sequence[int], proof: Proof) -> None:
    """Check a proof. `numbers` are the public ones, each in [0, ORDER).

    Raises:
        VerificationFailed: it does not hold.
    """
    if len(numbers) + 1 != len(key.ic):
        raise VerificationFailed(f"{len(numbers)} public numbers, the key is for {len(key.ic) - 1}", field="inputs")
    if any(not 0 <= number < ORDER for number in numbers):
        raise VerificationFailed("a public number is not below the field's order", field="inputs")
    ec = _ec()
    total = ec.multiscalar_mul_g1(list(key.ic), [1, *numbers])
    left = ec.pairing(proof.a, proof.b)
    right = ec.multi_pairing([key.alpha, total, proof.c], [key.beta, key.gamma, key.delta])
    if left != right:
        raise VerificationFailed("the proof does not hold for these numbers", field="proof")
