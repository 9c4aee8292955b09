"""`placet policy`: make a pack, build its components, test it, simulate it, publish it."""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import click
import orjson

from placet.core import jsonx, limits
from placet.core.errors import InvalidInput, Unavailable
from placet.core.evm.rpc import RpcClient, RpcError
from placet.core.types import ZERO_ADDRESS, ZERO_HASH, Address, Hash32, address_from, hex0x
from placet.sandbox.errors import PolicyRejected, SandboxError, SandboxUnavailable
from placet.sandbox.manifest import ManifestError
from placet.sandbox.transcript import Transcript
from placet.sdk.cli.common import cache_folder, connect, gateway_options, output_option, running_network, show
from placet.sdk.devservices.process import DevServiceError
from placet.sdk.packs import LANGUAGES, Pack, load_pack
from placet.sdk.policybuild.intents import read_intent
from placet.sdk.policybuild.recording import Recording, Situation, read_recording
from placet.sdk.policybuild.simulate import Reach, Simulation, Simulator
from placet.sdk.policybuild.testing import CaseResult, run_pack_tests

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
F = TypeVar("F", bound=Callable[..., Any])

_MARKS = {"pass": "ok", "fail": "FAILED", "error": "ERROR", "skipped": "skipped"}
_DEFAULT_BLOCK = 1


