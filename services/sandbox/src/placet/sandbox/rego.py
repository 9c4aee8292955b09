"""Rego policies inside `engine.wasm`.

A policy is prepared once: its modules are parsed and analysed in a fresh instance, and the instance's linear memory, which
is all the state the engine has, is kept as the policy's *image*. Every evaluation starts from exactly that image, so the
output **and the fuel** of an evaluation are functions of (engine bytes, modules, static data, limits, request), on every
machine. That makes them something operators can sign and anyone can re-run.

    engine = RegoEngine()
    policy = engine.prepare(PolicySource({"policy.rego": text}, "data.vault.decision", (DataSection("params", params_json),)))
    result = policy.evaluate(input_json, data=(DataSection("wasm", agreed_json),), now_ns=timestamp * 10**9)
    decision = parse_decision(result.value_json)

Failures are of two classes (`placet.sandbox.errors`): `EvaluationFailed` is deterministic and means *deny*;
`SandboxUnavailable` is this machine's own trouble and means *abstain*.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from wasmtime import Config, Engine, Func, Instance, Memory, Module, Store, Trap, TrapCode, WasmtimeError

from placet.sandbox.errors import EvaluationFailed, FailureKind, PolicyRejected, SandboxUnavailable

MAX_REQUEST_BYTES = 8 << 20
"""Input and per-task data of one evaluation, together."""
MAX_VALUE_BYTES = 256 << 10
"""The JSON text of a value."""
MAX_MODULES = 64
MAX_SOURCE_BYTES = 1 << 20
"""All modules of a policy together; the engine also refuses lines over 1,024 columns and files over 20,000 lines."""
MAX_STATIC_DATA_BYTES = 4 << 20
MAX_FUEL = 20_000_000_000
MAX_MEMORY_BYTES = 256 << 20
MIN_MEMORY_BYTES = 4 << 20
PREPARE_FUEL = 10_000_000_000
"""Parsing a policy may be far more expensive than evaluating it (nested literals double per level); this bounds it."""

_T = TypeVar("_T")

_MESSAGE_CHARS = 2_000
_MESSAGE_LINE_CHARS = 240
_READ_MESSAGE_BYTES = 64 << 10
_WASM_PAGE = 65_536
_MODULE_STACK_HOST_BYTES = 1 << 20
"""wasmtime's stack. The module's own stack (256 KiB) takes up to 1.45 times its size here and must end first."""
_TABLE_ELEMENTS = 5_000

_ADD_POLICY, _ADD_DATA, _PREPARE, _EVALUATE, _EXPLAIN, _QUERY, _SYNTAX, _GUARD = range(8)


def _engine_path() -> Path:
    return Path(__file__).with_name("engine") / "engine.wasm"


@cache
def engine_sha256() -> str:
    """The identity of the engine, hex: part of every policyId. Raises `SandboxUnavailable` if the shipped bytes are not those."""
    digest = hashlib.sha256(_engine_path().read_bytes()).hexdigest()
    stated = _engine_path().with_suffix(".wasm.sha256").read_text(encoding="ascii").split()[0]
    if digest != stated:
        raise SandboxUnavailable(f"engine.wasm is {digest}, but engine.wasm.sha256 says {stated}: reinstall placet-sandbox")
    return digest


@dataclass(frozen=True, slots=True)
class RegoLimits:
    """What one evaluation may use. Both numbers decide outcomes, so both are part of the policyId."""

    fuel: int = 2_000_000_000
    memory_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.fuel <= MAX_FUEL:
            raise PolicyRejected(f"rego fuel {self.fuel} is outside 1..{MAX_FUEL}", kind="size")
        if not MIN_MEMORY_BYTES <= self.memory_bytes <= MAX_MEMORY_BYTES:
            raise PolicyRejected(f"rego memory {self.memory_bytes} is outside {MIN_MEMORY_BYTES}..{MAX_MEMORY_BYTES} bytes", kind="size")


@dataclass(frozen=True, slots=True)
class DataSection:
    """A JSON document at `data.<root>`, as text: it is never parsed and written again on its way to the engine.

    `fractions` is for output of `newton:provider` components; everything else holds exact integers only. Several sections
    may have one root when all are objects without a common key; a common key is an `EvaluationFailed`.
    """

    root: str
    json: str
    fractions: bool = False


@dataclass(frozen=True, slots=True)
class PolicySource:
    """What a policy is made of. `modules` maps file names to sources; `entrypoint` is a rule path such as `data.vault.decision`."""

    modules: Mapping[str, str]
    entrypoint: str
    data: tuple[DataSection, ...] = ()
    limits: RegoLimits = field(default_factory=RegoLimits)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`value_json` is None when the entrypoint is undefined. Equal requests give equal values and equal fuel everywhere."""

    value_json: str | None
    fuel: int


