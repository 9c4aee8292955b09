// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {AttestationValidator} from "../src/AttestationValidator.sol";
import {GuardedVault} from "../src/examples/GuardedVault.sol";
import {GuardedWallet} from "../src/examples/GuardedWallet.sol";
import {TestToken} from "../src/examples/TestToken.sol";
import {IAttestationValidator} from "../src/interfaces/IAttestationValidator.sol";
import {OperatorRegistry} from "../src/OperatorRegistry.sol";
import {PolicyClient} from "../src/PolicyClient.sol";
import {
    Attestation,
    Certificate,
    Intent,
    Leaf,
    OperatorView,
    Pins,
    PolicyPreimage,
    QuorumProof
} from "../src/Types.sol";
import {MockClient, Network} from "./support/Network.sol";

/// @title The attacks of the threat list that contracts stop, by their numbers there
contract ThreatsTest is Network {
    MockClient internal client;
    bytes32 internal policyId;
    address internal alice;
    uint256 internal aliceKey;

    function setUp() public {
        _deployFour();
        (alice, aliceKey) = makeAddrAndKey("alice");
        client = _client(0);
        policyId = client.placetPins().policyId;
    }

    function _attested(MockClient for_) private returns (Intent memory intent, Leaf memory leaf) {
        intent = _intent(alice, address(0xdead), "");
        leaf = _leaf(intent, address(for_), for_.placetPins().policyId);
    }

    function _clientAt(uint16 quorumBps) private returns (MockClient pinned) {
        pinned = _client(0);
        Pins memory pins = _pins(policyId, 0);
        pins.quorumBps = quorumBps;
        pinned.setPins(pins);
    }

    /// @dev One leaf of each client under one certificate, signed by all operators but those whose bit is set in `missing`.
    function _attestedTogether(MockClient one, MockClient other, uint256 missing)
        private
        returns (Intent[2] memory intents, Attestation[2] memory attestations)
    {
        Leaf[2] memory leaves;
        (intents[0], leaves[0]) = _attested(one);
        (intents[1], leaves[1]) = _attested(other);
        bytes32[] memory hashes = new bytes32[](2);
        (hashes[0], hashes[1]) = (_leafHash(leaves[0]), _leafHash(leaves[1]));
        Certificate memory certificate = _certificate(_root(hashes, 0, 2), 2);
        for (uint32 i = 0; i < 2; ++i) {
            attestations[i] = _attest(leaves[i], certificate, missing);
            attestations[i].index = i;
            attestations[i].merkleProof = _path(hashes, i, 0, 2);
        }
    }

    function _keyOf(uint256 i) private returns (bytes32[] memory ids) {
        ids = new bytes32[](1);
        ids[0] = registry.keyOf(_operator(i));
    }

    // ---------------------------------------------------------------------------------------------------- 1: remembered roots

    function test_01_remembered_root_is_worthless_to_a_stricter_client() public {
        // one operator of four signs alone, and her own client, pinned at 1 bps, has it remembered
        MockClient mallory = _clientAt(1);
        (Intent[2] memory intents, Attestation[2] memory attestations) = _attestedTogether(mallory, client, 14);
        attestations[0].remember = true;
        mallory.consume(intents[0], attestations[0]);

        attestations[1].quorumProof = "";
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.QuorumNotReached.selector, 100, 400, 6667));
        client.consume(intents[1], attestations[1]);
    }

    function test_01_a_client_that_raises_its_quorum_is_not_served_by_what_was_remembered() public {
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        Attestation memory attestation = _attest(leaf, 1);
        validator.record(attestation.certificate, abi.decode(attestation.quorumProof, (QuorumProof)));
        attestation.quorumProof = "";
        Pins memory strict = _pins(policyId, 0);
        strict.quorumBps = 10_000;
        client.setPins(strict);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.QuorumNotReached.selector, 300, 400, 10_000));
        client.consume(intent, attestation);
    }

    function test_01_remembered_root_outlives_neither_its_age_nor_its_epoch() public {
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        intent.deadline += 30 days;
        leaf = _leaf(intent, address(client), policyId);
        Attestation memory attestation = _attest(leaf);
        validator.record(attestation.certificate, abi.decode(attestation.quorumProof, (QuorumProof)));
        attestation.quorumProof = "";
        uint256 snapshot = vm.snapshotState();
        skip(MAX_AGE + 1);
        vm.expectRevert(
            abi.encodeWithSelector(
                IAttestationValidator.CertificateTooOld.selector, attestation.certificate.timestamp, MAX_AGE
            )
        );
        client.consume(intent, attestation);

        vm.revertToState(snapshot);
        bytes32[] memory ids = _keyOf(0);
        vm.prank(owner);
        registry.eject(ids);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.EpochRevoked.selector, 1));
        client.consume(intent, attestation);
    }

    // ------------------------------------------------------------------------------------------------ 5: one intent, one client

    function test_05_one_signed_intent_does_not_execute_at_two_clients() public {
        GuardedWallet a = _wallet(_config(policyId));
        GuardedWallet b = _wallet(_config(policyId));
        Intent memory intent = _intent(alice, makeAddr("shop"), "");
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(aliceKey, _intentHash(intent, address(a)));
        bytes memory signature = abi.encodePacked(r, s, v);
        a.executeIntent(intent, signature, _attest(_leaf(intent, address(a), policyId)));

        Attestation memory attestation = _attest(_leaf(intent, address(b), policyId));
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.SenderNotAuthorized.selector, alice));
        b.executeIntent(intent, signature, attestation);
        // nor by an attestation whose leaf names the hash at the other client
        attestation.leaf.intentHash = _intentHash(intent, address(a));
        attestation = _attest(attestation.leaf);
        vm.expectRevert(
            abi.encodeWithSelector(
                IAttestationValidator.IntentMismatch.selector,
                _intentHash(intent, address(a)),
                _intentHash(intent, address(b))
            )
        );
        vm.prank(alice);
        b.executeIntent(intent, "", attestation);
    }

    // --------------------------------------------------------------------------------------------- 6: many allows over one state

    function test_06_of_many_allows_over_one_state_only_one_executes() public {
        for (uint8 ordering = 1; ordering <= 2; ++ordering) {
            MockClient ordered = _client(ordering);
            (Intent memory first, Leaf memory firstLeaf) = _attested(ordered);
            (Intent memory second, Leaf memory secondLeaf) = _attested(ordered);
            ordered.consume(first, _attest(firstLeaf));
            Attestation memory late = _attest(secondLeaf);
            vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.SequenceMismatch.selector, 0, 1));
            ordered.consume(second, late);
            secondLeaf.sequence = 1;
            ordered.consume(second, _attest(secondLeaf));
            assertEq(validator.sequenceOf(address(ordered), alice, ordering), 2);
        }
    }

    function test_06_a_sender_does_not_invalidate_anothers_attestation_under_sender_ordering() public {
        MockClient ordered = _client(1);
        (Intent memory intent, Leaf memory leaf) = _attested(ordered);
        Attestation memory attestation = _attest(leaf);
        Intent memory other = _intent(makeAddr("bob"), address(0xdead), "");
        ordered.consume(other, _attest(_leaf(other, address(ordered), leaf.policyId)));
        ordered.consume(intent, attestation);
    }

    // -------------------------------------------------------------------------------------------------------------- 7: epochs

    function test_07_a_stake_change_does_not_rewrite_what_an_old_epoch_weighed() public {
        // A, B, C 20 each and D 40; D drops to 1; a certificate of the old epoch by A, B, C stays at 60 of 100
        _deployNetwork(0);
        uint96[4] memory stakes = [uint96(20), 20, 20, 40];
        for (uint256 i = 0; i < 4; ++i) {
            _register(_operator(i), _secret(i), stakes[i]);
        }
        registry.activate();
        client = _client(0);
        policyId = client.placetPins().policyId;
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        bytes32 d = registry.keyOf(_operator(3));
        OperatorView[] memory operators = registry.operatorsAt(1);
        uint256 missing;
        for (uint256 i = 0; i < 4; ++i) {
            if (operators[i].keyId == d) missing = 1 << i;
        }
        Attestation memory attestation = _attest(leaf, missing);
        _setWeight(_operator(3), 1);
        registry.queueRestake(d);
        registry.activate();
        assertEq(registry.currentEpoch(), 2);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.QuorumNotReached.selector, 60, 100, 6667));
        client.consume(intent, attestation);
    }

    function test_07_a_superseded_epoch_serves_certificates_in_flight_within_the_grace_only() public {
        bytes32 leaving = registry.keyOf(_operator(0));
        vm.prank(_operator(0));
        registry.deregister(leaving);
        skip(DELAY - 10);
        (Intent memory intent,) = _attested(client);
        intent.deadline += 1 days;
        Leaf memory leaf = _leaf(intent, address(client), policyId);
        Attestation memory attestation = _attest(leaf);
        skip(10);
        registry.activate();
        uint64 supersededAt = uint64(block.timestamp);
        uint256 snapshot = vm.snapshotState();
        vm.warp(supersededAt + GRACE);
        client.consume(intent, attestation);
        vm.revertToState(snapshot);
        vm.warp(supersededAt + GRACE + 1);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.EpochSuperseded.selector, 1, supersededAt));
        client.consume(intent, attestation);
    }

    function test_07_a_superseded_set_does_not_go_on_signing() public {
        bytes32 leaving = registry.keyOf(_operator(0));
        vm.prank(_operator(0));
        registry.deregister(leaving);
        skip(DELAY);
        registry.activate();
        uint64 supersededAt = uint64(block.timestamp);
        skip(61);
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        Certificate memory certificate = Certificate(_leafHash(leaf), 1, 1, supersededAt + 61);
        Attestation memory attestation = _attest(leaf, certificate, 0);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.EpochSuperseded.selector, 1, supersededAt));
        client.consume(intent, attestation);
        // the slack between clocks is allowed
        certificate.timestamp = supersededAt + 60;
        client.consume(intent, _attest(leaf, certificate, 0));
    }

    function test_07_an_ejected_operator_does_not_sign_on_by_back_dating() public {
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        Attestation memory attestation = _attest(leaf);
        bytes32[] memory ids = _keyOf(0);
        vm.prank(owner);
        registry.eject(ids);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.EpochRevoked.selector, 1));
        client.consume(intent, attestation);
    }

    // ---------------------------------------------------------------------------------------------------------- 8: consumption

    function test_08_a_stranger_does_not_burn_a_victims_nonce() public {
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        Attestation memory attestation = _attest(leaf);
        Pins memory pins = client.placetPins();
        vm.startPrank(makeAddr("stranger"));
        vm.expectRevert(
            abi.encodeWithSelector(
                IAttestationValidator.CallerIsNotPolicyClient.selector, makeAddr("stranger"), address(client)
            )
        );
        validator.consume(intent, attestation, pins);
        validator.spendNonce(alice, intent.nonce, 0);
        validator.cancelNonce(address(client), intent.nonce >> 8, type(uint256).max);
        vm.stopPrank();
        client.consume(intent, attestation);
    }

    function test_08_a_denial_consumes_nothing_and_blocks_nothing() public {
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        leaf.allow = false;
        Attestation memory denial = _attest(leaf);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.IntentDenied.selector, leaf.taskId));
        client.consume(intent, denial);
        assertFalse(validator.verifyDecision(denial, address(client)));
        leaf.allow = true;
        leaf.taskId = keccak256("a later task");
        client.consume(intent, _attest(leaf));
    }

    function test_08_a_leaf_of_the_replaced_policy_does_not_execute() public {
        GuardedWallet wallet = _wallet(_config(policyId));
        bytes32 next = policies.publish(_policy(0, "next"), "");
        vm.prank(owner);
        wallet.setPolicy(next);
        skip(1 hours - 1);
        Intent memory intent = _intent(alice, makeAddr("shop"), "");
        Attestation memory attestation = _attest(_leaf(intent, address(wallet), policyId));
        skip(1);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.PolicyReplaced.selector, policyId, next));
        wallet.executeIntent(intent, "", attestation);
    }

    // ------------------------------------------------------------------------------------------------------------ 9: the mixin

    function test_09_an_attested_user_does_not_reach_functions_of_the_client_itself() public {
        GuardedWallet wallet = _wallet(_config(policyId));
        Intent memory intent = _intent(alice, address(wallet), abi.encodeCall(wallet.setPolicy, (policyId)));
        Attestation memory attestation = _attest(_leaf(intent, address(wallet), policyId));
        vm.prank(alice);
        vm.expectRevert();
        wallet.executeIntent(intent, "", attestation);
    }

    function test_09_an_attested_sender_does_not_take_a_victims_shares() public {
        TestToken token = new TestToken("Asset", "AST", 18);
        GuardedVault vault = _vault(token, _config(policyId));
        address victim = makeAddr("victim");
        token.mint(victim, 100);
        vm.startPrank(victim);
        token.approve(address(vault), 100);
        vault.deposit(100, victim);
        vm.stopPrank();
        Intent memory intent = _intent(alice, address(vault), abi.encodeCall(vault.redeem, (100, alice, victim)));
        Attestation memory attestation = _attest(_leaf(intent, address(vault), policyId));
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(GuardedVault.OwnerIsNotSender.selector, victim, alice));
        vault.executeIntent(intent, "", attestation);
    }

    function test_09_a_sender_does_not_spend_the_clients_ether() public {
        GuardedWallet wallet = _wallet(_config(policyId));
        vm.deal(address(wallet), 10 ether);
        Intent memory intent = _intent(alice, alice, "");
        intent.value = 10 ether;
        Attestation memory attestation = _attest(_leaf(intent, address(wallet), policyId));
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(PolicyClient.ValueMismatch.selector, 0, 10 ether));
        wallet.executeIntent(intent, "", attestation);
    }

    function test_09_a_call_that_comes_back_does_not_execute_the_same_intent_again() public {
        GuardedWallet wallet = _wallet(_config(policyId));
        Reentrant target = new Reentrant(wallet);
        Intent memory intent = _intent(alice, address(target), hex"01020304");
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(aliceKey, _intentHash(intent, address(wallet)));
        bytes memory signature = abi.encodePacked(r, s, v);
        Attestation memory attestation = _attest(_leaf(intent, address(wallet), policyId));
        target.arm(abi.encodeCall(wallet.executeIntent, (intent, signature, attestation)));
        wallet.executeIntent(intent, signature, attestation);
        assertEq(target.calls(), 1);
        assertEq(target.answer(), abi.encodeWithSelector(IAttestationValidator.NonceUsed.selector, alice, intent.nonce));
    }

    // ---------------------------------------------------------------------------------------------------------------- 11: tasks

    function test_11_two_allows_for_one_intent_execute_once() public {
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        Attestation memory first = _attest(leaf);
        skip(5);
        Leaf memory again = _leaf(intent, address(client), policyId);
        again.taskId = keccak256("the same intent, asked again");
        Attestation memory second = _attest(again);
        client.consume(intent, first);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.NonceUsed.selector, alice, intent.nonce));
        client.consume(intent, second);
    }

    // ------------------------------------------------------------------------------------------------------- 13: what an id covers

    function testFuzz_13_nothing_of_a_policy_changes_without_its_id(uint8 field, bytes32 change) public view {
        vm.assume(change != 0);
        PolicyPreimage memory policy = _policy(1, "policy");
        bytes32 before = policies.policyIdOf(policy);
        field = field % 14;
        // each member is one word of the struct
        uint256 mask = field == 7
            ? 0xff
            : field == 8 || field == 9 || field == 12 || field == 13 ? type(uint64).max : type(uint256).max;
        vm.assume(uint256(change) & mask != 0);
        assembly {
            let member := add(policy, mul(field, 32))
            mstore(member, xor(mload(member), and(change, mask)))
        }
        assertTrue(policies.policyIdOf(policy) != before);
    }

    // ------------------------------------------------------------------------------------------------------- 14: what is in one batch

    function test_14_a_certificate_is_worthless_on_another_chain_and_at_another_validator() public {
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        Certificate memory certificate = _certificate(_leafHash(leaf), 1);
        vm.chainId(99);
        Attestation memory attestation = _attest(leaf, certificate, 0);
        vm.chainId(31_337);
        bytes32 digest = _certificateDigest(certificate);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.InvalidSignature.selector, digest));
        client.consume(intent, attestation);

        // the same operators, the same chain, another validator
        IAttestationValidator here = validator;
        validator = _validator();
        attestation = _attest(leaf, certificate, 0);
        assertTrue(address(here) != address(validator));
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.InvalidSignature.selector, digest));
        client.consume(intent, attestation);
    }

    function test_14_clients_of_other_thresholds_in_one_batch_are_each_judged_by_their_own() public {
        MockClient strict = _clientAt(9000);
        (Intent[2] memory intents, Attestation[2] memory attestations) = _attestedTogether(client, strict, 2);
        client.consume(intents[0], attestations[0]);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.QuorumNotReached.selector, 300, 400, 9000));
        strict.consume(intents[1], attestations[1]);
    }

    // ------------------------------------------------------------------------------------------------------------ 22: the owner

    function test_22_the_owner_does_not_register_a_majority_and_forge_at_once() public {
        bytes32 sybil = _register(makeAddr("sybil"), 99, 1_000_000);
        assertEq(registry.stakeAt(sybil, registry.currentEpoch()), 0);
        vm.expectRevert(OperatorRegistry.NothingToActivate.selector);
        registry.activate();
        skip(DELAY - 1);
        vm.expectRevert(OperatorRegistry.NothingToActivate.selector);
        registry.activate();
    }

    function test_22_the_owner_does_not_raise_one_operators_weight_at_once() public {
        _setWeight(_operator(0), 1_000_000);
        bytes32 keyId = registry.keyOf(_operator(0));
        registry.queueRestake(keyId);
        vm.expectRevert(OperatorRegistry.NothingToActivate.selector);
        registry.activate();
        assertEq(registry.stakeAt(keyId, registry.currentEpoch()), 100);
    }

    function test_22_ejecting_all_others_does_not_make_the_rest_a_quorum() public {
        bytes32[] memory ids = new bytes32[](3);
        for (uint256 i = 0; i < 3; ++i) {
            ids[i] = registry.keyOf(_operator(i));
        }
        vm.prank(owner);
        registry.eject(ids);
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        Attestation memory attestation = _attest(leaf);
        vm.expectRevert(abi.encodeWithSelector(IAttestationValidator.QuorumNotReached.selector, 100, 400, 6667));
        client.consume(intent, attestation);
    }

    function test_22_a_pause_is_not_permanent() public {
        uint256 paused;
        for (uint256 day = 0; day < 40; ++day) {
            vm.prank(owner);
            try registry.pause() {} catch {}
            skip(1 hours);
            (Intent memory intent, Leaf memory leaf) = _attested(client);
            try client.consume(intent, _attest(leaf)) {}
            catch {
                ++paused;
            }
            skip(23 hours);
        }
        assertEq(paused, 5);
    }

    function test_22_a_pause_does_not_stop_the_escape() public {
        PolicyClient.ClientConfig memory config = _config(policyId);
        (config.escape, config.escapeDelay) = (alice, 3 days);
        GuardedWallet wallet = _wallet(config);
        vm.prank(alice);
        wallet.announceEscape();
        skip(3 days);
        vm.prank(owner);
        registry.pause();
        Intent memory intent = _intent(alice, makeAddr("shop"), "");
        vm.prank(alice);
        wallet.executeEscape(intent, "");
    }

    // ------------------------------------------------------------------------------------------------------------- 30: small ones

    function test_30_a_stranger_that_records_first_does_not_make_ours_revert() public {
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        Attestation memory attestation = _attest(leaf);
        attestation.remember = true;
        QuorumProof memory proof = abi.decode(attestation.quorumProof, (QuorumProof));
        vm.prank(makeAddr("stranger"));
        validator.record(attestation.certificate, proof);
        validator.record(attestation.certificate, proof);
        client.consume(intent, attestation);
    }

    function test_30_a_stranger_that_publishes_first_does_not_make_ours_revert() public {
        vm.prank(makeAddr("stranger"));
        bytes32 theirs = policies.publish(_policy(1, "policy"), "elsewhere");
        assertEq(policies.publish(_policy(1, "policy"), "here"), theirs);
    }

    function test_30_a_chain_whose_clock_lags_by_a_minute_does_not_refuse_a_fresh_certificate() public {
        (Intent memory intent, Leaf memory leaf) = _attested(client);
        Certificate memory certificate = _certificate(_leafHash(leaf), 1);
        certificate.timestamp += 60;
        client.consume(intent, _attest(leaf, certificate, 0));
    }
}

/// @dev Calls back with what it was armed with and keeps the answer.
contract Reentrant {
    GuardedWallet private immutable _wallet;
    bytes private _call;
    uint256 public calls;
    bytes public answer;

    constructor(GuardedWallet wallet) {
        _wallet = wallet;
    }

    function arm(bytes calldata call_) external {
        _call = call_;
    }

    fallback() external payable {
        ++calls;
        (, answer) = address(_wallet).call(_call);
    }
}
