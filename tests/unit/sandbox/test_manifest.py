"""Manifests: strict, bounded, and explicit about how operators agree."""

import json
from decimal import Decimal
from typing import Any

import pytest

from placet.sandbox.jsonguard import parse_json
from placet.sandbox.manifest import NEWTON_WORLD, PLACET_WORLD, ConsensusRule, Manifest, ManifestError, SchemaMismatch

PRICE = {"type": "integer", "consensus": {"rule": "median", "tolerance": {"relative_bps": 50}}}


def document(**changes: Any) -> dict[str, Any]:
    return {
        "name": "prices",
        "world": PLACET_WORLD,
        "arguments": {"type": "object", "properties": {"subject": {"type": "string", "format": "address"}}, "required": ["subject"]},
        "secrets": ["api_key"],
        "output": {"type": "object", "properties": {"price_e6": PRICE}, "required": ["price_e6"]},
        "allowed_hosts": ["api.example.com", "*.example.org:8443"],
        "limits": {"fuel": 1_000_000, "deadline_ms": 2_000},
        **changes,
    }


def parse(**changes: Any) -> Manifest:
    return Manifest.parse(json.dumps(document(**changes)).encode())


def test_a_manifest_says_what_its_component_may_do() -> None:
    manifest = parse()
    assert manifest.limits.fuel == 1_000_000
    assert manifest.limits.memory_bytes == 64 << 20
    assert manifest.consensus_rules == {"/price_e6": ConsensusRule("median", None, 50)}
    assert manifest.caller_forbidden == {"/subject"}
    assert manifest.clock == "task"
    assert not manifest.fractions


def test_every_consensus_rule_can_be_said() -> None:
    properties = {
        "e": {"type": "string", "consensus": {"rule": "exact"}},
        "mj": {"type": "object", "consensus": {"rule": "majority"}, "properties": {"a": {"type": "integer"}}},
        "md": {"type": "string", "format": "decimal", "consensus": {"rule": "median", "tolerance": {"absolute": "0.5"}}},
        "mn": {"type": "integer", "consensus": {"rule": "min"}},
        "mx": {"type": "integer", "consensus": {"rule": "max"}},
        "u": {"type": "array", "items": {"type": "string"}, "consensus": {"rule": "union"}},
        "i": {"type": "array", "items": {"type": "string"}, "consensus": {"rule": "intersection"}},
    }
    rules = parse(output={"type": "object", "properties": properties, "required": list(properties)}).consensus_rules
    assert {place: rule.rule for place, rule in rules.items()} == {
        "/mj": "majority",
        "/md": "median",
        "/mn": "min",
        "/mx": "max",
        "/u": "union",
        "/i": "intersection",
    }
    assert rules["/md"].absolute == Decimal("0.5")


def field_of(**changes: Any) -> str:
    with pytest.raises(ManifestError) as error:
        parse(**changes)
    return error.value.field


def output(schema: Any, *, required: bool = True) -> dict[str, Any]:
    return {"type": "object", "properties": {"v": schema}, "required": ["v"] if required else []}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"extra": 1}, "extra"),
        ({"name": "a b"}, "name"),
        ({"name": 5}, "name"),
        ({"name": "a" * 100}, "name"),
        ({"world": "wasi:http/proxy@0.2.0"}, "world"),
        ({"clock": "frozen"}, "clock"),
        ({"arguments": {"type": "string"}}, "arguments"),
        ({"arguments": {"type": "object", "properties": {"a": PRICE}, "required": ["a"]}}, "arguments/a"),
        ({"arguments": {"type": "object", "additionalProperties": True}}, "arguments.additionalProperties"),
        ({"arguments": {"type": "object", "properties": {"a": {"type": "number"}}}}, "/a"),
        ({"output": output({"type": "number"})}, "/v"),
        ({"output": output({"type": "text"})}, "output.properties.v.type"),
        ({"output": output({"type": "string", "format": "email"})}, "output.properties.v.format"),
        ({"output": output({"type": "string", "maxLength": -1})}, "output.properties.v.maxLength"),
        ({"output": output({"type": "string", "maxLength": True})}, "output.properties.v.maxLength"),
        ({"output": output({"type": "string", "enum": []})}, "output.properties.v.enum"),
        ({"output": output({"type": "string", "maximum": 5})}, "output.properties.v.maximum"),
        ({"output": output({"type": "array"})}, "output.properties.v.items"),
        ({"output": {"type": "object", "required": ["v"]}}, "output.required"),
        ({"output": {"type": "object", "properties": {"a/b": {"type": "null"}}}}, "output.properties"),
        ({"output": output({"type": "integer", "consensus": {"rule": "mean"}})}, "output.properties.v.consensus.rule"),
        ({"output": output({"type": "string", "consensus": {"rule": "max"}})}, "output.properties.v.consensus.rule"),
        ({"output": output({"type": "string", "consensus": {"rule": "union"}})}, "output.properties.v.consensus.rule"),
        ({"output": output({"type": "integer", "consensus": {"rule": "median"}})}, "output.properties.v.consensus.tolerance"),
        (
            {"output": output({"type": "integer", "consensus": {"rule": "median", "tolerance": {}}})},
            "output.properties.v.consensus.tolerance",
        ),
        (
            {"output": output({"type": "integer", "consensus": {"rule": "median", "tolerance": {"absolute": "1", "relative_bps": 1}}})},
            "output.properties.v.consensus.tolerance",
        ),
        (
            {"output": output({"type": "integer", "consensus": {"rule": "median", "tolerance": {"absolute": "-1"}}})},
            "output.properties.v.consensus.tolerance.absolute",
        ),
        (
            {"output": output({"type": "integer", "consensus": {"rule": "median", "tolerance": {"relative_bps": 10_001}}})},
            "output.properties.v.consensus.tolerance.relative_bps",
        ),
        (
            {"output": output({"type": "integer", "consensus": {"rule": "max", "tolerance": {"relative_bps": 1}}})},
            "output.properties.v.consensus.tolerance",
        ),
        ({"output": output({"type": "integer", "consensus": {"rule": "max"}}, required=False)}, "output/v"),
        ({"output": output({"type": "array", "items": PRICE})}, "output/v/-"),
        (
            {"output": output({"type": "object", "consensus": {"rule": "majority"}, "properties": {"w": PRICE}, "required": ["w"]})},
            "output/v/w",
        ),
        ({"secrets": ["a", "a"]}, "secrets"),
        ({"secrets": "a"}, "secrets"),
        ({"allowed_hosts": ["https://a.com"]}, "allowed_hosts"),
        ({"allowed_hosts": ["*"]}, "allowed_hosts"),
        ({"allowed_hosts": ["*.com"]}, "allowed_hosts"),
        ({"allowed_hosts": ["10.0.0.1"]}, "allowed_hosts"),
        ({"allowed_hosts": ["2130706433"]}, "allowed_hosts"),
        ({"allowed_hosts": ["a.com:0"]}, "allowed_hosts"),
        ({"allowed_hosts": ["a.com:70000"]}, "allowed_hosts"),
        ({"allowed_hosts": ["A.com"]}, "allowed_hosts"),
        ({"allowed_hosts": ["a.com/b"]}, "allowed_hosts"),
        ({"allowed_hosts": [f"h{i}.com" for i in range(33)]}, "allowed_hosts"),
        ({"limits": {"fuel": 0}}, "limits.fuel"),
        ({"limits": {"fuel": 10**15}}, "limits.fuel"),
        ({"limits": {"memory_bytes": 1 << 40}}, "limits.memory_bytes"),
        ({"limits": {"disk": 1}}, "limits.disk"),
        ({"limits": []}, "limits"),
    ],
)
def test_an_error_names_the_field(changes: dict[str, Any], field: str) -> None:
    assert field_of(**changes) == field


