// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title Where operators' stake comes from
/// @notice The operator registry reads a number here and decides by itself when it counts. An operator whose number is 0 is not
/// admitted, so a source is also the place that says who may be an operator.
interface IStakeSource {
    /// @notice An operator's stake.
    /// @param operator who
    /// @param epoch the epoch in which the stake is to count; a source without history may ignore it
    /// @return the stake, in the source's own unit
    function stakeOf(address operator, uint64 epoch) external view returns (uint96);
}
