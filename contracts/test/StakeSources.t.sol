// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {TestToken} from "../src/examples/TestToken.sol";
import {Limits} from "../src/libraries/Limits.sol";
import {ERC20Deposit} from "../src/stake/ERC20Deposit.sol";
import {G1, G2} from "../src/Types.sol";
import {BLSKeys} from "./support/BLSKeys.sol";
import {Network} from "./support/Network.sol";

contract OwnerWeightsTest is Network {
    function test_only_the_owner_sets_weights() public {
        _deployNetwork(0);
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, address(this)));
        weights.setWeight(address(1), 1);
        _setWeight(address(1), 5);
        assertEq(weights.stakeOf(address(1), 9), 5);
    }
}

contract ERC20DepositTest is Network {
    TestToken internal token;
    ERC20Deposit internal deposits;
    address internal operator = makeAddr("operator");
    bytes32 internal keyId;

    function setUp() public {
        vm.warp(START);
        token = new TestToken("Stake", "STK", 18);
        bytes memory arguments = abi.encode(token, 1e18, owner);
        deposits = ERC20Deposit(_create("ERC20Deposit", type(ERC20Deposit).creationCode, arguments));
        registry = _registry(deposits, DELAY);
        vm.startPrank(owner);
        deposits.bindRegistry(registry);
        deposits.setAdmission(operator, true);
        vm.stopPrank();
        token.mint(address(this), 1_000_000e18);
        token.approve(address(deposits), type(uint256).max);
    }

    function _active(uint256 stake) private {
        deposits.deposit(operator, stake * 1e18);
        G1 memory key = BLSKeys.publicKey(7);
        G2 memory possession = BLSKeys.prove(7);
        G2 memory binding = BLSKeys.sign(7, _registrationDigest(operator, _keyId(key), keccak256("bus")));
        vm.prank(operator);
        keyId = registry.register(operator, key, keccak256("bus"), possession, binding);
        skip(DELAY);
        registry.activate();
    }

    function _released(uint128 amount) private {
        vm.prank(operator);
        deposits.requestWithdrawal(amount);
        registry.queueRestake(keyId);
        skip(DELAY);
        registry.activate();
        deposits.startRelease(operator);
    }

    function test_a_deposit_is_stake_in_its_unit() public {
        deposits.deposit(operator, 5e18 + 1);
        assertEq(deposits.stakeOf(operator, 1), 5);
        vm.prank(owner);
        deposits.setAdmission(operator, false);
        assertEq(deposits.stakeOf(operator, 1), 0);
    }

    function test_reverts_NotAdmitted() public {
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.NotAdmitted.selector, address(this)));
        deposits.deposit(address(this), 1e18);
    }

    function test_reverts_InvalidAmount() public {
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.InvalidAmount.selector, 0));
        deposits.deposit(operator, 0);
        deposits.deposit(operator, 10);
        vm.startPrank(operator);
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.InvalidAmount.selector, 11));
        deposits.requestWithdrawal(11);
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.InvalidAmount.selector, 0));
        deposits.requestWithdrawal(0);
    }

    function test_reverts_ZeroUnit() public {
        vm.expectRevert(ERC20Deposit.ZeroUnit.selector);
        new ERC20Deposit(token, 0, owner);
    }

    function test_reverts_InvalidRegistry() public {
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.InvalidRegistry.selector, address(registry)));
        deposits.bindRegistry(registry);
        ERC20Deposit other = new ERC20Deposit(token, 1, owner);
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.InvalidRegistry.selector, address(registry)));
        other.bindRegistry(registry);
    }

    function test_stake_that_still_counts_is_not_released() public {
        _active(100);
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.NoReleaseToStart.selector, operator));
        deposits.startRelease(operator);
        vm.prank(operator);
        deposits.requestWithdrawal(60e18);
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.StillCounted.selector, 100, 40));
        deposits.startRelease(operator);
        registry.queueRestake(keyId);
        skip(DELAY);
        registry.activate();
        deposits.startRelease(operator);
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.NoReleaseToStart.selector, operator));
        deposits.startRelease(operator);
    }

    function test_stake_is_out_after_grace_validity_and_challenge_window() public {
        _active(100);
        _released(60e18);
        uint64 releaseAt = uint64(block.timestamp) + 15 days;
        assertEq(Limits.STAKE_RELEASE_DELAY, 15 days);
        vm.warp(releaseAt - 1);
        vm.startPrank(operator);
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.NotReleased.selector, releaseAt));
        deposits.withdraw(operator);
        skip(1);
        deposits.withdraw(operator);
        assertEq(token.balanceOf(operator), 60e18);
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.NotReleased.selector, 0));
        deposits.withdraw(operator);
        assertEq(deposits.stakeOf(operator, 2), 40);
    }

    function test_asking_for_more_starts_the_wait_anew() public {
        _active(100);
        _released(60e18);
        vm.startPrank(operator);
        deposits.requestWithdrawal(10e18);
        skip(15 days);
        vm.expectRevert(abi.encodeWithSelector(ERC20Deposit.NotReleased.selector, 0));
        deposits.withdraw(operator);
    }

    function test_a_deposit_before_any_registry_is_bound_is_not_stuck() public {
        ERC20Deposit unbound = new ERC20Deposit(token, 1e18, owner);
        vm.prank(owner);
        unbound.setAdmission(operator, true);
        token.approve(address(unbound), 1e18);
        unbound.deposit(operator, 1e18);
        vm.startPrank(operator);
        unbound.requestWithdrawal(1e18);
        unbound.startRelease(operator);
        skip(15 days);
        unbound.withdraw(operator);
        assertEq(token.balanceOf(operator), 1e18);
    }
}
