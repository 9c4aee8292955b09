// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Test} from "forge-std/Test.sol";
import {Groth16Verifier} from "../src/Groth16Verifier.sol";

/// @title Proofs made by `placet.inference.proofs` (test/vectors/groth16.json, written by tools/zk_vectors.py), and every word of them changed
contract Groth16VerifierTest is Test {
    Groth16Verifier internal verifier;
    uint256[] internal key;
    uint256[] internal numbers;
    uint256[8] internal proof;

    function setUp() public {
        verifier = _deployed();
        string memory json = vm.readFile("test/vectors/groth16.json");
        key = vm.parseJsonUintArray(json, ".key");
        numbers = vm.parseJsonUintArray(json, ".numbers");
        uint256[] memory words = vm.parseJsonUintArray(json, ".proof");
        for (uint256 i = 0; i < 8; ++i) {
            proof[i] = words[i];
        }
    }

    function _deployed() internal returns (Groth16Verifier) {
        if (vm.envOr("PLACET_TEST_ARTIFACTS", false)) {
            return Groth16Verifier(deployCode("artifacts/Groth16Verifier.json"));
        }
        return new Groth16Verifier();
    }

    function test_AProofHolds() public view {
        assertTrue(verifier.verify(key, numbers, proof));
        assertEq(verifier.digestOf(key), keccak256(abi.encodePacked(key)));
    }

    function test_EveryNumberCounts() public {
        for (uint256 i = 0; i < numbers.length; ++i) {
            uint256 before = numbers[i];
            numbers[i] = addmod(before, 1, verifier.ORDER());
            assertFalse(verifier.verify(key, numbers, proof));
            numbers[i] = before;
        }
    }

    function test_NumbersBeyondTheOrderAreRefused() public {
        numbers[0] += verifier.ORDER();
        assertFalse(verifier.verify(key, numbers, proof));
    }

    function test_EveryWordOfTheProofCounts() public {
        for (uint256 i = 0; i < 8; ++i) {
            uint256 before = proof[i];
            proof[i] = before ^ 1;
            assertFalse(verifier.verify(key, numbers, proof));
            proof[i] = 0;
            assertFalse(verifier.verify(key, numbers, proof));
            proof[i] = type(uint256).max;
            assertFalse(verifier.verify(key, numbers, proof));
            proof[i] = before;
        }
    }

    function test_PointsAtInfinityAreRefused() public {
        uint256[8] memory genuine = proof;
        (proof[0], proof[1]) = (0, 0);
        assertFalse(verifier.verify(key, numbers, proof));
        proof = genuine;
        (proof[2], proof[3], proof[4], proof[5]) = (0, 0, 0, 0);
        assertFalse(verifier.verify(key, numbers, proof));
        proof = genuine;
        (proof[6], proof[7]) = (0, 0);
        assertFalse(verifier.verify(key, numbers, proof));
    }

    function test_AKeyOfAnotherLengthIsRefused() public {
        key.pop();
        assertFalse(verifier.verify(key, numbers, proof));
        key.pop();
        assertFalse(verifier.verify(key, numbers, proof));
        uint256[] memory none = new uint256[](0);
        assertFalse(verifier.verify(none, none, proof));
    }

    function test_CoordinatesBeyondThePrimeAreRefused() public {
        proof[0] += 21888242871839275222246405745257275088696311157297823662689037894645226208583;
        assertFalse(verifier.verify(key, numbers, proof));
    }
}
