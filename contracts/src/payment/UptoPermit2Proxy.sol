// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ISignatureTransfer, Permit2Proxy} from "./Permit2Proxy.sol";

/// @title Stand-in for x402's proxy of metered payments through Permit2
/// @notice Only the facilitator that the payer named sends a payment, once, of at most what was permitted.
contract UptoPermit2Proxy is Permit2Proxy {
    /// @notice What a payer signs besides token and greatest amount.
    /// @param to who is paid
    /// @param facilitator who says how much
    /// @param validAfter from when on, unix seconds
    struct Witness {
        address to;
        address facilitator;
        uint256 validAfter;
    }

    /// @notice Another than the facilitator that the payer named.
    error UnauthorizedFacilitator();
    /// @notice More than was permitted.
    error AmountExceedsPermitted();

    bytes32 private constant WITNESS_TYPEHASH = keccak256("Witness(address to,address facilitator,uint256 validAfter)");
    string private constant WITNESS_TYPE =
        "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,address facilitator,uint256 validAfter)";

    /// @notice Pays `amount` of what was permitted.
    function settle(
        ISignatureTransfer.PermitTransferFrom calldata permit,
        uint256 amount,
        address owner,
        Witness calldata witness,
        bytes calldata signature
    ) external {
        if (msg.sender != witness.facilitator) revert UnauthorizedFacilitator();
        if (amount > permit.permitted.amount) revert AmountExceedsPermitted();
        bytes32 digest = keccak256(abi.encode(WITNESS_TYPEHASH, witness.to, witness.facilitator, witness.validAfter));
        _settle(permit, amount, owner, witness.to, witness.validAfter, digest, WITNESS_TYPE, signature);
    }
}
