"""JSON with exact numbers and bounds."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placet.core import jsonx
from placet.core.errors import InvalidInput, TooLarge

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**77), 10**77) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def parse(text: bytes | str, **options: Any) -> Any:
    raw = text.encode() if isinstance(text, str) else text
    return jsonx.parse(raw, field="x", max_bytes=options.pop("max_bytes", 10_000), **options)


@given(VALUES)
def test_canonical_text_reads_back_as_the_same_value_and_the_same_text(value: Any) -> None:
    text = jsonx.canonical(value)
    assert parse(text, max_bytes=1 << 20) == value
    assert jsonx.canonical(parse(text, max_bytes=1 << 20)) == text
    assert json.loads(text) == value


@given(VALUES, st.from_regex(r"-?(0|[1-9][0-9]{0,20})\.[0-9]{1,20}", fullmatch=True))
def test_the_quick_way_to_canonical_text_is_the_plain_one(value: Any, fraction: str) -> None:
    for document in (value, [value, jsonx.Fraction(fraction)], {"a": value, "b": jsonx.Fraction(fraction)}):
        try:
            plain = jsonx._encode(document).encode()
        except UnicodeEncodeError:
            with pytest.raises(UnicodeEncodeError):
                jsonx.canonical(document)
            continue
        assert jsonx.canonical(document) == plain


@pytest.mark.parametrize(
    "text", ['{"a":-0}', "[-0,1]", '{"-0":1,"b":"-0","c":-0}', '"\\uD83D"', '["\\ud83d\\ude00","\\uDE00"]', "[" + "9" * 79 + "]"]
)
def test_what_is_looked_for_first_in_the_bytes_is_found(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse(text)


def test_texts_that_only_look_inexact_are_read() -> None:
    assert parse('{"a":"-0","b":"' + "9" * 90 + '","c":"\\ud83d\\ude00","d":-1}') == {"a": "-0", "b": "9" * 90, "c": "\U0001f600", "d": -1}


def test_the_order_of_keys_and_white_space_do_not_matter() -> None:
    assert jsonx.canonical(parse('{ "b":1,\n"a":[ 2 ]}')) == b'{"a":[2],"b":1}'


@pytest.mark.parametrize(
    "text",
    [
        *('{"a":1,"a":2}', "1.5", "1e3", "-0", "NaN", "Infinity", "[1,]", "", "{", '"\\ud800"', '{"\\udc00":1}', "9" * 79, b"\xff"),
        '{"$serde_json::private::Number":"1"}',
    ],
)
def test_what_is_not_exact_or_not_json_is_refused(text: bytes | str) -> None:
    with pytest.raises(InvalidInput):
        parse(text)


def test_27_fractions_are_kept_as_written_where_they_are_allowed_and_refused_elsewhere() -> None:
    assert jsonx.canonical(parse('{"a":0.10}', fractions=True)) == b'{"a":0.10}'
    with pytest.raises(InvalidInput, match="scaled integers"):
        parse('{"a":0.10}')
    with pytest.raises(InvalidInput):
        parse("1e400000000", fractions=True)


def test_size_and_depth_are_refused_before_parsing() -> None:
    with pytest.raises(TooLarge, match="at most 10"):
        parse("[" * 100, max_bytes=10)
    with pytest.raises(TooLarge, match="nested deeper than 64"):
        parse("[" * 5_000)
    assert parse("[" * 64 + "]" * 64)
    assert parse('"' + "[" * 100 + '"'), "brackets in a string are no nesting"
    assert parse('"\\"' + "[" * 100 + '"')


@pytest.mark.parametrize(("path", "wanted"), [("", {"a/b": [1, {"~": 2}]}), ("/a~1b/0", 1), ("/a~1b/1/~0", 2)])
def test_pointers(path: str, wanted: Any) -> None:
    assert jsonx.pointer({"a/b": [1, {"~": 2}]}, path) == wanted


@pytest.mark.parametrize("path", ["a", "/x", "/a~1b/2", "/a~1b/-", "/a~1b/00", "/a~1b/+0", "/a~1b/0/0", "/a~1b/٠"])
def test_a_pointer_to_nothing_is_a_key_error(path: str) -> None:
    with pytest.raises(KeyError):
        jsonx.pointer({"a/b": [1]}, path)


def _depth(value: object) -> int:
    members: list[object] = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + max(map(_depth, members), default=0) if isinstance(value, dict | list) else 0


@given(
    st.recursive(
        st.text(alphabet='a"\\[]{}\n', max_size=6) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='"[{\\', max_size=3), inner, max_size=3),
        max_leaves=20,
    )
)
def test_nesting_is_told_exactly_without_parsing(value: object) -> None:
    for text in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False, indent=1).encode()):
        deepest = _depth(value)
        assert not jsonx.nests_deeper_than(text, deepest)
        assert deepest == 0 or jsonx.nests_deeper_than(text, deepest - 1)


@given(st.text(alphabet='"\\[]{}:,1 \n', max_size=200))
def test_18_no_text_is_parsed_deeper_than_allowed(text: str) -> None:
    if not jsonx.nests_deeper_than(text.encode(), 8):
        depth = deepest = 0
        for match in re.finditer(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', text, re.DOTALL):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group(), 0)
            deepest = max(deepest, depth)
        assert deepest <= 8


@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"a":' * 50_000, b'"' + b'\\"' * 100_000, b"[]" * 100_000, b'[["' + b"\\" * 99_999])
def test_18_hostile_text_is_refused_at_once(text: bytes) -> None:
    with pytest.raises(InvalidInput):
        jsonx.parse(text, field="x", max_bytes=1 << 20)


def test_18_values_are_counted_before_parsing() -> None:
    text = b'{"a,b:[":[1,2,{"c":3}]}'
    assert jsonx.parse(text, field="x", max_bytes=100, max_values=8) == {"a,b:[": [1, 2, {"c": 3}]}
    with pytest.raises(TooLarge, match="more than 7 values"):
        jsonx.parse(text, field="x", max_bytes=100, max_values=7)
