"""Named errors of Placet's contracts, from their ABIs."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import orjson
from eth_abi import abi

from placet.core.evm.contracts import selector


def _canonical(item: dict[str, Any]) -> str:
    kind: str = item["type"]
    if kind.startswith("tuple"):
        return "(" + ",".join(_canonical(member) for member in item["components"]) + ")" + kind.removeprefix("tuple")
    return kind


@functools.cache
def _errors() -> dict[bytes, tuple[str, list[str]]]:
    found: dict[bytes, tuple[str, list[str]]] = {}
    for file in (resources.files("placet.sdk") / "artifacts").iterdir():
        if not file.name.endswith(".json"):
            continue
        document = orjson.loads(file.read_bytes())
        for item in document.get("abi", []):
            if item["type"] == "error":
                types = [_canonical(member) for member in item["inputs"]]
                found[selector(f"{item['name']}({','.join(types)})")] = (item["name"], types)
    return found


def name_of_revert(data: bytes) -> str | None:
    """`Name(arguments)` of a contract's revert data, `Error: text` for a plain reason; None when it is neither."""
    if data[:4] == selector("Error(string)"):
        return f"Error: {abi.decode(['string'], data[4:])[0]}"
    found = _errors().get(data[:4])
    if found is None:
        return None
    name, types = found
    try:
        values = abi.decode(types, data[4:])
    except Exception:  # noqa: BLE001 - a contract may lie about its own error's form
        return name
    shown = ", ".join("0x" + value.hex() if isinstance(value, bytes) else str(value) for value in values)
    return f"{name}({shown})"
