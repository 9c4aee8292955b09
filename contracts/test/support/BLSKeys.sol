// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {BLS12381} from "../../src/libraries/BLS12381.sol";
import {G1, G2} from "../../src/Types.sol";

/// @title Test keys that sign in Solidity, through the multiplication precompiles
library BLSKeys {
    uint256 internal constant ORDER = 0x73eda753299d7d483339d80809a1d80553bda402fffe5bfeffffffff00000001;

    function generator() internal pure returns (G1 memory) {
        return G1(
            0x0000000000000000000000000000000017f1d3a73197d7942695638c4fa9ac0f,
            0xc3688c4f9774b905a14e3a3f171bac586c55e83ff97a1aeffb3af00adb22c6bb,
            0x0000000000000000000000000000000008b3f481e3aaa0f1a09e30ed741d8ae4,
            0xfcf5e095d5d00af600db18cb2c04b3edd03cc744a2888ae40caa232946c5e7e1
        );
    }

    function publicKey(uint256 secret) internal view returns (G1 memory) {
        return multiply(generator(), secret);
    }

    function multiply(G1 memory point, uint256 scalar) internal view returns (G1 memory product) {
        (bool done, bytes memory out) = address(0x0c).staticcall(abi.encode(point, scalar));
        require(done && out.length == 128, "G1MSM");
        product = abi.decode(out, (G1));
    }

    function multiply(G2 memory point, uint256 scalar) internal view returns (G2 memory product) {
        (bool done, bytes memory out) = address(0x0e).staticcall(abi.encode(point, scalar));
        require(done && out.length == 256, "G2MSM");
        product = abi.decode(out, (G2));
    }

    function add(G2 memory a, G2 memory b) internal view returns (G2 memory sum) {
        (bool done, bytes memory out) = address(0x0d).staticcall(abi.encode(a, b));
        require(done && out.length == 256, "G2ADD");
        sum = abi.decode(out, (G2));
    }

    /// @dev A signature by the sum of the secrets is the sum of the signatures.
    function sign(uint256 secret, bytes32 digest) internal view returns (G2 memory) {
        return multiply(BLS12381.hashDigest(digest), secret);
    }

    function prove(uint256 secret) internal view returns (G2 memory) {
        return multiply(BLS12381.hashPossession(publicKey(secret)), secret);
    }

    function addSecrets(uint256 a, uint256 b) internal pure returns (uint256) {
        return addmod(a, b, ORDER);
    }
}
