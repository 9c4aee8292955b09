"""One real Apache Kafka 4 broker (KRaft, broker and controller in one JVM) on 127.0.0.1.

    with KafkaBroker(Path("/var/tmp/data")) as broker:      # broker.bootstrap == "127.0.0.1:2xxxx"
        await apply_topics(broker.bootstrap)

    python -m placet.sdk.devservices.kafka DATA_DIR [--port N] [--topics]     # runs until SIGINT or SIGTERM

Installs itself on first use: the jars by Maven from tools/kafka/pom.xml, checked against tools/kafka/jars.sha256, and an AppCDS archive
that halves the start. Ready in one to two seconds, about 150 MB. The data survives restarts; the port may change.
The settings are for one machine: short sessions, one replica, no fsync.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import logging
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from aiokafka.admin import AIOKafkaAdminClient

from placet.core.bus.kafka_client import KafkaSettings
from placet.core.bus.kafka_topics import apply_topics as _apply_topics
from placet.core.topics import TOPICS, Topic
from placet.sdk.devservices.process import (
    DevServiceError,
    OwnedProcess,
    free_ports,
    installing,
    is_free,
    repository,
    run_tool,
    sha256,
    tools_folder,
)

VERSION: Final = "4.4.0"

log = logging.getLogger(__name__)

_JVM: Final = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xss512k",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dlog4j2.disable.jmx=true",
    "-Dfile.encoding=UTF-8",
)

_LOG4J: Final = """Configuration:
  Appenders: {Console: {name: out, target: SYSTEM_OUT, PatternLayout: {pattern: "%d %p %c{1}: %m%n"}}}
  Loggers:
    Root: {level: WARN, AppenderRef: {ref: out}}
