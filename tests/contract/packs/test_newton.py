"""Components written for Newton run unchanged: from source with the task's clock, prebuilt with a frozen one (threats 12)."""

from __future__ import annotations

import hashlib
import json
import lzma
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from placet.core.agreement import Component, agree
from placet.core.messages import Observation, TaskObservation
from placet.core.types import Address, Hash32, Operator, OperatorSet
from placet.sandbox.manifest import Manifest
from placet.sandbox.policydata import ComponentEngine, ComponentRejected
from placet.sdk.policybuild import components
from placet.sdk.policybuild.build import build_pack, warnings_of
from placet.sdk.policybuild.simulate import Simulator, consensus_rules
from tests.contract.packs.conftest import CONTEXT, Bench, Server

HERE = Path(__file__).parent / "newton"
PACK = HERE / "feed-age"
KEY = "feed-key-0123456789"
NOW = CONTEXT.timestamp


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((PACK / "manifest.json").read_bytes())
    return manifest


@pytest.fixture(scope="module")
def from_source(simulator: Simulator, document: dict[str, Any], compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Built here, now, by what `placet policy build` runs."""
    (built,) = build_pack(PACK, tmp_path_factory.mktemp("built"), compiled)
    assert built.warnings == ()
    return Bench(simulator.components, built.built.path.read_bytes(), document)


@pytest.fixture(scope="module")
def prebuilt(simulator: Simulator, document: dict[str, Any]) -> Bench:
    component = lzma.decompress((HERE / "prebuilt.wasm.xz").read_bytes())
    assert hashlib.sha256(component).hexdigest() == (HERE / "prebuilt.wasm.sha256").read_text().split()[0]
    return Bench(simulator.components, component, {**document, "clock": "frozen"})


def observed(bench: Bench, server: Server, **options: Any) -> dict[str, Any]:
    run = bench.run({"url": server.url("/eth.json")}, server=server, **options)
    answer: dict[str, Any] = json.loads(run.output_json)["feed_age"]
    assert answer["error"] == ""
    return answer


def test_from_source_the_clock_is_the_tasks(from_source: Bench, server: Server) -> None:
    server.says({"price": 3120.25, "timestamp": (NOW - 90) * 1000})
    answer = observed(from_source, server)
    assert answer == {"price": 3120.25, "feedAgeSeconds": 90, "checkedAt": "2023-11-14T22:13:20.000Z", "error": ""}
    later = observed(from_source, server, context=replace(CONTEXT, timestamp=NOW + 3_600))
    assert later["feedAgeSeconds"] == 3_690


def test_a_prebuilt_one_has_the_time_it_was_built_at_so_a_stale_feed_looks_fresh(prebuilt: Bench, server: Server) -> None:
    server.says({"price": 3120.25, "timestamp": (NOW - 90) * 1000})
    first, second = observed(prebuilt, server), observed(prebuilt, server, context=replace(CONTEXT, timestamp=NOW + 10**8))
    assert first == second
    assert first["checkedAt"] != "2023-11-14T22:13:20.000Z"
    server.says({"price": 1, "timestamp": 4_000_000_000_000})
    assert observed(prebuilt, server)["feedAgeSeconds"] == 0


def test_publishing_a_frozen_clock_says_that_ages_mean_nothing(document: dict[str, Any]) -> None:
    frozen = Manifest.parse(json.dumps({**document, "clock": "frozen"}).encode())
    assert "ages and windows that it computes mean nothing" in warnings_of(frozen)[0]
    assert warnings_of(Manifest.parse(json.dumps(document).encode())) == ()


def test_a_manifest_that_misstates_the_clock_is_refused(
    from_source: Bench, prebuilt: Bench, server: Server, document: dict[str, Any]
) -> None:
    with pytest.raises(ComponentRejected, match="clock is frozen"):
        observed(Bench(prebuilt.engine, prebuilt.component, document), server)
    with pytest.raises(ComponentRejected, match="clock is task"):
        observed(Bench(from_source.engine, from_source.component, {**document, "clock": "frozen"}), server)


@pytest.mark.parametrize("which", ["from_source", "prebuilt"])
def test_both_are_deterministic_and_replay_without_a_network(
    which: str, request: pytest.FixtureRequest, server: Server, compiled: Path
) -> None:
    bench: Bench = request.getfixturevalue(which)
    server.says({"price": 0.1, "timestamp": NOW * 1000})
    arguments = {"url": server.url("/eth.json")}
    other = ComponentEngine(compiled / "components")
    try:
        runs = [bench.run(arguments, server=server, secrets={"FEED_KEY": KEY}, engine=engine) for engine in (bench.engine, other)]
    finally:
        other.close()
    assert len({(run.output_json, run.fuel) for run in runs}) == 1
    asked = len(server.asked)
    again = bench.run(arguments, server=server, secrets={"FEED_KEY": KEY}, replay=runs[0].transcript)
    assert (again.output_json, again.transcript.sha256) == (runs[0].output_json, runs[0].transcript.sha256)
    assert len(server.asked) == asked
    assert KEY not in runs[0].transcript.to_json()


@pytest.mark.parametrize("which", ["from_source", "prebuilt"])
def test_its_own_error_handling_works(which: str, request: pytest.FixtureRequest, server: Server) -> None:
    bench: Bench = request.getfixturevalue(which)
    server.says({}, status=500)
    run = bench.run({"url": server.url("/eth.json")}, server=server)
    assert "feed answered 500" in json.loads(run.output_json)["feed_age"]["error"]


def test_fractions_are_agreed_by_median_and_reach_rego_as_written(from_source: Bench, server: Server) -> None:
    rules = consensus_rules(from_source.manifest())
    operators = OperatorSet(1, tuple(Operator(Address(bytes([n]) * 20), Hash32(bytes([n]) * 32), b"", b"", 100) for n in range(1, 5)))
    observations = {}
    for operator, price in zip(operators.operators, (3120.25, 3120.5, 3119.75, 9999.5), strict=True):
        server.says({"price": price, "timestamp": (NOW - 5) * 1000})
        run = from_source.run({"url": server.url("/eth.json")}, server=server)
        observations[operator.address] = Observation((TaskObservation(0, (run.output_json.encode(),), (Hash32(bytes(32)),)),), (), "")
    result = agree(1, observations, [Component(rules, True)], operators, 6667)
    agreed = result.agreed[0]
    assert json.loads(agreed.outputs[0])["feed_age"]["price"] == 3120.25
    assert b'"price":3120.25' in agreed.outputs[0]
    assert agreed.agreeing == {operator.address for operator in operators.operators[:3]}


def test_what_the_shim_adds_works_as_another_engines_own() -> None:
    shim = Path(components.__file__).with_name(components.NEWTON_SHIM)
    done = subprocess.run(["node", HERE / "compare_shim.mjs", shim], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 8_000
