"""Wiring of the gateway. Nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import uvicorn
from starlette.routing import Route

from placet.core.admin import AdminServer
from placet.core.db import connect, migrate, schema_problem
from placet.core.errors import InvalidInput, Unavailable, VerificationFailed
from placet.core.evm.rpc import RpcError
from placet.core.runtime import Resources, main_of, read_bus_key, trusted_keys, version_of
from placet.core.types import Address, Hash32, address_from, hex0x
from placet.gateway.api import Api
from placet.gateway.batcher import Batcher
from placet.gateway.config import GatewaySettings
from placet.gateway.evidence import EvidenceClient
from placet.gateway.inference.models_api import ModelsApi
from placet.gateway.inference.openai_api import OpenAiApi
from placet.gateway.inference.paid import Paywall
from placet.gateway.inference.receipts import ReceiptReader, ReceiptsApi, ReceiptStore
from placet.gateway.inference.replicas import Replicas
from placet.gateway.inference.service import InferenceService
from placet.gateway.inference.v2_api import V2Api
from placet.gateway.inference.v2_grpc import V2Grpc
from placet.gateway.insight import Insight
from placet.gateway.intents import Intents
from placet.gateway.keys import Authenticator
from placet.gateway.payment.assets import assets_of
from placet.gateway.payment.gate import Gate, Rules
from placet.gateway.payment.keys_api import KeysApi
from placet.gateway.payment.ledger import Ledger
from placet.gateway.payment.prepaid import Prepaid
from placet.gateway.payment.settler import Settler
from placet.gateway.policybook import PolicyBook
from placet.gateway.results import Results
from placet.gateway.simulation import Simulator
from placet.gateway.store import Store

log = logging.getLogger(__name__)
MIGRATIONS = "placet.gateway.migrations"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the runtime."""
        yield


