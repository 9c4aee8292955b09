// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title Inclusion proofs in the trees of certificates
/// @notice Trees as in RFC 6962 §2.1 with keccak: leaves and nodes hashed apart, split at the largest power of two below the count, no
/// sorting, no duplication. Proofs as in RFC 9162 §2.1.3.2, so a leaf's position and the number of leaves are proven with it.
library MerkleInclusion {
    /// @notice Whether `leafHash` is the leaf at `index` of the tree of `count` leaves with `root`.
    /// @param leafHash keccak(0x00 | hashStruct(Leaf))
    /// @param index position, from 0
    /// @param count number of leaves; nothing is in a tree of none
    /// @param proof siblings, lowest first
    /// @param root what was signed
    function isIncluded(bytes32 leafHash, uint256 index, uint256 count, bytes32[] calldata proof, bytes32 root)
        internal
        pure
        returns (bool)
    {
        if (index >= count) return false;
        uint256 position = index;
        uint256 last = count - 1;
        bytes32 hash = leafHash;
        for (uint256 i = 0; i < proof.length; ++i) {
            if (last == 0) return false;
            if (position & 1 == 1 || position == last) {
                hash = nodeHash(proof[i], hash);
                // the last node of an odd level has no sibling there: it rises until it has one
                while (position & 1 == 0 && position != 0) {
                    position >>= 1;
                    last >>= 1;
                }
            } else {
                hash = nodeHash(hash, proof[i]);
            }
            position >>= 1;
            last >>= 1;
        }
        return last == 0 && hash == root;
    }

    /// @notice keccak(0x01 | left | right).
    function nodeHash(bytes32 left, bytes32 right) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, 0x01)
            mstore(add(free, 1), left)
            mstore(add(free, 33), right)
            hash := keccak256(free, 65)
        }
    }
}
