"""JSON with exact numbers and bounds: what policies, arguments and observations are read and written with.

`parse` refuses duplicate keys, NaN and Infinity, integers beyond 78 digits, nesting beyond a bound and, unless asked, fractions
and exponents.
`canonical` writes sorted keys, no white space, integers as they are: the same value has the same bytes at every operator.
Fractions (only Newton components may return them) are kept as `Fraction` text, so they reach Rego and the digest as they were written.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from placet.core.errors import InvalidInput, TooLarge

MAX_DIGITS = 78
MAX_DEPTH = 64

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")
_MAYBE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAYBE_INEXACT = re.compile(rb"-0(?![0-9])|[0-9]{79}")
_FRACTION = re.compile(r"-?(0|[1-9][0-9]{0,77})(\.[0-9]{1,78})?\Z")


class Fraction(float):
    """A JSON number with a fraction, written back exactly as it was read."""

    text: str

    def __new__(cls, text: str) -> Fraction:
        self = super().__new__(cls, text)
        self.text = text
        return self

    def __repr__(self) -> str:
        return self.text


def nests_deeper_than(text: bytes, depth: int) -> bool:
    """Whether brackets outside strings nest deeper than `depth`: found without parsing, so before any recursion, at the speed of C.

    Exact for JSON; of text whose brackets do not pair it may say so a little early.
    """
    if text.count(b"[") + text.count(b"{") <= depth:
        return False
    left = _STRING.sub(b"", text).translate(_AS_SQUARE, _NOT_BRACKETS)
    for level in range(depth + 1):
        if left.count(b"[") + level <= depth:
            return False
        shorter = left.replace(b"[]", b"")  # the innermost level
        if len(shorter) == len(left):
            return True
        left = shorter
    return True


def _has_more_values_than(text: bytes, bound: int) -> bool:
    """Whether there may be more values and keys outside strings than `bound`: each but one has a comma, colon or bracket before it."""
    if text.count(b",") + text.count(b":") + text.count(b"[") + text.count(b"{") < bound:
        return False
    left = _STRING.sub(b"", text)
    return left.count(b",") + left.count(b":") + left.count(b"[") + left.count(b"{") >= bound


def parse(
    data: bytes, *, field: str, max_bytes: int, max_depth: int = MAX_DEPTH, max_values: int | None = None, fractions: bool = False
) -> Any:
    """Parse JSON within bounds. Texts of errors quote nothing: they may be signed, and must be the same bytes in every Python.

    Raises:
        TooLarge: more bytes, values or levels than allowed; the message names field and limit.
        InvalidInput: not JSON, duplicate keys, or a number that is not exact.
    """
    if len(data) > max_bytes:
        raise TooLarge(f"{field}: {len(data)} bytes, at most {max_bytes}", field=field)
    if nests_deeper_than(data, max_depth):
        raise TooLarge(f"{field}: nested deeper than {max_depth}", field=field)
    if max_values is not None and _has_more_values_than(data, max_values):
        raise TooLarge(f"{field}: more than {max_values} values", field=field)

    def integer(text: str) -> int:
        if len(text.lstrip("-")) > MAX_DIGITS or text == "-0":
            raise InvalidInput(f"{field}: an integer has more than {MAX_DIGITS} digits or is -0", field=field)
        return int(text)

    def fraction(text: str) -> Fraction:
        if not fractions or not _FRACTION.match(text):
            raise InvalidInput(f"{field}: a number is not an exact integer (use scaled integers)", field=field)
        return Fraction(text)

    def constant(text: str) -> Any:
        raise InvalidInput(f"{field}: NaN or Infinity is not JSON", field=field)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in items:
            if key in out:
                raise InvalidInput(f"{field}: duplicate key", field=field)
            if key.startswith("$serde_json::private"):
                raise InvalidInput(f"{field}: reserved key", field=field)
            out[key] = value
        return out

    try:
        text = data.decode("utf-8")
        # Most texts hold nothing that needs a look number by number: then the parser's own conversion, in C.
        exact = _MAYBE_INEXACT.search(data) is None
        value = json.loads(
            text, parse_int=int if exact else integer, parse_float=fraction, parse_constant=constant, object_pairs_hook=pairs
        )
    except UnicodeDecodeError:
        raise InvalidInput(f"{field}: not UTF-8", field=field) from None
    except ValueError:
        raise InvalidInput(f"{field}: not JSON", field=field) from None
    if _MAYBE_SURROGATE.search(data) is not None:  # UTF-8 itself has none
        _refuse_surrogates(value, field)
    return value


def _refuse_surrogates(value: Any, field: str) -> None:
    if isinstance(value, str):
        if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
            raise InvalidInput(f"{field}: lone surrogate in a string", field=field)
    elif isinstance(value, dict):
        for key, member in value.items():
            _refuse_surrogates(key, field)
            _refuse_surrogates(member, field)
    elif isinstance(value, list):
        for member in value:
            _refuse_surrogates(member, field)


def canonical(value: Any) -> bytes:
    """Canonical bytes: keys sorted by code point, no white space, UTF-8, numbers as they were read."""
    try:
        return orjson.dumps(value, _as_read, orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer beyond 64 bits; and what is no JSON value, which `_encode` names
        return _encode(value).encode("utf-8")


def _as_read(value: Any) -> orjson.Fragment:
    if isinstance(value, Fraction):
        return orjson.Fragment(value.text)
    raise TypeError


def _encode(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case Fraction():
            return value.text
        case int():
            return str(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list() | tuple():
            return "[" + ",".join(map(_encode, value)) + "]"
        case dict():
            return "{" + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{_encode(value[key])}" for key in sorted(value)) + "}"
        case _:
            raise TypeError(f"not a JSON value: {type(value).__name__}")


def pointer(document: Any, path: str) -> Any:
    """RFC 6901: the value at `path`.

    Raises:
        KeyError: no such value.
    """
    if path == "":
        return document
    if not path.startswith("/"):
        raise KeyError(path)
    current = document
    for raw in path[1:].split("/"):
        part = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(current, dict):
            current = current[part]
        elif isinstance(current, list):
            if not (part == "0" or (part.isascii() and part.isdigit() and not part.startswith("0"))) or int(part) >= len(current):
                raise KeyError(path)
            current = current[int(part)]
        else:
            raise KeyError(path)
    return current
