"""The digests that payers sign, by hand. Domains are made of an own offer, never of what a client sends.

Sources: EIP-712; EIP-3009 (TransferWithAuthorization); Permit2 SignatureTransfer (PermitWitnessTransferFrom; its domain has no version);
x402's witness types.
"""

from __future__ import annotations

import functools

from placet.core.digests import typed_digest
from placet.core.keccak import keccak256
from placet.core.payment.offers import Method, Offer, Scheme
from placet.core.payment.payload import Authorization, Permit
from placet.core.types import ZERO_ADDRESS, Address, Hash32

PERMIT2 = Address(bytes.fromhex("000000000022d473030f116ddee9f6b43ac78ba3"))
EXACT_PROXY = Address(bytes.fromhex("402085c248eea27d92e8b30b2c58ed07f9e20001"))
UPTO_PROXY = Address(bytes.fromhex("4020a4f3b7b90cca423b9fabcc0ce57c6c240002"))

TRANSFER_TYPE = "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
PERMISSIONS_TYPE = "TokenPermissions(address token,uint256 amount)"
EXACT_WITNESS_TYPE = "Witness(address to,uint256 validAfter)"
UPTO_WITNESS_TYPE = "Witness(address to,address facilitator,uint256 validAfter)"
PERMIT_TYPE = (
    "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)"
    + PERMISSIONS_TYPE
)

_TOKEN_DOMAIN = keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_PERMIT2_DOMAIN = keccak256(b"EIP712Domain(string name,uint256 chainId,address verifyingContract)")
_TRANSFER = keccak256(TRANSFER_TYPE.encode())
_PERMISSIONS = keccak256(PERMISSIONS_TYPE.encode())
_EXACT_WITNESS = keccak256(EXACT_WITNESS_TYPE.encode())
_UPTO_WITNESS = keccak256(UPTO_WITNESS_TYPE.encode())
_EXACT_PERMIT = keccak256((PERMIT_TYPE + EXACT_WITNESS_TYPE).encode())
_UPTO_PERMIT = keccak256((PERMIT_TYPE + UPTO_WITNESS_TYPE).encode())


def _u(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _a(value: bytes) -> bytes:
    return value.rjust(32, b"\0")


@functools.lru_cache(maxsize=1024)
def token_separator(name: str, version: str, chain_id: int, token: Address) -> bytes:
    """A token's domain separator."""
    return keccak256(_TOKEN_DOMAIN + keccak256(name.encode()) + keccak256(version.encode()) + _u(chain_id) + _a(token))


@functools.lru_cache(maxsize=64)
def permit2_separator(chain_id: int) -> bytes:
    """Permit2's domain separator on a chain."""
    return keccak256(_PERMIT2_DOMAIN + keccak256(b"Permit2") + _u(chain_id) + _a(PERMIT2))


def spender_of(scheme: Scheme) -> Address:
    """The proxy of x402 that moves tokens by Permit2."""
    return UPTO_PROXY if scheme is Scheme.UPTO else EXACT_PROXY


def authorization_digest(signed: Authorization, offer: Offer) -> Hash32:
    """What is signed to pay an offer by EIP-3009."""
    separator = token_separator(offer.token_name, offer.token_version, offer.chain_id, offer.asset)
    struct = (
        _TRANSFER + _a(signed.payer) + _a(signed.to) + _u(signed.value) + _u(signed.valid_after) + _u(signed.valid_before) + signed.nonce
    )
    return typed_digest(separator, keccak256(struct))


def permit_digest(signed: Permit, offer: Offer) -> Hash32:
    """What is signed to pay an offer through Permit2; the witness is that of the offer's scheme."""
    permitted = keccak256(_PERMISSIONS + _a(signed.token) + _u(signed.amount))
    if offer.scheme is Scheme.UPTO:
        kind = _UPTO_PERMIT
        witness = keccak256(_UPTO_WITNESS + _a(signed.to) + _a(signed.facilitator or ZERO_ADDRESS) + _u(signed.valid_after))
    else:
        kind = _EXACT_PERMIT
        witness = keccak256(_EXACT_WITNESS + _a(signed.to) + _u(signed.valid_after))
    struct = kind + permitted + _a(signed.spender) + _u(signed.nonce) + _u(signed.deadline) + witness
    return typed_digest(permit2_separator(offer.chain_id), keccak256(struct))


def nonces_of(offer: Offer) -> Address:
    """The contract that takes each nonce of a payer once: the token, or Permit2, whose nonces all its tokens share."""
    return PERMIT2 if offer.method is Method.PERMIT2 else offer.asset
