// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Script} from "forge-std/Script.sol";

/// @title Deploys the protocol's contracts through the canonical CREATE2 factory
/// @notice Deploys the bytecode in artifacts/, which build.mjs made, so addresses are the same whoever deploys, with forge or without.
/// Environment: PLACET_OWNER (required), PLACET_ACTIVATION_DELAY (seconds, required). Where inference is paid for, also
/// PLACET_KEY_COMMITMENT_AGE (seconds) for NodeRegistry and ReceiptLedger, and PLACET_REFUND_TOKEN and PLACET_SETTLEMENT for RefundVault.
/// What is deployed already is left as it is. Writes deployments/<chainId>.json, without what was not asked for.
contract Deploy is Script {
    /// @notice A precompile of EIP-2537 does not answer on this chain.
    error PrecompileMissing(address precompile);
    /// @notice There is no CREATE2 factory on this chain.
    error FactoryMissing(address factory);
    /// @notice The factory did not create what it should have.
    error NotDeployed(string name);

    address private constant FACTORY = 0x4e59b44847b379578588920cA78FbF26c0B4956C;

    function run() external {
        address owner = vm.envAddress("PLACET_OWNER");
        uint64 activationDelay = uint64(vm.envUint("PLACET_ACTIVATION_DELAY"));
        _checkPrecompiles();
        if (FACTORY.code.length == 0) revert FactoryMissing(FACTORY);

        vm.startBroadcast();
        address stakeSource = _deploy("OwnerWeights", abi.encode(owner));
        address operatorRegistry = _deploy("OperatorRegistry", abi.encode(stakeSource, activationDelay, owner));
        address policyRegistry = _deploy("PolicyRegistry", "");
        address validator = _deploy("AttestationValidator", abi.encode(operatorRegistry));
        string memory json = "deployment";
        if (vm.envExists("PLACET_KEY_COMMITMENT_AGE")) {
            uint64 keyCommitmentAge = uint64(vm.envUint("PLACET_KEY_COMMITMENT_AGE"));
            vm.serializeAddress(json, "nodeRegistry", _deploy("NodeRegistry", abi.encode(keyCommitmentAge)));
            vm.serializeAddress(json, "receiptLedger", _deploy("ReceiptLedger", abi.encode(owner)));
        }
        if (vm.envExists("PLACET_REFUND_TOKEN")) {
            bytes memory arguments =
                abi.encode(vm.envAddress("PLACET_REFUND_TOKEN"), vm.envAddress("PLACET_SETTLEMENT"), owner);
            vm.serializeAddress(json, "refundVault", _deploy("RefundVault", arguments));
        }
        vm.stopBroadcast();

        vm.serializeUint(json, "chainId", block.chainid);
        vm.serializeUint(json, "blockNumber", block.number);
        vm.serializeUint(json, "activationDelay", activationDelay);
        vm.serializeAddress(json, "owner", owner);
        vm.serializeAddress(json, "stakeSource", stakeSource);
        vm.serializeAddress(json, "operatorRegistry", operatorRegistry);
        vm.serializeAddress(json, "policyRegistry", policyRegistry);
        string memory text = vm.serializeAddress(json, "validator", validator);
        vm.createDir("deployments", true);
        vm.writeJson(text, string.concat("deployments/", vm.toString(block.chainid), ".json"));
    }

    /// @dev Salt: keccak256("placet.v1.<name>"), as in deploy-plan.json.
    function _deploy(string memory name, bytes memory arguments) private returns (address created) {
        bytes32 salt = keccak256(bytes(string.concat("placet.v1.", name)));
        string memory json = vm.readFile(string.concat("artifacts/", name, ".json"));
        bytes memory creationCode = bytes.concat(vm.parseJsonBytes(json, ".bytecode"), arguments);
        created = vm.computeCreate2Address(salt, keccak256(creationCode), FACTORY);
        if (created.code.length != 0) return created;
        (bool done,) = FACTORY.call(bytes.concat(salt, creationCode));
        if (!done || created.code.length == 0) revert NotDeployed(name);
    }

    /// @dev Asks the chain itself, not the machine that simulates this script: sums, products, a pairing and maps of zeros.
    function _checkPrecompiles() private {
        uint256[7] memory inputs = [uint256(256), 160, 512, 288, 384, 64, 128];
        uint256[7] memory outputs = [uint256(128), 128, 256, 256, 32, 128, 256];
        for (uint256 i = 0; i < 7; ++i) {
            address precompile = address(uint160(0x0b + i));
            string memory call = string.concat(
                '[{"to":"', vm.toString(precompile), '","data":"', vm.toString(new bytes(inputs[i])), '"},"latest"]'
            );
            try vm.rpc("eth_call", call) returns (bytes memory answer) {
                if (answer.length != outputs[i]) revert PrecompileMissing(precompile);
            } catch {
                revert PrecompileMissing(precompile);
            }
        }
    }
}
