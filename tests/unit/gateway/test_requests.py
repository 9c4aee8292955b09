"""Parsing: whatever is sent, the answer is a request or a typed 4xx."""

from __future__ import annotations

import copy
import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placet.core.errors import InvalidInput, PlacetError, TooLarge
from placet.core.intents import intent_json
from placet.core.types import hex0x
from placet.gateway import requests as parsing
from placet.gateway.requests import IntentRequest, parse_intent_request
from tests.support.authorization import CLIENT, World

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(["0x", "0x00", "relay", "()"])
NAMES = st.text() | st.sampled_from(["from", "to", "intent"])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12)
VALID: dict[str, Any] = {
    "policyClient": hex0x(CLIENT),
    "intent": intent_json(World().intent()),
    "signature": "0x" + "11" * 65,
    "args": {"a": 1},
    "attachments": [{"kind": "receipt", "sha256": "0x" + "22" * 32, "uri": "s3://x"}],
    "submit": "none",
}
PLACES = [
    (),
    *[(name,) for name in VALID],
    *[("intent", name) for name in VALID["intent"]],
    ("attachments", 0),
    *[("attachments", 0, name) for name in ("kind", "sha256", "uri")],
    ("unknown",),
    ("intent", "unknown"),
]


def parsed(raw: bytes) -> IntentRequest | PlacetError:
    """The request, or the typed refusal. Anything else is a failure of the test."""
    try:
        return parse_intent_request(raw)
    except PlacetError as error:
        assert 400 <= error.http_status < 500
        orjson.dumps(error.problem())  # it can be shown
        return error


def changed(place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    document = copy.deepcopy(VALID)
    inner: Any = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return document


def test_the_document_that_is_broken_here_is_valid() -> None:
    request = parse_intent_request(orjson.dumps(VALID))
    assert request.intent == World().intent(deadline=request.intent.deadline)
    assert request.args == b'{"a":1}'


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_any_json_in_any_place_gives_a_request_or_a_typed_4xx(place: tuple[Any, ...], value: Any) -> None:
    raw = json.dumps(changed(place, value)).encode()  # not orjson, which writes no lone surrogates and no large integers
    parsed(raw)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_typed_4xx(raw: bytes) -> None:
    assert isinstance(parsed(raw), InvalidInput)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_valid_document_with_one_byte_changed(at: int, byte: int) -> None:
    raw = bytearray(orjson.dumps(VALID))
    raw[at % len(raw)] = byte
    parsed(bytes(raw))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"policyClient": "\\ud800"}',
        b'{"\\udfff": 1, "policyClient": 1, "intent": 2}',
        b'{"a":1,"a":2}',
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"NaN",
        b'{"policyClient": 1e400}',
        b"9" * 5000,
        b"\xff\xfe",
        b"",
    ],
    ids=["surrogate", "surrogate-name", "twice", "deep-list", "deep-object", "nan", "infinite", "long-number", "no-utf8", "empty"],
)
def test_documents_that_have_broken_parsers(raw: bytes) -> None:
    assert isinstance(parsed(raw), InvalidInput)


LARGE: dict[tuple[Any, ...], Any] = {
    ("intent", "data"): "0x" + "00" * 40_000,
    ("signature",): "0x" + "00" * 5000,
    ("args",): {"x": "y" * 70_000},
    ("intent", "functionSignature"): "f(" + "x" * 600,
    ("attachments", 0, "uri"): "x" * 2000,
}


@pytest.mark.parametrize("place", LARGE, ids=lambda place: str(place[-1]))
def test_what_is_too_large_says_so_with_its_limit(place: tuple[Any, ...]) -> None:
    error = parsed(orjson.dumps(changed(place, LARGE[place])))
    assert isinstance(error, TooLarge)
    assert "at most" in error.message
    assert error.field is not None


def test_a_body_above_the_limit_is_not_parsed() -> None:
    assert isinstance(parsed(b" " * (parsing.MAX_BODY_BYTES + 1)), TooLarge)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"submit": "relay", "signature": ""}, "/signature"),
        ({"submit": "relay", "intent": {**VALID["intent"], "value": "1"}}, "/intent/value"),
        ({"submit": "now"}, "/submit"),
        ({"intent": {**VALID["intent"], "value": "01"}}, "/intent/value"),
        ({"intent": {**VALID["intent"], "value": -1}}, "/intent/value"),
        ({"intent": {**VALID["intent"], "value": True}}, "/intent/value"),
        ({"intent": {**VALID["intent"], "value": str(1 << 256)}}, "/intent/value"),
        ({"intent": {**VALID["intent"], "from": "0x" + "00" * 19}}, "/intent/from"),
        ({"intent": {**VALID["intent"], "deadline": 1 << 64}}, "/intent/deadline"),
        ({"attachments": [{}] * 9}, "/attachments"),
        ({"more": 1}, "/more"),
    ],
)
def test_the_offending_member_is_named(changes: dict[str, Any], field: str) -> None:
    error = parsed(json.dumps({**VALID, **changes}).encode())
    assert isinstance(error, InvalidInput)
    assert error.field == field


@settings(max_examples=100, deadline=None)
@given(st.integers(0, (1 << 256) - 1), st.integers(0, (1 << 64) - 1), st.binary(max_size=100))
def test_an_intent_survives_its_json_form(value: int, number: int, data: bytes) -> None:
    intent = World().intent(value=value, nonce=value, deadline=number, chain_id=number, data=data)
    assert parsing.parse_intent(orjson.loads(orjson.dumps(intent_json(intent)))) == intent
