"""The JSON form of an intent: in the gateway's API, packs and recordings. uint256 are decimal strings; JSON readers lose digits."""

from __future__ import annotations

from typing import Any

from placet.core.types import Intent, hex0x


def intent_json(intent: Intent) -> dict[str, Any]:
    """The JSON form of an intent."""
    return {
        "from": hex0x(intent.sender),
        "to": hex0x(intent.to),
        "value": str(intent.value),
        "data": hex0x(intent.data),
        "chainId": intent.chain_id,
        "functionSignature": intent.function_signature,
        "nonce": str(intent.nonce),
        "deadline": intent.deadline,
    }