@dataclass(frozen=True, slots=True)
class FileCoverage:
    """Line numbers from 1."""

    covered: tuple[int, ...]
    not_covered: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a policy answered as it did. In a single evaluation the lines not covered are the conditions that stopped it."""

    value_json: str | None
    error: str | None
    prints: tuple[str, ...]
    coverage: Mapping[str, FileCoverage]
    fuel: int


@dataclass(frozen=True, slots=True)
class TestResult:
    """One `test_…` rule. `name` is its full path."""

    __test__ = False  # not a class of tests

    name: str
    outcome: Literal["pass", "fail", "error", "skipped"]
    message: str = ""


def engine_config() -> Config:
    """How wasmtime runs the engine. Nothing here reaches an outcome: every code generator gives the same values and fuel."""
    config = Config()
    config.consume_fuel = True
    config.cranelift_nan_canonicalization = True
    config.wasm_relaxed_simd = False
    config.wasm_threads = False
    config.max_wasm_stack = _MODULE_STACK_HOST_BYTES
    return config


class RegoEngine:
    """The compiled engine and the images of prepared policies. Safe to use from several threads.

    Loading takes 2-3 CPU seconds once and some 30 ms afterwards when `cache_dir` is given. The folder holds native code:
    it is created with mode 0700 and must belong to the caller.
    """

    def __init__(self, *, cache_dir: Path | None = None, image_budget_bytes: int = 256 << 20) -> None:
        self.sha256 = engine_sha256()
        config = engine_config()
        try:
            if cache_dir is not None:
                config.cache = _cache_config(cache_dir)
            self._engine = Engine(config)
            self._module = Module(self._engine, _engine_path().read_bytes())
        except (WasmtimeError, OSError) as error:
            raise SandboxUnavailable(f"the Rego engine does not load: {error}") from error
        if self._module.imports:
            raise SandboxUnavailable("engine.wasm has imports")
        self._images = _ImageCache(image_budget_bytes)

    def prepare(self, source: PolicySource) -> CompiledPolicy:
        """Parses and analyses a policy. Raises `PolicyRejected` if it cannot be prepared."""
        _check_source(source)
        instance = _Instance(self._engine, self._module, source.limits.memory_bytes)
        try:
            fuel = PREPARE_FUEL
            for name, text in sorted(source.modules.items()):
                fuel -= instance.call(_ADD_POLICY, (name, text), fuel=fuel).fuel
            if source.data:
                fuel -= instance.call(_ADD_DATA, _section_fields(source.data), fuel=fuel).fuel
            instance.call(_PREPARE, (), fuel=fuel)
            image = instance.snapshot()
        except EvaluationFailed as failure:
            kind: FailureKind = "compile" if failure.kind == "error" else failure.kind
            raise PolicyRejected(failure.message, kind=kind, fuel=failure.fuel) from None
        finally:
            instance.close()
        return CompiledPolicy(self, source, image)

    def policy(self, key: str, load: Callable[[], PolicySource]) -> CompiledPolicy:
        """The prepared policy `key` (its policyId: never the hash of the Rego alone, which would mix parameters), from the cache
        or made of `load()`. Images live in an LRU with a byte budget."""
        found = self._images.get((key, self.sha256))
        if found is None:
            found = self.prepare(load())
            self._images.put((key, self.sha256), found)
        return found

    def syntax_json(self, modules: Mapping[str, str]) -> str:
        """The syntax trees of modules, as the engine parsed them. Raises `PolicyRejected`."""
        _check_source(PolicySource(modules, "data.x.y"))
        instance = _Instance(self._engine, self._module, RegoLimits().memory_bytes)
        try:
            for name, text in sorted(modules.items()):
                instance.call(_ADD_POLICY, (name, text), fuel=PREPARE_FUEL)
            # Trees are several times larger than what they were read from.
            return instance.call(_SYNTAX, (), fuel=PREPARE_FUEL, max_bytes=MAX_MEMORY_BYTES).value_json or "[]"
        except EvaluationFailed as failure:
            kind: FailureKind = "compile" if failure.kind == "error" else failure.kind
            raise PolicyRejected(failure.message, kind=kind) from None
        finally:
            instance.close()

    def query(
        self,
        query: str,
        *,
        modules: Mapping[str, str] | None = None,
        input_json: str | None = None,
        data: Sequence[DataSection] = (),
        now_ns: int | None = None,
        limits: RegoLimits | None = None,
    ) -> str:
        """Any query on a fresh instance, its results as JSON. For tests and interactive use, never for decisions."""
        limits = limits or RegoLimits()
        instance = _Instance(self._engine, self._module, limits.memory_bytes)
        try:
            for name, text in sorted((modules or {}).items()):
                instance.call(_ADD_POLICY, (name, text), fuel=limits.fuel)
            fields = (query, "" if now_ns is None else str(now_ns), input_json or "", *_section_fields(data))
            return instance.call(_QUERY, fields, fuel=limits.fuel, max_bytes=MAX_REQUEST_BYTES).value_json or "{}"
        finally:
            instance.close()

    def guard_json(self, text: str, *, fractions: bool = False) -> None:
        """Raises `EvaluationFailed` for a document the engine would not let in: no JSON, duplicate keys, numbers that are not
        exact integers of at most 78 digits (with `fractions`: also fractions and bounded exponents), depth over 64."""
        instance = _Instance(self._engine, self._module, RegoLimits().memory_bytes)
        try:
            instance.call(_GUARD, ("fractions" if fractions else "exact", text), fuel=RegoLimits().fuel)
        finally:
            instance.close()

    def run_tests(
        self, modules: Mapping[str, str], tests: Mapping[str, str], *, data: Sequence[DataSection] = (), now_ns: int | None = None
    ) -> list[TestResult]:
        """Runs every rule named `test_…` as `opa test` does: true passes, false or undefined fails; `todo_test_…` is skipped.
        Each runs on a fresh image. `with input as …` and `with data.… as …` work."""
        if twice := sorted(modules.keys() & tests.keys()):
            raise PolicyRejected(f"{twice[0]} is given as a module and as a test")
        everything = {**modules, **tests}
        results = []
        trees = json.loads(self.syntax_json(everything))
        policy = self.prepare(PolicySource(everything, "data.x.y", tuple(data)))
        for name in _test_rules(trees):
            rule = name.rsplit(".", 1)[-1]
            if rule.startswith("todo_"):
                results.append(TestResult(name, "skipped"))
                continue
            try:
                value = policy.query(name, now_ns=now_ns)
                results.append(TestResult(name, "pass") if value == "true" else TestResult(name, "fail", f"is {value or 'undefined'}"))
            except EvaluationFailed as failure:
                results.append(TestResult(name, "error", failure.message))
        return results


class CompiledPolicy:
    """A prepared policy. Make it with `RegoEngine.prepare` or `RegoEngine.policy`."""

    def __init__(self, engine: RegoEngine, source: PolicySource, image: bytes) -> None:
        self._engine = engine
        self._image = image
        self._idle: list[_Instance] = []
        self.entrypoint = source.entrypoint
        self.limits = source.limits
        self.image_sha256 = hashlib.sha256(image).hexdigest()
        """Names engine, modules and static data in prepared form; equal on every machine."""

    @property
    def image_bytes(self) -> int:
        return len(self._image)

    def evaluate(
        self, input_json: str, *, data: Sequence[DataSection] = (), now_ns: int | None = None, fuel: int | None = None
    ) -> Evaluation:
        """The value of the entrypoint. `now_ns` is what `time.now_ns()` yields: the task's timestamp; without it, asking is an error.

        `fuel` is for a first try with less than the policy's own: it changes no outcome but one, and who gives it takes an
        `EvaluationFailed` of kind "fuel" for no decision.

        Raises `EvaluationFailed` (deny) or `SandboxUnavailable` (abstain).
        """
        fuel = self.limits.fuel if fuel is None else min(fuel, self.limits.fuel)
        return self._run(_EVALUATE, self.entrypoint, input_json, data, now_ns, fuel, MAX_VALUE_BYTES)

    def explain(self, input_json: str, *, data: Sequence[DataSection] = (), now_ns: int | None = None) -> Explanation:
        """Value, prints and coverage of one evaluation. Costs some 20 % more, so fuel is doubled and not comparable."""
        result = self._run(_EXPLAIN, self.entrypoint, input_json, data, now_ns, 2 * self.limits.fuel, MAX_REQUEST_BYTES)
        report = json.loads(result.value_json or "{}")
        value = json.dumps(report["value"], separators=(",", ":"), ensure_ascii=False) if "value" in report else None
        coverage = {
            file["path"]: FileCoverage(tuple(file["covered"]), tuple(file["not_covered"])) for file in report["coverage"].get("files", [])
        }
        return Explanation(value, report.get("error"), tuple(report["prints"]), coverage, result.fuel)

    def query(self, query: str, *, now_ns: int | None = None) -> str | None:
        """The value of a query's only expression on this policy, or None if undefined. For tests, never for decisions."""
        result = self._run(_QUERY, query, "", (), now_ns, self.limits.fuel, MAX_REQUEST_BYTES)
        rows = json.loads(result.value_json or "{}").get("result") or []
        if not rows:
            return None
        value = rows[0]["expressions"][0].get("value")
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _run(
        self, op: int, rule: str, input_json: str, data: Sequence[DataSection], now_ns: int | None, fuel: int, max_bytes: int
    ) -> Evaluation:
        fields = (rule, "" if now_ns is None else str(now_ns), input_json, *_section_fields(data))
        instance = self._restored()
        reusable = False
        try:
            result = instance.call(op, fields, fuel=fuel, max_bytes=max_bytes)
            reusable = instance.size == len(self._image)
            return result
        except EvaluationFailed as failure:
            # An answered error leaves the instance sound; after a trap stack pointer and heap are anything.
            reusable = failure.kind == "error" and instance.size == len(self._image)
            raise
        finally:
            if reusable and not self._idle:
                self._idle.append(instance)
            else:
                instance.close()

    def _restored(self) -> _Instance:
        try:
            instance = self._idle.pop()
        except IndexError:
            instance = _Instance(self._engine._engine, self._engine._module, self.limits.memory_bytes)
        instance.restore(self._image)
        return instance


