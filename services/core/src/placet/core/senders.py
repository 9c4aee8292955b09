"""Who signed an intent: ECDSA first (also for accounts with code: EIP-7702 accounts sign with their key), then EIP-1271."""

from __future__ import annotations

import coincurve

from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import RpcClient, RpcError
from placet.core.keccak import keccak256
from placet.core.types import Address, Hash32

_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_EIP1271_MAGIC = bytes.fromhex("1626ba7e")


def recover(digest: Hash32, signature: bytes) -> Address | None:
    """The address whose key made this 65-byte signature (r ‖ s ‖ v); None when it is none, or has a high s (EIP-2)."""
    if len(signature) != 65 or signature[64] not in (27, 28) or int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        return None
    try:
        key = coincurve.PublicKey.from_signature_and_message(signature[:64] + bytes([signature[64] - 27]), digest, hasher=None)
    except Exception:  # noqa: BLE001 - coincurve raises bare Exceptions
        return None
    return Address(keccak256(key.format(compressed=False)[1:])[12:])


async def is_signed_by(rpc: RpcClient, sender: Address, digest: Hash32, signature: bytes, *, block_hash: Hash32) -> bool:
    """Whether `sender` signed `digest`, judged at a block.

    Raises:
        Unavailable: no node answers.
    """
    if recover(digest, signature) == sender:
        return True
    if not signature:
        return False
    try:
        answer = await rpc.eth_call(sender, encode_call("isValidSignature(bytes32,bytes)", digest, signature), block_hash=block_hash)
    except RpcError:
        return False
    return len(answer) == 32 and answer[:4] == _EIP1271_MAGIC and not any(answer[4:])
