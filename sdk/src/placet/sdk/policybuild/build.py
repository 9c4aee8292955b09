"""Building the components of a pack and admitting them as an operator would."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from placet.core import limits
from placet.core.errors import InvalidInput
from placet.sandbox.manifest import NEWTON_WORLD, Manifest
from placet.sandbox.policydata import ComponentEngine
from placet.sdk.packs import PackData, pack_data
from placet.sdk.policybuild.components import Built, build_component

FROZEN = (
    "its clock is frozen: ages and windows that it computes mean nothing; "
    "compute them in Rego from data.task.timestamp, or build it from source with the Date shim"
)


@dataclass(frozen=True, slots=True)
class BuiltData:
    """A component that was built and admitted here. `artifact_bytes` is the size of the compiled code."""

    data: PackData
    built: Built
    admit_seconds: float
    artifact_bytes: int
    warnings: tuple[str, ...]


def read_manifest(folder: Path, data: PackData) -> Manifest:
    """A PolicyData's manifest. Raises InvalidInput or ManifestError."""
    try:
        return Manifest.parse((folder / data.manifest).read_bytes()[: limits.MAX_MANIFEST_BYTES + 1])
    except OSError as error:
        raise InvalidInput(f"{data.manifest}: {error.strerror}", field="manifest") from None


def warnings_of(manifest: Manifest) -> tuple[str, ...]:
    """What whoever publishes a PolicyData should know."""
    return (f"{manifest.name}: {FROZEN}",) if manifest.world == NEWTON_WORLD and manifest.clock == "frozen" else ()


def write_digest(component: Path) -> str:
    """Write `<component>.sha256` in the form of sha256sum; returns the digest."""
    digest = hashlib.sha256(component.read_bytes()).hexdigest()
    component.with_name(component.name + ".sha256").write_text(f"{digest}  {component.name}\n", encoding="ascii")
    return digest


def build_pack(folder: Path, out: Path, cache: Path) -> list[BuiltData]:
    """Build every component that has a source into `out`, under the names that policy.toml gives them.

    Raises:
        InvalidInput, ManifestError: the pack is not as it should be. DevServiceError: a tool fails.
        ComponentRejected: what was built does not fit its world. SandboxUnavailable: compiling ran out of seconds or memory.
    """
    sources = [(data, data.source) for data in pack_data(folder) if data.source is not None]
    if not sources:
        return []
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = ComponentEngine(cache / "components")
    results = []
    try:
        for data, source in sources:
            manifest = read_manifest(folder, data)
            built = build_component(folder, source, manifest, out / data.component)
            started = time.perf_counter()
            admitted = engine.admit(built.path.read_bytes(), manifest)
            seconds = time.perf_counter() - started
            write_digest(built.path)
            results.append(BuiltData(data, built, seconds, admitted.artifact_bytes, warnings_of(manifest)))
    finally:
        engine.close()
    return results
