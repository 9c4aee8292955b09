"""The manifest of a PolicyData component: what it may ask for, what it may answer, how operators agree on the answer.

The manifest's bytes are part of the policyDataId, so everything here is strict: an unknown field is an error, never
ignored, and every number is bounded. docs: README.md of this service has an annotated example.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, cast

from placet.sandbox.jsonguard import JsonRejected, parse_json

MAX_MANIFEST_BYTES = 64 << 10
MAX_MANIFEST_DEPTH = 24
MAX_FIELDS = 256
MAX_HOSTS = 32

PLACET_WORLD: Final = "placet:policydata@1.0.0"
NEWTON_WORLD: Final = "newton:provider@0.2.0"
World = Literal["placet:policydata@1.0.0", "newton:provider@0.2.0"]

RuleName = Literal["exact", "majority", "median", "min", "max", "union", "intersection"]
Type = Literal["object", "array", "string", "integer", "number", "boolean", "null", "json"]
Format = Literal["address", "url", "uri", "hostname", "hex", "hash", "decimal"]

_RULES = ("exact", "majority", "median", "min", "max", "union", "intersection")
_FORMATS: Mapping[str, re.Pattern[str]] = {
    "address": re.compile(r"0x[0-9a-fA-F]{40}"),
    "url": re.compile(r"https?://[!-~]{1,2000}"),
    "uri": re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:[!-~]{1,2000}"),
    "hostname": re.compile(r"(?=.{1,253}$)[a-zA-Z0-9]([a-zA-Z0-9-]{0,62})(\.[a-zA-Z0-9][a-zA-Z0-9-]{0,62})*"),
    "hex": re.compile(r"0x([0-9a-fA-F]{2})*"),
    "hash": re.compile(r"0x[0-9a-fA-F]{64}"),
    "decimal": re.compile(r"0|-?[1-9][0-9]{0,77}"),
}
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null", "json")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9][a-z0-9-]{0,62})*(:[0-9]{1,5})?")


class ManifestError(ValueError):
    """A manifest that is not accepted. `field` is a path such as `output.properties.price`; `limit` the bound that was broken, if any."""

    def __init__(self, field: str, message: str, limit: int | None = None) -> None:
        super().__init__(f"{field or 'manifest'}: {message}" + (f" (limit {limit})" if limit is not None else ""))
        self.field = field
        self.limit = limit


class SchemaMismatch(ValueError):
    """A value that its schema does not describe. `place` is a JSON pointer."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(f"{place or '/'}: {message}")
        self.place = place


@dataclass(frozen=True, slots=True)
class ConsensusRule:
    """How the value at one place is agreed. Only a median has a tolerance, and it has exactly one."""

    rule: RuleName
    absolute: Decimal | None = None
    relative_bps: int | None = None


EXACT = ConsensusRule("exact")


@dataclass(frozen=True, slots=True)
class Schema:
    """A small typed subset of JSON Schema. Objects are closed: a key without a property is a mismatch. `json` is any value."""

    type: Type
    properties: Mapping[str, Schema] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    items: Schema | None = None
    format: Format | None = None
    enum: tuple[str, ...] | None = None
    max_length: int | None = None
    max_items: int | None = None
    minimum: int | None = None
    maximum: int | None = None
    consensus: ConsensusRule = EXACT

    def check(self, value: Any, place: str = "") -> None:
        """Raises `SchemaMismatch` unless `value` (as `parse_json` gives it) is described. Depth is bounded by `parse_json`."""
        if self.type == "json":
            return
        if not _has_type(value, self.type):
            raise SchemaMismatch(place, f"is not of type {self.type}")
        if isinstance(value, dict):
            self._check_object(value, place)
        elif isinstance(value, list):
            if self.max_items is not None and len(value) > self.max_items:
                raise SchemaMismatch(place, f"has more than {self.max_items} items")
            for index, item in enumerate(value):
                if self.items is not None:
                    self.items.check(item, f"{place}/{index}")
        elif isinstance(value, str):
            self._check_string(value, place)
        elif isinstance(value, int | Decimal) and not isinstance(value, bool):
            if self.minimum is not None and value < self.minimum:
                raise SchemaMismatch(place, f"is below {self.minimum}")
            if self.maximum is not None and value > self.maximum:
                raise SchemaMismatch(place, f"is above {self.maximum}")

    def _check_object(self, value: Mapping[str, Any], place: str) -> None:
        for name in sorted(self.required - value.keys()):
            raise SchemaMismatch(f"{place}/{_escaped(name)}", "is missing")
        for name, item in value.items():
            if name not in self.properties:
                raise SchemaMismatch(f"{place}/{_escaped(name)[:100]}", "is not a property of the schema")
            self.properties[name].check(item, f"{place}/{_escaped(name)}")

    def _check_string(self, value: str, place: str) -> None:
        if self.max_length is not None and len(value) > self.max_length:
            raise SchemaMismatch(place, f"is longer than {self.max_length} characters")
        if self.enum is not None and value not in self.enum:
            raise SchemaMismatch(place, "is not one of the listed values")
        if self.format is not None and not _FORMATS[self.format].fullmatch(value):
            raise SchemaMismatch(place, f"is not of format {self.format}")

    def walk(self, place: str = "") -> Iterator[tuple[str, Schema]]:
        """Every described place with its JSON pointer, the whole first. Items of arrays stand at `<array>/-`."""
        yield place, self
        for name, schema in self.properties.items():
            yield from schema.walk(f"{place}/{_escaped(name)}")
        if self.items is not None:
            yield from self.items.walk(f"{place}/-")


