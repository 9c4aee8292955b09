// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IPolicyRegistry} from "../src/interfaces/IPolicyRegistry.sol";
import {PolicyPreimage} from "../src/Types.sol";
import {Network} from "./support/Network.sol";

contract PolicyRegistryTest is Network {
    function setUp() public {
        _deployNetwork(0);
    }

    function test_a_policy_is_known_by_its_content() public {
        PolicyPreimage memory policy = _policy(2, "policy");
        bytes32 expected = policies.policyIdOf(policy);
        vm.expectEmit();
        emit IPolicyRegistry.PolicyPublished(expected, address(this), 2, "ipfs://one");
        assertEq(policies.publish(policy, "ipfs://one"), expected);
        assertEq(policies.orderingOf(expected), 2);
    }

    function test_publishing_again_changes_nothing() public {
        bytes32 policyId = policies.publish(_policy(1, "policy"), "ipfs://one");
        vm.prank(makeAddr("somebody"));
        assertEq(policies.publish(_policy(1, "policy"), "https://elsewhere"), policyId);
        assertEq(policies.orderingOf(policyId), 1);
    }

    function test_reverts_UnknownPolicy() public {
        vm.expectRevert(abi.encodeWithSelector(IPolicyRegistry.UnknownPolicy.selector, keccak256("none")));
        policies.orderingOf(keccak256("none"));
    }

    function test_reverts_UnknownOrdering() public {
        PolicyPreimage memory policy = _policy(3, "policy");
        vm.expectRevert(abi.encodeWithSelector(IPolicyRegistry.UnknownOrdering.selector, 3));
        policies.publish(policy, "");
    }

    function testFuzz_the_id_is_hashStruct_of_the_policy(PolicyPreimage memory policy) public view {
        bytes32 typehash = keccak256(
            "Policy(RegoModule[] modules,string entrypoint,bytes params,bytes schema,bytes32[] policyDataIds,ArgumentBinding[] bindings,GovernedCall[] calls,uint8 ordering,uint64 validFor,uint64 retryAfter,bytes inference,bytes32 engineSha256,uint64 regoFuel,uint64 regoMemory)ArgumentBinding(uint32 policyData,string name,uint8 source,string value)GovernedCall(bool self,address target,string signature,string unpack)RegoModule(string name,bytes source)"
        );
        assertEq(policies.policyIdOf(policy), keccak256(abi.encode(typehash, policy)));
    }
}
