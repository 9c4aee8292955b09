// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {GuardedWallet} from "../src/examples/GuardedWallet.sol";
import {PolicyClient} from "../src/PolicyClient.sol";
import {IPolicyClient} from "../src/interfaces/IPolicyClient.sol";
import {Intent, Leaf} from "../src/Types.sol";
import {Network} from "./support/Network.sol";

/// @dev Counts its calls.
contract Recorder {
    uint256 public calls;

    fallback() external payable {
        ++calls;
    }
}

/// @title Audit 19: the client and the validator read the same calldata
/// @notice `PolicyClient._consume` copies this call's calldata behind a longer head. Solidity accepts negative offsets inside calldata structs.
/// One that leads before the calldata's beginning would read as empty here, and 224 bytes later, in the validator, as the head: the offset of
/// the attestation is a length there, and the policy's id data.
contract AuditCalldataTest is Network {
    // what executeIntent gets: three offsets, the intent (eight words and an empty signature text), an empty sender signature, the attestation
    uint256 private constant INTENT_AT = 96;
    uint256 private constant SIGNATURE_AT = INTENT_AT + 256 + 32;
    uint256 private constant ATTESTATION_AT = SIGNATURE_AT + 32;
    // from the validator's 68th byte on, as many as its offset of the attestation, at byte 36, says
    uint256 private constant LENGTH = ATTESTATION_AT + 224;

    bytes32 private _policyId;
    GuardedWallet private _guarded;
    Recorder private _target;
    address private _alice = makeAddr("alice");

    function setUp() public {
        _deployFour();
        _policyId = _publish(0);
        _guarded = _wallet(_config(_policyId));
        _target = new Recorder();
    }

    function test_the_client_executes_no_other_data_than_the_validator_judged() public {
        Intent memory judged = _intent(_alice, address(_target), "");
        judged.functionSignature = "";
        bytes memory body = _body(judged);
        Leaf memory leaf = _leaf(judged, address(_guarded), _policyId);
        judged.data = _first(bytes.concat(_head(), body, abi.encode(leaf.taskId, leaf.policyClient)), LENGTH);
        leaf.intentHash = _intentHash(judged, address(_guarded));
        bytes memory call = bytes.concat(IPolicyClient.executeIntent.selector, body, _tail(abi.encode(_attest(leaf))));

        vm.prank(_alice);
        (bool done, bytes memory reason) = address(_guarded).call(call);
        // operators judged and signed a call with 640 bytes of data; what would be executed is the empty call
        assertEq(judged.data.length, 640);
        assertFalse(done);
        assertEq(reason, abi.encodeWithSelector(PolicyClient.IntentMalformed.selector));
        assertEq(_target.calls(), 0);
    }

    /// @dev The pins, as they lie in the validator's calldata.
    function _head() private view returns (bytes memory) {
        return abi.encode(_policyId, uint256(0), uint256(6667), uint256(GRACE), uint256(MAX_AGE));
    }

    /// @dev Everything before the attestation. The data's offset leads 188 bytes before the calldata; in the validator, to byte 36.
    function _body(Intent memory intent) private pure returns (bytes memory) {
        uint256 dataOffset = type(uint256).max - (188 + 4 + INTENT_AT) + 1;
        return bytes.concat(
            abi.encode(INTENT_AT, SIGNATURE_AT, ATTESTATION_AT),
            abi.encode(intent.from, intent.to, intent.value, dataOffset),
            abi.encode(intent.chainId, uint256(256), intent.nonce, uint256(intent.deadline)),
            abi.encode(uint256(0), uint256(0))
        );
    }

    /// @dev An encoded argument without the offset before it.
    function _tail(bytes memory encoded) private pure returns (bytes memory tail) {
        tail = new bytes(encoded.length - 32);
        for (uint256 i = 0; i < tail.length; ++i) {
            tail[i] = encoded[i + 32];
        }
    }

    function _first(bytes memory from, uint256 length) private pure returns (bytes memory some) {
        assertGe(from.length, length);
        some = new bytes(length);
        for (uint256 i = 0; i < length; ++i) {
            some[i] = from[i];
        }
    }
}
