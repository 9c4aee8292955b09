"""Policies with outside data, end to end: four operators fetch for themselves, agree, and one certificate moves the vault's assets.

The policy combines two packs: sanctions-screen (JavaScript) and gas-price (Python), both over a server on this machine.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from placet.core.errors import DeadlineExceeded, InvalidInput, NoQuorum, PlacetError
from placet.core.messages import TaskObservation
from placet.core.types import hex0x
from placet.operator.main import Operator
from placet.sdk.cli.policy import policy
from placet.sdk.local.chain import ChainError
from placet.sdk.local.network import LocalNetwork, LocalOptions
from placet.sdk.packs import Pack, load_pack
from tests.e2e.conftest import ROOT, Vault, open_vault

POLICIES = ROOT / "policies"
MALLORY, BOB = "0x" + "ba" * 20, "0x" + "b0" * 20
GWEI = 10**9
CEILING = 50 * GWEI
# The first account of every development node's well-known mnemonic.
DEVELOPMENT_KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"

COMBINED = """package combined

import rego.v1

import data.gas_price
import data.sanctions_screen

reasons := sanctions_screen.decision.reasons | gas_price.decision.reasons

decision := {"allow": allow, "reasons": reasons}

default allow := false

allow if {
	sanctions_screen.decision.allow
	gas_price.decision.allow
}
"""


class World(ThreadingHTTPServer):
    """`/list` is the sanctions list, `/price` the gas price. Prices are handed out in turn, so that every operator gets another."""

    daemon_threads = True

    def __init__(self) -> None:
        self.listed = [MALLORY]
        self.prices: Iterator[int] = itertools.repeat(10 * GWEI)
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def host(self) -> str:
        return f"localhost:{self.server_port}"

    def says(self, path: str) -> Any:
        with self._lock:
            return self.listed if path == "/list" else {"result": hex(next(self.prices))}


class _Handler(BaseHTTPRequestHandler):
    server: World

    def do_GET(self) -> None:
        body = json.dumps(self.server.says(self.path)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def world() -> Iterator[World]:
    running = World()
    yield running
    running.shutdown()
    running.server_close()


def combined(folder: Path, world: World) -> Pack:
    """Both packs as one policy: their modules and PolicyData side by side, and a rule that asks both."""
    screen, price = POLICIES / "sanctions-screen", POLICIES / "gas-price"
    folder.mkdir()
    for source, name in ((screen / "sanctions_screen.rego", "sanctions_screen.rego"), (price / "gas_price.rego", "gas_price.rego")):
        shutil.copyfile(source, folder / name)
    for pack in (screen, price):
        for name in ("component.wasm", "manifest.json"):
            shutil.copyfile(pack / name, folder / f"{pack.name}-{name}")
    (folder / "combined.rego").write_text(COMBINED)
    (folder / "params.json").write_text("{}")
    (folder / "params.schema.json").write_text("{}")
    (folder / "policy.toml").write_text(
        """
name = "combined"
entrypoint = "data.combined.decision"
modules = ["combined.rego", "gas_price.rego", "sanctions_screen.rego"]
params = "params.json"
schema = "params.schema.json"
ordering = "free"
valid_for = 60

[[policy_data]]
component = "sanctions-screen-component.wasm"
manifest = "sanctions-screen-manifest.json"
bindings = { list_url = { params = "/list_url" }, receiver = { intent = "/arguments/1" }, sender = { intent = "/from" } }

[[policy_data]]
component = "gas-price-component.wasm"
manifest = "gas-price-manifest.json"
bindings = { url = { params = "/url" }, body = { const = "" }, pointer = { const = "/result" } }

