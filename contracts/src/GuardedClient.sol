// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {PolicyClient} from "./PolicyClient.sol";
import {Intent} from "./Types.sol";

/// @title The guarded form: a contract whose own functions need an attestation
/// @notice `intent.data` names one of the contract's guarded functions; it runs with `intent.from` as its caller. There is no call to
/// itself, so nothing that trusts `msg.sender` is reached, and a function is guarded only if {_dispatch} lists it.
abstract contract GuardedClient is PolicyClient {
    /// @notice The intent is for another address than this contract.
    error WrongTarget(address to);
    /// @notice No guarded function has this selector.
    error NotGuarded(bytes4 selector);

    /// @dev Checks the target and runs the guarded function.
    function _perform(Intent calldata intent) internal override returns (bytes memory) {
        if (intent.to != address(this)) revert WrongTarget(intent.to);
        bytes calldata data = intent.data;
        if (data.length < 4) revert NotGuarded(0);
        return _dispatch(bytes4(data[:4]), data[4:], intent.from);
    }

    /// @dev Runs the guarded function `selector` for `caller`; reverts with NotGuarded for any other.
    /// @param arguments ABI-encoded, as attested
    /// @return the ABI-encoded result
    function _dispatch(bytes4 selector, bytes calldata arguments, address caller)
        internal
        virtual
        returns (bytes memory);
}
