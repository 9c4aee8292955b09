"""Which call an intent makes (threats 4): signature text, canonical encoding, nested calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from eth_abi import abi
from eth_abi.grammar import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from placet.core.abi_strict import NotCanonical, decode_strict
from placet.core.calls import NotGoverned, check_calls, decode_intent, parse_signature, parse_unpack
from placet.core.errors import InvalidInput
from placet.core.keccak import keccak256
from placet.core.types import ZERO_ADDRESS, Address, GovernedCall, Intent

CLIENT = Address(b"\xcc" * 20)
TOKEN = Address(b"\x70" * 20)
TRANSFER = "transfer(address,uint256)"
BOB = "0x" + "b0" * 20


def call(signature: str, *arguments: Any) -> bytes:
    return parse_signature(signature).selector + abi.encode(list(parse_signature(signature).type_names), arguments)


def intent(data: bytes, signature: str, to: Address = TOKEN, value: int = 0) -> Intent:
    return Intent(Address(b"\xa1" * 20), to, value, data, 1, signature, 0, 10**9)


def governed(signature: str, unpack: str = "", to_self: bool = False, target: Address = TOKEN) -> GovernedCall:
    return GovernedCall(to_self, ZERO_ADDRESS if to_self else target, signature, unpack)


def test_a_listed_call_is_decoded() -> None:
    decoded = decode_intent(intent(call(TRANSFER, BOB, 2**200), TRANSFER), CLIENT, [governed(TRANSFER)])
    assert decoded.arguments == (BOB, str(2**200))
    assert decoded.name == "transfer"


def test_04_a_colliding_signature_is_not_the_governed_function() -> None:
    collision = "many_msg_babbage(bytes1)"
    assert parse_signature(collision).selector == parse_signature(TRANSFER).selector
    data = call(TRANSFER, BOB, 1)
    with pytest.raises(NotGoverned, match="no function that the policy governs"):
        decode_intent(intent(data, collision), CLIENT, [governed(TRANSFER)])
    with pytest.raises(InvalidInput, match="share a selector"):
        check_calls([governed(TRANSFER), governed(collision)])


def test_04_trailing_bytes_are_refused() -> None:
    with pytest.raises(NotGoverned, match="bytes follow"):
        decode_intent(intent(call(TRANSFER, BOB, 1) + b"\0", TRANSFER), CLIENT, [governed(TRANSFER)])


def test_04_another_encoding_of_the_same_arguments_is_refused() -> None:
    signature = "f(bytes)"
    data = call(signature, b"hello")
    moved = data[:4] + (64).to_bytes(32, "big") + bytes(32) + data[36:]
    assert abi.decode(["bytes"], moved[4:]) == (b"hello",), "eth_abi follows any offset"
    with pytest.raises(NotGoverned, match="offset"):
        decode_intent(intent(moved, signature), CLIENT, [governed(signature, '[{"argument":"/0","as":"opaque"}]')])


def test_04_high_bits_of_an_address_are_refused() -> None:
    data = bytearray(call(TRANSFER, BOB, 1))
    data[4] = 1
    with pytest.raises(NotGoverned, match="high bits"):
        decode_intent(intent(bytes(data), TRANSFER), CLIENT, [governed(TRANSFER)])


def test_the_target_must_be_the_listed_one() -> None:
    with pytest.raises(NotGoverned):
        decode_intent(intent(call(TRANSFER, BOB, 1), TRANSFER, to=Address(b"\x71" * 20)), CLIENT, [governed(TRANSFER)])
    with pytest.raises(NotGoverned):
        decode_intent(intent(call(TRANSFER, BOB, 1), TRANSFER), CLIENT, [governed(TRANSFER, to_self=True)])
    assert decode_intent(intent(call(TRANSFER, BOB, 1), TRANSFER, to=CLIENT), CLIENT, [governed(TRANSFER, to_self=True)])


def test_empty_calldata_is_the_listed_empty_call() -> None:
    assert decode_intent(intent(b"", "()", value=5), CLIENT, [governed("()")]).value == 5
    with pytest.raises(NotGoverned):
        decode_intent(intent(b"", "()"), CLIENT, [governed(TRANSFER)])
    with pytest.raises(NotGoverned, match="empty call"):
        decode_intent(intent(b"\1", "()"), CLIENT, [governed("()")])


# --- nested calls

MULTICALL = "multicall(bytes[])"
EXECUTE = "execute(address,uint256,bytes)"
AS_CALLS = '[{"argument":"/0","as":"calls"}]'
AS_CALL = '[{"argument":"/2","as":"call","target":"/0","value":"/1"}]'


def test_04_bytes_that_the_policy_does_not_explain_are_refused_at_publishing() -> None:
    with pytest.raises(InvalidInput, match="say how each bytes argument is read"):
        check_calls([governed(MULTICALL)])
    check_calls([governed(MULTICALL, AS_CALLS), governed(EXECUTE, AS_CALL)])


def test_04_a_call_inside_a_multicall_is_seen() -> None:
    data = call(MULTICALL, [call(TRANSFER, BOB, 7)])
    decoded = decode_intent(intent(data, MULTICALL), CLIENT, [governed(MULTICALL, AS_CALLS), governed(TRANSFER)])
    assert [inner.arguments for inner in decoded.calls] == [(BOB, "7")]
    with pytest.raises(NotGoverned, match="nested call"):
        decode_intent(intent(data, MULTICALL), CLIENT, [governed(MULTICALL, AS_CALLS)])


def test_04_a_call_inside_execute_goes_to_its_own_target() -> None:
    wallet = Address(b"\x55" * 20)
    data = call(EXECUTE, "0x" + TOKEN.hex(), 3, call(TRANSFER, BOB, 7))
    rules = [governed(EXECUTE, AS_CALL, target=wallet), governed(TRANSFER)]
    decoded = decode_intent(intent(data, EXECUTE, to=wallet), CLIENT, rules)
    assert (decoded.calls[0].target, decoded.calls[0].value) == (TOKEN, 3)


def test_nesting_and_number_of_calls_are_bounded() -> None:
    rules = [governed(MULTICALL, AS_CALLS), governed(TRANSFER)]
    deep = call(TRANSFER, BOB, 1)
    for _ in range(5):
        deep = call(MULTICALL, [deep])
    with pytest.raises(NotGoverned, match="nested"):
        decode_intent(intent(deep, MULTICALL), CLIENT, rules)
    wide = call(MULTICALL, [call(TRANSFER, BOB, 1)] * 65)
    with pytest.raises(NotGoverned, match="nested"):
        decode_intent(intent(wide, MULTICALL), CLIENT, rules)


@pytest.mark.parametrize(
    "text",
    [
        '[{"argument":"/0","as":"code"}]',
        '[{"argument":"/9","as":"opaque"}]',
        '[{"argument":"0","as":"opaque"}]',
        '[{"argument":"/0","as":"call"}]',
        '[{"argument":"/0","as":"calls","target":"/0"}]',
        '[{"argument":"/0","as":"opaque","more":1}]',
        "{}",
        "[1]",
        "nonsense",
        '[{"argument":"/0","as":"opaque"},{"argument":"/0","as":"calls"}]',
    ],
)
def test_a_wrong_unpack_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_unpack(MULTICALL, text)


# --- signatures


@pytest.mark.parametrize(
    "text",
    ["f(uint)", "f( uint256)", "f(uint256 )", "f(uint256", "(uint256)", "f(bytes33)", "f(function)", "f(fixed128x18)",
     "f(uint256[0])", "f(())",
     "f(uint7)", "1f()", "f", "", "f(uint256)x", "f" + "(" * 200 + ")" * 200, "f(é)", "f(uint256" + "[]" * 33 + ")", "x" * 600 + "()"],
)  # fmt: skip
def test_a_signature_that_is_not_canonical_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_signature(text)


@pytest.mark.parametrize("text", ["()", "f()", "f(uint256)", "f((address,bytes)[],uint256[3])", "deposit_all(string)"])
def test_a_canonical_signature_is_taken(text: str) -> None:
    assert parse_signature(text).selector == (b"" if text == "()" else keccak256(text.encode())[:4])


# --- the strict decoder against eth_abi

BASIC = st.sampled_from(["uint256", "uint8", "int128", "address", "bool", "bytes", "string", "bytes4", "bytes32"])
TYPES = st.recursive(
    BASIC,
    lambda inner: st.one_of(
        inner.map(lambda t: t + "[]"),
        inner.map(lambda t: t + "[2]"),
        st.lists(inner, min_size=1, max_size=3).map(lambda ts: "(" + ",".join(ts) + ")"),
    ),
    max_leaves=5,
)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    if kind.arrlist:
        size = kind.arrlist[-1]
        bounds = {"min_size": size[0], "max_size": size[0]} if size else {"max_size": 3}
        return st.lists(values_of(kind.item_type), **bounds)
    if hasattr(kind, "components"):
        return st.tuples(*(values_of(member) for member in kind.components))
    match kind.base:
        case "uint":
            return st.integers(0, 2 ** int(kind.sub) - 1)
        case "int":
            return st.integers(-(2 ** (int(kind.sub) - 1)), 2 ** (int(kind.sub) - 1) - 1)
        case "address":
            return st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
        case "bool":
            return st.booleans()
        case "bytes":
            return st.binary(min_size=int(kind.sub), max_size=int(kind.sub)) if kind.sub else st.binary(max_size=70)
        case _:
            return st.text(max_size=30)


def as_lists(value: Any) -> Any:
    return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value


@settings(max_examples=200, deadline=None)
@given(st.lists(TYPES, min_size=1, max_size=4), st.data())
def test_strict_decoding_inverts_encoding_and_takes_nothing_else(names: list[str], data: st.DataObject) -> None:
    kinds = parse("(" + ",".join(names) + ")").components
    values = [data.draw(values_of(kind)) for kind in kinds]
    encoded = abi.encode(names, values)
    assert decode_strict(kinds, encoded) == as_lists(values)
    position = data.draw(st.integers(0, len(encoded) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(encoded)
    changed[position] ^= 1 << bit
    try:
        decoded = decode_strict(kinds, bytes(changed))
    except NotCanonical:
        return
    assert abi.encode(names, decoded) == bytes(changed)


def test_a_small_input_cannot_decode_to_much() -> None:
    kinds = parse("(uint8[][][][][][][][])").components
    bomb = (32).to_bytes(32, "big") + ((2).to_bytes(32, "big") + (0).to_bytes(32, "big") * 2) * 40
    with pytest.raises(NotCanonical):
        decode_strict(kinds, bomb)
    with pytest.raises(NotCanonical, match="longer than the data"):
        decode_strict(parse("(uint256[])").components, (32).to_bytes(32, "big") + (2**255).to_bytes(32, "big"))


def test_unpack_text_is_json_of_the_documented_form() -> None:
    assert json.loads(AS_CALL)[0]["as"] == "call"
