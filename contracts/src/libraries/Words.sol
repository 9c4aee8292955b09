// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Attestation, Intent, Pins} from "../Types.sol";

/// @notice An {Intent}'s words. `data` and `functionSignature` are offsets here.
struct IntentWords {
    uint256 from;
    uint256 to;
    uint256 value;
    uint256 data;
    uint256 chainId;
    uint256 functionSignature;
    uint256 nonce;
    uint256 deadline;
}

/// @notice A {Leaf}'s words.
struct LeafWords {
    bytes32 taskId;
    uint256 policyClient;
    bytes32 policyId;
    bytes32 intentHash;
    uint256 sequence;
    uint256 allow;
    bytes32 output;
    bytes32 evidence;
    uint256 expiration;
}

/// @notice A {Certificate}'s words.
struct CertificateWords {
    bytes32 root;
    uint256 count;
    uint256 epoch;
    uint256 timestamp;
}

/// @notice An {Attestation}'s words. `merkleProof` and `quorumProof` are offsets here.
struct AttestationWords {
    LeafWords leaf;
    uint256 index;
    uint256 merkleProof;
    CertificateWords certificate;
    uint256 remember;
    uint256 quorumProof;
}

/// @notice {Pins} as words.
struct PinsWords {
    bytes32 policyId;
    uint256 ordering;
    uint256 quorumBps;
    uint256 epochGrace;
    uint256 maxCertificateAge;
}

/// @title Structs in calldata, read word by word
/// @notice The same calldata under struct types whose members are whole words, so that reading one does not check that it fits its type.
/// That check would be spent on every read, and is not needed where the words themselves are hashed and signed: a word too large for its
/// type gives a digest that nobody signed.
library Words {
    /// @notice An intent's words.
    function words(Intent calldata intent) internal pure returns (IntentWords calldata same) {
        assembly ("memory-safe") {
            same := intent
        }
    }

    /// @notice An attestation's words.
    function words(Attestation calldata attestation) internal pure returns (AttestationWords calldata same) {
        assembly ("memory-safe") {
            same := attestation
        }
    }

    /// @notice Pins as words.
    function words(Pins calldata pins) internal pure returns (PinsWords calldata same) {
        assembly ("memory-safe") {
            same := pins
        }
    }
}
