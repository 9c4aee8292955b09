// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ExecutorClient} from "../ExecutorClient.sol";
import {PolicyClient} from "../PolicyClient.sol";

/// @title A wallet that pays out of what it holds only as a policy allows
/// @notice Holds tokens. Whom the policy lets act for it, and for what, is all in the policy: it must name its senders. Takes no plain
/// ether, because value always comes from the submitter and what lay here could not be moved.
contract GuardedWallet is ExecutorClient {
    /// @param config what the client is deployed with
    constructor(ClientConfig memory config) PolicyClient(config) {}
}
