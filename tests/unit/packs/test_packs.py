"""Every pack of this repository: its own tests, its manifest, its bindings, its digest, and what its page must say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from placet.core import jsonx
from placet.core.agreement import Component
from placet.core.consensus import check_rules
from placet.core.errors import InvalidInput
from placet.core.types import ArgumentBinding, BindingSource, Ordering
from placet.operator.components import rule_of
from placet.operator.policies import PolicyDataInfo, check_bindings
from placet.sandbox.manifest import NEWTON_WORLD, Manifest
from placet.sdk.packs import Pack, load_pack, with_hosts
from placet.sdk.policybuild.simulate import Simulator, consensus_rules
from placet.sdk.policybuild.testing import binding_problems, run_pack_tests

ROOT = Path(__file__).parents[3]
FOLDERS = sorted(path.parent for path in (ROOT / "policies").glob("*/policy.toml"))
IDS = [folder.name for folder in FOLDERS]
# A policy whose Rego looks at these judges a state that a withdrawal changes (threats 6).
ORDERED = {"spend-limit": Ordering.SENDER, "vault-exposure": Ordering.CLIENT}


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    # Shared with the other tests of the run: a Python component compiles for ten seconds.
    made = Simulator(tmp_path_factory.getbasetemp().parent / "placet-compiled")
    yield made
    made.close()


def infos(pack: Pack) -> list[PolicyDataInfo]:
    found = []
    for artefact in pack.bundle.policy_data:
        manifest = Manifest.parse(artefact.manifest)
        rules = {place: rule_of(rule) for place, rule in manifest.consensus_rules.items()}
        found.append(
            PolicyDataInfo(
                artefact, manifest, Component(rules, manifest.fractions), manifest.world == NEWTON_WORLD, False, bool(manifest.secrets)
            )
        )
    return found


def test_there_are_packs_in_every_language() -> None:
    assert {"spend-limit", "sanctions-screen", "gas-price", "vault-exposure"} <= set(IDS)
    languages = {data.source.language for folder in FOLDERS for data in load_pack(folder).data if data.source is not None}
    assert languages == {"javascript", "python", "rust"}


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_rego_tests_pass_and_recordings_replay_with_the_checked_in_component(folder: Path, simulator: Simulator) -> None:
    results = run_pack_tests(simulator, folder)
    assert [result for result in results if result.outcome != "pass"] == []
    assert len(results) >= 6
    if load_pack(folder).data:
        recorded = [result for result in results if result.file.startswith("recordings/")]
        assert len(recorded) >= 2
        assert {path.stem for path in (folder / "recordings").glob("*.json")} == {result.name for result in recorded}


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_manifests_parse_and_operators_accept_the_bindings(folder: Path) -> None:
    pack = load_pack(folder)
    check_bindings(pack.bundle.policy, infos(pack))
    assert binding_problems(pack) == []
    for info in infos(pack):
        check_rules(info.component.rules)
        assert consensus_rules(info.manifest) == info.component.rules
        own = pack.name.replace("-", "_")
        (root,) = info.manifest.output.properties
        assert root in (own, own.partition("_")[0]), "a PolicyData's output stands under a name of its own, so that packs can be combined"


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_components_have_the_digest_that_is_checked_in_and_a_source_beside_them(folder: Path) -> None:
    for data in load_pack(folder).data:
        component = folder / data.component
        digest, name = component.with_name(component.name + ".sha256").read_text(encoding="ascii").split()
        assert (digest, name) == (hashlib.sha256(component.read_bytes()).hexdigest(), component.name)
        assert data.source is not None
        assert (folder / data.source.path).exists()


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_ordering_is_what_the_policy_judges_and_its_page_says_why(folder: Path) -> None:
    pack = load_pack(folder)
    wanted = ORDERED.get(pack.name, Ordering.FREE)
    assert pack.bundle.policy.ordering is wanted
    page = folder / "README.md"
    if pack.data:
        text = page.read_text(encoding="utf-8")
        assert f"**Ordering: {wanted.name.lower()}" in text
        assert {"## Data", "## Limits"} <= set(text.splitlines())


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if load_pack(folder).data], ids=lambda folder: folder.name)
def test_what_is_screened_or_fetched_is_never_the_callers(folder: Path) -> None:
    pack = load_pack(folder)
    for info in infos(pack):
        for place in info.manifest.caller_forbidden:
            name = place[1:]
            binding = next(item for item in pack.bundle.policy.bindings if item.name == name)
            rest = tuple(item for item in pack.bundle.policy.bindings if item.name != name)
            callers = replace(pack.bundle.policy, bindings=(*rest, ArgumentBinding(binding.policy_data, name, BindingSource.CALLER, name)))
            with pytest.raises(InvalidInput, match="may not be the caller's"):
                check_bindings(callers, infos(pack))
            changed = replace(pack, bundle=replace(pack.bundle, policy=callers))
            assert any("may not be the caller's" in problem for problem in binding_problems(changed))


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_params_are_what_their_schema_describes(folder: Path) -> None:
    policy = load_pack(folder).bundle.policy
    params = jsonx.parse(policy.params, field="params", max_bytes=1 << 20)
    schema = jsonx.parse(policy.schema, field="schema", max_bytes=1 << 20)
    assert schema["type"] == "object"
    assert set(schema["required"]) == set(params) == set(schema["properties"])
    kinds = {"string": str, "integer": int, "array": list, "boolean": bool}
    for name, value in params.items():
        assert isinstance(value, kinds[schema["properties"][name]["type"]])


def test_other_hosts_make_another_policy(tmp_path: Path) -> None:
    folder = ROOT / "policies" / "sanctions-screen"
    one, other = load_pack(folder), load_pack(folder, allowed_hosts=["localhost:8080"])
    assert one.bundle.id != other.bundle.id
    assert Manifest.parse(other.bundle.policy_data[0].manifest).allowed_hosts == ("localhost:8080",)
    assert with_hosts(one.bundle.policy_data[0].manifest, ["localhost:8080"]) == other.bundle.policy_data[0].manifest