[[calls]]
target = "self"
function = "withdraw(uint256,address,address)"
"""
    )
    params = {
        "list_url": f"http://{world.host}/list",
        "min_entries": 1,
        "url": f"http://{world.host}/price",
        "max_wei": CEILING,
    }
    return load_pack(folder, params=params, allowed_hosts=[world.host])


MakeGuarded = Callable[..., Awaitable[Vault]]


@pytest.fixture
async def guarded(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, world: World) -> AsyncIterator[MakeGuarded]:
    """A function that brings up a network with a vault under the combined policy."""
    cache = tmp_path_factory.getbasetemp().parent / "placet-compiled"
    cache.mkdir(mode=0o700, exist_ok=True)
    async with AsyncExitStack() as stack:

        async def make(*, hooks: dict[str, Callable[[Any], None]] | None = None, **options: Any) -> Vault:
            settings = LocalOptions(tmp_path / "net", compiled_cache=cache, allow_private_hosts=(world.host,), hooks=hooks or {}, **options)
            network = await stack.enter_async_context(LocalNetwork(settings))
            bundle = combined(tmp_path / "combined", world).bundle
            await network.publish(bundle)
            return await open_vault(stack, network, network.client_config(bundle.id))

        yield make


def messages(answer: dict[str, Any]) -> list[str]:
    return [reason["message"] for reason in answer["reasons"]]


def signers(answer: dict[str, Any]) -> int:
    return bin(int(answer["attestation"]["signers"], 16)).count("1")


def slow(operator: Operator) -> None:
    """Observes like the others, but half a second later; they have five seconds."""
    genuine = operator.components.observe

    async def observe(*arguments: Any) -> TaskObservation:
        observed = await genuine(*arguments)
        await asyncio.sleep(0.5)  # slow on purpose: what is tested, nothing is waited for
        return observed

    operator.components.observe = observe  # type: ignore[method-assign, assignment]


def observing(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Callable[[Operator], None]:
    """A hook: this operator reports what `change` makes of the outputs it observed."""

    def hook(operator: Operator) -> None:
        genuine = operator.components.observe

        async def observe(*arguments: Any) -> TaskObservation:
            observed = await genuine(*arguments)
            outputs = change([json.loads(output) for output in observed.outputs])
            texts = tuple(json.dumps(output, separators=(",", ":"), sort_keys=True).encode() for output in outputs)
            return replace(observed, outputs=texts)

        operator.components.observe = observe  # type: ignore[method-assign, assignment]

    return hook


def clears_everybody(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"sanctions": {"listed": [], "entries": 10**6}}, outputs[1]]


def bans_everybody(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"sanctions": {"listed": [BOB, MALLORY], "entries": 0}}, outputs[1]]


def knows_another_price(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [outputs[0], {"gas_price": {"wei": 10**30}}]


async def test_an_allowed_withdrawal_executes_and_a_listed_receiver_is_denied_by_name(guarded: MakeGuarded, world: World) -> None:
    vault = await guarded()
    before = await vault.shares()
    allowed = await vault.ask(100, BOB)
    assert (allowed["decision"], allowed["reasons"]) == ("allow", [])
    assert signers(allowed) >= 3
    await vault.execute(allowed)
    assert await vault.shares() == before - 100

    denied = await vault.ask(100, MALLORY)
    assert denied["decision"] == "deny"
    assert messages(denied) == [f"receiver {MALLORY} is on the sanctions list"]
    with pytest.raises(ChainError) as caught:
        await vault.execute(denied)
    assert (caught.value.name or "").startswith("IntentDenied")
    assert await vault.shares() == before - 100

    # Threats 3: whom the caller names does not matter; what is screened is the intent's own receiver.
    named = await vault.ask(104, MALLORY, args={"receiver": BOB, "sender": BOB, "list_url": "https://example.com/empty.csv"})
    assert messages(named) == [f"receiver {MALLORY} is on the sanctions list"]

    world.listed = [BOB]
    assert (await vault.ask(101, BOB))["decision"] == "deny"
    assert (await vault.ask(102, MALLORY))["decision"] == "allow"

    world.prices = itertools.repeat(CEILING + 1)
    dear = await vault.ask(103, MALLORY)
    assert messages(dear) == [f"gas costs {CEILING + 1} wei, above the ceiling of {CEILING} wei"]


async def test_operators_that_read_slightly_different_prices_agree_on_a_reading_of_one_of_them(guarded: MakeGuarded, world: World) -> None:
    vault = await guarded()
    world.prices = itertools.cycle([49 * GWEI, 50 * GWEI, 51 * GWEI, 48 * GWEI])
    # The lower median of the four is 49 gwei, below the ceiling; one operator alone reads a price above it.
    assert (await vault.ask(100, BOB))["decision"] == "allow"
    world.prices = itertools.cycle([51 * GWEI, 52 * GWEI, 53 * GWEI, 54 * GWEI])
    denied = await vault.ask(101, BOB)
    # 52 of four readings, 52 or 53 when the proposal rests on three.
    assert messages(denied) in [[f"gas costs {price * GWEI} wei, above the ceiling of {CEILING} wei"] for price in (52, 53)]


async def test_operators_that_read_prices_too_far_apart_decide_nothing(guarded: MakeGuarded, world: World) -> None:
    vault = await guarded()
    world.prices = itertools.cycle([10 * GWEI, 10 * GWEI, 20 * GWEI, 20 * GWEI])
    with pytest.raises((NoQuorum, DeadlineExceeded)) as caught:
        await vault.ask(100, BOB)
    assert caught.value.retryable
    world.prices = itertools.repeat(10 * GWEI)
    assert (await vault.ask(101, BOB))["decision"] == "allow"


@pytest.mark.parametrize("lie", [clears_everybody, bans_everybody, knows_another_price], ids=lambda lie: lie.__name__)
async def test_2_one_operator_that_observes_other_data_changes_nothing(
    guarded: MakeGuarded, lie: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> None:
    vault = await guarded(hooks={"operator-2": observing(lie)})
    before = await vault.shares()
    allowed = await vault.ask(100, BOB)
    assert allowed["decision"] == "allow"
    assert signers(allowed) >= 3
    await vault.execute(allowed)
    assert await vault.shares() == before - 100
    denied = await vault.ask(100, MALLORY)
    assert messages(denied) == [f"receiver {MALLORY} is on the sanctions list"]


@pytest.mark.parametrize(
    "options",
    [{"hooks": {"operator-2": observing(knows_another_price)}}, {"operator_overrides": {2: {"allow_private_hosts": []}}}],
    ids=["a-liar", "one-without-network"],
)
async def test_one_wrong_operator_and_one_that_is_a_little_slow_change_nothing(guarded: MakeGuarded, options: dict[str, Any]) -> None:
    hooks = {"operator-3": slow, **options.get("hooks", {})}
    vault = await guarded(**{**options, "hooks": hooks})
    assert (await vault.ask(100, BOB))["decision"] == "allow"


async def test_18_one_operator_whose_fetch_fails_abstains_and_changes_nothing(guarded: MakeGuarded) -> None:
    # This one does not allow hosts of its own network, so its component may not fetch.
    vault = await guarded(operator_overrides={1: {"allow_private_hosts": []}})
    before = await vault.shares()
    allowed = await vault.ask(100, BOB)
    assert allowed["decision"] == "allow"
    assert signers(allowed) == 3
    await vault.execute(allowed)
    assert await vault.shares() == before - 100
    assert messages(await vault.ask(100, MALLORY)) == [f"receiver {MALLORY} is on the sanctions list"]


async def test_18_two_operators_whose_fetch_fails_make_a_failure_that_says_so_never_a_denial(guarded: MakeGuarded) -> None:
    silent: dict[str, Any] = {"allow_private_hosts": []}
    vault = await guarded(operator_overrides={1: silent, 2: silent})
    with pytest.raises((NoQuorum, DeadlineExceeded)) as caught:
        await vault.ask(100, BOB)
    reasons = [item for item in caught.value.extra["operators"] if item["code"] == "component_failed"]
    assert len(reasons) == 2
    assert all("denied" in str(item) for item in reasons)


async def test_placet_policy_publish_puts_a_pack_where_operators_and_contracts_find_it(tmp_path: Path, world: World) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    async with LocalNetwork(LocalOptions(tmp_path / "net", compiled_cache=cache, allow_private_hosts=(world.host,))) as network:
        where = ["--object-store", network.objects_url, "--rpc", network.anvil.url, "--deployments", str(network.deployments)]
        where += ["--gateway", network.gateway_url, "--api-key", network.api_key, "--output", "json"]

        async def publish(pack: str, *options: str) -> Any:
            arguments = ["publish", str(POLICIES / pack), *where, *options]
            result = await asyncio.to_thread(CliRunner().invoke, policy, arguments)
            if isinstance(result.exception, PlacetError):
                raise result.exception
            assert result.exit_code == 0, (result.output, result.exception)
            return json.loads(result.output)

        done = await publish("spend-limit", "--from", hex0x(network.accounts[5]))
        assert done["policyId"] == hex0x(load_pack(POLICIES / "spend-limit").bundle.id)
        assert [item["admitted"] for item in done["admissions"]] == [True] * 4
        assert done["transactionHash"].startswith("0x")
        again = await publish("spend-limit", "--from", hex0x(network.accounts[5]))
        assert (again["policyId"], again["transactionHash"]) == (done["policyId"], None)

        key = tmp_path / "key"
        key.write_text(DEVELOPMENT_KEY)
        signed = await publish("sanctions-screen", "--key-file", str(key), "--allow-host", world.host)
        assert signed["transactionHash"].startswith("0x")
        assert all(item["admitted"] for item in signed["admissions"])
        key.write_text("no key")
        with pytest.raises(InvalidInput, match="no usable key"):
            await publish("vault-exposure", "--key-file", str(key))
        config = network.client_config(bytes.fromhex(done["policyId"][2:]))
        token = await network.chain.deploy(network.owner, "TestToken", "Test", "TST", 18)
        await network.chain.deploy(network.owner, "GuardedVault", token, "Vault", "vTST", config)
