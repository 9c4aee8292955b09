// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Attestation, Intent, Pins} from "../Types.sol";

/// @title A contract that acts only on attested intents
interface IPolicyClient {
    /// @notice Executes an attested intent. Callable by `intent.from`, or by anyone with its signature.
    /// @param intent what is to be done; `msg.value` must be its value
    /// @param senderSignature by `intent.from` over the intent's hash, ECDSA or EIP-1271; unused when `intent.from` calls
    /// @param attestation the decision and its proof
    /// @return what the call returned
    function executeIntent(Intent calldata intent, bytes calldata senderSignature, Attestation calldata attestation)
        external
        payable
        returns (bytes memory);

    /// @notice What this client demands now; a queued change counts from its effective time on.
    function placetPins() external view returns (Pins memory);

    /// @notice Queues another policy; it counts after the policy delay.
    function setPolicy(bytes32 policyId) external;
}
