// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC4626} from "@openzeppelin/contracts/token/ERC20/extensions/ERC4626.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {GuardedClient} from "../GuardedClient.sol";
import {PolicyClient} from "../PolicyClient.sol";

/// @title An ERC-4626 vault that is left only as a policy allows
/// @notice Deposits are open. Assets leave by attested `withdraw` and `redeem`, shares move by attested `transfer`, each for
/// `intent.from` and out of what is its own. A share is a claim on assets, so moving it freely would let a sender whom the policy limits
/// withdraw through another; for the same reason there are no allowances, and nobody withdraws for another owner.
contract GuardedVault is ERC4626, GuardedClient {
    /// @notice Shares of this vault have no allowances.
    error AllowancesDisabled();
    /// @notice The sender withdraws what is not its own.
    error OwnerIsNotSender(address owner, address sender);
    /// @notice The vault takes no ether.
    error ValueNotAccepted(uint256 value);

    /// @param asset_ what the vault holds
    /// @param name_ of the share
    /// @param symbol_ of the share
    /// @param config what the client is deployed with
    constructor(IERC20 asset_, string memory name_, string memory symbol_, ClientConfig memory config)
        ERC4626(asset_)
        ERC20(name_, symbol_)
        PolicyClient(config)
    {}

    /// @notice Closed: withdraw by an attested intent.
    function withdraw(uint256, address, address) public pure override returns (uint256) {
        revert AttestationRequired();
    }

    /// @notice Closed: redeem by an attested intent.
    function redeem(uint256, address, address) public pure override returns (uint256) {
        revert AttestationRequired();
    }

    /// @notice Closed: move shares by an attested intent.
    function transfer(address, uint256) public pure override(ERC20, IERC20) returns (bool) {
        revert AttestationRequired();
    }

    /// @notice Closed: there are no allowances.
    function transferFrom(address, address, uint256) public pure override(ERC20, IERC20) returns (bool) {
        revert AttestationRequired();
    }

    /// @notice Closed: there are no allowances.
    function approve(address, uint256) public pure override(ERC20, IERC20) returns (bool) {
        revert AllowancesDisabled();
    }

    /// @notice 0: nothing can be withdrawn by a bare call.
    function maxWithdraw(address) public pure override returns (uint256) {
        return 0;
    }

    /// @notice 0: nothing can be redeemed by a bare call.
    function maxRedeem(address) public pure override returns (uint256) {
        return 0;
    }

    /// @dev The three guarded functions, each with the sender as the caller that the standard's function would see.
    function _dispatch(bytes4 selector, bytes calldata arguments, address caller)
        internal
        override
        returns (bytes memory)
    {
        if (msg.value != 0) revert ValueNotAccepted(msg.value);
        if (selector == this.withdraw.selector) {
            (uint256 assets, address receiver, address owner_) = abi.decode(arguments, (uint256, address, address));
            if (owner_ != caller) revert OwnerIsNotSender(owner_, caller);
            uint256 shares = previewWithdraw(assets);
            _withdraw(caller, receiver, caller, assets, shares);
            return abi.encode(shares);
        }
        if (selector == this.redeem.selector) {
            (uint256 shares, address receiver, address owner_) = abi.decode(arguments, (uint256, address, address));
            if (owner_ != caller) revert OwnerIsNotSender(owner_, caller);
            uint256 assets = previewRedeem(shares);
            _withdraw(caller, receiver, caller, assets, shares);
            return abi.encode(assets);
        }
        if (selector == this.transfer.selector) {
            (address to, uint256 shares) = abi.decode(arguments, (address, uint256));
            _transfer(caller, to, shares);
            return abi.encode(true);
        }
        revert NotGuarded(selector);
    }
}
