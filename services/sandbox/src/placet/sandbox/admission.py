"""Admitting a component: compiled once, by a child process with hard limits, into a private cache.

Compiling is where a hostile component is dangerous before it ever runs (140 kB of nested loops compile for 22 CPU seconds),
and it cannot be interrupted inside a process. The artefact is native code: the folder is private (mode 0700), and what is
loaded from it must carry a MAC under a key that only this folder has, because wasmtime itself accepts damaged artefacts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wasmtime import Config, Engine, WasmtimeError
from wasmtime.component import Component

from placet.sandbox.errors import SandboxError, SandboxUnavailable
from placet.sandbox.manifest import NEWTON_WORLD, Manifest, World
from placet.sandbox.rego import engine_sha256
from placet.sandbox.worlds import CLOCK_IMPORT, imported_interfaces, world_mismatches

MAX_COMPONENT_BYTES = 32 << 20

SETTINGS: dict[str, Any] = {
    "consume_fuel": True,
    "epoch_interruption": True,
    "cranelift_nan_canonicalization": True,
    "wasm_relaxed_simd": False,
    "wasm_threads": False,
    "max_wasm_stack": 512 << 10,
}
"""The configuration of the component engine. Every value is part of `runtime_id`."""


class ComponentRejected(SandboxError):
    """The component is refused for what it is: size, form or types. The same on every machine."""


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What compiling may use. Running out means "not admitted here yet" (`SandboxUnavailable`), never "refused"."""

    cpu_s: int = 60
    wall_s: float = 120.0
    memory_bytes: int = 8 << 30


@dataclass(frozen=True, slots=True)
class Admitted:
    """A component that may be run here."""

    sha256: str
    world: World
    imports: tuple[str, ...]
    """Names of the imported interfaces, sorted: a function of the component's bytes, the same at every operator."""
    artifact_bytes: int

    @property
    def imports_clock(self) -> bool:
        """Whether it can read the task's timestamp."""
        return CLOCK_IMPORT in self.imports

    @property
    def pure(self) -> bool:
        """Whether it can reach nothing but the task's timestamp: its output is a function of the task alone."""
        return set(self.imports) <= {CLOCK_IMPORT}


def component_engine() -> Engine:
    """A wasmtime engine with `SETTINGS`."""
    config = Config()
    for name, value in SETTINGS.items():
        setattr(config, name, value)
    return Engine(config)


