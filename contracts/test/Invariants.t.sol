// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {GuardedVault} from "../src/examples/GuardedVault.sol";
import {TestToken} from "../src/examples/TestToken.sol";
import {BLS12381} from "../src/libraries/BLS12381.sol";
import {OperatorRegistry} from "../src/OperatorRegistry.sol";
import {Attestation, Certificate, G1, Intent, Leaf, OperatorView} from "../src/Types.sol";
import {MockClient, Network} from "./support/Network.sol";

/// @dev Does what operators, owner, clients, senders and strangers do, in any order, and keeps count of what must not happen.
contract Handler is Network {
    MockClient[3] internal clients;
    GuardedVault public vault;
    TestToken public token;
    address[3] internal senders = [makeAddr("alice"), makeAddr("bob"), makeAddr("carol")];

    mapping(address client => mapping(address from => mapping(uint256 nonce => uint256 times))) internal spent;
    uint256 public doubleSpends;
    uint256 public executed;

    Intent[] internal intents;
    Attestation[] internal attestations;
    address[] internal attestedFor;

    bytes32[] internal certificates;
    mapping(bytes32 digest => uint256 highest) public highestSigned;
    uint256 public deposited;
    uint256 public withdrawn;
    mapping(uint64 epoch => uint256 sum) public stakeWhenOpened;
    uint256 internal nextOperator;

    constructor() {
        _deployFour();
        nextOperator = 4;
        for (uint8 ordering = 0; ordering < 3; ++ordering) {
            clients[ordering] = _client(ordering);
        }
        token = new TestToken("Asset", "AST", 18);
        vault = _vault(token, _config(_publish(1)));
        _noteEpoch();
    }

    function _noteEpoch() private {
        uint64 epoch = registry.currentEpoch();
        if (stakeWhenOpened[epoch] == 0) stakeWhenOpened[epoch] = sumAt(epoch);
    }

    function sumAt(uint64 epoch) public view returns (uint256 sum) {
        OperatorView[] memory operators = registry.operatorsAt(epoch);
        for (uint256 i = 0; i < operators.length; ++i) {
            sum += operators[i].stake;
        }
    }

    function keySumAt(uint64 epoch) external view returns (G1 memory sum) {
        OperatorView[] memory operators = registry.operatorsAt(epoch);
        for (uint256 i = 0; i < operators.length; ++i) {
            sum = BLS12381.add(sum, operators[i].key);
        }
    }

    function registryOf() external view returns (address) {
        return address(registry);
    }

    function certificateCount() external view returns (uint256) {
        return certificates.length;
    }

    function certificateAt(uint256 i) external view returns (uint256 highest, uint96 signedStake) {
        (signedStake,,) = validator.remembered(certificates[i]);
        return (highestSigned[certificates[i]], signedStake);
    }

    // ------------------------------------------------------------------------------------------------------ the operator set

    function join(uint96 weight) external {
        if (registry.operatorsAt(registry.currentEpoch()).length > 8) return;
        uint256 i = nextOperator++;
        _register(_operator(i), _secret(i), uint96(bound(weight, 1, 500)));
    }

    function leave(uint256 which) external {
        OperatorView[] memory operators = registry.operatorsAt(registry.currentEpoch());
        if (operators.length < 3) return;
        vm.prank(owner);
        registry.deregister(operators[which % operators.length].keyId);
    }

    function restake(uint256 which, uint96 weight) external {
        OperatorView[] memory operators = registry.operatorsAt(registry.currentEpoch());
        if (operators.length == 0) return;
        OperatorView memory chosen = operators[which % operators.length];
        _setWeight(chosen.operator, uint96(bound(weight, 0, 500)));
        registry.queueRestake(chosen.keyId);
    }

    function eject(uint256 which) external {
        OperatorView[] memory operators = registry.operatorsAt(registry.currentEpoch());
        if (operators.length < 3) return;
        bytes32[] memory ids = new bytes32[](1);
        ids[0] = operators[which % operators.length].keyId;
        vm.prank(owner);
        registry.eject(ids);
        _noteEpoch();
    }

    function activateLater() external {
        skip(DELAY);
        try registry.activate() {} catch {}
        _noteEpoch();
    }

    // ----------------------------------------------------------------------------------------------------- asking and executing

    function execute(uint256 client, uint256 sender, uint256 nonce, uint256 missing, bool remember) external {
        MockClient chosen = clients[client % 3];
        address from = senders[sender % 3];
        Intent memory intent = _intent(from, address(0xdead), "");
        intent.nonce = nonce % 4;
        Leaf memory leaf = _leaf(intent, address(chosen), chosen.placetPins().policyId);
        leaf.sequence = validator.sequenceOf(address(chosen), from, uint8(client % 3));
        Attestation memory attestation = _attestBy(leaf, missing);
        attestation.remember = remember;
        _keep(intent, attestation, address(chosen));
        _try(attestations.length - 1);
    }

    function executeAgain(uint256 which) external {
        if (attestations.length != 0) _try(which % attestations.length);
    }

    function record(uint256 missing) external {
        Certificate memory certificate = _certificate(keccak256(abi.encode(missing % 3)), 5);
        certificate.timestamp = START;
        bytes32 digest = _certificateDigest(certificate);
        uint256 mask = _mask(missing);
        validator.record(certificate, _proof(certificate.epoch, digest, mask));
        _noteCertificate(digest);
    }

    function _mask(uint256 missing) private view returns (uint256) {
        uint256 count = registry.operatorsAt(registry.currentEpoch()).length;
        uint256 all = (1 << count) - 1;
        missing &= all;
        return missing == all ? 0 : missing;
    }

    function _attestBy(Leaf memory leaf, uint256 missing) private view returns (Attestation memory) {
        return _attest(leaf, _mask(missing));
    }

    function _keep(Intent memory intent, Attestation memory attestation, address client) private {
        intents.push(intent);
        attestations.push(attestation);
        attestedFor.push(client);
    }

    function _try(uint256 i) private {
        Intent memory intent = intents[i];
        try MockClient(attestedFor[i]).consume(intent, attestations[i]) {
            ++executed;
            if (++spent[attestedFor[i]][intent.from][intent.nonce] > 1) ++doubleSpends;
        } catch {}
        _noteCertificate(_certificateDigest(attestations[i].certificate));
    }

    function _noteCertificate(bytes32 digest) private {
        (uint96 signedStake,,) = validator.remembered(digest);
        if (highestSigned[digest] == 0 && signedStake != 0) certificates.push(digest);
        if (signedStake > highestSigned[digest]) highestSigned[digest] = signedStake;
    }

    // ------------------------------------------------------------------------------------------------------------------ the vault

    function deposit(uint256 sender, uint256 assets) external {
        address from = senders[sender % 3];
        assets = bound(assets, 1, 1e18);
        token.mint(from, assets);
        vm.startPrank(from);
        token.approve(address(vault), assets);
        vault.deposit(assets, from);
        vm.stopPrank();
        deposited += assets;
    }

    function leaveVault(uint256 sender, uint256 shares, uint256 to, bool asTransfer) external {
        address from = senders[sender % 3];
        if (vault.balanceOf(from) == 0) return;
        shares = bound(shares, 1, vault.balanceOf(from));
        address receiver = senders[to % 3];
        bytes memory data = asTransfer
            ? abi.encodeCall(vault.transfer, (receiver, shares))
            : abi.encodeCall(vault.redeem, (shares, receiver, from));
        Intent memory intent = _intent(from, address(vault), data);
        Leaf memory leaf = _leaf(intent, address(vault), vault.placetPins().policyId);
        leaf.sequence = validator.sequenceOf(address(vault), from, 1);
        Attestation memory attestation = _attest(leaf);
        vm.prank(from);
        bytes memory result = vault.executeIntent(intent, "", attestation);
        if (!asTransfer) withdrawn += abi.decode(result, (uint256));
    }

    function bareExit(uint256 sender, uint256 shares, uint256 way) external {
        address from = senders[sender % 3];
        vm.startPrank(from);
        if (way % 4 == 0) try vault.withdraw(shares, from, from) {} catch {}
        if (way % 4 == 1) try vault.redeem(shares, from, from) {} catch {}
        if (way % 4 == 2) try vault.transfer(senders[(sender + 1) % 3], shares) {} catch {}
        if (way % 4 == 3) try vault.transferFrom(senders[(sender + 1) % 3], from, shares) {} catch {}
        vm.stopPrank();
    }

    function shareSum() external view returns (uint256) {
        return vault.balanceOf(senders[0]) + vault.balanceOf(senders[1]) + vault.balanceOf(senders[2]);
    }
}

