// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Test} from "forge-std/Test.sol";
import {BLS12381} from "../src/libraries/BLS12381.sol";
import {Hashing} from "../src/libraries/Hashing.sol";
import {MerkleInclusion} from "../src/libraries/MerkleInclusion.sol";
import {Certificate, G1, G2, Intent, Leaf, PolicyPreimage} from "../src/Types.sol";
import {BLSKeys} from "./support/BLSKeys.sol";

/// @dev The library functions that take calldata, for values that lie in memory.
contract Hasher {
    function intent(Intent calldata value, uint256 chainId, address client) external pure returns (bytes32) {
        return Hashing.intentDigest(value, Hashing.intentDomain(chainId, client));
    }

    function leafStruct(Leaf calldata value) external pure returns (bytes32) {
        return Hashing.leafStruct(value);
    }

    function leaf(Leaf calldata value) external pure returns (bytes32) {
        return Hashing.leafHash(value);
    }

    function certificate(Certificate calldata value, uint256 chainId, address validator)
        external
        pure
        returns (bytes32)
    {
        return Hashing.certificateDigest(value, Hashing.protocolDomain(chainId, validator));
    }

    function policy(PolicyPreimage calldata value) external pure returns (bytes32) {
        return Hashing.policyId(value);
    }

    function included(bytes32 leaf_, uint256 index, uint256 count, bytes32[] calldata proof, bytes32 root)
        external
        pure
        returns (bool)
    {
        return MerkleInclusion.isIncluded(leaf_, index, count, proof, root);
    }

    function signed(G1 memory key, G2 memory message, G2 calldata signature) external view returns (bool) {
        return BLS12381.isSignedBy(key, message, signature);
    }
}

