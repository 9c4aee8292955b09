// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {TestToken} from "../src/examples/TestToken.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {ReceiptLedger} from "../src/ReceiptLedger.sol";
import {RefundVault} from "../src/RefundVault.sol";
import {Network} from "./support/Network.sol";

/// @dev Few payment ids, so most are tried again and again, by everybody and in every way.
contract RefundHandler is Network {
    uint256 internal constant IDS = 12;

    TestToken public token;
    RefundVault public vault;
    address[3] public beneficiaries;
    uint256[3] private _secrets;
    address public settlement = makeAddr("settlement");

    mapping(bytes32 => uint256) public creditsOf;
    mapping(bytes32 => uint256) public paymentsOf;
    mapping(bytes32 => uint256) public amountOf;
    mapping(bytes32 => address) public beneficiaryOf;
    uint256 public paidOut;
    uint256 public taken;
    uint256 public funded;
    uint256 public paidByAnothersWord;
    uint256 public pausedFor;

    constructor() {
        vm.warp(START);
        token = new TestToken("Dollar", "USD", 6);
        bytes memory arguments = abi.encode(token, settlement, owner);
        vault = RefundVault(_create("RefundVault", type(RefundVault).creationCode, arguments));
        for (uint256 i = 0; i < 3; ++i) {
            (beneficiaries[i], _secrets[i]) = makeAddrAndKey(vm.toString(i));
        }
    }

    function idAt(uint256 i) public pure returns (bytes32) {
        return keccak256(abi.encode(i % IDS));
    }

    function fund(uint96 amount) external {
        token.mint(address(vault), amount);
        funded += amount;
    }

    function credit(uint256 id, uint256 who, uint96 amount, bool affordable) external {
        bytes32 paymentId = idAt(id);
        if (affordable) amount = uint96(bound(amount, 0, vault.surplus() / 2));
        address beneficiary = beneficiaries[who % 3];
        vm.prank(settlement);
        try vault.credit(paymentId, beneficiary, amount) {
            ++creditsOf[paymentId];
            amountOf[paymentId] = amount;
            beneficiaryOf[paymentId] = beneficiary;
        } catch {}
    }

    function withdraw(uint256 id, uint256 who) external {
        bytes32 paymentId = idAt(id);
        address[5] memory callers = [beneficiaries[0], beneficiaries[1], beneficiaries[2], settlement, owner];
        vm.prank(callers[who % 5]);
        try vault.withdraw(paymentId) {
            _notePaid(paymentId);
        } catch {}
    }

    function withdrawTo(uint256 id, uint256 signer, uint256 to, uint64 deadline) external {
        bytes32 paymentId = idAt(id);
        address[4] memory recipients = [beneficiaries[0], owner, settlement, makeAddr("friend")];
        address recipient = recipients[to % 4];
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(_secrets[signer % 3], vault.withdrawalDigest(paymentId, recipient, deadline));
        try vault.withdrawTo(paymentId, recipient, deadline, abi.encodePacked(r, s, v)) {
            if (beneficiaryOf[paymentId] != beneficiaries[signer % 3]) ++paidByAnothersWord;
            _notePaid(paymentId);
        } catch {}
    }

    function takeSurplus(uint256 amount) external {
        amount = bound(amount, 0, token.balanceOf(address(vault)) + 1);
        vm.prank(owner);
        try vault.withdrawSurplus(owner, amount) {
            taken += amount;
        } catch {}
    }

    function pauseOrResume(bool pauses) external {
        vm.startPrank(owner);
        if (pauses) try vault.pause() {} catch {} else try vault.resume() {} catch {}
        vm.stopPrank();
    }

    function wait(uint256 time) external {
        uint256 before = block.timestamp;
        skip(bound(time, 1, 3 days));
        uint256 end = vault.pausedUntil();
        if (end > before) pausedFor += (end < block.timestamp ? end : block.timestamp) - before;
    }

    function _notePaid(bytes32 paymentId) private {
        ++paymentsOf[paymentId];
        paidOut += amountOf[paymentId];
    }

    function outstanding() external view returns (uint256 sum) {
        for (uint256 i = 0; i < IDS; ++i) {
            if (creditsOf[idAt(i)] != 0 && paymentsOf[idAt(i)] == 0) sum += amountOf[idAt(i)];
        }
    }
}

