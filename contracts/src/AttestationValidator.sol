// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IAttestationValidator} from "./interfaces/IAttestationValidator.sol";
import {IOperatorRegistry} from "./interfaces/IOperatorRegistry.sol";
import {IPolicyClient} from "./interfaces/IPolicyClient.sol";
import {BLS12381} from "./libraries/BLS12381.sol";
import {Hashing} from "./libraries/Hashing.sol";
import {Limits} from "./libraries/Limits.sol";
import {MerkleInclusion} from "./libraries/MerkleInclusion.sol";
import {
    Attestation,
    Certificate,
    G1,
    Intent,
    Leaf,
    ORDERING_CLIENT,
    ORDERING_FREE,
    ORDERING_SENDER,
    Pins,
    QuorumProof
} from "./Types.sol";

/// @title Judges attestations and spends them
/// @notice Owns three things: what was proven about certificates, which nonces are spent, and the counters that order decisions. It has
/// no owner and no settings; every demand comes from the client that asks, at the moment it asks.
contract AttestationValidator is IAttestationValidator {
    using BLS12381 for G1;

    /// @dev What was proven about a certificate: never that it is good, only who signed it.
    struct Proven {
        uint96 signedStake;
        uint96 totalStake;
        uint64 epoch;
    }

    IOperatorRegistry private immutable _registry;
    uint256 private immutable _deployedChainId;
    bytes32 private immutable _deployedDomain;

    /// @inheritdoc IAttestationValidator
    mapping(bytes32 certificateDigest => Proven) public remembered;
    /// @inheritdoc IAttestationValidator
    mapping(address client => mapping(address from => mapping(uint256 word => uint256))) public nonceBitmap;

    mapping(address client => mapping(address from => uint64)) private _senderSequence;
    mapping(address client => uint64) private _clientSequence;

    /// @param registry_ whose epochs count here
    constructor(IOperatorRegistry registry_) {
        BLS12381.selfTest();
        _registry = registry_;
        _deployedChainId = block.chainid;
        _deployedDomain = Hashing.protocolDomain(block.chainid, address(this));
    }

    /// @inheritdoc IAttestationValidator
    function consume(Intent calldata intent, Attestation calldata attestation, Pins calldata pins) external {
        Leaf calldata leaf = attestation.leaf;
        if (leaf.policyClient != msg.sender) revert CallerIsNotPolicyClient(msg.sender, leaf.policyClient);
        if (!leaf.allow) revert IntentDenied(leaf.taskId);
        if (intent.chainId != block.chainid) revert WrongChain(intent.chainId);
        bytes32 intentHash = Hashing.intentDigest(intent, Hashing.intentDomain(block.chainid, msg.sender));
        if (leaf.intentHash != intentHash) revert IntentMismatch(leaf.intentHash, intentHash);
        if (block.timestamp > intent.deadline) revert IntentExpired(intent.deadline);

        _checkDecision(attestation, pins);
        bytes32 digest = certificateDigest(attestation.certificate);
        uint64 pausedUntil = _checkEpoch(attestation.certificate, pins.epochGrace);
        if (block.timestamp < pausedUntil) revert ConsumptionPaused(pausedUntil);
        _checkQuorum(_provenOrRecorded(attestation, digest), pins.quorumBps);

        _advance(msg.sender, intent.from, pins.ordering, leaf.sequence);
        _spend(msg.sender, intent.from, intent.nonce);
        emit AttestationConsumed(leaf.taskId, msg.sender, intent.from, intentHash, intent.nonce, digest);
    }

    /// @inheritdoc IAttestationValidator
    function record(Certificate calldata certificate, QuorumProof calldata proof) external returns (bytes32 digest) {
        digest = certificateDigest(certificate);
        _remember(digest, _verify(digest, certificate.epoch, proof));
    }

    /// @inheritdoc IAttestationValidator
    function verifyDecision(Attestation calldata attestation, address policyClient) external view returns (bool allow) {
        Pins memory pins = IPolicyClient(policyClient).placetPins();
        return this.verifyDecisionUnder(attestation, policyClient, pins);
    }

    /// @notice As {verifyDecision}, by pins that the caller states.
    function verifyDecisionUnder(Attestation calldata attestation, address policyClient, Pins calldata pins)
        external
        view
        returns (bool allow)
    {
        if (attestation.leaf.policyClient != policyClient) {
            revert WrongPolicyClient(attestation.leaf.policyClient, policyClient);
        }
        _checkDecision(attestation, pins);
        bytes32 digest = certificateDigest(attestation.certificate);
        _checkEpoch(attestation.certificate, pins.epochGrace);
        _checkQuorum(
            attestation.quorumProof.length == 0
                ? _recalled(digest)
                : _verify(digest, attestation.certificate.epoch, _quorumProof(attestation.quorumProof)),
            pins.quorumBps
        );
        return attestation.leaf.allow;
    }

    /// @inheritdoc IAttestationValidator
    function cancelNonce(address client, uint256 word, uint256 mask) external {
        nonceBitmap[client][msg.sender][word] |= mask;
        emit NoncesCancelled(client, msg.sender, word, mask);
    }

    /// @inheritdoc IAttestationValidator
    function spendNonce(address from, uint256 nonce, uint8 ordering) external {
        _advance(msg.sender, from, ordering, sequenceOf(msg.sender, from, ordering));
        _spend(msg.sender, from, nonce);
        emit NonceSpent(msg.sender, from, nonce);
    }

    /// @inheritdoc IAttestationValidator
    function sequenceOf(address client, address from, uint8 ordering) public view returns (uint64) {
        if (ordering == ORDERING_FREE) return 0;
        if (ordering == ORDERING_SENDER) return _senderSequence[client][from];
        if (ordering == ORDERING_CLIENT) return _clientSequence[client];
        revert UnknownOrdering(ordering);
    }

    /// @inheritdoc IAttestationValidator
    function registry() external view returns (address) {
        return address(_registry);
    }

    /// @notice The message that operators sign for a certificate.
    function certificateDigest(Certificate calldata certificate) public view returns (bytes32) {
        return Hashing.certificateDigest(certificate, _domain());
    }

    /// @notice The hash that a sender signs for an intent at a client.
    function intentHashOf(Intent calldata intent, address client) external view returns (bytes32) {
        return Hashing.intentDigest(intent, Hashing.intentDomain(block.chainid, client));
    }

    // ----------------------------------------------------------------------------------------------------------- the checks

    /// @dev What makes a leaf a decision of this policy that is still valid: policy, times, and its place in the certificate's tree.
    function _checkDecision(Attestation calldata attestation, Pins calldata pins) private view {
        Leaf calldata leaf = attestation.leaf;
        if (leaf.policyId != pins.policyId) revert PolicyReplaced(leaf.policyId, pins.policyId);
        if (
            pins.quorumBps == 0 || pins.quorumBps > Limits.BPS || pins.epochGrace > Limits.MAX_GRACE
                || pins.maxCertificateAge > Limits.MAX_CERTIFICATE_AGE
        ) revert PinsOutOfBounds();
        if (block.timestamp > leaf.expiration) revert AttestationExpired(leaf.expiration);

        Certificate calldata certificate = attestation.certificate;
        uint256 timestamp = certificate.timestamp;
        if (timestamp > block.timestamp + Limits.CLOCK_SLACK) revert CertificateFromFuture(certificate.timestamp);
        if (block.timestamp > timestamp + pins.maxCertificateAge) {
            revert CertificateTooOld(certificate.timestamp, pins.maxCertificateAge);
        }
        bytes32 leafHash = Hashing.leafHash(leaf);
        if (!MerkleInclusion.isIncluded(
                leafHash, attestation.index, certificate.count, attestation.merkleProof, certificate.root
            )) revert NotIncluded(leafHash);
    }

    /// @dev An epoch counts while it is current; afterwards for certificates made before its end, within the client's grace; and never
    /// again once an ejection raised the minimum above it.
    function _checkEpoch(Certificate calldata certificate, uint32 grace) private view returns (uint64 pausedUntil) {
        uint64 epoch = certificate.epoch;
        uint64 current;
        uint64 minimum;
        uint64 supersededAt;
        (current, minimum, supersededAt, pausedUntil) = _registry.epochStatus(epoch);
        if (epoch > current) revert UnknownEpoch(epoch);
        if (epoch < minimum) revert EpochRevoked(epoch, minimum);
        if (
            epoch != current
                && (certificate.timestamp > supersededAt + Limits.CLOCK_SLACK
                    || block.timestamp > uint256(supersededAt) + grace)
        ) revert EpochSuperseded(epoch, supersededAt);
    }

    function _checkQuorum(Proven memory proven, uint16 quorumBps) private pure {
        if (uint256(proven.signedStake) * Limits.BPS < uint256(proven.totalStake) * quorumBps) {
            revert QuorumNotReached(proven.signedStake, proven.totalStake, quorumBps);
        }
    }

    /// @dev What the given proof proves, remembered if that is asked; without a proof, what is remembered.
    function _provenOrRecorded(Attestation calldata attestation, bytes32 digest) private returns (Proven memory proven) {
        if (attestation.quorumProof.length == 0) return _recalled(digest);
        proven = _verify(digest, attestation.certificate.epoch, _quorumProof(attestation.quorumProof));
        if (attestation.remember) _remember(digest, proven);
    }

    function _recalled(bytes32 digest) private view returns (Proven memory proven) {
        proven = remembered[digest];
        if (proven.totalStake == 0) revert NothingRemembered(digest);
    }

    /// @dev Who signed: the registry says which key that is and what it weighs, the pairing that it signed.
    function _verify(bytes32 digest, uint64 epoch, QuorumProof calldata proof)
        private
        view
        returns (Proven memory proven)
    {
        (G1 memory signersKey, uint96 signedStake) = _registry.signersAt(epoch, proof);
        if (signedStake == 0 || signersKey.isInfinity()) revert NoSigners();
        if (!signersKey.isSignedBy(BLS12381.hashDigest(digest), proof.signature)) revert InvalidSignature(digest);
        return Proven(signedStake, uint96(proof.totalStake), epoch);
    }

    /// @dev Only ever raises what is known: a proof with more non-signers than an earlier one changes nothing.
    function _remember(bytes32 digest, Proven memory proven) private {
        if (proven.signedStake <= remembered[digest].signedStake) return;
        remembered[digest] = proven;
        emit CertificateRecorded(digest, proven.epoch, proven.signedStake, proven.totalStake);
    }

    /// @dev Demands the counter that the decision names, and moves it.
    function _advance(address client, address from, uint8 ordering, uint64 attested) private {
        uint64 current = sequenceOf(client, from, ordering);
        if (attested != current) revert SequenceMismatch(attested, current);
        if (ordering == ORDERING_SENDER) _senderSequence[client][from] = current + 1;
        else if (ordering == ORDERING_CLIENT) _clientSequence[client] = current + 1;
    }

    function _spend(address client, address from, uint256 nonce) private {
        mapping(uint256 => uint256) storage words = nonceBitmap[client][from];
        uint256 word = words[nonce >> 8];
        uint256 bit = 1 << (nonce & 0xff);
        if (word & bit != 0) revert NonceUsed(from, nonce);
        words[nonce >> 8] = word | bit;
    }

    /// @dev The proof inside its bytes, without copying: `abi.encode` of one dynamic struct is an offset, then the struct. What lies
    /// outside the calldata reads as zero, which no check here accepts.
    function _quorumProof(bytes calldata encoded) private pure returns (QuorumProof calldata proof) {
        assembly ("memory-safe") {
            proof := add(encoded.offset, calldataload(encoded.offset))
        }
    }

    function _domain() private view returns (bytes32) {
        return block.chainid == _deployedChainId
            ? _deployedDomain
            : Hashing.protocolDomain(block.chainid, address(this));
    }
}
