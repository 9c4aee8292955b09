// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Attestation, Certificate, Intent, Pins, QuorumProof} from "../Types.sol";

/// @title The one place where attestations are judged and spent
interface IAttestationValidator {
    /// @notice An attestation was spent: its client acts in the same transaction.
    event AttestationConsumed(
        bytes32 indexed taskId, address indexed policyClient, bytes32 indexed intentHash, bytes32 certificateDigest
    );

    /// @notice More stake than before was proven to have signed a certificate.
    event CertificateRecorded(
        bytes32 indexed certificateDigest, uint64 indexed epoch, uint96 signedStake, uint96 totalStake
    );

    /// @notice A sender made some of its own nonces unusable for a client.
    event NoncesCancelled(address indexed policyClient, address indexed from, uint256 word, uint256 mask);

    /// @notice A client acted for a sender without an attestation (its escape) and spent the nonce.
    event NonceSpent(address indexed policyClient, address indexed from, uint256 nonce);

    /// @notice The caller is not the client that the decision is for.
    error CallerIsNotPolicyClient(address caller, address policyClient);
    /// @notice The decision is for another client than the one asked about.
    error WrongPolicyClient(address policyClient, address asked);
    /// @notice The decision is a denial.
    error IntentDenied(bytes32 taskId);
    /// @notice The decision was made under another policy than the client's present one.
    error PolicyReplaced(bytes32 attested, bytes32 current);
    /// @notice The intent is for another chain.
    error WrongChain(uint256 chainId);
    /// @notice The decision is about another intent.
    error IntentMismatch(bytes32 attested, bytes32 given);
    /// @notice The decision's validity is over.
    error AttestationExpired(uint64 expiration);
    /// @notice The intent's deadline is over.
    error IntentExpired(uint64 deadline);
    /// @notice The certificate's timestamp lies further ahead than clocks may differ.
    error CertificateFromFuture(uint64 timestamp);
    /// @notice The certificate is older than the client allows.
    error CertificateTooOld(uint64 timestamp, uint32 maxCertificateAge);
    /// @notice The leaf is not in the certificate's tree at that position.
    error NotIncluded(bytes32 leafHash);
    /// @notice An ejection made every certificate of this epoch worthless.
    error EpochRevoked(uint64 epoch);
    /// @notice The epoch was superseded before the certificate was made, or too long ago for this client.
    error EpochSuperseded(uint64 epoch, uint64 supersededAt);
    /// @notice No quorum proof was given and nothing is remembered of this certificate.
    error NothingRemembered(bytes32 certificateDigest);
    /// @notice The bytes are not an encoded quorum proof.
    error MalformedQuorumProof();
    /// @notice Nobody signed, or keys that add up to nothing.
    error NoSigners();
    /// @notice The aggregate signature is not one of the signers on this certificate.
    error InvalidSignature(bytes32 certificateDigest);
    /// @notice Less stake signed than the client demands.
    error QuorumNotReached(uint96 signedStake, uint96 totalStake, uint16 quorumBps);
    /// @notice The client's counter has moved since the decision was made.
    error SequenceMismatch(uint64 attested, uint64 current);
    /// @notice The nonce was spent or cancelled.
    error NonceUsed(address from, uint256 nonce);
    /// @notice Consumption is paused.
    error ConsumptionPaused(uint64 until);
    /// @notice The ordering is none of the three.
    error UnknownOrdering(uint8 ordering);
    /// @notice The client's pins ask for a quorum of nothing or of more than everything, or exceed the protocol's longest times.
    error PinsOutOfBounds();

    /// @notice Spends an attestation for its client, which is the caller, or reverts with the one reason why not.
    /// @param intent what is to be done
    /// @param attestation the decision and its proof
    /// @param pins what the client demands now
    function consume(Intent calldata intent, Attestation calldata attestation, Pins calldata pins) external;

    /// @notice Remembers how much stake was proven to have signed a certificate. Open to all; says nothing about any leaf.
    /// @return certificateDigest under which it is remembered
    function record(Certificate calldata certificate, QuorumProof calldata proof)
        external
        returns (bytes32 certificateDigest);

    /// @notice What a proven decision says, by the client's present pins. Consumes nothing; reverts when the decision is not proven.
    function verifyDecision(Attestation calldata attestation, address policyClient) external view returns (bool allow);

    /// @notice What was proven about a certificate; zeros when nothing was.
    function remembered(bytes32 certificateDigest)
        external
        view
        returns (uint96 signedStake, uint96 totalStake, uint64 epoch);

    /// @notice 256 nonces of a sender at a client: a set bit is spent.
    function nonceBitmap(address client, address from, uint256 word) external view returns (uint256);

    /// @notice Makes the caller's own nonces unusable for a client.
    /// @param mask bits to set in the word
    function cancelNonce(address client, uint256 word, uint256 mask) external;

    /// @notice Spends a nonce in the caller's own name space and moves the counter, for a client that acts by its escape.
    function spendNonce(address from, uint256 nonce, uint8 ordering) external;

    /// @notice The counter that the next decision of this ordering must name; 0 for free.
    function sequenceOf(address client, address from, uint8 ordering) external view returns (uint64);

    /// @notice The operator registry whose epochs count here.
    function registry() external view returns (address);
}