def test_errors_name_the_limit() -> None:
    with pytest.raises(ManifestError) as error:
        parse(limits={"fetches": 1_000})
    assert (error.value.field, error.value.limit) == ("limits.fetches", 50)
    with pytest.raises(ManifestError) as error:
        parse(output={"type": "object", "properties": {f"f{i}": {"type": "null"} for i in range(300)}})
    assert error.value.limit == 256


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 1_000_000,
        b'{"name": "a", "name": "b"}',
        b'{"a": 1e400000000}',
        b'{"a": 1.5}',
        b" " * 70_000,
        b'{"a":' * 30 + b"1" + b"}" * 30,
        b'{"a": NaN}',
    ],
)
def test_broken_or_oversized_bytes_are_refused_before_they_are_read(text: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.parse(text)


def test_12_a_newton_component_s_manifest_says_what_its_clock_is() -> None:
    with pytest.raises(ManifestError, match="clock"):
        parse(world=NEWTON_WORLD)
    assert parse(world=NEWTON_WORLD, clock="frozen").clock == "frozen"
    assert parse(world=NEWTON_WORLD, clock="task").clock == "task"


def test_27_only_a_newton_component_s_output_may_hold_fractions() -> None:
    rule = {"rule": "median", "tolerance": {"relative_bps": 1_000}}
    manifest = parse(world=NEWTON_WORLD, clock="frozen", output=output({"type": "number", "consensus": rule}))
    assert manifest.fractions
    manifest.output.check(parse_json('{"v": 0.25}', max_bytes=100, fractions=True))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 5}, ["0", "5"], ["-1", "6", "true", '"1"', "null"]),
        ({"type": "string", "maxLength": 3}, ['"abc"'], ['"abcd"', "1"]),
        ({"type": "string", "enum": ["a", "b"]}, ['"a"'], ['"c"']),
        ({"type": "string", "format": "address"}, ['"0x' + "aB" * 20 + '"'], ['"0x12"', '"' + "ab" * 20 + '"']),
        ({"type": "string", "format": "url"}, ['"https://a.com/b"'], ['"ftp://a"', '"a b"']),
        ({"type": "string", "format": "decimal"}, ['"0"', '"-12"'], ['"1.5"', '"01"', '"-0"']),
        ({"type": "string", "format": "hex"}, ['"0x"', '"0xab"'], ['"0xa"', '"ab"']),
        ({"type": "boolean"}, ["true"], ["1"]),
        ({"type": "null"}, ["null"], ["0"]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, ["[]", "[1,2]"], ["[1,2,3]", '["a"]', "{}"]),
        (
            {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
            ['{"a":null}'],
            ["{}", '{"a":null,"b":1}', '{"a":1}'],
        ),
        ({"type": "json"}, ["1", "[[]]", "null"], []),
    ],
)
def test_values_are_checked_against_their_schema(schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    parsed = parse(output=output(schema)).output.properties["v"]
    for text in good:
        parsed.check(parse_json(text, max_bytes=1_000))
    for text in bad:
        with pytest.raises(SchemaMismatch):
            parsed.check(parse_json(text, max_bytes=1_000))
