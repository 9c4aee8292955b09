"""A whole policy on one intent, on this machine: what every operator would do, with the reasons laid open.

The same functions run here as at an operator (placet.core.decision, the sandbox), so a decision that is simulated is the one that
operators would come to on the same data. What differs: there is one observer, whose data is taken as agreed, and nothing is signed.
"""

from __future__ import annotations

import json
import secrets as secrets_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from placet.core import jsonx, limits
from placet.core.batch import BatchContext
from placet.core.consensus import Rule, RuleKind, Threshold, agree_document
from placet.core.decision import bound_arguments, early_denial, task_input
from placet.core.types import ZERO_ADDRESS, ZERO_HASH, Intent, Policy, Task, TaskBatch, hex0x
from placet.sandbox.chain import ChainEndpoint
from placet.sandbox.check import Finding, check_policy
from placet.sandbox.decision import parse_decision
from placet.sandbox.errors import EvaluationFailed, SandboxUnavailable
from placet.sandbox.fetch import Fetcher, FetchPolicy
from placet.sandbox.manifest import ConsensusRule, Manifest
from placet.sandbox.policydata import ComponentEngine, ComponentFailed, ComponentRun, LiveHost, RunContext, RunRequest
from placet.sandbox.reasons import ReasonPlace, RuleOutcome, reason_places, rule_outcomes
from placet.sandbox.rego import DataSection, Explanation, PolicySource, RegoEngine, RegoLimits
from placet.sandbox.transcript import Transcript
from placet.sdk.packs import Pack
from placet.sdk.policybuild.intents import arguments_object
from placet.sdk.policybuild.recording import RecordedRun, Recording, Situation

Outcome = Literal["allow", "deny", "abstain"]


@dataclass(frozen=True, slots=True)
class Reach:
    """What components may reach in a live simulation. `private_hosts` may be plain HTTP and on this network, as an operator's
    `allow_private_hosts`; `secrets` by name; `rpc` nodes that know the situation's block."""

    private_hosts: tuple[str, ...] = ()
    secrets: Mapping[str, str] | None = None
    rpc: tuple[str, ...] = ()
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class ObservedData:
    """One component's run and what is agreed of it when it is the only observer."""

    name: str
    component: str
    arguments: Any
    output: Any
    agreed: bytes
    fuel: int
    transcript: Transcript


@dataclass(frozen=True, slots=True)
class Simulation:
    """`outcome` is abstain when this machine could not come to a decision; `failure` says why, and which component."""

    situation: Situation
    outcome: Outcome
    reasons: tuple[str, ...]
    places: tuple[ReasonPlace, ...] = ()
    rules: tuple[RuleOutcome, ...] = ()
    data: tuple[ObservedData, ...] = ()
    input: Mapping[str, Any] | None = None
    value_json: str | None = None
    rego_fuel: int | None = None
    explanation: Explanation | None = None
    failure: str | None = None
    """What failed, in words; None when everything ran."""
    failed_transcript: Transcript | None = None

    def recording(self, intent: Intent, args: Mapping[str, Any], params: Mapping[str, Any]) -> Recording:
        """This simulation as a recording."""
        runs = tuple(RecordedRun(item.component, item.transcript, item.output, item.fuel) for item in self.data)
        return Recording(self.situation, intent, dict(args), dict(params), runs, self.outcome == "allow", self.reasons)