def _typed(function: F) -> F:
    """Failures of tools and sandboxes as Placet's own, so that the command ends with one line that says what to do."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except DevServiceError as error:
            raise Unavailable(str(error)) from None
        except SandboxUnavailable as error:
            raise Unavailable(f"sandbox: {error}") from None
        except ManifestError as error:
            raise InvalidInput(f"manifest: {error}", field=error.field) from None
        except PolicyRejected as error:
            raise InvalidInput(f"rego: {error.message}", field="modules") from None
        except SandboxError as error:
            raise InvalidInput(f"sandbox: {error}") from None

    return cast("F", wrapper)


@click.group()
def policy() -> None:
    """Policy packs: make, build, test, simulate, publish."""


@policy.command()
@click.argument("name")
@click.option("--language", type=click.Choice(LANGUAGES), default="javascript", show_default=True, help="What the component is written in.")
@click.option("--dir", "parent", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Where to make the folder NAME.")
@output_option
@_typed
def init(name: str, language: str, parent: Path, output: str) -> None:
    """Make a working pack in a new folder NAME: a policy, a component, tests."""
    from placet.sdk.policybuild.template import write_template

    files = write_template(parent / name, name, language)
    folder = parent / name
    steps = [
        f"placet policy build {folder}",
        f"placet policy test {folder}",
        f"placet policy simulate {folder} --intent {folder}/intent.json --live   # once manifest and params name a host that answers",
    ]
    document = {"folder": str(folder), "files": [str(file) for file in files], "next": steps}
    show(document, output, [*(f"made {file}" for file in files), "next:", *(f"  {step}" for step in steps)])


@policy.command()
@click.argument("folder", type=FOLDER, default=Path())
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Put components here; default: into the pack.")
@output_option
@_typed
def build(folder: Path, out: Path | None, output: str) -> None:
    """Build every component of the pack in FOLDER that has a source, admit it here, and write its sha256 beside it."""
    from placet.sdk.policybuild.build import build_pack

    built = build_pack(folder, out or folder, cache_folder())
    document = [
        {
            "component": str(item.built.path),
            "sha256": item.built.sha256,
            "bytes": item.built.size,
            "seconds": round(item.built.seconds, 1),
            "admitSeconds": round(item.admit_seconds, 1),
            "warnings": list(item.warnings),
        }
        for item in built
    ]
    lines = []
    for item in built:
        lines.append(f"built    {item.built.path}  {item.built.size:,} bytes in {item.built.seconds:.1f} s")
        lines.append(f"sha256   {item.built.sha256}")
        lines.append(f"admitted in {item.admit_seconds:.1f} s, compiled {item.artifact_bytes:,} bytes")
        lines += [f"warning  {warning}" for warning in item.warnings]
    show({"built": document}, output, lines or ["nothing to build: no policy_data of this pack has a source"])


@policy.command()
@click.argument("folder", type=FOLDER, default=Path())
@output_option
@_typed
def test(folder: Path, output: str) -> None:
    """Run the `test_` rules of the pack in FOLDER and replay its recordings. Exit status 1 when any fails."""
    simulator = Simulator(cache_folder())
    try:
        started = time.perf_counter()
        results = run_pack_tests(simulator, folder)
        seconds = time.perf_counter() - started
    finally:
        simulator.close()
    counts = {kind: sum(result.outcome == kind for result in results) for kind in _MARKS}
    failed = counts["fail"] + counts["error"]
    document = {"tests": [_case_json(result) for result in results], "counts": counts, "seconds": round(seconds, 2)}
    lines = [_case_line(folder, result) for result in results]
    lines.append(f"{counts['pass']} passed, {failed} failed" + (f", {counts['skipped']} skipped" if counts["skipped"] else ""))
    if not results:
        lines = ["no tests: name files with test_ rules in `tests` of policy.toml"]
    show(document, output, lines)
    if failed or not results:
        sys.exit(1)


def _case_json(result: CaseResult) -> dict[str, Any]:
    return {"file": result.file, "line": result.line, "name": result.name, "outcome": result.outcome, "message": result.message}


def _case_line(folder: Path, result: CaseResult) -> str:
    place = f"{folder / result.file}:{result.line}" if result.line else str(folder / result.file)
    return f"{_MARKS[result.outcome]:<8} {place}: {result.name}" + (f": {result.message}" if result.message else "")


@policy.command()
@click.argument("folder", type=FOLDER, default=Path())
@click.option("--intent", "intent_file", type=FILE, help="Intent as JSON; with `arguments` in place of `data` if you like.")
@click.option("--args", "args_file", type=FILE, help="The caller's arguments, a JSON object.")
@click.option("--params", "params_file", type=FILE, help="Other params than the pack's.")
@click.option("--live", is_flag=True, help="Let components fetch what they ask for, now.")
@click.option("--recorded", type=FILE, help="Answer components from this recording; its intent and task are taken, too.")
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Write what happened to this file.")
@click.option("--rpc", multiple=True, help="Node to read chain state and the reference block from; may be repeated.")
@click.option("--client", "client_address", help="The policy client; default: the intent's target.")
@click.option("--sequence", type=click.IntRange(min=0), default=0, show_default=True, help="The client's counter, for ordered policies.")
@click.option("--timestamp", type=click.IntRange(min=0), help="The task's time, unix seconds; default: the block's, or now.")
@click.option("--allow-host", "hosts", multiple=True, help="host:port that components may fetch instead of the manifest's, also privately.")
@click.option("--secrets", "secrets_file", type=FILE, help="JSON object: name -> secret.")
@click.option("--ca-file", type=FILE, help="Trust roots for fetching.")
@click.option("--expect", type=click.Choice(["allow", "deny"]), help="Exit with 1 unless this is decided.")
@click.option("--lines", is_flag=True, help="Show the policy line by line with what was reached.")
@output_option
@_typed
def simulate(folder: Path, output: str, **options: Any) -> None:
    """Judge an intent with the pack in FOLDER, on this machine, as an operator would, and show why.

    Data comes from the network (--live) or from a recording (--recorded FILE). Nothing is signed.
    """
    simulator = Simulator(cache_folder())
    try:
        pack, recording, simulation = _simulate(simulator, folder, options)
    finally:
        simulator.close()
    if options["record"] is not None:
        if simulation.failure is not None:
            raise InvalidInput(f"nothing recorded: {simulation.failure}")
        options["record"].write_bytes(recording.to_json() + b"\n")
    plain = load_pack(folder).bundle.id
    document = {**simulation_json(pack, simulation), "packPolicyId": hex0x(plain)}
    show(document, output, _simulation_lines(pack, simulation, plain, lines=options["lines"]))
    if options["expect"] not in (None, simulation.outcome) or simulation.outcome == "abstain":
        sys.exit(1)


def _simulate(simulator: Simulator, folder: Path, options: Mapping[str, Any]) -> tuple[Pack, Recording, Simulation]:
    recorded = read_recording(options["recorded"]) if options["recorded"] is not None else None
    hosts = tuple(options["hosts"])
    params = _object(options["params_file"], "params") if options["params_file"] is not None else None
    if params is None and recorded is not None:
        params = recorded.params
    pack = load_pack(folder, params=params, allowed_hosts=hosts or None)
    if pack.bundle.policy_data and recorded is None and not options["live"]:
        raise InvalidInput("this pack has data: say --live to fetch it now, or --recorded FILE to take it from a recording")
    if recorded is not None and options["live"]:
        raise InvalidInput("--live and --recorded exclude each other")
    if recorded is None and options["intent_file"] is None:
        raise InvalidInput("--intent FILE is needed (a recording brings its own)")
    args = _object(options["args_file"], "args") if options["args_file"] is not None else (recorded.args if recorded else {})
    situation = recorded.situation if recorded is not None else asyncio.run(_situation(options))
    if options["intent_file"] is None:
        assert recorded is not None
        intent = recorded.intent
    else:
        raw = options["intent_file"].read_bytes()
        intent = read_intent(raw, chain_id=situation.chain_id, deadline=situation.timestamp + pack.bundle.policy.valid_for)
    if recorded is None and not options["rpc"]:
        situation = replace(situation, chain_id=intent.chain_id)  # no node says which chain this is
    if situation.policy_client == ZERO_ADDRESS:
        client = options["client_address"]
        situation = _with_client(situation, address_from(client, field="client") if client else intent.to)
    reach = Reach(
        private_hosts=hosts,
        secrets=_object(options["secrets_file"], "secrets") if options["secrets_file"] is not None else None,
        rpc=tuple(options["rpc"]),
        ca_file=str(options["ca_file"]) if options["ca_file"] is not None else None,
    )
    transcripts: list[Transcript] | None = [run.transcript for run in recorded.runs] if recorded is not None else None
    if transcripts is not None and len(transcripts) != len(pack.bundle.policy_data):
        raise InvalidInput(f"the recording has {len(transcripts)} PolicyData, the pack {len(pack.bundle.policy_data)}: record it again")
    simulation = simulator.run(pack, intent, situation, args=args, reach=reach, recorded=transcripts)
    parameters = jsonx.parse(pack.bundle.policy.params, field="params", max_bytes=limits.MAX_PARAMS_BYTES)
    return pack, simulation.recording(intent, args, parameters), simulation


def _with_client(situation: Situation, client: Address) -> Situation:
    return replace(situation, policy_client=client)


async def _situation(options: Mapping[str, Any]) -> Situation:
    """The reference block of a node, or one that is nobody's."""
    timestamp = options["timestamp"]
    if not options["rpc"]:
        now = timestamp if timestamp is not None else int(time.time())
        return Situation(now, _DEFAULT_BLOCK, ZERO_HASH, 31337, ZERO_ADDRESS, options["sequence"])
    async with RpcClient(list(options["rpc"]), timeout_s=10) as node:
        try:
            chain_id, block = await node.chain_id(), await node.block("latest")
        except RpcError as error:
            raise Unavailable(f"--rpc: {error}") from None
    at = timestamp if timestamp is not None else block.timestamp
    return Situation(at, block.number, block.hash, chain_id, ZERO_ADDRESS, options["sequence"])


