"""The tests of a pack: what an operator would refuse, the `test_` rules, the manifests, and every recording replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from placet.core import jsonx
from placet.core.errors import InvalidInput
from placet.core.types import BindingSource, Policy
from placet.sandbox.errors import EvaluationFailed, SandboxError
from placet.sandbox.manifest import Manifest, ManifestError
from placet.sandbox.reasons import RuleOutcome, rule_outcomes
from placet.sandbox.rego import PolicySource
from placet.sdk.packs import Pack, load_pack
from placet.sdk.policybuild.recording import Recording, read_recording
from placet.sdk.policybuild.simulate import Simulation, Simulator

RECORDINGS = "recordings"


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One test. `name` is a rule's path or a recording's file name; `line` counts from 1, 0 where no line applies."""

    file: str
    line: int
    name: str
    outcome: Literal["pass", "fail", "error", "skipped"]
    message: str = ""


def run_pack_tests(simulator: Simulator, folder: Path) -> list[CaseResult]:
    """All tests of a pack, in the order of files and lines.

    Raises:
        InvalidInput: the pack itself cannot be read.
    """
    pack = load_pack(folder)
    results = [CaseResult(f.file or "policy.toml", f.line, f.rule, "error", f.message) for f in simulator.findings(pack)]
    results += [CaseResult("policy.toml", 0, "bindings", "error", problem) for problem in binding_problems(pack)]
    if results:
        return results
    results = _rego_tests(simulator, pack)
    for path in sorted((folder / RECORDINGS).glob("*.json")):
        results.append(_replayed(simulator, folder, path))
    return results


def binding_problems(pack: Pack) -> list[str]:
    """What is wrong with manifests and argument bindings, each with its fix. Operators check the same when they admit a policy."""
    problems = []
    policy = pack.bundle.policy
    for position, artefact in enumerate(pack.bundle.policy_data):
        file = pack.data[position].manifest if position < len(pack.data) else "manifest"
        try:
            manifest = Manifest.parse(artefact.manifest)
        except ManifestError as error:
            problems.append(f"{file}: {error}")
            continue
        bound = {binding.name: binding for binding in policy.bindings if binding.policy_data == position}
        arguments = manifest.arguments
        problems += [f"{file}: argument {name} is bound to nothing" for name in sorted(arguments.required - bound.keys())]
        problems += [
            f"{file}: there is no argument {name}, but one is bound" for name in sorted(bound.keys() - arguments.properties.keys())
        ]
        for name, binding in bound.items():
            screened = [place for place in manifest.caller_forbidden if f"{place}/".startswith(f"/{name}/")]
            if binding.source is BindingSource.CALLER and screened:
                problems.append(f"{file}: {screened[0]} may not be the caller's: bind it to the intent, params or a constant")
    return problems


def _rego_tests(simulator: Simulator, pack: Pack) -> list[CaseResult]:
    policy = pack.bundle.policy
    modules = {module.name: module.source.decode() for module in policy.modules}
    everything = {**modules, **pack.tests}
    syntax = simulator.rego.syntax_json(everything)
    places: dict[str, RuleOutcome] = {}
    empty = simulator.rego.prepare(PolicySource(everything, "data.x.y")).explain("{}")
    for item in rule_outcomes(syntax, empty):
        places.setdefault(item.rule, item)
    results = []
    for test in simulator.rego.run_tests(modules, pack.tests):
        place = places.get(test.name)
        message = test.message
        if test.outcome == "fail" and (stopped := _where_it_stopped(simulator, everything, syntax, test.name, policy)):
            message = f"{message}; stopped at line {stopped.line}: {stopped.text}"
        results.append(
            CaseResult(
                place.file if place else "", place.first_line if place else 0, test.name.removeprefix("data."), test.outcome, message
            )
        )
    return sorted(results, key=lambda item: (item.file, item.line))


def _where_it_stopped(simulator: Simulator, modules: Mapping[str, str], syntax: str, rule: str, policy: Policy) -> RuleOutcome | None:
    """Runs a failed test once more with coverage."""
    try:
        explanation = simulator.rego.prepare(PolicySource(modules, rule)).explain("{}")
    except EvaluationFailed:
        return None
    return next((item for item in rule_outcomes(syntax, explanation) if item.rule == rule and item.outcome != "not reached"), None)


def _replayed(simulator: Simulator, folder: Path, path: Path) -> CaseResult:
    try:
        recording = read_recording(path)
        pack = load_pack(folder, params=recording.params)
        simulation = replay(simulator, pack, recording)
    except (SandboxError, InvalidInput) as error:
        return CaseResult(f"{RECORDINGS}/{path.name}", 0, path.stem, "error", str(error))
    differences = compare(recording, simulation)
    return CaseResult(f"{RECORDINGS}/{path.name}", 0, path.stem, "fail" if differences else "pass", "; ".join(differences))


def replay(simulator: Simulator, pack: Pack, recording: Recording) -> Simulation:
    """Judge a recording's task on its recorded answers. Raises as `Simulator.run`, `InvalidInput` if it is another policy's."""
    wanted = len(pack.bundle.policy_data)
    if len(recording.runs) != wanted:
        raise InvalidInput(f"the recording has {len(recording.runs)} PolicyData, the pack {wanted}: record it again", field="recorded")
    transcripts = [run.transcript for run in recording.runs]
    return simulator.run(pack, recording.intent, recording.situation, args=recording.args, recorded=transcripts)


def compare(recording: Recording, simulation: Simulation) -> list[str]:
    """What came out otherwise than recorded. Fuel counts only where the component is the recorded one."""
    found = []
    if simulation.failure is not None:
        return [simulation.failure]
    if (simulation.outcome == "allow") != recording.allow:
        found.append(f"decided {simulation.outcome}, recorded {'allow' if recording.allow else 'deny'}")
    if simulation.reasons != recording.reasons:
        found.append(f"reasons {list(simulation.reasons)}, recorded {list(recording.reasons)}")
    for item, run in zip(simulation.data, recording.runs, strict=False):
        if jsonx.canonical(item.output) != jsonx.canonical(run.output):
            found.append(f"{item.name} answered {jsonx.canonical(item.output).decode()[:200]}, recorded otherwise")
        if item.component == run.component and item.fuel != run.fuel:
            found.append(f"{item.name} used {item.fuel} fuel, recorded {run.fuel}")
    return found


def with_component(pack: Pack, position: int, component: bytes) -> Pack:
    """The pack with another component in one place: another policy, to be compared with this one."""
    artefacts = list(pack.bundle.policy_data)
    artefacts[position] = replace(artefacts[position], component=component)
    policy = replace(pack.bundle.policy, policy_data_ids=tuple(item.id for item in artefacts))
    return replace(pack, bundle=replace(pack.bundle, policy=policy, policy_data=tuple(artefacts)))
