// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {MerkleInclusion} from "../src/libraries/MerkleInclusion.sol";
import {Network} from "./support/Network.sol";

contract MerkleInclusionTest is Network {
    function included(bytes32 leaf, uint256 index, uint256 count, bytes32[] calldata proof, bytes32 root)
        external
        pure
        returns (bool)
    {
        return MerkleInclusion.isIncluded(leaf, index, count, proof, root);
    }

    function _leaves(uint256 count) private pure returns (bytes32[] memory leaves) {
        leaves = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            leaves[i] = keccak256(abi.encode("leaf", i));
        }
    }

    function test_every_leaf_of_every_small_tree_is_included_at_its_place_only() public view {
        for (uint256 count = 1; count <= 17; ++count) {
            bytes32[] memory leaves = _leaves(count);
            bytes32 root = _root(leaves, 0, count);
            for (uint256 i = 0; i < count; ++i) {
                bytes32[] memory proof = _path(leaves, i, 0, count);
                for (uint256 j = 0; j < count; ++j) {
                    assertEq(this.included(leaves[i], j, count, proof, root), i == j);
                }
                assertFalse(this.included(leaves[i], count, count, proof, root));
                assertFalse(this.included(leaves[i], i, 0, proof, root));
            }
        }
    }

    function testFuzz_a_changed_proof_proves_nothing(uint8 count, uint256 index, uint256 position, bytes32 change)
        public
        view
    {
        vm.assume(count > 1 && change != 0);
        index = index % count;
        bytes32[] memory leaves = _leaves(count);
        bytes32[] memory proof = _path(leaves, index, 0, count);
        bytes32 root = _root(leaves, 0, count);
        assertTrue(this.included(leaves[index], index, count, proof, root));
        position = position % proof.length;
        proof[position] ^= change;
        assertFalse(this.included(leaves[index], index, count, proof, root));
    }

    function testFuzz_a_longer_or_shorter_proof_proves_nothing(uint8 count, uint256 index) public view {
        vm.assume(count > 1);
        index = index % count;
        bytes32[] memory leaves = _leaves(count);
        bytes32[] memory proof = _path(leaves, index, 0, count);
        bytes32 root = _root(leaves, 0, count);
        bytes32[] memory longer = new bytes32[](proof.length + 1);
        bytes32[] memory shorter = new bytes32[](proof.length - 1);
        for (uint256 i = 0; i < proof.length; ++i) {
            longer[i] = proof[i];
            if (i < shorter.length) shorter[i] = proof[i];
        }
        assertFalse(this.included(leaves[index], index, count, longer, root));
        assertFalse(this.included(leaves[index], index, count, shorter, root));
    }

    function test_an_inner_node_is_no_leaf() public view {
        bytes32[] memory leaves = _leaves(4);
        bytes32 root = _root(leaves, 0, 4);
        bytes32 inner = _root(leaves, 0, 2);
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = _root(leaves, 2, 4);
        // a tree of two whose leaves are inner nodes has the same root; what keeps it out is that count and root are signed together,
        // and that a leaf's hash begins with another byte
        assertFalse(this.included(inner, 0, 4, proof, root));
    }
}