def _object(path: Path, what: str) -> dict[str, Any]:
    document = jsonx.parse(path.read_bytes(), field=what, max_bytes=limits.MAX_PARAMS_BYTES)
    if not isinstance(document, dict):
        raise InvalidInput(f"{what}: {path}: an object wanted", field=what)
    return document


def simulation_json(pack: Pack, simulation: Simulation) -> dict[str, Any]:
    """A simulation as `--output json` shows it."""
    explanation = simulation.explanation
    return {
        "policyId": hex0x(pack.bundle.id),
        "pack": pack.name,
        "ordering": pack.bundle.policy.ordering.name.lower(),
        "decision": simulation.outcome,
        "reasons": [
            {
                "message": reason,
                "places": [
                    {"rule": place.rule, "file": place.file, "line": place.line, "endLine": place.end_line}
                    for place in simulation.places
                    if place.message == reason
                ],
            }
            for reason in simulation.reasons
        ],
        "failure": simulation.failure,
        "task": {
            "timestamp": simulation.situation.timestamp,
            "blockNumber": simulation.situation.block_number,
            "blockHash": hex0x(simulation.situation.block_hash),
            "chainId": simulation.situation.chain_id,
            "policyClient": hex0x(simulation.situation.policy_client),
            "sequence": simulation.situation.sequence,
        },
        "input": simulation.input,
        "policyData": [
            {
                "name": item.name,
                "component": item.component,
                "arguments": item.arguments,
                "agreed": jsonx.canonical(_parsed(item.agreed)).decode(),
                "fuel": item.fuel,
                "transcript": [[entry.function, entry.request, entry.answer] for entry in item.transcript.entries],
                "transcriptSha256": item.transcript.sha256,
            }
            for item in simulation.data
        ],
        "value": simulation.value_json,
        "regoFuel": simulation.rego_fuel,
        "prints": list(explanation.prints) if explanation else [],
        "rules": [
            {
                "rule": rule.rule,
                "file": rule.file,
                "firstLine": rule.first_line,
                "outcome": rule.outcome,
                "line": rule.line,
                "text": rule.text,
            }
            for rule in simulation.rules
        ],
        "coverage": {
            name: {"covered": list(item.covered), "notCovered": list(item.not_covered)}
            for name, item in (explanation.coverage.items() if explanation else ())
        },
    }


