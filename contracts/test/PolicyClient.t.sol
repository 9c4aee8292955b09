// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {GuardedWallet} from "../src/examples/GuardedWallet.sol";
import {ExecutorClient} from "../src/ExecutorClient.sol";
import {IAttestationValidator} from "../src/interfaces/IAttestationValidator.sol";
import {IPolicyRegistry} from "../src/interfaces/IPolicyRegistry.sol";
import {PolicyClient} from "../src/PolicyClient.sol";
import {Attestation, Intent, Leaf, Pins} from "../src/Types.sol";
import {Network} from "./support/Network.sol";

/// @dev What a wallet calls.
contract Target {
    error Refused(uint256 why);

    uint256 public calls;
    uint256 public received;
    address public lastCaller;

    function ping(uint256 number) external payable returns (uint256) {
        ++calls;
        received += msg.value;
        lastCaller = msg.sender;
        return number + 1;
    }

    function refuse(uint256 why) external pure {
        if (why == 0) {
            assembly {
                revert(0, 0)
            }
        }
        revert Refused(why);
    }

    function payBack(address to) external payable {
        (bool done,) = to.call{value: msg.value}("");
        require(done, "not taken");
    }
}

/// @dev A contract account that accepts one hash.
contract ContractAccount is IERC1271 {
    bytes32 private immutable _accepted;

    constructor(bytes32 accepted) {
        _accepted = accepted;
    }

    function isValidSignature(bytes32 hash, bytes calldata) external view returns (bytes4) {
        return hash == _accepted ? this.isValidSignature.selector : bytes4(0xffffffff);
    }
}

