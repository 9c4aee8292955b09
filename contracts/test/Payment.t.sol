// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Test} from "forge-std/Test.sol";
import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ExactPermit2Proxy} from "../src/payment/ExactPermit2Proxy.sol";
import {ISignatureTransfer, Permit2Proxy} from "../src/payment/Permit2Proxy.sol";
import {TestUSDC} from "../src/payment/TestUSDC.sol";
import {UptoPermit2Proxy} from "../src/payment/UptoPermit2Proxy.sol";

interface IPermit2Errors {
    error InvalidNonce();
    error InvalidSigner();
    error SignatureExpired(uint256 signatureDeadline);
}

/// @dev A contract account that says yes to everything.
contract YesAccount is IERC1271 {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        return IERC1271.isValidSignature.selector;
    }
}

/// @dev Digests are written out with plain `abi.encode`: the contracts' hashing is compared with the specifications'.
abstract contract Payments is Test {
    uint256 internal constant START = 1_800_000_000;
    uint256 internal constant KEY = 0xa11ce;
    uint256 internal constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    TestUSDC internal token;
    address internal payer = vm.addr(KEY);
    address internal payee = makeAddr("payee");

    function setUp() public virtual {
        vm.warp(START);
        token = new TestUSDC();
        token.mint(payer, 10_000);
    }

    function _sign(uint256 key, bytes32 separator, bytes32 structHash) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, keccak256(abi.encodePacked("\x19\x01", separator, structHash)));
        return abi.encodePacked(r, s, v);
    }
}

