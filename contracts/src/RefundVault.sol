// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {Hashing} from "./libraries/Hashing.sol";

/// @title Refunds, each payment once
/// @notice Holds one token. Settlement credits a payment's refund to a beneficiary out of what is not credited yet; a payment id is credited
/// once and paid once, whoever sends what transaction twice. What is credited goes to the beneficiary, or where the beneficiary says:
/// neither owner nor settlement can take it, cancel it or redirect it. What is not credited is the owner's.
/// @dev Not for tokens whose balances shrink by themselves. A token that takes a fee from the receiver is fine: the beneficiary bears it.
/// Funds come by plain transfers, and count as what arrived.
contract RefundVault is Ownable2Step, ReentrancyGuard {
    using SafeERC20 for IERC20;

    /// @notice A refund.
    /// @param beneficiary whose it is; zero when the payment was never credited
    /// @param amount what is to be paid, in token units; zero once it was
    struct Refund {
        address beneficiary;
        uint96 amount;
    }

    /// @notice Somebody else credits from now on; zero: nobody.
    event SettlementChanged(address indexed oldSettlement, address indexed newSettlement);
    /// @notice A payment's refund was set aside.
    event Credited(bytes32 indexed paymentId, address indexed beneficiary, uint96 amount);
    /// @notice A payment's refund was paid.
    event Withdrawn(bytes32 indexed paymentId, address indexed beneficiary, address indexed recipient, uint96 amount);
    /// @notice The owner took what was not credited.
    event SurplusWithdrawn(address indexed recipient, uint256 amount);
    /// @notice Crediting and paying are paused; they resume by themselves.
    event RefundsPaused(uint64 until, uint64 pausableAt);
    /// @notice They were resumed before their time.
    event RefundsResumed();

    /// @notice Only settlement credits.
    error NotSettlement(address caller);
    /// @notice Only the beneficiary or settlement has a refund paid to the beneficiary.
    error NotBeneficiaryNorSettlement(address caller);
    /// @notice A refund is of something.
    error ZeroAmount();
    /// @notice Nothing is paid to the zero address or to this contract.
    error InvalidRecipient(address recipient);
    /// @notice The payment was credited before, and perhaps paid.
    error AlreadyCredited(bytes32 paymentId);
    /// @notice Less than this is here that is not credited.
    error SurplusTooSmall(uint256 surplus, uint256 wanted);
    /// @notice The payment was never credited.
    error UnknownPayment(bytes32 paymentId);
    /// @notice The payment's refund was paid.
    error AlreadyWithdrawn(bytes32 paymentId);
    /// @notice The beneficiary's word for this recipient is too old.
    error SignatureExpired(uint64 deadline);
    /// @notice Neither did the beneficiary call nor is the signature its own.
    error BeneficiaryNotAuthorized(address beneficiary);
    /// @notice The token moved another amount than it was asked to.
    error UnexpectedTransfer(uint256 asked, uint256 moved);
    /// @notice Until this time nothing is credited or paid.
    error Paused(uint64 until);
    /// @notice Pausing is possible again only later.
    error PauseCoolingDown(uint64 pausableAt);
    /// @notice Nothing is paused.
    error NotPaused();

    /// @notice How long a pause lasts unless it is ended sooner, in seconds.
    uint64 public constant PAUSE_DURATION = 1 days;
    /// @notice How long after a pause's end there can be no other, in seconds.
    uint64 public constant PAUSE_COOLDOWN = 7 days;

    /// @notice The token.
    IERC20 public immutable token;
    /// @notice Who credits.
    address public settlement;
    /// @notice Until when crediting and paying are paused, unix seconds.
    uint64 public pausedUntil;
    /// @notice From when on a pause is possible, unix seconds.
    uint64 public pausableAt;
    /// @notice What is credited and not paid yet, in token units.
    uint256 public credited;
    mapping(bytes32 paymentId => Refund) private _refunds;

    /// @param token_ what is refunded
    /// @param settlement_ who credits; zero for nobody yet
    /// @param owner_ who names settlement, pauses, and owns what is not credited
    constructor(IERC20 token_, address settlement_, address owner_) Ownable(owner_) {
        token = token_;
        settlement = settlement_;
        emit SettlementChanged(address(0), settlement_);
    }

    modifier whenNotPaused() {
        if (block.timestamp < pausedUntil) revert Paused(pausedUntil);
        _;
    }

    // ------------------------------------------------------------------------------------------------- crediting and paying

    /// @notice Sets a payment's refund aside, once for ever.
    function credit(bytes32 paymentId, address beneficiary, uint96 amount) external nonReentrant whenNotPaused {
        if (msg.sender != settlement) revert NotSettlement(msg.sender);
        if (amount == 0) revert ZeroAmount();
        _checkRecipient(beneficiary);
        if (_refunds[paymentId].beneficiary != address(0)) revert AlreadyCredited(paymentId);
        _checkSurplus(amount);
        _refunds[paymentId] = Refund(beneficiary, amount);
        credited += amount;
        emit Credited(paymentId, beneficiary, amount);
    }

    /// @notice Pays a refund to its beneficiary. By the beneficiary, or by settlement for one that has no gas.
    function withdraw(bytes32 paymentId) external nonReentrant whenNotPaused {
        Refund memory refund = _due(paymentId);
        if (msg.sender != refund.beneficiary && msg.sender != settlement) {
            revert NotBeneficiaryNorSettlement(msg.sender);
        }
        _pay(paymentId, refund, refund.beneficiary);
    }

    /// @notice Pays a refund to whom its beneficiary says. By the beneficiary, or by anyone with its signature over {withdrawalDigest}.
    /// @param paymentId whose refund it is
    /// @param recipient who gets it
    /// @param deadline until when the beneficiary's word counts, unix seconds
    /// @param signature the beneficiary's, by ECDSA or EIP-1271; not looked at when the beneficiary calls
    function withdrawTo(bytes32 paymentId, address recipient, uint64 deadline, bytes calldata signature)
        external
        nonReentrant
        whenNotPaused
    {
        Refund memory refund = _due(paymentId);
        if (block.timestamp > deadline) revert SignatureExpired(deadline);
        _checkRecipient(recipient);
        _authorize(refund.beneficiary, withdrawalDigest(paymentId, recipient, deadline), signature);
        _pay(paymentId, refund, recipient);
    }

    // --------------------------------------------------------------------------------------------------------- the owner's

    /// @notice Names who credits; zero: nobody. What was credited stands.
    function setSettlement(address settlement_) external onlyOwner {
        emit SettlementChanged(settlement, settlement_);
        settlement = settlement_;
    }

    /// @notice Takes what is not credited. Also while paused.
    function withdrawSurplus(address recipient, uint256 amount) external onlyOwner nonReentrant {
        _checkRecipient(recipient);
        _checkSurplus(amount);
        emit SurplusWithdrawn(recipient, amount);
        _send(recipient, amount);
    }

    /// @notice Stops crediting and paying for {PAUSE_DURATION}. They resume by themselves, and cannot be stopped again before the
    /// cool-down is over.
    function pause() external onlyOwner {
        uint64 time = uint64(block.timestamp);
        if (time < pausableAt) revert PauseCoolingDown(pausableAt);
        pausedUntil = time + PAUSE_DURATION;
        pausableAt = time + PAUSE_DURATION + PAUSE_COOLDOWN;
        emit RefundsPaused(pausedUntil, pausableAt);
    }

    /// @notice Resumes before its time. The cool-down is not shortened.
    function resume() external onlyOwner {
        if (pausedUntil <= block.timestamp) revert NotPaused();
        pausedUntil = uint64(block.timestamp);
        emit RefundsResumed();
    }

    // -------------------------------------------------------------------------------------------------------------- views

    /// @notice A payment's refund. No beneficiary: never credited. A beneficiary and no amount: paid.
    function refundOf(bytes32 paymentId) external view returns (Refund memory) {
        return _refunds[paymentId];
    }

    /// @notice What is here and not credited.
    function surplus() public view returns (uint256) {
        uint256 balance = token.balanceOf(address(this));
        return balance > credited ? balance - credited : 0;
    }

    /// @notice What a beneficiary signs to have a refund paid to another.
    function withdrawalDigest(bytes32 paymentId, address recipient, uint64 deadline) public view returns (bytes32) {
        return
            Hashing.withdrawalDigest(paymentId, recipient, deadline, Hashing.refundDomain(block.chainid, address(this)));
    }

    // ------------------------------------------------------------------------------------------------------------ private

    function _due(bytes32 paymentId) private view returns (Refund memory refund) {
        refund = _refunds[paymentId];
        if (refund.beneficiary == address(0)) revert UnknownPayment(paymentId);
        if (refund.amount == 0) revert AlreadyWithdrawn(paymentId);
    }

    function _pay(bytes32 paymentId, Refund memory refund, address recipient) private {
        _refunds[paymentId].amount = 0;
        credited -= refund.amount;
        emit Withdrawn(paymentId, refund.beneficiary, recipient, refund.amount);
        _send(recipient, refund.amount);
    }

    /// @dev Exactly what is asked for leaves: less, and the beneficiary would have been paid nothing; more, and it would be another's.
    function _send(address recipient, uint256 amount) private {
        uint256 before = token.balanceOf(address(this));
        token.safeTransfer(recipient, amount);
        uint256 left = token.balanceOf(address(this));
        uint256 moved = before > left ? before - left : 0;
        if (moved != amount) revert UnexpectedTransfer(amount, moved);
    }

    function _checkRecipient(address recipient) private view {
        if (recipient == address(0) || recipient == address(this)) revert InvalidRecipient(recipient);
    }

    function _checkSurplus(uint256 wanted) private view {
        uint256 available = surplus();
        if (available < wanted) revert SurplusTooSmall(available, wanted);
    }

    /// @dev As a policy client does: ECDSA first, also for accounts with code, since an EIP-7702 account signs with its key.
    function _authorize(address beneficiary, bytes32 digest, bytes calldata signature) private view {
        if (msg.sender == beneficiary) return;
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (failure == ECDSA.RecoverError.NoError && signer == beneficiary) return;
        if (
            beneficiary.code.length != 0
                && SignatureChecker.isValidERC1271SignatureNowCalldata(beneficiary, digest, signature)
        ) return;
        revert BeneficiaryNotAuthorized(beneficiary);
    }
}
