// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IOperatorRegistry} from "./interfaces/IOperatorRegistry.sol";
import {PolicyClient} from "./PolicyClient.sol";
import {Intent} from "./Types.sol";

/// @title The execute form: a contract that makes attested calls to others
/// @notice Calls `intent.to` with `intent.data` and exactly the value that the submitter sent along, so its own ether is nobody's to
/// spend. Never delegates, and refuses to call itself and the protocol's contracts, to which it is somebody.
abstract contract ExecutorClient is PolicyClient {
    /// @notice The client may not call this address.
    error ForbiddenTarget(address to);
    /// @notice The call carries data and there is no code to read it.
    error NoCodeAtTarget(address to);
    /// @notice The call failed and gave no reason.
    error CallFailed(address to);

    address private immutable _operatorRegistry;
    address private immutable _stakeSource;

    constructor() {
        _operatorRegistry = validator.registry();
        _stakeSource = address(IOperatorRegistry(_operatorRegistry).stakeSource());
    }

    /// @dev Makes the call and returns what it returned; reverts as it reverted.
    function _perform(Intent calldata intent) internal override returns (bytes memory) {
        address to = intent.to;
        if (
            to == address(this) || to == address(validator) || to == _operatorRegistry || to == address(policyRegistry)
                || to == _stakeSource
        ) revert ForbiddenTarget(to);
        if (intent.data.length != 0 && to.code.length == 0) revert NoCodeAtTarget(to);
        (bool done, bytes memory result) = to.call{value: msg.value}(intent.data);
        if (!done) {
            if (result.length == 0) revert CallFailed(to);
            _bubble();
        }
        return result;
    }
}
