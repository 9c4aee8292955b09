"""The scalar field of BN254, in which the numbers of a proof live."""

from __future__ import annotations

ORDER = 21888242871839275222246405745257275088548364400416034343698204186575808495617
"""r of BN254 (EIP-197): numbers are taken modulo this."""


def to_signed(value: int) -> int:
    """The integer that a field element stands for: elements of the upper half are negative."""
    return value if value <= ORDER // 2 else value - ORDER