@dataclass(frozen=True, slots=True)
class ComponentLimits:
    """What one run may use. Fuel and memory decide outcomes; the wall-clock deadline only ever makes an operator abstain."""

    fuel: int = 10_000_000_000
    memory_bytes: int = 64 << 20
    deadline_ms: int = 5_000
    fetches: int = 16
    response_bytes: int = 1 << 20
    output_bytes: int = 64 << 10


_LIMIT_RANGES: Mapping[str, tuple[int, int]] = {
    "fuel": (1, 50_000_000_000),
    "memory_bytes": (1 << 16, 256 << 20),
    "deadline_ms": (10, 30_000),
    "fetches": (0, 50),
    "response_bytes": (0, 1 << 20),
    "output_bytes": (2, 256 << 10),
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest. `clock` says what a `newton:provider` component's clock is: `frozen`, or `task` for one built with a
    `Date` shim; always `task` in Placet's own world."""

    name: str
    world: World
    clock: Literal["task", "frozen"]
    arguments: Schema
    secrets: tuple[str, ...]
    output: Schema
    allowed_hosts: tuple[str, ...]
    limits: ComponentLimits

    @classmethod
    def parse(cls, manifest: bytes) -> Manifest:
        """Raises `ManifestError`."""
        try:
            document = parse_json(manifest, max_bytes=MAX_MANIFEST_BYTES, max_depth=MAX_MANIFEST_DEPTH)
        except JsonRejected as rejected:
            raise ManifestError("", str(rejected)) from None
        return _manifest(document)

    @property
    def fractions(self) -> bool:
        """Whether the output may hold fractions: only a Newton component's."""
        return self.world == NEWTON_WORLD

    @property
    def consensus_rules(self) -> dict[str, ConsensusRule]:
        """JSON pointer into the output → rule, for every place whose rule is not `exact`. None lies inside another."""
        return {place: schema.consensus for place, schema in self.output.walk() if schema.consensus != EXACT}

    @property
    def caller_forbidden(self) -> frozenset[str]:
        """JSON pointers of arguments that a caller may never set: URLs, endpoints and contracts or subjects to be screened."""
        formats = ("address", "url", "uri", "hostname")
        return frozenset(place for place, schema in self.arguments.walk() if schema.format in formats)


def _manifest(document: Any) -> Manifest:
    top = _Fields(document, "")
    name = top.string("name", 64)
    if not _NAME.fullmatch(name):
        raise ManifestError("name", "letters, digits, _ and - only")
    world = top.string("world", 64)
    if world not in (PLACET_WORLD, NEWTON_WORLD):
        raise ManifestError("world", f"neither {PLACET_WORLD} nor {NEWTON_WORLD}")
    clock = top.string("clock", 16, default="" if world == NEWTON_WORLD else "task")
    if world == NEWTON_WORLD and clock not in ("frozen", "task"):
        raise ManifestError("clock", "a newton:provider component says `frozen`, or `task` when it was built with the Date shim")
    if world == PLACET_WORLD and clock != "task":
        raise ManifestError("clock", "is always `task` in this world")
    counter = _Counter()
    arguments = _schema(top.take("arguments", {"type": "object"}), "arguments", counter)
    output = _schema(top.take("output"), "output", counter)
    if arguments.type != "object":
        raise ManifestError("arguments", "must be an object")
    if output.type != "object":
        raise ManifestError("output", "must be an object")
    for place, schema in arguments.walk():
        if schema.consensus != EXACT:
            raise ManifestError(f"arguments{place}", "only output has consensus rules")
    for place, schema in (*arguments.walk(), *(output.walk() if world == PLACET_WORLD else ())):
        if schema.type == "number":
            raise ManifestError(place, "fractions are refused here: use a scaled integer")
    _check_rules(output, "", reachable=True, inside_rule=False)
    secrets = tuple(_names(top.take("secrets", []), "secrets"))
    hosts = _hosts(top.take("allowed_hosts", []))
    limits = _limits(top.take("limits", {}))
    top.done()
    return Manifest(name, cast("World", world), cast('Literal["task", "frozen"]', clock), arguments, secrets, output, hosts, limits)


class _Counter:
    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def count(self, place: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise ManifestError(place, "too many fields in the schemas", MAX_FIELDS)


class _Fields:
    """An object whose fields are taken one by one; what is left at the end is an error."""

    def __init__(self, document: Any, place: str) -> None:
        if not isinstance(document, dict):
            raise ManifestError(place, "is not an object")
        self._left = dict(document)
        self._place = place

    def path(self, name: str) -> str:
        return f"{self._place}.{name}" if self._place else name

    def take(self, name: str, default: Any = ...) -> Any:
        value = self._left.pop(name, default)
        if value is ...:
            raise ManifestError(self.path(name), "is missing")
        return value

    def string(self, name: str, limit: int, default: Any = ...) -> str:
        value = self.take(name, default)
        if not isinstance(value, str):
            raise ManifestError(self.path(name), "is not a string")
        if len(value) > limit:
            raise ManifestError(self.path(name), "is too long", limit)
        return value

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        value = self.take(name, default)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise ManifestError(self.path(name), "is not an integer")
        if value < low:
            raise ManifestError(self.path(name), "is too small", low)
        if value > high:
            raise ManifestError(self.path(name), "is too large", high)
        return value

    def done(self) -> None:
        for name in self._left:
            raise ManifestError(self.path(name[:100]), "is not a known field")


def _schema(document: Any, place: str, counter: _Counter) -> Schema:
    counter.count(place)
    fields = _Fields(document, place)
    kind = fields.string("type", 16)
    if kind not in _TYPES:
        raise ManifestError(fields.path("type"), f"is not one of {', '.join(_TYPES)}")
    fields.string("description", 1_000, "")
    properties: dict[str, Schema] = {}
    required: frozenset[str] = frozenset()
    items: Schema | None = None
    format_: str | None = None
    enum: tuple[str, ...] | None = None
    max_length = max_items = minimum = maximum = None
    if kind == "object":
        listed = fields.take("properties", {})
        if not isinstance(listed, dict):
            raise ManifestError(fields.path("properties"), "is not an object")
        for name, schema in listed.items():
            if not _NAME.fullmatch(name):
                raise ManifestError(fields.path("properties"), f"{name[:64]!r} is not a name of letters, digits, _ and -")
            properties[name] = _schema(schema, fields.path(f"properties.{name}"), counter)
        required = frozenset(_names(fields.take("required", []), fields.path("required")))
        for name in sorted(required - properties.keys()):
            raise ManifestError(fields.path("required"), f"{name} is not a property")
    elif kind == "array":
        items = _schema(fields.take("items"), fields.path("items"), counter)
        max_items = fields.integer("maxItems", 0, 10_000, 1_000)
    elif kind == "string":
        max_length = fields.integer("maxLength", 0, 65_536, 4_096)
        format_ = fields.string("format", 16, "") or None
        if format_ is not None and format_ not in _FORMATS:
            raise ManifestError(fields.path("format"), f"is not one of {', '.join(_FORMATS)}")
        listed = fields.take("enum", None)
        if listed is not None:
            if not isinstance(listed, list) or not 1 <= len(listed) <= 256 or not all(isinstance(v, str) and len(v) <= 256 for v in listed):
                raise ManifestError(fields.path("enum"), "is not a list of up to 256 short strings")
            enum = tuple(listed)
    elif kind in ("integer", "number"):
        bound = 10**78
        minimum = fields.integer("minimum", -bound, bound)
        maximum = fields.integer("maximum", -bound, bound)
    consensus = _rule(fields.take("consensus", None), kind, format_, fields.path("consensus"))
    fields.done()
    return Schema(
        cast("Type", kind),
        properties,
        required,
        items,
        cast("Format | None", format_),
        enum,
        max_length,
        max_items,
        minimum,
        maximum,
        consensus,
    )


def _rule(document: Any, kind: str, format_: str | None, place: str) -> ConsensusRule:
    if document is None:
        return EXACT
    fields = _Fields(document, place)
    name = fields.string("rule", 16)
    if name not in _RULES:
        raise ManifestError(fields.path("rule"), f"is not one of {', '.join(_RULES)}")
    numeric = kind in ("integer", "number") or format_ == "decimal"
    if name in ("median", "min", "max") and not numeric:
        raise ManifestError(fields.path("rule"), f"{name} needs an integer, a number, or a string of format decimal")
    if name in ("union", "intersection") and kind != "array":
        raise ManifestError(fields.path("rule"), f"{name} needs an array")
    tolerance = fields.take("tolerance", None)
    fields.done()
    if name != "median":
        if tolerance is not None:
            raise ManifestError(f"{place}.tolerance", "only a median has a tolerance")
        return ConsensusRule(cast("RuleName", name))
    bounds = _Fields(tolerance, f"{place}.tolerance")
    absolute = bounds.string("absolute", 100, "") or None
    relative = bounds.integer("relative_bps", 0, 10_000)
    bounds.done()
    if (absolute is None) == (relative is None):
        raise ManifestError(f"{place}.tolerance", "has exactly one of `absolute` and `relative_bps`")
    if absolute is not None and not re.fullmatch(r"(0|[1-9][0-9]{0,77})(\.[0-9]{1,18})?", absolute):
        raise ManifestError(f"{place}.tolerance.absolute", "is not a decimal number")
    return ConsensusRule("median", Decimal(absolute) if absolute is not None else None, relative)


def _check_rules(schema: Schema, place: str, *, reachable: bool, inside_rule: bool) -> None:
    """A ruled place is in every output (an observation without it agrees with nobody) and not inside another, nor in an array."""
    if schema.consensus != EXACT:
        if inside_rule:
            raise ManifestError(f"output{place}", "a rule inside a ruled value")
        if not reachable:
            raise ManifestError(f"output{place}", "a value with a rule must be required, and not be inside an array")
        inside_rule = True
    for name, child in schema.properties.items():
        _check_rules(child, f"{place}/{_escaped(name)}", reachable=reachable and name in schema.required, inside_rule=inside_rule)
    if schema.items is not None:
        _check_rules(schema.items, f"{place}/-", reachable=False, inside_rule=inside_rule)


def _names(document: Any, place: str) -> list[str]:
    if not isinstance(document, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in document):
        raise ManifestError(place, "is not a list of names")
    if len(document) > MAX_FIELDS:
        raise ManifestError(place, "has too many names", MAX_FIELDS)
    if len(set(document)) != len(document):
        raise ManifestError(place, "names one twice")
    return list(document)


def _hosts(document: Any) -> tuple[str, ...]:
    if not isinstance(document, list) or not all(isinstance(host, str) for host in document):
        raise ManifestError("allowed_hosts", "is not a list of strings")
    if len(document) > MAX_HOSTS:
        raise ManifestError("allowed_hosts", "has too many hosts", MAX_HOSTS)
    for host in document:
        name, _, port = host.partition(":")
        if not _HOST.fullmatch(host) or len(host) > 260 or (port and not 1 <= int(port) <= 65_535):
            raise ManifestError("allowed_hosts", f"{host[:100]!r} is not host, host:port, *.suffix or *.suffix:port in lower case")
        if name.startswith("*.") and "." not in name[2:]:
            raise ManifestError("allowed_hosts", f"{host!r} would allow a whole top-level domain")
        if not name.startswith("*.") and _is_address(name):
            raise ManifestError("allowed_hosts", f"{host!r} is an address: hosts are names")
    return tuple(document)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.replace(".", "").isdigit()
    return True


def _limits(document: Any) -> ComponentLimits:
    fields = _Fields(document, "limits")
    defaults = ComponentLimits()
    values = {name: fields.integer(name, low, high, getattr(defaults, name)) for name, (low, high) in _LIMIT_RANGES.items()}
    fields.done()
    return ComponentLimits(**cast("dict[str, int]", values))


def _has_type(value: Any, kind: Type) -> bool:
    match kind:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | Decimal) and not isinstance(value, bool)
        case "null":
            return value is None
        case _:
            return True


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
