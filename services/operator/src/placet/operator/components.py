"""PolicyData at this operator: admission of components, and running them for a task in sandboxed worker processes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets as secrets_module
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import orjson

from placet.core import jsonx, limits
from placet.core.agreement import Component
from placet.core.batch import BatchContext
from placet.core.bundle import PolicyDataArtefact
from placet.core.consensus import Rule, RuleKind, check_rules
from placet.core.decision import bound_arguments, component_failure, early_denial, task_input
from placet.core.errors import InvalidInput, PlacetError, Unavailable
from placet.core.evm.reader import BlockState
from placet.core.messages import TaskObservation
from placet.core.types import Hash32, hex0x
from placet.operator.config import OperatorSettings
from placet.operator.observing import ObservationFailed
from placet.operator.policies import LoadedPolicy, PolicyDataInfo
from placet.sandbox.chain import ChainEndpoint
from placet.sandbox.check import Finding
from placet.sandbox.errors import EvaluationFailed, SandboxUnavailable
from placet.sandbox.manifest import NEWTON_WORLD, ConsensusRule, Manifest, ManifestError
from placet.sandbox.policydata import ComponentFailed, ComponentRejected, RunContext, RunRequest, runtime_id
from placet.sandbox.wire import HostConfig
from placet.sandbox.workers import WorkerPool

log = logging.getLogger(__name__)


def rule_of(rule: ConsensusRule) -> Rule:
    """A manifest's rule as the consensus functions take it."""
    absolute = None if rule.absolute is None else Decimal(rule.absolute)
    return Rule(RuleKind(rule.rule), absolute, rule.relative_bps)


