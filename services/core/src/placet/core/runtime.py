"""The life of a service process: settings, telemetry, bus, chains, admin port, SIGTERM. The same for every service, so it stands here once.

A service is built by a function `(settings, resources) -> Service` and knows nothing of processes; the all-in-one builds several of them on
one bus and one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol, TypeVar, cast

import uvloop
from pydantic import ValidationError

from placet.core.admin import AdminServer
from placet.core.bus import Bus, BusError
from placet.core.bus.kafka import KafkaBus
from placet.core.bus.kafka_client import KafkaSettings
from placet.core.envelope import LocalBusSigner
from placet.core.errors import InvalidInput, PlacetError, Unavailable
from placet.core.evm.reader import ChainReader
from placet.core.evm.rpc import RpcClient
from placet.core.objects import ObjectStore
from placet.core.settings import ServiceSettings, load_deployment, masked
from placet.core.telemetry.setup import TelemetrySettings, configure

log = logging.getLogger(__name__)
S = TypeVar("S", bound=ServiceSettings)


class Service(Protocol):
    """What a service does once it is built."""

    async def start(self) -> None:
        """Get ready: migrate, connect, read what must be read first."""

    async def run(self) -> None:
        """Work until cancelled."""

    async def drain(self) -> None:
        """Finish what is in hand; nothing new is taken."""

    async def stop(self) -> None:
        """Let go of everything."""

    def checks(self, admin: AdminServer) -> None:
        """Add this service's liveness and readiness checks, and routes that belong on its admin port."""


@dataclass(slots=True)
class Resources:
    """What services share in kind: one bus, the chains, the object store."""

    bus: Bus
    chains: dict[int, ChainReader]
    objects: ObjectStore
    closing: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def close(self) -> None:
        """Close chains and bus."""
        for close in self.closing:
            await close()


def connect_chains(settings: ServiceSettings) -> dict[int, ChainReader]:
    """Readers of the configured chains. Raises InvalidInput for a deployments file that does not fit."""
    return {chain.id: ChainReader(RpcClient(chain.rpc), load_deployment(chain.deployments, chain.id)) for chain in settings.chains}


def kafka_settings(settings: ServiceSettings, client_id: str) -> KafkaSettings:
    """The bus's settings from the service's."""

    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return KafkaSettings(
        bootstrap_servers=settings.kafka_bootstrap,
        client_id=client_id,
        security_protocol=settings.kafka_security,  # type: ignore[arg-type]
        sasl_username=settings.kafka_username,
        sasl_password=settings.kafka_password.get_secret_value() if settings.kafka_password else None,
        ca_file=text(settings.kafka_ca_file),
        cert_file=text(settings.kafka_cert_file),
        key_file=text(settings.kafka_key_file),
    )


def resources_for(settings: ServiceSettings, service: str, bus: Bus | None = None) -> Resources:
    """Resources of one service; an own Kafka bus unless one is handed in."""
    if bus is None:
        if settings.bus != "kafka":
            raise InvalidInput("the in-process bus exists only inside `placet up`", field="PLACET_BUS")
        bus = KafkaBus(kafka_settings(settings, f"placet-{service}"))
    chains = connect_chains(settings)
    resources = Resources(bus, chains, ObjectStore(settings.object_store))
    for reader in chains.values():
        resources.closing.append(reader.rpc.close)
    return resources


def read_bus_key(path: Path) -> LocalBusSigner:
    """The Ed25519 seed in a file: 64 hex digits.

    Raises:
        InvalidInput: not there, or not that.
    """
    return LocalBusSigner(read_seed(path))


def read_seed(path: Path) -> bytes:
    """An Ed25519 seed from a file: 64 hex digits. Raises InvalidInput: not there, or not that."""
    try:
        seed = bytes.fromhex(path.read_text().strip().removeprefix("0x"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"bus key file: {type(error).__name__}", field="bus_key_file") from None
    if len(seed) != 32:
        raise InvalidInput("bus key file: 64 hex digits wanted", field="bus_key_file")
    return seed


def trusted_keys(values: Iterable[str], field_name: str) -> frozenset[bytes]:
    """Ed25519 public keys from 0x hex. Raises InvalidInput."""
    keys = set()
    for value in values:
        try:
            key = bytes.fromhex(value.removeprefix("0x"))
        except ValueError:
            key = b""
        if len(key) != 32:
            raise InvalidInput(f"{field_name}: {value[:80]!r} is no Ed25519 public key (32 bytes, 0x hex)", field=field_name)
        keys.add(key)
    return frozenset(keys)


def version_of(service: str) -> str:
    """The installed version of a service."""
    try:
        return metadata.version(f"placet-{service}")
    except metadata.PackageNotFoundError:
        return "0"


async def _retry(what: str, action: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
    """Start order does not matter: what is not there yet is waited for."""
    delay = 0.2
    while not stop.is_set():
        try:
            await action()
            return
        except (Unavailable, BusError, OSError) as error:
            log.warning("%s: %s; trying again in %.1f s", what, error, delay)
            try:
                await asyncio.wait_for(stop.wait(), delay)
            except TimeoutError:
                delay = min(5.0, delay * 2)


async def serve(service: str, settings: S, build: Callable[[S, Resources], Service], bus: Bus | None = None) -> None:
    """Run one service until SIGTERM or SIGINT, then drain and stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    resources = resources_for(settings, service, bus)
    built = build(settings, resources)
    admin = AdminServer(service, version_of(service), host=settings.admin_host, port=settings.admin_port)
    started = False

    async def ready() -> str | None:
        return None if started else "starting"

    async def topic_check() -> str | None:
        problems = await resources.bus.topic_problems()
        return problems[0] if problems else None

    admin.ready("started", ready)
    admin.ready("topics", topic_check)
    built.checks(admin)
    await admin.start()
    log.info("%s: admin port %d", service, admin.port, extra={"admin_port": admin.port})
    try:
        await _retry("bus", resources.bus.start, stop)
        await _retry(service, built.start, stop)
        if stop.is_set():
            return
        started = True
        log.info("%s is ready", service)
        working = asyncio.create_task(built.run(), name=service)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            admin.drain()
            log.info("%s: draining", service)
            try:
                await asyncio.wait_for(built.drain(), settings.drain_s)
            except TimeoutError:
                log.warning("%s: not everything was finished in %.0f s", service, settings.drain_s)
            working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
    finally:
        await built.stop()
        await resources.bus.stop()
        await resources.close()
        await admin.stop()


def main_of(service: str, settings_type: type[S], build: Callable[[S, Resources], Service]) -> None:
    """The body of a service's `main`: settings from the environment, telemetry, then `serve`. Exits 2 for settings that do not fit."""
    make = cast("Callable[[], S]", settings_type)  # every value comes from the environment
    try:
        settings = make()
    except ValidationError as error:
        for item in error.errors():
            where = "__".join(str(part) for part in item["loc"]).upper()
            sys.stderr.write(f"PLACET_{where}: {item['msg']}\n")
        raise SystemExit(2) from None
    telemetry = configure(
        service,
        version_of(service),
        TelemetrySettings(otlp_endpoint=settings.otlp_endpoint, sample_ratio=settings.trace_ratio, log_level=settings.log_level),
        instance=settings.instance_id,
    )
    log.info("%s starts", service, extra={"settings": masked(settings)})
    try:
        uvloop.run(serve(service, settings, build))
    except InvalidInput as error:
        sys.stderr.write(f"{service}: {error}\n")
        raise SystemExit(2) from None
    except PlacetError as error:
        log.critical("%s ends: %s", service, error)
        raise SystemExit(1) from None
    finally:
        telemetry.shutdown()
