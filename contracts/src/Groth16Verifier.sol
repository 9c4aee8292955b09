// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title Proofs of model outputs: Groth16 over BN254, through the precompiles of EIP-196 and EIP-197
/// @notice Stateless, one for all models: who uses it pins the digest of a model's verifying key (`digestOf`), which is worth what the
/// party that made it is worth (docs/reference/zkml.md). Numbers are field elements: negative ones are ORDER minus their size, and a
/// caller checks for itself that inputs are the ones it means and within the bound that the proof system states.
/// @dev A proof can be changed into another one for the same numbers by anybody, so its bytes are no identity.
contract Groth16Verifier {
    /// @notice r of BN254; public numbers are below it.
    uint256 public constant ORDER = 21888242871839275222246405745257275088548364400416034343698204186575808495617;
    uint256 private constant PRIME = 21888242871839275222246405745257275088696311157297823662689037894645226208583;

    /// @dev A precompile that is given what is no point takes all the gas it may have. Today 181,000, and 6,000 at most, are needed.
    uint256 private constant PAIRING_GAS = 400_000;
    uint256 private constant POINT_GAS = 20_000;

    /// @notice A key is alpha (2 words), beta, gamma, delta (4 words each), then a point (2 words) for 1 and for each public number.
    uint256 private constant FIXED_WORDS = 14;

    /// @notice The name of a verifying key.
    function digestOf(uint256[] calldata key) external pure returns (bytes32) {
        return keccak256(abi.encodePacked(key));
    }

    /// @notice Whether `proof` shows that the numbers satisfy the circuit of `key`. False for anything malformed, and when gas runs short: false
    /// is no ground to punish anybody.
    /// @param key as above; of points of G2 the imaginary part stands first
    /// @param numbers inputs, then outputs
    /// @param proof A (2 words), B (4), C (2)
    function verify(uint256[] calldata key, uint256[] calldata numbers, uint256[8] calldata proof)
        external
        view
        returns (bool)
    {
        if (key.length != FIXED_WORDS + 2 * (numbers.length + 1)) return false;
        // The precompiles take the point at infinity, with which a proof needs no witness.
        if ((proof[0] | proof[1]) == 0 || (proof[6] | proof[7]) == 0) return false;
        if ((proof[2] | proof[3] | proof[4] | proof[5]) == 0) return false;
        if (proof[1] >= PRIME) return false;
        (bool ok, uint256 x, uint256 y) = _sum(key[FIXED_WORDS:], numbers);
        if (!ok) return false;
        uint256[24] memory input;
        // e(-A, B) · e(alpha, beta) · e(sum, gamma) · e(C, delta) = 1
        input[0] = proof[0];
        input[1] = (PRIME - proof[1]) % PRIME;
        for (uint256 i = 0; i < 4; ++i) {
            input[2 + i] = proof[2 + i];
            input[8 + i] = key[2 + i];
            input[14 + i] = key[6 + i];
            input[20 + i] = key[10 + i];
        }
        (input[6], input[7]) = (key[0], key[1]);
        (input[12], input[13]) = (x, y);
        (input[18], input[19]) = (proof[6], proof[7]);
        uint256[1] memory output;
        assembly ("memory-safe") {
            ok := staticcall(PAIRING_GAS, 0x08, input, 0x300, output, 0x20)
        }
        return ok && output[0] == 1;
    }

    /// @dev points[0] + Σ numbers[i] · points[i + 1]
    function _sum(uint256[] calldata points, uint256[] calldata numbers)
        private
        view
        returns (bool ok, uint256 x, uint256 y)
    {
        uint256[4] memory scratch;
        (scratch[0], scratch[1]) = (points[0], points[1]);
        ok = true;
        for (uint256 i = 0; i < numbers.length; ++i) {
            uint256 scalar = numbers[i];
            if (scalar >= ORDER) return (false, 0, 0);
            uint256 px = points[2 * i + 2];
            uint256 py = points[2 * i + 3];
            assembly ("memory-safe") {
                let product := mload(0x40)
                mstore(product, px)
                mstore(add(product, 0x20), py)
                mstore(add(product, 0x40), scalar)
                ok := and(ok, staticcall(POINT_GAS, 0x07, product, 0x60, add(scratch, 0x40), 0x40))
                ok := and(ok, staticcall(POINT_GAS, 0x06, scratch, 0x80, scratch, 0x40))
            }
            if (!ok) return (false, 0, 0);
        }
        return (ok, scratch[0], scratch[1]);
    }
}
