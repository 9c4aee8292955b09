// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {G1, G2} from "../Types.sol";

/// @title BLS signatures over BLS12-381 through the precompiles of EIP-2537
/// @notice Minimal public key size: keys in G1, signatures in G2, proof-of-possession scheme (draft-irtf-cfrg-bls-signature).
/// @dev Every precompile call is bounded in gas, because a precompile that fails burns all it was given, and checks the size of
/// what came back, because calling an address without a precompile succeeds with nothing.
library BLS12381 {
    /// @notice A precompile is missing on this chain or refused its input (not on the curve, not canonical).
    /// @param precompile its address
    error PrecompileFailed(uint256 precompile);

    /// @dev The field's modulus p, as two words.
    uint256 private constant P_HI = 0x1a0111ea397fe69a4b1ba7b6434bacd7;
    uint256 private constant P_LO = 0x64774b84f38512bf6730d2a0f6b0f6241eabfffeb153ffffb9feffffffffaaab;

    /// @dev (p - 1) / 2: above it a y coordinate is "the larger one" of the compressed form.
    uint256 private constant HALF_P_HI = 0x0d0088f51cbff34d258dd3db21a5d66b;
    uint256 private constant HALF_P_LO = 0xb23ba5c279c2895fb39869507b587b120f55ffff58a9ffffdcff7fffffffd555;

    /// @dev The negated generator of G1.
    bytes32 private constant NEG_G1_XH = 0x0000000000000000000000000000000017f1d3a73197d7942695638c4fa9ac0f;
    bytes32 private constant NEG_G1_XL = 0xc3688c4f9774b905a14e3a3f171bac586c55e83ff97a1aeffb3af00adb22c6bb;
    bytes32 private constant NEG_G1_YH = 0x00000000000000000000000000000000114d1d6855d545a8aa7d76c8cf2e21f2;
    bytes32 private constant NEG_G1_YL = 0x67816aef1db507c96655b9d5caac42364e6f38ba0ecb751bad54dcd6b939c2ca;

    uint256 private constant SHA256 = 0x02;
    uint256 private constant MODEXP = 0x05;
    uint256 private constant G1_ADD = 0x0b;
    uint256 private constant G2_ADD = 0x0d;
    uint256 private constant PAIRING = 0x0f;
    uint256 private constant MAP_FP2_TO_G2 = 0x11;

    /// @dev About twice today's prices (375, 600, 102,900 for two pairs, 23,800, 500): room for a repricing, none for burning a block.
    uint256 private constant ADD_GAS = 2_000;
    uint256 private constant PAIRING_GAS = 220_000;
    uint256 private constant MAP_GAS = 50_000;
    uint256 private constant MODEXP_GAS = 2_000;

    /// @dev Both domain separation tags are 43 bytes long and differ in their first word only.
    uint256 private constant DST_LENGTH = 43;
    bytes32 private constant SIGNATURE_DST_HEAD = "BLS_SIG_BLS12381G2_XMD:SHA-256_S";
    bytes32 private constant POSSESSION_DST_HEAD = "BLS_POP_BLS12381G2_XMD:SHA-256_S";
    bytes32 private constant DST_TAIL = "SWU_RO_POP_";

    /// @dev keccak of hashToG2(32 zero bytes) under the signature tag: the known answer of the self-test.
    bytes32 private constant HASH_OF_ZERO = 0xe8ed1eeb1cb5050c1c752cd4f384e6f9cfd264c50584d22d6129f8b1a3683ee0;

    /// @notice Whether `point` is the point at infinity.
    function isInfinity(G1 memory point) internal pure returns (bool) {
        return (point.xh | point.xl | point.yh | point.yl) == 0;
    }

    /// @notice The key's name: keccak over its whole 128-byte encoding, so that P and -P are two names.
    function keyId(G1 memory key) internal pure returns (bytes32 id) {
        assembly ("memory-safe") {
            id := keccak256(key, 128)
        }
    }

    /// @notice `a + b`. Checks that both are on the curve, not that they are in the subgroup.
    function add(G1 memory a, G1 memory b) internal view returns (G1 memory sum) {
        bool done;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mcopy(free, a, 128)
            mcopy(add(free, 128), b, 128)
            done := staticcall(ADD_GAS, G1_ADD, free, 256, sum, 128)
            done := and(done, eq(returndatasize(), 128))
        }
        if (!done) revert PrecompileFailed(G1_ADD);
    }

    /// @notice `total += key`, in place, for a key in calldata.
    /// @return id the key's name, as {keyId}
    function accumulate(G1 memory total, G1 calldata key) internal view returns (bytes32 id) {
        bool done;
        assembly ("memory-safe") {
            let free := mload(0x40)
            let added := add(free, 128)
            mcopy(free, total, 128)
            calldatacopy(added, key, 128)
            id := keccak256(added, 128)
            done := staticcall(ADD_GAS, G1_ADD, free, 256, total, 128)
            done := and(done, eq(returndatasize(), 128))
        }
        if (!done) revert PrecompileFailed(G1_ADD);
    }

    /// @notice `a - b`, on the terms of {add}.
    function minus(G1 memory a, G1 memory b) internal view returns (G1 memory) {
        negate(b);
        return add(a, b);
    }

    /// @notice `point = -point`, in place, for a point whose coordinates are canonical.
    function negate(G1 memory point) internal pure {
        if (isInfinity(point)) return;
        unchecked {
            uint256 low = uint256(point.yl);
            point.yl = bytes32(P_LO - low);
            point.yh = bytes32(P_HI - uint256(point.yh) - (low > P_LO ? 1 : 0));
        }
    }

    /// @notice The 48-byte compressed form of a key, as the BLS standard's proof of possession signs it.
    function compress(G1 memory point) internal pure returns (bytes memory) {
        uint256 flags = 0x80;
        if (isInfinity(point)) {
            flags = 0xc0;
        } else {
            uint256 high = uint256(point.yh);
            if (high > HALF_P_HI || (high == HALF_P_HI && uint256(point.yl) > HALF_P_LO)) flags = 0xa0;
        }
        return abi.encodePacked(bytes16(uint128(uint256(point.xh) | (flags << 120))), point.xl);
    }

    /// @notice The point of G2 that a signature on `digest` is a multiple of.
    function hashDigest(bytes32 digest) internal view returns (G2 memory) {
        return _hashToG2(abi.encodePacked(digest), SIGNATURE_DST_HEAD);
    }

    /// @notice The point of G2 that a proof of possession of `key` is a multiple of.
    function hashPossession(G1 memory key) internal view returns (G2 memory) {
        return _hashToG2(compress(key), POSSESSION_DST_HEAD);
    }

    /// @notice Whether `signature` is one by `key` on the message that hashes to `message`: e(key, message) = e(G, signature).
    /// @dev The precompile checks that every point is canonical, on its curve and in its subgroup; what it refuses is not valid.
    /// Infinity passes the equation, so callers refuse an infinite key.
    function isSignedBy(G1 memory key, G2 memory message, G2 calldata signature) internal view returns (bool) {
        uint256 input;
        assembly ("memory-safe") {
            input := mload(0x40)
            mcopy(input, key, 128)
            mcopy(add(input, 128), message, 256)
            calldatacopy(add(input, 512), signature, 256)
        }
        return _pairsToOne(input);
    }

    /// @notice Reverts unless the precompiles this library uses exist and compute what they should.
    function selfTest() internal view {
        G2 memory hashed = hashDigest(0);
        bytes32 answer;
        assembly ("memory-safe") {
            answer := keccak256(hashed, 256)
        }
        if (answer != HASH_OF_ZERO) revert PrecompileFailed(MAP_FP2_TO_G2);
        G1 memory negatedGenerator = G1(NEG_G1_XH, NEG_G1_XL, NEG_G1_YH, NEG_G1_YL);
        G1 memory generator = G1(NEG_G1_XH, NEG_G1_XL, NEG_G1_YH, NEG_G1_YL);
        negate(generator);
        if (!isInfinity(add(generator, negatedGenerator))) revert PrecompileFailed(G1_ADD);
        // under the secret key 1, the hash is its own signature
        if (!_selfSigned(generator, hashed) || _selfSigned(negatedGenerator, hashed)) revert PrecompileFailed(PAIRING);
    }

    function _selfSigned(G1 memory key, G2 memory hashed) private view returns (bool) {
        uint256 input;
        assembly ("memory-safe") {
            input := mload(0x40)
            mcopy(input, key, 128)
            mcopy(add(input, 128), hashed, 256)
            mcopy(add(input, 512), hashed, 256)
        }
        return _pairsToOne(input);
    }

    /// @dev e(first, second) * e(-G, fourth) = 1 for the points at `input`, whose third this fills in.
    function _pairsToOne(uint256 input) private view returns (bool one) {
        assembly ("memory-safe") {
            mstore(add(input, 384), NEG_G1_XH)
            mstore(add(input, 416), NEG_G1_XL)
            mstore(add(input, 448), NEG_G1_YH)
            mstore(add(input, 480), NEG_G1_YL)
            one := staticcall(PAIRING_GAS, PAIRING, input, 768, 0, 32)
            one := and(and(one, eq(returndatasize(), 32)), eq(mload(0), 1))
        }
    }

    /// @dev RFC 9380 hash_to_curve for BLS12381G2_XMD:SHA-256_SSWU_RO_: expand the message to 256 bytes, reduce them to two elements of
    /// Fp2, map each to G2 and add. The mapping precompile clears the cofactor, which is linear, so adding afterwards is right. Messages are short here: at most 145 bytes.
    function _hashToG2(bytes memory message, bytes32 dstHead) private view returns (G2 memory point) {
        uint256 failed;
        assembly ("memory-safe") {
            let length := mload(message)
            let free := mload(0x40)

            // expand_message_xmd: b_0 = H(64 zero bytes | message | 256 as two bytes | 0 | DST | length of DST)
            mstore(free, 0)
            mstore(add(free, 32), 0)
            mcopy(add(free, 64), add(message, 32), length)
            let cursor := add(add(free, 64), length)
            mstore(cursor, shl(232, 0x010000))
            mstore(add(cursor, 3), dstHead)
            mstore(add(cursor, 35), DST_TAIL)
            mstore8(add(cursor, 46), DST_LENGTH)
            let done := staticcall(gas(), SHA256, free, add(length, 111), 0, 32)
            let b0 := mload(0)

            // b_i = H((b_0 xor b_(i-1)) | i | DST | length of DST), b_1 = H(b_0 | 1 | …), written to `uniform` one after the other
            let uniform := add(free, 256)
            let block_ := add(free, 512)
            mstore(add(block_, 33), dstHead)
            mstore(add(block_, 65), DST_TAIL)
            mstore8(add(block_, 76), DST_LENGTH)
            let previous := 0
            for { let i := 1 } lt(i, 9) { i := add(i, 1) } {
                mstore(block_, xor(b0, previous))
                mstore8(add(block_, 32), i)
                done := and(staticcall(gas(), SHA256, block_, 77, uniform, 32), done)
                previous := mload(uniform)
                uniform := add(uniform, 32)
            }
            if iszero(done) { failed := SHA256 }

            // four numbers of 64 bytes, each reduced as number^1 mod p: lengths 64, 1, 64 | base | 1 | p
            uniform := add(free, 256)
            mstore(block_, 64)
            mstore(add(block_, 32), 1)
            mstore(add(block_, 64), 64)
            mstore8(add(block_, 160), 1)
            mstore(add(block_, 161), P_HI)
            mstore(add(block_, 193), P_LO)
            for { let i := 0 } lt(i, 256) { i := add(i, 64) } {
                mcopy(add(block_, 96), add(uniform, i), 64)
                done := and(staticcall(MODEXP_GAS, MODEXP, block_, 225, add(uniform, i), 64), done)
                done := and(done, eq(returndatasize(), 64))
            }
            if iszero(done) { failed := MODEXP }

            // two maps, one addition; `and` evaluates its second argument first
            done := and(eq(returndatasize(), 256), staticcall(MAP_GAS, MAP_FP2_TO_G2, uniform, 128, block_, 256))
            done := and(
                and(
                    eq(returndatasize(), 256),
                    staticcall(MAP_GAS, MAP_FP2_TO_G2, add(uniform, 128), 128, add(block_, 256), 256)
                ),
                done
            )
            if iszero(done) { failed := MAP_FP2_TO_G2 }
            if iszero(and(eq(returndatasize(), 256), staticcall(ADD_GAS, G2_ADD, block_, 512, point, 256))) {
                failed := G2_ADD
            }
        }
        if (failed != 0) revert PrecompileFailed(failed);
    }
}
