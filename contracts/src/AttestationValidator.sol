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

    /// @dev What the registry says about an epoch.
    struct EpochStatus {
        IOperatorRegistry.EpochState state;
        uint64 supersededAt;
        uint64 pausedUntil;
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

        (bytes32 digest, uint64 pausedUntil, Proven memory proven) = _judge(attestation, pins);
        if (block.timestamp < pausedUntil) revert ConsumptionPaused(pausedUntil);
        if (attestation.remember && attestation.quorumProof.length != 0) _remember(digest, proven);

        _advance(msg.sender, intent.from, pins.ordering, leaf.sequence);
        _spend(msg.sender, intent.from, intent.nonce);
        emit AttestationConsumed(leaf.taskId, msg.sender, intentHash, digest);
    }

    /// @inheritdoc IAttestationValidator
    function record(Certificate calldata certificate, QuorumProof calldata proof) external returns (bytes32 digest) {
        digest = certificateDigest(certificate);
        (Proven memory proven,) = _verify(digest, certificate.epoch, proof);
        _remember(digest, proven);
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
        _judge(attestation, pins);
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

    /// @dev All that makes an attestation good for a client of these demands, whoever asks and whatever the intent.
    function _judge(Attestation calldata attestation, Pins calldata pins)
        private
        view
        returns (bytes32 digest, uint64 pausedUntil, Proven memory proven)
    {
        _checkDecision(attestation, pins);
        Certificate calldata certificate = attestation.certificate;
        digest = certificateDigest(certificate);
        EpochStatus memory status;
        bytes calldata proof = attestation.quorumProof;
        if (proof.length == 0) {
            proven = remembered[digest];
            if (proven.totalStake == 0) revert NothingRemembered(digest);
            (status.state, status.supersededAt, status.pausedUntil) = _registry.epochStatus(certificate.epoch);
        } else {
            (proven, status) = _verify(digest, certificate.epoch, _proofIn(proof));
        }
        pausedUntil = status.pausedUntil;
        _checkEpoch(status, certificate, pins.epochGrace);
        uint256 quorumBps = pins.quorumBps;
        if (uint256(proven.signedStake) * Limits.BPS < proven.totalStake * quorumBps) {
            revert QuorumNotReached(proven.signedStake, proven.totalStake, uint16(quorumBps));
        }
    }

    /// @dev What makes a leaf a decision of this policy that is still valid: policy, times, and its place in the certificate's tree.
    function _checkDecision(Attestation calldata attestation, Pins calldata pins) private view {
        Leaf calldata leaf = attestation.leaf;
        if (leaf.policyId != pins.policyId) revert PolicyReplaced(leaf.policyId, pins.policyId);
        uint256 maxAge = pins.maxCertificateAge;
        if (
            pins.quorumBps == 0 || pins.quorumBps > Limits.BPS || pins.epochGrace > Limits.MAX_GRACE
                || maxAge > Limits.MAX_CERTIFICATE_AGE
        ) revert PinsOutOfBounds();
        if (block.timestamp > leaf.expiration) revert AttestationExpired(leaf.expiration);

        Certificate calldata certificate = attestation.certificate;
        uint256 timestamp = certificate.timestamp;
        unchecked {
            // sums of numbers below 2**64
            if (timestamp > block.timestamp + Limits.CLOCK_SLACK) revert CertificateFromFuture(uint64(timestamp));
            if (block.timestamp > timestamp + maxAge) revert CertificateTooOld(uint64(timestamp), uint32(maxAge));
        }
        bytes32 leafHash = Hashing.leafHash(leaf);
        if (!MerkleInclusion.isIncluded(
                leafHash, attestation.index, certificate.count, attestation.merkleProof, certificate.root
            )) revert NotIncluded(leafHash);
    }

    /// @dev An epoch counts while it is current; afterwards for certificates made before its end, within the client's grace; and never
    /// again once an ejection raised the minimum above it.
    function _checkEpoch(EpochStatus memory status, Certificate calldata certificate, uint256 grace) private view {
        if (status.state == IOperatorRegistry.EpochState.Current) return;
        if (status.state == IOperatorRegistry.EpochState.Revoked) revert EpochRevoked(certificate.epoch);
        uint256 supersededAt = status.supersededAt;
        if (certificate.timestamp > supersededAt + Limits.CLOCK_SLACK || block.timestamp > supersededAt + grace) {
            revert EpochSuperseded(certificate.epoch, status.supersededAt);
        }
    }

    /// @dev Who signed: the registry says which key that is and what it weighs, the pairing that it signed.
    function _verify(bytes32 digest, uint64 epoch, QuorumProof calldata proof)
        private
        view
        returns (Proven memory proven, EpochStatus memory)
    {
        (G1 memory signersKey, uint96 signedStake, EpochStatus memory status) = _quorumAt(epoch, proof);
        if (signedStake == 0 || signersKey.isInfinity()) revert NoSigners();
        if (!signersKey.isSignedBy(BLS12381.hashDigest(digest), proof.signature)) revert InvalidSignature(digest);
        (proven.signedStake, proven.totalStake, proven.epoch) = (signedStake, uint96(proof.totalStake), epoch);
        return (proven, status);
    }

    /// @dev `registry.quorumAt(epoch, proof)`, encoded without decoding: the epoch, an offset of two words, and the calldata from the
    /// struct on, whose inner offsets count from the struct. The answer's eight words are the key's four, the stake, and a status.
    function _quorumAt(uint64 epoch, QuorumProof calldata proof)
        private
        view
        returns (G1 memory signersKey, uint96 signedStake, EpochStatus memory status)
    {
        address target = address(_registry);
        bytes4 selector = IOperatorRegistry.quorumAt.selector;
        bool done;
        assembly ("memory-safe") {
            let answer := mload(0x40)
            mstore(0x40, add(answer, 256))
            let call_ := add(answer, 256)
            let length := sub(calldatasize(), proof)
            mstore(call_, selector)
            mstore(add(call_, 4), epoch)
            mstore(add(call_, 36), 64)
            calldatacopy(add(call_, 68), proof, length)
            done := staticcall(gas(), target, call_, add(68, length), answer, 256)
            done := and(done, eq(returndatasize(), 256))
            signersKey := answer
            signedStake := mload(add(answer, 128))
            status := add(answer, 160)
        }
        if (!done) {
            assembly ("memory-safe") {
                let free := mload(0x40)
                returndatacopy(free, 0, returndatasize())
                revert(free, returndatasize())
            }
        }
    }

    /// @dev Only ever raises what is known: a proof with more non-signers than an earlier one changes nothing.
    function _remember(bytes32 digest, Proven memory proven) private {
        if (proven.signedStake <= remembered[digest].signedStake) return;
        remembered[digest] = proven;
        emit CertificateRecorded(digest, proven.epoch, proven.signedStake, proven.totalStake);
    }

    /// @dev Demands the counter that the decision names, and moves it.
    function _advance(address client, address from, uint8 ordering, uint64 attested) private {
        uint64 current;
        if (ordering != ORDERING_FREE) {
            current = sequenceOf(client, from, ordering);
            if (ordering == ORDERING_SENDER) _senderSequence[client][from] = current + 1;
            else _clientSequence[client] = current + 1;
        }
        if (attested != current) revert SequenceMismatch(attested, current);
    }

    function _spend(address client, address from, uint256 nonce) private {
        mapping(uint256 => uint256) storage words = nonceBitmap[client][from];
        uint256 word = words[nonce >> 8];
        uint256 bit = 1 << (nonce & 0xff);
        if (word & bit != 0) revert NonceUsed(from, nonce);
        words[nonce >> 8] = word | bit;
    }

    /// @dev The proof inside its bytes, where it lies: `abi.encode` of one dynamic struct is an offset, then the struct. What the struct
    /// says lies outside the calldata reads as zero, and the registry decodes and checks all of it but the signature.
    function _proofIn(bytes calldata encoded) private pure returns (QuorumProof calldata proof) {
        uint256 offset;
        assembly ("memory-safe") {
            offset := calldataload(encoded.offset)
            proof := add(encoded.offset, offset)
        }
        if (offset >= encoded.length) revert MalformedQuorumProof();
    }

    function _domain() private view returns (bytes32) {
        return
            block.chainid == _deployedChainId ? _deployedDomain : Hashing.protocolDomain(block.chainid, address(this));
    }
}
