"""What a policy would say: Rego with coverage, in worker processes of their own that hold no secrets and see no database (threats 28).

Components run live only when the policy is admitted; otherwise their outputs must be given. Nothing here is signed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placet.core import jsonx, limits
from placet.core.batch import BatchContext
from placet.core.bundle import PolicyBundle
from placet.core.decision import bound_arguments, early_denial, task_input
from placet.core.errors import InvalidInput, Unavailable
from placet.core.types import Policy, hex0x
from placet.sandbox.chain import ChainEndpoint
from placet.sandbox.decision import parse_decision
from placet.sandbox.errors import EvaluationFailed, SandboxUnavailable
from placet.sandbox.manifest import NEWTON_WORLD, Manifest
from placet.sandbox.policydata import RunContext, RunRequest
from placet.sandbox.reasons import reason_places, rule_outcomes
from placet.sandbox.rego import DataSection, Explanation, PolicySource, RegoLimits
from placet.sandbox.wire import HostConfig
from placet.sandbox.workers import WorkerPool

_KEPT_TREES = 64


@dataclass(frozen=True, slots=True)
class Simulated:
    """The outcome of a simulation."""

    answer: dict[str, Any]


def policy_source(policy: Policy) -> PolicySource:
    """What the Rego sandbox prepares."""
    return PolicySource(
        {module.name: module.source.decode() for module in policy.modules},
        policy.entrypoint,
        (DataSection("params", policy.params.decode()),),
        RegoLimits(policy.rego_fuel, policy.rego_memory),
    )


class Simulator:
    """Workers for simulations, and one of its own for the denials of everybody: simulations do not hold those up."""

    def __init__(self, cache: Path, workers: int, rpc_urls: Mapping[int, tuple[str, ...]], private_hosts: Sequence[str] = ()) -> None:
        self._pool = WorkerPool(cache_dir=cache, size=workers, queue_limit=64)
        self._denials = WorkerPool(cache_dir=cache, size=1, queue_limit=64)
        self._rpc_urls = rpc_urls
        self._private_hosts = tuple(private_hosts)
        self._syntax: OrderedDict[bytes, str] = OrderedDict()
        self._starting = asyncio.Lock()
        self._started: list[WorkerPool] = []

    async def start(self) -> None:
        """Start the workers. Raises Unavailable."""
        try:
            await self._workers(self._pool)
            await self._workers(self._denials)
        except SandboxUnavailable as error:
            raise Unavailable(f"simulation: {error}") from None

    async def close(self) -> None:
        """End the workers."""
        for pool in self._started:
            await pool.close()

    async def _workers(self, pool: WorkerPool) -> WorkerPool:
        async with self._starting:
            if pool not in self._started:
                await pool.start()
                self._started.append(pool)
        return pool

    async def simulate(
        self, bundle: PolicyBundle, context: BatchContext, sequence: int, *, outputs: Sequence[Any] | None, live: bool
    ) -> Simulated:
        """Evaluate task 0 of `context`, with given outputs of the policy's components or (live) by running them.

        Raises:
            InvalidInput: outputs are needed and not given, or do not fit. Unavailable: the pool is busy or a fetch failed.
        """
        policy = bundle.policy
        denial = early_denial(context, 0, policy)
        if denial is not None:
            return Simulated({"decision": "deny", "reasons": [{"message": denial}], "evaluated": False})
        try:
            data = await self._data(bundle, context, outputs, live)
            explanation = await self._explain(self._pool, bundle, context, sequence, data)
        except SandboxUnavailable as error:
            raise Unavailable(f"simulation: {error}") from None
        answer = await self._answer(self._pool, bundle, explanation)
        answer["data"] = [jsonx_plain(text) for text in data]
        return Simulated(answer)

    async def explain_denial(self, bundle: PolicyBundle, context: BatchContext, position: int, sequence: int, data: bytes) -> list[Any]:
        """Reasons of a certified denial with the rules and lines that caused them, from its evidence's data part."""
        policy = bundle.policy
        if early_denial(context, position, policy) is not None:
            return []
        fractions = any(Manifest.parse(item.manifest).fractions for item in bundle.policy_data)
        parsed = jsonx.parse(data, field="data", max_bytes=limits.MAX_OBSERVATION_BLOB_BYTES, fractions=fractions)
        explanation = await self._explain(self._denials, bundle, context, sequence, [jsonx.canonical(item) for item in parsed], position)
        found: list[Any] = (await self._answer(self._denials, bundle, explanation))["reasons"]
        return found

    async def _data(self, bundle: PolicyBundle, context: BatchContext, outputs: Sequence[Any] | None, live: bool) -> list[bytes]:
        manifests = [Manifest.parse(item.manifest) for item in bundle.policy_data]
        if outputs is not None:
            if len(outputs) != len(manifests):
                raise InvalidInput(f"/data: {len(manifests)} outputs wanted, one a PolicyData", field="/data")
            return [jsonx.canonical(item) for item in outputs]
        if manifests and not live:
            raise InvalidInput("/data: the policy is not admitted, so its components do not run here; give their outputs", field="/data")
        pool = await self._workers(self._pool)
        batch = context.batch
        source = task_input(context, 0, bundle.policy, 0)
        out = []
        for position, (artefact, manifest) in enumerate(zip(bundle.policy_data, manifests, strict=True)):
            if manifest.secrets:
                raise InvalidInput("/data: components with secrets do not run in simulations; give their outputs", field="/data")
            request = RunRequest(
                RunContext(
                    batch.timestamp, batch.block_number, hex0x(batch.block_hash), batch.chain_id, hex0x(batch.tasks[0].policy_client)
                ),
                bound_arguments(bundle.policy, position, source).decode(),
                source.input_json,
                bundle.policy.params.decode(),
            )
            endpoint = ChainEndpoint(self._rpc_urls[batch.chain_id], hex0x(batch.block_hash))
            host = HostConfig(private_hosts=self._private_hosts, endpoint=endpoint)
            try:
                await pool.admit_component(artefact.component, artefact.manifest)
                sha256 = hashlib.sha256(artefact.component).hexdigest()
                run = await pool.run_component(sha256, artefact.manifest, request, host, digest_key=bytes(32))
            except EvaluationFailed as error:
                raise Unavailable(f"simulation: component {manifest.name}: {error}") from None
            out.append(run.output_json.encode())
        return out

    async def _explain(
        self, pool: WorkerPool, bundle: PolicyBundle, context: BatchContext, sequence: int, data: Sequence[bytes], position: int = 0
    ) -> Explanation:
        policy = bundle.policy
        pool = await self._workers(pool)
        source = task_input(context, position, policy, sequence)
        sections = [DataSection("args", source.args_json), DataSection("task", source.task_json)]
        for text, artefact in zip(data, bundle.policy_data, strict=False):
            sections.append(DataSection("wasm", text.decode(), Manifest.parse(artefact.manifest).world == NEWTON_WORLD))
        try:
            return await pool.explain(
                bundle.id.hex(), policy_source(policy), source.input_json, data=sections, now_ns=context.batch.timestamp * 10**9
            )
        except EvaluationFailed as error:
            return Explanation(None, str(error), (), {}, 0)

    async def _answer(self, pool: WorkerPool, bundle: PolicyBundle, explanation: Explanation) -> dict[str, Any]:
        decision = parse_decision(explanation.value_json)
        messages = (explanation.error,) if explanation.error else decision.reasons
        syntax = await self._syntax_of(pool, bundle)
        places = {place.message: place for place in reversed(reason_places(syntax, explanation, messages))}
        reasons: list[dict[str, Any]] = []
        for message in messages:
            place = places.get(message)
            where = {} if place is None else {"rule": place.rule, "file": place.file, "line": place.line}
            reasons.append({"message": message, **where})
        return {
            "decision": "allow" if decision.allow and not explanation.error else "deny",
            "reasons": reasons,
            "evaluated": True,
            "value": explanation.value_json,
            "prints": list(explanation.prints),
            "fuel": explanation.fuel,
            "rules": [
                {"rule": item.rule, "file": item.file, "line": item.line, "outcome": item.outcome, "text": item.text}
                for item in rule_outcomes(syntax, explanation)
            ],
        }

    async def _syntax_of(self, pool: WorkerPool, bundle: PolicyBundle) -> str:
        """The policy's syntax trees, kept by policy id."""
        found = self._syntax.get(bundle.id)
        if found is None:
            pool = await self._workers(pool)
            found = await pool.syntax_json({module.name: module.source.decode() for module in bundle.policy.modules})
            self._syntax[bundle.id] = found
            while len(self._syntax) > _KEPT_TREES:
                self._syntax.popitem(last=False)
        return found


def jsonx_plain(text: bytes) -> Any:
    """A component's output as plain JSON values; fractions as text, since they are never amounts."""
    value = jsonx.parse(text, field="data", max_bytes=limits.MAX_OUTPUT_BYTES, fractions=True)

    def plain(item: Any) -> Any:
        if isinstance(item, jsonx.Fraction):
            return item.text
        if isinstance(item, dict):
            return {key: plain(member) for key, member in item.items()}
        if isinstance(item, list):
            return [plain(member) for member in item]
        return str(item) if isinstance(item, int) and not isinstance(item, bool) and abs(item) > 2**53 else item

    return plain(value)
