"""Child processes that do not outlive their owner, free ports, and where tools are installed."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class DevServiceError(RuntimeError):
    """A development service could not be installed or started; the text says why and what to do."""


# Runs between fork and the real program: asks the kernel for a signal when the parent ends, and looks whether it has ended already.
# A preexec_fn would do the same but is unsafe in a program with threads.
_TRAMPOLINE = """
import ctypes, os, sys
parent, death, user, group = map(int, sys.argv[1:5])
libc = ctypes.CDLL(None)
if user >= 0:
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
libc.prctl(1, death)  # after the change of user, which clears it
if os.getppid() != parent:
    sys.exit(1)
os.execvp(sys.argv[5], sys.argv[5:])
"""


class OwnedProcess:
    """A process in a group of its own that is stopped by `stop`, at exit, and by the kernel when this process dies.

    Start it from a thread that lives on: the kernel's signal comes when the *thread* that forked ends. `stop_signal` is sent first,
    SIGKILL to the whole group after `stop_timeout_s`. `user` (uid, gid) is who it runs as, for a parent that is root.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        log_file: Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        user: tuple[int, int] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_timeout_s: float = 20.0,
    ) -> None:
        uid, gid = (-1, -1) if user is None else user
        self.log_file = log_file
        self._stop_signal = stop_signal
        self._stop_timeout_s = stop_timeout_s
        trampoline = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, *map(str, (os.getpid(), int(stop_signal), uid, gid))]
        with log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [*trampoline, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        return self._process.wait(timeout_s)

    def tail(self, lines: int = 25) -> str:
        """The end of its output."""
        text = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def kill(self) -> None:
        """SIGKILL to the whole group, as a crash would end it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(self._stop_timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def is_free(port: int) -> bool:
    """Whether something may listen on 127.0.0.1:port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Ports below the ephemeral range, so that no outgoing connection takes one between here and the bind."""
    found: set[int] = set()
    for _ in range(10_000):
        if len(found) == count:
            return list(found)
        port = random.randrange(20_000, 30_000)  # noqa: S311 - not a secret
        if is_free(port):
            found.add(port)
    raise DevServiceError("no free port between 20000 and 30000 on 127.0.0.1")


def repository() -> Path:
    """The root of the checkout: the pinned tool descriptions under tools/ are not part of the installed package."""
    for start in (Path(__file__).resolve(), Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / "tools" / "kafka" / "pom.xml").exists():
                return folder
    raise DevServiceError("no Placet checkout found: run this from inside one (tools/kafka/pom.xml is looked for)")


def tools_folder() -> Path:
    """Where tools are installed: $PLACET_TOOLS_DIR, else .tools in the checkout."""
    configured = os.environ.get("PLACET_TOOLS_DIR")
    folder = Path(configured).resolve() if configured else repository() / ".tools"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def installing(name: str) -> Iterator[None]:
    """Held by one process at a time, so that parallel test runs install a tool once."""
    with (tools_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_tool(
    arguments: Sequence[str | Path],
    *,
    what: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    user: tuple[int, int] | None = None,
) -> str:
    """Runs a program to its end and returns its output; DevServiceError with the output's end if it fails."""
    as_user: dict[str, Any] = {} if user is None else {"user": user[0], "group": user[1], "extra_groups": []}
    try:
        result: subprocess.CompletedProcess[str] = subprocess.run(
            list(map(str, arguments)),
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environment,
            check=False,
            stdin=subprocess.DEVNULL,
            **as_user,
        )
    except FileNotFoundError as error:
        raise DevServiceError(f"{what} needs {arguments[0]}, which is not on PATH") from error
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-25:])
        raise DevServiceError(f"{what} failed with status {result.returncode}:\n{tail}")
    return result.stdout


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
