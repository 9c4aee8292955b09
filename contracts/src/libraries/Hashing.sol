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

    /// @notice The intent's hash: what its sender signs and what a leaf names.
    function intentDigest(Intent calldata intent, bytes32 domain) internal pure returns (bytes32) {
        return _digest(
            domain,
            keccak256(
                abi.encode(
                    INTENT_TYPEHASH,
                    intent.from,
                    intent.to,
                    intent.value,
                    keccak256(intent.data),
                    intent.chainId,
                    keccak256(bytes(intent.functionSignature)),
                    intent.nonce,
                    intent.deadline
                )
            )
        );
    }

    /// @notice hashStruct of a leaf.
    function leafStruct(Leaf calldata leaf) internal pure returns (bytes32) {
        return keccak256(abi.encode(LEAF_TYPEHASH, leaf));
    }

    /// @notice A leaf's hash in the tree: keccak(0x00 | hashStruct).
    function leafHash(Leaf calldata leaf) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(bytes1(0x00), leafStruct(leaf)));
    }

    /// @notice The message of the BLS signature.
    function certificateDigest(Certificate calldata certificate, bytes32 domain) internal pure returns (bytes32) {
        return _digest(domain, keccak256(abi.encode(CERTIFICATE_TYPEHASH, certificate)));
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

    function _domain(bytes32 nameHash, uint256 chainId, address verifyingContract) private pure returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPEHASH, nameHash, VERSION_HASH, chainId, verifyingContract));
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
