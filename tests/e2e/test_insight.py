"""Simulation, evidence, the places of a denial, and offline verification, over a real network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from placet.core.errors import NotFound
from placet.core.types import hex0x
from placet.sdk.cli.main import cli
from tests.e2e.conftest import BLOCKED, WITHDRAW, MakeVault, Vault


async def simulate(vault: Vault, amount: int, receiver: str) -> dict[str, Any]:
    call = {"from": hex0x(vault.alice), "functionSignature": WITHDRAW, "arguments": [str(amount), receiver, hex0x(vault.alice)]}
    prepared = await vault.client.prepare(hex0x(vault.address), call)
    body = {"policyClient": hex0x(vault.address), "intent": prepared["intent"]}
    answer: dict[str, Any] = (await vault.client.request("POST", "/api/v1/simulate", body))[1]
    return answer


async def test_a_denial_names_the_rule_the_file_and_the_line(make_vault: MakeVault) -> None:
    vault = await make_vault()
    denied = await vault.ask(5000)
    assert denied["decision"] == "deny"
    (reason,) = denied["reasons"]
    assert reason["message"] == "amount 5000 is above the limit of 1000 a withdrawal"
    assert (reason["rule"], reason["file"]) == ("data.spend_limit.reasons", "spend_limit.rego")
    source = (Path(__file__).parents[2] / "policies/spend-limit/spend_limit.rego").read_text().splitlines()
    assert "is above the limit" in source[reason["line"] - 1]

    simulated = await simulate(vault, 5000, hex0x(vault.alice))
    assert simulated["decision"] == "deny"
    assert simulated["reasons"] == denied["reasons"]
    assert simulated["simulated"] is True
    assert (await simulate(vault, 5, hex0x(vault.alice)))["decision"] == "allow"
    assert (await simulate(vault, 5, BLOCKED))["reasons"][0]["message"] == f"receiver {BLOCKED} is blocked"


async def test_evidence_is_what_the_leaf_commits_to_and_is_the_tenants_only(make_vault: MakeVault, tmp_path: Path) -> None:
    vault = await make_vault()
    answer = await vault.ask(7)
    digest = answer["attestation"]["leaf"]["evidence"]
    record = (await vault.client.request("GET", f"/api/v1/evidence/{digest}"))[1]
    assert json.loads(record["parts"]["decision"])["allow"] is True
    assert json.loads(record["parts"]["intent"])["functionSignature"] == WITHDRAW
    assert record["salt"] == answer["attestation"]["salt"]

    from placet.core.db import connect
    from placet.gateway.keys import new_key
    from placet.gateway.store import Store
    from placet.sdk.client import Client

    engine = connect(vault.network.settings_of("gateway")["database"])
    key, text = new_key("another tenant")
    await Store(engine).add_key(key)
    await engine.dispose()
    async with Client(vault.network.gateway_url, text) as other:
        for path in (f"/api/v1/evidence/{digest}", f"/api/v1/tasks/{answer['taskId']}", f"/api/v1/attestations/{answer['taskId']}"):
            with pytest.raises(NotFound):
                await other.request("GET", path)


async def test_an_attestation_verifies_offline_and_a_changed_one_does_not(make_vault: MakeVault, tmp_path: Path) -> None:
    vault = await make_vault()
    answer = await vault.ask(7)
    deployments = ["--deployments", str(vault.network.deployments)]
    runner = CliRunner()

    def run(document: dict[str, Any], *options: str) -> Any:
        file = tmp_path / "answer.json"
        file.write_text(json.dumps(document))
        return runner.invoke(cli, ["verify", str(file), *deployments, *options])

    good = run(answer)
    assert good.exit_code == 0, good.output
    assert "verified" in good.output.splitlines()[-1]
    assert "not checked: that nobody executed it already (nonce)" in good.output
    for place, value, told in (
        (("attestation", "leaf", "allow"), False, "inclusion"),
        (("attestation", "certificate", "timestamp"), answer["attestation"]["certificate"]["timestamp"] + 1, "signature"),
        (("attestation", "signers"), "0x01", "quorum"),
        (("attestation", "index"), 1, "inclusion"),
        (("intent", "value"), "1", "intent"),
    ):
        changed = json.loads(json.dumps(answer))
        target = changed
        for name in place[:-1]:
            target = target[name]
        target[place[-1]] = value
        bad = run(changed)
        assert bad.exit_code == 1, (place, bad.output)
        assert any(line.startswith("FAIL") and told in line for line in bad.output.splitlines()), bad.output
    assert run(answer, "--at", str(answer["expiresAt"] + 1)).exit_code == 1
