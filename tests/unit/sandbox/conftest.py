"""What the sandbox's tests share: one loaded Rego engine, one component engine, and a way to write components as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm

from placet.sandbox.manifest import NEWTON_WORLD, PLACET_WORLD, Manifest
from placet.sandbox.policydata import ComponentEngine, RunContext, RunRequest
from placet.sandbox.rego import DataSection, Evaluation, PolicySource, RegoEngine, RegoLimits

CONTEXT = RunContext(1_700_000_000, 19, "0x" + "11" * 32, 31337, "0x" + "22" * 20)


@pytest.fixture(scope="session")
def sandbox_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sandbox") / "cache"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="session")
def rego(sandbox_cache: Path) -> RegoEngine:
    return RegoEngine(cache_dir=sandbox_cache / "rego")


@pytest.fixture
def evaluate(rego: RegoEngine) -> Callable[..., Evaluation]:
    """Evaluates `data.p.x` of a module body."""

    def run(
        body: str, input_json: str = "{}", *, data: tuple[DataSection, ...] = (), now_ns: int | None = None, fuel: int = 2 * 10**9
    ) -> Evaluation:
        source = PolicySource({"policy.rego": f"package p\nimport rego.v1\n{body}\n"}, "data.p.x", limits=RegoLimits(fuel=fuel))
        return rego.prepare(source).evaluate(input_json, data=data, now_ns=now_ns)

    return run


@pytest.fixture(scope="session")
def components(sandbox_cache: Path) -> Iterator[ComponentEngine]:
    engine = ComponentEngine(sandbox_cache / "components")
    yield engine
    engine.close()


def manifest(world: str = PLACET_WORLD, **changes: Any) -> bytes:
    document: dict[str, Any] = {
        "name": "test",
        "world": world,
        "output": {"type": "object", "properties": {"v": {"type": "json"}}},
        **({"clock": "frozen"} if world == NEWTON_WORLD else {}),
        **changes,
    }
    return json.dumps(document).encode()


def request(arguments: str = "{}", intent: str = "{}", params: str = "{}") -> RunRequest:
    return RunRequest(CONTEXT, arguments, intent, params)


_PLACET_IMPORTS = """
  (import "placet:policydata/http@1.0.0" (instance $http
    (type $m (enum "get" "post" "put" "delete" "patch" "head")) (export "method" (type $me (eq $m)))
    (type $h (record (field "name" string) (field "value" string))) (export "header" (type $he (eq $h)))
    (type $rq (record (field "method" $me) (field "url" string) (field "headers" (list $he)) (field "body" (option string))))
    (export "request" (type $rqe (eq $rq)))
    (type $rs (record (field "status" u16) (field "headers" (list $he)) (field "body" string)))
    (export "response" (type $rse (eq $rs)))
    (type $fe (variant (case "denied" string) (case "timeout") (case "too-large" u64) (case "failed" string)))
    (export "fetch-error" (type $fee (eq $fe)))
    (export "fetch" (func (param "request" $rqe) (result (result $rse (error $fee)))))))
  (import "placet:policydata/secrets@1.0.0" (instance $secrets (export "get" (func (param "name" string) (result (option string))))))
  (import "placet:policydata/clock@1.0.0" (instance $clock (export "now-millis" (func (result u64)))))
  (import "placet:policydata/chain@1.0.0" (instance $chain
    (export "call" (func (param "to" string) (param "data" string) (result (result string (error string)))))))
"""

_LIBC = """
  (core module $libc_module
    (memory (export "memory") 4)
    (global $next (mut i32) (i32.const 65536))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (block $fits
        (br_if $fits (i32.le_u (global.get $next) (i32.mul (memory.size) (i32.const 65536))))
        (drop (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get 3) (i32.const 65536))))))
      (local.get $at)))
  (core instance $libc (instantiate $libc_module))
"""

_PLACET_TYPES = """
  (import "placet:policydata/types@1.0.0" (instance $types
    (type $c (record (field "timestamp" u64) (field "block-number" u64) (field "block-hash" string) (field "chain-id" u64)
      (field "policy-client" string)))
    (export "context" (type (eq $c)))))
  (alias export $types "context" (type $context))