contract TestUSDCTest is Payments {
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);

    function _transfer(uint256 value, bytes32 nonce) private view returns (bytes memory) {
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256(
                    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
                ),
                payer,
                payee,
                value,
                0,
                START + 60,
                nonce
            )
        );
        return _sign(KEY, token.DOMAIN_SEPARATOR(), structHash);
    }

    function test_its_domain_is_that_of_usdc() public view {
        bytes32 expected = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("USD Coin"),
                keccak256("2"),
                block.chainid,
                address(token)
            )
        );
        assertEq(token.DOMAIN_SEPARATOR(), expected);
        assertEq(token.name(), "USD Coin");
        assertEq(token.version(), "2");
        assertEq(token.decimals(), 6);
    }

    function test_an_authorization_moves_its_value_once() public {
        bytes memory signature = _transfer(1000, "n");
        vm.expectEmit(address(token));
        emit AuthorizationUsed(payer, "n");
        token.transferWithAuthorization(payer, payee, 1000, 0, START + 60, "n", signature);
        assertEq(token.balanceOf(payee), 1000);
        assertTrue(token.authorizationState(payer, "n"));
        vm.expectRevert("FiatTokenV2: authorization is used or canceled");
        token.transferWithAuthorization(payer, payee, 1000, 0, START + 60, "n", signature);
    }

    function test_the_signature_may_come_in_parts() public {
        bytes memory signature = _transfer(1000, "n");
        (bytes32 r, bytes32 s) = abi.decode(signature, (bytes32, bytes32));
        token.transferWithAuthorization(payer, payee, 1000, 0, START + 60, "n", uint8(signature[64]), r, s);
        assertEq(token.balanceOf(payee), 1000);
    }

    function test_nothing_else_than_what_was_signed_moves() public {
        bytes memory signature = _transfer(1000, "n");
        vm.expectRevert("FiatTokenV2: invalid signature");
        token.transferWithAuthorization(payer, payee, 1001, 0, START + 60, "n", signature);
        vm.expectRevert("FiatTokenV2: invalid signature");
        token.transferWithAuthorization(payer, address(this), 1000, 0, START + 60, "n", signature);
        vm.expectRevert("FiatTokenV2: invalid signature");
        token.receiveWithAuthorization(payer, address(this), 1000, 0, START + 60, "n", signature);
    }

    function test_a_high_s_twin_is_refused() public {
        bytes memory signature = _transfer(1000, "n");
        (bytes32 r, bytes32 s) = abi.decode(signature, (bytes32, bytes32));
        uint8 v = uint8(signature[64]) == 27 ? 28 : 27;
        vm.expectRevert("FiatTokenV2: invalid signature");
        token.transferWithAuthorization(payer, payee, 1000, 0, START + 60, "n", v, r, bytes32(ORDER - uint256(s)));
    }

    function test_its_time_is_after_one_bound_and_before_the_other() public {
        bytes memory signature = _transfer(1000, "n");
        vm.warp(START + 60);
        vm.expectRevert("FiatTokenV2: authorization is expired");
        token.transferWithAuthorization(payer, payee, 1000, 0, START + 60, "n", signature);
        vm.expectRevert("FiatTokenV2: authorization is not yet valid");
        token.transferWithAuthorization(payer, payee, 1000, START + 60, START + 90, "n", signature);
    }

    function test_what_is_received_by_authorization_its_payee_sends() public {
        bytes32 structHash = keccak256(
            abi.encode(token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH(), payer, payee, 1000, 0, START + 60, bytes32("n"))
        );
        bytes memory signature = _sign(KEY, token.DOMAIN_SEPARATOR(), structHash);
        vm.expectRevert("FiatTokenV2: caller must be the payee");
        token.receiveWithAuthorization(payer, payee, 1000, 0, START + 60, "n", signature);
        (bytes32 r, bytes32 s) = abi.decode(signature, (bytes32, bytes32));
        vm.prank(payee);
        token.receiveWithAuthorization(payer, payee, 1000, 0, START + 60, "n", uint8(signature[64]), r, s);
        assertEq(token.balanceOf(payee), 1000);
    }

    function test_a_cancelled_authorization_moves_nothing() public {
        bytes memory signature = _transfer(1000, "n");
        bytes32 structHash = keccak256(abi.encode(token.CANCEL_AUTHORIZATION_TYPEHASH(), payer, bytes32("n")));
        bytes memory cancel = _sign(KEY, token.DOMAIN_SEPARATOR(), structHash);
        (bytes32 r, bytes32 s) = abi.decode(cancel, (bytes32, bytes32));
        token.cancelAuthorization(payer, "n", uint8(cancel[64]), r, s);
        vm.expectRevert("FiatTokenV2: authorization is used or canceled");
        token.transferWithAuthorization(payer, payee, 1000, 0, START + 60, "n", signature);
        vm.expectRevert("FiatTokenV2: authorization is used or canceled");
        token.cancelAuthorization(payer, "n", cancel);
    }

    function test_a_contract_account_is_asked() public {
        address account = address(new YesAccount());
        token.mint(account, 5);
        token.transferWithAuthorization(account, payee, 5, 0, START + 60, "n", "");
        assertEq(token.balanceOf(payee), 5);
    }
}

