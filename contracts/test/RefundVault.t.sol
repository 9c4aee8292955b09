// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";
import {TestToken} from "../src/examples/TestToken.sol";
import {RefundVault} from "../src/RefundVault.sol";
import {Network} from "./support/Network.sol";
import {FalseToken, FeeToken, GreedyToken, HookToken, IReceiver, IdleToken, SilentToken} from "./support/Tokens.sol";

/// @dev A contract account that says yes to one digest.
contract Account1271 is IERC1271 {
    bytes32 private immutable _accepted;

    constructor(bytes32 accepted) {
        _accepted = accepted;
    }

    function isValidSignature(bytes32 digest, bytes calldata) external view returns (bytes4) {
        return digest == _accepted ? IERC1271.isValidSignature.selector : bytes4(0);
    }
}

/// @dev Owner, settlement and beneficiary in one, who tries everything again whenever a token calls it.
contract Thief is IReceiver {
    RefundVault public vault;
    bytes32 public paymentId;
    uint256 public attempts;
    uint256 public successes;
    uint256 public refusals;

    function aim(RefundVault vault_, bytes32 paymentId_) external {
        vault = vault_;
        paymentId = paymentId_;
    }

    function onToken() external {
        _try(abi.encodeCall(vault.withdraw, (paymentId)));
        _try(abi.encodeCall(vault.withdrawTo, (paymentId, address(this), type(uint64).max, "")));
        _try(abi.encodeCall(vault.withdrawSurplus, (address(this), 1)));
        _try(abi.encodeCall(vault.credit, ("again", address(this), 1)));
    }

    function _try(bytes memory data) private {
        ++attempts;
        (bool done, bytes memory answer) = address(vault).call(data);
        if (done) ++successes;
        else if (bytes4(answer) == ReentrancyGuard.ReentrancyGuardReentrantCall.selector) ++refusals;
    }

    function withdraw() external {
        vault.withdraw(paymentId);
    }

    function takeSurplus(uint256 amount) external {
        vault.withdrawSurplus(address(this), amount);
    }
}

