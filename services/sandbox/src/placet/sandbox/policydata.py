"""Running PolicyData components: WebAssembly that fetches the data a policy judges.

Every call gets its own store and instance, fuel, memory and table limits, and a wall-clock deadline; what it asks of the
host is recorded. A run ends in one of three ways:

- `ComponentRun`: it answered, and the answer fits the manifest.
- `ComponentFailed`: the component itself failed (an error answer, a trap, its fuel, an answer of another form). `pure` says
  whether it had asked the host for anything but the clock. Only a pure failure is a function of the task alone and may be
  signed as *deny*; after a fetch it is one operator's observation that failed.
- `SandboxUnavailable`: a fetch or a node failed and the component gave up, the deadline passed, it is not admitted here.
  The operator *abstains*.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from wasmtime import Store, WasmtimeError
from wasmtime.component import Component, Linker, Record, Variant

from placet.sandbox.admission import AdmissionLimits, Admitted, ArtifactCache, ComponentRejected, component_engine, runtime_id
from placet.sandbox.chain import ChainEndpoint, ChainFunction, ChainRefused, ChainUnavailable
from placet.sandbox.errors import EvaluationFailed, FailureKind, SandboxError, SandboxUnavailable
from placet.sandbox.fetch import FetchDenied, Fetcher, FetchError, FetchTimeout, FetchTooLarge, HttpRequest, HttpResponse
from placet.sandbox.jsonguard import JsonRejected, parse_json
from placet.sandbox.manifest import NEWTON_WORLD, PLACET_WORLD, Manifest, SchemaMismatch, World
from placet.sandbox.transcript import Entry, Redactor, ReplayRedactor, Transcript

__all__ = [
    "AdmissionLimits",
    "Admitted",
    "ComponentEngine",
    "ComponentFailed",
    "ComponentRejected",
    "ComponentRun",
    "HostCalls",
    "LiveHost",
    "ReplayDiverged",
    "RunContext",
    "RunRequest",
    "runtime_id",
]

MAX_ARGUMENT_BYTES = 256 << 10
"""Of each of intent, params and arguments."""
MAX_FETCHED_BYTES = 4 << 20
"""All answers of one run together."""
MAX_CHAIN_CALLS = 64
MAX_SECRET_CALLS = 64
MAX_CLOCK_CALLS = 100_000

_MEMORIES, _INSTANCES, _TABLES, _TABLE_ELEMENTS = 4, 64, 8, 20_000
_TICK_S = 0.01
_MESSAGE_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a run is about. `timestamp` in unix seconds; hashes and addresses as 0x hex."""

    timestamp: int
    block_number: int
    block_hash: str
    chain_id: int
    policy_client: str


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run's arguments, as JSON text. `arguments` is what the policy binds, and all that a Newton component gets."""

    context: RunContext
    arguments_json: str = "{}"
    intent_json: str = "{}"
    params_json: str = "{}"


class HostCalls(Protocol):
    """What a component can reach, supplied by the caller."""

    def fetch(self, request: HttpRequest, deadline: float) -> HttpResponse:
        """Raises `FetchError`. `deadline` is on the monotonic clock."""
        ...

    def secrets(self) -> Mapping[str, str]:
        """The granted secrets by name."""
        ...

    def chain(self, function: ChainFunction, address: str, data: str) -> str:
        """Raises `ChainRefused` or `ChainUnavailable`."""
        ...


@dataclass(slots=True)
class LiveHost:
    """The outside world: a fetcher, granted secrets, nodes of the chain."""

    fetcher: Fetcher | None = None
    granted: Mapping[str, str] = field(default_factory=dict)
    endpoint: ChainEndpoint | None = None

    def fetch(self, request: HttpRequest, deadline: float) -> HttpResponse:
        if self.fetcher is None:
            raise FetchDenied("there is no network here")
        return self.fetcher.fetch(request, deadline=deadline)

    def secrets(self) -> Mapping[str, str]:
        return self.granted

    def chain(self, function: ChainFunction, address: str, data: str) -> str:
        if self.endpoint is None:
            raise ChainUnavailable("no node is configured")
        return self.endpoint.read(function, address, data)


@dataclass(frozen=True, slots=True)
class ComponentRun:
    """An answer that fits its manifest. Equal transcripts give equal answers and equal fuel."""

    output_json: str
    fuel: int
    transcript: Transcript
    pure: bool