def _parsed(agreed: bytes) -> Any:
    return jsonx.parse(agreed, field="output", max_bytes=limits.MAX_OUTPUT_BYTES, fractions=True)


def _simulation_lines(pack: Pack, simulation: Simulation, plain: Hash32, *, lines: bool) -> list[str]:
    shown = [f"{simulation.outcome:<8} {pack.name}, ordering {pack.bundle.policy.ordering.name.lower()}"]
    for reason in simulation.reasons:
        shown.append(f"  {reason}")
        shown += [f"      {place.file}:{place.line}  {place.rule}" for place in simulation.places if place.message == reason]
    if simulation.failure is not None:
        shown.append(f"  {simulation.failure}")
    shown.append(f"policy   {hex0x(pack.bundle.id)}")
    if pack.bundle.id != plain:
        shown.append(f"  with other parameters or hosts than the pack's, which is {hex0x(plain)}")
    for item in simulation.data:
        shown.append(f"data     {item.name}: fuel {item.fuel:,}, component {item.component[:16]}…")
        shown.append(f"  arguments {jsonx.canonical(item.arguments).decode()}")
        shown += [f"  asked     {_entry_line(entry)}" for entry in item.transcript.entries]
        shown.append(f"  agreed    {item.agreed.decode()}")
    if simulation.failed_transcript is not None:
        shown += [f"  asked     {_entry_line(entry)}" for entry in simulation.failed_transcript.entries]
    if simulation.rego_fuel is not None:
        shown.append(f"rego     fuel {simulation.rego_fuel:,}")
    if simulation.explanation is not None:
        shown += [f"print    {text}" for text in simulation.explanation.prints]
    for rule in simulation.rules:
        stopped = f": stopped at line {rule.line}: {rule.text}" if rule.outcome == "stopped" else ""
        shown.append(f"rule     {rule.outcome:<11} {rule.file}:{rule.first_line}  {rule.rule}{stopped}")
    if lines and simulation.explanation is not None:
        for module in pack.bundle.policy.modules:
            coverage = simulation.explanation.coverage.get(module.name)
            for number, text in enumerate(module.source.decode().splitlines(), start=1):
                mark = "+" if coverage and number in coverage.covered else "-" if coverage and number in coverage.not_covered else " "
                shown.append(f"{mark} {module.name}:{number:<4} {text}")
    return shown