contract Permit2ProxyTest is Payments {
    bytes32 private constant PERMISSIONS = keccak256("TokenPermissions(address token,uint256 amount)");
    string private constant STUB =
        "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)TokenPermissions(address token,uint256 amount)";
    address private constant PERMIT2 = 0x000000000022D473030F116dDEE9F6B43aC78BA3;

    ExactPermit2Proxy private exact;
    UptoPermit2Proxy private upto;
    address private facilitator = makeAddr("facilitator");
    ISignatureTransfer.PermitTransferFrom private permit;

    function setUp() public override {
        super.setUp();
        vm.etch(PERMIT2, vm.parseJsonBytes(vm.readFile("artifacts/Permit2.json"), ".deployedBytecode"));
        exact = new ExactPermit2Proxy();
        upto = new UptoPermit2Proxy();
        vm.prank(payer);
        token.approve(PERMIT2, type(uint256).max);
        permit = ISignatureTransfer.PermitTransferFrom(
            ISignatureTransfer.TokenPermissions(address(token), 5000), 7, START + 60
        );
    }

    function _permit(address spender, string memory witnessType, bytes32 witness) private view returns (bytes memory) {
        bytes32 separator = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)"),
                keccak256("Permit2"),
                block.chainid,
                PERMIT2
            )
        );
        bytes32 permitted = keccak256(abi.encode(PERMISSIONS, permit.permitted.token, permit.permitted.amount));
        bytes32 typeHash = keccak256(abi.encodePacked(STUB, witnessType));
        bytes32 structHash = keccak256(abi.encode(typeHash, permitted, spender, permit.nonce, permit.deadline, witness));
        return _sign(KEY, separator, structHash);
    }

    function _exact(address to, uint256 validAfter) private view returns (bytes memory) {
        string memory witnessType = "Witness(address to,uint256 validAfter)";
        bytes32 witness = keccak256(abi.encode(keccak256(bytes(witnessType)), to, validAfter));
        return _permit(address(exact), witnessType, witness);
    }

    function _upto(address to, uint256 validAfter) private view returns (bytes memory) {
        string memory witnessType = "Witness(address to,address facilitator,uint256 validAfter)";
        bytes32 witness = keccak256(abi.encode(keccak256(bytes(witnessType)), to, facilitator, validAfter));
        return _permit(address(upto), witnessType, witness);
    }

    function test_an_exact_payment_moves_what_was_permitted_once() public {
        bytes memory signature = _exact(payee, 0);
        exact.settle(permit, payer, ExactPermit2Proxy.Witness(payee, 0), signature);
        assertEq(token.balanceOf(payee), 5000);
        vm.expectRevert(IPermit2Errors.InvalidNonce.selector);
        exact.settle(permit, payer, ExactPermit2Proxy.Witness(payee, 0), signature);
    }

    function test_an_exact_payment_goes_to_nobody_else() public {
        bytes memory signature = _exact(payee, 0);
        vm.expectRevert(IPermit2Errors.InvalidSigner.selector);
        exact.settle(permit, payer, ExactPermit2Proxy.Witness(address(this), 0), signature);
        vm.expectRevert(Permit2Proxy.InvalidDestination.selector);
        exact.settle(permit, payer, ExactPermit2Proxy.Witness(address(0), 0), signature);
        vm.expectRevert(Permit2Proxy.InvalidOwner.selector);
        exact.settle(permit, address(0), ExactPermit2Proxy.Witness(payee, 0), signature);
    }

    function test_a_payment_has_its_time() public {
        bytes memory signature = _exact(payee, START + 1);
        vm.expectRevert(Permit2Proxy.PaymentTooEarly.selector);
        exact.settle(permit, payer, ExactPermit2Proxy.Witness(payee, START + 1), signature);
        vm.warp(START + 61);
        vm.expectRevert(abi.encodeWithSelector(IPermit2Errors.SignatureExpired.selector, START + 60));
        exact.settle(permit, payer, ExactPermit2Proxy.Witness(payee, START + 1), signature);
    }

    function test_a_metered_payment_moves_what_the_facilitator_says_once() public {
        bytes memory signature = _upto(payee, 0);
        UptoPermit2Proxy.Witness memory witness = UptoPermit2Proxy.Witness(payee, facilitator, 0);
        vm.prank(facilitator);
        upto.settle(permit, 1234, payer, witness, signature);
        assertEq(token.balanceOf(payee), 1234);
        vm.expectRevert(IPermit2Errors.InvalidNonce.selector);
        vm.prank(facilitator);
        upto.settle(permit, 1, payer, witness, signature);
    }

    function test_a_metered_payment_is_its_facilitators_and_bounded() public {
        bytes memory signature = _upto(payee, 0);
        UptoPermit2Proxy.Witness memory witness = UptoPermit2Proxy.Witness(payee, facilitator, 0);
        vm.expectRevert(UptoPermit2Proxy.UnauthorizedFacilitator.selector);
        upto.settle(permit, 1234, payer, witness, signature);
        witness.facilitator = address(this);
        vm.expectRevert(IPermit2Errors.InvalidSigner.selector);
        upto.settle(permit, 1234, payer, witness, signature);
        witness.facilitator = facilitator;
        vm.expectRevert(UptoPermit2Proxy.AmountExceedsPermitted.selector);
        vm.prank(facilitator);
        upto.settle(permit, 5001, payer, witness, signature);
    }
}