"""

_PROPERTIES: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "num.partitions": "1",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # The old registration must expire before a killed broker serves again: 2 s instead of 11.
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "log.cleaner.threads": "1",
    "num.recovery.threads.per.data.dir": "1",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "log.index.size.max.bytes": "1048576",
    "queued.max.requests": "200",
}


def install() -> Path:
    """The folder with the jars and the AppCDS archive, made on first use. Raises DevServiceError when java or mvn is missing."""
    home = tools_folder() / f"kafka-{VERSION}"
    with installing(f"kafka-{VERSION}"):
        if not (home / "installed").exists():
            _java()
            if shutil.which("mvn") is None:
                raise DevServiceError("installing Kafka's jars needs Maven: mvn is not on PATH")
            source = repository() / "tools" / "kafka"
            shutil.rmtree(home, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix="kafka-pom-") as work:  # Maven writes beside its pom
                shutil.copy(source / "pom.xml", work)
                run_tool(
                    ["mvn", "-B", "-q", "dependency:copy-dependencies", f"-DoutputDirectory={home / 'lib'}"],
                    what="installing Kafka's jars",
                    cwd=Path(work),
                )
            _check_jars(home / "lib", source / "jars.sha256")
            _archive_classes(home)
            (home / "installed").touch()
    return home


def jar_digests(lib: Path) -> str:
    """Lines `sha256  name` for every jar, in order: the contents of tools/kafka/jars.sha256."""
    return "".join(f"{sha256(jar)}  {jar.name}\n" for jar in sorted(lib.glob("*.jar")))


def _check_jars(lib: Path, expected: Path) -> None:
    if jar_digests(lib) != expected.read_text():
        raise DevServiceError(f"the jars in {lib} are not those of {expected}: delete the folder, and look into it before you go on")


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise DevServiceError("Kafka needs Java 17 or newer: java is not on PATH")
    return java


def _command(home: Path, *arguments: str, jvm: Sequence[str] = ()) -> list[str]:
    # The archive is tied to the order of the jars and to each one's path, size and time: hence sorted, and no wildcard.
    jars = sorted((home / "lib").glob("*.jar"))
    archive = home / "kafka.jsa"
    shared = [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto"] if archive.exists() else []
    return [_java(), *_JVM, *jvm, *shared, "-cp", ":".join(map(str, jars)), *arguments]


def _archive_classes(home: Path) -> None:
    """Runs a broker once and has the JVM write down the classes it loaded. Failing costs only start time."""
    with tempfile.TemporaryDirectory(prefix="kafka-cds-") as data:
        broker = KafkaBroker(Path(data), home=home, jvm=[f"-XX:ArchiveClassesAtExit={home / 'kafka.jsa'}"])
        broker.start()
        broker.stop()
    if not (home / "kafka.jsa").exists():
        log.warning("no AppCDS archive was written; Kafka starts in about twice the time")


def _new_cluster_id() -> str:
    """A uuid in URL-safe base64, 22 characters, not beginning with "-"."""
    return "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:21] + "A"


class KafkaBroker:
    """One broker over one data folder. `port` 0 picks a free one, which then stays for the life of this object.

    With `watchdog` a broker that dies is started again on the same port and data. `properties` are added to the broker's own;
    `scram_users` (name to password) are made when the data is new. Use as a context manager, or start() and stop().
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int = 0,
        properties: Mapping[str, str] | None = None,
        scram_users: Mapping[str, str] | None = None,
        watchdog: bool = False,
        start_timeout_s: float = 60.0,
        home: Path | None = None,
        jvm: Sequence[str] = (),
    ) -> None:
        self._data = data.resolve()
        self._port = port
        self._properties = dict(properties or {})
        self._scram_users = dict(scram_users or {})
        self._with_watchdog = watchdog
        self._start_timeout_s = start_timeout_s
        self._home = home
        self._jvm = tuple(jvm)
        self._process: OwnedProcess | None = None
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._watchdog: threading.Thread | None = None
        self.restarts = 0

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise DevServiceError("the broker is not running")
        return self._process.pid

    def start(self) -> None:
        """Returns when the broker answers. Raises DevServiceError with the end of its log if it does not."""
        self._stopping.clear()
        with self._lock:
            self._start()
        if self._with_watchdog and self._watchdog is None:
            self._watchdog = threading.Thread(target=self._watch, name="kafka watchdog", daemon=True)
            self._watchdog.start()

    def _start(self) -> None:
        home = self._home or install()
        self._data.mkdir(parents=True, exist_ok=True)
        fixed = self._port
        if fixed and not is_free(fixed):
            raise DevServiceError(f"port {fixed} on 127.0.0.1 is in use")
        for attempt in range(3):
            port, controller = (fixed, *free_ports(1)) if fixed else free_ports(2)
            logging_to, properties = self._configure(port, controller)
            cluster = self._format(home, logging_to, properties)
            log_file = self._data / "kafka.out"
            log_file.unlink(missing_ok=True)
            process = OwnedProcess(_command(home, logging_to, "kafka.Kafka", str(properties), jvm=self._jvm), log_file=log_file)
            try:
                if self._ready(f"127.0.0.1:{port}", process, cluster):
                    self._port, self._process = port, process
                    return
            except BaseException:
                process.stop()
                raise
            status = process.poll()
            process.stop()
            tail = process.tail()
            if "already in use" in tail and not fixed and attempt < 2:
                continue
            reason = f"exited with status {status}" if status is not None else f"was not ready after {self._start_timeout_s:.0f} s"
            raise DevServiceError(f"Kafka {reason}; the end of {log_file}:\n{tail}")

    def _configure(self, port: int, controller: int) -> tuple[str, Path]:
        settings = {
            **_PROPERTIES,
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": str(self._data / "log"),
            **self._properties,
        }
        properties = self._data / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        log4j = self._data / "log4j2.yaml"
        log4j.write_text(_LOG4J)
        return f"-Dlog4j2.configurationFile={log4j}", properties

    def _format(self, home: Path, logging_to: str, properties: Path) -> str:
        """Formats new data; returns its cluster id."""
        meta = self._data / "log" / "meta.properties"
        if not meta.exists():
            command = _command(home, logging_to, "kafka.tools.StorageTool", "format", "-t", _new_cluster_id(), "-c", str(properties))
            users = [f"SCRAM-SHA-512=[name={name},password={password}]" for name, password in self._scram_users.items()]
            command += [argument for user in users for argument in ("--add-scram", user)]
            run_tool(command, what="formatting Kafka's data folder")
        found = re.search(r"^cluster\.id=(\S+)", meta.read_text(), re.MULTILINE)
        if found is None:
            raise DevServiceError(f"{meta} names no cluster id: the data folder is damaged")
        return found[1]

    def _ready(self, bootstrap: str, process: OwnedProcess, cluster: str) -> bool:
        deadline = time.monotonic() + self._start_timeout_s
        with ThreadPoolExecutor(1) as elsewhere:  # the caller may run inside an event loop
            return elsewhere.submit(asyncio.run, _answers(bootstrap, process, cluster, deadline)).result()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            process = self._process
            if process is not None and process.poll() is not None:
                with self._lock:
                    if self._stopping.is_set():
                        return
                    log.warning("the Kafka broker died with status %s; starting it again on %s", process.poll(), self.bootstrap)
                    process.stop()
                    try:
                        self._start()
                        self.restarts += 1
                    except DevServiceError:
                        log.exception("the Kafka broker did not come back; trying again")
                        self._stopping.wait(1.0)
            self._stopping.wait(0.05)

    def kill(self) -> None:
        """kill -9, for tests."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        self._stopping.set()
        if self._watchdog is not None and self._watchdog is not threading.current_thread():
            self._watchdog.join()
            self._watchdog = None
        with self._lock:
            if self._process is not None:
                self._process.stop()
                self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


async def _answers(bootstrap: str, process: OwnedProcess, cluster: str, deadline: float) -> bool:
    """Whether *this* broker answers: another one may hold the port, hence the cluster id."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        while process.poll() is None and time.monotonic() < deadline:
            admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=2000)
            try:
                await admin.start()
                answer = await admin.describe_cluster()
                if answer["brokers"] and answer["cluster_id"] == cluster:
                    return process.poll() is None
            except Exception:  # noqa: BLE001, S110 - not yet; the deadline is the judge
                pass
            finally:
                with contextlib.suppress(Exception):
                    await admin.close()
            await asyncio.sleep(0.05)
        return False
    finally:
        logging.getLogger("aiokafka").setLevel(logging.WARNING)


async def apply_topics(bootstrap: str, topics: Mapping[str, Topic] = TOPICS) -> list[str]:
    """Creates and configures every topic of the table on a broker without authentication. Returns what was done, a line each."""
    return await _apply_topics(KafkaSettings(bootstrap_servers=bootstrap, client_id="placet-topics"), topics)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m placet.sdk.devservices.kafka", description=__doc__.split("\n", 1)[0] if __doc__ else None
    )
    parser.add_argument("data", type=Path, help="data folder; made if missing")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--topics", action="store_true", help="create Placet's topics")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        with KafkaBroker(chosen.data, port=chosen.port, watchdog=True) as broker:
            if chosen.topics:
                asyncio.run(apply_topics(broker.bootstrap))
            sys.stdout.write(f"{broker.bootstrap}\n")
            sys.stdout.flush()
            ended.wait()
    except DevServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