contract RefundVaultTest is Network {
    TestToken internal token;
    RefundVault internal vault;
    address internal settlement = makeAddr("settlement");
    address internal payer;
    uint256 internal payerKey;
    address internal friend = makeAddr("friend");
    bytes32 internal constant ID = "payment";

    function setUp() public {
        vm.warp(START);
        (payer, payerKey) = makeAddrAndKey("payer");
        token = new TestToken("Dollar", "USD", 6);
        vault = _refundVault(address(token), settlement, owner);
        token.mint(address(vault), 1000);
    }

    function _refundVault(address token_, address settlement_, address owner_) private returns (RefundVault) {
        bytes memory arguments = abi.encode(token_, settlement_, owner_);
        return RefundVault(_create("RefundVault", type(RefundVault).creationCode, arguments));
    }

    function _credit(bytes32 paymentId, address beneficiary, uint96 amount) private {
        vm.prank(settlement);
        vault.credit(paymentId, beneficiary, amount);
    }

    /// @dev By plain `abi.encode`, so that the contract's hashing is compared with the specification's.
    function _withdrawal(bytes32 paymentId, address recipient, uint64 deadline) private view returns (bytes32) {
        bytes32 typehash = keccak256("Withdrawal(bytes32 paymentId,address recipient,uint64 deadline)");
        return _digest(
            _domain("Placet Refunds", address(vault)), keccak256(abi.encode(typehash, paymentId, recipient, deadline))
        );
    }

    function _signed(bytes32 paymentId, address recipient, uint64 deadline) private view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(payerKey, _withdrawal(paymentId, recipient, deadline));
        return abi.encodePacked(r, s, v);
    }

    // ------------------------------------------------------------------------------------------------- crediting and paying

    function test_a_refund_is_set_aside_and_paid() public {
        vm.expectEmit();
        emit RefundVault.Credited(ID, payer, 300);
        _credit(ID, payer, 300);
        assertEq(vault.credited(), 300);
        assertEq(vault.surplus(), 700);
        assertEq(abi.encode(vault.refundOf(ID)), abi.encode(RefundVault.Refund(payer, 300)));
        vm.expectEmit();
        emit RefundVault.Withdrawn(ID, payer, payer, 300);
        vm.prank(payer);
        vault.withdraw(ID);
        assertEq(token.balanceOf(payer), 300);
        assertEq(vault.credited(), 0);
        assertEq(vault.surplus(), 700);
        assertEq(abi.encode(vault.refundOf(ID)), abi.encode(RefundVault.Refund(payer, 0)));
    }

    function test_settlement_pays_a_beneficiary_without_gas_but_only_the_beneficiary() public {
        _credit(ID, payer, 300);
        vm.startPrank(settlement);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.BeneficiaryNotAuthorized.selector, payer));
        vault.withdrawTo(ID, settlement, START, "");
        vault.withdraw(ID);
        assertEq(token.balanceOf(payer), 300);
    }

    function test_the_beneficiary_names_another_by_itself_or_by_its_signature() public {
        _credit("one", payer, 100);
        _credit("two", payer, 200);
        vm.prank(payer);
        vault.withdrawTo("one", friend, START, "");
        vm.expectEmit();
        emit RefundVault.Withdrawn("two", payer, friend, 200);
        vault.withdrawTo("two", friend, START, _signed("two", friend, START));
        assertEq(token.balanceOf(friend), 300);
    }

    function test_a_contract_signs_by_erc1271() public {
        Account1271 account = new Account1271(_withdrawal(ID, friend, START));
        _credit(ID, address(account), 100);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.BeneficiaryNotAuthorized.selector, address(account)));
        vault.withdrawTo(ID, settlement, START, "");
        vault.withdrawTo(ID, friend, START, "");
        assertEq(token.balanceOf(friend), 100);
    }

    function test_an_account_with_code_signs_with_its_key_too() public {
        vm.etch(payer, hex"ef01001111111111111111111111111111111111111111");
        _credit(ID, payer, 100);
        vault.withdrawTo(ID, friend, START, _signed(ID, friend, START));
        assertEq(token.balanceOf(friend), 100);
    }

    function test_a_signature_is_for_one_payment_recipient_deadline_vault_and_chain() public {
        _credit("one", payer, 100);
        _credit("two", payer, 100);
        bytes memory signature = _signed("one", friend, START);
        bytes memory refusal = abi.encodeWithSelector(RefundVault.BeneficiaryNotAuthorized.selector, payer);
        vm.expectRevert(refusal);
        vault.withdrawTo("two", friend, START, signature);
        vm.expectRevert(refusal);
        vault.withdrawTo("one", settlement, START, signature);
        vm.expectRevert(refusal);
        vault.withdrawTo("one", friend, START + 1, signature);
        uint256 chainId = block.chainid;
        vm.chainId(999);
        vm.expectRevert(refusal);
        vault.withdrawTo("one", friend, START, signature);
        vm.chainId(chainId);

        RefundVault first = vault;
        vault = _refundVault(address(token), settlement, owner);
        token.mint(address(vault), 100);
        _credit("one", payer, 100);
        vm.expectRevert(refusal);
        vault.withdrawTo("one", friend, START, signature);
        first.withdrawTo("one", friend, START, signature);
    }

    function test_the_digest_is_the_specifications() public {
        assertEq(vault.withdrawalDigest(ID, friend, 7), _withdrawal(ID, friend, 7));
        // golden: chain 31337, vault 0x1111…, id 0x3333…, recipient 0x2222…, deadline 1800000000, computed with eth-account
        vm.chainId(31337);
        address at = 0x1111111111111111111111111111111111111111;
        vm.etch(at, address(vault).code);
        bytes32 id = 0x3333333333333333333333333333333333333333333333333333333333333333;
        assertEq(
            RefundVault(at).withdrawalDigest(id, 0x2222222222222222222222222222222222222222, START),
            0x16260cab8eb3a03915fd6fd8ce97091b6464804dac76b8eafe199c2e13f6e342
        );
    }

    /// @dev Threat 15: two leaders of settlement send the same refund, in whatever order, before and after it was paid.
    function test_a_payment_is_refunded_once_whoever_sends_it_again() public {
        _credit(ID, payer, 300);
        bytes memory twice = abi.encodeWithSelector(RefundVault.AlreadyCredited.selector, ID);
        vm.expectRevert(twice);
        _credit(ID, payer, 300);
        vm.prank(settlement);
        vault.withdraw(ID);
        vm.expectRevert(twice);
        _credit(ID, payer, 300);
        vm.expectRevert(twice);
        _credit(ID, friend, 1);
        bytes memory paid = abi.encodeWithSelector(RefundVault.AlreadyWithdrawn.selector, ID);
        vm.expectRevert(paid);
        vm.prank(settlement);
        vault.withdraw(ID);
        bytes memory signature = _signed(ID, friend, START);
        vm.expectRevert(paid);
        vault.withdrawTo(ID, friend, START, signature);
        assertEq(token.balanceOf(payer), 300);
        assertEq(token.balanceOf(address(vault)), 700);
    }

    function testFuzz_credits_never_exceed_what_is_here(uint96 a, uint96 b, uint256 funds) public {
        funds = bound(funds, 0, type(uint128).max);
        token.mint(address(vault), funds);
        uint256 left = funds + 1000;
        uint96[2] memory wanted = [a, b];
        for (uint256 i = 0; i < 2; ++i) {
            bool fits = wanted[i] != 0 && wanted[i] <= left;
            if (wanted[i] == 0) {
                vm.expectRevert(RefundVault.ZeroAmount.selector);
            } else if (!fits) {
                vm.expectRevert(abi.encodeWithSelector(RefundVault.SurplusTooSmall.selector, left, wanted[i]));
            }
            _credit(bytes32(i), payer, wanted[i]);
            if (fits) left -= wanted[i];
        }
        assertEq(vault.surplus(), left);
    }

    // --------------------------------------------------------------------------------------------------------- the owner's

    function test_the_owner_takes_what_is_not_credited_and_nothing_else() public {
        _credit(ID, payer, 300);
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.SurplusTooSmall.selector, 700, 701));
        vault.withdrawSurplus(owner, 701);
        vm.expectEmit();
        emit RefundVault.SurplusWithdrawn(owner, 700);
        vault.withdrawSurplus(owner, 700);
        vm.stopPrank();
        assertEq(token.balanceOf(owner), 700);
        vm.prank(payer);
        vault.withdraw(ID);
        assertEq(token.balanceOf(payer), 300);
    }

    function test_another_settlement_cannot_touch_what_was_credited() public {
        _credit(ID, payer, 300);
        vm.expectEmit();
        emit RefundVault.SettlementChanged(settlement, friend);
        vm.prank(owner);
        vault.setSettlement(friend);
        vm.startPrank(friend);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.AlreadyCredited.selector, ID));
        vault.credit(ID, friend, 300);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.BeneficiaryNotAuthorized.selector, payer));
        vault.withdrawTo(ID, friend, START, "");
        vm.stopPrank();
        vm.expectRevert(abi.encodeWithSelector(RefundVault.NotSettlement.selector, settlement));
        _credit("next", payer, 1);
        assertEq(vault.refundOf(ID).amount, 300);
    }

    function test_only_the_owner_pauses_names_settlement_and_takes_the_surplus() public {
        bytes memory refusal = abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, settlement);
        vm.startPrank(settlement);
        vm.expectRevert(refusal);
        vault.setSettlement(settlement);
        vm.expectRevert(refusal);
        vault.withdrawSurplus(settlement, 1);
        vm.expectRevert(refusal);
        vault.pause();
        vm.expectRevert(refusal);
        vault.resume();
        vm.stopPrank();
        vm.prank(owner);
        vault.transferOwnership(friend);
        assertEq(vault.owner(), owner);
        vm.prank(friend);
        vault.acceptOwnership();
        assertEq(vault.owner(), friend);
    }

    function test_a_pause_ends_by_itself_and_there_is_none_for_a_week_after() public {
        _credit(ID, payer, 300);
        vm.expectEmit();
        emit RefundVault.RefundsPaused(START + 1 days, START + 8 days);
        vm.prank(owner);
        vault.pause();
        bytes memory refusal = abi.encodeWithSelector(RefundVault.Paused.selector, START + 1 days);
        vm.expectRevert(refusal);
        _credit("next", payer, 1);
        vm.startPrank(payer);
        vm.expectRevert(refusal);
        vault.withdraw(ID);
        vm.expectRevert(refusal);
        vault.withdrawTo(ID, friend, START, "");
        skip(1 days);
        vault.withdraw(ID);
        vm.stopPrank();

        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.PauseCoolingDown.selector, START + 8 days));
        vault.pause();
        skip(7 days);
        vault.pause();
    }

    function test_a_pause_can_be_ended_sooner_but_not_started_again_sooner() public {
        vm.startPrank(owner);
        vault.pause();
        skip(1 hours);
        vm.expectEmit();
        emit RefundVault.RefundsResumed();
        vault.resume();
        vm.expectRevert(abi.encodeWithSelector(RefundVault.PauseCoolingDown.selector, START + 8 days));
        vault.pause();
        vm.stopPrank();
        _credit(ID, payer, 1);
    }

    function test_the_surplus_can_be_saved_while_paused() public {
        _credit(ID, payer, 300);
        vm.startPrank(owner);
        vault.pause();
        vault.withdrawSurplus(friend, 700);
        assertEq(vault.surplus(), 0);
    }

    // -------------------------------------------------------------------------------------------------------------- tokens

    function test_a_fee_is_the_beneficiarys_and_nobody_elses() public {
        FeeToken fees = new FeeToken();
        vault = _refundVault(address(fees), settlement, owner);
        fees.mint(address(this), 1000);
        fees.transfer(address(vault), 1000);
        // what arrived counts
        assertEq(vault.surplus(), 900);
        _credit("one", payer, 500);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.SurplusTooSmall.selector, 400, 401));
        _credit("two", friend, 401);
        _credit("two", friend, 400);
        vm.startPrank(settlement);
        vault.withdraw("one");
        vault.withdraw("two");
        assertEq(fees.balanceOf(payer), 450);
        assertEq(fees.balanceOf(friend), 360);
        assertEq(fees.balanceOf(address(vault)), 0);
    }

    function test_a_token_that_answers_nothing_is_paid() public {
        SilentToken silent = new SilentToken();
        vault = _refundVault(address(silent), settlement, owner);
        silent.mint(address(vault), 1000);
        _credit(ID, payer, 300);
        vm.prank(payer);
        vault.withdraw(ID);
        vm.prank(owner);
        vault.withdrawSurplus(owner, 700);
        assertEq(silent.balanceOf(payer), 300);
        assertEq(silent.balanceOf(owner), 700);
    }

    function test_a_token_that_says_false_keeps_the_refund_due() public {
        FalseToken refusing = new FalseToken();
        vault = _refundVault(address(refusing), settlement, owner);
        refusing.mint(address(vault), 1000);
        _credit(ID, payer, 300);
        vm.prank(payer);
        vm.expectRevert(abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(refusing)));
        vault.withdraw(ID);
        assertEq(vault.refundOf(ID).amount, 300);
        assertEq(vault.credited(), 300);
    }

    function test_nothing_is_paid_twice_or_taken_through_a_token_that_calls_back() public {
        Thief thief = new Thief();
        HookToken hooks = new HookToken();
        vault = _refundVault(address(hooks), address(thief), address(thief));
        hooks.mint(address(vault), 1000);
        vm.startPrank(address(thief));
        vault.credit(ID, address(thief), 400);
        vault.credit("other", payer, 500);
        vm.stopPrank();
        thief.aim(vault, ID);
        thief.withdraw();
        assertEq(hooks.balanceOf(address(thief)), 400);
        thief.takeSurplus(100);
        assertEq(hooks.balanceOf(address(thief)), 500);
        assertEq(thief.attempts(), 16);
        assertEq(thief.successes(), 0);
        // every attempt was refused by the guard and by nothing else
        assertEq(thief.refusals(), 16);
        vm.prank(payer);
        vault.withdraw("other");
        assertEq(hooks.balanceOf(payer), 500);
    }

    // -------------------------------------------------------------------------------------------------------------- errors

    function test_reverts_NotSettlement() public {
        vm.prank(owner);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.NotSettlement.selector, owner));
        vault.credit(ID, payer, 1);
    }

    function test_reverts_NotBeneficiaryNorSettlement() public {
        _credit(ID, payer, 1);
        vm.prank(friend);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.NotBeneficiaryNorSettlement.selector, friend));
        vault.withdraw(ID);
    }

    function test_reverts_ZeroAmount() public {
        vm.expectRevert(RefundVault.ZeroAmount.selector);
        _credit(ID, payer, 0);
    }

    function test_reverts_InvalidRecipient() public {
        address[2] memory wrong = [address(0), address(vault)];
        _credit("due", payer, 1);
        for (uint256 i = 0; i < 2; ++i) {
            bytes memory refusal = abi.encodeWithSelector(RefundVault.InvalidRecipient.selector, wrong[i]);
            vm.expectRevert(refusal);
            _credit(ID, wrong[i], 1);
            vm.prank(payer);
            vm.expectRevert(refusal);
            vault.withdrawTo("due", wrong[i], START, "");
            vm.prank(owner);
            vm.expectRevert(refusal);
            vault.withdrawSurplus(wrong[i], 1);
        }
    }

    function test_reverts_AlreadyCredited() public {
        _credit(ID, payer, 1);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.AlreadyCredited.selector, ID));
        _credit(ID, payer, 1);
    }

    function test_reverts_SurplusTooSmall() public {
        vm.expectRevert(abi.encodeWithSelector(RefundVault.SurplusTooSmall.selector, 1000, 1001));
        _credit(ID, payer, 1001);
    }

    function test_reverts_UnknownPayment() public {
        bytes memory refusal = abi.encodeWithSelector(RefundVault.UnknownPayment.selector, ID);
        vm.startPrank(payer);
        vm.expectRevert(refusal);
        vault.withdraw(ID);
        vm.expectRevert(refusal);
        vault.withdrawTo(ID, friend, START, "");
    }

    function test_reverts_AlreadyWithdrawn() public {
        _credit(ID, payer, 1);
        vm.startPrank(payer);
        vault.withdraw(ID);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.AlreadyWithdrawn.selector, ID));
        vault.withdraw(ID);
    }

    function test_reverts_SignatureExpired() public {
        _credit(ID, payer, 1);
        bytes memory signature = _signed(ID, friend, START - 1);
        vm.expectRevert(abi.encodeWithSelector(RefundVault.SignatureExpired.selector, START - 1));
        vault.withdrawTo(ID, friend, START - 1, signature);
    }

    function test_reverts_BeneficiaryNotAuthorized_for_any_other_bytes() public {
        _credit(ID, payer, 1);
        bytes[4] memory wrong = [bytes(""), new bytes(64), new bytes(65), _signed(ID, owner, START)];
        for (uint256 i = 0; i < 4; ++i) {
            vm.expectRevert(abi.encodeWithSelector(RefundVault.BeneficiaryNotAuthorized.selector, payer));
            vault.withdrawTo(ID, friend, START, wrong[i]);
        }
    }

    function test_reverts_UnexpectedTransfer_when_a_token_moves_more_or_less_than_asked() public {
        address[2] memory tokens = [address(new GreedyToken()), address(new IdleToken())];
        uint256[2] memory moved = [uint256(301), 0];
        for (uint256 i = 0; i < 2; ++i) {
            vault = _refundVault(tokens[i], settlement, owner);
            TestToken(tokens[i]).mint(address(vault), 1000);
            _credit(ID, payer, 300);
            vm.prank(payer);
            vm.expectRevert(abi.encodeWithSelector(RefundVault.UnexpectedTransfer.selector, 300, moved[i]));
            vault.withdraw(ID);
            assertEq(vault.refundOf(ID).amount, 300);
        }
    }

    function test_reverts_Paused() public {
        vm.prank(owner);
        vault.pause();
        vm.expectRevert(abi.encodeWithSelector(RefundVault.Paused.selector, START + 1 days));
        _credit(ID, payer, 1);
    }

    function test_reverts_PauseCoolingDown() public {
        vm.startPrank(owner);
        vault.pause();
        vm.expectRevert(abi.encodeWithSelector(RefundVault.PauseCoolingDown.selector, START + 8 days));
        vault.pause();
    }

    function test_reverts_NotPaused() public {
        vm.startPrank(owner);
        vm.expectRevert(RefundVault.NotPaused.selector);
        vault.resume();
        vault.pause();
        skip(1 days);
        vm.expectRevert(RefundVault.NotPaused.selector);
        vault.resume();
    }
}
