"""Intents from files: complete as the gateway's API has them, or short, with the call's arguments in place of its bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from eth_abi import abi
from eth_abi.exceptions import EncodingError
from eth_abi.grammar import ABIType, BasicType, TupleType

from placet.core import jsonx, limits
from placet.core.calls import EMPTY_CALL, parse_signature
from placet.core.errors import InvalidInput
from placet.core.types import Intent, address_from

_MEMBERS = {"from", "to", "value", "data", "arguments", "chainId", "functionSignature", "nonce", "deadline"}
MAX_FILE_BYTES = 256 << 10


def read_intent(content: bytes, *, chain_id: int, deadline: int) -> Intent:
    """The intent of a file. `value`, `nonce`, `chainId` and `deadline` may be left out; `arguments` may stand for `data`.

    Raises:
        InvalidInput: naming the member.
    """
    document = jsonx.parse(content, field="intent", max_bytes=MAX_FILE_BYTES, max_depth=limits.MAX_ARGS_DEPTH)
    if not isinstance(document, dict):
        raise InvalidInput("intent: an object wanted", field="intent")
    if unknown := sorted(set(document) - _MEMBERS):
        raise InvalidInput(f"intent: {unknown[0]!r} is not known; known are {', '.join(sorted(_MEMBERS))}", field=unknown[0])
    for name in ("from", "to", "functionSignature"):
        if name not in document:
            raise InvalidInput(f"intent: {name} is missing", field=name)
    if ("data" in document) == ("arguments" in document):
        raise InvalidInput("intent: one of data (0x hex) and arguments (a list) wanted", field="data")
    signature = str(document["functionSignature"])
    data = _hex(document["data"], "data") if "data" in document else encode_arguments(signature, document["arguments"])
    return Intent(
        sender=address_from(document["from"], field="from"),
        to=address_from(document["to"], field="to"),
        value=_integer(document.get("value", 0), "value"),
        data=data,
        chain_id=_integer(document.get("chainId", chain_id), "chainId"),
        function_signature=signature,
        nonce=_integer(document.get("nonce", 0), "nonce"),
        deadline=_integer(document.get("deadline", deadline), "deadline"),
    )


def encode_arguments(signature: str, arguments: Any) -> bytes:
    """Calldata of a call: integers as JSON integers or decimal strings, addresses and bytes as 0x hex, tuples and arrays as lists."""
    function = parse_signature(signature)
    if not isinstance(arguments, list) or len(arguments) != len(function.types):
        raise InvalidInput(f"intent: {signature} takes {len(function.types)} arguments, as a list", field="arguments")
    if signature == EMPTY_CALL:
        return b""
    values = [_value(kind, item, f"arguments/{at}") for at, (kind, item) in enumerate(zip(function.types, arguments, strict=True))]
    try:
        return function.selector + abi.encode(function.type_names, values)
    except EncodingError as error:
        raise InvalidInput(f"intent: arguments: {error}", field="arguments") from None


def _value(kind: ABIType, value: Any, field: str) -> Any:
    if kind.arrlist:
        if not isinstance(value, list):
            raise InvalidInput(f"intent: {field}: a list wanted", field=field)
        return [_value(kind.item_type, item, f"{field}/{at}") for at, item in enumerate(value)]
    if isinstance(kind, TupleType):
        if not isinstance(value, list) or len(value) != len(kind.components):
            raise InvalidInput(f"intent: {field}: a list of {len(kind.components)} wanted", field=field)
        return tuple(_value(part, item, f"{field}/{at}") for at, (part, item) in enumerate(zip(kind.components, value, strict=True)))
    assert isinstance(kind, BasicType)
    match kind.base:
        case "uint" | "int":
            return _integer(value, field)
        case "address":
            return address_from(value, field=field)
        case "bytes":
            return _hex(value, field)
        case _:
            return value


def _integer(value: Any, field: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) <= jsonx.MAX_DIGITS + 1:
        return int(value)
    raise InvalidInput(f"intent: {field}: an integer, or a decimal string, wanted", field=field)


def _hex(value: Any, field: str) -> bytes:
    if isinstance(value, str) and re.fullmatch(r"0x(?:[0-9a-fA-F]{2})*", value):
        return bytes.fromhex(value[2:])
    raise InvalidInput(f"intent: {field}: 0x hex wanted", field=field)


def arguments_object(value: Mapping[str, Any] | None) -> bytes:
    """The caller's arguments as a task carries them."""
    return jsonx.canonical(dict(value)) if value else b""