class _ImageCache:
    """Least recently used policies within a byte budget. A policy counts twice: its image and its kept instance."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._held_bytes = 0
        self._policies: OrderedDict[tuple[str, str], CompiledPolicy] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, str]) -> CompiledPolicy | None:
        with self._lock:
            policy = self._policies.get(key)
            if policy is not None:
                self._policies.move_to_end(key)
            return policy

    def put(self, key: tuple[str, str], policy: CompiledPolicy) -> None:
        with self._lock:
            previous = self._policies.pop(key, None)
            if previous is not None:
                self._held_bytes -= 2 * previous.image_bytes
            self._policies[key] = policy
            self._held_bytes += 2 * policy.image_bytes
            while self._held_bytes > self._budget_bytes and len(self._policies) > 1:
                # Not closed here: another thread may be evaluating it. Its instance goes with the last reference.
                _, dropped = self._policies.popitem(last=False)
                self._held_bytes -= 2 * dropped.image_bytes

    def __len__(self) -> int:
        return len(self._policies)


class _Instance:
    """One instance of engine.wasm in its own store. Speaks the ABI described in engine/wasm/src/lib.rs."""

    def __init__(self, engine: Engine, module: Module, memory_bytes: int) -> None:
        self._store = store = Store(engine)
        self._memory_bytes = memory_bytes
        try:
            store.set_limits(memory_size=memory_bytes, table_elements=_TABLE_ELEMENTS, instances=1, tables=1, memories=1)
            store.set_fuel(MAX_FUEL)
            exports = Instance(store, module, []).exports(store)
        except (WasmtimeError, Trap) as error:
            store.close()
            raise SandboxUnavailable(f"no instance of the Rego engine: {error}") from error
        self._memory = _typed(exports["memory"], Memory)
        self._alloc = _typed(exports["alloc"], Func)
        self._call = _typed(exports["call"], Func)
        self._panic_message = _typed(exports["panic_message"], Func)

    @property
    def size(self) -> int:
        return self._memory.data_len(self._store)

    def snapshot(self) -> bytes:
        return ctypes.string_at(self._base(), self.size)

    def restore(self, image: bytes) -> None:
        """Writes the whole memory: nothing of an earlier evaluation, or of another policy, is left."""
        if self.size < len(image):
            try:
                self._memory.grow(self._store, (len(image) - self.size) // _WASM_PAGE)
            except WasmtimeError as error:
                raise SandboxUnavailable(f"no memory for the policy's image: {error}") from error
        if self.size != len(image):
            raise SandboxUnavailable("an instance is larger than the policy's image")
        ctypes.memmove(self._base(), image, len(image))

    def call(self, op: int, fields: Iterable[str], *, fuel: int, max_bytes: int = MAX_VALUE_BYTES) -> Evaluation:
        store, memory = self._store, self._memory
        request = _encode(fields)
        if fuel <= 0:
            raise EvaluationFailed("fuel", "all fuel is used")
        store.set_fuel(fuel)
        try:
            at = self._alloc(store, len(request)) & 0xFFFF_FFFF
            if at + len(request) > self.size:
                raise SandboxUnavailable("the engine gave a place outside its memory")
            ctypes.memmove(self._base() + at, request, len(request))
            reply = self._call(store, op, at, len(request)) & 0xFFFF_FFFF
        except Trap as trap:
            raise self._failure(trap, fuel) from None
        except WasmtimeError as error:
            raise SandboxUnavailable(f"the Rego engine: {error}") from error
        used = fuel - store.get_fuel()
        length, status = struct.unpack("<IB", memory.read(store, reply, reply + 5))
        if status == 2:
            return Evaluation(None, used)
        if status == 1:
            text = bytes(memory.read(store, reply + 5, reply + 5 + min(length, _READ_MESSAGE_BYTES)))
            raise EvaluationFailed("error", _shortened(text.decode(errors="ignore")), fuel=used)
        if length > max_bytes:
            raise EvaluationFailed("size", f"the value has {length} bytes, more than {max_bytes}", fuel=used)
        return Evaluation(bytes(memory.read(store, reply + 5, reply + 5 + length)).decode(), used)

    def close(self) -> None:
        self._store.close()

    def _base(self) -> int:
        return ctypes.addressof(self._memory.data_ptr(self._store).contents)

    def _failure(self, trap: Trap, fuel: int) -> EvaluationFailed | SandboxUnavailable:
        """What a trap means. All but wasmtime's own stack limit are decided by the module, hence the same everywhere."""
        code = trap.trap_code
        used = fuel - self._store.get_fuel()
        if code == TrapCode.OUT_OF_FUEL:
            return EvaluationFailed("fuel", f"used all of {fuel} fuel", fuel=fuel)
        if code == TrapCode.MEMORY_OUT_OF_BOUNDS:
            # The module's stack lies at the bottom of its memory: running over its end leaves the memory.
            return EvaluationFailed("stack", "nested too deeply", fuel=used)
        if code == TrapCode.UNREACHABLE:
            message = self._panic_text()
            if message:
                return EvaluationFailed("panic", message, fuel=used)
            if not self._can_have_all_its_memory():
                return SandboxUnavailable("this machine has too little memory left for what the policy may use")
            return EvaluationFailed("memory", "out of memory", fuel=used)
        return SandboxUnavailable(f"the Rego engine stopped: {trap.message.splitlines()[0]}")

    def _can_have_all_its_memory(self) -> bool:
        """Whether the memory that a trapped module was refused was refused by its limit, not by the machine: then the rest can be had now.

        The instance is of no use after a trap, so its memory may grow.
        """
        try:
            self._memory.grow(self._store, (self._memory_bytes - self.size) // _WASM_PAGE)
        except WasmtimeError:
            return False
        return True

    def _panic_text(self) -> str:
        with suppress(WasmtimeError, Trap):
            self._store.set_fuel(10_000)
            at = self._panic_message(self._store) & 0xFFFF_FFFF
            text = bytes(self._memory.read(self._store, at, at + _MESSAGE_CHARS))
            return text.split(b"\0")[0].decode(errors="ignore").strip()
        return ""


def _typed(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise SandboxUnavailable("engine.wasm has other exports than expected")
    return value


def _shortened(message: str) -> str:
    """The engine quotes the line it complains about, whatever its length; the complaint itself comes last."""
    lines = [line if len(line) <= _MESSAGE_LINE_CHARS else line[:_MESSAGE_LINE_CHARS] + "…" for line in message.strip().splitlines()]
    return "\n".join(lines)[-_MESSAGE_CHARS:]


def _encode(fields: Iterable[str]) -> bytes:
    try:
        encoded = [text.encode() for text in fields]
    except UnicodeEncodeError:
        raise EvaluationFailed("error", "request is not UTF-8") from None
    if sum(map(len, encoded)) > MAX_REQUEST_BYTES:
        raise EvaluationFailed("size", f"request is over {MAX_REQUEST_BYTES} bytes")
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def _section_fields(sections: Iterable[DataSection]) -> tuple[str, ...]:
    return tuple(text for s in sections for text in (s.root, "fractions" if s.fractions else "exact", s.json))


def _check_source(source: PolicySource) -> None:
    if not source.modules:
        raise PolicyRejected("a policy has no module", kind="size")
    if len(source.modules) > MAX_MODULES:
        raise PolicyRejected(f"more than {MAX_MODULES} modules", kind="size")
    try:
        total = sum(len(text.encode()) for text in source.modules.values())
        static = sum(len(section.json.encode()) for section in source.data)
    except UnicodeEncodeError:
        raise PolicyRejected("a module or its data is not UTF-8") from None
    if total > MAX_SOURCE_BYTES:
        raise PolicyRejected(f"modules have {total} bytes, more than {MAX_SOURCE_BYTES}", kind="size")
    if static > MAX_STATIC_DATA_BYTES:
        raise PolicyRejected(f"static data has {static} bytes, more than {MAX_STATIC_DATA_BYTES}", kind="size")
    if not source.entrypoint.startswith("data.") or source.entrypoint.count(".") < 2:
        raise PolicyRejected(f"entrypoint {source.entrypoint[:100]!r} is not of the form data.<package>.<rule>")


def _cache_config(folder: Path) -> str:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        raise SandboxUnavailable(f"{folder} holds native code and must have mode 0700")
    config = folder / "cache.toml"
    wanted = f"[cache]\ndirectory = {json.dumps(str(folder.resolve()))}\n"
    if not config.exists() or config.read_text(encoding="utf-8") != wanted:
        partial = config.with_suffix(f".{threading.get_native_id()}.part")
        partial.write_text(wanted, encoding="utf-8")
        partial.replace(config)
    return str(config)


def _test_rules(trees: list[dict[str, Any]]) -> list[str]:
    from placet.sandbox.check import rule_names

    names = {name for name in rule_names(trees) if name.rsplit(".", 1)[-1].startswith(("test_", "todo_test_"))}
    return sorted(names)