def runtime_id() -> str:
    """What ran here, hex: wasmtime's version, every setting, the processor's kind and the Rego engine.

    It stands in what one operator signs about its own run, never in a leaf: two honest operators may differ in it.
    """
    facts = {
        "wasmtime": version("wasmtime"),
        "settings": SETTINGS,
        "machine": platform.machine(),
        "system": platform.system(),
        "rego": engine_sha256(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class ArtifactCache:
    """Compiled components in one private folder, shared by the processes of one user."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
        if state.st_mode & 0o077 or state.st_uid != os.getuid():
            raise SandboxUnavailable(f"{folder} holds native code: it must belong to this user and have mode 0700")
        self._folder = folder
        self._key = self._read_key()
        self._runtime = runtime_id()

    def admit(self, component: bytes, manifest: Manifest, limits: AdmissionLimits | None = None) -> Admitted:
        """Checks and compiles a component, or finds that this was done before.

        Raises `ComponentRejected`, or `SandboxUnavailable` when the limits did not suffice.
        """
        if len(component) > MAX_COMPONENT_BYTES:
            raise ComponentRejected(f"the component has {len(component)} bytes, more than {MAX_COMPONENT_BYTES}")
        sha256 = hashlib.sha256(component).hexdigest()
        known = self._known(sha256, manifest.world)
        if known is None:
            known = self._compile(sha256, component, manifest.world, limits or AdmissionLimits())
        if manifest.world == NEWTON_WORLD:
            has = "task" if known.imports_clock else "frozen"
            if manifest.clock != has:
                raise ComponentRejected(f"the manifest says clock: {manifest.clock}, but this component's clock is {has}")
        return known

    def load(self, engine: Engine, sha256: str, world: World) -> Component:
        """A compiled component. Raises `SandboxUnavailable` if it was not admitted here, or its artefact is not what was written."""
        artifact = self._read(self._path(sha256, world, "cwasm"))
        if artifact is None:
            raise SandboxUnavailable(f"component {sha256} is not admitted here")
        try:
            return Component.deserialize(engine, artifact)
        except WasmtimeError as error:
            raise SandboxUnavailable(f"the artefact of component {sha256} does not load: {error}") from error

    def _known(self, sha256: str, world: World) -> Admitted | None:
        record = self._read(self._path(sha256, world, "json"))
        if record is None or not self._path(sha256, world, "cwasm").exists():
            return None
        fields = json.loads(record)
        if "imports" not in fields:
            return None  # written by an earlier release: compiled again
        return Admitted(fields["sha256"], fields["world"], tuple(fields["imports"]), fields["artifact_bytes"])

    def _compile(self, sha256: str, component: bytes, world: World, limits: AdmissionLimits) -> Admitted:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            source, target = Path(folder) / "component.wasm", Path(folder) / "artifact"
            source.write_bytes(component)
            report = _run_child(source, target, world, limits)
            artifact = target.read_bytes()
        self._write(self._path(sha256, world, "cwasm"), artifact)
        admitted = Admitted(sha256, world, tuple(report["imports"]), len(artifact))
        fields = {"sha256": sha256, "world": world, "imports": admitted.imports, "artifact_bytes": len(artifact)}
        self._write(self._path(sha256, world, "json"), json.dumps(fields).encode())
        return admitted

    def _path(self, sha256: str, world: World, suffix: str) -> Path:
        kind = "newton" if world == NEWTON_WORLD else "placet"
        return self._folder / f"{sha256}-{kind}-{self._runtime[:16]}.{suffix}"

    def _mac(self, path: Path, content: bytes) -> bytes:
        return hmac.new(self._key, path.name.encode() + b"\0" + content, hashlib.sha256).digest()

    def _write(self, path: Path, content: bytes) -> None:
        handle, partial = tempfile.mkstemp(dir=self._folder)
        with os.fdopen(handle, "wb") as file:
            file.write(self._mac(path, content) + content)
        Path(partial).replace(path)

    def _read(self, path: Path) -> bytes | None:
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        mac, content = stored[:32], stored[32:]
        if not hmac.compare_digest(mac, self._mac(path, content)):
            with suppress(OSError):
                path.unlink()
            return None
        return content

    def _read_key(self) -> bytes:
        path = self._folder / "key"
        if not path.exists():
            handle, partial = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
            # Of several processes that start together, one wins; all read the winner's.
            with suppress(FileExistsError):
                os.link(partial, path)
            Path(partial).unlink()
        key = path.read_bytes()
        if len(key) != 32:
            raise SandboxUnavailable(f"{path} is damaged: remove the folder")
        return key


_CHILD = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from placet.sandbox.admission import child_main; child_main(sys.argv[2:])"
)


def _run_child(source: Path, target: Path, world: World, limits: AdmissionLimits) -> dict[str, Any]:
    arguments = [str(source), str(target), world, str(limits.cpu_s), str(limits.memory_bytes)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(sys.path), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limits.wall_s,
            env={"LANG": "C.UTF-8"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SandboxUnavailable("not admitted here yet: compiling took too long") from None
    if done.returncode != 0:
        raise SandboxUnavailable(f"not admitted here yet: the compiler ended with {done.returncode}")
    report: dict[str, Any] = json.loads(done.stdout)
    if report["rejected"]:
        raise ComponentRejected(str(report["rejected"])[:2_000])
    return report


def child_main(arguments: list[str]) -> None:
    """The child: limits itself, then compiles. Prints one JSON object."""
    import resource

    source, target, world, cpu_s, memory_bytes = arguments
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s)))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(_compile_here(Path(source), Path(target), world)))  # noqa: T201 (the child's answer)


def _compile_here(source: Path, target: Path, world: Any) -> dict[str, Any]:
    engine = component_engine()
    content = source.read_bytes()
    if not content.startswith(b"\0asm"):
        return {"rejected": "not WebAssembly"}
    try:
        component = Component(engine, content)
    except WasmtimeError as error:
        return {"rejected": f"does not compile: {str(error)[:1_000]}"}
    if mismatches := world_mismatches(engine, component, world):
        return {"rejected": "; ".join(mismatches[:20])}
    target.write_bytes(component.serialize())
    return {"rejected": "", "imports": imported_interfaces(engine, component)}
