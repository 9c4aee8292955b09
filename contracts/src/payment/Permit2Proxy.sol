// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @notice What of Permit2 a payment needs.
interface ISignatureTransfer {
    struct TokenPermissions {
        address token;
        uint256 amount;
    }

    struct PermitTransferFrom {
        TokenPermissions permitted;
        uint256 nonce;
        uint256 deadline;
    }

    struct SignatureTransferDetails {
        address to;
        uint256 requestedAmount;
    }

    function permitWitnessTransferFrom(
        PermitTransferFrom calldata permit,
        SignatureTransferDetails calldata transferDetails,
        address owner,
        bytes32 witness,
        string calldata witnessTypeString,
        bytes calldata signature
    ) external;
}

/// @title What the two proxies of x402 share
/// @notice Stand-ins for development and tests, written from the interface and the EIP-712 types of x402: on real chains x402's own
/// contracts are at these addresses. Without constructor and state, so that their code can be put at any address.
abstract contract Permit2Proxy {
    /// @notice The payment is not valid yet.
    error PaymentTooEarly();
    /// @notice There is nobody to pay.
    error InvalidDestination();
    /// @notice Nobody pays.
    error InvalidOwner();

    /// @notice A payment was made.
    event Settled();

    /// @notice Where Permit2 is on every chain.
    ISignatureTransfer public constant PERMIT2 = ISignatureTransfer(0x000000000022D473030F116dDEE9F6B43aC78BA3);

    function _settle(
        ISignatureTransfer.PermitTransferFrom calldata permit,
        uint256 amount,
        address owner,
        address to,
        uint256 validAfter,
        bytes32 witness,
        string memory witnessType,
        bytes calldata signature
    ) internal {
        if (owner == address(0)) revert InvalidOwner();
        if (to == address(0)) revert InvalidDestination();
        if (block.timestamp < validAfter) revert PaymentTooEarly();
        ISignatureTransfer.SignatureTransferDetails memory transfer =
            ISignatureTransfer.SignatureTransferDetails(to, amount);
        PERMIT2.permitWitnessTransferFrom(permit, transfer, owner, witness, witnessType, signature);
        emit Settled();
    }
}