def _entry_line(entry: Any) -> str:
    request, answer = entry.request, entry.answer
    if entry.function == "http.fetch":
        asked = f"{request[0]} {request[1]}"
        said = f"{answer[1]}, {len(answer[3])} characters" if answer[0] == "ok" else f"{answer[1]}: {answer[2]}"
        return f"{asked} -> {said}"
    text = orjson.dumps(request).decode()
    said = orjson.dumps(answer).decode()
    return f"{entry.function} {text[:120]} -> {said[:120]}"


@policy.command()
@click.argument("folder", type=FOLDER, default=Path())
@click.option("--object-store", envvar="PLACET_OBJECT_STORE", help="Where operators read bundles: file:///…, s3://bucket/prefix.")
@click.option("--rpc", help="Node's JSON-RPC URL.")
@click.option("--deployments", type=FILE, help="deployments/<chainId>.json.")
@click.option("--params", "params_file", type=FILE, help="Other params than the pack's.")
@click.option("--allow-host", "hosts", multiple=True, help="Hosts in place of the manifest's (for development).")
@click.option("--key-file", type=FILE, help="Hex key, or JSON keystore, of the account that pays.")
@click.option("--password-file", type=FILE, help="Password of the keystore.")
@click.option("--from", "sender", help="An account of the node that is unlocked (development), in place of --key-file.")
@click.option("--wait", "wait_s", type=click.IntRange(min=0), default=120, show_default=True, help="Seconds to wait for the operators.")
@gateway_options
@output_option
@_typed
def publish(folder: Path, output: str, **options: Any) -> None:
    """Put the policy of FOLDER on chain and into the object store, announce it, and wait until operators admitted it.

    With a `placet up` running in this folder, what is not given is that network's.
    """
    from placet.sdk.policybuild.publish import Signing, publish_pack

    params = _object(options["params_file"], "params") if options["params_file"] is not None else None
    pack = load_pack(folder, params=params, allowed_hosts=tuple(options["hosts"]) or None)
    simulator = Simulator(cache_folder())
    try:
        if findings := simulator.findings(pack):
            raise InvalidInput(f"operators would refuse the policy: {findings[0]}; see `placet policy test {folder}`", field="modules")
    finally:
        simulator.close()
    options = _of_running_network(options)
    if (options["key_file"] is None) == (options["sender"] is None):
        raise InvalidInput("who pays? give --key-file FILE, or --from ADDRESS for an unlocked account of a development node")
    signing = Signing(options["key_file"], options["password_file"], options["sender"])

    async def run() -> dict[str, Any]:
        async with connect(options["gateway"], options["api_key"]) as client:
            return await publish_pack(
                pack.bundle,
                client=client,
                object_store=options["object_store"],
                rpc=options["rpc"],
                deployments=options["deployments"],
                signing=signing,
                wait_s=options["wait_s"],
            )

    done = asyncio.run(run())
    lines = [
        f"policy    {done['policyId']}",
        f"bundle    sha256 {done['bundleSha256'][2:]}",
        f"on chain  {done['transactionHash'] or 'was there already'}",
        *(
            f"operator  {item['operator']}  {'admitted' if item['admitted'] else item['reason'] or 'says nothing yet'}"
            for item in done["admissions"]
        ),
        *(f"warning   {warning}" for warning in done["warnings"]),
    ]
    show(done, output, lines)


def _of_running_network(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with those that were not given from a running `placet up`, unless another network is meant.

    Raises:
        InvalidInput: names what is missing.
    """
    wanted = {"object_store": "objectStore", "rpc": "rpc", "deployments": "deployments"}
    # One of them given, and the rest taken from here, would mix two networks.
    named = [name for name in (*wanted, "gateway") if options[name] is not None]
    ready = {} if named else running_network()
    found = {**options, **{name: options[name] or ready.get(key) for name, key in wanted.items()}}
    needed = [*wanted, *(["gateway"] if named else [])]
    if missing := [f"--{name.replace('_', '-')}" for name in needed if found[name] is None]:
        raise InvalidInput(f"which network? give {', '.join(missing)}, or run `placet up` here and give none of them")
    if found["key_file"] is None and found["sender"] is None:
        found["sender"] = ready.get("account")
    return {**found, "deployments": Path(found["deployments"])}
