// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IAttestationValidator} from "./interfaces/IAttestationValidator.sol";
import {IOperatorRegistry} from "./interfaces/IOperatorRegistry.sol";
import {IPolicyClient} from "./interfaces/IPolicyClient.sol";
import {BLS12381} from "./libraries/BLS12381.sol";
import {Hashing} from "./libraries/Hashing.sol";
import {Limits} from "./libraries/Limits.sol";
import {MerkleInclusion} from "./libraries/MerkleInclusion.sol";
import {AttestationWords, CertificateWords, IntentWords, LeafWords, PinsWords, Words} from "./libraries/Words.sol";
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
    using Words for Attestation;
    using Words for Intent;
    using Words for Pins;

    /// @dev What was proven about a certificate: never that it is good, only who signed it.
    struct Proven {
        uint96 signedStake;
        uint96 totalStake;
        uint64 epoch;
    }

    /// @dev What a certificate rests on: the stake that signed it and where its epoch stands. The first four are the tail of the
    /// registry's answer, in its order.
    struct Standing {
        uint256 signedStake;
        IOperatorRegistry.EpochState state;
        uint256 supersededAt;
        uint256 pausedUntil;
        uint256 totalStake;
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
        LeafWords calldata leaf = attestation.words().leaf;
        if (leaf.policyClient != uint160(msg.sender)) {
            revert CallerIsNotPolicyClient(msg.sender, address(uint160(leaf.policyClient)));
        }
        if (leaf.allow != 1) revert IntentDenied(leaf.taskId);
        IntentWords calldata asked = intent.words();
        if (asked.chainId != block.chainid) revert WrongChain(asked.chainId);
        bytes32 intentHash = Hashing.intentDigest(intent, Hashing.intentDomain(block.chainid, msg.sender));
        if (leaf.intentHash != intentHash) revert IntentMismatch(leaf.intentHash, intentHash);
        if (block.timestamp > asked.deadline) revert IntentExpired(uint64(asked.deadline));

        PinsWords calldata demanded = pins.words();
        (bytes32 digest, Standing memory standing) = _judge(attestation, demanded);
        if (block.timestamp < standing.pausedUntil) revert ConsumptionPaused(uint64(standing.pausedUntil));
        if (attestation.words().remember != 0) _remember(digest, attestation.certificate, standing);

        address from = address(uint160(asked.from));
        _advance(msg.sender, from, demanded.ordering, leaf.sequence);
        _spend(msg.sender, from, asked.nonce);
        emit AttestationConsumed(leaf.taskId, msg.sender, intentHash, digest);
    }

    /// @inheritdoc IAttestationValidator
    function record(Certificate calldata certificate, QuorumProof calldata proof) external returns (bytes32 digest) {
        digest = certificateDigest(certificate);
        Standing memory standing;
        _verify(digest, certificate.epoch, proof, standing);
        _remember(digest, certificate, standing);
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
        _judge(attestation, pins.words());
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
    function _judge(Attestation calldata attestation, PinsWords calldata pins)
        private
        view
        returns (bytes32 digest, Standing memory standing)
    {
        _checkDecision(attestation, pins);
        digest = certificateDigest(attestation.certificate);
        CertificateWords calldata certificate = attestation.words().certificate;
        bytes calldata proof = attestation.quorumProof;
        if (proof.length == 0) _recall(digest, certificate.epoch, standing);
        else _verify(digest, certificate.epoch, _proofIn(proof), standing);
        _checkEpoch(standing, certificate, pins.epochGrace);
        unchecked {
            // products of numbers below 2**96 and 2**14
            if (standing.signedStake * Limits.BPS < standing.totalStake * pins.quorumBps) {
                revert QuorumNotReached(
                    uint96(standing.signedStake), uint96(standing.totalStake), uint16(pins.quorumBps)
                );
            }
        }
    }

    /// @dev What makes a leaf a decision of this policy that is still valid: policy, times, and its place in the certificate's tree.
    function _checkDecision(Attestation calldata attestation, PinsWords calldata pins) private view {
        AttestationWords calldata words = attestation.words();
        LeafWords calldata leaf = words.leaf;
        if (leaf.policyId != pins.policyId) revert PolicyReplaced(leaf.policyId, pins.policyId);
        uint256 quorumBps = pins.quorumBps;
        uint256 maxAge = pins.maxCertificateAge;
        if (
            quorumBps == 0 || quorumBps > Limits.BPS || pins.epochGrace > Limits.MAX_GRACE
                || maxAge > Limits.MAX_CERTIFICATE_AGE
        ) revert PinsOutOfBounds();
        if (block.timestamp > leaf.expiration) revert AttestationExpired(uint64(leaf.expiration));

        CertificateWords calldata certificate = words.certificate;
        uint256 timestamp = certificate.timestamp;
        if (timestamp > block.timestamp + Limits.CLOCK_SLACK) revert CertificateFromFuture(uint64(timestamp));
        unchecked {
            // the timestamp is about the present and the age bounded
            if (block.timestamp > timestamp + maxAge) revert CertificateTooOld(uint64(timestamp), uint32(maxAge));
        }
        bytes32 leafHash = Hashing.leafHash(attestation.leaf);
        if (!MerkleInclusion.isIncluded(
                leafHash, words.index, certificate.count, attestation.merkleProof, certificate.root
            )) revert NotIncluded(leafHash);
    }

    /// @dev An epoch counts while it is current; afterwards for certificates made before its end, within the client's grace; and never
    /// again once an ejection raised the minimum above it.
    function _checkEpoch(Standing memory standing, CertificateWords calldata certificate, uint256 grace) private view {
        if (standing.state == IOperatorRegistry.EpochState.Current) return;
        if (standing.state == IOperatorRegistry.EpochState.Revoked) revert EpochRevoked(uint64(certificate.epoch));
        uint256 supersededAt = standing.supersededAt;
        if (certificate.timestamp > supersededAt + Limits.CLOCK_SLACK || block.timestamp > supersededAt + grace) {
            revert EpochSuperseded(uint64(certificate.epoch), uint64(supersededAt));
        }
    }

    /// @dev Fills in what was proven earlier, and where the epoch stands now.
    function _recall(bytes32 digest, uint256 epoch, Standing memory standing) private view {
        Proven storage proven = remembered[digest];
        standing.signedStake = proven.signedStake;
        standing.totalStake = proven.totalStake;
        if (standing.totalStake == 0) revert NothingRemembered(digest);
        (standing.state, standing.supersededAt, standing.pausedUntil) = _registry.epochStatusAt(uint64(epoch));
    }

    /// @dev Fills in what the proof proves: the registry says which key the signers have and what they weigh, the pairing that they signed.
    /// The registry is called without decoding the proof: the epoch, an offset of two words, and the calldata from the struct on, whose
    /// inner offsets count from the struct.
    function _verify(bytes32 digest, uint256 epoch, QuorumProof calldata proof, Standing memory standing) private view {
        address target = address(_registry);
        bytes4 selector = IOperatorRegistry.quorumAt.selector;
        G1 memory signersKey;
        bool done;
        assembly ("memory-safe") {
            let call_ := mload(0x40)
            let length := sub(calldatasize(), proof)
            mstore(call_, selector)
            mstore(add(call_, 4), epoch)
            mstore(add(call_, 36), 64)
            calldatacopy(add(call_, 68), proof, length)
            done := staticcall(gas(), target, call_, add(68, length), call_, 256)
            done := and(done, eq(returndatasize(), 256))
            // the answer's eight words: the key's four, the stake, and the epoch's three
            mcopy(signersKey, call_, 128)
            mcopy(standing, add(call_, 128), 128)
        }
        if (!done) _bubble();
        standing.totalStake = proof.totalStake;
        if (standing.signedStake == 0 || signersKey.isInfinity()) revert NoSigners();
        if (!signersKey.isSignedBy(BLS12381.hashDigest(digest), proof.signature)) revert InvalidSignature(digest);
    }

    /// @dev Only ever raises what is known: a proof with more non-signers than an earlier one changes nothing.
    function _remember(bytes32 digest, Certificate calldata certificate, Standing memory standing) private {
        if (standing.signedStake <= remembered[digest].signedStake) return;
        (uint96 signedStake, uint96 totalStake) = (uint96(standing.signedStake), uint96(standing.totalStake));
        remembered[digest] = Proven(signedStake, totalStake, certificate.epoch);
        emit CertificateRecorded(digest, certificate.epoch, signedStake, totalStake);
    }

    /// @dev Reverts as the call that just failed did.
    function _bubble() private pure {
        assembly ("memory-safe") {
            let free := mload(0x40)
            returndatacopy(free, 0, returndatasize())
            revert(free, returndatasize())
        }
    }

    /// @dev Demands the counter that the decision names, and moves it.
    function _advance(address client, address from, uint256 ordering, uint256 attested) private {
        uint64 current;
        if (ordering != ORDERING_FREE) {
            current = sequenceOf(client, from, uint8(ordering));
            if (ordering == ORDERING_SENDER) _senderSequence[client][from] = current + 1;
            else _clientSequence[client] = current + 1;
        }
        if (attested != current) revert SequenceMismatch(uint64(attested), current);
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
