// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {NodeRegistry} from "../src/NodeRegistry.sol";
import {Network} from "./support/Network.sol";

contract NodeRegistryTest is Network {
    uint64 internal constant AGE = 1 minutes;
    uint256 internal constant ONES = type(uint256).max / 255;

    NodeRegistry internal nodes;
    address internal node = makeAddr("node");
    address internal other = makeAddr("other node");
    address internal payout = makeAddr("payout");

    function setUp() public {
        vm.warp(START);
        nodes = NodeRegistry(_create("NodeRegistry", type(NodeRegistry).creationCode, abi.encode(AGE)));
        _registered(node);
        _registered(other);
    }

    function _registered(address who) private {
        vm.prank(who);
        nodes.register("https://node.example", payout, "DE");
    }

    function _commit(address of_, bytes32 key) private {
        bytes32 commitment = nodes.keyCommitment(of_, key, "salt");
        vm.prank(nodes.nodeOf(of_).owner);
        nodes.commitKey(of_, commitment);
        skip(AGE);
    }

    function _add(address to, bytes32 key) private returns (bytes32) {
        _commit(to, key);
        vm.prank(nodes.nodeOf(to).owner);
        return nodes.addKey(to, key, "salt");
    }

    function _rotate(bytes32 oldKeyId, bytes32 key, uint40 overlap) private returns (bytes32) {
        _commit(node, key);
        vm.prank(node);
        return nodes.rotateKey(node, oldKeyId, key, "salt", overlap);
    }

    function _revoke(bytes32 keyId) private {
        vm.prank(node);
        nodes.revokeKey(keyId, NodeRegistry.RevocationReason.Ceased);
    }

    function _until(bytes32 keyId) private view returns (uint40 until) {
        (,,, until) = nodes.keyOf(keyId);
    }

    // -------------------------------------------------------------------------------------------------------------- nodes

    function test_a_node_is_named_by_who_registered_it() public {
        address fresh = makeAddr("fresh");
        vm.expectEmit();
        emit NodeRegistry.NodeRegistered(fresh);
        vm.expectEmit();
        emit NodeRegistry.EndpointChanged(fresh, "");
        vm.expectEmit();
        emit NodeRegistry.PayoutChanged(fresh, payout);
        vm.expectEmit();
        emit NodeRegistry.JurisdictionChanged(fresh, 0);
        vm.prank(fresh);
        nodes.register("", payout, 0);
        assertEq(abi.encode(nodes.nodeOf(fresh)), abi.encode(NodeRegistry.Node(fresh, address(0), payout, 0, "")));
    }

    function test_its_owner_changes_what_it_says_of_itself() public {
        vm.startPrank(node);
        vm.expectEmit();
        emit NodeRegistry.EndpointChanged(node, "https://elsewhere.example");
        nodes.setEndpoint(node, "https://elsewhere.example");
        vm.expectEmit();
        emit NodeRegistry.PayoutChanged(node, other);
        nodes.setPayout(node, other);
        vm.expectEmit();
        emit NodeRegistry.JurisdictionChanged(node, "FR");
        nodes.setJurisdiction(node, "FR");
        assertEq(
            abi.encode(nodes.nodeOf(node)),
            abi.encode(NodeRegistry.Node(node, address(0), other, "FR", "https://elsewhere.example"))
        );
    }

    function test_a_node_moves_in_two_steps_and_keeps_its_name_and_keys() public {
        bytes32 keyId = _add(node, "key");
        address buyer = makeAddr("buyer");
        vm.expectEmit();
        emit NodeRegistry.NodeTransferStarted(node, node, buyer);
        vm.prank(node);
        nodes.transferNode(node, buyer);
        assertEq(nodes.nodeOf(node).owner, node);
        vm.expectEmit();
        emit NodeRegistry.NodeTransferred(node, node, buyer);
        vm.prank(buyer);
        nodes.acceptNode(node);
        assertEq(nodes.nodeOf(node).owner, buyer);
        assertEq(nodes.nodeOf(node).pendingOwner, address(0));
        assertTrue(nodes.wasValidAt(keyId, block.timestamp));

        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotNodeOwner.selector, node, node));
        nodes.revokeKey(keyId, NodeRegistry.RevocationReason.Ceased);
        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NodeAlreadyRegistered.selector, node));
        nodes.register("", payout, 0);
        vm.prank(buyer);
        nodes.revokeKey(keyId, NodeRegistry.RevocationReason.Ceased);
    }

    function test_an_offer_can_be_taken_back() public {
        vm.startPrank(node);
        nodes.transferNode(node, other);
        nodes.transferNode(node, address(0));
        vm.stopPrank();
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotPendingOwner.selector, node, other));
        vm.prank(other);
        nodes.acceptNode(node);
    }

    // --------------------------------------------------------------------------------------------------------------- keys

    function test_the_key_id_is_that_of_the_receipts() public view {
        // of the bytes 00 01 … 1f, computed by hashlib
        bytes32 key = 0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f;
        assertEq(nodes.keyIdOf(key), 0x82822259aebbc86d834315da4ffc6af715670cfe104182e7ff83ec5b79e8041f);
    }

    function test_the_commitment_is_the_specifications() public {
        // golden: chain 31337, registry 0x1111…, node 0x2222…, key 0x3333…, salt 0x4444…, computed in Python
        vm.chainId(31337);
        address at = 0x1111111111111111111111111111111111111111;
        vm.etch(at, address(nodes).code);
        bytes32 commitment = NodeRegistry(at)
            .keyCommitment(
                0x2222222222222222222222222222222222222222, bytes32(uint256(0x33) * ONES), bytes32(uint256(0x44) * ONES)
            );
        assertEq(commitment, 0x35f21b7d4c19d82275bd4eab40cc8c8ce034efe63008cd2c343379d2824f708c);
    }

    function test_a_key_is_valid_from_its_block_on() public {
        _commit(node, "key");
        bytes32 keyId = nodes.keyIdOf("key");
        vm.expectEmit();
        emit NodeRegistry.KeyAdded(node, keyId, "key", uint40(block.timestamp));
        vm.prank(node);
        assertEq(nodes.addKey(node, "key", "salt"), keyId);

        (address of_, bytes32 key, uint40 since, uint40 until) = nodes.keyOf(keyId);
        assertEq(of_, node);
        assertEq(key, "key");
        assertEq(since, block.timestamp);
        assertEq(until, nodes.NO_END());
        assertFalse(nodes.wasValidAt(keyId, since - 1));
        assertTrue(nodes.wasValidAt(keyId, since));
        assertTrue(nodes.wasValidAt(keyId, since + 100 * 365 days));
        assertEq(nodes.keysInForce(node).length, 1);
        assertEq(nodes.commitmentReadyAt(node, nodes.keyCommitment(node, "key", "salt")), 0);
    }

    function test_a_rotated_key_ends_after_the_overlap_and_vouches_for_its_time_for_ever() public {
        bytes32 oldKeyId = _add(node, "old");
        uint40 since = uint40(block.timestamp);
        _commit(node, "new");
        uint40 until = uint40(block.timestamp) + 1 hours;
        vm.expectEmit();
        emit NodeRegistry.KeyRotated(node, oldKeyId, nodes.keyIdOf("new"), until);
        vm.prank(node);
        bytes32 newKeyId = nodes.rotateKey(node, oldKeyId, "new", "salt", 1 hours);
        assertEq(nodes.keysInForce(node).length, 2);

        skip(3650 days);
        assertTrue(nodes.wasValidAt(oldKeyId, since));
        assertTrue(nodes.wasValidAt(oldKeyId, until - 1));
        assertFalse(nodes.wasValidAt(oldKeyId, until));
        assertTrue(nodes.wasValidAt(newKeyId, until));
        (, bytes32 key,,) = nodes.keyOf(oldKeyId);
        assertEq(key, "old");
        assertEq(nodes.keysInForce(node).length, 1);
    }

    function test_a_revoked_key_ends_now() public {
        bytes32 keyId = _add(node, "key");
        skip(1 days);
        vm.expectEmit();
        emit NodeRegistry.KeyRevoked(node, keyId, NodeRegistry.RevocationReason.Compromised, uint40(block.timestamp));
        vm.prank(node);
        nodes.revokeKey(keyId, NodeRegistry.RevocationReason.Compromised);
        assertTrue(nodes.wasValidAt(keyId, block.timestamp - 1));
        assertFalse(nodes.wasValidAt(keyId, block.timestamp));
        assertEq(uint8(nodes.revocationOf(keyId)), uint8(NodeRegistry.RevocationReason.Compromised));
        assertEq(nodes.keysInForce(node).length, 0);
    }

    function test_an_end_only_comes_nearer() public {
        bytes32 keyId = _add(node, "key");
        _rotate(keyId, "second", 2 days);
        uint40 until = _until(keyId);
        // a second rotation with a longer overlap does not give it more time
        _rotate(keyId, "third", 7 days);
        assertEq(_until(keyId), until);
        _revoke(keyId);
        assertEq(_until(keyId), block.timestamp);
    }

    function test_a_key_added_and_revoked_in_one_block_was_never_valid() public {
        bytes32 keyId = _add(node, "key");
        _revoke(keyId);
        assertFalse(nodes.wasValidAt(keyId, block.timestamp - 1));
        assertFalse(nodes.wasValidAt(keyId, block.timestamp));
    }

    function test_keys_that_ended_make_room() public {
        bytes32[] memory ids = new bytes32[](8);
        for (uint256 i = 0; i < 8; ++i) {
            ids[i] = _add(node, bytes32(i + 1));
        }
        // in place of another without overlap there is room
        _rotate(ids[0], "ninth", 0);
        _revoke(ids[3]);
        _revoke(ids[7]);
        _add(node, "tenth");
        _add(node, "eleventh");
        assertEq(nodes.keysInForce(node).length, 8);
        for (uint256 i = 0; i < 8; ++i) {
            (address of_,,,) = nodes.keyOf(ids[i]);
            assertEq(of_, node);
        }
    }

    function test_a_commitment_copied_from_a_waiting_transaction_claims_nothing() public {
        // the thief announces the same bytes for its own node, and uses key and salt as soon as they are seen
        bytes32 commitment = nodes.keyCommitment(node, "key", "salt");
        vm.prank(other);
        nodes.commitKey(other, commitment);
        vm.prank(node);
        nodes.commitKey(node, commitment);
        skip(AGE);
        bytes32 own = nodes.keyCommitment(other, "key", "salt");
        vm.startPrank(other);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.UnknownCommitment.selector, own));
        nodes.addKey(other, "key", "salt");
        // an announcement of its own comes too late
        nodes.commitKey(other, own);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.CommitmentTooYoung.selector, uint64(block.timestamp) + AGE));
        nodes.addKey(other, "key", "salt");
        vm.stopPrank();

        vm.prank(node);
        nodes.addKey(node, "key", "salt");
        skip(AGE);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.KeyAlreadyUsed.selector, nodes.keyIdOf("key")));
        vm.prank(other);
        nodes.addKey(other, "key", "salt");
    }

    function test_an_unknown_key_was_never_valid() public view {
        assertFalse(nodes.wasValidAt("none", block.timestamp));
        assertEq(nodes.nodeOf(address(1)).owner, address(0));
        assertEq(nodes.keysInForce(address(1)).length, 0);
    }

    function testFuzz_validity_is_from_since_until_before_until(bytes32 key, uint40 wait, uint40 overlap, uint256 time)
        public
    {
        vm.assume(key != 0 && key != "next");
        bytes32 keyId = _add(node, key);
        uint256 since = block.timestamp;
        skip(bound(wait, 0, 3650 days));
        _rotate(keyId, "next", uint40(bound(overlap, 0, 7 days)));
        assertEq(nodes.wasValidAt(keyId, time), since <= time && time < _until(keyId));
    }

    function testFuzz_a_jurisdiction_is_two_capitals_or_none(bytes2 jurisdiction) public {
        bool fine = jurisdiction == 0;
        if (jurisdiction[0] >= "A" && jurisdiction[0] <= "Z" && jurisdiction[1] >= "A" && jurisdiction[1] <= "Z") {
            fine = true;
        }
        vm.prank(node);
        if (!fine) vm.expectRevert(abi.encodeWithSelector(NodeRegistry.InvalidJurisdiction.selector, jurisdiction));
        nodes.setJurisdiction(node, jurisdiction);
    }

    // ------------------------------------------------------------------------------------------------------------- errors

    function test_reverts_NodeAlreadyRegistered() public {
        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NodeAlreadyRegistered.selector, node));
        nodes.register("", payout, 0);
    }

    function test_reverts_NotNodeOwner_everywhere() public {
        bytes32 keyId = _add(node, "key");
        bytes memory refusal = abi.encodeWithSelector(NodeRegistry.NotNodeOwner.selector, node, other);
        vm.startPrank(other);
        vm.expectRevert(refusal);
        nodes.setEndpoint(node, "");
        vm.expectRevert(refusal);
        nodes.setPayout(node, other);
        vm.expectRevert(refusal);
        nodes.setJurisdiction(node, 0);
        vm.expectRevert(refusal);
        nodes.transferNode(node, other);
        vm.expectRevert(refusal);
        nodes.commitKey(node, "commitment");
        vm.expectRevert(refusal);
        nodes.addKey(node, "other", "salt");
        vm.expectRevert(refusal);
        nodes.rotateKey(node, keyId, "other", "salt", 0);
        vm.expectRevert(refusal);
        nodes.revokeKey(keyId, NodeRegistry.RevocationReason.Ceased);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotNodeOwner.selector, address(1), other));
        nodes.setEndpoint(address(1), "");
    }

    function test_reverts_NotPendingOwner_for_a_node_that_was_not_offered() public {
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotPendingOwner.selector, node, other));
        vm.prank(other);
        nodes.acceptNode(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.NotPendingOwner.selector, address(1), other));
        vm.prank(other);
        nodes.acceptNode(address(1));
    }

    function test_reverts_EndpointTooLong() public {
        vm.startPrank(node);
        nodes.setEndpoint(node, string(new bytes(256)));
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.EndpointTooLong.selector, 257));
        nodes.setEndpoint(node, string(new bytes(257)));
    }

    function test_reverts_ZeroPayout() public {
        vm.prank(node);
        vm.expectRevert(NodeRegistry.ZeroPayout.selector);
        nodes.setPayout(node, address(0));
    }

    function test_reverts_InvalidJurisdiction() public {
        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.InvalidJurisdiction.selector, bytes2("de")));
        nodes.setJurisdiction(node, "de");
    }

    function test_reverts_ZeroKey() public {
        _commit(node, 0);
        vm.prank(node);
        vm.expectRevert(NodeRegistry.ZeroKey.selector);
        nodes.addKey(node, 0, "salt");
    }

    function test_reverts_UnknownCommitment() public {
        _commit(node, "key");
        bytes32 commitment = nodes.keyCommitment(node, "key", "another salt");
        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.UnknownCommitment.selector, commitment));
        nodes.addKey(node, "key", "another salt");
    }

    function test_reverts_CommitmentTooYoung() public {
        _commit(node, "key");
        rewind(1);
        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.CommitmentTooYoung.selector, uint64(block.timestamp) + 1));
        nodes.addKey(node, "key", "salt");
    }

    function test_reverts_CommitmentStands() public {
        _commit(node, "key");
        bytes32 commitment = nodes.keyCommitment(node, "key", "salt");
        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.CommitmentStands.selector, commitment));
        nodes.commitKey(node, commitment);
    }

    function test_reverts_KeyAlreadyUsed_for_another_node_and_for_its_own_also_when_it_ended() public {
        bytes32 keyId = _add(node, "key");
        _commit(other, "key");
        vm.prank(other);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.KeyAlreadyUsed.selector, keyId));
        nodes.addKey(other, "key", "salt");
        _revoke(keyId);
        _commit(node, "key");
        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.KeyAlreadyUsed.selector, keyId));
        nodes.addKey(node, "key", "salt");
    }

    function test_reverts_TooManyKeys() public {
        for (uint256 i = 0; i < 8; ++i) {
            _add(node, bytes32(i + 1));
        }
        _commit(node, "ninth");
        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.TooManyKeys.selector, node));
        nodes.addKey(node, "ninth", "salt");
    }

    function test_reverts_UnknownKey() public {
        bytes memory refusal = abi.encodeWithSelector(NodeRegistry.UnknownKey.selector, bytes32("none"));
        vm.expectRevert(refusal);
        nodes.keyOf("none");
        vm.startPrank(node);
        vm.expectRevert(refusal);
        nodes.rotateKey(node, "none", "key", "salt", 0);
        vm.expectRevert(refusal);
        nodes.revokeKey("none", NodeRegistry.RevocationReason.Ceased);
    }

    function test_reverts_KeyOfAnotherNode() public {
        bytes32 keyId = _add(other, "key");
        _commit(node, "new");
        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.KeyOfAnotherNode.selector, keyId, other));
        nodes.rotateKey(node, keyId, "new", "salt", 0);
    }

    function test_reverts_KeyNotInForce() public {
        bytes32 keyId = _add(node, "key");
        _revoke(keyId);
        bytes memory refusal = abi.encodeWithSelector(NodeRegistry.KeyNotInForce.selector, keyId);
        vm.expectRevert(refusal);
        _revoke(keyId);
        _commit(node, "new");
        vm.prank(node);
        vm.expectRevert(refusal);
        nodes.rotateKey(node, keyId, "new", "salt", 0);
    }

    function test_reverts_OverlapTooLong() public {
        bytes32 keyId = _add(node, "key");
        vm.prank(node);
        vm.expectRevert(abi.encodeWithSelector(NodeRegistry.OverlapTooLong.selector, 7 days + 1));
        nodes.rotateKey(node, keyId, "new", "salt", 7 days + 1);
    }

    function test_reverts_ReasonMissing() public {
        bytes32 keyId = _add(node, "key");
        vm.prank(node);
        vm.expectRevert(NodeRegistry.ReasonMissing.selector);
        nodes.revokeKey(keyId, NodeRegistry.RevocationReason.None);
    }
}
