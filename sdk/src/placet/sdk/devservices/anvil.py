"""An EVM node for development and tests: anvil from its pinned npm package, on a free loopback port."""

from __future__ import annotations

import json
import platform
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from placet.sdk.devservices.process import DevServiceError, OwnedProcess, free_ports, installing, repository, run_tool, tools_folder

VERSION = "1.7.1"


def install() -> Path:
    """The anvil binary, installed with `npm ci` into .tools when it is not there."""
    system = {"Linux": "linux", "Darwin": "darwin"}.get(platform.system())
    machine = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine().lower())
    if system is None or machine is None:
        raise DevServiceError(f"anvil is packaged for Linux and macOS on x86-64 and arm64, not {platform.system()} {platform.machine()}")
    home = tools_folder() / f"anvil-{VERSION}"
    binary = home / "node_modules" / "@foundry-rs" / f"anvil-{system}-{machine}" / "bin" / "anvil"
    with installing("anvil"):
        if not binary.exists():
            home.mkdir(parents=True, exist_ok=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copy(repository() / "tools" / "anvil" / name, home / name)
            run_tool(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], what="installing anvil", cwd=home)
    if not binary.exists():
        raise DevServiceError(f"npm installed no anvil for {system}-{machine}")
    return binary


class Anvil:
    """One node. `chain_id` and `state` (a file that survives restarts) as anvil takes them; `block_time_s` 0 mines on demand."""

    def __init__(self, folder: Path, *, chain_id: int = 31337, port: int = 0, block_time_s: float = 0, state: Path | None = None) -> None:
        self._folder = folder
        self.chain_id = chain_id
        self._wanted_port = port
        self._block_time_s = block_time_s
        self._state = state
        self._process: OwnedProcess | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Its JSON-RPC URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        binary = install()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = self._wanted_port or free_ports(1)[0]
        arguments: list[str | Path] = [binary, "--host", "127.0.0.1", "--port", str(self.port), "--chain-id", str(self.chain_id)]
        arguments += ["--hardfork", "prague", "--silent", "--accounts", "20", "--order", "fifo"]
        if self._block_time_s:
            arguments += ["--block-time", str(self._block_time_s)]
        if self._state is not None:
            arguments += ["--state", self._state, "--state-interval", "1"]
        self._process = OwnedProcess(arguments, log_file=self._folder / "anvil.out")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise DevServiceError(f"anvil ended while it started:\n{self._process.tail()}")
            try:
                if int(self.call("eth_chainId"), 16) == self.chain_id:
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        self.stop()
        raise DevServiceError("anvil does not answer")

    def call(self, method: str, *params: Any) -> Any:
        """One JSON-RPC request, for set-up and tests."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"})  # noqa: S310 - our own URL
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            reply = json.loads(answer.read())
        if "error" in reply:
            raise DevServiceError(f"{method}: {reply['error'].get('message')}")
        return reply["result"]

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


if __name__ == "__main__":
    install()
