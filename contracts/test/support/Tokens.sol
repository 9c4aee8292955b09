// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {TestToken} from "../../src/examples/TestToken.sol";

/// @title Takes a tenth of every transfer from the receiver
contract FeeToken is TestToken("Fee", "FEE", 6) {
    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (from != address(0) && to != address(0)) super._update(to, address(0), value / 10);
    }
}

/// @title Takes one unit more from the sender than was asked for
contract GreedyToken is TestToken("Greedy", "GRD", 6) {
    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (from != address(0) && to != address(0)) super._update(from, address(0), 1);
    }
}

/// @title Says true and moves nothing
contract IdleToken is TestToken("Idle", "IDL", 6) {
    function transfer(address, uint256) public pure override returns (bool) {
        return true;
    }
}

/// @title Says false and moves nothing
contract FalseToken is TestToken("False", "FLS", 6) {
    function transfer(address, uint256) public pure override returns (bool) {
        return false;
    }
}

/// @title Answers a transfer with nothing, as the oldest tokens do
contract SilentToken {
    mapping(address => uint256) public balanceOf;

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function transfer(address to, uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
    }
}

interface IReceiver {
    function onToken() external;
}

/// @title Calls the receiver before it moves anything, and again afterwards
contract HookToken is TestToken("Hook", "HOK", 6) {
    function _update(address from, address to, uint256 value) internal override {
        bool calls = from != address(0) && to.code.length != 0;
        if (calls) IReceiver(to).onToken();
        super._update(from, to, value);
        if (calls) IReceiver(to).onToken();
    }
}
