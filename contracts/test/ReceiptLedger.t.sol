// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {ReceiptLedger} from "../src/ReceiptLedger.sol";
import {Network} from "./support/Network.sol";

contract ReceiptLedgerTest is Network {
    ReceiptLedger internal ledger;
    address internal poster = makeAddr("poster");
    address internal rival = makeAddr("rival");

    function setUp() public {
        vm.warp(START);
        ledger = _ledger();
    }

    function _ledger() private returns (ReceiptLedger fresh) {
        fresh = ReceiptLedger(_create("ReceiptLedger", type(ReceiptLedger).creationCode, abi.encode(owner)));
        vm.startPrank(owner);
        fresh.setPoster(poster, true);
        fresh.setPoster(rival, true);
        vm.stopPrank();
    }

    function _post(address who, bytes32 root, uint32 count) private returns (uint256) {
        vm.prank(who);
        return ledger.post(root, count, START - 60, START, "uri");
    }

    /// @dev By plain `abi.encode`, so that the contract's hashing is compared with the specification's.
    function _leaf(address who, bytes32 receiptDigest) private view returns (bytes32) {
        bytes32 typehash = keccak256("ReceiptLeaf(uint256 chainId,address ledger,address poster,bytes32 receiptDigest)");
        bytes32 structHash = keccak256(abi.encode(typehash, block.chainid, address(ledger), who, receiptDigest));
        return keccak256(abi.encodePacked(hex"00", structHash));
    }

    function _digests(uint256 count) private pure returns (bytes32[] memory digests) {
        digests = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            digests[i] = sha256(abi.encode("receipt", i));
        }
    }

    function _leaves(address who, uint256 count) private view returns (bytes32[] memory leaves) {
        leaves = _digests(count);
        for (uint256 i = 0; i < count; ++i) {
            leaves[i] = _leaf(who, leaves[i]);
        }
    }

    function test_roots_are_numbered_and_stand() public {
        vm.expectEmit();
        emit ReceiptLedger.RootPosted(0, poster, "one", 5, START - 60, START, "uri");
        assertEq(_post(poster, "one", 5), 0);
        skip(10);
        assertEq(_post(rival, "two", 7), 1);
        assertEq(ledger.rootCount(), 2);
        assertEq(abi.encode(ledger.rootAt(0)), abi.encode(ReceiptLedger.PostedRoot("one", poster, 5, START)));
        assertEq(abi.encode(ledger.rootAt(1)), abi.encode(ReceiptLedger.PostedRoot("two", rival, 7, START + 10)));
        (bool posted, uint256 rootIndex) = ledger.find(rival, "two");
        assertTrue(posted);
        assertEq(rootIndex, 1);
        (posted,) = ledger.find(poster, "two");
        assertFalse(posted);
    }

    function test_posting_again_changes_nothing_and_answers_the_number() public {
        _post(rival, "another", 1);
        assertEq(_post(poster, "one", 5), 1);
        skip(1 days);
        vm.recordLogs();
        assertEq(_post(poster, "one", 5), 1);
        assertEq(vm.getRecordedLogs().length, 0);
        assertEq(ledger.rootCount(), 2);
        assertEq(ledger.rootAt(1).postedAt, START);
    }

    /// @dev Threat 30: a root that somebody else posts first is in nobody's way, and proves nothing of who copied it.
    function test_a_root_posted_first_by_another_neither_blocks_nor_falsifies() public {
        bytes32[] memory digests = _digests(5);
        bytes32[] memory leaves = _leaves(poster, 5);
        bytes32 root = _root(leaves, 0, 5);
        uint256 copied = _post(rival, root, 5);
        uint256 ours = _post(poster, root, 5);
        assertTrue(ours != copied);
        for (uint256 i = 0; i < 5; ++i) {
            bytes32[] memory path = _path(leaves, i, 0, 5);
            assertTrue(ledger.verify(ours, digests[i], i, path));
            assertFalse(ledger.verify(copied, digests[i], i, path));
        }
    }

    function test_a_root_proves_nothing_on_another_chain_or_in_another_ledger() public {
        bytes32 digest = sha256("receipt");
        bytes32 root = _leaf(poster, digest);
        bytes32[] memory none = new bytes32[](0);
        assertTrue(ledger.verify(_post(poster, root, 1), digest, 0, none));

        ReceiptLedger elsewhere = _ledger();
        vm.prank(poster);
        assertFalse(elsewhere.verify(elsewhere.post(root, 1, START, START, "uri"), digest, 0, none));
        vm.chainId(999);
        assertFalse(ledger.verify(0, digest, 0, none));
    }

    function test_an_inner_node_or_a_leaf_is_no_receipt() public {
        bytes32[] memory leaves = _leaves(poster, 4);
        uint256 rootIndex = _post(poster, _root(leaves, 0, 4), 4);
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = _root(leaves, 2, 4);
        assertFalse(ledger.verify(rootIndex, _root(leaves, 0, 2), 0, proof));
        assertFalse(ledger.verify(rootIndex, leaves[0], 0, _path(leaves, 0, 0, 4)));
    }

    function testFuzz_each_receipt_is_at_its_place_only(uint8 size, uint256 index, uint256 elsewhere, bytes32 foreign)
        public
    {
        uint256 count = bound(size, 1, 200);
        index = index % count;
        bytes32[] memory digests = _digests(count);
        bytes32[] memory leaves = _leaves(poster, count);
        bytes32[] memory path = _path(leaves, index, 0, count);
        uint256 rootIndex = _post(poster, _root(leaves, 0, count), uint32(count));
        assertTrue(ledger.verify(rootIndex, digests[index], index, path));
        assertEq(ledger.verify(rootIndex, digests[index], elsewhere, path), elsewhere == index);
        vm.assume(foreign != digests[index]);
        assertFalse(ledger.verify(rootIndex, foreign, index, path));
    }

    function testFuzz_a_root_with_another_count_proves_nothing_beyond_it(uint8 size, uint32 claimed) public {
        uint256 count = bound(size, 2, 100);
        bytes32[] memory leaves = _leaves(poster, count);
        claimed = uint32(bound(claimed, 1, count - 1));
        uint256 rootIndex = _post(poster, _root(leaves, 0, count), claimed);
        bytes32[] memory path = _path(leaves, count - 1, 0, count);
        assertFalse(ledger.verify(rootIndex, _digests(count)[count - 1], count - 1, path));
    }

    function test_the_leaf_is_the_specifications() public {
        assertEq(ledger.leafHash(poster, "digest"), _leaf(poster, "digest"));
        // golden: chain 31337, ledger 0x1111…, poster 0x2222…, digest 0x3333…, computed in Python
        vm.chainId(31337);
        address at = 0x1111111111111111111111111111111111111111;
        vm.etch(at, address(ledger).code);
        bytes32 digest = 0x3333333333333333333333333333333333333333333333333333333333333333;
        assertEq(
            ReceiptLedger(at).leafHash(0x2222222222222222222222222222222222222222, digest),
            0x895088230b7d6dfaf91bf85ead98f420cec31f5f299b411c5f74f588bada7bdb
        );
    }

    function test_a_dismissed_poster_posts_no_more_and_what_it_posted_stands() public {
        uint256 rootIndex = _post(poster, "one", 5);
        vm.expectEmit();
        emit ReceiptLedger.PosterSet(poster, false);
        vm.prank(owner);
        ledger.setPoster(poster, false);
        assertEq(ledger.rootAt(rootIndex).root, "one");
        vm.expectRevert(abi.encodeWithSelector(ReceiptLedger.NotPoster.selector, poster));
        _post(poster, "one", 5);
    }

    function test_only_the_owner_names_posters_and_ownership_moves_in_two_steps() public {
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, rival));
        vm.prank(rival);
        ledger.setPoster(rival, true);
        vm.prank(owner);
        ledger.transferOwnership(rival);
        assertEq(ledger.owner(), owner);
        vm.prank(rival);
        ledger.acceptOwnership();
        assertEq(ledger.owner(), rival);
    }

    function test_reverts_NotPoster() public {
        vm.expectRevert(abi.encodeWithSelector(ReceiptLedger.NotPoster.selector, owner));
        _post(owner, "one", 1);
    }

    function test_reverts_EmptyRoot() public {
        vm.expectRevert(ReceiptLedger.EmptyRoot.selector);
        _post(poster, 0, 1);
        vm.expectRevert(ReceiptLedger.EmptyRoot.selector);
        _post(poster, "one", 0);
    }

    function test_reverts_TimesOutOfOrder() public {
        vm.prank(poster);
        vm.expectRevert(abi.encodeWithSelector(ReceiptLedger.TimesOutOfOrder.selector, START, START - 1));
        ledger.post("one", 1, START, START - 1, "uri");
    }

    function test_reverts_ReceiptsFromFuture() public {
        vm.startPrank(poster);
        ledger.post("one", 1, START, START + 60, "uri");
        vm.expectRevert(abi.encodeWithSelector(ReceiptLedger.ReceiptsFromFuture.selector, START + 61));
        ledger.post("two", 1, START, START + 61, "uri");
    }

    function test_reverts_RootPostedOtherwise() public {
        _post(rival, "another", 1);
        _post(poster, "one", 5);
        vm.expectRevert(abi.encodeWithSelector(ReceiptLedger.RootPostedOtherwise.selector, 1));
        _post(poster, "one", 6);
    }

    function test_reverts_UnknownRoot() public {
        _post(poster, "one", 5);
        vm.expectRevert(abi.encodeWithSelector(ReceiptLedger.UnknownRoot.selector, 1));
        ledger.rootAt(1);
        vm.expectRevert(abi.encodeWithSelector(ReceiptLedger.UnknownRoot.selector, 1));
        ledger.verify(1, "digest", 0, new bytes32[](0));
    }
}