/// @title Golden values that Python and Solidity share
contract VectorsTest is Test {
    Hasher internal hasher = new Hasher();
    string internal json;

    function setUp() public {
        json = vm.readFile("test/vectors/digests.json");
    }

    /// @dev The path of the i-th entry of a list, and whether there is one. Every list has at least one.
    function _entry(string memory list, uint256 i) private view returns (string memory path, bool exists) {
        path = string.concat(".", list, "[", vm.toString(i), "]");
        exists = vm.keyExistsJson(json, path);
        assertTrue(i != 0 || exists, list);
    }

    function _uint(string memory path, string memory field) private view returns (uint256) {
        return vm.parseJsonUint(json, string.concat(path, field));
    }

    function _word(string memory path, string memory field) private view returns (bytes32) {
        return vm.parseJsonBytes32(json, string.concat(path, field));
    }

    function _address(string memory path, string memory field) private view returns (address) {
        return vm.parseJsonAddress(json, string.concat(path, field));
    }

    function test_intents() public view {
        for (uint256 i = 0;; ++i) {
            (string memory entry, bool exists) = _entry("intent", i);
            if (!exists) break;
            Intent memory intent;
            intent.from = _address(entry, ".from");
            intent.to = _address(entry, ".to");
            intent.value = _uint(entry, ".value");
            intent.data = vm.parseJsonBytes(json, string.concat(entry, ".data"));
            intent.chainId = _uint(entry, ".chainId");
            intent.functionSignature = vm.parseJsonString(json, string.concat(entry, ".functionSignature"));
            intent.nonce = _uint(entry, ".nonce");
            intent.deadline = uint64(_uint(entry, ".deadline"));
            assertEq(hasher.intent(intent, intent.chainId, _address(entry, ".client")), _word(entry, ".digest"), entry);
        }
    }

    function test_leaves() public view {
        for (uint256 i = 0;; ++i) {
            (string memory entry, bool exists) = _entry("leaf", i);
            if (!exists) break;
            Leaf memory leaf;
            leaf.taskId = _word(entry, ".taskId");
            leaf.policyClient = _address(entry, ".policyClient");
            leaf.policyId = _word(entry, ".policyId");
            leaf.intentHash = _word(entry, ".intentHash");
            leaf.sequence = uint64(_uint(entry, ".sequence"));
            leaf.allow = vm.parseJsonBool(json, string.concat(entry, ".allow"));
            leaf.output = _word(entry, ".output");
            leaf.evidence = _word(entry, ".evidence");
            leaf.expiration = uint64(_uint(entry, ".expiration"));
            assertEq(hasher.leafStruct(leaf), _word(entry, ".structHash"), entry);
            assertEq(hasher.leaf(leaf), _word(entry, ".leafHash"), entry);
        }
    }

    function test_certificates() public view {
        for (uint256 i = 0;; ++i) {
            (string memory entry, bool exists) = _entry("certificate", i);
            if (!exists) break;
            Certificate memory certificate = Certificate(
                _word(entry, ".root"),
                uint32(_uint(entry, ".count")),
                uint64(_uint(entry, ".epoch")),
                uint64(_uint(entry, ".timestamp"))
            );
            bytes32 digest = hasher.certificate(certificate, _uint(entry, ".chainId"), _address(entry, ".validator"));
            assertEq(digest, _word(entry, ".digest"), entry);
        }
    }

    function test_tasks() public view {
        for (uint256 i = 0;; ++i) {
            (string memory entry, bool exists) = _entry("task", i);
            if (!exists) break;
            bytes32 taskId = Hashing.taskId(
                _uint(entry, ".chainId"),
                _address(entry, ".validator"),
                _address(entry, ".policyClient"),
                _word(entry, ".policyId"),
                _word(entry, ".intentHash"),
                _word(entry, ".argsHash"),
                uint64(_uint(entry, ".timestamp"))
            );
            assertEq(taskId, _word(entry, ".taskId"), entry);
        }
    }

    function test_policies() public view {
        for (uint256 i = 0;; ++i) {
            (string memory entry, bool exists) = _entry("policy", i);
            if (!exists) break;
            PolicyPreimage memory policy;
            policy.modules = _word(entry, ".modules");
            policy.entrypoint = _word(entry, ".entrypoint");
            policy.params = _word(entry, ".params");
            policy.schema = _word(entry, ".schema");
            policy.policyDataIds = _word(entry, ".policyDataIds");
            policy.bindings = _word(entry, ".bindings");
            policy.calls = _word(entry, ".calls");
            policy.ordering = uint8(_uint(entry, ".ordering"));
            policy.validFor = uint64(_uint(entry, ".validFor"));
            policy.retryAfter = uint64(_uint(entry, ".retryAfter"));
            policy.inference = _word(entry, ".inference");
            policy.engineSha256 = _word(entry, ".engineSha256");
            policy.regoFuel = uint64(_uint(entry, ".regoFuel"));
            policy.regoMemory = uint64(_uint(entry, ".regoMemory"));
            assertEq(hasher.policy(policy), _word(entry, ".policyId"), entry);
        }
    }

    function test_trees() public view {
        for (uint256 i = 0;; ++i) {
            (string memory entry, bool exists) = _entry("merkle", i);
            if (!exists) break;
            bytes32[] memory leaves = vm.parseJsonBytes32Array(json, string.concat(entry, ".leaves"));
            bytes32 root = _word(entry, ".root");
            for (uint256 j = 0; j < leaves.length; ++j) {
                string memory path = string.concat(entry, ".proofs[", vm.toString(j), "]");
                bytes32[] memory proof = vm.parseJsonBytes32Array(json, path);
                assertTrue(hasher.included(leaves[j], j, leaves.length, proof, root), path);
            }
        }
    }

    function test_registrations() public view {
        for (uint256 i = 0;; ++i) {
            (string memory entry, bool exists) = _entry("registerKey", i);
            if (!exists) break;
            bytes32 digest = Hashing.registrationDigest(
                _address(entry, ".operator"),
                _word(entry, ".keyId"),
                _word(entry, ".busKey"),
                Hashing.registrationDomain(_uint(entry, ".chainId"), _address(entry, ".registry"))
            );
            assertEq(digest, _word(entry, ".digest"), entry);
        }
    }

    function test_bls_keys_proofs_and_signatures() public {
        json = vm.readFile("test/vectors/bls.json");
        for (uint256 i = 0;; ++i) {
            (string memory entry, bool exists) = _entry("vectors", i);
            if (!exists) break;
            uint256 secret = _uint(entry, ".secret");
            bytes32 digest = _word(entry, ".digest");
            bytes memory keyBytes = vm.parseJsonBytes(json, string.concat(entry, ".key"));
            bytes memory possession = vm.parseJsonBytes(json, string.concat(entry, ".possession"));
            bytes memory signature = vm.parseJsonBytes(json, string.concat(entry, ".signature"));
            G1 memory key = abi.decode(keyBytes, (G1));
            assertEq(abi.encode(BLSKeys.publicKey(secret)), keyBytes);
            assertEq(BLS12381.compress(key), vm.parseJsonBytes(json, string.concat(entry, ".compressed")));
            assertEq(abi.encode(BLSKeys.sign(secret, digest)), signature);
            assertEq(abi.encode(BLSKeys.prove(secret)), possession);
            assertTrue(hasher.signed(key, BLS12381.hashDigest(digest), abi.decode(signature, (G2))));
            assertTrue(hasher.signed(key, BLS12381.hashPossession(key), abi.decode(possession, (G2))));
            assertFalse(hasher.signed(key, BLS12381.hashDigest(digest), abi.decode(possession, (G2))));
            bytes memory basic = vm.parseJsonBytes(json, string.concat(entry, ".basicSignature"));
            assertFalse(hasher.signed(key, BLS12381.hashDigest(digest), abi.decode(basic, (G2))));
        }
    }
}
