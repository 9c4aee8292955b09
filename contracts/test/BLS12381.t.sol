// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Test} from "forge-std/Test.sol";
import {BLS12381} from "../src/libraries/BLS12381.sol";

contract BLS12381Test is Test {
    function test_self_test_passes_where_the_precompiles_are() public view {
        BLS12381.selfTest();
    }
}