class ComponentFailed(EvaluationFailed):
    """The component failed by itself. See the module's text for `pure`."""

    def __init__(
        self, kind: FailureKind, message: str, *, pure: bool, fuel: int | None = None, transcript: Transcript | None = None
    ) -> None:
        super().__init__(kind, message, fuel=fuel)
        self.pure = pure
        self.transcript = transcript or Transcript()

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self.kind, self.message, self.pure, self.fuel, self.transcript)


class ReplayDiverged(SandboxError):
    """In a replay the component asked something else than was recorded, first at entry `position` (from 0)."""

    def __init__(self, position: int, asked: str, recorded: str) -> None:
        self.position, self.asked, self.recorded = position, asked[:500], recorded[:500]
        super().__init__(f"entry {position}: asked {self.asked}, recorded {self.recorded}")


class ComponentEngine:
    """Admits and runs components. Runs may be made from several threads; one worker process with one thread is the usual use."""

    def __init__(self, cache_dir: Path, *, loaded: int = 32) -> None:
        self._engine = component_engine()
        self._cache = ArtifactCache(cache_dir)
        self._loaded_limit = loaded
        self._components: OrderedDict[tuple[str, World], Component] = OrderedDict()
        self._current = threading.local()
        self._linkers = {world: self._linker(world) for world in (PLACET_WORLD, NEWTON_WORLD)}
        self._ticker = _Ticker(self._engine.increment_epoch)

    def admit(self, component: bytes, manifest: Manifest, limits: AdmissionLimits | None = None) -> Admitted:
        """Raises `ComponentRejected`, or `SandboxUnavailable` ("not admitted here yet")."""
        return self._cache.admit(component, manifest, limits)

    def run(
        self,
        sha256: str,
        manifest: Manifest,
        request: RunRequest,
        host: HostCalls,
        *,
        digest_key: bytes = b"",
        replay: Transcript | None = None,
    ) -> ComponentRun:
        """One call of an admitted component.

        `digest_key` (16 bytes or more; needed when the host grants secrets) keys the digests that stand for secrets in the
        transcript. With `replay` nothing is asked of `host`: every call must be the recorded one, and gets the recorded answer.

        Raises `ComponentFailed`, `SandboxUnavailable`, or in a replay `ReplayDiverged`.
        """
        _check_arguments(manifest, request)
        component = self._component(sha256, manifest.world)
        session = _Session(manifest, request, host, digest_key, replay)
        store = Store(self._engine)
        self._current.session = session
        try:
            with self._ticker:
                return self._call(store, component, session)
        finally:
            self._current.session = None
            store.close()

    def _call(self, store: Store, component: Component, session: _Session) -> ComponentRun:
        manifest, limits = session.manifest, session.manifest.limits
        store.set_limits(
            memory_size=limits.memory_bytes,
            memories=_MEMORIES,
            instances=_INSTANCES,
            tables=_TABLES,
            table_elements=_TABLE_ELEMENTS,
        )
        store.set_fuel(limits.fuel)
        store.set_epoch_deadline(max(1, round(limits.deadline_ms / 1_000 / _TICK_S)) + 1)
        try:
            instance = self._linkers[manifest.world].instantiate(store, component)
            run = instance.get_func(store, "run")
            if run is None:
                raise session.failed("output", "the component has no run")
            answer = run(store, *session.arguments())
        except WasmtimeError as error:
            with suppress(WasmtimeError):
                session.fuel = limits.fuel - store.get_fuel()
            raise session.failure_of(str(error)) from None
        except UnicodeDecodeError:
            raise session.failed("output", "the answer is not UTF-8") from None
        session.fuel = limits.fuel - store.get_fuel()
        return session.finish(answer)

    def _component(self, sha256: str, world: World) -> Component:
        key = (sha256, world)
        component = self._components.pop(key, None) or self._cache.load(self._engine, sha256, world)
        self._components[key] = component
        while len(self._components) > self._loaded_limit:
            self._components.popitem(last=False)
        return component

    def _session(self) -> _Session:
        session: _Session | None = getattr(self._current, "session", None)
        if session is None:
            raise WasmtimeError("no run on this thread")
        return session

    def _linker(self, world: World) -> Linker:
        linker = Linker(self._engine)

        def host(call: Callable[..., Any]) -> Callable[..., Any]:
            def function(_store: Any, *arguments: Any) -> Any:
                # The binding hands a Python exception to whatever thread asks next: none may leave from here but its own.
                session = self._session()
                try:
                    return call(session, *arguments)
                except WasmtimeError:
                    raise
                except Exception as error:  # noqa: BLE001
                    session.host_error = session.host_error or f"{type(error).__name__}: {error}"
                    raise WasmtimeError("abort") from None

            return function

        tables = _PLACET_FUNCTIONS if world == PLACET_WORLD else _NEWTON_FUNCTIONS
        with linker.root() as root:
            for interface, functions in tables.items():
                with root.add_instance(interface) as instance:
                    for name, call in functions.items():
                        instance.add_func(name, host(call))
        return linker

    def close(self) -> None:
        self._ticker.stop()


