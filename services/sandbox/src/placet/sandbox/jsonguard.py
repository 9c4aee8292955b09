"""Strict JSON for what crosses the sandbox border on the Python side: the twin of `guard_json` in the engine.

Size, depth and numbers are checked on the text, before anything is built from it: Python's own parser recurses, takes
duplicate keys, NaN and 400-million-digit numbers.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

MAX_DEPTH = 64
MAX_DIGITS = 78
MIN_EXPONENT, MAX_EXPONENT = -400, 77

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]|[-0-9][-+.eE0-9]*', re.DOTALL)
_RESERVED = "$serde_json::private"
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")


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


class JsonRejected(ValueError):
    """The text is not JSON, or not JSON that may enter a sandbox. The message says which rule it breaks."""


def parse_json(text: str | bytes, *, max_bytes: int, fractions: bool = False, max_depth: int = MAX_DEPTH) -> Any:
    """The document. Integers become `int`; with `fractions`, numbers with a point or exponent become `Decimal`.

    Raises `JsonRejected`.
    """
    size = len(text) if isinstance(text, bytes) else len(text.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise JsonRejected(f"{size} bytes, more than {max_bytes}")
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            raise JsonRejected("not UTF-8") from None
    _scan(text, fractions, max_depth)
    try:
        return json.loads(text, object_pairs_hook=_object, parse_float=Decimal, parse_constant=_constant, strict=True)
    except JsonRejected:
        raise
    except ValueError as error:
        raise JsonRejected(f"not JSON: {error}") from None


def _scan(text: str, fractions: bool, max_depth: int) -> None:
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        first = token[0]
        if first == '"':
            _check_string(token)
        elif first in "[{":
            depth += 1
            if depth > max_depth:
                raise JsonRejected(f"nested deeper than {max_depth}")
        elif first in "]}":
            depth -= 1
        else:
            _check_number(token, fractions)


def _check_string(token: str) -> None:
    literal = token
    if "\\" in token:
        try:
            decoded = json.loads(token)
        except ValueError:
            raise JsonRejected("not JSON: a broken string") from None
        literal = '"' + decoded
    if literal.startswith('"' + _RESERVED):
        raise JsonRejected("reserved string")
    if _LONE_SURROGATE.search(literal):
        raise JsonRejected("a lone surrogate is not text")


def _check_number(token: str, fractions: bool) -> None:
    unsigned = token.removeprefix("-")
    if unsigned.isdigit():
        if len(unsigned) > MAX_DIGITS:
            raise JsonRejected(f"number has more than {MAX_DIGITS} digits: {token[:60]}")
        if token == "-0" and not fractions:  # noqa: S105 (a token of the text)
            raise JsonRejected("number is not an exact integer: -0")
        return
    if not fractions:
        raise JsonRejected(f"number is not an exact integer: {token[:60]}")
    mantissa, _, exponent = unsigned.replace("E", "e").partition("e")
    if sum(map(str.isdigit, mantissa)) > MAX_DIGITS:
        raise JsonRejected(f"number has more than {MAX_DIGITS} digits: {token[:60]}")
    if exponent and (not re.fullmatch(r"[-+]?[0-9]{1,4}", exponent) or not MIN_EXPONENT <= int(exponent) <= MAX_EXPONENT):
        raise JsonRejected(f"number has an exponent outside {MIN_EXPONENT}..{MAX_EXPONENT}: {token[:60]}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise JsonRejected("duplicate key")
    return found


def _constant(name: str) -> Any:
    raise JsonRejected(f"{name} is not JSON")
