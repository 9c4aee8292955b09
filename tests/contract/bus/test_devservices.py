"""The services for development: they listen on loopback, come back on their data, and end with their owner however that ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from placet.sdk.devservices import kafka, postgres
from placet.sdk.devservices.process import DevServiceError, OwnedProcess, free_ports


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} outlived its owner"
        time.sleep(0.01)


def listening(pid: int) -> set[str]:
    """Addresses on which the process listens, as /proc writes them."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                found.add(columns[1].rsplit(":", 1)[0])
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.kafka
@pytest.mark.parametrize("end", ["exception", "os._exit", "SIGTERM", "SIGKILL"])
def test_a_broker_ends_with_its_owner(end: str, tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from placet.sdk.devservices.kafka import KafkaBroker\n"
        f"with KafkaBroker(Path({str(tmp_path / 'data')!r})) as broker:\n"
        "    print(broker.pid, flush=True)\n"
        "    how = sys.stdin.readline().strip()\n"
        "    if how == 'exception': raise RuntimeError\n"
        "    if how == 'os._exit': os._exit(3)\n"
        "    sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert alive(pid)
        assert listening(pid)
        assert listening(pid) <= LOOPBACK
        if end.startswith("SIG"):
            owner.send_signal(signal.Signals[end])
        else:
            owner.stdin.write(f"{end}\n")
            owner.stdin.flush()
        owner.wait(30)
        wait_gone(pid)


@pytest.mark.kafka
def test_the_command_prints_its_address_and_ends_on_sigterm(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "placet.sdk.devservices.kafka", str(tmp_path), "--port", str(port), "--topics"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().strip() == f"127.0.0.1:{port}"
        owner.send_signal(signal.SIGTERM)
        assert owner.wait(30) == 0


def test_a_missing_java_is_said_clearly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLACET_TOOLS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DevServiceError, match="Java 17"):
        kafka.install()


def test_a_missing_maven_is_said_clearly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLACET_TOOLS_DIR", str(tmp_path / "tools"))
    (tmp_path / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DevServiceError, match="Maven"):
        kafka.install()


@pytest.mark.kafka
def test_jars_that_are_not_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    expected = tmp_path / "jars.sha256"
    home = kafka.install()
    expected.write_text(kafka.jar_digests(home / "lib").replace("a", "b", 1))
    with pytest.raises(DevServiceError, match="are not those of"):
        kafka._check_jars(home / "lib", expected)


def test_a_process_that_ignores_its_stop_signal_is_killed(tmp_path: Path) -> None:
    process = OwnedProcess(
        [sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"],
        log_file=tmp_path / "out",
        stop_timeout_s=0.1,
    )
    while "on" not in process.tail():
        time.sleep(0.01)
    process.stop()
    assert process.poll() == -signal.SIGKILL


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the unprivileged user of the database may reach (pytest's own are closed to others)."""
    made = Path(tempfile.mkdtemp(prefix="placet-test-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


async def test_postgresql_gives_fresh_databases_on_loopback_and_keeps_them_over_a_crash(folder: Path) -> None:
    server = postgres.Postgres(folder / "pg", durable=False)
    with server:
        assert server._process is not None
        assert listening(server._process.pid) <= LOOPBACK
        one, two = server.database(), server.database()
        assert one != two
        connection = await asyncpg.connect(one)
        await connection.execute("create table kept (n int); insert into kept values (7)")
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(one.replace(one.split(":")[2].split("@")[0], "wrong"))
        server.kill()
        server.start()
        connection = await asyncpg.connect(one)
        assert await connection.fetchval("select n from kept") == 7
        await connection.close()
        assert server.ensure_database("signing") == server.ensure_database("signing")
        pid = server._process.pid
    wait_gone(pid)


def test_a_temporary_postgresql_leaves_nothing_behind() -> None:
    with postgres.Postgres(durable=False) as server:
        folder = server._temporary
        assert folder is not None
        assert folder.exists()
    assert not folder.exists()
