// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IAttestationValidator} from "../src/interfaces/IAttestationValidator.sol";
import {IOperatorRegistry} from "../src/interfaces/IOperatorRegistry.sol";
import {OperatorRegistry} from "../src/OperatorRegistry.sol";
import {Attestation, Certificate, G1, G2, Intent, Leaf, Pins, QuorumProof} from "../src/Types.sol";
import {BLSKeys} from "./support/BLSKeys.sol";
import {MockClient, Network} from "./support/Network.sol";

contract AttestationValidatorTest is Network {
    MockClient internal client;
    bytes32 internal policyId;
    address internal alice = makeAddr("alice");
    Intent internal intent;
    Leaf internal leaf;

    function setUp() public {
        _deployFour();
        client = _client(0);
        policyId = client.placetPins().policyId;
        intent = _intent(alice, address(0xdead), hex"12345678");
        leaf = _leaf(intent, address(client), policyId);
    }

    function _expect(bytes memory reason) private {
        vm.expectRevert(reason);
    }

    // ------------------------------------------------------------------------------------------------------------- consuming

    function test_an_attested_intent_is_consumed_once() public {
        Attestation memory attestation = _attest(leaf);
        vm.expectEmit();
        emit IAttestationValidator.AttestationConsumed(
            leaf.taskId, address(client), leaf.intentHash, _certificateDigest(attestation.certificate)
        );
        client.consume(intent, attestation);
        assertEq(validator.nonceBitmap(address(client), alice, intent.nonce >> 8), 1 << (intent.nonce & 0xff));

        _expect(abi.encodeWithSelector(IAttestationValidator.NonceUsed.selector, alice, intent.nonce));
        client.consume(intent, attestation);
    }

    function test_three_of_four_are_a_quorum_and_two_are_not() public {
        client.consume(intent, _attest(leaf, 1));
        intent = _intent(alice, address(0xdead), "");
        leaf = _leaf(intent, address(client), policyId);
        Attestation memory attestation = _attest(leaf, 3);
        _expect(abi.encodeWithSelector(IAttestationValidator.QuorumNotReached.selector, 200, 400, 6667));
        client.consume(intent, attestation);
    }

    function test_a_quorum_is_exact_to_the_basis_point() public {
        Pins memory pins = _pins(policyId, 0);
        pins.quorumBps = 7500;
        client.setPins(pins);
        client.consume(intent, _attest(leaf, 1));
        intent = _intent(alice, address(0xdead), "");
        leaf = _leaf(intent, address(client), policyId);
        pins.quorumBps = 7501;
        client.setPins(pins);
        Attestation memory attestation = _attest(leaf, 1);
        _expect(abi.encodeWithSelector(IAttestationValidator.QuorumNotReached.selector, 300, 400, 7501));
        client.consume(intent, attestation);
    }

    function test_every_leaf_of_a_group_is_consumed_on_one_remembered_proof() public {
        uint256 count = 5;
        Intent[] memory intents = new Intent[](count);
        Leaf[] memory leaves = new Leaf[](count);
        bytes32[] memory hashes = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            intents[i] = _intent(alice, address(0xdead), abi.encode(i));
            leaves[i] = _leaf(intents[i], address(client), policyId);
            hashes[i] = _leafHash(leaves[i]);
        }
        Certificate memory certificate = _certificate(_root(hashes, 0, count), uint32(count));
        for (uint256 i = 0; i < count; ++i) {
            Attestation memory attestation = Attestation(
                leaves[i],
                uint32(i),
                _path(hashes, i, 0, count),
                certificate,
                i == 0,
                i == 0 ? abi.encode(_proof(certificate.epoch, _certificateDigest(certificate), 8)) : bytes("")
            );
            client.consume(intents[i], attestation);
        }
        (uint96 signedStake, uint96 totalStake, uint64 epoch) = validator.remembered(_certificateDigest(certificate));
        assertEq(signedStake, 300);
        assertEq(totalStake, 400);
        assertEq(epoch, 1);
    }

    function test_reverts_CallerIsNotPolicyClient() public {
        Attestation memory attestation = _attest(leaf);
        Pins memory pins = client.placetPins();
        _expect(
            abi.encodeWithSelector(
                IAttestationValidator.CallerIsNotPolicyClient.selector, address(this), address(client)
            )
        );
        validator.consume(intent, attestation, pins);
    }

    function test_reverts_IntentDenied() public {
        leaf.allow = false;
        Attestation memory attestation = _attest(leaf);
        _expect(abi.encodeWithSelector(IAttestationValidator.IntentDenied.selector, leaf.taskId));
        client.consume(intent, attestation);
        assertEq(validator.nonceBitmap(address(client), alice, intent.nonce >> 8), 0);
    }

    function test_reverts_PolicyReplaced() public {
        Attestation memory attestation = _attest(leaf);
        client.setPins(_pins(keccak256("next"), 0));
        _expect(abi.encodeWithSelector(IAttestationValidator.PolicyReplaced.selector, policyId, keccak256("next")));
        client.consume(intent, attestation);
    }

    function test_reverts_WrongChain() public {
        intent.chainId = 5;
        leaf = _leaf(intent, address(client), policyId);
        Attestation memory attestation = _attest(leaf);
        _expect(abi.encodeWithSelector(IAttestationValidator.WrongChain.selector, 5));
        client.consume(intent, attestation);
    }

    function test_reverts_IntentMismatch_for_each_field() public {
        Attestation memory attestation = _attest(leaf);
        for (uint256 i = 0; i < 7; ++i) {
            Intent memory other = intent;
            if (i == 0) other.from = address(1);
            if (i == 1) other.to = address(1);
            if (i == 2) other.value = 1;
            if (i == 3) other.data = hex"12345679";
            if (i == 4) other.functionSignature = "noop(uint256)";
            if (i == 5) other.nonce = 99;
            if (i == 6) other.deadline += 1;
            bytes32 given = _intentHash(other, address(client));
            assertTrue(given != leaf.intentHash);
            _expect(abi.encodeWithSelector(IAttestationValidator.IntentMismatch.selector, leaf.intentHash, given));
            client.consume(other, attestation);
        }
    }

    function test_reverts_IntentExpired() public {
        leaf.expiration = intent.deadline + 100;
        Attestation memory attestation = _attest(leaf);
        vm.warp(intent.deadline + 1);
        _expect(abi.encodeWithSelector(IAttestationValidator.IntentExpired.selector, intent.deadline));
        client.consume(intent, attestation);
        vm.warp(intent.deadline);
        client.consume(intent, attestation);
    }

    function test_reverts_AttestationExpired() public {
        leaf.expiration = intent.deadline - 100;
        Attestation memory attestation = _attest(leaf);
        vm.warp(leaf.expiration + 1);
        _expect(abi.encodeWithSelector(IAttestationValidator.AttestationExpired.selector, leaf.expiration));
        client.consume(intent, attestation);
        vm.warp(leaf.expiration);
        client.consume(intent, attestation);
    }

    function test_reverts_CertificateFromFuture() public {
        Certificate memory certificate = _certificate(_leafHash(leaf), 1);
        certificate.timestamp = uint64(block.timestamp) + 61;
        Attestation memory attestation = _attest(leaf, certificate, 0);
        _expect(abi.encodeWithSelector(IAttestationValidator.CertificateFromFuture.selector, certificate.timestamp));
        client.consume(intent, attestation);
        skip(1);
        client.consume(intent, attestation);
    }

    function test_reverts_CertificateTooOld() public {
        Certificate memory certificate = _certificate(_leafHash(leaf), 1);
        certificate.timestamp = uint64(block.timestamp) - MAX_AGE - 1;
        Attestation memory attestation = _attest(leaf, certificate, 0);
        _expect(
            abi.encodeWithSelector(IAttestationValidator.CertificateTooOld.selector, certificate.timestamp, MAX_AGE)
        );
        client.consume(intent, attestation);
        rewind(1);
        client.consume(intent, attestation);
    }

    function test_reverts_NotIncluded() public {
        Attestation memory attestation = _attest(leaf);
        attestation.index = 1;
        bytes memory reason = abi.encodeWithSelector(IAttestationValidator.NotIncluded.selector, _leafHash(leaf));
        _expect(reason);
        client.consume(intent, attestation);
        attestation.index = 0;
        attestation.merkleProof = new bytes32[](1);
        _expect(reason);
        client.consume(intent, attestation);
        attestation = _attest(leaf, _certificate(_leafHash(leaf), 0), 0);
        _expect(reason);
        client.consume(intent, attestation);
        attestation = _attest(leaf, _certificate(keccak256("other"), 1), 0);
        _expect(reason);
        client.consume(intent, attestation);
    }

    function test_reverts_UnknownEpoch() public {
        Attestation memory attestation = _attest(leaf);
        attestation.certificate.epoch = 2;
        _expect(abi.encodeWithSelector(IOperatorRegistry.UnknownEpoch.selector, 2));
        client.consume(intent, attestation);
        // the time before the first set is an epoch without one
        attestation.certificate.epoch = 0;
        _expect(abi.encodeWithSelector(OperatorRegistry.SetMismatch.selector, 0));
        client.consume(intent, attestation);
    }

    function test_reverts_NothingRemembered() public {
        Attestation memory attestation = _attest(leaf);
        attestation.quorumProof = "";
        _expect(
            abi.encodeWithSelector(
                IAttestationValidator.NothingRemembered.selector, _certificateDigest(attestation.certificate)
            )
        );
        client.consume(intent, attestation);
    }

    function test_reverts_MalformedQuorumProof() public {
        Attestation memory attestation = _attest(leaf);
        attestation.quorumProof = abi.encode(uint256(10_000));
        _expect(abi.encodeWithSelector(IAttestationValidator.MalformedQuorumProof.selector));
        client.consume(intent, attestation);
        attestation.quorumProof = abi.encode(type(uint256).max);
        _expect(abi.encodeWithSelector(IAttestationValidator.MalformedQuorumProof.selector));
        client.consume(intent, attestation);
        attestation.quorumProof = hex"00";
        vm.expectRevert();
        client.consume(intent, attestation);
    }

    function test_reverts_NoSigners_when_all_are_missing_and_the_signature_is_infinity() public {
        Attestation memory attestation = _attest(leaf);
        QuorumProof memory proof = _proof(1, 0, 15);
        assertEq(uint256(proof.signature.x0l), 0);
        attestation.quorumProof = abi.encode(proof);
        _expect(abi.encodeWithSelector(IAttestationValidator.NoSigners.selector));
        client.consume(intent, attestation);
    }

    function test_reverts_SequenceMismatch() public {
        leaf.sequence = 1;
        Attestation memory attestation = _attest(leaf);
        _expect(abi.encodeWithSelector(IAttestationValidator.SequenceMismatch.selector, 1, 0));
        client.consume(intent, attestation);
    }

    function test_reverts_ConsumptionPaused_and_resumes_by_itself() public {
        vm.prank(owner);
        registry.pause();
        uint64 until = uint64(block.timestamp) + registry.PAUSE_DURATION();
        Attestation memory attestation = _attest(leaf);
        _expect(abi.encodeWithSelector(IAttestationValidator.ConsumptionPaused.selector, until));
        client.consume(intent, attestation);

        vm.warp(until);
        intent = _intent(alice, address(0xdead), "");
        leaf = _leaf(intent, address(client), policyId);
        client.consume(intent, _attest(leaf));
    }

    function test_reverts_UnknownOrdering() public {
        Pins memory pins = _pins(policyId, 3);
        client.setPins(pins);
        Attestation memory attestation = _attest(leaf);
        _expect(abi.encodeWithSelector(IAttestationValidator.UnknownOrdering.selector, 3));
        client.consume(intent, attestation);
    }

    function test_reverts_PinsOutOfBounds() public {
        Attestation memory attestation = _attest(leaf);
        for (uint256 i = 0; i < 4; ++i) {
            Pins memory pins = _pins(policyId, 0);
            if (i == 0) pins.quorumBps = 0;
            if (i == 1) pins.quorumBps = 10_001;
            if (i == 2) pins.epochGrace = 1 days + 1;
            if (i == 3) pins.maxCertificateAge = 7 days + 1;
            client.setPins(pins);
            _expect(abi.encodeWithSelector(IAttestationValidator.PinsOutOfBounds.selector));
            client.consume(intent, attestation);
        }
    }

    // ------------------------------------------------------------------------------------------------------------- signatures

    function _expectInvalid(Attestation memory attestation) private {
        _expect(
            abi.encodeWithSelector(
                IAttestationValidator.InvalidSignature.selector, _certificateDigest(attestation.certificate)
            )
        );
        client.consume(intent, attestation);
    }

    function test_reverts_InvalidSignature_for_another_message() public {
        Attestation memory attestation = _attest(leaf);
        attestation.certificate.timestamp -= 1;
        _expectInvalid(attestation);
    }

    function test_reverts_InvalidSignature_when_a_signer_is_missing_from_the_aggregate() public {
        Attestation memory attestation = _attest(leaf);
        QuorumProof memory proof = _proof(1, _certificateDigest(attestation.certificate), 1);
        proof.nonSigners = new G1[](0);
        attestation.quorumProof = abi.encode(proof);
        _expectInvalid(attestation);
    }

    function test_reverts_InvalidSignature_when_a_signer_is_passed_off_as_a_non_signer() public {
        Attestation memory attestation = _attest(leaf);
        bytes32 digest = _certificateDigest(attestation.certificate);
        QuorumProof memory proof = _proof(1, digest, 1);
        proof.signature = _proof(1, digest, 0).signature;
        attestation.quorumProof = abi.encode(proof);
        _expectInvalid(attestation);
    }

    function test_reverts_InvalidSignature_for_infinity() public {
        Attestation memory attestation = _attest(leaf);
        QuorumProof memory proof = _proof(1, 0, 0);
        G2 memory infinity;
        proof.signature = infinity;
        attestation.quorumProof = abi.encode(proof);
        _expectInvalid(attestation);
    }

    function test_reverts_InvalidSignature_for_what_is_not_a_point() public {
        Attestation memory attestation = _attest(leaf);
        QuorumProof memory proof = _proof(1, _certificateDigest(attestation.certificate), 0);
        proof.signature.y1l = bytes32(uint256(proof.signature.y1l) ^ 1);
        attestation.quorumProof = abi.encode(proof);
        uint256 before = gasleft();
        _expectInvalid(attestation);
        // the failing precompile burns what it is given, which is bounded
        assertLt(before - gasleft(), 450_000);
    }

    function test_reverts_InvalidSignature_under_another_tag() public {
        Attestation memory attestation = _attest(leaf);
        QuorumProof memory proof = _proof(1, 0, 0);
        bytes32 keyId = registry.operatorsAt(1)[0].keyId;
        proof.signature = BLSKeys.prove(secretOf[keyId]);
        attestation.quorumProof = abi.encode(proof);
        _expectInvalid(attestation);
    }

    function test_reverts_SetMismatch_for_an_understated_total() public {
        Attestation memory attestation = _attest(leaf, 2);
        QuorumProof memory proof = _proof(1, _certificateDigest(attestation.certificate), 2);
        proof.totalStake = 300;
        attestation.quorumProof = abi.encode(proof);
        _expect(abi.encodeWithSelector(OperatorRegistry.SetMismatch.selector, 1));
        client.consume(intent, attestation);
    }

    function test_reverts_SetMismatch_for_a_total_that_agrees_in_its_low_bits() public {
        Attestation memory attestation = _attest(leaf, 2);
        QuorumProof memory proof = _proof(1, _certificateDigest(attestation.certificate), 2);
        proof.totalStake += uint128(1) << 96;
        attestation.quorumProof = abi.encode(proof);
        _expect(abi.encodeWithSelector(OperatorRegistry.SetMismatch.selector, 1));
        client.consume(intent, attestation);
    }

    function test_reverts_NonSignersNotAscending_for_unsorted_and_for_repeated_ones() public {
        Attestation memory attestation = _attest(leaf);
        QuorumProof memory proof = _proof(1, _certificateDigest(attestation.certificate), 3);
        (proof.nonSigners[0], proof.nonSigners[1]) = (proof.nonSigners[1], proof.nonSigners[0]);
        bytes memory reason =
            abi.encodeWithSelector(OperatorRegistry.NonSignersNotAscending.selector, _keyId(proof.nonSigners[1]));
        attestation.quorumProof = abi.encode(proof);
        _expect(reason);
        client.consume(intent, attestation);

        proof.nonSigners[0] = proof.nonSigners[1];
        attestation.quorumProof = abi.encode(proof);
        _expect(reason);
        client.consume(intent, attestation);
    }

    function test_reverts_UnknownNonSigner() public {
        Attestation memory attestation = _attest(leaf);
        QuorumProof memory proof = _proof(1, _certificateDigest(attestation.certificate), 1);
        proof.nonSigners[0] = BLSKeys.publicKey(4711);
        attestation.quorumProof = abi.encode(proof);
        _expect(abi.encodeWithSelector(OperatorRegistry.UnknownNonSigner.selector, _keyId(proof.nonSigners[0])));
        client.consume(intent, attestation);
    }

    function test_reverts_UnknownNonSigner_for_the_negative_of_a_key() public {
        Attestation memory attestation = _attest(leaf);
        QuorumProof memory proof = _proof(1, _certificateDigest(attestation.certificate), 1);
        proof.nonSigners[0] = BLSKeys.multiply(proof.nonSigners[0], BLSKeys.ORDER - 1);
        attestation.quorumProof = abi.encode(proof);
        _expect(abi.encodeWithSelector(OperatorRegistry.UnknownNonSigner.selector, _keyId(proof.nonSigners[0])));
        client.consume(intent, attestation);
    }

    // -------------------------------------------------------------------------------------------------------------- recording

    function test_a_recorded_certificate_only_rises() public {
        Certificate memory certificate = _certificate(keccak256("root"), 7);
        bytes32 digest = _certificateDigest(certificate);
        QuorumProof[] memory proofs = new QuorumProof[](3);
        proofs[0] = _proof(1, digest, 7);
        proofs[1] = _proof(1, digest, 1);
        proofs[2] = _proof(1, digest, 3);

        vm.expectEmit();
        emit IAttestationValidator.CertificateRecorded(digest, 1, 100, 400);
        assertEq(validator.record(certificate, proofs[0]), digest);
        validator.record(certificate, proofs[1]);
        validator.record(certificate, proofs[2]);
        (uint96 signedStake, uint96 totalStake, uint64 epoch) = validator.remembered(digest);
        assertEq(signedStake, 300);
        assertEq(totalStake, 400);
        assertEq(epoch, 1);
    }

    function test_recording_needs_a_valid_signature() public {
        Certificate memory certificate = _certificate(keccak256("root"), 7);
        bytes32 digest = _certificateDigest(certificate);
        QuorumProof memory proof = _proof(1, keccak256("other"), 0);
        _expect(abi.encodeWithSelector(IAttestationValidator.InvalidSignature.selector, digest));
        validator.record(certificate, proof);
    }

    function test_a_proof_is_not_remembered_unless_asked() public {
        Attestation memory attestation = _attest(leaf);
        client.consume(intent, attestation);
        (uint96 signedStake,,) = validator.remembered(_certificateDigest(attestation.certificate));
        assertEq(signedStake, 0);
    }

    // ----------------------------------------------------------------------------------------------------- nonces and counters

    function test_a_cancelled_nonce_is_used() public {
        Attestation memory attestation = _attest(leaf);
        vm.expectEmit();
        emit IAttestationValidator.NoncesCancelled(
            address(client), alice, intent.nonce >> 8, 1 << (intent.nonce & 0xff)
        );
        vm.prank(alice);
        validator.cancelNonce(address(client), intent.nonce >> 8, 1 << (intent.nonce & 0xff));
        _expect(abi.encodeWithSelector(IAttestationValidator.NonceUsed.selector, alice, intent.nonce));
        client.consume(intent, attestation);
    }

    function test_nobody_cancels_another_ones_nonce() public {
        validator.cancelNonce(address(client), intent.nonce >> 8, type(uint256).max);
        client.consume(intent, _attest(leaf));
    }

    function test_a_client_spends_nonces_and_counters_of_its_own_only() public {
        MockClient other = _client(0);
        other.spend(alice, intent.nonce, 1);
        assertEq(validator.sequenceOf(address(other), alice, 1), 1);
        assertEq(validator.sequenceOf(address(client), alice, 1), 0);
        client.consume(intent, _attest(leaf));
        _expect(abi.encodeWithSelector(IAttestationValidator.NonceUsed.selector, alice, intent.nonce));
        client.spend(alice, intent.nonce, 0);
    }

    function test_counters_are_kept_by_client_and_by_sender() public {
        address bob = makeAddr("bob");
        client.spend(alice, 1000, 1);
        client.spend(alice, 1001, 1);
        client.spend(bob, 1000, 2);
        assertEq(validator.sequenceOf(address(client), alice, 0), 0);
        assertEq(validator.sequenceOf(address(client), alice, 1), 2);
        assertEq(validator.sequenceOf(address(client), bob, 1), 0);
        assertEq(validator.sequenceOf(address(client), alice, 2), 1);
        assertEq(validator.sequenceOf(address(client), bob, 2), 1);
        _expect(abi.encodeWithSelector(IAttestationValidator.UnknownOrdering.selector, 7));
        validator.sequenceOf(address(client), bob, 7);
    }

    function testFuzz_a_nonce_is_consumed_once_whatever_it_is(uint256 nonce) public {
        intent.nonce = nonce;
        leaf = _leaf(intent, address(client), policyId);
        Attestation memory attestation = _attest(leaf);
        client.consume(intent, attestation);
        _expect(abi.encodeWithSelector(IAttestationValidator.NonceUsed.selector, alice, nonce));
        client.consume(intent, attestation);
    }

    function testFuzz_quorum_is_reached_exactly_when_the_signed_share_is(uint8 missing, uint16 quorumBps) public {
        uint256 absent = missing % 15;
        quorumBps = uint16(bound(quorumBps, 1, 10_000));
        Pins memory pins = _pins(policyId, 0);
        pins.quorumBps = quorumBps;
        client.setPins(pins);
        Attestation memory attestation = _attest(leaf, absent);
        uint256 signed = 400;
        for (uint256 i = 0; i < 4; ++i) {
            if ((absent >> i) & 1 == 1) signed -= 100;
        }
        if (signed * 10_000 < 400 * uint256(quorumBps)) {
            _expect(
                abi.encodeWithSelector(
                    IAttestationValidator.QuorumNotReached.selector, uint96(signed), uint96(400), quorumBps
                )
            );
        }
        client.consume(intent, attestation);
    }

    // -------------------------------------------------------------------------------------------------------------- decisions

    function test_a_decision_is_verified_without_being_consumed() public {
        Attestation memory attestation = _attest(leaf);
        assertTrue(validator.verifyDecision(attestation, address(client)));
        leaf.allow = false;
        attestation = _attest(leaf);
        assertFalse(validator.verifyDecision(attestation, address(client)));
    }

    function test_a_decision_is_verified_by_what_is_remembered() public {
        Attestation memory attestation = _attest(leaf);
        QuorumProof memory proof = abi.decode(attestation.quorumProof, (QuorumProof));
        validator.record(attestation.certificate, proof);
        attestation.quorumProof = "";
        assertTrue(validator.verifyDecision(attestation, address(client)));
    }

    function test_a_decision_for_another_client_is_refused() public {
        Attestation memory attestation = _attest(leaf);
        MockClient other = _client(0);
        _expect(
            abi.encodeWithSelector(IAttestationValidator.WrongPolicyClient.selector, address(client), address(other))
        );
        validator.verifyDecision(attestation, address(other));
    }

    function test_an_unproven_decision_reverts() public {
        Attestation memory attestation = _attest(leaf, 3);
        _expect(abi.encodeWithSelector(IAttestationValidator.QuorumNotReached.selector, 200, 400, 6667));
        validator.verifyDecision(attestation, address(client));
    }

    // -------------------------------------------------------------------------------------------------------------- hashing

    function testFuzz_digests_are_those_of_plain_encoding(Intent memory anything, Certificate memory certificate)
        public
        view
    {
        assertEq(validator.intentHashOf(anything, address(client)), _intentHash(anything, address(client)));
        assertEq(validator.certificateDigest(certificate), _certificateDigest(certificate));
    }

    function test_the_domain_follows_a_fork_of_the_chain() public {
        Certificate memory certificate = _certificate(keccak256("root"), 7);
        bytes32 before = validator.certificateDigest(certificate);
        vm.chainId(99);
        assertTrue(validator.certificateDigest(certificate) != before);
        assertEq(validator.certificateDigest(certificate), _certificateDigest(certificate));
    }
}
