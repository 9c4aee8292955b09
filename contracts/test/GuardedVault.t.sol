// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {GuardedVault} from "../src/examples/GuardedVault.sol";
import {TestToken} from "../src/examples/TestToken.sol";
import {GuardedClient} from "../src/GuardedClient.sol";
import {IAttestationValidator} from "../src/interfaces/IAttestationValidator.sol";
import {PolicyClient} from "../src/PolicyClient.sol";
import {Attestation, Intent} from "../src/Types.sol";
import {Network} from "./support/Network.sol";

contract GuardedVaultTest is Network {
    TestToken internal token;
    GuardedVault internal vault;
    bytes32 internal policyId;
    address internal alice = makeAddr("alice");
    address internal bob = makeAddr("bob");

    function setUp() public {
        _deployFour();
        token = new TestToken("Asset", "AST", 18);
        policyId = _publish(0);
        vault = _vault(token, _config(policyId));
        token.mint(alice, 1000);
        vm.startPrank(alice);
        token.approve(address(vault), 1000);
        vault.deposit(1000, alice);
        vm.stopPrank();
    }

    function _call(address from, bytes memory data) private returns (Intent memory intent, Attestation memory) {
        intent = _intent(from, address(vault), data);
        return (intent, _attest(_leaf(intent, address(vault), policyId)));
    }

    function _execute(address from, bytes memory data) private returns (bytes memory) {
        (Intent memory intent, Attestation memory attestation) = _call(from, data);
        vm.prank(from);
        return vault.executeIntent(intent, "", attestation);
    }

    function _executeReverting(address from, bytes memory data, bytes memory reason) private {
        (Intent memory intent, Attestation memory attestation) = _call(from, data);
        vm.expectRevert(reason);
        vm.prank(from);
        vault.executeIntent(intent, "", attestation);
    }

    // ----------------------------------------------------------------------------------------------------- the attested ways

    function test_attested_withdraw_pays_the_sender_out() public {
        bytes memory result = _execute(alice, abi.encodeCall(vault.withdraw, (400, bob, alice)));
        assertEq(abi.decode(result, (uint256)), 400);
        assertEq(token.balanceOf(bob), 400);
        assertEq(vault.balanceOf(alice), 600);
    }

    function test_attested_redeem_pays_the_sender_out() public {
        bytes memory result = _execute(alice, abi.encodeCall(vault.redeem, (1000, alice, alice)));
        assertEq(abi.decode(result, (uint256)), 1000);
        assertEq(token.balanceOf(alice), 1000);
        assertEq(vault.totalSupply(), 0);
    }

    function test_attested_transfer_moves_shares() public {
        bytes memory result = _execute(alice, abi.encodeCall(vault.transfer, (bob, 10)));
        assertTrue(abi.decode(result, (bool)));
        assertEq(vault.balanceOf(bob), 10);
    }

    function test_more_than_the_sender_has_does_not_leave() public {
        _executeReverting(
            alice,
            abi.encodeCall(vault.redeem, (1001, alice, alice)),
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientBalance.selector, alice, 1000, 1001)
        );
        _executeReverting(
            alice,
            abi.encodeCall(vault.withdraw, (1001, alice, alice)),
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientBalance.selector, alice, 1000, 1001)
        );
    }

    // ------------------------------------------------------------------------------------------------- every other way, closed

    function test_bare_withdraw_is_closed() public {
        vm.prank(alice);
        vm.expectRevert(PolicyClient.AttestationRequired.selector);
        vault.withdraw(1, alice, alice);
    }

    function test_bare_redeem_is_closed() public {
        vm.prank(alice);
        vm.expectRevert(PolicyClient.AttestationRequired.selector);
        vault.redeem(1, alice, alice);
    }

    function test_bare_transfer_is_closed() public {
        vm.prank(alice);
        vm.expectRevert(PolicyClient.AttestationRequired.selector);
        vault.transfer(bob, 1);
    }

    function test_transferFrom_is_closed_also_for_oneself() public {
        vm.prank(alice);
        vm.expectRevert(PolicyClient.AttestationRequired.selector);
        vault.transferFrom(alice, bob, 1);
    }

    function test_there_are_no_allowances() public {
        vm.prank(alice);
        vm.expectRevert(GuardedVault.AllowancesDisabled.selector);
        vault.approve(bob, 1);
        assertEq(vault.allowance(alice, bob), 0);
    }

    function test_nothing_can_be_withdrawn_bare_says_the_vault() public view {
        assertEq(vault.maxWithdraw(alice), 0);
        assertEq(vault.maxRedeem(alice), 0);
        assertEq(vault.previewRedeem(1000), 1000);
    }

    function test_an_attested_sender_does_not_withdraw_for_another_owner() public {
        bytes memory reason = abi.encodeWithSelector(GuardedVault.OwnerIsNotSender.selector, alice, bob);
        _executeReverting(bob, abi.encodeCall(vault.withdraw, (1, bob, alice)), reason);
        _executeReverting(bob, abi.encodeCall(vault.redeem, (1, bob, alice)), reason);
    }

    function test_attested_calls_to_anything_else_are_not_guarded() public {
        bytes[8] memory others = [
            abi.encodeCall(vault.transferFrom, (alice, bob, 1)),
            abi.encodeCall(vault.approve, (bob, 1)),
            abi.encodeCall(vault.deposit, (1, bob)),
            abi.encodeCall(vault.mint, (1, bob)),
            abi.encodeCall(vault.setPolicy, (policyId)),
            abi.encodeCall(vault.setDemands, (1, 1, 1)),
            abi.encodeCall(vault.transferOwnership, (bob)),
            abi.encodeCall(vault.announceEscape, ())
        ];
        for (uint256 i = 0; i < others.length; ++i) {
            bytes4 selector = bytes4(others[i]);
            _executeReverting(bob, others[i], abi.encodeWithSelector(GuardedClient.NotGuarded.selector, selector));
        }
        _executeReverting(bob, "", abi.encodeWithSelector(GuardedClient.NotGuarded.selector, bytes4(0)));
        _executeReverting(bob, hex"112233", abi.encodeWithSelector(GuardedClient.NotGuarded.selector, bytes4(0)));
    }

    function test_an_intent_for_another_target_is_refused() public {
        Intent memory intent = _intent(alice, address(token), abi.encodeCall(vault.transfer, (bob, 1)));
        Attestation memory attestation = _attest(_leaf(intent, address(vault), policyId));
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(GuardedClient.WrongTarget.selector, address(token)));
        vault.executeIntent(intent, "", attestation);
    }

    function test_the_vault_takes_no_ether() public {
        Intent memory intent = _intent(alice, address(vault), abi.encodeCall(vault.redeem, (1, alice, alice)));
        intent.value = 1;
        Attestation memory attestation = _attest(_leaf(intent, address(vault), policyId));
        vm.deal(alice, 1);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(GuardedVault.ValueNotAccepted.selector, 1));
        vault.executeIntent{value: 1}(intent, "", attestation);
    }

    function test_the_owner_has_no_way_to_assets() public {
        vm.startPrank(owner);
        vm.expectRevert(PolicyClient.AttestationRequired.selector);
        vault.withdraw(1, owner, alice);
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.NotEscape.selector, owner));
        vault.announceEscape();
    }

    function test_deposits_and_mints_are_open_to_any_receiver() public {
        token.mint(bob, 20);
        vm.startPrank(bob);
        token.approve(address(vault), 20);
        vault.deposit(10, alice);
        vault.mint(10, bob);
        assertEq(vault.balanceOf(alice), 1010);
        assertEq(vault.balanceOf(bob), 10);
    }

    /// @dev A function added to the vault is a way to its assets until somebody has said that it is none: this list says it.
    function test_every_function_that_changes_state_is_accounted_for() public view {
        string[16] memory known = [
            "acceptOwnership",
            "announceEscape",
            "approve",
            "deposit",
            "executeEscape",
            "executeIntent",
            "mint",
            "redeem",
            "renounceOwnership",
            "setDemands",
            "setPolicy",
            "transfer",
            "transferFrom",
            "transferOwnership",
            "withdraw",
            "withdrawEscape"
        ];
        string[] memory names = new string[](known.length);
        for (uint256 i = 0; i < known.length; ++i) {
            names[i] = known[i];
        }
        _checkSurface("GuardedVault", names);
    }
}
