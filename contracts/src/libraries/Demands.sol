// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Pins} from "../Types.sol";

/// @notice A client's pins besides the policy's id, and when what is queued takes their place, in one word, from the low bits up: ordering
/// (8 bits), quorumBps (16), epochGrace (32), maxCertificateAge (32), nextAt (64). A word, not a struct, because every execution reads it.
type Demands is uint256;

using DemandsLibrary for Demands global;

/// @title Reading and writing {Demands}
library DemandsLibrary {
    uint256 private constant NEXT_AT = 88;

    /// @notice Demands that nothing is queued after.
    function pack(uint8 ordering_, uint16 quorumBps, uint32 epochGrace, uint32 maxCertificateAge)
        internal
        pure
        returns (Demands)
    {
        return Demands.wrap(
            uint256(ordering_) | uint256(quorumBps) << 8 | uint256(epochGrace) << 24 | uint256(maxCertificateAge) << 56
        );
    }

    /// @notice When what is queued counts, unix seconds; 0 when nothing is.
    function nextAt(Demands demands) internal pure returns (uint64) {
        return uint64(Demands.unwrap(demands) >> NEXT_AT);
    }

    /// @notice The same demands, until `time`.
    function until(Demands demands, uint64 time) internal pure returns (Demands) {
        return Demands.wrap((Demands.unwrap(demands) & ((1 << NEXT_AT) - 1)) | uint256(time) << NEXT_AT);
    }

    /// @notice The same demands under another ordering.
    function ordered(Demands demands, uint8 ordering_) internal pure returns (Demands) {
        return Demands.wrap((Demands.unwrap(demands) & ~uint256(0xff)) | ordering_);
    }

    /// @notice Their ordering.
    function ordering(Demands demands) internal pure returns (uint8) {
        return uint8(Demands.unwrap(demands));
    }

    /// @notice Writes them into `pins`, together with the policy's id.
    function fill(Demands demands, bytes32 policyId, Pins memory pins) internal pure {
        uint256 word = Demands.unwrap(demands);
        pins.policyId = policyId;
        pins.ordering = uint8(word);
        pins.quorumBps = uint16(word >> 8);
        pins.epochGrace = uint32(word >> 24);
        pins.maxCertificateAge = uint32(word >> 56);
    }
}
