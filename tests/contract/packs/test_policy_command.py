"""`placet policy` against real tools, a real server and a real node: from `init` to a replayed recording."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from placet.core.errors import Unavailable
from placet.core.types import hex0x
from placet.sdk.cli.policy import policy
from tests.contract.packs.conftest import POLICIES, ROOT, Server, VaultOnChain
from tests.support.new_pack import new_pack_is_built_judges_and_replays, run

ALICE, BOB = "0x" + "a1" * 20, "0x" + "b0" * 20


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp().parent / "placet-cache"))


@pytest.mark.parametrize("language", ["javascript", "python"])  # Rust's compiler is not to be had everywhere: tests/rust
def test_a_new_pack_is_built_judges_live_data_and_replays_it(tmp_path: Path, server: Server, language: str) -> None:
    new_pack_is_built_judges_and_replays(tmp_path, server, language)


@pytest.mark.parametrize("has_rustup", [False, True])
def test_what_a_rust_component_needs_and_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_rustup: bool) -> None:
    run("init", "my-feed", "--language", "rust", "--dir", tmp_path)
    (tmp_path / "bin").mkdir()
    if has_rustup:
        (tmp_path / "bin" / "rustup").touch(0o700)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PLACET_ENGINE_CACHE", str(tmp_path / "cache"))  # no compiler was unpacked
    failed = CliRunner().invoke(policy, ["build", str(tmp_path / "my-feed")])
    assert isinstance(failed.exception, Unavailable)
    missing = "apt-get, dpkg" if has_rustup else "rustup, apt-get, dpkg"
    assert f"not on PATH: {missing}; build it on Debian 12" in str(failed.exception)


def test_how_to_write_a_policy_shows_what_simulate_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = Path("docs/how-to/write-a-policy.md").read_text()
    (shown,) = re.findall(r"^\$ placet policy (simulate .*)\n((?:.*\n)*?)```", page, re.MULTILINE)
    printed = CliRunner().invoke(policy, shown[0].split())
    assert printed.exit_code == 0, printed.output
    assert shown[1] == printed.output


def test_without_allow_host_nothing_on_this_network_is_fetched(tmp_path: Path, server: Server) -> None:
    server.says([])
    intent = tmp_path / "intent.json"
    call = {"functionSignature": "withdraw(uint256,address,address)", "arguments": ["1", BOB, ALICE]}
    intent.write_text(json.dumps({"from": ALICE, "to": BOB, **call}))
    params = tmp_path / "params.json"
    params.write_text(json.dumps({"list_url": server.url("/list"), "min_entries": 1}))
    failed = run("simulate", POLICIES / "sanctions-screen", "--intent", intent, "--live", "--params", params, code=1)
    assert failed["decision"] == "abstain"
    assert "only https" in failed["failure"]
    assert server.asked == []


def test_chain_state_and_the_reference_block_come_from_the_node(tmp_path: Path, chain: VaultOnChain) -> None:
    intent = tmp_path / "intent.json"
    tenth = chain.total // 10

    def judge(amount: int) -> Any:
        call = {"functionSignature": "withdraw(uint256,address,address)", "arguments": [str(amount), BOB, hex0x(chain.alice)]}
        intent.write_text(json.dumps({"from": hex0x(chain.alice), "to": hex0x(chain.vault), **call}))
        return run("simulate", POLICIES / "vault-exposure", "--intent", intent, "--live", "--rpc", chain.rpc_url)

    allowed, denied = judge(tenth), judge(tenth + 10_000)
    assert (allowed["decision"], denied["decision"]) == ("allow", "deny")
    assert allowed["task"]["blockNumber"] > 0
    assert allowed["task"]["policyClient"] == hex0x(chain.vault)
    assert [entry[0] for entry in allowed["policyData"][0]["transcript"]] == ["chain.call"] * 3
