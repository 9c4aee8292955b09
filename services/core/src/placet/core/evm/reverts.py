"""Named errors of Placet's contracts and of OpenZeppelin's beneath them, by selector. The table is generated from the ABIs."""

from __future__ import annotations

import functools
from importlib import resources

import orjson
from eth_abi import abi

from placet.core.evm.contracts import selector, split_types


@functools.cache
def _signatures() -> dict[bytes, str]:
    text = (resources.files("placet.core.evm") / "contract_errors.json").read_bytes()
    return {selector(signature): signature for signature in orjson.loads(text)}


def name_of_revert(data: bytes) -> str | None:
    """`Name(arguments)` of a contract's revert data, `Error: text` for a plain reason; None when it is neither."""
    signature = _signatures().get(data[:4])
    try:
        if data[:4] == selector("Error(string)"):
            return f"Error: {abi.decode(['string'], data[4:])[0]}"
        if signature is None:
            return None
        name, _, types = signature.partition("(")
        values = abi.decode(split_types("(" + types), data[4:])
    except Exception:  # noqa: BLE001 - a contract may lie about its own error's form
        return None if signature is None else signature.partition("(")[0]
    shown = ", ".join("0x" + value.hex() if isinstance(value, bytes) else str(value) for value in values)
    return f"{name}({shown})"
