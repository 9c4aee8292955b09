"""`placet up`: an EVM node with the contracts, four operators, and every service, on loopback.

Two ways to run the services: all in this process on the in-process bus, or each its own process over a real Kafka broker, configured by its
environment only. State lies in one folder; everything started here is stopped here.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from opentelemetry.sdk.trace.export import SpanExporter

from placet.core import bls
from placet.core.admin import AdminServer
from placet.core.bundle import PolicyBundle, store_bundle
from placet.core.bus.inprocess import InProcessBroker, InProcessBus
from placet.core.db import connect
from placet.core.envelope import LocalBusSigner
from placet.core.errors import PlacetError, Unavailable
from placet.core.evm.contracts import encode_call
from placet.core.evm.reader import ChainReader
from placet.core.evm.rpc import RpcClient
from placet.core.keystore import encrypt, write_private
from placet.core.objects import ObjectStore
from placet.core.runtime import Resources, Service, resources_for
from placet.core.settings import load_deployment
from placet.core.telemetry.scope import service_scope
from placet.core.telemetry.setup import TelemetrySettings, provider_for
from placet.core.types import Address, hex0x
from placet.sdk.client import Client
from placet.sdk.devservices.anvil import Anvil
from placet.sdk.devservices.kafka import KafkaBroker, apply_topics
from placet.sdk.devservices.postgres import Postgres
from placet.sdk.devservices.process import OwnedProcess, free_ports
from placet.sdk.documents import operator_set_json
from placet.sdk.local.chain import DevChain
from placet.sdk.local.payments import TOKEN_NAME, TOKEN_VERSION, PaymentContracts, deploy_payments, mint
from placet.settlement.signer import LocalTransactionSigner

log = logging.getLogger(__name__)

VERSION = "0.1.0"
DEV_SCRYPT_N = 1 << 12
QUORUM_BPS = 6667
VAULT_FUNDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How the local network is made. `separate` runs every service as its own process over Kafka; `postgres` instead of SQLite."""

    folder: Path
    operators: int = 4
    inference: int = 0
    """Replicas of the inference service; needs the extra `ai`."""
    payments: bool = False
    """Money on the chain (`LocalNetwork.money`), and a settlement that takes payments, refunds them, and posts receipts' roots."""
    settlement_overrides: dict[str, Any] = field(default_factory=dict)
    separate: bool = False
    postgres: bool = False
    otlp_endpoint: str | None = None
    chain_id: int = 31337
    gateway_port: int = 0
    activation_delay_s: int = 0
    allow_private_hosts: tuple[str, ...] = ()
    observe_for_ms: int = 5_000
    compiled_cache: Path | None = None
    span_exporter: SpanExporter | None = None
    operator_overrides: dict[int, dict[str, Any]] = field(default_factory=dict)
    inference_overrides: dict[str, Any] = field(default_factory=dict)
    gateway_overrides: dict[str, Any] = field(default_factory=dict)
    hooks: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    """Service name -> what is done to the built service before it starts (tests make operators lie with it); in-process only."""


@dataclass(frozen=True, slots=True)
class OperatorKeys:
    """One operator's development keys."""

    address: Address
    bls_secret: bytes
    bus_seed: bytes
    folder: Path

    @property
    def bus_key(self) -> bytes:
        """Its Ed25519 public key."""
        return LocalBusSigner(self.bus_seed).public_key


@dataclass(frozen=True, slots=True)
class Money:
    """What is on the chain when there are payments. The vault holds `VAULT_FUNDS` of the token."""

    contracts: PaymentContracts
    vault: Address
    ledger: Address
    facilitator: Address


@dataclass(slots=True)
class _Running:
    """One service in this process."""

    name: str
    service: Service
    resources: Resources
    task: asyncio.Task[None]
    admin: AdminServer


