// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {PolicyPreimage} from "../Types.sol";

/// @title Policies by their content
interface IPolicyRegistry {
    /// @notice A policy was published, or published again with another place to find it.
    /// @param policyId the hash of its content
    /// @param publisher who published it this time
    /// @param ordering 0 free, 1 sender, 2 client
    /// @param uri a place to find the content; nothing rests on it, whoever fetches it checks the hash
    event PolicyPublished(bytes32 indexed policyId, address indexed publisher, uint8 ordering, string uri);

    /// @notice The preimage's ordering is none of the three.
    error UnknownOrdering(uint8 ordering);
    /// @notice No such policy was published here.
    error UnknownPolicy(bytes32 policyId);

    /// @notice Makes a policy known to this chain. Anyone may, also again: the id is the content.
    /// @return policyId the hash of the content
    function publish(PolicyPreimage calldata policy, string calldata uri) external returns (bytes32 policyId);

    /// @notice A published policy's ordering; reverts with UnknownPolicy otherwise.
    function orderingOf(bytes32 policyId) external view returns (uint8);
}
