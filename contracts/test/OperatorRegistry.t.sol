// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IOperatorRegistry} from "../src/interfaces/IOperatorRegistry.sol";
import {BLS12381} from "../src/libraries/BLS12381.sol";
import {OperatorRegistry} from "../src/OperatorRegistry.sol";
import {G1, G2, OperatorView, QuorumProof} from "../src/Types.sol";
import {BLSKeys} from "./support/BLSKeys.sol";
import {Network} from "./support/Network.sol";

contract OperatorRegistryTest is Network {
    G1 internal key;
    G2 internal possession;
    G2 internal binding;
    bytes32 internal busKey = keccak256("bus");
    address internal operator;
    uint256 internal constant SECRET = 0xC0FFEE;

    function setUp() public {
        _deployNetwork(DELAY);
        operator = makeAddr("operator");
        key = BLSKeys.publicKey(SECRET);
        possession = BLSKeys.prove(SECRET);
        binding = BLSKeys.sign(SECRET, _registrationDigest(operator, _keyId(key), busKey));
        _setWeight(operator, 100);
    }

    function _tryRegister(bytes memory reason) private {
        vm.expectRevert(reason);
        vm.prank(operator);
        registry.register(operator, key, busKey, possession, binding);
    }

    function _ids(bytes32 a) private pure returns (bytes32[] memory ids) {
        ids = new bytes32[](1);
        ids[0] = a;
    }

    function _ids(bytes32 a, bytes32 b) private pure returns (bytes32[] memory ids) {
        ids = new bytes32[](2);
        (ids[0], ids[1]) = (a, b);
    }

    function _sumAt(uint64 epoch) private view returns (uint256 sum) {
        OperatorView[] memory operators = registry.operatorsAt(epoch);
        for (uint256 i = 0; i < operators.length; ++i) {
            sum += operators[i].stake;
        }
    }

    function _totalAt(uint64 epoch) private view returns (uint128 total) {
        (, total,,) = registry.setAt(epoch);
    }

    // ------------------------------------------------------------------------------------------------------------ registering

    function test_a_key_counts_only_after_the_delay_and_an_activation() public {
        vm.expectEmit();
        emit OperatorRegistry.KeyRegistered(operator, _keyId(key), key, busKey, 100, START + DELAY);
        vm.prank(operator);
        bytes32 keyId = registry.register(operator, key, busKey, possession, binding);
        assertEq(keyId, _keyId(key));
        assertEq(registry.currentEpoch(), 0);

        vm.expectRevert(OperatorRegistry.NothingToActivate.selector);
        registry.activate();
        skip(DELAY - 1);
        vm.expectRevert(OperatorRegistry.NothingToActivate.selector);
        registry.activate();
        skip(1);
        assertEq(registry.activate(), 1);

        OperatorView[] memory operators = registry.operatorsAt(1);
        assertEq(operators.length, 1);
        assertEq(operators[0].operator, operator);
        assertEq(operators[0].keyId, keyId);
        assertEq(operators[0].busKey, busKey);
        assertEq(operators[0].stake, 100);
        assertEq(abi.encode(operators[0].key), abi.encode(key));
        (G1 memory apk, uint128 total, uint64 supersededAt, uint64 activatedAt) = registry.setAt(1);
        assertEq(abi.encode(apk), abi.encode(key));
        assertEq(total, 100);
        assertEq(supersededAt, 0);
        assertEq(activatedAt, block.timestamp);
    }

    function test_the_owner_registers_for_an_operator_and_others_do_not() public {
        vm.expectRevert(abi.encodeWithSelector(OperatorRegistry.NotOperatorNorOwner.selector, address(this)));
        registry.register(operator, key, busKey, possession, binding);
        vm.prank(owner);
        registry.register(operator, key, busKey, possession, binding);
    }

    function test_several_changes_activate_as_one_epoch_with_operators_ascending() public {
        for (uint256 i = 0; i < 6; ++i) {
            _register(_operator(i), _secret(i), uint96(10 + i));
        }
        skip(DELAY);
        registry.activate();
        assertEq(registry.currentEpoch(), 1);
        OperatorView[] memory operators = registry.operatorsAt(1);
        assertEq(operators.length, 6);
        for (uint256 i = 1; i < 6; ++i) {
            assertGt(uint256(operators[i].keyId), uint256(operators[i - 1].keyId));
        }
        assertEq(_totalAt(1), 75);
    }

    function test_reverts_ZeroIdentity() public {
        busKey = 0;
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.ZeroIdentity.selector));
    }

    function test_reverts_InfiniteKey() public {
        delete key;
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.InfiniteKey.selector));
    }

    function test_reverts_NoStake() public {
        _setWeight(operator, 0);
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.NoStake.selector, operator));
    }

    function test_reverts_StakeTooLarge() public {
        uint96 stake = registry.MAX_STAKE() + 1;
        _setWeight(operator, stake);
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.StakeTooLarge.selector, stake));
    }

    function test_reverts_KeyAlreadyUsed_for_a_key_and_for_its_negative() public {
        vm.prank(operator);
        registry.register(operator, key, busKey, possession, binding);
        operator = makeAddr("second");
        _setWeight(operator, 1);
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.KeyAlreadyUsed.selector, _keyId(key)));

        uint256 negative = BLSKeys.ORDER - SECRET;
        key = BLSKeys.publicKey(negative);
        possession = BLSKeys.prove(negative);
        binding = BLSKeys.sign(negative, _registrationDigest(operator, _keyId(key), busKey));
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.KeyAlreadyUsed.selector, _keyId(key)));
    }

    function test_reverts_OperatorHasKey() public {
        vm.prank(operator);
        registry.register(operator, key, busKey, possession, binding);
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.OperatorHasKey.selector, operator));
    }

    function test_reverts_InvalidPossession_for_another_keys_proof() public {
        possession = BLSKeys.prove(SECRET + 1);
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.InvalidPossession.selector, _keyId(key)));
    }

    function test_reverts_InvalidPossession_for_a_signature_in_place_of_a_proof() public {
        possession = binding;
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.InvalidPossession.selector, _keyId(key)));
    }

    function test_reverts_InvalidPossession_for_a_point_outside_the_subgroup() public {
        // on the curve y^2 = x^3 + 4 with x = 4, and not in the subgroup
        key = G1(
            0,
            bytes32(uint256(4)),
            0x000000000000000000000000000000000a989badd40d6212b33cffc3f3763e9b,
            0xc760f988c9926b26da9dd85e928483446346b8ed00e1de5d5ea93e354abe706c
        );
        (bool onCurve,) = address(0x0b).staticcall(abi.encode(key, G1(0, 0, 0, 0)));
        assertTrue(onCurve);
        G2 memory infinity;
        (bool inSubgroup,) = address(0x0f).staticcall{gas: 100_000}(abi.encode(key, infinity));
        assertFalse(inSubgroup);
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.InvalidPossession.selector, _keyId(key)));
    }

    function test_reverts_InvalidBinding_for_another_operator_bus_key_registry_and_chain() public {
        bytes memory reason = abi.encodeWithSelector(OperatorRegistry.InvalidBinding.selector, _keyId(key));
        binding = BLSKeys.sign(SECRET, _registrationDigest(makeAddr("thief"), _keyId(key), busKey));
        _tryRegister(reason);
        binding = BLSKeys.sign(SECRET, _registrationDigest(operator, _keyId(key), keccak256("other bus")));
        _tryRegister(reason);
        vm.chainId(99);
        bytes32 elsewhere = _registrationDigest(operator, _keyId(key), busKey);
        vm.chainId(31_337);
        binding = BLSKeys.sign(SECRET, elsewhere);
        _tryRegister(reason);
    }

    function test_a_rogue_key_has_no_proof_though_it_would_forge_a_quorum() public {
        for (uint256 i = 0; i < 3; ++i) {
            _register(_operator(i), _secret(i), 100);
        }
        // rogue = attacker - sum of the honest keys: the attacker alone signs for all four
        uint256 attacker = 666;
        G1 memory rogue = BLSKeys.publicKey(attacker);
        G1 memory all = rogue;
        for (uint256 i = 0; i < 3; ++i) {
            rogue = BLS12381.minus(rogue, BLSKeys.publicKey(_secret(i)));
        }
        // control: the sum of all keys, rogue included, is a key whose secret the attacker has
        G1 memory sum = rogue;
        for (uint256 i = 0; i < 3; ++i) {
            sum = BLS12381.add(sum, BLSKeys.publicKey(_secret(i)));
        }
        assertEq(abi.encode(sum), abi.encode(all));
        assertTrue(this.isSignedBy(sum, keccak256("forged"), BLSKeys.sign(attacker, keccak256("forged"))));

        key = rogue;
        binding = BLSKeys.sign(attacker, _registrationDigest(operator, _keyId(rogue), busKey));
        possession = BLSKeys.multiply(BLS12381.hashPossession(rogue), attacker);
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.InvalidPossession.selector, _keyId(rogue)));
    }

    function isSignedBy(G1 memory by, bytes32 digest, G2 calldata signature) external view returns (bool) {
        return BLS12381.isSignedBy(by, BLS12381.hashDigest(digest), signature);
    }

    function test_reverts_TooManyOperators() public {
        uint256 seats = registry.MAX_OPERATORS();
        for (uint256 i = 0; i < seats; ++i) {
            _register(_operator(i), _secret(i), 1);
        }
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.TooManyOperators.selector));
        skip(DELAY);
        uint256 before = gasleft();
        registry.activate();
        // the cap on one transaction's gas since Osaka
        assertLt(before - gasleft(), 16_777_216);
        assertEq(registry.operatorsAt(1).length, seats);
    }

    function test_a_join_whose_stake_vanished_is_dropped_and_one_that_shrank_counts_less() public {
        _register(_operator(0), _secret(0), 100);
        bytes32 second = _register(_operator(1), _secret(1), 100);
        _setWeight(_operator(0), 0);
        _setWeight(_operator(1), 60);
        skip(DELAY);
        registry.activate();
        assertEq(registry.operatorsAt(1).length, 1);
        assertEq(registry.stakeAt(second, 1), 60);
        assertEq(registry.seatsTaken(), 1);
        assertEq(registry.keyOf(_operator(0)), 0);
    }

    function test_an_activation_of_nothing_that_still_matters_opens_no_epoch() public {
        bytes32 keyId = _register(_operator(0), _secret(0), 100);
        vm.prank(owner);
        registry.eject(_ids(keyId));
        skip(DELAY);
        assertEq(registry.activate(), 0);
        assertEq(registry.currentEpoch(), 0);
        assertEq(registry.minEpoch(), 0);
        vm.expectRevert(OperatorRegistry.NothingToActivate.selector);
        registry.activate();
    }

    // ---------------------------------------------------------------------------------------------------- leaving and restaking

    function _four() private returns (bytes32[] memory ids) {
        ids = new bytes32[](4);
        for (uint256 i = 0; i < 4; ++i) {
            ids[i] = _register(_operator(i), _secret(i), 100);
        }
        skip(DELAY);
        registry.activate();
    }

    function test_leaving_waits_for_the_delay_and_history_stays() public {
        bytes32[] memory ids = _four();
        vm.expectRevert(abi.encodeWithSelector(OperatorRegistry.NotOperatorNorOwner.selector, address(this)));
        registry.deregister(ids[0]);
        vm.prank(_operator(0));
        registry.deregister(ids[0]);
        vm.prank(owner);
        vm.expectRevert(abi.encodeWithSelector(OperatorRegistry.KeyNotActive.selector, ids[0]));
        registry.deregister(ids[0]);
        assertEq(registry.operatorsAt(registry.currentEpoch()).length, 4);
        skip(DELAY);
        registry.activate();
        assertEq(registry.operatorsAt(2).length, 3);
        assertEq(registry.operatorsAt(1).length, 4);
        assertEq(_totalAt(2), 300);
        assertEq(_totalAt(1), 400);
        assertEq(registry.countedStakeOf(_operator(0)), 0);
        (,, uint64 supersededAt,) = registry.setAt(1);
        assertEq(supersededAt, block.timestamp);
    }

    function test_an_operator_changes_its_key_in_one_epoch() public {
        bytes32[] memory ids = _four();
        vm.prank(_operator(0));
        registry.deregister(ids[0]);
        bytes32 next = _register(_operator(0), _secret(10), 100);
        skip(DELAY);
        registry.activate();
        assertEq(registry.currentEpoch(), 2);
        assertEq(registry.stakeAt(ids[0], 2), 0);
        assertEq(registry.stakeAt(next, 2), 100);
        assertEq(registry.countedStakeOf(_operator(0)), 100);
        assertEq(registry.keyOf(_operator(0)), next);
        assertEq(registry.seatsTaken(), 4);
    }

    function test_stake_changes_open_new_records_and_never_rewrite_old_ones() public {
        bytes32[] memory ids = _four();
        uint96[4] memory stakes = [uint96(100), 140, 7, 9];
        for (uint256 i = 1; i < 4; ++i) {
            _setWeight(_operator(0), stakes[i]);
            registry.queueRestake(ids[0]);
            skip(DELAY);
            registry.activate();
        }
        for (uint64 epoch = 1; epoch <= 4; ++epoch) {
            assertEq(registry.stakeAt(ids[0], epoch), stakes[epoch - 1]);
            assertEq(_totalAt(epoch), 300 + uint128(stakes[epoch - 1]));
            assertEq(_sumAt(epoch), _totalAt(epoch));
        }
        assertEq(registry.stakeAt(ids[0], 0), 0);
    }

    function test_restake_errors() public {
        bytes32[] memory ids = _four();
        vm.expectRevert(abi.encodeWithSelector(OperatorRegistry.StakeUnchanged.selector, ids[0]));
        registry.queueRestake(ids[0]);
        vm.expectRevert(abi.encodeWithSelector(OperatorRegistry.KeyNotActive.selector, keccak256("none")));
        registry.queueRestake(keccak256("none"));
        _setWeight(_operator(0), 50);
        registry.queueRestake(ids[0]);
        vm.expectRevert(abi.encodeWithSelector(OperatorRegistry.RestakeAlreadyQueued.selector, ids[0]));
        registry.queueRestake(ids[0]);
    }

    function test_a_restake_counts_the_lesser_of_queued_and_present() public {
        bytes32[] memory ids = _four();
        _setWeight(_operator(0), 150);
        registry.queueRestake(ids[0]);
        _setWeight(_operator(0), 1_000_000);
        _setWeight(_operator(1), 150);
        registry.queueRestake(ids[1]);
        _setWeight(_operator(1), 20);
        skip(DELAY);
        registry.activate();
        assertEq(registry.stakeAt(ids[0], 2), 150);
        assertEq(registry.stakeAt(ids[1], 2), 20);
    }

    function test_a_restake_to_nothing_retires_the_key() public {
        bytes32[] memory ids = _four();
        _setWeight(_operator(0), 0);
        registry.queueRestake(ids[0]);
        // also when its exit was queued after it
        vm.prank(_operator(0));
        registry.deregister(ids[0]);
        skip(DELAY);
        registry.activate();
        assertEq(registry.currentEpoch(), 2);
        assertEq(registry.operatorsAt(2).length, 3);
        assertEq(_totalAt(2), 300);
        assertEq(registry.seatsTaken(), 3);
    }

    function test_a_restake_back_to_what_counts_opens_no_epoch() public {
        bytes32[] memory ids = _four();
        _setWeight(_operator(0), 150);
        registry.queueRestake(ids[0]);
        _setWeight(_operator(0), 100);
        skip(DELAY);
        registry.activate();
        assertEq(registry.currentEpoch(), 1);
    }

    // --------------------------------------------------------------------------------------------------------------- ejecting

    function test_ejection_is_immediate_and_leaves_its_stake_vacant_until_the_delay_is_over() public {
        bytes32[] memory ids = _four();
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, address(this)));
        registry.eject(_ids(ids[0]));
        vm.prank(owner);
        registry.eject(_ids(ids[0], ids[1]));
        assertEq(registry.currentEpoch(), 2);
        assertEq(registry.minEpoch(), 2);
        assertEq(registry.operatorsAt(2).length, 2);
        assertEq(_totalAt(2), 400);
        assertEq(registry.vacantStakeAt(2), 200);

        skip(DELAY);
        registry.activate();
        assertEq(_totalAt(3), 200);
        assertEq(registry.vacantStakeAt(3), 0);
        assertEq(registry.minEpoch(), 2);
    }

    function test_vacant_stake_is_not_signed_for() public {
        bytes32[] memory ids = _four();
        vm.prank(owner);
        registry.eject(_ids(ids[0]));
        QuorumProof memory proof;
        (proof.apk, proof.totalStake,,) = registry.setAt(2);
        (, uint96 signedStake,,,) = registry.quorumAt(2, proof);
        assertEq(signedStake, 300);
        proof.nonSigners = new G1[](1);
        proof.nonSigners[0] = registry.operatorsAt(2)[0].key;
        (G1 memory signers, uint96 fewer,,,) = registry.quorumAt(2, proof);
        assertEq(fewer, 200);
        assertEq(
            abi.encode(signers),
            abi.encode(BLS12381.add(registry.operatorsAt(2)[1].key, registry.operatorsAt(2)[2].key))
        );
    }

    function test_ejecting_a_key_that_waits_or_leaves() public {
        bytes32[] memory ids = _four();
        vm.prank(_operator(0));
        registry.deregister(ids[0]);
        bytes32 waiting = _register(_operator(0), _secret(10), 100);
        vm.prank(owner);
        registry.eject(_ids(ids[0], waiting));
        skip(DELAY);
        registry.activate();
        assertEq(registry.currentEpoch(), 3);
        assertEq(_totalAt(3), 300);
        assertEq(_sumAt(3), 300);
        assertEq(registry.seatsTaken(), 3);
        vm.prank(owner);
        vm.expectRevert(abi.encodeWithSelector(OperatorRegistry.NothingToEject.selector, ids[0]));
        registry.eject(_ids(ids[0]));
    }

    function test_an_ejected_key_never_returns() public {
        bytes32[] memory ids = _four();
        vm.prank(owner);
        registry.eject(_ids(ids[0]));
        operator = _operator(0);
        key = BLSKeys.publicKey(_secret(0));
        _tryRegister(abi.encodeWithSelector(OperatorRegistry.KeyAlreadyUsed.selector, ids[0]));
    }

    function test_the_last_operator_leaves_and_nobody_can_sign() public {
        bytes32[] memory ids = _four();
        vm.startPrank(owner);
        for (uint256 i = 0; i < 4; ++i) {
            registry.deregister(ids[i]);
        }
        skip(DELAY);
        registry.activate();
        (G1 memory apk, uint128 total,,) = registry.setAt(2);
        assertEq(total, 0);
        assertTrue(BLS12381.isInfinity(apk));
    }

    // ----------------------------------------------------------------------------------------------------------------- pausing

    function test_a_pause_ends_by_itself_and_cannot_follow_on_another() public {
        vm.startPrank(owner);
        registry.pause();
        (uint64 until, uint64 pausableAt) = registry.pauseStatus();
        assertEq(until, START + 1 days);
        assertEq(pausableAt, START + 8 days);
        bytes memory reason = abi.encodeWithSelector(OperatorRegistry.PauseCoolingDown.selector, pausableAt);
        vm.expectRevert(reason);
        registry.pause();
        registry.resume();
        vm.expectRevert(OperatorRegistry.NotPaused.selector);
        registry.resume();
        vm.warp(pausableAt - 1);
        vm.expectRevert(reason);
        registry.pause();
        vm.warp(pausableAt);
        registry.pause();
    }

    function test_a_pause_holds_across_epochs() public {
        _register(_operator(0), _secret(0), 100);
        skip(DELAY);
        vm.prank(owner);
        registry.pause();
        registry.activate();
        (,, uint64 pausedUntil) = registry.epochStatusAt(1);
        assertEq(pausedUntil, block.timestamp + 1 days);
        (IOperatorRegistry.EpochState state, uint64 supersededAt,) = registry.epochStatusAt(0);
        assertTrue(state == IOperatorRegistry.EpochState.Superseded);
        assertEq(supersededAt, block.timestamp);
    }

    function test_only_the_owner_pauses() public {
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, address(this)));
        registry.pause();
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, address(this)));
        registry.resume();
    }

    function test_views_of_what_waits() public {
        bytes32 keyId = _register(_operator(0), _secret(0), 100);
        OperatorRegistry.Change[] memory changes = registry.queuedChanges();
        assertEq(changes.length, 1);
        assertEq(changes[0].keyId, keyId);
        assertEq(changes[0].readyAt, START + DELAY);
        assertTrue(registry.keyRecord(keyId).state == OperatorRegistry.KeyState.Joining);
        skip(DELAY);
        registry.activate();
        assertEq(registry.queuedChanges().length, 0);
    }
}
