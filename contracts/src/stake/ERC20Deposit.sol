// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {IOperatorRegistry} from "../interfaces/IOperatorRegistry.sol";
import {IStakeSource} from "../interfaces/IStakeSource.sol";
import {Limits} from "../libraries/Limits.sol";

/// @title Stake as an ERC-20 deposit
/// @notice Operators that the owner admits deposit a token. A deposit can be taken back only after it stopped counting in the registry
/// and the release delay went by since: the longest time for which a certificate of its epoch can be used, and the challenge window.
/// @dev The owner admits and dismisses; it can neither take nor lock a deposit.
contract ERC20Deposit is IStakeSource, Ownable2Step {
    using SafeERC20 for IERC20;

    /// @notice What an operator has here, in token units.
    /// @param staked counts, as far as the registry took it up
    /// @param leaving asked back
    /// @param releaseAt when `leaving` can be taken out, unix seconds; 0 until it is known to count no more
    struct Account {
        uint128 staked;
        uint128 leaving;
        uint64 releaseAt;
    }

    /// @notice An operator was admitted or dismissed.
    event AdmissionSet(address indexed operator, bool admitted);
    /// @notice A deposit grew.
    event Deposited(address indexed operator, address indexed payer, uint256 amount);
    /// @notice Part of a deposit was asked back.
    event WithdrawalRequested(address indexed operator, uint256 amount);
    /// @notice What was asked back counts no more; the release delay runs.
    event ReleaseStarted(address indexed operator, uint64 releaseAt);
    /// @notice What was asked back left.
    event Withdrawn(address indexed operator, address indexed receiver, uint256 amount);
    /// @notice The registry that counts this stake was named, once.
    event RegistryBound(address indexed registry);

    /// @notice The operator may not deposit.
    error NotAdmitted(address operator);
    /// @notice More was asked back than is staked, or nothing.
    error InvalidAmount(uint256 amount);
    /// @notice Nothing was asked back, or the delay runs already.
    error NoReleaseToStart(address operator);
    /// @notice The registry still counts more than what remains.
    error StillCounted(uint96 counted, uint96 remaining);
    /// @notice The release delay is not over, or was never started.
    error NotReleased(uint64 releaseAt);
    /// @notice A registry is bound already, or this is not its stake source.
    error InvalidRegistry(address registry);
    /// @notice The unit is zero.
    error ZeroUnit();

    /// @notice The token.
    IERC20 public immutable token;
    /// @notice Token units that make one unit of stake.
    uint256 public immutable unit;
    /// @notice The registry that counts this stake.
    IOperatorRegistry public registry;
    /// @notice Whether an operator is admitted.
    mapping(address operator => bool) public isAdmitted;
    /// @notice What an operator has here.
    mapping(address operator => Account) public accounts;

    /// @param token_ what is deposited
    /// @param unit_ token units that make one unit of stake, for instance 10**18; stake is capped by the registry
    /// @param owner_ who admits operators
    constructor(IERC20 token_, uint256 unit_, address owner_) Ownable(owner_) {
        if (unit_ == 0) revert ZeroUnit();
        token = token_;
        unit = unit_;
    }

    /// @notice Names the registry, once.
    function bindRegistry(IOperatorRegistry registry_) external onlyOwner {
        if (address(registry) != address(0) || address(registry_.stakeSource()) != address(this)) {
            revert InvalidRegistry(address(registry_));
        }
        registry = registry_;
        emit RegistryBound(address(registry_));
    }

    /// @notice Admits or dismisses an operator. A dismissed one weighs nothing as soon as the registry takes it up; its deposit stays its own.
    function setAdmission(address operator, bool admitted) external onlyOwner {
        isAdmitted[operator] = admitted;
        emit AdmissionSet(operator, admitted);
    }

    /// @notice Adds to an operator's deposit. Counts what arrives, for tokens that take a fee.
    function deposit(address operator, uint256 amount) external {
        if (!isAdmitted[operator]) revert NotAdmitted(operator);
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = token.balanceOf(address(this)) - before;
        uint256 staked = accounts[operator].staked + received;
        if (received == 0 || staked > type(uint128).max) revert InvalidAmount(amount);
        accounts[operator].staked = uint128(staked);
        emit Deposited(operator, msg.sender, received);
    }

    /// @notice Asks part of the caller's deposit back. It stops weighing with the registry's next restake; asking again starts the wait anew.
    function requestWithdrawal(uint128 amount) external {
        Account storage account = accounts[msg.sender];
        if (amount == 0 || amount > account.staked) revert InvalidAmount(amount);
        account.staked -= amount;
        account.leaving += amount;
        account.releaseAt = 0;
        emit WithdrawalRequested(msg.sender, amount);
    }

    /// @notice Starts the release delay of what an operator asked back, once the registry counts no more than what remains. Anyone may.
    function startRelease(address operator) external {
        Account storage account = accounts[operator];
        if (account.leaving == 0 || account.releaseAt != 0) revert NoReleaseToStart(operator);
        if (address(registry) != address(0)) {
            uint96 counted = registry.countedStakeOf(operator);
            uint96 remaining = _toStake(account.staked);
            if (counted > remaining) revert StillCounted(counted, remaining);
        }
        account.releaseAt = uint64(block.timestamp) + Limits.STAKE_RELEASE_DELAY;
        emit ReleaseStarted(operator, account.releaseAt);
    }

    /// @notice Takes out what was asked back, after the release delay.
    function withdraw(address receiver) external {
        Account storage account = accounts[msg.sender];
        uint64 releaseAt = account.releaseAt;
        if (releaseAt == 0 || block.timestamp < releaseAt) revert NotReleased(releaseAt);
        uint256 amount = account.leaving;
        account.leaving = 0;
        account.releaseAt = 0;
        emit Withdrawn(msg.sender, receiver, amount);
        token.safeTransfer(receiver, amount);
    }

    /// @inheritdoc IStakeSource
    function stakeOf(address operator, uint64) external view returns (uint96) {
        return isAdmitted[operator] ? _toStake(accounts[operator].staked) : 0;
    }

    function _toStake(uint256 amount) private view returns (uint96) {
        uint256 stake = amount / unit;
        return stake > type(uint96).max ? type(uint96).max : uint96(stake);
    }
}