def load_secrets(path: Path | None) -> Mapping[str, Mapping[str, str]]:
    """policyDataId (0x hex) -> name -> value. Raises InvalidInput without showing content."""
    if path is None:
        return {}
    try:
        document = orjson.loads(path.read_bytes())
        return {str(key).lower(): {str(name): str(value) for name, value in items.items()} for key, items in document.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InvalidInput(f"secrets file: {type(error).__name__}", field="secrets_file") from None


_ADMISSION_WORKERS = 2
"""One for what is announced, which is admitted one after the other; one for a policy that a batch waits for."""


class Components:
    """Admits and runs components, in workers of their own: what is compiled or checked takes none from those that observe. Of the latter
    a policy gets another while it has fewer than are left, and tasks of policies and batches take turns."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._rpc_urls = {chain.id: tuple(chain.rpc) for chain in settings.chains}
        self._secrets = load_secrets(settings.secrets_file)
        self._private_hosts = tuple(settings.allow_private_hosts)
        cache = settings.compiled_cache or Path.home() / ".cache" / "placet"
        self._pool = WorkerPool(cache_dir=cache, size=settings.component_workers, ready=1)
        self._admission = WorkerPool(cache_dir=cache, size=_ADMISSION_WORKERS, ready=0, keep=0)
        self._digest_key = secrets_module.token_bytes(32)
        self._started = False
        self._starting = asyncio.Lock()
        self.runtime_id = runtime_id()

    async def start(self) -> None:
        """Workers start with the first component, so that an operator of policies without data pays nothing."""

    async def _workers(self) -> WorkerPool:
        if not self._started:
            async with self._starting:
                if not self._started:
                    try:
                        await self._pool.start()
                    except SandboxUnavailable as error:
                        raise Unavailable(f"sandbox: {error}") from None
                    self._started = True
        return self._pool

    async def stop(self) -> None:
        """End the workers."""
        await self._admission.close()
        await self._pool.close()

    async def check(self, modules: Mapping[str, str], entrypoint: str, policy_id: Hash32) -> list[Finding]:
        """The check of a policy's Rego.

        Raises:
            Unavailable: not here, not yet.
        """
        try:
            await self._admission.start()
            return await self._admission.check(modules, entrypoint, owner=policy_id)
        except SandboxUnavailable as error:
            raise Unavailable(f"sandbox: {error}") from None

    async def admit(self, artefact: PolicyDataArtefact) -> PolicyDataInfo:
        """Check and compile a component. The workers that run it find it in the folder of compiled code.

        Raises:
            InvalidInput: refused, on every machine. Unavailable: not here, not yet.
        """
        try:
            manifest = Manifest.parse(artefact.manifest)
            rules = {place: rule_of(rule) for place, rule in manifest.consensus_rules.items()}
            check_rules(rules)
            await self._admission.start()
            admitted = await self._admission.admit_component(artefact.component, artefact.manifest, owner=artefact.id)
        except ManifestError as error:
            raise InvalidInput(f"manifest: {error}", field=error.field) from None
        except ComponentRejected as error:
            raise InvalidInput(f"component: {error}", field="component") from None
        except SandboxUnavailable as error:
            raise Unavailable(f"sandbox: {error}") from None
        return PolicyDataInfo(
            artefact=artefact,
            manifest=manifest,
            component=Component(rules, manifest.fractions, manifest.limits.output_bytes),
            newton=manifest.world == NEWTON_WORLD,
            pure=admitted.pure,
            needs_secrets=bool(manifest.secrets),
        )

    async def observe(self, loaded: LoadedPolicy, context: BatchContext, index: int, state: BlockState, deadline: float) -> TaskObservation:
        """Run every PolicyData of the policy for one task.

        Raises:
            ObservationFailed: a fetch, a deadline, a component that failed: this operator abstains from the task.
        """
        if early_denial(context, index, loaded.policy) is not None:
            return TaskObservation(index, (), ())
        try:
            async with asyncio.timeout(max(0.0, deadline - time.time())):
                results = [await self._run(loaded, position, context, index) for position in range(len(loaded.data))]
        except TimeoutError:
            raise ObservationFailed("observation_timeout", "the data was not there in time") from None
        except (SandboxUnavailable, PlacetError) as error:
            raise ObservationFailed("data_unavailable", str(error)) from None
        except EvaluationFailed as error:
            raise ObservationFailed("component_failed", str(error)) from None
        return TaskObservation(index, tuple(output for output, _ in results), tuple(digest for _, digest in results))

    async def _run(self, loaded: LoadedPolicy, position: int, context: BatchContext, index: int) -> tuple[bytes, Hash32]:
        batch, info = context.batch, loaded.data[position]
        source = task_input(context, index, loaded.policy, 0)
        request = RunRequest(
            context=RunContext(
                timestamp=batch.timestamp,
                block_number=batch.block_number,
                block_hash=hex0x(batch.block_hash),
                chain_id=batch.chain_id,
                policy_client=hex0x(batch.tasks[index].policy_client),
            ),
            arguments_json=bound_arguments(loaded.policy, position, source).decode(),
            intent_json=source.input_json,
            params_json=loaded.policy.params.decode(),
        )
        host = HostConfig(
            secrets=dict(self._secrets.get(hex0x(info.artefact.id), {})),
            endpoint=ChainEndpoint(self._rpc_urls[batch.chain_id], hex0x(batch.block_hash)),
            private_hosts=self._private_hosts,
        )
        pool = await self._workers()
        empty = Hash32(hashlib.sha256(b"").digest())
        component = hashlib.sha256(info.artefact.component).hexdigest()
        try:
            run = await pool.run_component(
                component,
                info.artefact.manifest,
                request,
                host,
                digest_key=self._digest_key,
                owner=batch.policy_id,
                line=context.id,
            )
        except ComponentFailed as error:
            if not error.pure:
                raise
            return component_failure(error.kind, error.message), empty
        value = jsonx.parse(
            run.output_json.encode(),
            field="output",
            max_bytes=limits.MAX_OUTPUT_BYTES,
            max_depth=limits.MAX_OUTPUT_DEPTH,
            max_values=limits.MAX_OUTPUT_VALUES,
            fractions=info.newton,
        )
        return jsonx.canonical(value), Hash32(bytes.fromhex(run.transcript.sha256))