/// forge-config: default.invariant.runs = 32
/// forge-config: default.invariant.depth = 150
contract RefundInvariantsTest is Network {
    RefundHandler internal handler;
    RefundVault internal vault;

    function setUp() public {
        handler = new RefundHandler();
        vm.warp(START);
        vault = handler.vault();
        bytes4[] memory selectors = new bytes4[](7);
        selectors[0] = handler.fund.selector;
        selectors[1] = handler.credit.selector;
        selectors[2] = handler.withdraw.selector;
        selectors[3] = handler.withdrawTo.selector;
        selectors[4] = handler.takeSurplus.selector;
        selectors[5] = handler.pauseOrResume.selector;
        selectors[6] = handler.wait.selector;
        targetContract(address(handler));
        targetSelector(FuzzSelector(address(handler), selectors));
    }

    function invariant_what_is_due_is_here() public view {
        assertEq(vault.credited(), handler.outstanding());
        assertLe(vault.credited(), handler.token().balanceOf(address(vault)));
    }

    function invariant_a_payment_is_credited_once_and_paid_once_at_most() public view {
        for (uint256 i = 0; i < 12; ++i) {
            bytes32 paymentId = handler.idAt(i);
            assertLe(handler.creditsOf(paymentId), 1);
            assertLe(handler.paymentsOf(paymentId), handler.creditsOf(paymentId));
            RefundVault.Refund memory refund = vault.refundOf(paymentId);
            assertEq(refund.beneficiary, handler.beneficiaryOf(paymentId));
            assertEq(refund.amount, handler.paymentsOf(paymentId) == 0 ? handler.amountOf(paymentId) : 0);
        }
    }

    function invariant_what_left_was_paid_or_surplus() public view {
        uint256 balance = handler.token().balanceOf(address(vault));
        assertEq(balance, handler.funded() - handler.paidOut() - handler.taken());
    }

    function invariant_nobody_is_paid_by_anothers_word() public view {
        assertEq(handler.paidByAnothersWord(), 0);
    }

    function invariant_no_pause_is_longer_than_a_day() public view {
        assertLe(vault.pausedUntil(), block.timestamp + 1 days);
    }

    function invariant_an_eighth_of_the_time_is_paused_at_most_and_a_day() public view {
        assertLe(handler.pausedFor(), (block.timestamp - START) / 8 + 1 days);
    }
}

/// @dev Few roots, so most are posted again, by others and with other counts.
contract LedgerHandler is Network {
    ReceiptLedger public ledger;
    address[4] public posters;
    bytes[] private _posted;

    constructor() {
        vm.warp(START);
        ledger = ReceiptLedger(_create("ReceiptLedger", type(ReceiptLedger).creationCode, abi.encode(owner)));
        for (uint256 i = 0; i < 4; ++i) {
            posters[i] = makeAddr(vm.toString(i));
            vm.prank(owner);
            ledger.setPoster(posters[i], i < 3);
        }
    }

    function allow(uint256 who, bool allowed) external {
        vm.prank(owner);
        ledger.setPoster(posters[who % 4], allowed);
    }

    function post(uint256 who, uint256 which, uint32 count) external {
        address poster = posters[who % 4];
        bytes32 root = keccak256(abi.encode(which % 5));
        count = uint32(bound(count, 0, 3));
        uint256 before = ledger.rootCount();
        vm.prank(poster);
        try ledger.post(root, count, START, uint64(block.timestamp), "uri") returns (uint256 rootIndex) {
            if (rootIndex != before) return;
            _posted.push(abi.encode(root, poster, count, block.timestamp));
        } catch {}
    }

    function wait(uint16 time) external {
        skip(time);
    }

    function postedCount() external view returns (uint256) {
        return _posted.length;
    }

    function postedAt(uint256 rootIndex) external view returns (bytes memory) {
        return _posted[rootIndex];
    }
}

/// forge-config: default.invariant.runs = 32
/// forge-config: default.invariant.depth = 100
contract LedgerInvariantsTest is Network {
    LedgerHandler internal handler;

    function setUp() public {
        handler = new LedgerHandler();
        vm.warp(START);
        bytes4[] memory selectors = new bytes4[](3);
        selectors[0] = handler.allow.selector;
        selectors[1] = handler.post.selector;
        selectors[2] = handler.wait.selector;
        targetContract(address(handler));
        targetSelector(FuzzSelector(address(handler), selectors));
    }

    function invariant_roots_are_only_ever_added() public view {
        ReceiptLedger ledger = handler.ledger();
        assertEq(ledger.rootCount(), handler.postedCount());
        for (uint256 i = 0; i < handler.postedCount(); ++i) {
            assertEq(abi.encode(ledger.rootAt(i)), handler.postedAt(i));
        }
    }

    function invariant_each_poster_posts_a_root_once() public view {
        ReceiptLedger ledger = handler.ledger();
        for (uint256 i = 0; i < ledger.rootCount(); ++i) {
            ReceiptLedger.PostedRoot memory posted = ledger.rootAt(i);
            (bool known, uint256 rootIndex) = ledger.find(posted.poster, posted.root);
            assertTrue(known);
            assertEq(rootIndex, i);
        }
    }
}

