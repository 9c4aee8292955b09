"""Wiring of the inference service. Nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import SecretStr

from placet.core.admin import AdminServer
from placet.core.db import connect, migrate, schema_problem
from placet.core.envelope import BusSigner, LocalBusSigner
from placet.core.errors import InvalidInput, NotFound, PlacetError, Unavailable
from placet.core.models import STATEMENT_VALID_FOR_S, Kind, Manifest, parse_reference
from placet.core.runtime import Resources, main_of, read_bus_key, read_seed, version_of
from placet.core.types import address_from
from placet.inference.config import InferenceSettings
from placet.inference.engines.embedding import load_embedding
from placet.inference.engines.genai import load_genai
from placet.inference.engines.onnx import load_onnx
from placet.inference.engines.profile import CPU
from placet.inference.engines.upstream import Upstream, UpstreamOptions
from placet.inference.http import V2Http
from placet.inference.hub.inspector import Inspector
from placet.inference.hub.service import Hub
from placet.inference.hub.store import HubStore
from placet.inference.pool import Engine, ModelPool
from placet.inference.proofs.service import Proofs, Rules
from placet.inference.proofs.store import ProofStore
from placet.inference.proofs.system import Groth16System
from placet.inference.runner import Node, Runner
from placet.inference.server import HubServicer, InferenceServicer, make_server
from placet.inference.tee.attestor import Attestor
from placet.inference.tee.collateral import Collaterals, Fetch, amd_fetch, fetch_url, intel_fetch
from placet.inference.tee.providers import Provider, SoftwareProvider, TsmProvider
from placet.inference.usage import UsageLog
from placet.verify.tee import EvidenceKind

log = logging.getLogger(__name__)
MIGRATIONS = "placet.inference.migrations"


class Inference:
    """The inference service, assembled."""

    def __init__(self, settings: InferenceSettings, resources: Resources) -> None:
        self._settings = settings
        self._database = connect(settings.database.get_secret_value())
        store = HubStore(self._database)
        cache = settings.model_cache
        self._pool = ModelPool(objects=resources.objects, cache=cache, load=self._load, max_bytes=settings.max_loaded_bytes)
        node = Node(
            address=None if settings.node_address is None else address_from(settings.node_address, field="node_address"),
            signer=_receipt_signer(settings),
            bus_signer=read_bus_key(settings.bus_key_file),
            jurisdiction=settings.jurisdiction,
        )
        self._usage = UsageLog(self._database)
        if settings.proof_development_setup and settings.environment == "production":
            raise InvalidInput("proof_development_setup: refused in production", field="proof_development_setup")
        self._proofs: Proofs | None = None
        if settings.proofs:
            self._proofs = Proofs(
                system=Groth16System(cache / "proving", memory_bytes=settings.proof_memory_bytes, timeout_s=settings.proof_timeout_s),
                store=ProofStore(self._database),
                hub=store,
                objects=resources.objects,
                folder=cache / "proving",
                rules=Rules(lease_s=int(2 * settings.proof_timeout_s) + 60, development=settings.proof_development_setup),
            )
        self.runner = Runner(
            node=node,
            pool=self._pool,
            store=store,
            usage=self._usage,
            bus=resources.bus,
            longest_s=settings.longest_request_s,
            proofs=self._proofs,
            attestor=self._attestor(settings, node),
        )
        inspector = Inspector(
            resources.objects,
            cache / "checks",
            max_model_bytes=settings.max_model_bytes,
            memory_bytes=settings.check_memory_bytes,
            cpu_s=settings.check_cpu_s,
        )
        self.hub = Hub(hub_id=settings.hub_id, store=store, objects=resources.objects, inspector=inspector)
        self._draining = False
        self._server = make_server(
            InferenceServicer(self.runner, version=version_of("inference"), is_draining=lambda: self._draining),
            HubServicer(self.hub, self._usage, max_blob_bytes=settings.max_blob_bytes, proofs=self._proofs),
        )
        self._http = V2Http(self.runner, store, longest_s=settings.longest_request_s)
        self.port = self.http_port = 0
        self._warm = False

    @staticmethod
    def _attestor(settings: InferenceSettings, node: Node) -> Attestor | None:
        if settings.tee == "none":
            return None
        fetch: dict[EvidenceKind, Fetch] = {}
        provider: Provider = TsmProvider()
        if settings.tee == "software-dev":
            if settings.environment == "production":
                raise InvalidInput("tee: software-dev is refused in production", field="tee")
            if settings.tee_software_key_file is None:
                raise InvalidInput("tee_software_key_file: software-dev needs one, which policies pin", field="tee_software_key_file")
            log.warning("DEVELOPMENT: evidence of this replica is made by software and proves nothing")
            provider = SoftwareProvider(Ed25519PrivateKey.from_private_bytes(read_seed(settings.tee_software_key_file)))
        else:
            fetch[EvidenceKind.TDX] = intel_fetch(settings.tee_pccs_url)
            fetch[EvidenceKind.SEV_SNP] = amd_fetch(settings.tee_kds_url, fetch_url)
        return Attestor(provider, Collaterals(fetch), node.signer.public_key, X25519PrivateKey.generate())

    async def _load(self, manifest: Manifest, folder: Path) -> Engine:
        settings = self._settings
        providers = None if settings.cuda else [CPU]
        if manifest.kind is Kind.TENSORS:
            return await asyncio.to_thread(
                load_onnx,
                folder / "model.onnx",
                providers=providers,
                threads=settings.threads_per_model,
                concurrency=settings.runs_per_model,
                max_waiting=settings.max_waiting,
            )
        if manifest.kind is Kind.TEXT:
            return await asyncio.to_thread(
                load_genai, folder, providers=providers, threads=settings.threads_per_model, max_waiting=settings.max_waiting
            )
        if manifest.kind is Kind.EMBEDDING:
            return await asyncio.to_thread(
                load_embedding,
                folder,
                providers=providers,
                threads=settings.threads_per_model,
                concurrency=settings.runs_per_model,
                max_waiting=settings.max_waiting,
                context_length=manifest.context_length,
            )
        return self._upstream(manifest)

    def _upstream(self, manifest: Manifest) -> Engine:
        """What is relayed, as this replica's operator configured it: a manifest names no address."""
        found = self._settings.upstreams.get(f"{manifest.publisher}/{manifest.name}")
        if found is None:
            raise Unavailable("this replica relays no such model")
        key = None if found.api_key_file is None else SecretStr(found.api_key_file.read_text().strip())
        return Upstream(
            UpstreamOptions(
                url=found.url,
                model=found.model,
                api_key=key,
                tools=found.tools,
                concurrency=found.concurrency,
                context_length=found.context_length,
            )
        )

    async def start(self) -> None:
        await migrate(self._database, MIGRATIONS)
        self.port = self._server.add_insecure_port(f"{self._settings.host}:{self._settings.port}")
        if not self.port:
            raise Unavailable(f"port {self._settings.port} is taken")
        await self._server.start()
        self.http_port = await self._http.start(self._settings.host, self._settings.http_port)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._preload())
            group.create_task(self._keep_house())
            group.create_task(self._usage.run())
            if self._proofs is not None:
                group.create_task(self._proofs.run())

    async def _preload(self) -> None:
        """Load what must be warm before this replica is ready; one that is not published yet is tried again."""
        for reference in self._settings.preload:
            while True:
                try:
                    row = await self.hub.store.resolve(parse_reference(reference, "preload"))
                    await self._pool.give(await self._pool.take(row))
                    break
                except (NotFound, Unavailable):
                    await asyncio.sleep(1.0)
        self._warm = True

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(60)
            with contextlib.suppress(PlacetError):
                await self.hub.store.forget_statements(int(time.time()) - 2 * STATEMENT_VALID_FOR_S)

    async def drain(self) -> None:
        self._draining = True
        await asyncio.gather(self._server.stop(self._settings.drain_s - 2), self._http.stop())
        await self.runner.drain()
        await self._usage.flush()

    async def stop(self) -> None:
        await asyncio.gather(self._server.stop(0), self._http.stop())
        if self._proofs is not None:
            await self._proofs.close()
        await self._pool.close()
        await self._database.dispose()

    def checks(self, admin: AdminServer) -> None:
        async def warm() -> str | None:
            return None if self._warm else "loading models"

        admin.ready("schema", lambda: schema_problem(self._database, MIGRATIONS))
        admin.ready("models", warm)


def _receipt_signer(settings: InferenceSettings) -> BusSigner:
    """The key in the file; in a TEE one that is made here and never leaves."""
    if settings.tee == "none":
        if settings.receipt_key_file is None:
            raise InvalidInput("receipt_key_file: needed where there is no TEE", field="receipt_key_file")
        return read_bus_key(settings.receipt_key_file)
    if settings.receipt_key_file is not None:
        raise InvalidInput("receipt_key_file: in a TEE the key is made inside; give none", field="receipt_key_file")
    return LocalBusSigner(secrets.token_bytes(32))


def main() -> None:
    """`placet-inference`."""
    main_of("inference", InferenceSettings, Inference)


if __name__ == "__main__":
    main()