class _Session:
    """One run: its limits, what it asked, what went wrong on the host's side."""

    def __init__(self, manifest: Manifest, request: RunRequest, host: HostCalls, digest_key: bytes, replay: Transcript | None) -> None:
        self.manifest = manifest
        self.request = request
        self.host_error: str | None = None
        self.fuel: int | None = None
        self._host = host
        self._replay = replay
        self._diverged: ReplayDiverged | None = None
        self._entries: list[Entry] = []
        self._deadline = time.monotonic() + manifest.limits.deadline_ms / 1_000
        self._fetched_bytes = 0
        self._counts = {"fetch": 0, "chain": 0, "secret": 0, "clock": 0}
        self._redactor: Redactor
        if replay is not None:
            digests = {str(e.request): e.answer for e in replay.entries if e.function == "secrets.get" and isinstance(e.answer, str)}
            self._secrets: Mapping[str, str] = digests
            self._redactor = ReplayRedactor(digests)
        else:
            granted = host.secrets()
            self._secrets = {name: granted[name] for name in manifest.secrets if name in granted}
            self._redactor = Redactor(self._secrets, digest_key if self._secrets else bytes(16))

    # What the component is given.

    def arguments(self) -> tuple[Any, ...]:
        request = self.request
        if self.manifest.world == NEWTON_WORLD:
            return (request.arguments_json,)
        context = Record()
        for name, value in (
            ("timestamp", request.context.timestamp),
            ("block-number", request.context.block_number),
            ("block-hash", request.context.block_hash),
            ("chain-id", request.context.chain_id),
            ("policy-client", request.context.policy_client),
        ):
            setattr(context, name, value)
        return context, request.intent_json, request.params_json, request.arguments_json

    # What the component may ask.

    def now_millis(self) -> int:
        self._count("clock", MAX_CLOCK_CALLS)
        return self.request.context.timestamp * 1_000

    def secret(self, name: str) -> str | None:
        self._count("secret", MAX_SECRET_CALLS)
        if self._replay is not None:
            answer: str | None = self._next("secrets.get", name)
            return answer
        value = self._secrets.get(name)
        self._entries.append(Entry("secrets.get", name, self._redactor.digest_of(name) if value is not None else None))
        return value

    def all_secrets(self) -> str:
        return json.dumps({name: value for name in self.manifest.secrets if (value := self.secret(name)) is not None})

    def fetch(self, request: HttpRequest) -> tuple[HttpResponse | None, FetchError | None]:
        """Exactly one of the two."""
        self._count("fetch", self.manifest.limits.fetches)
        asked = self._redactor.redact(
            [
                request.method.upper(),
                request.url,
                [list(pair) for pair in request.headers],
                _text(request.body) if request.body is not None else None,
            ]
        )
        if self._replay is not None:
            return _recorded_answer(self._next("http.fetch", asked))
        response: HttpResponse | None = None
        failure: FetchError | None = None
        try:
            response = self._host.fetch(request, self._deadline)
            self._fetched_bytes += len(response.body)
            if len(response.body) > self.manifest.limits.response_bytes:
                raise FetchTooLarge(self.manifest.limits.response_bytes)
            if self._fetched_bytes > MAX_FETCHED_BYTES:
                raise FetchTooLarge(MAX_FETCHED_BYTES)
        except FetchError as error:
            response, failure = None, error
            self.host_error = self.host_error or (None if isinstance(error, FetchDenied) else f"fetch: {error}")
        if response is not None:
            answer = ["ok", response.status, [list(pair) for pair in response.headers], _text(response.body)]
        else:
            answer = ["err", type(failure).__name__, str(failure), getattr(failure, "limit", 0)]
        self._entries.append(Entry("http.fetch", asked, self._redactor.redact(answer)))
        return response, failure

    def chain(self, function: ChainFunction, address: str, data: str = "0x") -> Variant:
        self._count("chain", MAX_CHAIN_CALLS)
        asked = self._redactor.redact([address, data])
        if self._replay is not None:
            tag, text = self._next(f"chain.{function}", asked)
            return Variant(tag, text)
        try:
            answer = ["ok", self._host.chain(function, address, data)]
        except ChainRefused as refused:
            answer = ["err", str(refused)]
        except ChainUnavailable as unavailable:
            answer = ["err", "no node answered"]
            self.host_error = self.host_error or f"chain: {unavailable}"
        self._entries.append(Entry(f"chain.{function}", asked, answer))
        return Variant(answer[0], answer[1])

    # How it ends.

    def finish(self, answer: Any) -> ComponentRun:
        self._check_replay_is_used_up()
        if not isinstance(answer, Variant) or not isinstance(answer.payload, str):
            raise self.failed("output", "the answer has another type")
        if answer.tag != "ok":
            raise self._by_itself_or_host("error", answer.payload)
        output = answer.payload
        limit = self.manifest.limits.output_bytes
        try:
            self.manifest.output.check(parse_json(output, max_bytes=limit, fractions=self.manifest.fractions))
        except (JsonRejected, SchemaMismatch) as error:
            raise self._by_itself_or_host("output", str(error)) from None
        if self._redactor.leaks(output):
            raise self.failed("output", "the answer holds a secret")
        return ComponentRun(output, self.fuel or 0, self._transcript(), self._pure())

    def failure_of(self, message: str) -> SandboxError:
        """What a wasmtime error means. Its last line is wasmtime's own; the lines above may be the component's names."""
        if self._diverged is not None:
            return self._diverged
        last = message.strip().splitlines()[-1].strip().removeprefix("wasm trap: ") if message.strip() else "trap"
        if "all fuel consumed" in last:
            return self.failed("fuel", f"used all of {self.manifest.limits.fuel} fuel")
        if last == "interrupt":
            return SandboxUnavailable(f"the run took longer than {self.manifest.limits.deadline_ms} ms")
        if "call stack exhausted" in last:
            # The host's stack: where it ends depends on the code generator, so it decides nothing that is signed.
            return SandboxUnavailable("the component's calls are nested too deeply")
        if last == "abort" and self.host_error:
            return SandboxUnavailable(self.host_error)
        if "exceeds memory limits" in last or "resource limit exceeded" in last:
            return self.failed("memory", last)
        return self._by_itself_or_host("trap", last)

    def failed(self, kind: FailureKind, message: str) -> ComponentFailed:
        return ComponentFailed(kind, self._shown(message), pure=self._pure(), fuel=self.fuel, transcript=self._transcript())

    def _by_itself_or_host(self, kind: FailureKind, message: str) -> SandboxError:
        """A component that gives up after a failed fetch did not fail by itself."""
        if self.host_error is not None:
            return SandboxUnavailable(f"{self.host_error} (the component then said: {self._shown(message)[:300]})")
        return self.failed(kind, message)

    def _shown(self, message: str) -> str:
        return str(self._redactor.redact(message))[:_MESSAGE_CHARS]

    def _transcript(self) -> Transcript:
        return self._replay if self._replay is not None else Transcript(tuple(self._entries))

    def _pure(self) -> bool:
        return not self._entries and not (self._replay and self._replay.entries)

    def _count(self, kind: str, limit: int) -> None:
        self._counts[kind] += 1
        if self._counts[kind] > limit:
            raise WasmtimeError(f"more than {limit} {kind} calls")

    def _next(self, function: str, asked: Any) -> Any:
        assert self._replay is not None
        position = len(self._entries)
        recorded = self._replay.entries[position] if position < len(self._replay.entries) else None
        if recorded is None or (recorded.function, recorded.request) != (function, asked):
            shown = "nothing" if recorded is None else f"{recorded.function} {json.dumps(recorded.request)}"
            self._diverged = ReplayDiverged(position, f"{function} {json.dumps(asked)}", shown)
            raise WasmtimeError("abort")
        self._entries.append(recorded)
        if function == "http.fetch" and recorded.answer[0] == "err" and recorded.answer[1] != "FetchDenied":
            self.host_error = self.host_error or f"fetch: {recorded.answer[2]}"
        return recorded.answer

    def _check_replay_is_used_up(self) -> None:
        if self._replay is not None and len(self._entries) < len(self._replay.entries):
            recorded = self._replay.entries[len(self._entries)]
            raise ReplayDiverged(len(self._entries), "nothing", f"{recorded.function} {json.dumps(recorded.request)}")


