// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Test} from "forge-std/Test.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {AttestationValidator} from "../../src/AttestationValidator.sol";
import {GuardedVault} from "../../src/examples/GuardedVault.sol";
import {GuardedWallet} from "../../src/examples/GuardedWallet.sol";
import {IStakeSource} from "../../src/interfaces/IStakeSource.sol";
import {IAttestationValidator} from "../../src/interfaces/IAttestationValidator.sol";
import {OperatorRegistry} from "../../src/OperatorRegistry.sol";
import {PolicyClient} from "../../src/PolicyClient.sol";
import {PolicyRegistry} from "../../src/PolicyRegistry.sol";
import {OwnerWeights} from "../../src/stake/OwnerWeights.sol";
import {
    Attestation,
    Certificate,
    G1,
    G2,
    Intent,
    Leaf,
    OperatorView,
    Pins,
    PolicyPreimage,
    QuorumProof
} from "../../src/Types.sol";
import {BLSKeys} from "./BLSKeys.sol";

/// @title A client of any demands: it consumes by the pins it was last given and acts on nothing
contract MockClient {
    IAttestationValidator private immutable _validator;
    Pins private _pins;

    constructor(IAttestationValidator validator_, Pins memory pins) {
        _validator = validator_;
        _pins = pins;
    }

    function setPins(Pins calldata pins) external {
        _pins = pins;
    }

    function placetPins() external view returns (Pins memory) {
        return _pins;
    }

    function consume(Intent calldata intent, Attestation calldata attestation) external {
        _validator.consume(intent, attestation, _pins);
    }

    function spend(address from, uint256 nonce, uint8 ordering) external {
        _validator.spendNonce(from, nonce, ordering);
    }
}

