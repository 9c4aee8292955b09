// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {G1, OperatorView, QuorumProof} from "../Types.sol";
import {IStakeSource} from "./IStakeSource.sol";

/// @title What others read of the operator registry
interface IOperatorRegistry {
    /// @notice Where an epoch stands. Revoked: an ejection raised the minimum above it.
    enum EpochState {
        Revoked,
        Superseded,
        Current
    }

    /// @notice There is no such epoch yet.
    error UnknownEpoch(uint64 epoch);

    /// @notice The operator set that counts now; 0 before the first.
    function currentEpoch() external view returns (uint64);

    /// @notice The oldest epoch whose certificates may still count.
    function minEpoch() external view returns (uint64);

    /// @notice The operators of an epoch, ascending by key id.
    function operatorsAt(uint64 epoch) external view returns (OperatorView[] memory);

    /// @notice An epoch's set as quorum proofs state it.
    /// @return apk sum of all keys
    /// @return totalStake what quorum is measured against; more than the sum of the operators' stakes while ejected stake still counts
    /// @return supersededAt when the next epoch began, unix seconds; 0 for the current one
    /// @return activatedAt when this epoch began, unix seconds
    function setAt(uint64 epoch)
        external
        view
        returns (G1 memory apk, uint128 totalStake, uint64 supersededAt, uint64 activatedAt);

    /// @notice Whether certificates of an epoch may be consumed. Reverts with UnknownEpoch for one that is not yet.
    /// @return state where the epoch stands
    /// @return supersededAt when it was superseded, unix seconds; 0 unless it is
    /// @return pausedUntil until when consumption is paused, unix seconds; in the past or 0 when it is not
    function epochStatusAt(uint64 epoch)
        external
        view
        returns (EpochState state, uint64 supersededAt, uint64 pausedUntil);

    /// @notice The key and the stake of those who signed, the epoch's set less the proof's non-signers, and the epoch's status.
    /// @dev Reverts unless the epoch exists, apk and total are its own, and non-signers are its members, strictly ascending by key id.
    /// @return signersKey the sum of the signers' keys
    /// @return signedStake what they weigh
    /// @return state as {epochStatusAt}
    /// @return supersededAt as {epochStatusAt}
    /// @return pausedUntil as {epochStatusAt}
    function quorumAt(uint64 epoch, QuorumProof calldata proof)
        external
        view
        returns (G1 memory signersKey, uint96 signedStake, EpochState state, uint64 supersededAt, uint64 pausedUntil);

    /// @notice What an operator's keys weigh in the current epoch, all together.
    function countedStakeOf(address operator) external view returns (uint96);

    /// @notice Where stake comes from.
    function stakeSource() external view returns (IStakeSource);

    /// @notice Seconds between queueing a change of the set and the earliest moment it can count.
    function activationDelay() external view returns (uint64);
}