class _Ticker:
    """Advances the engine's epoch every 10 ms while something runs."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._running = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        with self._changed:
            self._running += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, daemon=True, name="epoch")
                self._thread.start()
            self._changed.notify()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._running -= 1

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while self._running == 0 and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
            time.sleep(_TICK_S)
            self._tick()


def _check_arguments(manifest: Manifest, request: RunRequest) -> None:
    for name, text in (("intent", request.intent_json), ("params", request.params_json), ("arguments", request.arguments_json)):
        try:
            document = parse_json(text, max_bytes=MAX_ARGUMENT_BYTES)
            if name == "arguments":
                manifest.arguments.check(document)
        except (JsonRejected, SchemaMismatch) as error:
            raise ComponentFailed("error", f"{name}: {error}", pure=True) from None


def _text(body: bytes) -> str:
    """A body in a transcript: as text where it is text, else as hex."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return "hex:" + body.hex()


def _body(text: str) -> bytes:
    return bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode()


def _recorded_answer(answer: Any) -> tuple[HttpResponse | None, FetchError | None]:
    if answer[0] == "ok":
        return HttpResponse(int(answer[1]), tuple((n, v) for n, v in answer[2]), _body(answer[3])), None
    kinds: Mapping[str, Callable[[], FetchError]] = {
        "FetchDenied": lambda: FetchDenied(answer[2]),
        "FetchTimeout": lambda: FetchTimeout(answer[2]),
        "FetchTooLarge": lambda: FetchTooLarge(int(answer[3])),
    }
    return None, kinds.get(answer[1], lambda: FetchError(answer[2]))()