/// @dev Few keys and two nodes, so keys are claimed again by the other. Remembers what was true of the past.
contract NodeHandler is Network {
    struct Claim {
        bytes32 keyId;
        address node;
        uint40 since;
    }

    struct Moment {
        bytes32 keyId;
        uint256 time;
        bool valid;
    }

    NodeRegistry public nodes;
    address[2] public names;
    mapping(bytes32 keyId => uint40) public earliestEnd;
    uint256 public prolonged;
    Claim[] private _claims;
    Moment[] private _moments;

    constructor() {
        vm.warp(START);
        nodes = NodeRegistry(_create("NodeRegistry", type(NodeRegistry).creationCode, abi.encode(uint64(60))));
        for (uint256 i = 0; i < 2; ++i) {
            names[i] = makeAddr(vm.toString(i));
            vm.prank(names[i]);
            nodes.register("", names[i], 0);
        }
    }

    function _announce(uint256 which, uint256 key) private returns (address node, bytes32 key_) {
        node = names[which % 2];
        key_ = bytes32(key % 40 + 1);
        bytes32 commitment = nodes.keyCommitment(node, key_, "");
        vm.prank(node);
        try nodes.commitKey(node, commitment) {} catch {}
        skip(60);
    }

    function add(uint256 which, uint256 key) external {
        (address node, bytes32 key_) = _announce(which, key);
        vm.prank(node);
        try nodes.addKey(node, key_, "") returns (bytes32 keyId) {
            _note(keyId, node);
        } catch {}
        _noteEnds();
    }

    function rotate(uint256 which, uint256 old, uint256 key, uint256 overlap) external {
        if (_claims.length == 0) return;
        (address node, bytes32 key_) = _announce(which, key);
        bytes32 oldKeyId = _claims[old % _claims.length].keyId;
        vm.prank(node);
        try nodes.rotateKey(node, oldKeyId, key_, "", uint40(bound(overlap, 0, 7 days))) returns (bytes32 keyId) {
            _note(keyId, node);
        } catch {}
        _noteEnds();
    }

    function revoke(uint256 which, uint256 key) external {
        if (_claims.length == 0) return;
        vm.prank(names[which % 2]);
        try nodes.revokeKey(_claims[key % _claims.length].keyId, NodeRegistry.RevocationReason.Ceased) {} catch {}
        _noteEnds();
    }

    function _note(bytes32 keyId, address node) private {
        _claims.push(Claim(keyId, node, uint40(block.timestamp)));
        earliestEnd[keyId] = nodes.NO_END();
    }

    function _noteEnds() private {
        for (uint256 i = 0; i < _claims.length; ++i) {
            bytes32 keyId = _claims[i].keyId;
            (,,, uint40 until) = nodes.keyOf(keyId);
            if (until > earliestEnd[keyId]) ++prolonged;
            else earliestEnd[keyId] = until;
        }
    }

    /// @dev What is said of a time that is over must be said of it for ever.
    function remember(uint256 key, uint256 ago) external {
        if (_claims.length == 0) return;
        bytes32 keyId = _claims[key % _claims.length].keyId;
        uint256 time = block.timestamp - bound(ago, 1, block.timestamp - START + 1);
        _moments.push(Moment(keyId, time, nodes.wasValidAt(keyId, time)));
    }

    function wait(uint256 time) external {
        skip(bound(time, 1, 3 days));
    }

    function claims() external view returns (Claim[] memory) {
        return _claims;
    }

    function moments() external view returns (Moment[] memory) {
        return _moments;
    }
}

/// forge-config: default.invariant.runs = 32
/// forge-config: default.invariant.depth = 100
contract NodeInvariantsTest is Network {
    NodeHandler internal handler;
    NodeRegistry internal nodes;

    function setUp() public {
        handler = new NodeHandler();
        vm.warp(START);
        nodes = handler.nodes();
        bytes4[] memory selectors = new bytes4[](5);
        selectors[0] = handler.add.selector;
        selectors[1] = handler.rotate.selector;
        selectors[2] = handler.revoke.selector;
        selectors[3] = handler.remember.selector;
        selectors[4] = handler.wait.selector;
        targetContract(address(handler));
        targetSelector(FuzzSelector(address(handler), selectors));
    }

    function invariant_a_key_is_its_first_nodes_for_ever() public view {
        NodeHandler.Claim[] memory claims = handler.claims();
        for (uint256 i = 0; i < claims.length; ++i) {
            (address node, bytes32 key, uint40 since, uint40 until) = nodes.keyOf(claims[i].keyId);
            assertEq(node, claims[i].node);
            assertEq(nodes.keyIdOf(key), claims[i].keyId);
            assertEq(since, claims[i].since);
            assertLe(since, until);
            // no key was added twice
            for (uint256 j = 0; j < i; ++j) {
                assertTrue(claims[j].keyId != claims[i].keyId);
            }
        }
    }

    function invariant_no_end_is_put_off() public view {
        assertEq(handler.prolonged(), 0);
    }

    function invariant_what_is_over_is_not_rewritten() public view {
        NodeHandler.Moment[] memory moments = handler.moments();
        for (uint256 i = 0; i < moments.length; ++i) {
            assertEq(nodes.wasValidAt(moments[i].keyId, moments[i].time), moments[i].valid);
        }
    }

    function invariant_the_keys_in_force_are_those_that_are_valid_and_eight_at_most() public view {
        NodeHandler.Claim[] memory claims = handler.claims();
        for (uint256 n = 0; n < 2; ++n) {
            address node = handler.names(n);
            bytes32[] memory listed = nodes.keysInForce(node);
            assertLe(listed.length, 8);
            uint256 valid;
            for (uint256 i = 0; i < claims.length; ++i) {
                if (claims[i].node == node && nodes.wasValidAt(claims[i].keyId, block.timestamp)) ++valid;
            }
            assertEq(listed.length, valid);
        }
    }
}
