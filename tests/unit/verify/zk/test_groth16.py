"""Groth16 proofs: checked, against another implementation too, and everything that is not one refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from py_ecc import bn128 as _bn128
from zksnake._algebra import ec_bn254

from placet.core.errors import VerificationFailed
from placet.verify.zk.field import ORDER, to_signed
from placet.verify.zk.groth16 import Proof, VerifyingKey, check

bn128: Any = _bn128
VECTOR = json.loads((Path(__file__).parents[4] / "contracts" / "test" / "vectors" / "groth16.json").read_text())
VK, PROOF = bytes.fromhex(VECTOR["vk"]), bytes.fromhex(VECTOR["compressed"])
NUMBERS = [int(number) for number in VECTOR["numbers"]]
INFINITY = {32: bytes(31) + b"\x40", 64: bytes(63) + b"\x40"}


def holds(vk: bytes = VK, numbers: list[int] = NUMBERS, proof: bytes = PROOF) -> bool:
    try:
        check(VerifyingKey.from_bytes(vk), numbers, Proof.from_bytes(proof))
    except VerificationFailed:
        return False
    return True


def test_a_proof_holds_for_its_numbers_only() -> None:
    assert holds()
    for at in range(len(NUMBERS)):
        for change in (1, -1):
            wrong = [*NUMBERS]
            wrong[at] = (wrong[at] + change) % ORDER
            assert not holds(numbers=wrong)
    assert not holds(numbers=NUMBERS[:-1])
    assert not holds(numbers=[*NUMBERS, 0])


def test_numbers_are_below_the_order() -> None:
    for at in range(len(NUMBERS)):
        wrong = [*NUMBERS]
        wrong[at] += ORDER
        assert not holds(numbers=wrong)
    assert not holds(numbers=[-1, *NUMBERS[1:]])


def test_no_byte_of_a_proof_may_change() -> None:
    for at in range(len(PROOF)):
        for bit in (1, 0x40, 0x80):
            changed = bytearray(PROOF)
            changed[at] ^= bit
            assert not holds(proof=bytes(changed)), at


@pytest.mark.parametrize("cut", [0, 32, 96])
def test_points_at_infinity_are_no_proof(cut: int) -> None:
    size = 64 if cut == 32 else 32
    assert not holds(proof=PROOF[:cut] + INFINITY[size] + PROOF[cut + size :])
    assert ec_bn254.PointG1.from_bytes(INFINITY[32]).is_zero(), "this is how the library writes it"


@pytest.mark.parametrize("raw", [b"", PROOF[:-1], PROOF + b"\0", b"\xff" * 128, bytes(128)])
def test_what_is_no_proof_is_refused(raw: bytes) -> None:
    assert not holds(proof=raw)


@pytest.mark.parametrize("raw", [b"", VK[:-1], VK + b"\0", VK[:-32], VK + VK[-32:], b"\xff" * len(VK), INFINITY[32] + VK[32:]])
def test_what_is_no_key_is_refused(raw: bytes) -> None:
    assert not holds(vk=raw)


def test_a_key_is_written_as_it_is_read() -> None:
    assert VerifyingKey.from_bytes(VK).to_bytes() == VK
    assert [str(word) for word in VerifyingKey.from_bytes(VK).words()] == VECTOR["key"]
    assert [str(word) for word in Proof.from_bytes(PROOF).words()] == VECTOR["proof"]


def test_a_point_outside_the_group_is_refused() -> None:
    """The twist has points that are not of the group's order. A verifier that takes them can be made to accept anything."""
    x = 1
    while True:
        raw = x.to_bytes(32, "little") + bytes(32)
        try:
            ec_bn254.PointG2.from_bytes(raw)
        except ValueError:
            pass
        else:  # pragma: no cover - one in 2^254
            x += 1
            continue
        on_curve = _on_twist(x)
        if on_curve:
            break
        x += 1
    with pytest.raises(VerificationFailed):
        Proof.from_bytes(PROOF[:32] + raw + PROOF[96:])


def _on_twist(x: int) -> bool:
    """Whether x + 0·i has a y on the twist: the right side of its equation is a square in F_p²."""
    value = bn128.FQ2([x, 0]) ** 3 + bn128.b2
    prime = bn128.field_modulus
    return bool(value ** ((prime * prime - 1) // 2) == bn128.FQ2.one())


def test_another_implementation_says_the_same() -> None:
    """py_ecc, in pure Python, over the words that a contract gets."""

    def g1(words: list[int]) -> Any:
        return (bn128.FQ(words[0]), bn128.FQ(words[1])) if any(words) else None

    def g2(words: list[int]) -> Any:
        return bn128.FQ2([words[1], words[0]]), bn128.FQ2([words[3], words[2]])

    key, proof = [int(word) for word in VECTOR["key"]], [int(word) for word in VECTOR["proof"]]
    for numbers, expected in ((NUMBERS, True), ([NUMBERS[0] + 1, *NUMBERS[1:]], False)):
        total = g1(key[14:16])
        for at, number in enumerate(numbers):
            total = bn128.add(total, bn128.multiply(g1(key[16 + 2 * at : 18 + 2 * at]), number))
        left = bn128.pairing(g2(proof[2:6]), g1(proof[:2]))
        right = (
            bn128.pairing(g2(key[2:6]), g1(key[:2])) * bn128.pairing(g2(key[6:10]), total) * bn128.pairing(g2(key[10:14]), g1(proof[6:8]))
        )
        assert (left == right) is expected


def test_the_upper_half_of_the_field_is_negative() -> None:
    assert [to_signed(value % ORDER) for value in (0, 5, -5, ORDER // 2, -(ORDER // 2))] == [0, 5, -5, ORDER // 2, -(ORDER // 2)]