# The two worlds' functions. A result whose cases have different Python types is passed bare, one whose cases share a type as
# a Variant: that is how the binding wants it.


def _placet_fetch(session: _Session, request: Any) -> Any:
    headers = tuple((header.name, header.value) for header in request.headers)
    body = request.body.encode() if request.body is not None else None
    response, failure = session.fetch(HttpRequest(request.method.upper(), request.url, headers, body))
    if response is None:
        match failure:
            case FetchDenied():
                return Variant("denied", str(failure))
            case FetchTimeout():
                return Variant("timeout")
            case FetchTooLarge():
                return Variant("too-large", failure.limit)
            case _:
                return Variant("failed", str(failure))
    answer = Record()
    try:
        answer.body = response.body.decode()  # type: ignore[attr-defined]
    except UnicodeDecodeError:
        return Variant("failed", "the body is not UTF-8 text")
    answer.status = response.status  # type: ignore[attr-defined]
    answer.headers = [_header(name, value) for name, value in response.headers]  # type: ignore[attr-defined]
    return answer


def _header(name: str, value: str) -> Record:
    header = Record()
    header.name, header.value = name, value  # type: ignore[attr-defined]
    return header


def _newton_fetch(session: _Session, request: Any) -> Any:
    body = bytes(request.body) if request.body is not None else None
    response, failure = session.fetch(HttpRequest(request.method, request.url, tuple(request.headers), body))
    if response is None:
        return str(failure)
    answer = Record()
    answer.status, answer.headers, answer.body = response.status, list(response.headers), response.body  # type: ignore[attr-defined]
    return answer


def _newton_secrets(session: _Session) -> Any:
    answer = Record()
    answer.value = session.all_secrets().encode()  # type: ignore[attr-defined]
    return answer


def _no_tlsn(_session: _Session, _proof: Any) -> str:
    return "TLSNotary proofs are not supported"


_CLOCK_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"now-millis": _Session.now_millis}

_PLACET_FUNCTIONS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "placet:policydata/http@1.0.0": {"fetch": _placet_fetch},
    "placet:policydata/secrets@1.0.0": {"get": _Session.secret},
    "placet:policydata/clock@1.0.0": _CLOCK_FUNCTIONS,
    "placet:policydata/chain@1.0.0": {
        "call": lambda session, to, data: session.chain("call", to, data),
        "get-balance": lambda session, address: session.chain("get-balance", address),
        "get-code": lambda session, address: session.chain("get-code", address),
    },
}

_NEWTON_FUNCTIONS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "newton:provider/http@0.2.0": {"fetch": _newton_fetch},
    "newton:provider/secrets@0.2.0": {"get": _newton_secrets},
    "newton:provider/tlsn@0.2.0": {"verify-from-cid": _no_tlsn, "verify": _no_tlsn},
    "placet:policydata/clock@1.0.0": _CLOCK_FUNCTIONS,
}


def _restore(kind: FailureKind, message: str, pure: bool, fuel: int | None, transcript: Transcript) -> ComponentFailed:
    return ComponentFailed(kind, message, pure=pure, fuel=fuel, transcript=transcript)