contract InvariantsTest is Network {
    Handler internal handler;

    function setUp() public {
        handler = new Handler();
        vm.warp(START + DELAY);
        bytes4[] memory selectors = new bytes4[](11);
        selectors[0] = handler.join.selector;
        selectors[1] = handler.leave.selector;
        selectors[2] = handler.restake.selector;
        selectors[3] = handler.eject.selector;
        selectors[4] = handler.activateLater.selector;
        selectors[5] = handler.execute.selector;
        selectors[6] = handler.executeAgain.selector;
        selectors[7] = handler.record.selector;
        selectors[8] = handler.deposit.selector;
        selectors[9] = handler.leaveVault.selector;
        selectors[10] = handler.bareExit.selector;
        targetContract(address(handler));
        targetSelector(FuzzSelector(address(handler), selectors));
        registry = OperatorRegistry(handler.registryOf());
    }

    function invariant_no_nonce_is_consumed_twice() public view {
        assertEq(handler.doubleSpends(), 0);
    }

    function invariant_every_epochs_total_is_its_stakes_and_what_is_vacant_and_never_changes() public view {
        uint64 current = registry.currentEpoch();
        for (uint64 epoch = 1; epoch <= current; ++epoch) {
            (, uint128 total,,) = registry.setAt(epoch);
            assertEq(total, handler.sumAt(epoch) + registry.vacantStakeAt(epoch));
            if (handler.stakeWhenOpened(epoch) != 0) assertEq(handler.sumAt(epoch), handler.stakeWhenOpened(epoch));
        }
    }

    function invariant_the_apk_is_the_sum_of_the_keys() public view {
        uint64 current = registry.currentEpoch();
        (G1 memory apk,,,) = registry.setAt(current);
        assertEq(abi.encode(apk), abi.encode(handler.keySumAt(current)));
    }

    function invariant_what_is_remembered_never_falls() public view {
        for (uint256 i = 0; i < handler.certificateCount(); ++i) {
            (uint256 highest, uint96 signedStake) = handler.certificateAt(i);
            assertEq(signedStake, highest);
        }
    }

    function invariant_the_vault_holds_what_came_in_less_what_was_attested_out() public view {
        assertEq(handler.token().balanceOf(address(handler.vault())), handler.deposited() - handler.withdrawn());
        assertEq(handler.vault().totalSupply(), handler.shareSum());
    }
}
