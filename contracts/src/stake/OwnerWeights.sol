// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IStakeSource} from "../interfaces/IStakeSource.sol";

/// @title Stake as weights that an owner sets
/// @notice For a consortium: the owner says who is an operator and what each weighs. Nothing is at stake but the seat.
contract OwnerWeights is IStakeSource, Ownable2Step {
    /// @notice An operator's weight was set. It counts in the registry only after its activation delay.
    event WeightSet(address indexed operator, uint96 weight);

    mapping(address operator => uint96 weight) private _weights;

    /// @param owner_ who sets weights
    constructor(address owner_) Ownable(owner_) {}

    /// @notice Sets an operator's weight; 0 takes the admission back.
    function setWeight(address operator, uint96 weight) external onlyOwner {
        _weights[operator] = weight;
        emit WeightSet(operator, weight);
    }

    /// @inheritdoc IStakeSource
    function stakeOf(address operator, uint64) external view returns (uint96) {
        return _weights[operator];
    }
}