class LocalNetwork:
    """Use as an async context manager."""

    def __init__(self, options: LocalOptions) -> None:
        self.options = options
        self.folder = options.folder
        self.anvil = Anvil(options.folder / "anvil", chain_id=options.chain_id)
        self.kafka: KafkaBroker | None = None
        self.postgres: Postgres | None = None
        self.operators: list[OperatorKeys] = []
        self.addresses: dict[str, Address] = {}
        self.processes: dict[str, OwnedProcess] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.gateway_url = ""
        self.api_key = ""
        self.accounts: list[Address] = []
        self.admin_urls: dict[str, str] = {}
        self._broker = InProcessBroker()
        self._running: list[_Running] = []
        self.providers: list[Any] = []
        self._rpc: RpcClient | None = None
        self._gateway_seed = secrets.token_bytes(32)
        self._aggregator_seed = secrets.token_bytes(32)
        self._settlement_seed = secrets.token_bytes(32)
        self._sender_seed = secrets.token_bytes(32)
        self._inference_seed = secrets.token_bytes(32)
        self._inference_ports: list[int] = []
        self.inference_addresses: list[str] = []
        self.money: Money | None = None
        self.settlement_address = ""
        """Where settlement's PaymentService is; empty: nowhere."""
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    # --- parts

    @property
    def deployments(self) -> Path:
        """deployments/<chainId>.json."""
        return self.folder / "deployments" / f"{self.options.chain_id}.json"

    @property
    def rpc(self) -> RpcClient:
        """The node."""
        assert self._rpc is not None
        return self._rpc

    @property
    def chain(self) -> DevChain:
        """The node, with unlocked accounts."""
        return DevChain(self.rpc)

    def bus(self) -> InProcessBus:
        """Another connection to the in-process bus."""
        return InProcessBus(self._broker)

    @property
    def owner(self) -> Address:
        """Owns the registry and the example clients."""
        return self.accounts[0]

    @property
    def objects(self) -> ObjectStore:
        """The shared object store."""
        return ObjectStore(self.objects_url)

    @property
    def objects_url(self) -> str:
        """Where bundles, observations and evidence lie."""
        return (self.folder / "objects").resolve().as_uri()

    def client(self) -> Client:
        """A client of the gateway."""
        return Client(self.gateway_url, self.api_key)

    # --- start and stop

    async def start(self) -> None:
        """Start everything; returns when the gateway answers."""
        await asyncio.to_thread(self.folder.mkdir, parents=True, exist_ok=True)
        starting = [asyncio.to_thread(self.anvil.start)]
        if self.options.separate:
            self.kafka = KafkaBroker(self.folder / "kafka", watchdog=True)
            starting.append(asyncio.to_thread(self.kafka.start))
        if self.options.postgres:
            self.postgres = Postgres(durable=False)
            starting.append(asyncio.to_thread(self.postgres.start))
        await asyncio.gather(*starting)
        self._rpc = RpcClient([self.anvil.url])
        self.accounts = await self.chain.accounts()
        self.addresses = await self.chain.deploy_protocol(self.owner, self.options.activation_delay_s, self.deployments)
        await self._make_operators()
        if self.kafka is not None:
            await apply_topics(self.kafka.bootstrap)
        await self._start_services()
        self.api_key = await self.new_api_key("development")

    async def stop(self) -> None:
        """Stop everything, newest first. Safe to call twice."""
        for running in reversed(self._running):
            with contextlib.suppress(PlacetError, OSError, TimeoutError):
                await asyncio.wait_for(running.service.drain(), 5)
            running.task.cancel()
            await asyncio.gather(running.task, return_exceptions=True)
            await running.service.stop()
            await running.admin.stop()
            await running.resources.bus.stop()
            await running.resources.close()
        self._running.clear()
        for process in reversed(self.processes.values()):
            await asyncio.to_thread(process.stop)
        self.processes.clear()
        for provider in self.providers:
            await asyncio.to_thread(provider.shutdown)
        self.providers.clear()
        if self._rpc is not None:
            await self._rpc.close()
        for part in (self.kafka, self.postgres, self.anvil):
            if part is not None:
                await asyncio.to_thread(part.stop)

    async def _make_operators(self) -> None:
        chain = self.chain
        for index in range(self.options.operators):
            folder = self.folder / "operators" / str(index)
            keys = OperatorKeys(self.accounts[10 + index], _secret(), secrets.token_bytes(32), folder)
            await asyncio.to_thread(_write_keys, keys)
            await chain.register_operator(self.owner, self.addresses, keys.address, keys.bls_secret, keys.bus_key, 100)
            self.operators.append(keys)
        await chain.activate(self.owner, self.addresses)
        await self._record_set()

    async def _record_set(self) -> None:
        """Write the operator set into the deployments file, so that attestations can be checked offline."""
        reader = ChainReader(self.rpc, load_deployment(self.deployments, self.options.chain_id))
        block = await self.rpc.block("latest")
        operators = (await reader.at(block.hash)).operators
        await asyncio.to_thread(_add_to_json, self.deployments, {"epochs": [operator_set_json(operators)]})

    def _database(self, name: str) -> str:
        if self.postgres is not None:
            return self.postgres.ensure_database(name.replace("-", "_"))
        return f"sqlite+aiosqlite:///{self.folder / f'{name}.db'}"

    def _common(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "chains": [{"id": self.options.chain_id, "rpc": [self.anvil.url], "deployments": str(self.deployments)}],
            "bus": "kafka" if self.kafka is not None else "inprocess",
            "object_store": self.objects_url,
        }
        if self.kafka is not None:
            values["kafka_bootstrap"] = self.kafka.bootstrap
        if self.options.otlp_endpoint is not None:
            values["otlp_endpoint"] = self.options.otlp_endpoint
        return values

    def settings_of(self, name: str) -> dict[str, Any]:
        """The settings of one service (`gateway`, `aggregator`, `operator-0`…), as its environment would give them."""
        keys = self.folder / "keys"
        gateway, aggregator = LocalBusSigner(self._gateway_seed), LocalBusSigner(self._aggregator_seed)
        if name == "gateway":
            return {
                **self._common(),
                "port": self.options.gateway_port,
                "database": self._database("gateway"),
                "bus_key_file": str(keys / "gateway.key"),
                "trusted_aggregators": [hex0x(aggregator.public_key)],
                "trusted_settlements": [hex0x(LocalBusSigner(self._settlement_seed).public_key)],
                "observe_for_ms": self.options.observe_for_ms,
                "allow_private_hosts": list(self.options.allow_private_hosts),
                "evidence_urls": [url for name, url in self.admin_urls.items() if name.startswith("operator-")],
                "inference": self.inference_addresses,
                "trusted_inference": [hex0x(LocalBusSigner(self._inference_seed).public_key)] if self.options.inference else [],
                **self._cache(),
                **self._sold_in(),
                **self.options.gateway_overrides,
            }
        if name.startswith("inference-"):
            return {
                **self._common(),
                "port": 0 if not self.options.separate else int(self._inference_ports[int(name.removeprefix("inference-"))]),
                "database": self._database("inference"),
                "hub_id": f"placet:{self.options.chain_id}",
                "bus_key_file": str(keys / "inference.key"),
                "receipt_key_file": str(keys / f"{name}.key"),
                "model_cache": str((self.folder / "models").resolve()),
                "cuda": False,
                **self.options.inference_overrides,
            }
        if name == "aggregator":
            return {
                **self._common(),
                "bus_key_file": str(keys / "aggregator.key"),
                "trusted_gateways": [hex0x(gateway.public_key)],
            }
        if name == "settlement":
            return {
                **self._common(),
                "bus_key_file": str(keys / "settlement.key"),
                "sender_key_file": str(keys / "sender.key"),
                "database": self._database("settlement"),
                "trusted_aggregators": [hex0x(aggregator.public_key)],
                **self._payment_settings(),
                **self.options.settlement_overrides,
            }
        index = int(name.removeprefix("operator-"))
        operator = self.operators[index]
        values = {
            **self._common(),
            "operator_address": hex0x(operator.address),
            "bls_keystore": str(operator.folder / "bls.json"),
            "bls_password_file": str(operator.folder / "password"),
            "bus_key_file": str(operator.folder / "bus.key"),
            "database": self._database(name),
            "trusted_gateways": [hex0x(gateway.public_key)],
            "trusted_aggregators": [hex0x(aggregator.public_key)],
            "allow_private_hosts": list(self.options.allow_private_hosts),
        }
        return {**values, **self._cache(), **self.options.operator_overrides.get(index, {})}

    def _payment_settings(self) -> dict[str, Any]:
        if self.money is None:
            return {}
        keys, network, asset = self.folder / "keys", f"eip155:{self.options.chain_id}", hex0x(self.money.contracts.token)
        return {
            "grpc_port": int(self.settlement_address.rpartition(":")[2] or 0),
            "accepted_payments": [{"scheme": scheme, "network": network, "asset": asset} for scheme in ("exact", "upto")],
            "facilitator_key_file": str(keys / "facilitator.key"),
            "refund_key_file": str(keys / "refunds.key"),
            "refund_vaults": [{"network": network, "asset": asset, "vault": hex0x(self.money.vault)}],
            "receipts_key_file": str(keys / "receipts.key"),
            "receipt_ledger": {"network": network, "address": hex0x(self.money.ledger)},
            "trusted_inference": [hex0x(LocalBusSigner(self._inference_seed).public_key)],
            "receipts_wait_s": 1.0,
        }

    def _sold_in(self) -> dict[str, Any]:
        """The gateway's settings of payments."""
        if self.money is None:
            return {}
        asset = {
            "network": f"eip155:{self.options.chain_id}",
            "asset": hex0x(self.money.contracts.token),
            "name": TOKEN_NAME,
            "version": TOKEN_VERSION,
            "methods": ["eip3009", "permit2"],
            "facilitator": hex0x(self.money.facilitator),
        }
        return {"payment_assets": [asset], "payment_service": self.settlement_address, "prepaid_pay_to": hex0x(self.owner)}

    async def _make_money(self) -> None:
        """Token, Permit2, proxies, vault and ledger; settlement's three further accounts get ether."""
        accounts = {}
        for name in ("facilitator", "refunds", "receipts"):
            accounts[name] = LocalTransactionSigner(self.folder / "keys" / f"{name}.key").address
            await self.rpc.call("anvil_setBalance", [hex0x(accounts[name]), hex(1000 * 10**18)])
        contracts = await deploy_payments(self.chain, self.owner)
        vault = await self.chain.deploy(self.owner, "RefundVault", contracts.token, accounts["refunds"], self.owner)
        ledger = await self.chain.deploy(self.owner, "ReceiptLedger", self.owner)
        await self.chain.send(self.owner, ledger, encode_call("setPoster(address,bool)", accounts["receipts"], True))
        await mint(self.chain, self.owner, contracts.token, vault, VAULT_FUNDS)
        self.money = Money(contracts, vault, ledger, accounts["facilitator"])

    def _cache(self) -> dict[str, str]:
        return {} if self.options.compiled_cache is None else {"compiled_cache": str(self.options.compiled_cache)}

    def service_names(self) -> list[str]:
        """Services in the order they start."""
        operators = (f"operator-{index}" for index in range(self.options.operators))
        return ["aggregator", "settlement", *operators, *self._inference_names(), "gateway"]

    def _inference_names(self) -> list[str]:
        return [f"inference-{index}" for index in range(self.options.inference)]

    async def _start_services(self) -> None:
        seeds = {
            "gateway": self._gateway_seed,
            "aggregator": self._aggregator_seed,
            "settlement": self._settlement_seed,
            "sender": self._sender_seed,
            "inference": self._inference_seed,
            **{name: secrets.token_bytes(32) for name in self._inference_names()},
            **({name: _secret() for name in ("facilitator", "refunds", "receipts")} if self.options.payments else {}),
        }
        await asyncio.to_thread(_write_seeds, self.folder / "keys", seeds)
        sender = LocalTransactionSigner(self.folder / "keys" / "sender.key").address
        await self.rpc.call("anvil_setBalance", [hex0x(sender), hex(1000 * 10**18)])
        if self.options.payments:
            await self._make_money()
        if self.options.separate:
            if self.options.payments:
                self.settlement_address = f"127.0.0.1:{free_ports(1)[0]}"
            self._inference_ports = free_ports(self.options.inference)
            self.inference_addresses = [f"127.0.0.1:{port}" for port in self._inference_ports]
            for name, port in zip(self.service_names(), free_ports(len(self.service_names())), strict=True):
                self.admin_urls[name] = f"http://127.0.0.1:{port}"
            for name in self.service_names():
                self.launch(name)
            await asyncio.gather(*(self._wait_ready(name) for name in self.service_names()))
            return
        *first, gateway = self.service_names()  # the gateway is told where the operators serve evidence
        await asyncio.gather(*(self._start_inside(name) for name in first))
        await self._start_inside(gateway)

    # in this process

    async def _start_inside(self, name: str) -> None:
        kind = name.partition("-")[0]
        settings_type, build = _kinds()[kind]
        settings = settings_type(**self.settings_of(name))
        bus = self.bus()
        resources = resources_for(settings, kind, bus)
        telemetry = TelemetrySettings(otlp_endpoint=settings.otlp_endpoint, sample_ratio=settings.trace_ratio)
        provider = provider_for(kind, VERSION, telemetry, instance=name, exporter=self.options.span_exporter)
        self.providers.append(provider)
        with service_scope(kind, provider):
            service: Service = build(settings, resources)
            self.options.hooks.get(name, _nothing)(service)
            await bus.start()
            await service.start()
            admin = AdminServer(kind, VERSION)
            service.checks(admin)
            await admin.start()
            self.admin_urls[name] = f"http://127.0.0.1:{admin.port}"
            task = asyncio.create_task(service.run(), name=name)
        task.add_done_callback(_log_failure)
        self._running.append(_Running(name, service, resources, task, admin))
        if kind == "gateway":
            self.gateway_url = f"http://127.0.0.1:{service.port}"  # type: ignore[attr-defined]
        elif kind == "settlement" and self.options.payments:
            self.settlement_address = f"127.0.0.1:{service.grpc_port}"  # type: ignore[attr-defined]
        elif kind == "inference":
            self.inference_addresses.append(f"127.0.0.1:{service.port}")  # type: ignore[attr-defined]

    def inside(self, name: str) -> Any:
        """A service running in this process (for tests)."""
        return next(running.service for running in self._running if running.name == name)

    # as processes

    def launch(self, name: str) -> OwnedProcess:
        """Start (again) one service as its own process, configured by its environment only."""
        kind = name.partition("-")[0]
        if name not in self.environments:
            ports = free_ports(2)
            # A static member finds its partitions again at once after a crash; a dynamic one waits for its own ghost to time out.
            values = {**self.settings_of(name), "admin_port": ports[0], "instance_id": name}
            if kind == "gateway":
                values["port"] = values["port"] or ports[1]
                self.gateway_url = f"http://127.0.0.1:{values['port']}"
            self.admin_urls[name] = f"http://127.0.0.1:{ports[0]}"
            self.environments[name] = {
                f"PLACET_{key.upper()}": value if isinstance(value, str) else orjson.dumps(value).decode() for key, value in values.items()
            }
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", ""), **self.environments[name]}
        process = OwnedProcess([sys.executable, "-m", f"placet.{kind}.main"], log_file=self.folder / f"{name}.log", environment=environment)
        self.processes[name] = process
        return process

    async def _wait_ready(self, name: str, timeout_s: float = 90.0) -> None:
        end = time.monotonic() + timeout_s
        reason = "no answer"
        while time.monotonic() < end:
            if self.processes[name].poll() is not None:
                raise Unavailable(f"{name} ended while it started:\n{self.processes[name].tail()}")
            ok, reason = await asyncio.to_thread(_ready, self.admin_urls[name])
            if ok:
                return
            await asyncio.sleep(0.05)
        raise Unavailable(f"{name} is not ready: {reason}\n{self.processes[name].tail()}")

    async def wait_ready(self, name: str) -> None:
        """Wait until a service's readiness checks pass."""
        await self._wait_ready(name)

    async def new_api_key(self, name: str) -> str:
        """An API key of another tenant."""
        from placet.gateway.keys import new_key
        from placet.gateway.store import Store

        engine = connect(self._database("gateway"))
        try:
            key, text = new_key(name, requests_per_s=100_000, cpu_ms_per_s=1000)
            await Store(engine).add_key(key)
        finally:
            await engine.dispose()
        return text

    # --- policies and clients

    async def publish(self, bundle: PolicyBundle, *, timeout_s: float = 120.0) -> None:
        """Put a policy on chain and into the object store, announce it, and wait until every operator has spoken.

        Raises:
            Unavailable: operators did not all admit it; says which did not, and why.
        """
        address = await store_bundle(self.objects, bundle)
        await self.chain.publish_policy(self.owner, self.addresses, bundle.policy, f"sha256:{address.hex()}")
        async with self.client() as client:
            await client.announce_policy(hex0x(bundle.id), hex0x(address))
            end = time.monotonic() + timeout_s
            while time.monotonic() < end:
                said = (await client.policy(hex0x(bundle.id)))["admissions"][str(self.options.chain_id)]
                if all(item["admitted"] for item in said):
                    return
                refused = [f"{item['operator']}: {item['reason']}" for item in said if item["admitted"] is False]
                if refused:
                    raise Unavailable("operators refuse the policy: " + "; ".join(refused))
                await asyncio.sleep(0.05)
        raise Unavailable("the policy was not admitted in time")

    def client_config(self, policy_id: bytes, **changes: Any) -> tuple[Any, ...]:
        """A PolicyClient's ClientConfig, with development values unless changed."""
        values: dict[str, Any] = {
            "validator": self.addresses["validator"],
            "policyRegistry": self.addresses["policyRegistry"],
            "owner": self.owner,
            "policyId": policy_id,
            "quorumBps": QUORUM_BPS,
            "epochGrace": 3600,
            "maxCertificateAge": 3600,
            "policyDelay": 0,
            "minActivationDelay": 0,
            "escape": Address(bytes(20)),
            "escapeDelay": 0,
        }
        unknown = set(changes) - set(values)
        assert not unknown, unknown
        return tuple({**values, **changes}.values())


