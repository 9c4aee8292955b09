"""From a pack's source to a component: one function a language, and the two things all of them share.

A component is built against a copy of its world that imports what the pack declares and nothing else, so its own bytes say what it can
reach. And its bytes are its identity: JavaScript and Python builds differ from run to run, so a build is compared by what it does
(`check.py`), never by its hash.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from placet.core.errors import InvalidInput
from placet.sandbox.manifest import NEWTON_WORLD, Manifest
from placet.sdk.devservices.process import installing
from placet.sdk.packs import ComponentSource
from placet.sdk.policybuild import toolchain

NEWTON_SHIM: Final = "newton-shim.mjs"
_CLOCK: Final = "placet:policydata/clock@1.0.0"


@dataclass(frozen=True, slots=True)
class Built:
    """A component that was just built."""

    path: Path
    sha256: str
    size: int
    seconds: float


def world_text(name: str, imports: tuple[str, ...]) -> str:
    """The WIT package of a world, its `import` lines reduced to `imports`."""
    text = (resources.files("placet.sandbox") / "wit" / name).read_text(encoding="utf-8")
    head, opening, body = text.partition("\nworld ")
    kept = [line for line in body.splitlines() if not (found := re.fullmatch(r"\s*import ([a-z]+);", line)) or found[1] in imports]
    return head + opening + "\n".join(kept) + "\n"


def write_world(folder: Path, manifest: Manifest, imports: tuple[str, ...]) -> str:
    """Write the world a component is built against into `folder`; returns the world's name.

    In Newton's world `clock` stands for the one import that is Placet's own: what the Date shim asks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if manifest.world != NEWTON_WORLD:
        if "tlsn" in imports:
            raise InvalidInput("policy_data.source.imports: tlsn is an interface of newton:provider", field="imports")
        (folder / "policydata.wit").write_text(world_text("policydata.wit", imports), encoding="utf-8")
        return "policydata"
    if "chain" in imports:
        raise InvalidInput("policy_data.source.imports: newton:provider has no chain", field="imports")
    text = world_text("newton-provider.wit", imports)
    if "clock" in imports:
        text = text.replace("world newton-provider {", f"world newton-provider {{\n    import {_CLOCK};")
        package = folder / "deps" / "policydata"
        package.mkdir(parents=True, exist_ok=True)
        (package / "policydata.wit").write_text(world_text("policydata.wit", ()), encoding="utf-8")
    (folder / "newton-provider.wit").write_text(text, encoding="utf-8")
    return "newton-provider"


def build_component(pack: Path, source: ComponentSource, manifest: Manifest, output: Path) -> Built:
    """Build the component of `pack` described by `source` into `output`.

    Raises:
        InvalidInput: the description is wrong.
        DevServiceError: a tool fails; the text ends with what it said.
    """
    entry = pack / source.path
    if not entry.exists():
        raise InvalidInput(f"policy_data.source.path: {source.path} is not in the pack", field="path")
    if manifest.world == NEWTON_WORLD and (manifest.clock == "task") != ("clock" in source.imports):
        raise InvalidInput(
            'a newton:provider component imports "clock" (for the Date shim) exactly if its manifest says `"clock": "task"`',
            field="imports",
        )
    started = time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="placet-build-") as scratch:
        folder = Path(scratch)
        world = write_world(folder / "wit", manifest, source.imports)
        built = folder / "built.wasm"
        match source.language:
            case "javascript":
                _javascript(entry, folder, world, built, shim=manifest.world == NEWTON_WORLD and "clock" in source.imports)
            case "python":
                _python(entry, folder, world, built)
            case "rust":
                _rust(entry, folder, built)
            case _:
                raise InvalidInput(f"policy_data.source: language {source.language!r}", field="language")
        shutil.copyfile(built, output)
    content = output.read_bytes()
    return Built(output, hashlib.sha256(content).hexdigest(), len(content), time.perf_counter() - started)


def _javascript(entry: Path, folder: Path, world: str, built: Path, *, shim: bool) -> None:
    """The script's folder is copied, so that its relative imports work and the shim can stand in front of it."""
    sources = folder / "source"
    shutil.copytree(entry.parent, sources, ignore=shutil.ignore_patterns("node_modules"))
    script = sources / entry.name
    if shim:
        script.write_text(f"{newton_shim()}\n{script.read_text(encoding='utf-8')}", encoding="utf-8")
    arguments: list[str | Path] = [toolchain.quickjs(), "--wit", folder / "wit", "--js", script, "--module-root", sources]
    arguments += ["--world", world, "--sync", "--stub-wasi", "--opt-size", "--output", built]
    toolchain.run_nicely(arguments, what=f"building {entry.name}")


def newton_shim() -> str:
    """The shim on one line, so that the lines of what follows keep their numbers but for one."""
    text = (resources.files("placet.sdk.policybuild") / NEWTON_SHIM).read_text(encoding="utf-8")
    return " ".join(line.strip() for line in text.splitlines() if not line.lstrip().startswith("//"))


def _python(entry: Path, folder: Path, world: str, built: Path) -> None:
    componentize = toolchain.python_command("componentize-py")
    sources = folder / "source"
    shutil.copytree(entry.parent, sources, ignore=shutil.ignore_patterns("__pycache__"))
    arguments: list[str | Path] = [componentize, "-d", folder / "wit", "-w", world, "componentize", entry.stem]
    arguments += ["-p", sources, "--stub-wasi", "-o", folder / "with-names.wasm"]
    toolchain.run_nicely(arguments, what=f"building {entry.name}")
    wasm_tools = toolchain.python_command("wasm-tools")
    toolchain.run_nicely([wasm_tools, "strip", "--all", folder / "with-names.wasm", "-o", built], what=f"stripping {entry.name}")


def _rust(crate: Path, folder: Path, built: Path) -> None:
    """A crate with one cdylib that calls `wit_bindgen::generate!` with `path: "wit"`; its `wit` folder is written here.

    It is built at one place under .tools, so that the compiler's flags, and with them the standard library it has built, stay the same.
    """
    found = re.search(r'^name\s*=\s*"([A-Za-z0-9_-]+)"', (crate / "Cargo.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise InvalidInput("Cargo.toml: the package has no name", field="path")
    rust = toolchain.rust()
    with installing("rust-build"):
        sources = rust.sources / found[1]
        shutil.rmtree(sources, ignore_errors=True)
        shutil.copytree(crate, sources, ignore=shutil.ignore_patterns("target", "wit"))
        shutil.copytree(folder / "wit", sources / "wit")
        arguments: list[str | Path] = [rust.cargo, "build", "--locked", "--release", "--target", "wasm32-unknown-unknown"]
        arguments += ["-Zbuild-std=std,panic_abort"]
        toolchain.run_nicely(arguments, what=f"building {found[1]}", cwd=sources, environment=rust.environment)
        module = rust.target / "wasm32-unknown-unknown" / "release" / f"{found[1].replace('-', '_')}.wasm"
        if not module.exists():
            raise InvalidInput('the crate makes no .wasm: [lib] crate-type = ["cdylib"] wanted in Cargo.toml', field="path")
        wasm_tools = toolchain.python_command("wasm-tools")
        toolchain.run_nicely([wasm_tools, "component", "new", module, "-o", built], what=f"making a component of {found[1]}")