/// @title A whole network in one test contract: registry, validator, operators that sign
/// @dev Hashes here are written with plain `abi.encode`, so every test also compares the contracts' hashing with the specification's.
abstract contract Network is Test {
    uint64 internal constant DELAY = 1 days;
    uint64 internal constant START = 1_800_000_000;
    uint32 internal constant GRACE = 1 hours;
    uint32 internal constant MAX_AGE = 2 hours;

    address internal owner = makeAddr("owner");
    OwnerWeights internal weights;
    OperatorRegistry internal registry;
    PolicyRegistry internal policies;
    AttestationValidator internal validator;

    mapping(bytes32 keyId => uint256) internal secretOf;
    uint256 private _nextNonce;

    // ---------------------------------------------------------------------------------------------------------- deployment

    function _deployNetwork(uint64 activationDelay) internal {
        vm.warp(START);
        weights = OwnerWeights(_create("OwnerWeights", type(OwnerWeights).creationCode, abi.encode(owner)));
        registry = _registry(weights, activationDelay);
        policies = PolicyRegistry(_create("PolicyRegistry", type(PolicyRegistry).creationCode, ""));
        validator = _validator();
    }

    function _registry(IStakeSource source, uint64 activationDelay) internal returns (OperatorRegistry) {
        bytes memory arguments = abi.encode(source, activationDelay, owner);
        return OperatorRegistry(_create("OperatorRegistry", type(OperatorRegistry).creationCode, arguments));
    }

    function _validator() internal returns (AttestationValidator) {
        bytes memory creationCode = type(AttestationValidator).creationCode;
        return AttestationValidator(_create("AttestationValidator", creationCode, abi.encode(registry)));
    }

    function _wallet(PolicyClient.ClientConfig memory config) internal returns (GuardedWallet) {
        return GuardedWallet(_create("GuardedWallet", type(GuardedWallet).creationCode, abi.encode(config)));
    }

    function _vault(IERC20 asset, PolicyClient.ClientConfig memory config) internal returns (GuardedVault) {
        bytes memory arguments = abi.encode(asset, "Guarded Asset", "gAST", config);
        return GuardedVault(_create("GuardedVault", type(GuardedVault).creationCode, arguments));
    }

    /// @dev Creates a contract from the bytecode that these tests were compiled with, or, under PLACET_TEST_ARTIFACTS, from the bytecode
    /// that is checked in and deployed.
    function _create(string memory name, bytes memory creationCode, bytes memory arguments)
        internal
        returns (address created)
    {
        if (vm.envOr("PLACET_TEST_ARTIFACTS", false)) {
            string memory json = vm.readFile(string.concat("artifacts/", name, ".json"));
            creationCode = vm.parseJsonBytes(json, ".bytecode");
        }
        creationCode = bytes.concat(creationCode, arguments);
        assembly {
            created := create(0, add(creationCode, 32), mload(creationCode))
            if iszero(created) {
                returndatacopy(0, 0, returndatasize())
                revert(0, returndatasize())
            }
        }
    }

    /// @dev Four operators of 100 each, active.
    function _deployFour() internal {
        _deployNetwork(DELAY);
        for (uint256 i = 0; i < 4; ++i) {
            _register(_operator(i), _secret(i), 100);
        }
        skip(DELAY);
        registry.activate();
    }

    function _operator(uint256 i) internal returns (address) {
        return makeAddr(string.concat("operator ", vm.toString(i)));
    }

    function _secret(uint256 i) internal pure returns (uint256) {
        return uint256(keccak256(abi.encode("secret", i))) % BLSKeys.ORDER;
    }

    function _setWeight(address operator, uint96 weight) internal {
        vm.prank(owner);
        weights.setWeight(operator, weight);
    }

    function _register(address operator, uint256 secret, uint96 weight) internal returns (bytes32 keyId) {
        _setWeight(operator, weight);
        G1 memory key = BLSKeys.publicKey(secret);
        bytes32 busKey = keccak256(abi.encode("bus", secret));
        bytes32 digest = _registrationDigest(operator, _keyId(key), busKey);
        G2 memory possession = BLSKeys.prove(secret);
        G2 memory binding = BLSKeys.sign(secret, digest);
        vm.prank(operator);
        keyId = registry.register(operator, key, busKey, possession, binding);
        secretOf[keyId] = secret;
    }

    function _keyId(G1 memory key) internal pure returns (bytes32) {
        return keccak256(abi.encode(key.xh, key.xl, key.yh, key.yl));
    }

    function _publish(uint8 ordering) internal returns (bytes32) {
        return policies.publish(_policy(ordering, "policy"), "ipfs://policy");
    }

    function _policy(uint8 ordering, string memory name) internal pure returns (PolicyPreimage memory policy) {
        policy.modules = keccak256(bytes(name));
        policy.ordering = ordering;
        policy.validFor = 300;
        policy.engineSha256 = sha256("engine");
        policy.regoFuel = 1e9;
        policy.regoMemory = 1 << 26;
    }

    function _pins(bytes32 policyId, uint8 ordering) internal pure returns (Pins memory) {
        return Pins(policyId, ordering, 6667, GRACE, MAX_AGE);
    }

    function _client(uint8 ordering) internal returns (MockClient) {
        return new MockClient(validator, _pins(_publish(ordering), ordering));
    }

    function _config(bytes32 policyId) internal view returns (PolicyClient.ClientConfig memory) {
        return PolicyClient.ClientConfig({
            validator: validator,
            policyRegistry: policies,
            owner: owner,
            policyId: policyId,
            quorumBps: 6667,
            epochGrace: GRACE,
            maxCertificateAge: MAX_AGE,
            policyDelay: 1 hours,
            minActivationDelay: 0,
            escape: address(0),
            escapeDelay: 0
        });
    }

    // -------------------------------------------------------------------------------------------------------------- hashing

    function _domain(string memory name, address verifyingContract) internal view returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256(bytes(name)),
                keccak256("1"),
                block.chainid,
                verifyingContract
            )
        );
    }

    function _digest(bytes32 domain, bytes32 structHash) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _intentHash(Intent memory intent, address client) internal view returns (bytes32) {
        bytes32 typehash = keccak256(
            "Intent(address from,address to,uint256 value,bytes data,uint256 chainId,string functionSignature,uint256 nonce,uint64 deadline)"
        );
        bytes memory encoded = abi.encode(typehash, intent.from, intent.to, intent.value, keccak256(intent.data));
        encoded = bytes.concat(
            encoded,
            abi.encode(intent.chainId, keccak256(bytes(intent.functionSignature)), intent.nonce, intent.deadline)
        );
        return _digest(_domain("Placet Intent", client), keccak256(encoded));
    }

    function _leafHash(Leaf memory leaf) internal pure returns (bytes32) {
        bytes32 typehash = keccak256(
            "Leaf(bytes32 taskId,address policyClient,bytes32 policyId,bytes32 intentHash,uint64 sequence,bool allow,bytes32 output,bytes32 evidence,uint64 expiration)"
        );
        return keccak256(abi.encodePacked(hex"00", keccak256(abi.encode(typehash, leaf))));
    }

    function _certificateDigest(Certificate memory certificate) internal view returns (bytes32) {
        bytes32 typehash = keccak256("Certificate(bytes32 root,uint32 count,uint64 epoch,uint64 timestamp)");
        return _digest(_domain("Placet", address(validator)), keccak256(abi.encode(typehash, certificate)));
    }

    function _registrationDigest(address operator, bytes32 keyId, bytes32 busKey) internal view returns (bytes32) {
        bytes32 typehash = keccak256("RegisterKey(address operator,bytes32 keyId,bytes32 busKey)");
        return _digest(
            _domain("Placet Registry", address(registry)), keccak256(abi.encode(typehash, operator, keyId, busKey))
        );
    }

    /// @dev RFC 6962 §2.1 by its recursion.
    function _root(bytes32[] memory leaves, uint256 from, uint256 to) internal pure returns (bytes32) {
        if (to - from == 1) return leaves[from];
        uint256 split = _split(to - from);
        return keccak256(abi.encodePacked(hex"01", _root(leaves, from, from + split), _root(leaves, from + split, to)));
    }

    /// @dev RFC 6962 §2.1.1 by its recursion.
    function _path(bytes32[] memory leaves, uint256 index, uint256 from, uint256 to)
        internal
        pure
        returns (bytes32[] memory path)
    {
        if (to - from == 1) return new bytes32[](0);
        uint256 split = _split(to - from);
        bool left = index < from + split;
        bytes32[] memory below =
            left ? _path(leaves, index, from, from + split) : _path(leaves, index, from + split, to);
        path = new bytes32[](below.length + 1);
        for (uint256 i = 0; i < below.length; ++i) {
            path[i] = below[i];
        }
        path[below.length] = left ? _root(leaves, from + split, to) : _root(leaves, from, from + split);
    }

    function _split(uint256 count) private pure returns (uint256 split) {
        split = 1;
        while (split * 2 < count) split *= 2;
    }

    // ------------------------------------------------------------------------------------------------------- intents, leaves

    function _intent(address from, address to, bytes memory data) internal returns (Intent memory) {
        return Intent({
            from: from,
            to: to,
            value: 0,
            data: data,
            chainId: block.chainid,
            functionSignature: "noop()",
            nonce: _nextNonce++,
            deadline: uint64(block.timestamp) + 600
        });
    }

    function _leaf(Intent memory intent, address client, bytes32 policyId) internal view returns (Leaf memory) {
        return Leaf({
            taskId: keccak256(abi.encode("task", intent.from, intent.nonce)),
            policyClient: client,
            policyId: policyId,
            intentHash: _intentHash(intent, client),
            sequence: 0,
            allow: true,
            output: 0,
            evidence: keccak256("evidence"),
            expiration: intent.deadline
        });
    }

    // ----------------------------------------------------------------------------------------------------------- attestations

    /// @dev What operators of the epoch sign, but for those whose bit is set in `missing` (in the order of operatorsAt).
    function _proof(uint64 epoch, bytes32 digest, uint256 missing) internal view returns (QuorumProof memory proof) {
        OperatorView[] memory operators = registry.operatorsAt(epoch);
        (proof.apk, proof.totalStake,,) = registry.setAt(epoch);
        uint256 absent;
        for (uint256 i = 0; i < operators.length; ++i) {
            absent += (missing >> i) & 1;
        }
        proof.nonSigners = new G1[](absent);
        uint256 secret;
        absent = 0;
        for (uint256 i = 0; i < operators.length; ++i) {
            if ((missing >> i) & 1 == 1) proof.nonSigners[absent++] = operators[i].key;
            else secret = addmod(secret, secretOf[operators[i].keyId], BLSKeys.ORDER);
        }
        proof.signature = BLSKeys.sign(secret, digest);
    }

    function _certificate(bytes32 root, uint32 count) internal view returns (Certificate memory) {
        return Certificate(root, count, registry.currentEpoch(), uint64(block.timestamp));
    }

    /// @dev An attestation of one leaf alone in its tree.
    function _attest(Leaf memory leaf, Certificate memory certificate, uint256 missing)
        internal
        view
        returns (Attestation memory attestation)
    {
        attestation.leaf = leaf;
        attestation.certificate = certificate;
        attestation.quorumProof = abi.encode(_proof(certificate.epoch, _certificateDigest(certificate), missing));
    }

    function _attest(Leaf memory leaf, uint256 missing) internal view returns (Attestation memory) {
        return _attest(leaf, _certificate(_leafHash(leaf), 1), missing);
    }

    function _attest(Leaf memory leaf) internal view returns (Attestation memory) {
        return _attest(leaf, 0);
    }

    // ---------------------------------------------------------------------------------------------------------------- surface

    /// @dev Demands that a contract's functions that change state, or are closed overrides of such, are exactly the known ones.
    function _checkSurface(string memory name, string[] memory known) internal view {
        string memory json = vm.readFile(string.concat("artifacts/", name, ".json"));
        uint256 changing;
        for (uint256 i = 0;; ++i) {
            string memory entry = string.concat(".abi[", vm.toString(i), "]");
            if (!vm.keyExistsJson(json, entry)) break;
            string memory kind = vm.parseJsonString(json, string.concat(entry, ".type"));
            assertFalse(_same(kind, "receive") || _same(kind, "fallback"), name);
            if (!_same(kind, "function")) continue;
            string memory function_ = vm.parseJsonString(json, string.concat(entry, ".name"));
            bool found;
            for (uint256 j = 0; j < known.length; ++j) {
                found = found || _same(function_, known[j]);
            }
            string memory mutability = vm.parseJsonString(json, string.concat(entry, ".stateMutability"));
            if (_same(mutability, "view") || (_same(mutability, "pure") && !found)) continue;
            assertTrue(found, function_);
            ++changing;
        }
        assertEq(changing, known.length);
    }

    function _same(string memory a, string memory b) private pure returns (bool) {
        return keccak256(bytes(a)) == keccak256(bytes(b));
    }
}
