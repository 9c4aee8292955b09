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

    /// @notice The stake in `epoch`; 0 when the record is not about it.
    function stakeIn(StakeRecord record, uint256 epoch) internal pure returns (uint256 stake_) {
        assembly ("memory-safe") {
            let began := iszero(lt(epoch, and(shr(96, record), 0xffffffffffffffff)))
            let ended := iszero(lt(epoch, shr(160, record)))
            stake_ := mul(and(record, 0xffffffffffffffffffffffff), gt(began, ended))
        }
    }

    /// @notice The stake, in whichever epochs.
    function stake(StakeRecord record) internal pure returns (uint96) {
        return uint96(StakeRecord.unwrap(record));
    }
}
