"""Ethereum clients of the acceptance tests (cast, viem), from pinned npm packages."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from placet.sdk.devservices.process import DevServiceError, installing, repository, run_tool, sha256, tools_folder


def install() -> Path:
    """The folder with node_modules, installed with `npm ci` when it is not there or its lock has changed."""
    source = repository() / "tools" / "clients"
    home = tools_folder() / f"clients-{sha256(source / 'package-lock.json')[:12]}"
    with installing("clients"):
        if not (home / ".installed").exists():
            home.mkdir(parents=True, exist_ok=True)
            for name in ("package.json", "package-lock.json", "send.mjs"):
                shutil.copy(source / name, home / name)
            run_tool(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], what="installing cast and viem", cwd=home)
            (home / ".installed").touch()
    return home


def cast() -> Path:
    """The cast binary."""
    system = {"Linux": "linux", "Darwin": "darwin"}.get(platform.system(), "")
    machine = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine().lower(), "")
    binary = install() / "node_modules" / "@foundry-rs" / f"cast-{system}-{machine}" / "bin" / "cast"
    if not binary.exists():
        raise DevServiceError(f"npm installed no cast for {system}-{machine}")
    return binary
