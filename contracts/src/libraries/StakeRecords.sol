// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @notice A key's stake in the epochs `[from, to)`, in one word: stake in the low 96 bits, then 64 bits each of `from` and `to`. Zero is
/// no record.
type StakeRecord is uint256;

using StakeRecords for StakeRecord global;

/// @title Stake over a span of epochs
/// @notice A record is closed once and never changed otherwise.
library StakeRecords {
    uint64 private constant OPEN = type(uint64).max;

    /// @notice A stake that counts from an epoch on.
    function open(uint96 stake_, uint64 fromEpoch) internal pure returns (StakeRecord) {
        return StakeRecord.wrap(uint256(stake_) | uint256(fromEpoch) << 96 | uint256(OPEN) << 160);
    }

    /// @notice The same record, ending before `toEpoch`.
    function closedAt(StakeRecord record, uint64 toEpoch) internal pure returns (StakeRecord) {
        uint256 word = StakeRecord.unwrap(record);
        return StakeRecord.wrap((word & ((1 << 160) - 1)) | uint256(toEpoch) << 160);
    }

    /// @notice Whether the record says nothing about `epoch` because it begins later.
    function beginsAfter(StakeRecord record, uint64 epoch) internal pure returns (bool) {
        return uint64(StakeRecord.unwrap(record) >> 96) > epoch;
    }

    /// @notice The stake in `epoch`, for an epoch that the record does not begin after.
    function stakeIn(StakeRecord record, uint64 epoch) internal pure returns (uint96) {
        return epoch < uint64(StakeRecord.unwrap(record) >> 160) ? uint96(StakeRecord.unwrap(record)) : 0;
    }

    /// @notice The stake, in whichever epochs.
    function stake(StakeRecord record) internal pure returns (uint96) {
        return uint96(StakeRecord.unwrap(record));
    }
}
