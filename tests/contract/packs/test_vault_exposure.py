"""The vault-exposure component, run for real against an EVM node with a guarded vault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from placet.core.types import Address, hex0x
from placet.sandbox.chain import ChainEndpoint
from placet.sandbox.errors import SandboxUnavailable
from placet.sandbox.policydata import ComponentEngine, ComponentFailed
from placet.sdk.policybuild.simulate import Simulator
from tests.contract.packs.conftest import Bench, VaultOnChain, bench


@pytest.fixture
def exposure(simulator: Simulator) -> Bench:
    return bench(simulator, "vault-exposure")


def arguments(chain: VaultOnChain, amount: int, function: str = "withdraw", vault: Address | None = None) -> dict[str, Any]:
    return {"vault": hex0x(vault or chain.vault), "function": function, "amount": str(amount)}


def output(run: Any) -> dict[str, int]:
    document: dict[str, int] = json.loads(run.output_json)["vault_exposure"]
    return document


def test_it_reads_the_vault_at_the_reference_block_and_amounts_of_any_size_are_exact(exposure: Bench, chain: VaultOnChain) -> None:
    before = chain.endpoint()
    total = output(exposure.run(arguments(chain, 0), chain=before))["total_assets"]
    amount = 10**38 + 7
    assert output(exposure.run(arguments(chain, amount), chain=before)) == {
        "total_assets": total,
        "idle_assets": total,
        "withdrawal_assets": amount,
    }
    chain.send(chain.owner, chain.token, "mint(address,uint256)", chain.vault, 1_000)
    assert output(exposure.run(arguments(chain, 1), chain=before))["total_assets"] == total
    assert output(exposure.run(arguments(chain, 1), chain=chain.endpoint()))["total_assets"] == total + 1_000


def test_a_redeem_is_worth_what_the_vault_previews(exposure: Bench, chain: VaultOnChain) -> None:
    at = chain.endpoint()
    shares = 10**30
    assets = output(exposure.run(arguments(chain, shares, "redeem"), chain=at))["withdrawal_assets"]
    assert assets >= shares - 1


def test_two_engines_give_the_same_output_and_the_same_fuel(exposure: Bench, chain: VaultOnChain, compiled: Path) -> None:
    at = chain.endpoint()
    other = ComponentEngine(compiled / "components")
    try:
        runs = [exposure.run(arguments(chain, 5), chain=at, engine=engine) for engine in (exposure.engine, other, exposure.engine)]
    finally:
        other.close()
    assert len({(run.output_json, run.fuel) for run in runs}) == 1


def test_a_recorded_run_is_replayed_without_a_node(exposure: Bench, chain: VaultOnChain) -> None:
    run = exposure.run(arguments(chain, 5), chain=chain.endpoint())
    again = exposure.run(arguments(chain, 5), replay=run.transcript)
    assert (again.output_json, again.fuel) == (run.output_json, run.fuel)
    assert [entry.function for entry in run.transcript.entries] == ["chain.call"] * 3


def test_the_largest_amount_is_read_and_one_more_is_an_error(exposure: Bench, chain: VaultOnChain) -> None:
    at = chain.endpoint()
    largest = 2**256 - 1
    assert output(exposure.run(arguments(chain, largest), chain=at))["withdrawal_assets"] == largest
    with pytest.raises(ComponentFailed, match="256 bits") as caught:
        exposure.run(arguments(chain, largest + 1), chain=at)
    assert caught.value.pure


def test_what_is_no_vault_is_an_error_that_names_it(exposure: Bench, chain: VaultOnChain) -> None:
    at = chain.endpoint()
    for other, told in ((Address(b"\x42" * 20), "0 bytes, not one word"), (chain.token, "does not answer 0x01e1d114")):
        with pytest.raises(ComponentFailed, match=told) as caught:
            exposure.run(arguments(chain, 1, vault=other), chain=at)
        assert not caught.value.pure


def test_a_node_that_does_not_know_the_block_makes_the_operator_abstain(exposure: Bench, chain: VaultOnChain) -> None:
    with pytest.raises(SandboxUnavailable, match="chain"):
        exposure.run(arguments(chain, 1), chain=ChainEndpoint((chain.rpc_url,), "0x" + "77" * 32))


def test_a_node_that_is_not_there_makes_the_operator_abstain(exposure: Bench, chain: VaultOnChain) -> None:
    with pytest.raises(SandboxUnavailable, match="chain"):
        exposure.run(arguments(chain, 1), chain=ChainEndpoint(("http://127.0.0.1:9",), "0x" + "77" * 32, timeout_s=1.0))
    endpoint = chain.endpoint()
    assert output(exposure.run(arguments(chain, 1), chain=ChainEndpoint(("http://127.0.0.1:9", *endpoint.urls), endpoint.block_hash)))
