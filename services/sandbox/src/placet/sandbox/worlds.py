"""Whether a component fits one of the two worlds, by comparing types.

wasmtime's Python binding checks nothing when it links: a component that imports `now-millis: func() -> string` would be
instantiated and then misread. So every import and the export `run` are described as text and compared with the world's.
"""

from __future__ import annotations

from collections.abc import Mapping

from wasmtime import Engine
from wasmtime.component import Component, FuncType, ValType
from wasmtime.component import _types as types

from placet.sandbox.manifest import NEWTON_WORLD, PLACET_WORLD, World

_HEADER = "record{name: string, value: string}"
_PLACET_REQUEST = (
    f"record{{method: enum{{get, post, put, delete, patch, head}}, url: string, headers: list<{_HEADER}>, body: option<string>}}"
)
_PLACET_RESPONSE = f"record{{status: u16, headers: list<{_HEADER}>, body: string}}"
_FETCH_ERROR = "variant{denied(string), timeout, too-large(u64), failed(string)}"
_CONTEXT = "record{timestamp: u64, block-number: u64, block-hash: string, chain-id: u64, policy-client: string}"
_PAIRS = "list<tuple<string, string>>"
_NEWTON_REQUEST = f"record{{url: string, method: string, headers: {_PAIRS}, body: option<list<u8>>}}"
_NEWTON_RESPONSE = f"record{{status: u16, headers: {_PAIRS}, body: list<u8>}}"
_VERIFIED = (
    "record{server-name: string, connection-time: u64, sent-transcript: list<u8>, received-transcript: list<u8>, "
    "notary-key-fingerprint: string}"
)
CLOCK_IMPORT = "placet:policydata/clock@1.0.0"
_CLOCK = {"now-millis": "func() -> u64"}

IMPORTS: Mapping[World, Mapping[str, Mapping[str, str]]] = {
    PLACET_WORLD: {
        "placet:policydata/http@1.0.0": {"fetch": f"func(request: {_PLACET_REQUEST}) -> result<{_PLACET_RESPONSE}, {_FETCH_ERROR}>"},
        "placet:policydata/secrets@1.0.0": {"get": "func(name: string) -> option<string>"},
        CLOCK_IMPORT: _CLOCK,
        "placet:policydata/chain@1.0.0": {
            "call": "func(to: string, data: string) -> result<string, string>",
            "get-balance": "func(address: string) -> result<string, string>",
            "get-code": "func(address: string) -> result<string, string>",
        },
        "placet:policydata/types@1.0.0": {},
    },
    NEWTON_WORLD: {
        "newton:provider/http@0.2.0": {"fetch": f"func(request: {_NEWTON_REQUEST}) -> result<{_NEWTON_RESPONSE}, string>"},
        "newton:provider/secrets@0.2.0": {"get": "func() -> result<record{value: list<u8>}, string>"},
        "newton:provider/tlsn@0.2.0": {
            "verify-from-cid": f"func(proof-cid: string) -> result<{_VERIFIED}, string>",
            "verify": f"func(presentation-bytes: list<u8>) -> result<{_VERIFIED}, string>",
        },
        # Not Newton's: what `placet policy build` puts behind `Date`.
        CLOCK_IMPORT: _CLOCK,
    },
}
"""Interface → function → type. A component may import any part of it."""

RUN: Mapping[World, str] = {
    PLACET_WORLD: f"func(context: {_CONTEXT}, intent: string, params: string, arguments: string) -> result<string, string>",
    NEWTON_WORLD: "func(input: string) -> result<string, string>",
}


def world_mismatches(engine: Engine, component: Component, world: World) -> list[str]:
    """What does not fit, for people; empty if the component fits. Exports besides `run` are allowed: they are never called."""
    found = []
    for name, extern in component.type.imports(engine).items():
        interface = IMPORTS[world].get(name)
        item = extern.ty
        if interface is None:
            found.append(f"imports {name[:200]}, which {world} does not have")
        elif not isinstance(item, types.ComponentInstanceType):
            found.append(f"imports {name} as something else than an interface")
        else:
            for function, inner in item.exports(engine).items():
                found.extend(_function_mismatch(f"{name}#{function[:100]}", inner.ty, interface.get(function)))
    run = component.type.exports(engine).get("run")
    if run is None:
        found.append("does not export run")
    elif not isinstance(run.ty, FuncType):
        found.append("exports run as something else than a function")
    elif (got := describe_function(run.ty)) != RUN[world]:
        found.append(f"run is {got[:300]}")
    return found


def imported_interfaces(engine: Engine, component: Component) -> list[str]:
    """Names of what the component imports, sorted. An import that it never calls counts."""
    return sorted(component.type.imports(engine))


def _function_mismatch(name: str, item: object, wanted: str | None) -> list[str]:
    if isinstance(item, ValType):
        return []  # a named type of the interface: what matters is how functions use it
    if not isinstance(item, FuncType) or wanted is None:
        return [f"imports {name}, which the world does not have"]
    got = describe_function(item)
    return [] if got == wanted else [f"imports {name} as {got[:300]}"]


def describe_function(function: FuncType) -> str:
    """A function's type as in WIT, with every named type written out."""
    params = ", ".join(f"{name}: {describe(kind)}" for name, kind in function.params)
    result = function.result
    return f"func({params})" + (f" -> {describe(result)}" if result is not None else "")


def describe(kind: ValType) -> str:
    """A value's type as in WIT, with every named type written out."""
    match kind:
        case types.ListType():
            return f"list<{describe(kind.element)}>"
        case types.RecordType():
            return "record{" + ", ".join(f"{name}: {describe(inner)}" for name, inner in kind.fields) + "}"
        case types.TupleType():
            return "tuple<" + ", ".join(map(describe, kind.elements)) + ">"
        case types.OptionType():
            return f"option<{describe(kind.payload)}>"
        case types.ResultType():
            return f"result<{_optional(kind.ok)}, {_optional(kind.err)}>"
        case types.VariantType():
            return "variant{" + ", ".join(name + (f"({describe(inner)})" if inner else "") for name, inner in kind.cases) + "}"
        case types.EnumType():
            return "enum{" + ", ".join(kind.names) + "}"
        case _:
            return type(kind).__name__.lower()


def _optional(kind: ValType | None) -> str:
    return describe(kind) if kind is not None else "_"
