// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Certificate, Intent, Leaf, PolicyPreimage} from "../Types.sol";

/// @title Every digest that is signed, as the reference page "What is hashed and signed" defines it
/// @notice Each struct hash is EIP-712's hashStruct; each digest keccak(0x1901 | domain separator | hashStruct).
library Hashing {
    bytes32 internal constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 internal constant INTENT_TYPEHASH = keccak256(
        "Intent(address from,address to,uint256 value,bytes data,uint256 chainId,string functionSignature,uint256 nonce,uint64 deadline)"
    );
    bytes32 internal constant LEAF_TYPEHASH = keccak256(
        "Leaf(bytes32 taskId,address policyClient,bytes32 policyId,bytes32 intentHash,uint64 sequence,bool allow,bytes32 output,bytes32 evidence,uint64 expiration)"
    );
    bytes32 internal constant CERTIFICATE_TYPEHASH =
        keccak256("Certificate(bytes32 root,uint32 count,uint64 epoch,uint64 timestamp)");
    bytes32 internal constant REGISTER_KEY_TYPEHASH =
        keccak256("RegisterKey(address operator,bytes32 keyId,bytes32 busKey)");
    bytes32 internal constant TASK_TYPEHASH = keccak256(
        "Task(uint256 chainId,address validator,address policyClient,bytes32 policyId,bytes32 intentHash,bytes32 argsHash,uint64 timestamp)"
    );
    bytes32 internal constant POLICY_TYPEHASH = keccak256(
        "Policy(RegoModule[] modules,string entrypoint,bytes params,bytes schema,bytes32[] policyDataIds,ArgumentBinding[] bindings,GovernedCall[] calls,uint8 ordering,uint64 validFor,uint64 retryAfter,bytes inference,bytes32 engineSha256,uint64 regoFuel,uint64 regoMemory)ArgumentBinding(uint32 policyData,string name,uint8 source,string value)GovernedCall(bool self,address target,string signature,string unpack)RegoModule(string name,bytes source)"
    );

    bytes32 internal constant RECEIPT_LEAF_TYPEHASH =
        keccak256("ReceiptLeaf(uint256 chainId,address ledger,address poster,bytes32 receiptDigest)");
    bytes32 internal constant KEY_COMMITMENT_TYPEHASH =
        keccak256("KeyCommitment(uint256 chainId,address registry,address node,bytes32 key,bytes32 salt)");
    bytes32 internal constant WITHDRAWAL_TYPEHASH =
        keccak256("Withdrawal(bytes32 paymentId,address recipient,uint64 deadline)");

    bytes32 private constant VERSION_HASH = keccak256("1");

    /// @notice The domain a policy client's intents are signed in.
    function intentDomain(uint256 chainId, address client) internal pure returns (bytes32) {
        return _domain(keccak256("Placet Intent"), chainId, client);
    }

    /// @notice The domain certificates are signed in.
    function protocolDomain(uint256 chainId, address validator) internal pure returns (bytes32) {
        return _domain(keccak256("Placet"), chainId, validator);
    }

    /// @notice The domain key registrations are signed in.
    function registrationDomain(uint256 chainId, address registry) internal pure returns (bytes32) {
        return _domain(keccak256("Placet Registry"), chainId, registry);
    }

    /// @notice The domain withdrawals of refunds are signed in.
    function refundDomain(uint256 chainId, address vault) internal pure returns (bytes32) {
        return _domain(keccak256("Placet Refunds"), chainId, vault);
    }

    /// @notice The intent's hash: what its sender signs and what a leaf names.
    /// @dev The struct's eight words as they lie in calldata, with the two dynamic members replaced by their hashes. A word with dirty high
    /// bits gives a hash that nobody signed.
    function intentDigest(Intent calldata intent, bytes32 domain) internal pure returns (bytes32) {
        bytes32 dataHash = _keccak(intent.data);
        bytes32 signatureHash = _keccak(bytes(intent.functionSignature));
        bytes32 typehash = INTENT_TYPEHASH;
        bytes32 structHash;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, typehash)
            calldatacopy(add(free, 32), intent, 256)
            mstore(add(free, 128), dataHash)
            mstore(add(free, 192), signatureHash)
            structHash := keccak256(free, 288)
        }
        return _digest(domain, structHash);
    }

    /// @notice hashStruct of a leaf.
    /// @dev The struct's nine words as they lie in calldata; as for dirty bits, see {intentDigest}.
    function leafStruct(Leaf calldata leaf) internal pure returns (bytes32 structHash) {
        bytes32 typehash = LEAF_TYPEHASH;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, typehash)
            calldatacopy(add(free, 32), leaf, 288)
            structHash := keccak256(free, 320)
        }
    }

    /// @notice A leaf's hash in the tree: keccak(0x00 | hashStruct).
    function leafHash(Leaf calldata leaf) internal pure returns (bytes32 hash) {
        bytes32 structHash = leafStruct(leaf);
        assembly ("memory-safe") {
            mstore8(0, 0x00)
            mstore(1, structHash)
            hash := keccak256(0, 33)
        }
    }

    /// @notice The message of the BLS signature.
    function certificateDigest(Certificate calldata certificate, bytes32 domain) internal pure returns (bytes32) {
        bytes32 typehash = CERTIFICATE_TYPEHASH;
        bytes32 structHash;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, typehash)
            calldatacopy(add(free, 32), certificate, 128)
            structHash := keccak256(free, 160)
        }
        return _digest(domain, structHash);
    }

    /// @notice The message by which a BLS key says whose it is.
    function registrationDigest(address operator, bytes32 keyId, bytes32 busKey, bytes32 domain)
        internal
        pure
        returns (bytes32)
    {
        return _digest(domain, keccak256(abi.encode(REGISTER_KEY_TYPEHASH, operator, keyId, busKey)));
    }

    /// @notice A task's id.
    function taskId(
        uint256 chainId,
        address validator,
        address policyClient,
        bytes32 policyId_,
        bytes32 intentHash,
        bytes32 argsHash,
        uint64 timestamp
    ) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(TASK_TYPEHASH, chainId, validator, policyClient, policyId_, intentHash, argsHash, timestamp)
        );
    }

    /// @notice A policy's id: its hashStruct, the members being hashed already.
    function policyId(PolicyPreimage calldata policy) internal pure returns (bytes32) {
        return keccak256(abi.encode(POLICY_TYPEHASH, policy));
    }

    /// @notice A receipt's hash in a ledger's tree: keccak(0x00 | hashStruct(ReceiptLeaf)).
    function receiptLeafHash(uint256 chainId, address ledger, address poster, bytes32 receiptDigest)
        internal
        pure
        returns (bytes32)
    {
        bytes32 structHash = keccak256(abi.encode(RECEIPT_LEAF_TYPEHASH, chainId, ledger, poster, receiptDigest));
        return keccak256(abi.encodePacked(bytes1(0x00), structHash));
    }

    /// @notice What announces a receipt key before it is shown: hashStruct(KeyCommitment).
    function keyCommitment(uint256 chainId, address registry, address node, bytes32 key, bytes32 salt)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(KEY_COMMITMENT_TYPEHASH, chainId, registry, node, key, salt));
    }

    /// @notice A receipt key's name: sha-256 of its domain, a zero byte, and the Ed25519 public key.
    function receiptKeyId(bytes32 key) internal pure returns (bytes32) {
        return sha256(abi.encodePacked("placet/receipt-key/v1", bytes1(0x00), key));
    }

    /// @notice What the beneficiary of a refund signs to have it paid to another.
    function withdrawalDigest(bytes32 paymentId, address recipient, uint64 deadline, bytes32 domain)
        internal
        pure
        returns (bytes32)
    {
        return _digest(domain, keccak256(abi.encode(WITHDRAWAL_TYPEHASH, paymentId, recipient, deadline)));
    }

    /// @dev keccak of bytes in calldata, through memory that is not kept.
    function _keccak(bytes calldata data) private pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            calldatacopy(free, data.offset, data.length)
            hash := keccak256(free, data.length)
        }
    }

    function _domain(bytes32 nameHash, uint256 chainId, address verifyingContract)
        private
        pure
        returns (bytes32 domain)
    {
        bytes32 typehash = DOMAIN_TYPEHASH;
        bytes32 versionHash = VERSION_HASH;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, typehash)
            mstore(add(free, 32), nameHash)
            mstore(add(free, 64), versionHash)
            mstore(add(free, 96), chainId)
            mstore(add(free, 128), and(verifyingContract, 0xffffffffffffffffffffffffffffffffffffffff))
            domain := keccak256(free, 160)
        }
    }

    function _digest(bytes32 domain, bytes32 structHash) private pure returns (bytes32 digest) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, hex"1901")
            mstore(add(free, 2), domain)
            mstore(add(free, 34), structHash)
            digest := keccak256(free, 66)
        }
    }
}
