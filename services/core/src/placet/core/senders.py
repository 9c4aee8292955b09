"""Who signed an intent: ECDSA first (also for accounts with code: EIP-7702 accounts sign with their key), then EIP-1271."""

from __future__ import annotations

from placet.core.ecdsa import recover
from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import RpcClient, RpcError
from placet.core.types import Address, Hash32

_EIP1271_MAGIC = bytes.fromhex("1626ba7e")
WALLET_GAS = 2_000_000
"""For one `isValidSignature` (strangers' code on our own node): several times what the signature of a passkey takes in Solidity, and some
20 ms of a node."""


async def is_signed_by(rpc: RpcClient, sender: Address, digest: Hash32, signature: bytes, *, block_hash: Hash32) -> bool:
    """Whether `sender` signed `digest`, judged at a block; a contract may use WALLET_GAS to say so.

    Raises:
        Unavailable: no node answers.
    """
    if recover(digest, signature) == sender:
        return True
    if not signature:
        return False
    try:
        question = encode_call("isValidSignature(bytes32,bytes)", digest, signature)
        answer = await rpc.eth_call(sender, question, block_hash=block_hash, gas=WALLET_GAS)
    except RpcError:
        return False
    return len(answer) == 32 and answer[:4] == _EIP1271_MAGIC and not any(answer[4:])
