"""What JSON may enter the sandboxes. `guard_json` in the engine and `parse_json` in Python must agree, and let in nothing that
Python's own parser would not, or that two parsers read differently.
"""

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from placet.sandbox.errors import EvaluationFailed
from placet.sandbox.jsonguard import JsonRejected, parse_json
from placet.sandbox.rego import RegoEngine

FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def engine_takes(rego: RegoEngine, text: str, *, fractions: bool = False) -> bool:
    try:
        rego.guard_json(text, fractions=fractions)
    except EvaluationFailed as failed:
        return {"error": False}[failed.kind]  # any other kind is a defect
    return True


def python_takes(text: str, *, fractions: bool = False) -> bool:
    try:
        parse_json(text, max_bytes=1 << 20, fractions=fractions)
    except JsonRejected:
        return False
    return True


class Refused(Exception):
    pass


def expected(text: str) -> bool:
    """What the rules say, by Python's json and a walk over its result: slow and obvious. Exact mode."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise Refused
        return dict(pairs)

    def refuse(_: str) -> Any:
        raise Refused

    def integer(token: str) -> int:
        if token == "-0" or len(token.removeprefix("-")) > 78:
            raise Refused
        return int(token)

    def walk(value: Any, depth: int) -> None:
        if isinstance(value, dict | list) and depth + 1 > 64:
            raise Refused
        if isinstance(value, str) and (value.startswith("$serde_json::private") or any(0xD800 <= ord(c) < 0xE000 for c in value)):
            raise Refused
        if isinstance(value, dict):
            for key, item in value.items():
                walk(key, depth + 1)
                walk(item, depth + 1)
        elif isinstance(value, list):
            for item in value:
                walk(item, depth + 1)

    try:
        walk(json.loads(text, object_pairs_hook=no_duplicates, parse_float=refuse, parse_constant=refuse, parse_int=integer), 0)
    except (Refused, ValueError, RecursionError):
        return False
    return True


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**80), 10**80)
    | st.integers(-3, 3)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=8)
    | st.sampled_from(["$serde_json::private::Number", "$serde_json::private", "$serde_json"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4),
    max_leaves=12,
)
TOKENS = st.lists(
    st.sampled_from(
        [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            '"',
            "\\",
            "1",
            "0",
            "-",
            "-0",
            "1.5",
            "1e5",
            "1E-5",
            ".",
            "e",
            "+",
            "true",
            "null",
            "NaN",
            " ",
            "\n",
            '"a"',
            '"a":1',
            '"\\u0061"',
            '"\\ud800"',
            '"\\ud83d\\ude00"',
            "é",
            "\x00",
            "\x01",
            '"\x1f"',
            "/",
            "9" * 78,
            "9" * 79,
            "01",
            '"$serde_json::private::Number"',
            '"\\u0024serde_json::private::Number":"12"',
        ]
    ),
    max_size=14,
).map("".join)


@FAST
@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_documents_are_taken_exactly_when_the_rules_say_so(rego: RegoEngine, value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate cannot even be sent
    want = expected(text)
    assert engine_takes(rego, text) is want
    assert python_takes(text) is want


@FAST
@given(TOKENS)
def test_any_text_is_taken_exactly_when_the_rules_say_so(rego: RegoEngine, text: str) -> None:
    want = expected(text)
    assert engine_takes(rego, text) is want
    assert python_takes(text) is want


@FAST
@given(TOKENS)
def test_engine_and_python_agree_with_fractions(rego: RegoEngine, text: str) -> None:
    assert engine_takes(rego, text, fractions=True) is python_takes(text, fractions=True)


@FAST
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_27_every_double_that_a_newton_component_can_write_is_taken_up_to_78_digits(rego: RegoEngine, number: float) -> None:
    text = json.dumps(number)
    exponent = math.floor(math.log10(abs(number))) if number else 0
    assert engine_takes(rego, text, fractions=True) is (exponent <= 77)
    assert python_takes(text, fractions=True) is (exponent <= 77)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("1e77", True),
        ("1e78", False),
        ("1e+77", True),
        ("1E77", True),
        ("5e-324", True),
        ("1e-400", True),
        ("1e-401", False),
        ("1e0000000001", False),
        ("1e99999999999999999999", False),
        ("-1.5", True),
        ("-0", True),
        ("0.1e1", True),
        ("1.", False),
        (".5", False),
        ("1.5.5", False),
        ("1e", False),
        ("1e5e5", False),
        ("--1", False),
        ("1-1", False),
        ("0." + "1" * 77, True),
        ("0." + "1" * 78, False),
        ("9" * 78, True),
        ("9" * 79, False),
    ],
)
def test_27_fractions_have_their_own_bounds(rego: RegoEngine, text: str, taken: bool) -> None:
    assert engine_takes(rego, text, fractions=True) is taken
    assert python_takes(text, fractions=True) is taken


def test_size_is_checked_before_anything_else() -> None:
    with pytest.raises(JsonRejected, match="more than 10"):
        parse_json("[" * 11, max_bytes=10)
    with pytest.raises(JsonRejected, match="UTF-8"):
        parse_json(b'"\xff"', max_bytes=10)
    with pytest.raises(JsonRejected, match="deeper"):
        parse_json("[" * 100_000, max_bytes=1 << 20)
