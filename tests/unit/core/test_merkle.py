"""The tree is RFC 6962's, and a proof binds position and count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placet.core.keccak import keccak256
from placet.core.merkle import leaf_hash, node_hash, root_and_proofs, verify_inclusion

LEAVES = st.integers(1, 70).map(lambda count: [leaf_hash(bytes([index]) * 32) for index in range(count)])


@given(LEAVES, st.data())
def test_every_leaf_is_included_at_its_place_and_nowhere_else(leaves: list[bytes], data: st.DataObject) -> None:
    root, proofs = root_and_proofs(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    assert verify_inclusion(leaves[index], index, len(leaves), proofs[index], root)
    other = data.draw(st.integers(-1, len(leaves) + 3).filter(lambda value: value != index))
    assert not verify_inclusion(leaves[index], other, len(leaves), proofs[index], root)


@given(LEAVES, st.data())
def test_a_proof_of_another_count_or_with_a_changed_part_does_not_hold(leaves: list[bytes], data: st.DataObject) -> None:
    root, proofs = root_and_proofs(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = proofs[index]
    assert not verify_inclusion(leaves[index], index, len(leaves), [*proof, bytes(32)], root)
    if proof:
        assert not verify_inclusion(leaves[index], index, len(leaves), proof[:-1], root)
        position = data.draw(st.integers(0, len(proof) - 1))
        changed = [*proof[:position], keccak256(proof[position]), *proof[position + 1 :]]
        assert not verify_inclusion(leaves[index], index, len(leaves), changed, root)
    assert not verify_inclusion(keccak256(leaves[index]), index, len(leaves), proof, root)


def test_an_inner_node_does_not_pass_as_a_leaf() -> None:
    leaves = [leaf_hash(bytes([index]) * 32) for index in range(4)]
    root, proofs = root_and_proofs(leaves)
    inner = node_hash(leaves[0], leaves[1])
    assert not verify_inclusion(inner, 0, 4, proofs[0][1:], root)
    assert verify_inclusion(inner, 0, 2, proofs[0][1:], root), "under a count of 2 it would; so the count must be signed"


def test_an_empty_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one leaf"):
        root_and_proofs([])


def test_one_leaf_is_its_own_root() -> None:
    leaf = leaf_hash(bytes(32))
    assert root_and_proofs([leaf]) == (leaf, [[]])
