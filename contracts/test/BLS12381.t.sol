// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Test} from "forge-std/Test.sol";
import {BLS12381} from "../src/libraries/BLS12381.sol";
import {G1, G2} from "../src/Types.sol";
import {BLSKeys} from "./support/BLSKeys.sol";

/// @dev The self-test where a test can take precompiles away.
contract SelfTester {
    function run() external view {
        BLS12381.selfTest();
    }
}

contract BLS12381Test is Test {
    bytes internal constant P =
        hex"000000000000000000000000000000001a0111ea397fe69a4b1ba7b6434bacd764774b84f38512bf6730d2a0f6b0f6241eabfffeb153ffffb9feffffffffaaab";

    function _reduced(bytes memory number) private pure returns (bytes memory copy) {
        copy = bytes.concat(number);
        uint256 position;
        assembly {
            position := add(copy, 32)
        }
        BLS12381.reduce(position);
    }

    /// @dev number^1 mod p, by the precompile.
    function _modexp(bytes memory number) private view returns (bytes memory) {
        (bool done, bytes memory result) =
            address(0x05).staticcall(abi.encodePacked(uint256(64), uint256(1), uint256(64), number, uint8(1), P));
        require(done);
        return result;
    }

    function testFuzz_reduction_is_the_remainder(uint256 high, uint256 low) public view {
        bytes memory number = abi.encode(high, low);
        assertEq(_reduced(number), _modexp(number));
    }

    function testFuzz_reduction_is_the_remainder_around_multiples_of_p(uint256 factor, int8 offset) public view {
        // factor * p + offset, for factors up to the largest that fits
        factor = bound(factor, 1, type(uint256).max >> 125);
        (uint256 pHigh, uint256 pLow) = abi.decode(P, (uint256, uint256));
        unchecked {
            uint256 low = factor * pLow;
            uint256 rest = mulmod(factor, pLow, type(uint256).max);
            uint256 high = factor * pHigh + (rest - low - (rest < low ? 1 : 0));
            uint256 moved = low + uint256(int256(offset));
            if (offset < 0 && moved > low) --high;
            if (offset > 0 && moved < low) ++high;
            bytes memory number = abi.encode(high, moved);
            assertEq(_reduced(number), _modexp(number));
        }
    }

    function test_reduction_at_the_ends() public view {
        bytes[5] memory numbers = [
            abi.encode(uint256(0), uint256(0)),
            abi.encode(type(uint256).max, type(uint256).max),
            abi.encode(type(uint256).max, uint256(0)),
            abi.encode(uint256(0), type(uint256).max),
            P
        ];
        for (uint256 i = 0; i < numbers.length; ++i) {
            assertEq(_reduced(numbers[i]), _modexp(numbers[i]));
        }
    }

    function test_self_test_passes_where_the_precompiles_are() public view {
        BLS12381.selfTest();
    }

    function test_self_test_fails_where_one_answers_wrongly() public {
        SelfTester tester = new SelfTester();
        bytes[4] memory inputs = [bytes(""), "", "", ""];
        address[4] memory precompiles = [address(0x0b), address(0x0d), address(0x0f), address(0x11)];
        for (uint256 i = 0; i < 4; ++i) {
            uint256 snapshot = vm.snapshotState();
            vm.mockCall(precompiles[i], inputs[i], "");
            vm.expectRevert(abi.encodeWithSelector(BLS12381.PrecompileFailed.selector, uint160(precompiles[i])));
            tester.run();
            vm.clearMockedCalls();
            vm.revertToState(snapshot);
        }
    }

    function testFuzz_a_point_less_itself_is_infinity(uint256 secret) public view {
        secret = bound(secret, 1, BLSKeys.ORDER - 1);
        G1 memory key = BLSKeys.publicKey(secret);
        assertTrue(BLS12381.isInfinity(BLS12381.minus(key, BLSKeys.publicKey(secret))));
        G1 memory infinity;
        BLS12381.negate(infinity);
        assertTrue(BLS12381.isInfinity(infinity));
        assertEq(abi.encode(BLS12381.add(key, infinity)), abi.encode(key));
    }

    function test_adding_what_is_not_on_the_curve_reverts() public {
        G1 memory key = BLSKeys.publicKey(7);
        key.yl = bytes32(uint256(key.yl) ^ 1);
        G1 memory other = BLSKeys.publicKey(8);
        vm.expectRevert(abi.encodeWithSelector(BLS12381.PrecompileFailed.selector, 0x0b));
        this.sum(key, other);
    }

    function sum(G1 memory a, G1 memory b) external view returns (G1 memory) {
        return BLS12381.add(a, b);
    }
}
