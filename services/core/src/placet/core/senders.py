"""Who signed an intent: ECDSA first (also for accounts with code: EIP-7702 accounts sign with their key), then EIP-1271."""

from __future__ import annotations

from placet.core.ecdsa import recover
from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import RpcClient, RpcError
from placet.core.types import Address, Hash32

_EIP1271_MAGIC = bytes.fromhex("1626ba7e")


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
