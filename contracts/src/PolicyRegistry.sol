// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IPolicyRegistry} from "./interfaces/IPolicyRegistry.sol";
import {Hashing} from "./libraries/Hashing.sol";
import {ORDERING_CLIENT, PolicyPreimage} from "./Types.sol";

/// @title Policies by their content
/// @notice Owns nothing but the fact that a policy's content hashes to its id, and the one field that contracts need of it. No owner;
/// publishing is open, and publishing again changes nothing but the place named in the event.
contract PolicyRegistry is IPolicyRegistry {
    /// @dev ordering + 1; 0 is unknown.
    mapping(bytes32 policyId => uint8) private _orderings;

    /// @inheritdoc IPolicyRegistry
    function publish(PolicyPreimage calldata policy, string calldata uri) external returns (bytes32 policyId) {
        if (policy.ordering > ORDERING_CLIENT) revert UnknownOrdering(policy.ordering);
        policyId = Hashing.policyId(policy);
        _orderings[policyId] = policy.ordering + 1;
        emit PolicyPublished(policyId, msg.sender, policy.ordering, uri);
    }

    /// @inheritdoc IPolicyRegistry
    function orderingOf(bytes32 policyId) external view returns (uint8) {
        uint8 known = _orderings[policyId];
        if (known == 0) revert UnknownPolicy(policyId);
        return known - 1;
    }

    /// @notice The id that this content has.
    function policyIdOf(PolicyPreimage calldata policy) external pure returns (bytes32) {
        return Hashing.policyId(policy);
    }
}