def _kinds() -> dict[str, tuple[type[Any], Callable[[Any, Resources], Any]]]:
    from placet.aggregator.config import AggregatorSettings
    from placet.aggregator.main import Aggregator
    from placet.gateway.config import GatewaySettings
    from placet.gateway.main import Gateway
    from placet.operator.config import OperatorSettings
    from placet.operator.main import Operator
    from placet.settlement.config import SettlementSettings
    from placet.settlement.main import Settlement

    kinds: dict[str, tuple[type[Any], Callable[[Any, Resources], Any]]] = {
        "operator": (OperatorSettings, Operator),
        "aggregator": (AggregatorSettings, Aggregator),
        "gateway": (GatewaySettings, Gateway),
        "settlement": (SettlementSettings, Settlement),
    }
    if importlib.util.find_spec("onnxruntime") is not None:
        from placet.inference.config import InferenceSettings
        from placet.inference.main import Inference

        kinds["inference"] = (InferenceSettings, Inference)
    return kinds


def _nothing(_: Any) -> None:
    """No hook."""


def _secret() -> bytes:
    return (1 + secrets.randbelow(bls.CURVE_ORDER - 1)).to_bytes(32, "big")


def _write_keys(keys: OperatorKeys) -> None:
    keys.folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("password", b"development"),
        ("bus.key", keys.bus_seed.hex().encode()),
        ("bls.json", encrypt(keys.bls_secret, "development", scrypt_n=DEV_SCRYPT_N)),
    ):
        (keys.folder / name).unlink(missing_ok=True)
        write_private(keys.folder / name, content)


def _add_to_json(path: Path, members: dict[str, Any]) -> None:
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **members}, option=orjson.OPT_INDENT_2))


def _write_seeds(folder: Path, seeds: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in seeds.items():
        (folder / f"{name}.key").unlink(missing_ok=True)
        write_private(folder / f"{name}.key", seed.hex().encode())


def _ready(url: str) -> tuple[bool, str]:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:  # noqa: S310 - our own URL
            return True, answer.read().decode()
    except urllib.error.HTTPError as error:
        return False, error.read().decode()[:500]
    except OSError as error:
        return False, str(error)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s ended", task.get_name(), exc_info=task.exception())
