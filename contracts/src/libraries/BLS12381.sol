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
    uint256 private constant G1_ADD = 0x0b;
    uint256 private constant G2_ADD = 0x0d;
    uint256 private constant PAIRING = 0x0f;
    uint256 private constant MAP_FP2_TO_G2 = 0x11;

    /// @dev About twice today's prices (375 and 600, 102,900 for two pairs, 23,800): room for a repricing, none for burning a block.
    uint256 private constant ADD_GAS = 2_000;
    uint256 private constant PAIRING_GAS = 220_000;
    uint256 private constant MAP_GAS = 50_000;

    /// @dev Both domain separation tags are 43 bytes long and differ in their first word only.
    uint256 private constant DST_LENGTH = 43;
    bytes32 private constant SIGNATURE_DST_HEAD = "BLS_SIG_BLS12381G2_XMD:SHA-256_S";
    bytes32 private constant POSSESSION_DST_HEAD = "BLS_POP_BLS12381G2_XMD:SHA-256_S";
    bytes32 private constant DST_TAIL = "SWU_RO_POP_";

    /// @dev A digest, and keccak of the point it hashes to: the known answer of the self-test.
    bytes32 private constant KNOWN_DIGEST = 0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f;
    bytes32 private constant KNOWN_POINT = 0x0d620f58fc9aa52c84ed262cdc35a2551866c7a5b3c25e558342a90504f3d2d4;

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

    /// @notice A copy of `point` that keys can be added to with {accumulate}: it has room for one more point behind it.
    function accumulator(G1 calldata point) internal pure returns (G1 memory copy) {
        assembly ("memory-safe") {
            copy := mload(0x40)
            mstore(0x40, add(copy, 256))
            calldatacopy(copy, point, 128)
        }
    }

    /// @notice `total += key`, in place, for a `total` made by {accumulator}.
    /// @return id the key's name, as {keyId}
    function accumulate(G1 memory total, G1 calldata key) internal view returns (bytes32 id) {
        bool done;
        assembly ("memory-safe") {
            let room := add(total, 128)
            calldatacopy(room, key, 128)
            id := keccak256(room, 128)
            done := and(eq(returndatasize(), 128), staticcall(ADD_GAS, G1_ADD, total, 256, total, 128))
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
        assembly ("memory-safe") {
            let high := mload(add(point, 64))
            let low := mload(add(point, 96))
            // infinity, the only point in the subgroup whose y is 0, is its own negative
            if or(high, low) {
                mstore(add(point, 64), sub(sub(P_HI, high), gt(low, P_LO)))
                mstore(add(point, 96), sub(P_LO, low))
            }
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
    function hashDigest(bytes32 digest) internal view returns (G2 memory point) {
        uint256 input;
        assembly ("memory-safe") {
            input := mload(0x40)
            mstore(add(input, 64), digest)
        }
        _hashToG2(input, 32, SIGNATURE_DST_HEAD, point);
    }

    /// @notice The point of G2 that a proof of possession of `key` is a multiple of.
    function hashPossession(G1 memory key) internal view returns (G2 memory point) {
        bytes memory message = compress(key);
        uint256 input;
        assembly ("memory-safe") {
            input := mload(0x40)
            mcopy(add(input, 64), add(message, 32), 48)
        }
        _hashToG2(input, 48, POSSESSION_DST_HEAD, point);
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
        G2 memory hashed = hashDigest(KNOWN_DIGEST);
        bytes32 answer;
        assembly ("memory-safe") {
            answer := keccak256(hashed, 256)
        }
        if (answer != KNOWN_POINT) revert PrecompileFailed(MAP_FP2_TO_G2);
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

    /// @dev Reduces the 64 bytes at `position` in memory modulo p, without the precompile for it, whose least price is far above its worth
    /// here. A step takes q * p away, where q is the number's high word divided by one more than p's: never more than the quotient, and
    /// less by so little that the first step leaves less than 100 p and the second less than 2 p.
    function reduce(uint256 position) internal pure {
        assembly ("memory-safe") {
            function lessen(high, low) -> high_, low_ {
                let q := div(high, add(P_HI, 1))
                let productLow := mul(q, P_LO)
                let rest := mulmod(q, P_LO, not(0))
                let productHigh := add(mul(q, P_HI), sub(sub(rest, productLow), lt(rest, productLow)))
                high_ := sub(sub(high, productHigh), lt(low, productLow))
                low_ := sub(low, productLow)
            }

            let high, low := lessen(mload(position), mload(add(position, 32)))
            high, low := lessen(high, low)
            if or(gt(high, P_HI), and(eq(high, P_HI), iszero(lt(low, P_LO)))) {
                high := sub(sub(high, P_HI), lt(low, P_LO))
                low := sub(low, P_LO)
            }
            mstore(position, high)
            mstore(add(position, 32), low)
        }
    }

    /// @dev RFC 9380 hash_to_curve for BLS12381G2_XMD:SHA-256_SSWU_RO_: expand the message to 256 bytes, reduce them to two elements of
    /// Fp2, map each to G2 and add.
    /// @param input free memory, in which the message lies 64 bytes further on
    /// @param length of the message in bytes, at most 145
    /// @param dstHead first word of the tag
    /// @param point where the result goes
    function _hashToG2(uint256 input, uint256 length, bytes32 dstHead, G2 memory point) private view {
        unchecked {
            uint256 uniform = input + 256;
            uint256 work = input + 512;
            _expand(input, length, dstHead, uniform, work);
            reduce(uniform);
            reduce(uniform + 64);
            reduce(uniform + 128);
            reduce(uniform + 192);
            _mapAndAdd(uniform, work, point);
        }
    }

    /// @dev expand_message_xmd to 256 bytes at `uniform`; `work` is memory to hash in.
    function _expand(uint256 input, uint256 length, bytes32 dstHead, uint256 uniform, uint256 work) private view {
        bool done;
        assembly ("memory-safe") {
            // b_0 = H(64 zero bytes | message | 256 as two bytes | 0 | DST | length of DST)
            mstore(input, 0)
            mstore(add(input, 32), 0)
            let end := add(add(input, 64), length)
            mstore(end, shl(232, 0x010000))
            mstore(add(end, 3), dstHead)
            mstore(add(end, 35), DST_TAIL)
            mstore8(add(end, 46), DST_LENGTH)
            done := staticcall(gas(), SHA256, input, add(length, 111), 0, 32)

            // b_i = H((b_0 xor b_(i-1)) | i | DST | length of DST), where b_1 takes nothing in place of b_(i-1)
            function next(b0, previous, i, work_, to) -> done_ {
                mstore(work_, xor(b0, previous))
                mstore8(add(work_, 32), i)
                done_ := staticcall(gas(), SHA256, work_, 77, to, 32)
            }
            mstore(add(work, 33), dstHead)
            mstore(add(work, 65), DST_TAIL)
            mstore8(add(work, 76), DST_LENGTH)
            let b0 := mload(0)
            done := and(done, next(b0, 0, 1, work, uniform))
            done := and(done, next(b0, mload(uniform), 2, work, add(uniform, 32)))
            done := and(done, next(b0, mload(add(uniform, 32)), 3, work, add(uniform, 64)))
            done := and(done, next(b0, mload(add(uniform, 64)), 4, work, add(uniform, 96)))
            done := and(done, next(b0, mload(add(uniform, 96)), 5, work, add(uniform, 128)))
            done := and(done, next(b0, mload(add(uniform, 128)), 6, work, add(uniform, 160)))
            done := and(done, next(b0, mload(add(uniform, 160)), 7, work, add(uniform, 192)))
            done := and(done, next(b0, mload(add(uniform, 192)), 8, work, add(uniform, 224)))
        }
        if (!done) revert PrecompileFailed(SHA256);
    }

    /// @dev Maps the two elements of Fp2 at `elements` to G2 and adds. The precompile clears the cofactor, which is linear, so adding
    /// afterwards is right.
    function _mapAndAdd(uint256 elements, uint256 work, G2 memory point) private view {
        bool mapped;
        bool added;
        assembly ("memory-safe") {
            // `and` evaluates its second argument first
            mapped := and(eq(returndatasize(), 256), staticcall(MAP_GAS, MAP_FP2_TO_G2, elements, 128, work, 256))
            let second := staticcall(MAP_GAS, MAP_FP2_TO_G2, add(elements, 128), 128, add(work, 256), 256)
            mapped := and(mapped, and(second, eq(returndatasize(), 256)))
            added := and(eq(returndatasize(), 256), staticcall(ADD_GAS, G2_ADD, work, 512, point, 256))
        }
        if (!mapped) revert PrecompileFailed(MAP_FP2_TO_G2);
        if (!added) revert PrecompileFailed(G2_ADD);
    }
}
