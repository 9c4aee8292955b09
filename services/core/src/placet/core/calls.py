"""From calldata to what a policy sees. Every operator derives this itself from the raw intent (threats 4).

An intent is governed only when its signature text equals a listed one for that target and the decoded arguments encode back to exactly
`data`; anything else is not governed, and so denied. `bytes` arguments may hide calls: a governed call whose signature has one is refused
unless its `unpack` says how each is to be read:

    [{"argument": "/0", "as": "opaque"}]                                  the author declares that these bytes do nothing
    [{"argument": "/0", "as": "calls"}]                                   bytes or bytes[]: calls on the same target (multicall)
    [{"argument": "/2", "as": "call", "target": "/0", "value": "/1"}]     one call on the target named by another argument

Unpacked calls must be governed themselves, to a bounded depth and number.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eth_abi.exceptions import ParseError
from eth_abi.grammar import ABIType, BasicType, TupleType, parse

from placet.core import limits
from placet.core.abi_strict import NotCanonical, decode_strict, is_supported
from placet.core.errors import InvalidInput
from placet.core.keccak import keccak256
from placet.core.types import Address, GovernedCall, Intent, hex0x


class NotGoverned(Exception):
    """The call is none that the policy governs, or is not encoded canonically: a deny, with this reason."""


@dataclass(frozen=True, slots=True)
class Unpack:
    """How one `bytes` argument is to be read. Indices are positions in the argument list."""

    argument: int
    kind: str
    target: int | None = None
    value: int | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """A parsed function signature."""

    name: str
    types: tuple[ABIType, ...]
    type_names: tuple[str, ...]
    selector: bytes


@dataclass(frozen=True, slots=True)
class DecodedCall:
    """A governed call: target, value in wei, function, JSON arguments, and the calls found inside."""

    target: Address
    value: int
    signature: str
    name: str
    type_names: tuple[str, ...]
    arguments: tuple[Any, ...]
    calls: tuple[DecodedCall, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """What Rego sees of it."""
        return {
            "to": hex0x(self.target),
            "value": str(self.value),
            "signature": self.signature,
            "name": self.name,
            "types": list(self.type_names),
            "arguments": list(self.arguments),
            "calls": [call.as_json() for call in self.calls],
        }


EMPTY_CALL = "()"


@functools.lru_cache(maxsize=1024)
def parse_signature(text: str) -> Function:
    """`name(type,…)` in canonical ABI form (no spaces, no aliases), or `()` for empty calldata.

    Raises:
        InvalidInput: not a canonical signature.
    """
    if text == EMPTY_CALL:
        return Function("", (), (), b"")
    if len(text) > limits.MAX_FUNCTION_SIGNATURE_BYTES or not text.isascii():
        raise InvalidInput(f"function signature: at most {limits.MAX_FUNCTION_SIGNATURE_BYTES} ASCII characters", field="signature")
    name, bracket, rest = text.partition("(")
    if not bracket or not rest.endswith(")") or not name.isidentifier():
        raise InvalidInput(f"function signature {text[:80]!r}: name(type,…) wanted", field="signature")
    if rest == ")":
        return Function(name, (), (), keccak256(text.encode())[:4])
    if text.count("(") > 32 or text.count("[") > 32:
        raise InvalidInput("function signature: at most 32 tuples and 32 array dimensions", field="signature")
    try:
        parsed = parse("(" + rest)
    except (ParseError, ValueError):
        raise InvalidInput(f"function signature {text[:80]!r}: not ABI types", field="signature") from None
    if not isinstance(parsed, TupleType) or parsed.arrlist:
        raise InvalidInput(f"function signature {text[:80]!r}: name(type,…) wanted", field="signature")
    types = tuple(parsed.components)
    for item in types:
        try:
            item.validate()
        except Exception:  # noqa: BLE001 - eth_abi raises ABITypeError, a ParseError's sibling
            raise InvalidInput(f"function signature {text[:80]!r}: {item.to_type_str()} is not an ABI type", field="signature") from None
    names = tuple(item.to_type_str() for item in types)
    canonical = f"{name}({','.join(names)})"
    if canonical != text or not all(is_supported(item) for item in types):
        raise InvalidInput(f"function signature {text[:80]!r} is not canonical, or has a type that is not supported", field="signature")
    return Function(name, types, names, keccak256(text.encode())[:4])


def _holds_bytes(item: ABIType) -> bool:
    if isinstance(item, TupleType):
        return any(_holds_bytes(member) for member in item.components)
    return isinstance(item, BasicType) and item.base == "bytes" and item.sub is None


@functools.lru_cache(maxsize=1024)
def parse_unpack(signature: str, text: str) -> tuple[Unpack, ...]:
    """How a governed call's `bytes` arguments are read. Every argument that holds dynamic bytes must be named.

    Raises:
        InvalidInput: not of the stated form, or an argument is left out.
    """
    function = parse_signature(signature)
    entries: list[Unpack] = []
    try:
        raw = json.loads(text) if text else []
        for item in raw:
            extra = set(item) - {"argument", "as", "target", "value"}
            if extra or item["as"] not in ("opaque", "calls", "call"):
                raise ValueError(f"unknown member or kind in {item}")
            position = _position(item["argument"], function)
            target = _position(item["target"], function) if "target" in item else None
            value = _position(item["value"], function) if "value" in item else None
            type_name = function.type_names[position]
            if item["as"] == "call" and (type_name != "bytes" or target is None or function.type_names[target] != "address"):
                raise ValueError("`call` needs a bytes argument and an address `target`")
            if item["as"] == "call" and value is not None and function.type_names[value] != "uint256":
                raise ValueError("`value` names a uint256 argument")
            if item["as"] == "calls" and (type_name not in ("bytes", "bytes[]") or target is not None or value is not None):
                raise ValueError("`calls` needs a bytes or bytes[] argument and nothing else")
            entries.append(Unpack(position, item["as"], target, value))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"unpack of {signature[:80]}: {error}", field="unpack") from None
    named = [entry.argument for entry in entries]
    wanted = [position for position, item in enumerate(function.types) if _holds_bytes(item)]
    if sorted(named) != wanted:
        raise InvalidInput(f"unpack of {signature[:80]}: say how each bytes argument is read: positions {wanted}", field="unpack")
    return tuple(entries)


def _position(pointer: str, function: Function) -> int:
    text = pointer.removeprefix("/")
    if not text.isdigit() or pointer != f"/{int(text)}" or int(text) >= len(function.types):
        raise ValueError(f"{pointer!r} names no argument")
    return int(text)


def check_calls(calls: Sequence[GovernedCall]) -> None:
    """Refuse a policy's list of governed calls that cannot be judged.

    Raises:
        InvalidInput: naming the call.
    """
    if not calls or len(calls) > limits.MAX_GOVERNED_CALLS:
        raise InvalidInput(f"calls: 1 to {limits.MAX_GOVERNED_CALLS} wanted", field="calls")
    seen: set[tuple[bool, bytes, str]] = set()
    selectors: dict[tuple[bool, bytes, bytes], str] = {}
    for call in calls:
        function = parse_signature(call.signature)
        parse_unpack(call.signature, call.unpack)
        target = b"" if call.to_self else call.target
        if (call.to_self, target, call.signature) in seen:
            raise InvalidInput(f"calls: {call.signature} is listed twice for one target", field="calls")
        seen.add((call.to_self, target, call.signature))
        other = selectors.setdefault((call.to_self, target, function.selector), call.signature)
        if other != call.signature:
            raise InvalidInput(f"calls: {call.signature} and {other} share a selector on one target", field="calls")


def _json_value(item: ABIType, value: Any, budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0:
        raise NotGoverned(f"the decoded call has more than {limits.MAX_DECODED_NODES} values")
    if item.arrlist:
        return [_json_value(item.item_type, member, budget) for member in value]
    if isinstance(item, TupleType):
        return [_json_value(kind, member, budget) for kind, member in zip(item.components, value, strict=True)]
    assert isinstance(item, BasicType)
    if item.base in ("uint", "int"):
        return str(value)
    if item.base == "bytes":
        return hex0x(value)
    return value  # bool, text, and address (lower-case 0x text)


def decode_arguments(function: Function, data: bytes) -> tuple[Any, ...]:
    """Arguments of `data` (selector included) as JSON values: integers as decimal strings, addresses lower-case, bytes as 0x hex.

    Raises:
        NotGoverned: wrong selector, not decodable, or not the canonical encoding.
    """
    if data[:4] != function.selector:
        raise NotGoverned("the selector is not that of the intent's function signature")
    try:
        values = decode_strict(function.types, data[4:])
    except NotCanonical as error:
        raise NotGoverned(f"the calldata is not the canonical encoding of its arguments: {error}") from None
    budget = [limits.MAX_DECODED_NODES]
    return tuple(_json_value(kind, value, budget) for kind, value in zip(function.types, values, strict=True))


def decode_intent(intent: Intent, policy_client: Address, governed: Sequence[GovernedCall]) -> DecodedCall:
    """The governed call that `intent` makes, with every call inside it.

    Raises:
        NotGoverned: a deny, with its reason.
    """
    budget = [limits.MAX_NESTED_CALLS]

    def decode(target: Address, value: int, data: bytes, signature: str | None, depth: int) -> DecodedCall:
        budget[0] -= 1
        if budget[0] < 0 or depth > limits.MAX_NESTING:
            raise NotGoverned(f"more than {limits.MAX_NESTED_CALLS} nested calls, or nested deeper than {limits.MAX_NESTING}")
        call = _find(target, data, signature, policy_client, governed)
        function = parse_signature(call.signature)
        if call.signature == EMPTY_CALL:
            if data:
                raise NotGoverned("calldata with the empty call's signature")
            return DecodedCall(target, value, call.signature, "", (), ())
        arguments = decode_arguments(function, data)
        inner: list[DecodedCall] = []
        for entry in parse_unpack(call.signature, call.unpack):
            content = arguments[entry.argument]
            if entry.kind == "call":
                assert entry.target is not None
                to = Address(bytes.fromhex(arguments[entry.target][2:]))
                amount = int(arguments[entry.value]) if entry.value is not None else 0
                inner.append(decode(to, amount, bytes.fromhex(content[2:]), None, depth + 1))
            elif entry.kind == "calls":
                for blob in content if isinstance(content, list) else [content]:
                    inner.append(decode(target, 0, bytes.fromhex(blob[2:]), None, depth + 1))
        return DecodedCall(target, value, call.signature, function.name, function.type_names, arguments, tuple(inner))

    return decode(intent.to, intent.value, intent.data, intent.function_signature, 0)


def _shown(signature: str) -> str:
    """Text of the caller's as it may stand in a signed reason: the same in every Python, whatever Unicode it knows."""
    return f"'{signature[:120]}'" if signature[:120].isascii() and signature[:120].isprintable() else "a signature that is not ASCII"