contract PolicyClientTest is Network {
    GuardedWallet internal wallet;
    Target internal target;
    bytes32 internal policyId;
    address internal alice;
    uint256 internal aliceKey;
    address internal escape = makeAddr("escape");

    function setUp() public {
        _deployFour();
        (alice, aliceKey) = makeAddrAndKey("alice");
        target = new Target();
        policyId = _publish(0);
        wallet = _wallet(_config(policyId));
    }

    function _ping() private returns (Intent memory) {
        return _intent(alice, address(target), abi.encodeCall(Target.ping, (41)));
    }

    function _attested(Intent memory intent) private view returns (Attestation memory) {
        return _attest(_leaf(intent, address(wallet), policyId));
    }

    function _sign(uint256 key, bytes32 hash) private pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, hash);
        return abi.encodePacked(r, s, v);
    }

    // -------------------------------------------------------------------------------------------------------------- executing

    function test_the_sender_executes_and_gets_what_the_call_returned() public {
        Intent memory intent = _ping();
        Attestation memory attestation = _attested(intent);
        vm.prank(alice);
        bytes memory result = wallet.executeIntent(intent, "", attestation);
        assertEq(abi.decode(result, (uint256)), 42);
        assertEq(target.lastCaller(), address(wallet));
    }

    function test_anyone_executes_with_the_senders_signature() public {
        Intent memory intent = _ping();
        wallet.executeIntent(intent, _sign(aliceKey, _intentHash(intent, address(wallet))), _attested(intent));
        assertEq(target.calls(), 1);
    }

    function test_a_contract_account_consents_by_eip_1271() public {
        Intent memory intent = _ping();
        // the account's address is in the hash that it accepts
        address predicted = vm.computeCreateAddress(address(this), vm.getNonce(address(this)));
        intent.from = predicted;
        ContractAccount account = new ContractAccount(_intentHash(intent, address(wallet)));
        assertEq(address(account), predicted);
        wallet.executeIntent(intent, "whatever", _attested(intent));
        assertEq(target.calls(), 1);

        intent.nonce += 1000;
        Attestation memory attestation = _attested(intent);
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.SenderNotAuthorized.selector, predicted));
        wallet.executeIntent(intent, "whatever", attestation);
    }

    function test_an_account_with_delegated_code_signs_with_its_key() public {
        vm.etch(alice, abi.encodePacked(hex"ef0100", address(target)));
        assertGt(alice.code.length, 0);
        Intent memory intent = _ping();
        wallet.executeIntent(intent, _sign(aliceKey, _intentHash(intent, address(wallet))), _attested(intent));
        assertEq(target.calls(), 1);
    }

    function test_reverts_SenderNotAuthorized() public {
        Intent memory intent = _ping();
        Attestation memory attestation = _attested(intent);
        bytes memory reason = abi.encodeWithSelector(PolicyClient.SenderNotAuthorized.selector, alice);
        vm.expectRevert(reason);
        wallet.executeIntent(intent, "", attestation);
        (, uint256 otherKey) = makeAddrAndKey("other");
        bytes memory signature = _sign(otherKey, _intentHash(intent, address(wallet)));
        vm.expectRevert(reason);
        wallet.executeIntent(intent, signature, attestation);
        // a signature over the same intent for another client
        signature = _sign(aliceKey, _intentHash(intent, address(target)));
        vm.expectRevert(reason);
        wallet.executeIntent(intent, signature, attestation);
        // the other of the two signatures that ECDSA has
        signature = _malleate(_sign(aliceKey, _intentHash(intent, address(wallet))));
        vm.expectRevert(reason);
        wallet.executeIntent(intent, signature, attestation);
        // nobody signs for the zero address
        intent.from = address(0);
        attestation = _attested(intent);
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.SenderNotAuthorized.selector, address(0)));
        wallet.executeIntent(intent, new bytes(65), attestation);
    }

    function _malleate(bytes memory signature) private pure returns (bytes memory) {
        (bytes32 r, bytes32 s) = abi.decode(signature, (bytes32, bytes32));
        uint256 order = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;
        return abi.encodePacked(r, order - uint256(s), signature[64] == bytes1(uint8(27)) ? uint8(28) : uint8(27));
    }

    function test_reverts_ValueMismatch() public {
        Intent memory intent = _ping();
        intent.value = 5;
        Attestation memory attestation = _attested(intent);
        vm.deal(alice, 10);
        vm.deal(address(wallet), 10);
        vm.startPrank(alice);
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.ValueMismatch.selector, 0, 5));
        wallet.executeIntent(intent, "", attestation);
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.ValueMismatch.selector, 6, 5));
        wallet.executeIntent{value: 6}(intent, "", attestation);
        wallet.executeIntent{value: 5}(intent, "", attestation);
        assertEq(target.received(), 5);
        assertEq(address(wallet).balance, 10);
    }

    function test_reverts_ForbiddenTarget_for_itself_and_the_protocols_contracts() public {
        address[5] memory forbidden =
            [address(wallet), address(validator), address(registry), address(policies), address(weights)];
        for (uint256 i = 0; i < 5; ++i) {
            Intent memory intent = _intent(alice, forbidden[i], "");
            Attestation memory attestation = _attested(intent);
            vm.prank(alice);
            vm.expectRevert(abi.encodeWithSelector(ExecutorClient.ForbiddenTarget.selector, forbidden[i]));
            wallet.executeIntent(intent, "", attestation);
        }
    }

    function test_reverts_NoCodeAtTarget() public {
        Intent memory intent = _intent(alice, makeAddr("nobody"), hex"12345678");
        Attestation memory attestation = _attested(intent);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ExecutorClient.NoCodeAtTarget.selector, makeAddr("nobody")));
        wallet.executeIntent(intent, "", attestation);
        intent = _intent(alice, makeAddr("nobody"), "");
        attestation = _attested(intent);
        vm.prank(alice);
        wallet.executeIntent(intent, "", attestation);
    }

    function test_a_failing_call_reverts_all_with_its_own_reason() public {
        Intent memory intent = _intent(alice, address(target), abi.encodeCall(Target.refuse, (7)));
        Attestation memory attestation = _attested(intent);
        vm.startPrank(alice);
        vm.expectRevert(abi.encodeWithSelector(Target.Refused.selector, 7));
        wallet.executeIntent(intent, "", attestation);
        assertEq(validator.nonceBitmap(address(wallet), alice, intent.nonce >> 8) >> (intent.nonce & 255) & 1, 0);

        intent = _intent(alice, address(target), abi.encodeCall(Target.refuse, (0)));
        attestation = _attested(intent);
        vm.expectRevert(abi.encodeWithSelector(ExecutorClient.CallFailed.selector, address(target)));
        wallet.executeIntent(intent, "", attestation);
    }

    function test_the_validators_reason_reaches_the_caller() public {
        Intent memory intent = _ping();
        Attestation memory attestation = _attested(intent);
        vm.startPrank(alice);
        wallet.executeIntent(intent, "", attestation);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.NonceUsed.selector, alice, intent.nonce));
        wallet.executeIntent(intent, "", attestation);
    }

    function test_the_wallet_takes_no_plain_ether() public {
        vm.deal(address(this), 1);
        (bool done,) = address(wallet).call{value: 1}("");
        assertFalse(done);
        Intent memory intent = _intent(alice, address(target), abi.encodeCall(Target.payBack, (address(wallet))));
        Attestation memory attestation = _attested(intent);
        vm.prank(alice);
        vm.expectRevert("not taken");
        wallet.executeIntent(intent, "", attestation);
    }

    /// @dev A function added to the wallet is a way to what it holds until somebody has said that it is none: this list says it.
    function test_every_function_of_the_wallet_that_changes_state_is_accounted_for() public view {
        string[] memory known = new string[](9);
        known[0] = "acceptOwnership";
        known[1] = "announceEscape";
        known[2] = "executeEscape";
        known[3] = "executeIntent";
        known[4] = "renounceOwnership";
        known[5] = "setDemands";
        known[6] = "setPolicy";
        known[7] = "transferOwnership";
        known[8] = "withdrawEscape";
        _checkSurface("GuardedWallet", known);
    }

    function testFuzz_arguments_reach_the_validator_as_they_came(
        bytes calldata data,
        bytes calldata signature,
        string calldata functionSignature
    ) public {
        // whatever their lengths: the forwarding moves three dynamic members
        Intent memory intent = _intent(alice, makeAddr("nobody"), data);
        intent.functionSignature = functionSignature;
        if (data.length != 0) intent.to = address(new Echo());
        Attestation memory attestation = _attested(intent);
        vm.prank(alice);
        bytes memory result = wallet.executeIntent(intent, signature, attestation);
        assertEq(result, data);
    }

    // ------------------------------------------------------------------------------------------------------------------- pins

    function test_a_policy_counts_after_the_delay() public {
        bytes32 next = policies.publish(_policy(1, "next"), "");
        vm.prank(owner);
        vm.expectEmit();
        emit PolicyClient.PolicyChanged(policyId, next, uint64(block.timestamp) + 1 hours);
        wallet.setPolicy(next);
        assertEq(wallet.placetPins().policyId, policyId);
        (Pins memory queued, uint64 effectiveAt) = wallet.queuedPins();
        assertEq(queued.policyId, next);
        assertEq(queued.ordering, 1);
        assertEq(effectiveAt, block.timestamp + 1 hours);
        skip(1 hours - 1);
        assertEq(wallet.placetPins().policyId, policyId);
        skip(1);
        assertEq(wallet.placetPins().policyId, next);
        assertEq(wallet.placetPins().ordering, 1);
        assertEq(wallet.placetPins().quorumBps, 6667);
        (, effectiveAt) = wallet.queuedPins();
        assertEq(effectiveAt, 0);

        Intent memory intent = _ping();
        Attestation memory attestation = _attested(intent);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.PolicyReplaced.selector, policyId, next));
        wallet.executeIntent(intent, "", attestation);
    }

    function test_a_later_choice_replaces_a_queued_one_and_waits_anew() public {
        bytes32 second = policies.publish(_policy(1, "second"), "");
        bytes32 third = policies.publish(_policy(2, "third"), "");
        vm.startPrank(owner);
        wallet.setPolicy(second);
        skip(30 minutes);
        wallet.setPolicy(third);
        skip(30 minutes);
        assertEq(wallet.placetPins().policyId, policyId);
        skip(30 minutes);
        assertEq(wallet.placetPins().policyId, third);
        // and once it counts, it is what the next one replaces
        vm.expectEmit();
        emit PolicyClient.PolicyChanged(third, second, uint64(block.timestamp) + 1 hours);
        wallet.setPolicy(second);
        assertEq(wallet.placetPins().policyId, third);
    }

    function test_demands_and_policy_queue_together() public {
        bytes32 second = policies.publish(_policy(1, "second"), "");
        vm.startPrank(owner);
        wallet.setPolicy(second);
        vm.expectEmit();
        emit PolicyClient.DemandsChanged(9000, 60, 120, uint64(block.timestamp) + 1 hours);
        wallet.setDemands(9000, 60, 120);
        assertEq(wallet.placetPins().quorumBps, 6667);
        skip(1 hours);
        Pins memory pins = wallet.placetPins();
        assertEq(abi.encode(pins), abi.encode(Pins(second, 1, 9000, 60, 120)));
        wallet.setDemands(10_000, 0, 1);
        skip(1 hours);
        assertEq(abi.encode(wallet.placetPins()), abi.encode(Pins(second, 1, 10_000, 0, 1)));
        wallet.setPolicy(policyId);
        skip(1 hours);
        assertEq(abi.encode(wallet.placetPins()), abi.encode(Pins(policyId, 0, 10_000, 0, 1)));
    }

    function test_only_the_owner_changes_policy_and_demands() public {
        bytes memory reason = abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, address(this));
        vm.expectRevert(reason);
        wallet.setPolicy(policyId);
        vm.expectRevert(reason);
        wallet.setDemands(1, 1, 1);
    }

    function test_an_unknown_policy_is_refused() public {
        bytes memory reason = abi.encodeWithSelector(IPolicyRegistry.UnknownPolicy.selector, keccak256("none"));
        vm.prank(owner);
        vm.expectRevert(reason);
        wallet.setPolicy(keccak256("none"));
        PolicyClient.ClientConfig memory config = _config(keccak256("none"));
        vm.expectRevert(reason);
        new GuardedWallet(config);
    }

    function test_reverts_PinsOutOfBounds() public {
        uint32[3][5] memory bad = [
            [uint32(0), 1, 1],
            [uint32(10_001), 1, 1],
            [uint32(6667), 1 days + 1, 1],
            [uint32(6667), 1, 0],
            [uint32(6667), 1, 7 days + 1]
        ];
        for (uint256 i = 0; i < 5; ++i) {
            vm.prank(owner);
            vm.expectRevert(PolicyClient.PinsOutOfBounds.selector);
            wallet.setDemands(uint16(bad[i][0]), bad[i][1], bad[i][2]);
            PolicyClient.ClientConfig memory config = _config(policyId);
            (config.quorumBps, config.epochGrace, config.maxCertificateAge) = (uint16(bad[i][0]), bad[i][1], bad[i][2]);
            vm.expectRevert(PolicyClient.PinsOutOfBounds.selector);
            new GuardedWallet(config);
        }
    }

    function test_reverts_ActivationDelayTooShort() public {
        PolicyClient.ClientConfig memory config = _config(policyId);
        config.minActivationDelay = uint32(DELAY) + 1;
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.ActivationDelayTooShort.selector, DELAY, uint32(DELAY) + 1));
        new GuardedWallet(config);
        config.minActivationDelay = uint32(DELAY);
        new GuardedWallet(config);
    }

    // ----------------------------------------------------------------------------------------------------------------- escape

    function _escapable() private {
        PolicyClient.ClientConfig memory config = _config(policyId);
        config.escape = escape;
        config.escapeDelay = 3 days;
        wallet = _wallet(config);
    }

    function test_the_escape_acts_in_its_announced_window_only() public {
        _escapable();
        Intent memory intent = _ping();
        intent.deadline = uint64(block.timestamp) + 365 days;
        bytes memory signature = _sign(aliceKey, _intentHash(intent, address(wallet)));
        vm.startPrank(escape);
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.EscapeNotOpen.selector, 0, 14 days));
        wallet.executeEscape(intent, signature);

        uint64 opensAt = uint64(block.timestamp) + 3 days;
        vm.expectEmit();
        emit PolicyClient.EscapeAnnounced(escape, opensAt, opensAt + 14 days);
        wallet.announceEscape();
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.EscapeAlreadyAnnounced.selector, opensAt));
        wallet.announceEscape();
        bytes memory reason = abi.encodeWithSelector(PolicyClient.EscapeNotOpen.selector, opensAt, opensAt + 14 days);
        vm.warp(opensAt - 1);
        vm.expectRevert(reason);
        wallet.executeEscape(intent, signature);
        vm.warp(opensAt + 14 days + 1);
        vm.expectRevert(reason);
        wallet.executeEscape(intent, signature);
        // a window that went by is announced anew
        wallet.announceEscape();
        skip(3 days);
        vm.expectEmit();
        emit PolicyClient.EscapeUsed(escape, alice, _intentHash(intent, address(wallet)));
        wallet.executeEscape(intent, signature);
        assertEq(target.calls(), 1);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.NonceUsed.selector, alice, intent.nonce));
        wallet.executeEscape(intent, signature);
    }

    function test_the_escape_needs_the_senders_consent_chain_deadline_and_value() public {
        _escapable();
        vm.startPrank(escape);
        wallet.announceEscape();
        skip(3 days);
        Intent memory intent = _ping();
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.SenderNotAuthorized.selector, alice));
        wallet.executeEscape(intent, "");
        intent.from = escape;
        intent.chainId = 5;
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.WrongChain.selector, 5));
        wallet.executeEscape(intent, "");
        intent.chainId = block.chainid;
        intent.deadline = uint64(block.timestamp) - 1;
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.IntentExpired.selector, intent.deadline));
        wallet.executeEscape(intent, "");
        intent.deadline += 10;
        intent.value = 1;
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.ValueMismatch.selector, 0, 1));
        wallet.executeEscape(intent, "");
        intent.value = 0;
        wallet.executeEscape(intent, "");
        assertEq(target.calls(), 1);
    }

    function test_an_escape_is_not_executed_again_by_an_attestation_and_moves_the_counter() public {
        bytes32 next = policies.publish(_policy(1, "sender"), "");
        policyId = next;
        _escapable();
        vm.startPrank(escape);
        wallet.announceEscape();
        skip(3 days);
        Intent memory intent = _ping();
        intent.from = escape;
        Attestation memory attestation = _attested(intent);
        wallet.executeEscape(intent, "");
        assertEq(validator.sequenceOf(address(wallet), escape, 1), 1);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.SequenceMismatch.selector, 0, 1));
        wallet.executeIntent(intent, "", attestation);
    }

    function test_an_announcement_is_taken_back() public {
        _escapable();
        vm.startPrank(escape);
        wallet.announceEscape();
        vm.expectEmit();
        emit PolicyClient.EscapeWithdrawn(escape);
        wallet.withdrawEscape();
        skip(3 days);
        Intent memory intent = _ping();
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.EscapeNotOpen.selector, 0, 14 days));
        wallet.executeEscape(intent, "");
    }

    function test_reverts_NotEscape() public {
        _escapable();
        Intent memory intent = _ping();
        bytes memory reason = abi.encodeWithSelector(PolicyClient.NotEscape.selector, owner);
        vm.startPrank(owner);
        vm.expectRevert(reason);
        wallet.announceEscape();
        vm.expectRevert(reason);
        wallet.withdrawEscape();
        vm.expectRevert(reason);
        wallet.executeEscape(intent, "");
    }
}

/// @dev Returns what it is called with.
contract Echo {
    fallback(bytes calldata data) external returns (bytes memory) {
        return data;
    }
}
