"""Merkle tree over a group's leaves: RFC 6962 §2.1 with keccak-256, inclusion proofs checked as RFC 9162 §2.1.3.2.

Leaf and node hashes are domain-separated (0x00, 0x01), pairs are never sorted, nothing is duplicated; position and count are bound by
the shape of the proof, and the count is signed in the certificate.
"""

from __future__ import annotations

from collections.abc import Sequence

from placet.core.keccak import keccak256
from placet.core.types import Hash32


def leaf_hash(struct_hash: bytes) -> Hash32:
    """`keccak(0x00 ‖ struct_hash)`."""
    return Hash32(keccak256(b"\x00" + struct_hash))


def node_hash(left: bytes, right: bytes) -> Hash32:
    """`keccak(0x01 ‖ left ‖ right)`."""
    return Hash32(keccak256(b"\x01" + left + right))


def root_and_proofs(leaves: Sequence[bytes]) -> tuple[Hash32, list[list[Hash32]]]:
    """Root of the tree and the inclusion proof of every leaf (bottom-up siblings). O(n log n) memory, O(n) hashes.

    Raises:
        ValueError: no leaves.
    """
    if not leaves:
        raise ValueError("a tree has at least one leaf")
    proofs: list[list[Hash32]] = [[] for _ in leaves]

    def build(start: int, end: int) -> Hash32:
        size = end - start
        if size == 1:
            return Hash32(leaves[start])
        split = start + (1 << ((size - 1).bit_length() - 1))
        left, right = build(start, split), build(split, end)
        for position in range(start, split):
            proofs[position].append(right)
        for position in range(split, end):
            proofs[position].append(left)
        return node_hash(left, right)

    return build(0, len(leaves)), proofs


def verify_inclusion(leaf: bytes, index: int, count: int, proof: Sequence[bytes], root: bytes) -> bool:
    """RFC 9162 §2.1.3.2: whether `leaf` stands at `index` of the tree of `count` leaves with this root."""
    if not 0 <= index < count:
        return False
    position, last, computed = index, count - 1, Hash32(leaf)
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            computed = node_hash(sibling, computed)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            computed = node_hash(computed, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and computed == root
