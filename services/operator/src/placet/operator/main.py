"""Wiring of the operator. Nothing else."""

from __future__ import annotations

import asyncio
import time

import orjson
from aiohttp import web

from placet.core.admin import AdminServer
from placet.core.db import connect, migrate, schema_problem
from placet.core.errors import InvalidInput, PlacetError
from placet.core.runtime import Resources, main_of, read_bus_key, trusted_keys
from placet.core.types import address_from, hash_from
from placet.operator.answers import OperatorIdentity
from placet.operator.components import Components
from placet.operator.config import OperatorSettings
from placet.operator.evaluation import Evaluator
from placet.operator.evidence_store import EvidenceStore, encode_record
from placet.operator.policies import PolicyStore
from placet.operator.service import OperatorService
from placet.operator.signing import ProcessSigner
from placet.operator.signing_log import SigningLog
from placet.sandbox.rego import RegoEngine

MIGRATIONS = "placet.operator.migrations"


class Operator:
    """One operator, assembled."""

    def __init__(self, settings: OperatorSettings, resources: Resources, engine: RegoEngine | None = None) -> None:
        self._resources = resources
        address = address_from(settings.operator_address, field="operator_address")
        bus_signer = read_bus_key(settings.bus_key_file)
        gateways = trusted_keys(settings.trusted_gateways, "trusted_gateways")
        self._database = connect(settings.database.get_secret_value())
        self._signer = ProcessSigner(settings.bls_keystore, settings.bls_password_file)
        # The same folder as the workers': whoever is first compiles the engine for all.
        engine = engine or RegoEngine(cache_dir=None if settings.compiled_cache is None else settings.compiled_cache / "rego")
        self.components = Components(settings)
        self._policies = PolicyStore(
            bus=resources.bus,
            objects=resources.objects,
            engine=engine,
            components=self.components,
            operator=address,
            bus_signer=bus_signer,
            publishers=gateways,
        )
        self._log = SigningLog(self._database, address)
        self._evidence = EvidenceStore(resources.objects, self._database, address, settings.keep_evidence_days * 86_400)
        self._evaluator = Evaluator(settings.evaluation_threads)
        self.service = OperatorService(
            identity=OperatorIdentity(
                address=address,
                gateways=gateways,
                aggregators=trusted_keys(settings.trusted_aggregators, "trusted_aggregators"),
                max_reference_block_age=settings.max_reference_block_age,
                max_reference_lag_s=settings.max_reference_lag_s,
                runtime_id=self.components.runtime_id,
            ),
            bus=resources.bus,
            chains=resources.chains,
            policies=self._policies,
            evaluator=self._evaluator,
            observer=self.components,
            signing_log=self._log,
            evidence=self._evidence,
            objects=resources.objects,
            bls=self._signer,
            bus_signer=bus_signer,
            instance_id=settings.instance_id,
        )

    async def start(self) -> None:
        await migrate(self._database, MIGRATIONS)
        await self._log.open(int(time.time()))
        # A new log signs nothing that an earlier one of this identity could have signed: wait until that time is over.
        await asyncio.sleep(max(0.0, self._log.not_before - time.time()))
        await self._signer.start()
        await self.components.start()
        await self._policies.start()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._policies.run())
            group.create_task(self.service.run())

    async def drain(self) -> None:
        await self.service.drain(20.0)

    async def stop(self) -> None:
        if self.service.subscription is not None:
            await self.service.subscription.close()
        await self._policies.stop()
        await self.components.stop()
        self._evaluator.close()
        await self._signer.stop()
        await self._database.dispose()

    def checks(self, admin: AdminServer) -> None:
        async def consuming() -> str | None:
            subscription = self.service.subscription
            return None if subscription is None else await subscription.stuck()

        admin.live("consumer", consuming)
        admin.ready("schema", lambda: schema_problem(self._database, MIGRATIONS))
        admin.route("/evidence/{digest}", self._serve_evidence)

    async def _serve_evidence(self, request: web.Request) -> web.Response:
        """The record behind a leaf. On the admin port: who may read it is the gateway's business."""
        try:
            record = await self._evidence.get(hash_from(request.match_info["digest"], field="evidence"))
        except PlacetError as error:
            return web.Response(body=orjson.dumps(error.problem()), status=error.http_status, content_type="application/problem+json")
        return web.Response(body=orjson.dumps(encode_record(record)), content_type="application/json")


def build(settings: OperatorSettings, resources: Resources) -> Operator:
    """Build the operator; in production a signing log in SQLite is refused where replicas could share the identity."""
    if settings.environment == "production" and settings.database.get_secret_value().startswith("sqlite") and settings.instance_id:
        raise InvalidInput("sqlite is for exactly one replica; use PostgreSQL for a StatefulSet", field="database")
    return Operator(settings, resources)


def main() -> None:
    """`placet-operator`."""
    main_of("operator", OperatorSettings, build)


if __name__ == "__main__":
    main()