class Simulator:
    """Holds the two engines. `cache` is a private folder for compiled code (the one that operators use will do)."""

    def __init__(self, cache: Path) -> None:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.rego = RegoEngine(cache_dir=cache)
        self._components: ComponentEngine | None = None
        self._cache = cache

    @property
    def components(self) -> ComponentEngine:
        """The component engine, made when it is first needed."""
        if self._components is None:
            self._components = ComponentEngine(self._cache / "components")
        return self._components

    def close(self) -> None:
        """End its thread."""
        if self._components is not None:
            self._components.close()

    def findings(self, pack: Pack) -> list[Finding]:
        """What an operator would refuse the pack's Rego for."""
        return check_policy(self.rego, _modules(pack.bundle.policy), pack.bundle.policy.entrypoint)

    def run(
        self,
        pack: Pack,
        intent: Intent,
        situation: Situation,
        *,
        args: Mapping[str, Any] | None = None,
        reach: Reach | None = None,
        recorded: Sequence[Transcript] | None = None,
    ) -> Simulation:
        """Judge an intent, with live data (`reach`) or with `recorded` transcripts, one a PolicyData.

        Raises:
            ComponentRejected, SandboxUnavailable: a component cannot be admitted here.
            ReplayDiverged: a component asked something else than was recorded.
            PolicyRejected: the Rego cannot be prepared.
        """
        policy = pack.bundle.policy
        context = _context(policy, pack.bundle.id, intent, situation, arguments_object(args))
        denied = early_denial(context, 0, policy)
        if denied is not None:
            return Simulation(situation, "deny", (denied,))
        source = task_input(context, 0, policy, situation.sequence)
        data: list[ObservedData] = []
        for position, artefact in enumerate(pack.bundle.policy_data):
            manifest = Manifest.parse(artefact.manifest)
            arguments = bound_arguments(policy, position, source).decode()
            request = RunRequest(
                RunContext(
                    situation.timestamp,
                    situation.block_number,
                    hex0x(situation.block_hash),
                    situation.chain_id,
                    hex0x(situation.policy_client),
                ),
                arguments_json=arguments,
                intent_json=source.input_json,
                params_json=policy.params.decode(),
            )
            admitted = self.components.admit(artefact.component, manifest)
            replay = recorded[position] if recorded is not None else None
            try:
                run = self.components.run(
                    admitted.sha256,
                    manifest,
                    request,
                    _host(manifest, reach or Reach(), situation),
                    digest_key=secrets_module.token_bytes(32),
                    replay=replay,
                )
            except (ComponentFailed, SandboxUnavailable) as error:
                transcript = error.transcript if isinstance(error, ComponentFailed) else None
                failure = f"PolicyData {position} ({manifest.name}): {error}"
                return Simulation(
                    situation, "abstain", (), data=tuple(data), input=source.input, failure=failure, failed_transcript=transcript
                )
            data.append(_observed(manifest, admitted.sha256, arguments, run))
        return self._judge(pack, situation, source, data)

    def _judge(self, pack: Pack, situation: Situation, source: Any, data: list[ObservedData]) -> Simulation:
        policy = pack.bundle.policy
        sections = [DataSection("args", source.args_json), DataSection("task", source.task_json)]
        sections += [
            DataSection("wasm", item.agreed.decode(), Manifest.parse(artefact.manifest).fractions)
            for item, artefact in zip(data, pack.bundle.policy_data, strict=True)
        ]
        compiled = self.rego.policy(pack.bundle.id.hex(), lambda: policy_source(policy))
        now_ns = situation.timestamp * 10**9
        try:
            evaluation = compiled.evaluate(source.input_json, data=sections, now_ns=now_ns)
        except EvaluationFailed as error:
            reason = f"policy failed: {error}"[: limits.MAX_REASON_BYTES]
            return Simulation(situation, "deny", (reason,), data=tuple(data), input=source.input, rego_fuel=error.fuel, failure=str(error))
        decision = parse_decision(evaluation.value_json)
        explanation = compiled.explain(source.input_json, data=sections, now_ns=now_ns)
        syntax = self.rego.syntax_json(_modules(policy))
        return Simulation(
            situation,
            "allow" if decision.allow else "deny",
            decision.reasons,
            places=reason_places(syntax, explanation, decision.reasons),
            rules=rule_outcomes(syntax, explanation),
            data=tuple(data),
            input=source.input,
            value_json=evaluation.value_json,
            rego_fuel=evaluation.fuel,
            explanation=explanation,
        )


def policy_source(policy: Policy) -> PolicySource:
    """What the Rego sandbox prepares, as operators prepare it."""
    return PolicySource(
        _modules(policy),
        policy.entrypoint,
        (DataSection("params", policy.params.decode()),),
        RegoLimits(policy.rego_fuel, policy.rego_memory),
    )


def rule_of(rule: ConsensusRule) -> Rule:
    """A manifest's rule as the consensus functions take it."""
    return Rule(RuleKind(rule.rule), rule.absolute, rule.relative_bps)


def consensus_rules(manifest: Manifest) -> dict[str, Rule]:
    """Pointer into the output -> rule."""
    return {place: rule_of(rule) for place, rule in manifest.consensus_rules.items()}


def _modules(policy: Policy) -> dict[str, str]:
    return {module.name: module.source.decode() for module in policy.modules}


def _observed(manifest: Manifest, sha256: str, arguments: str, run: ComponentRun) -> ObservedData:
    value = jsonx.parse(
        run.output_json.encode(),
        field="output",
        max_bytes=limits.MAX_OUTPUT_BYTES,
        max_depth=limits.MAX_OUTPUT_DEPTH,
        fractions=manifest.fractions,
    )
    # One observer that holds all stake vouches for everything: what is left of the rules is their normal form (sorted, unique lists).
    agreed = agree_document([value], [1], consensus_rules(manifest), Threshold(1, 10_000))
    return ObservedData(manifest.name, sha256, json.loads(arguments), value, jsonx.canonical(agreed.value), run.fuel, run.transcript)


def _host(manifest: Manifest, reach: Reach, situation: Situation) -> LiveHost:
    policy = FetchPolicy(
        manifest.allowed_hosts,
        private_hosts=reach.private_hosts,
        total_timeout_s=manifest.limits.deadline_ms / 1_000,
        max_response_bytes=manifest.limits.response_bytes,
        ca_file=reach.ca_file,
    )
    endpoint = ChainEndpoint(reach.rpc, hex0x(situation.block_hash)) if reach.rpc else None
    return LiveHost(Fetcher(policy), dict(reach.secrets or {}), endpoint)


def _context(policy: Policy, policy_id: Any, intent: Intent, situation: Situation, args: bytes) -> BatchContext:
    """A batch of one task. Validator, epoch and salt are nobody's: nothing that is judged depends on them."""
    return BatchContext.of(
        TaskBatch(
            chain_id=situation.chain_id,
            validator=ZERO_ADDRESS,
            policy_id=policy_id,
            epoch=0,
            timestamp=situation.timestamp,
            block_number=situation.block_number,
            block_hash=situation.block_hash,
            observe_for_ms=limits.DEFAULT_OBSERVE_FOR_MS,
            tasks=(Task(situation.policy_client, intent, ZERO_HASH, args=args),),
        )
    )
