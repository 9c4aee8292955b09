// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @notice A G1 point as EIP-2537 lays it out: each coordinate is 64 bytes big-endian, high word first. Infinity is all zeros.
struct G1 {
    bytes32 xh;
    bytes32 xl;
    bytes32 yh;
    bytes32 yl;
}

/// @notice A G2 point as EIP-2537 lays it out: x.c0, x.c1, y.c0, y.c1, each 64 bytes big-endian, high word first.
struct G2 {
    bytes32 x0h;
    bytes32 x0l;
    bytes32 x1h;
    bytes32 x1l;
    bytes32 y0h;
    bytes32 y0l;
    bytes32 y1h;
    bytes32 y1l;
}

/// @notice What a sender wants done. Its EIP-712 digest names the policy client, so one signature is good for one client on one chain.
/// @param from who acts
/// @param to whom the call is for; a guarded client's own address when `data` names one of its functions
/// @param value wei that the submitter sends along
/// @param data the call, selector included
/// @param chainId the chain of execution
/// @param functionSignature the function as text, for instance `transfer(address,uint256)`; operators match it, not the selector
/// @param nonce any unused number; bits of one word share a storage slot
/// @param deadline unix seconds after which the intent is void
struct Intent {
    address from;
    address to;
    uint256 value;
    bytes data;
    uint256 chainId;
    string functionSignature;
    uint256 nonce;
    uint64 deadline;
}

/// @notice One decision. Every field is a pure function of the task batch, the proposal and the policy.
/// @param taskId which task was decided
/// @param policyClient the contract this decision is for
/// @param policyId the policy that was evaluated
/// @param intentHash the intent's EIP-712 digest in the client's domain
/// @param sequence the counter that was read when the decision was made; 0 under free ordering
/// @param allow the decision
/// @param output 0 for plain decisions, else the digest of a computed result
/// @param evidence commitment to the record, part by part
/// @param expiration unix seconds after which the decision is void
struct Leaf {
    bytes32 taskId;
    address policyClient;
    bytes32 policyId;
    bytes32 intentHash;
    uint64 sequence;
    bool allow;
    bytes32 output;
    bytes32 evidence;
    uint64 expiration;
}

/// @notice What operators sign with their BLS keys: one per group of decisions.
/// @param root Merkle root over the group's leaves in task order
/// @param count number of leaves, at least 1
/// @param epoch the operator set that signed
/// @param timestamp the batch's time, unix seconds
struct Certificate {
    bytes32 root;
    uint32 count;
    uint64 epoch;
    uint64 timestamp;
}

/// @notice Shows that operators of one epoch signed a certificate.
/// @param apk sum of all keys of the epoch, as the registry has it
/// @param totalStake the epoch's total, as the registry has it
/// @param signature sum of the signatures of those who signed
/// @param nonSigners keys of those who did not, strictly ascending by key id
struct QuorumProof {
    G1 apk;
    uint128 totalStake;
    G2 signature;
    G1[] nonSigners;
}

/// @notice One leaf with everything that proves it.
/// @param leaf the decision
/// @param index its position in the tree
/// @param merkleProof RFC 9162 inclusion proof, lowest sibling first
/// @param certificate what was signed
/// @param remember store what the quorum proof proved, so that further leaves of the certificate need none
/// @param quorumProof `abi.encode(QuorumProof)`; empty to use what is remembered
struct Attestation {
    Leaf leaf;
    uint32 index;
    bytes32[] merkleProof;
    Certificate certificate;
    bool remember;
    bytes quorumProof;
}

/// @notice What a policy client demands of an attestation at this moment.
/// @param policyId the policy whose decisions count
/// @param ordering 0 free, 1 sender, 2 client: which counter a decision is bound to
/// @param quorumBps share of the total stake that must have signed, in 1/10000
/// @param epochGrace seconds for which a superseded operator set still counts
/// @param maxCertificateAge seconds for which a certificate counts after its timestamp
struct Pins {
    bytes32 policyId;
    uint8 ordering;
    uint16 quorumBps;
    uint32 epochGrace;
    uint32 maxCertificateAge;
}

/// @notice An operator as it stood in an epoch.
struct OperatorView {
    address operator;
    bytes32 keyId;
    G1 key;
    bytes32 busKey;
    uint96 stake;
}

/// @notice A policy in which each `bytes`, `string` and array is given already hashed, as EIP-712 hashes it.
struct PolicyPreimage {
    bytes32 modules;
    bytes32 entrypoint;
    bytes32 params;
    bytes32 schema;
    bytes32 policyDataIds;
    bytes32 bindings;
    bytes32 calls;
    uint8 ordering;
    uint64 validFor;
    uint64 retryAfter;
    bytes32 inference;
    bytes32 engineSha256;
    uint64 regoFuel;
    uint64 regoMemory;
}

/// @dev The three orderings a policy may have.
uint8 constant ORDERING_FREE = 0;
uint8 constant ORDERING_SENDER = 1;
uint8 constant ORDERING_CLIENT = 2;