def _find(target: Address, data: bytes, signature: str | None, policy_client: Address, governed: Sequence[GovernedCall]) -> GovernedCall:
    """The listed call for this target: by signature text at the top (selectors collide), by selector for calls found inside."""
    here = [call for call in governed if (target == policy_client if call.to_self else target == call.target)]
    if signature is not None:
        found = next((call for call in here if call.signature == signature), None)
        if found is None:
            raise NotGoverned(f"{_shown(signature)} is no function that the policy governs on {hex0x(target)}")
        return found
    selector = data[:4]
    found = next((call for call in here if parse_signature(call.signature).selector == selector and bool(data) == bool(selector)), None)
    if found is None:
        raise NotGoverned(f"a nested call (selector {hex0x(selector)}) is none that the policy governs on {hex0x(target)}")
    return found


def rego_input(intent: Intent, intent_hash: bytes, call: DecodedCall) -> dict[str, Any]:
    """The document `input` of an evaluation; JSON pointers of argument bindings point into it.

    Placet's names, and beside them the names of Newton's `input`, so that its published policies run unchanged.
    """
    inputs = [{"name": "", "type": name} for name in call.type_names]
    return {
        "from": hex0x(intent.sender),
        "to": hex0x(intent.to),
        "value": str(intent.value),
        "data": hex0x(intent.data),
        "chainId": intent.chain_id,
        "functionSignature": intent.function_signature,
        "nonce": str(intent.nonce),
        "deadline": intent.deadline,
        "intentHash": hex0x(intent_hash),
        "arguments": list(call.arguments),
        "calls": [inner.as_json() for inner in call.calls],
        "chain_id": intent.chain_id,
        "function_signature": intent.function_signature,
        "function": {"name": call.name, "type": "function", "inputs": inputs},
        "decoded_function_signature": call.signature,
        "decoded_function_arguments": list(call.arguments),
    }
