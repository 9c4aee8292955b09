"""What builds components, installed into .tools by package name and pinned: tools/components describes every piece.

JavaScript runs on QuickJS (`componentize-qjs`, npm), Python on CPython (`componentize-py`, PyPI), Rust on Debian's compiler 1.96, unpacked
and never installed: the recipe and the pins are those of the Rego engine (services/sandbox/engine/build.sh), and so is the cache folder.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from placet.sdk.devservices.process import DevServiceError, installing, repository, run_tool, sha256, tools_folder

QUICKJS = "0.4.5"
SPIDERMONKEY = "0.23.0"
PYTHON = "0.25.1"


def _descriptions() -> Path:
    return repository() / "tools" / "components"


def run_nicely(arguments: Sequence[str | Path], *, what: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """`run_tool` at low priority: a build is never what somebody waits for most urgently."""
    nice: list[str | Path] = ["nice", "-n", "10"] if shutil.which("nice") else []
    return run_tool([*nice, *arguments], what=what, cwd=cwd, environment=environment)


def _npm(name: str, version: str, description: str) -> Path:
    home = tools_folder() / f"{name}-{version}"
    with installing(name):
        if not (home / ".installed").exists():
            home.mkdir(parents=True, exist_ok=True)
            for file in ("package.json", "package-lock.json"):
                shutil.copy(_descriptions() / description / file, home / file)
            run_nicely(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], what=f"installing {name}", cwd=home)
            (home / ".installed").touch()
    return home / "node_modules"


def quickjs() -> Path:
    """The `componentize-qjs` command."""
    return _npm("componentize-qjs", QUICKJS, "quickjs") / ".bin" / "componentize-qjs"


def spidermonkey() -> Path:
    """The folder `node_modules` with ComponentizeJS: only for the fixture that stands for a component published for Newton."""
    return _npm("componentize-js", SPIDERMONKEY, "spidermonkey")


def python_command(name: str) -> Path:
    """`componentize-py` or `wasm-tools`, in a virtual environment of their own."""
    home = tools_folder() / f"components-python-{PYTHON}"
    with installing("components-python"):
        if not (home / ".installed").exists():
            shutil.rmtree(home, ignore_errors=True)
            run_nicely([sys.executable, "-m", "venv", home], what="making a virtual environment")
            requirements = _descriptions() / "python" / "requirements.txt"
            run_nicely(
                [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", requirements],
                what="installing componentize-py",
            )
            (home / ".installed").touch()
    return home / "bin" / name


@dataclass(frozen=True, slots=True)
class Rust:
    """A compiler for wasm32 with its standard library built from source. `sources` is where crates are copied to, `target` where
    cargo writes."""

    cargo: str
    environment: Mapping[str, str]
    sources: Path
    target: Path


def _rust_pins() -> dict[str, str]:
    """File name -> sha256 of the compiler's Debian packages."""
    lines = (repository() / "services" / "sandbox" / "engine" / "toolchain.sha256").read_text(encoding="ascii").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def _apt_name(file: str) -> str:
    """`name=version` of a package's file name."""
    name, version, _ = file.split("_")
    return f"{name}={version.replace('%3a', ':')}"


def _need_for_rust(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        fix = "build it on Debian 12, which has apt-get and dpkg, with rustup and its stable toolchain"
        raise DevServiceError(f"building a Rust component needs what is not on PATH: {', '.join(missing)}; {fix}")


def _unpacked_rust() -> Path:
    configured = os.environ.get("PLACET_ENGINE_CACHE")
    cache = Path(configured) if configured else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "placet-engine"
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / "root"
    with installing("rust"):
        if root.is_dir():
            _need_for_rust("rustup")
            return root.resolve()
        _need_for_rust("rustup", "apt-get", "dpkg")  # before a download that rustup's absence would waste
        pins = _rust_pins()
        if not all((cache / name).exists() for name in pins):
            run_nicely(["apt-get", "download", *map(_apt_name, pins)], what="fetching the Rust compiler", cwd=cache)
        for name, digest in pins.items():
            if sha256(cache / name) != digest:
                raise DevServiceError(f"{cache / name} is not the pinned package (services/sandbox/engine/toolchain.sha256)")
        part = cache / "root.part"
        shutil.rmtree(part, ignore_errors=True)
        for name in pins:
            run_nicely(["dpkg", "-x", cache / name, part], what=f"unpacking {name}")
        part.rename(root)
    return root.resolve()


def rust() -> Rust:
    """The compiler, unpacked when it is not there. Paths of this machine are kept out of the bytes."""
    root = _unpacked_rust()
    sources, target = tools_folder() / "rust-sources", tools_folder() / "rust-target"
    sources.mkdir(parents=True, exist_ok=True)
    sysroot = run_tool(["rustup", "run", "stable", "rustc", "--print", "sysroot"], what="looking for rust-lld").strip()
    cargo = run_tool(["rustup", "which", "--toolchain", "stable", "cargo"], what="looking for cargo").strip()
    home = os.environ.get("CARGO_HOME") or str(Path.home() / ".cargo")
    flags = [
        f"-Clinker={sysroot}/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld",
        "-Clinker-flavor=wasm-ld",
        f"--remap-path-prefix={home}=/cargo",
        f"--remap-path-prefix={sources.resolve()}=/component",
        f"--remap-path-prefix={root}=/toolchain",
    ]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{root}/usr/lib/x86_64-linux-gnu",
        "RUSTC": f"{root}/usr/bin/rustc",
        "RUSTC_BOOTSTRAP": "1",
        "RUSTFLAGS": " ".join(flags),
        "CARGO_TARGET_DIR": str(target),
    }
    return Rust(cargo, environment, sources, target)