"""


def _lower(name: str, instance: str, function: str) -> str:
    options = '(memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))'
    return f'(core func ${name} (canon lower (func ${instance} "{function}") {options}))\n'


def _data(segments: dict[int, str]) -> str:
    escaped = {at: "".join(f"\\{byte:02x}" for byte in text.encode()) for at, text in segments.items()}
    return "\n".join(f'(data (i32.const {at}) "{text}")' for at, text in escaped.items())


def placet_component(body: str, data: dict[int, str] | None = None, *, host: bool = False, more: str = "") -> bytes:
    """A component of Placet's world. `body` is the core `run`: 13 parameters (0 = timestamp, 1 = block number, 2,3 = block hash,
    4 = chain id, 5,6 = client, 7,8 = intent, 9,10 = params, 11,12 = arguments), its result the address of a
    `result<string, string>`. With `host`, $fetch, $secret, $now and $call are there; $answer(ptr, len) builds an ok result."""
    lowered = with_host = imports = ""
    if host:
        lowered = (
            _lower("fetch", "http", "fetch")
            + _lower("secret", "secrets", "get")
            + _lower("now", "clock", "now-millis")
            + _lower("call", "chain", "call")
        )
        with_host = (
            '(with "host" (instance (export "fetch" (func $fetch)) (export "secret" (func $secret)) '
            '(export "now" (func $now)) (export "call" (func $call))))'
        )
        imports = """
          (import "host" "fetch" (func $fetch (param i32 i32 i32 i32 i32 i32 i32 i32 i32)))
          (import "host" "secret" (func $secret (param i32 i32 i32)))
          (import "host" "now" (func $now (result i64)))
          (import "host" "call" (func $call (param i32 i32 i32 i32 i32)))"""
    return bytes(
        wat2wasm(f"""(component
      {_PLACET_IMPORTS if host else ""}
      {_PLACET_TYPES}
      {_LIBC}
      {lowered}
      (core module $main_module
        (import "libc" "memory" (memory 4))
        {imports}
        {_data(data or {})}
        {more}
        (func $answer (param i32 i32) (result i32)
          (i32.store (i32.const 16) (i32.const 0))
          (i32.store (i32.const 20) (local.get 0))
          (i32.store (i32.const 24) (local.get 1))
          (i32.const 16))
        (func (export "run")
          (param i64 i64 i32 i32 i64 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
          {body}))
      (core instance $main (instantiate $main_module (with "libc" (instance $libc)) {with_host}))
      (func $run (param "context" $context) (param "intent" string) (param "params" string) (param "arguments" string)
        (result (result string (error string)))
        (canon lift (core func $main "run") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
      (export "run" (func $run)))""")
    )


def newton_component(body: str, data: dict[int, str] | None = None, *, host: bool = False, clock: bool = False) -> bytes:
    """A component of Newton's world; `run` gets (ptr, len) of its input. With `host`, $fetch (10 parameters) and $secret are there."""
    imports = lowered = with_host = core_imports = ""
    if host:
        imports = """
          (import "newton:provider/http@0.2.0" (instance $http
            (type $p (tuple string string))
            (type $rq (record (field "url" string) (field "method" string) (field "headers" (list $p)) (field "body" (option (list u8)))))
            (export "http-request" (type $rqe (eq $rq)))
            (type $rs (record (field "status" u16) (field "headers" (list $p)) (field "body" (list u8))))
            (export "http-response" (type $rse (eq $rs)))
            (export "fetch" (func (param "request" $rqe) (result (result $rse (error string)))))))
          (import "newton:provider/secrets@0.2.0" (instance $secrets
            (type $s (record (field "value" (list u8)))) (export "secret-response" (type $se (eq $s)))
            (export "get" (func (result (result $se (error string)))))))"""
        lowered = _lower("fetch", "http", "fetch") + _lower("secret", "secrets", "get")
        with_host = '(with "host" (instance (export "fetch" (func $fetch)) (export "secret" (func $secret))))'
        core_imports = """
          (import "host" "fetch" (func $fetch (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
          (import "host" "secret" (func $secret (param i32)))"""
    if clock:
        imports += '(import "placet:policydata/clock@1.0.0" (instance $clock (export "now-millis" (func (result u64)))))'
    return bytes(
        wat2wasm(f"""(component
      {imports} {_LIBC} {lowered}
      (core module $main_module
        (import "libc" "memory" (memory 4))
        {core_imports}
        {_data(data or {})}
        (func $answer (param i32 i32) (result i32)
          (i32.store (i32.const 16) (i32.const 0))
          (i32.store (i32.const 20) (local.get 0))
          (i32.store (i32.const 24) (local.get 1))
          (i32.const 16))
        (func (export "run") (param i32 i32) (result i32) {body}))
      (core instance $main (instantiate $main_module (with "libc" (instance $libc)) {with_host}))
      (func $run (param "input" string) (result (result string (error string)))
        (canon lift (core func $main "run") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
      (export "run" (func $run)))""")
    )


def parsed(world: str = PLACET_WORLD, **changes: Any) -> Manifest:
    return Manifest.parse(manifest(world, **changes))


class Kit:
    """The helpers above, for tests (test modules import nothing from each other)."""

    context = CONTEXT
    manifest = staticmethod(manifest)
    parsed = staticmethod(parsed)
    request = staticmethod(request)
    placet = staticmethod(placet_component)
    newton = staticmethod(newton_component)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit
