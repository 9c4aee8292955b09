// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ISignatureTransfer, Permit2Proxy} from "./Permit2Proxy.sol";

/// @title Stand-in for x402's proxy of exact payments through Permit2
/// @notice Anyone may send a payment; what is paid, and to whom, its payer signed.
contract ExactPermit2Proxy is Permit2Proxy {
    /// @notice What a payer signs besides token and amount.
    /// @param to who is paid
    /// @param validAfter from when on, unix seconds
    struct Witness {
        address to;
        uint256 validAfter;
    }

    bytes32 private constant WITNESS_TYPEHASH = keccak256("Witness(address to,uint256 validAfter)");
    string private constant WITNESS_TYPE =
        "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,uint256 validAfter)";

    /// @notice Pays exactly what was permitted.
    function settle(
        ISignatureTransfer.PermitTransferFrom calldata permit,
        address owner,
        Witness calldata witness,
        bytes calldata signature
    ) external {
        bytes32 digest = keccak256(abi.encode(WITNESS_TYPEHASH, witness.to, witness.validAfter));
        uint256 amount = permit.permitted.amount;
        _settle(permit, amount, owner, witness.to, witness.validAfter, digest, WITNESS_TYPE, signature);
    }
}