class Gateway:
    """The gateway, assembled."""

    def __init__(self, settings: GatewaySettings, resources: Resources) -> None:
        self._settings = settings
        signer = read_bus_key(settings.bus_key_file)
        self._database = connect(settings.database.get_secret_value())
        self.store = Store(self._database)
        self._readers = tuple(resources.chains.values())
        self.policies = PolicyBook(resources.bus, resources.objects, signer)
        self._results = Results(
            bus=resources.bus,
            chains=resources.chains,
            store=self.store,
            aggregators=trusted_keys(settings.trusted_aggregators, "trusted_aggregators"),
            settlements=trusted_keys(settings.trusted_settlements, "trusted_settlements"),
            instance_id=settings.instance_id,
            keep_s=settings.keep_tasks_days * 86_400,
        )
        self._batcher = Batcher(
            bus=resources.bus,
            chains=resources.chains,
            reference_back={chain.id: chain.reference_block_back for chain in settings.chains},
            signer=signer,
            store=self.store,
            on_batch=self._results.expect,
            is_open=self._results.is_open,
            wait_s=settings.batch_wait_ms / 1000,
            observe_for_ms=settings.observe_for_ms,
            max_waiting=settings.max_waiting,
        )
        intents = Intents(chains=resources.chains, store=self.store, policies=self.policies, batcher=self._batcher, results=self._results)
        authenticator = Authenticator(self.store)
        self._insight = Insight(
            intents=intents,
            policies=self.policies,
            simulator=Simulator(
                settings.compiled_cache or Path.home() / ".cache" / "placet",
                settings.simulation_workers,
                {chain.id: tuple(chain.rpc) for chain in settings.chains},
                settings.allow_private_hosts,
            ),
            evidence=EvidenceClient(settings.evidence_urls),
            store=self.store,
            authenticator=authenticator,
        )
        self._api = Api(
            insight=self._insight,
            intents=intents,
            authenticator=authenticator,
            policies=self.policies,
            chains=resources.chains,
            answer_within_s=settings.answer_within_s,
        )
        self._replicas = Replicas(settings.inference)
        self._receipts = ReceiptReader(
            resources.bus,
            ReceiptStore(self._database),
            trusted_keys(settings.trusted_inference, "trusted_inference"),
            settings.instance_id,
            self.store.identity,
        )
        self._settler: Settler | None = None
        self._routes: list[Route] = []
        self._grpc: V2Grpc | None = None
        self.grpc_port = 0
        if settings.inference:
            inference = InferenceService(self._replicas)
            gate = self._gate(settings)
            paywall = Paywall(inference, authenticator, gate)
            self._grpc = V2Grpc(inference, authenticator, version_of("gateway"))
            self._routes = [
                *OpenAiApi(inference, authenticator, paywall).routes(),
                *V2Api(inference, authenticator, version_of("gateway"), paywall).routes(),
                *ModelsApi(inference, authenticator, settings.payment_assets).routes(self._api.guard),
                *ReceiptsApi(ReceiptStore(self._database)).routes(partial(self._api.guard, prepaid=True)),
            ]
            if gate is not None and settings.prepaid_pay_to is not None:
                pay_to = address_from(settings.prepaid_pay_to, field="prepaid_pay_to")
                keys = KeysApi(gate, authenticator, pay_to, settings.payment_timeout_s + 3600)
                self._routes += keys.routes(partial(self._api.guard, prepaid=True))
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    def _gate(self, settings: GatewaySettings) -> Gate | None:
        """What takes payments, where tokens are named and settlement is."""
        if not settings.payment_assets:
            return None
        if settings.payment_service is None:
            raise InvalidInput("payment_service: payments are taken, and nobody settles them", field="payment_service")
        rules = Rules(
            longest_s=settings.payment_longest_s,
            max_timeout_s=settings.payment_timeout_s,
            credit_limit=settings.payment_credit_limit,
            max_open=settings.payment_max_open,
            wait_s=settings.payment_wait_s,
        )
        if rules.needed_s >= rules.max_timeout_s:
            raise InvalidInput(
                f"payment_timeout_s: more than {rules.needed_s} s, or no payment stays valid for its answer", field="payment_timeout_s"
            )
        ledger = Ledger(self._database, settings.instance_id or socket.gethostname(), longest_s=settings.payment_longest_s)
        receipts = ReceiptStore(self._database)

        async def charge_of(payer: Address, payment_id: Hash32, since: int) -> int | None:
            receipt = await receipts.of_payment(payer, hex0x(payment_id), 1000 * since)
            return None if receipt is None or receipt.price is None else receipt.price.amount

        prepaid = Prepaid(self._database)
        self._settler = Settler(
            settings.payment_service,
            ledger,
            charge_of,
            horizon_s=settings.payment_timeout_s + 3600,
            longest_s=settings.payment_longest_s,
            prepaid=prepaid,
        )
        return Gate(assets=assets_of(settings.payment_assets), ledger=ledger, settler=self._settler, rules=rules, prepaid=prepaid)

    async def start(self) -> None:
        await migrate(self._database, MIGRATIONS)
        for reader in self._readers:
            try:
                self.policies.learn((await reader.at((await reader.latest_block()).hash)).operators)
            except (Unavailable, VerificationFailed, RpcError) as error:
                log.warning("the operators of a chain are not known yet: %s", error)
        await asyncio.gather(self.policies.start(), self._results.start(self._batcher.send), self._insight.start(), self._replicas.start())
        if self._grpc is not None:
            await self._receipts.start()
            self.grpc_port = await self._grpc.start(self._settings.host, self._settings.grpc_port)
        # The protocol is named: asyncio sets TCP_NODELAY only then, and without it every answer waits 40 ms for an acknowledgement.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._settings.host, self._settings.port))
        listener.listen(1024)
        listener.setblocking(False)
        self.port = int(listener.getsockname()[1])
        config = uvicorn.Config(
            self._api.app(self._routes),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=20,
            server_header=False,
            timeout_keep_alive=30,
            h11_max_incomplete_event_size=64 << 10,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="http")
        while not self._server.started and not self._serving.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # uvicorn has no event for this

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._results.run())
            if self._settings.inference:
                group.create_task(self._receipts.run())
            if self._settler is not None:
                group.create_task(self._settler.run())

    async def drain(self) -> None:
        await self._batcher.drain()
        if self._grpc is not None:
            await self._grpc.stop(20)
        if self._server is not None:
            self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving})

    async def stop(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)
        await self._insight.close()
        if self._grpc is not None:
            await self._grpc.stop(0)
        if self._settler is not None:
            await self._settler.close()
        await self._replicas.stop()
        await self._receipts.stop()
        await self._results.stop()
        await self.policies.stop()
        await self._database.dispose()

    def checks(self, admin: AdminServer) -> None:
        async def consuming() -> str | None:
            subscription = self._results.subscription
            return None if subscription is None else await subscription.stuck()

        admin.live("consumer", consuming)
        admin.ready("schema", lambda: schema_problem(self._database, MIGRATIONS))


def main() -> None:
    """`placet-gateway`."""
    main_of("gateway", GatewaySettings, Gateway)


if __name__ == "__main__":
    main()
