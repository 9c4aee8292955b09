"""The demo: what an intent goes through, with a real chain, real contracts and real signatures. Every line printed is measured or read.

Each chapter checks what it shows; the demo fails when something is not as told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import RpcClient
from placet.core.messages import TaskObservation
from placet.core.types import Address, Hash32, address_from, hex0x
from placet.sdk.client import Client
from placet.sdk.devservices.anvil import Anvil
from placet.sdk.devservices.process import free_ports, repository
from placet.sdk.local.chain import ChainError, DevChain
from placet.sdk.local.network import LocalNetwork, LocalOptions
from placet.sdk.packs import load_pack

Print = Callable[[str], Any]
WITHDRAW = "withdraw(uint256,address,address)"
UNIT = 10**18
SANCTIONED = "0x" + "5a" * 20


class DemoFailed(AssertionError):
    """Something was not as the story tells it."""


def expect(condition: bool, what: str) -> None:
    """Stop the demo when something is not as told."""
    if not condition:
        raise DemoFailed(what)


class ListServer:
    """A published list of sanctioned addresses, on loopback. `tampered` shows every fourth reader a list without them."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.served = 0
        self.tampered = False
        self._runner: web.AppRunner | None = None

    @property
    def host(self) -> str:
        """As a manifest names it."""
        return f"localhost:{self.port}"

    async def _answer(self, _: web.Request) -> web.Response:
        self.served += 1
        others = [f"0x{number:040x}" for number in range(1, 6)]
        clean = self.tampered and self.served % 4 == 0
        return web.json_response(others if clean else [*others, SANCTIONED])

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/list.json", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


async def deploy_vault(network: LocalNetwork, policy_id: Hash32, depositor: Address) -> tuple[Address, Address]:
    """A token and a vault that follows a policy, with a deposit of 100,000; returns both addresses."""
    chain = network.chain
    token = await chain.deploy(network.owner, "TestToken", "Demo Dollar", "DUSD", 18)
    vault = await chain.deploy(network.owner, "GuardedVault", token, "Guarded Vault", "gDUSD", network.client_config(policy_id))
    amount = 100_000 * UNIT
    await chain.send(network.owner, token, encode_call("mint(address,uint256)", depositor, amount))
    await chain.send(depositor, token, encode_call("approve(address,uint256)", vault, amount))
    await chain.send(depositor, vault, encode_call("deposit(uint256,address)", amount, depositor))
    return token, vault


class Story:
    """The chapters, over one network."""

    def __init__(self, network: LocalNetwork, say: Print, server: ListServer) -> None:
        self.network = network
        self.say = say
        self.server = server
        self.alice = network.accounts[3]
        self.vault = Address(bytes(20))
        self.token = Address(bytes(20))
        self.pack = repository() / "policies" / "spend-limit"

    # --- helpers

    async def set_up(self) -> None:
        """A token, a vault that only leaves by attested intents, and Alice's deposit."""
        network = self.network
        started = time.perf_counter()
        bundle = load_pack(self.pack, params=self.params("1000")).bundle
        await network.publish(bundle)
        self.token, self.vault = await deploy_vault(network, bundle.id, self.alice)
        self.say(f"  policy   {hex0x(bundle.id)}  (spend-limit: 1000 DUSD a withdrawal, one blocked receiver)")
        self.say(f"  vault    {hex0x(self.vault)}  (ERC-4626, quorum 2/3 of stake; Alice deposited 100,000 DUSD)")
        self.say(f"  set up in {time.perf_counter() - started:.1f} s")

    @staticmethod
    def params(limit: str) -> dict[str, Any]:
        """The policy's parameters, with a limit in whole DUSD."""
        return {"max_amount": str(int(limit) * UNIT), "max_count": 1000, "blocked": [SANCTIONED]}

    async def ask(self, client: Client, amount: int, receiver: str, **options: Any) -> dict[str, Any]:
        """Prepare and submit a withdrawal of `amount` DUSD."""
        call = {"from": hex0x(self.alice), "functionSignature": WITHDRAW, "arguments": [str(amount * UNIT), receiver, hex0x(self.alice)]}
        prepared = await client.prepare(hex0x(self.vault), call)
        answer = await client.submit(hex0x(self.vault), prepared["intent"], **options)
        return {**answer, "intent": prepared["intent"]}

    async def execute(self, answer: dict[str, Any], *, data: bytes | None = None, chain: DevChain | None = None) -> Any:
        """Send the answer's call as it is, from Alice."""
        call = answer["call"]
        payload = bytes.fromhex(call["data"][2:]) if data is None else data
        return await (chain or self.network.chain).send(
            self.alice, address_from(call["to"]), payload, value=int(call["value"]), gas=2_000_000
        )

    async def refused(self, answer: dict[str, Any], wanted: str, told: str, **options: Any) -> None:
        """The contract must refuse with the named error."""
        try:
            await self.execute(answer, **options)
        except ChainError as error:
            expect((error.name or "").startswith(wanted), f"{told}: {error.name}, not {wanted}")
            self.say(f"  {told:<46} reverts {wanted}")
            return
        raise DemoFailed(f"{told}: the contract accepted it")

    async def balance(self, who: str) -> int:
        """DUSD of an address."""
        answer = await self.network.rpc.eth_call(self.token, encode_call("balanceOf(address)", address_from(who)))
        return int.from_bytes(answer, "big") // UNIT

    # --- chapters

    async def allowed(self, client: Client, spans: InMemorySpanExporter | None) -> dict[str, Any]:
        """An allowed withdrawal executes."""
        bob = "0x" + "b0" * 20
        await self.ask(client, 1, bob)  # the first request warms caches; it is not what is measured
        if spans is not None:
            await self._flush()
            spans.clear()
        started = time.perf_counter()
        answer = await self.ask(client, 250, bob)
        certified = time.perf_counter()
        expect(answer["decision"] == "allow", f"the decision is {answer['decision']}: {answer.get('reasons')}")
        sent = await self.execute(answer)
        executed = time.perf_counter()
        expect(await self.balance(bob) == 250, "Bob did not get 250 DUSD")
        attestation = answer["attestation"]
        certificate = attestation["certificate"]
        signers = bin(int(attestation["signers"], 16)).count("1")
        self.say(f"  task         {answer['taskId']}")
        self.say("  decision     allow")
        self.say(f"  certificate  root {certificate['root']}")
        of = len(self.network.operators)
        self.say(f"               {certificate['count']} leaf, epoch {certificate['epoch']}, signed by {signers} of {of} operators")
        self.say(f"  signature    {attestation['aggregateSignature'][:66]}…  (BLS12-381, 96 bytes)")
        self.say(f"  executed     block {sent.block_number}, gas {sent.gas_used:,}; Bob holds 250 DUSD")
        self.say(
            f"  time         {1000 * (certified - started):.0f} ms to the certificate, {1000 * (executed - certified):.0f} ms to execute it"
        )
        if spans is not None:
            await self._stages(spans)
        return answer

    async def _flush(self) -> None:
        """Have every service hand over its finished spans."""
        for provider in self.network.providers:
            await asyncio.to_thread(provider.force_flush)

    async def _stages(self, spans: InMemorySpanExporter) -> None:
        """The trace of the request, span by span."""
        await self._flush()
        finished = spans.get_finished_spans()
        if not finished:
            return
        first = min(span.start_time or 0 for span in finished)
        for span in sorted(finished, key=lambda item: item.start_time or 0):
            service = span.resource.attributes.get("service.instance.id", "")
            at, took = ((span.start_time or 0) - first) / 1e6, ((span.end_time or 0) - (span.start_time or 0)) / 1e6
            if took < 1.0:
                continue  # every hop is in the trace; shown are those that take time
            self.say(f"    {at:7.1f} ms  {took:7.1f} ms  {service!s:<12} {span.name}")

    async def denied(self, client: Client) -> None:
        """A denial is signed as well, says why, and the contract refuses it."""
        answer = await self.ask(client, 10, SANCTIONED)
        expect(answer["decision"] == "deny", "a blocked receiver was allowed")
        for reason in answer["reasons"]:
            self.say(f"  decision     deny: {_with_place(reason)}")
        leaf, root = answer["attestation"]["leaf"], answer["attestation"]["certificate"]["root"]
        self.say(f"  signed       leaf {leaf['taskId']} allow=false, certificate root {root[:18]}…")
        await self.refused(answer, "IntentDenied", "the denial, sent to the vault")

    async def attacks(self, client: Client, used: dict[str, Any]) -> None:
        """What an attacker tries with valid attestations."""
        await self.refused(used, "SequenceMismatch", "the same attestation again")
        answer = await self.ask(client, 20, hex0x(self.alice))
        data = bytes.fromhex(answer["call"]["data"][2:])
        amount, forged = (20 * UNIT).to_bytes(32, "big"), (20_000 * UNIT).to_bytes(32, "big")
        expect(data.count(amount) == 1, "the amount stands once in the call")
        await self.refused(answer, "IntentMismatch", "the amount changed from 20 to 20,000", data=data.replace(amount, forged))
        snapshot = await self.network.rpc.call("evm_snapshot", [])
        await self.network.rpc.call("evm_increaseTime", [answer["expiresAt"]])
        await self.network.rpc.call("evm_mine", [])
        await self.refused(answer, "IntentExpired", "after the intent's deadline")
        await self.network.rpc.call("evm_revert", [snapshot])
        snapshot = await self.network.rpc.call("evm_snapshot", [])
        head = await self.network.rpc.block("latest")
        await self.network.rpc.call("evm_increaseTime", [max(1, answer["expiresAt"] + 1 - head.timestamp)])
        await self.network.rpc.call("evm_mine", [])
        await self.refused(answer, "AttestationExpired", "after the attestation expired")
        await self.network.rpc.call("evm_revert", [snapshot])
        await self._wrong_chain(answer)

    async def _wrong_chain(self, answer: dict[str, Any]) -> None:
        """The very same state under another chain id."""
        state = await self.network.rpc.call("anvil_dumpState", [])
        other = Anvil(self.network.folder / "other-chain", chain_id=self.network.options.chain_id + 1)
        await asyncio.to_thread(other.start)
        try:
            async with RpcClient([other.url], timeout_s=30) as rpc:
                await rpc.call("anvil_loadState", [state])
                await self.refused(answer, "WrongChain", "on a copy of the chain with another id", chain=DevChain(rpc))
        finally:
            await asyncio.to_thread(other.stop)

    async def one_of_many(self, client: Client) -> None:
        """Of many attestations over one state one executes."""
        answers = await asyncio.gather(*(self.ask(client, 900, hex0x(self.alice)) for _ in range(2)))
        expect(all(answer["decision"] == "allow" for answer in answers), "both should be allowed over the same state")
        sequences = {answer["attestation"]["leaf"]["sequence"] for answer in answers}
        expect(len(sequences) == 1, "both were made over the same state")
        sent = await self.execute(answers[0])
        self.say(f"  two allows over sequence {sequences.pop()}; the first executes (gas {sent.gas_used:,})")
        await self.refused(answers[1], "SequenceMismatch", "the second")

    async def new_limit(self, client: Client) -> None:
        """Another policy, no contract redeployed."""
        old = await self.ask(client, 800, hex0x(self.alice))
        expect(old["decision"] == "allow", "800 is below the old limit")
        bundle = load_pack(self.pack, params=self.params("500")).bundle
        await self.network.publish(bundle)
        await self.network.chain.send(self.network.owner, self.vault, encode_call("setPolicy(bytes32)", bundle.id))
        self.say(f"  the vault's owner sets policy {hex0x(bundle.id)[:18]}… (limit 500)")
        await self.refused(old, "PolicyReplaced", "an attestation of the old policy")
        await asyncio.sleep(0.3)
        answer = await self.ask(client, 800, hex0x(self.alice))
        expect(answer["decision"] == "deny", "800 is above the new limit")
        self.say(f"  decision     deny: {_with_place(answer['reasons'][0])}")

    async def screened(self, client: Client) -> None:
        """A policy over data: a JavaScript component fetches a published list, at every operator."""
        started = time.perf_counter()
        params = {"list_url": f"http://{self.server.host}/list.json", "min_entries": 5}
        bundle = load_pack(repository() / "policies" / "sanctions-screen", params=params, allowed_hosts=[self.server.host]).bundle
        await self.network.publish(bundle)
        await self.network.chain.send(self.network.owner, self.vault, encode_call("setPolicy(bytes32)", bundle.id))
        await asyncio.sleep(0.3)
        took = time.perf_counter() - started
        self.say(f"  the vault's owner sets policy {hex0x(bundle.id)[:18]}… (sanctions-screen; admitted in {took:.1f} s)")
        clean = await self.ask(client, 5, hex0x(self.alice))
        expect(clean["decision"] == "allow", f"a clean receiver was refused: {clean['reasons']}")
        sent = await self.execute(clean)
        self.say(f"  clean receiver       allow, executed with gas {sent.gas_used:,}")
        denied = await self.ask(client, 5, SANCTIONED)
        expect(denied["decision"] == "deny", "a listed receiver was allowed")
        for reason in denied["reasons"]:
            self.say(f"  listed receiver      deny: {_with_place(reason)}")

    async def one_lies(self, client: Client) -> None:
        """One operator reports other data; the result stands, and its signature is missing from nothing that matters."""
        if self.network.options.separate:
            self.server.tampered = True
            self.say("  the list's server now shows every fourth reader a list without the address")
        else:
            _make_liar(self.network.inside("operator-3"))
            self.say("  operator-3 now reports that nobody is listed, whatever it fetched")
        before = self.server.served
        denied = await self.ask(client, 6, SANCTIONED)
        expect(denied["decision"] == "deny", "one lie cleared a listed receiver")
        signers = bin(int(denied["attestation"]["signers"], 16)).count("1")
        fetched = self.server.served - before
        self.say(f"  {fetched} operators fetched the list; still deny, signed by {signers} of {len(self.network.operators)}")


def _with_place(reason: dict[str, Any]) -> str:
    place = f"  ({reason['file']}:{reason['line']})" if "file" in reason else ""
    return f"{reason['message']}{place}"


def _make_liar(operator: Any) -> None:
    """Make an operator of this process report data that it did not see."""
    components = operator.components
    genuine = components.observe

    async def observe(*arguments: Any) -> TaskObservation:
        seen: TaskObservation = await genuine(*arguments)
        return replace(seen, outputs=tuple(b'{"sanctions":{"entries":6,"listed":[]}}' for _ in seen.outputs))

    components.observe = observe


async def tell(options: LocalOptions, say: Print) -> None:
    """Bring a network up in `options.folder` and tell the whole story."""
    spans = None if options.separate else InMemorySpanExporter()
    started = time.perf_counter()
    say("Placet: four operators, one certificate, one contract that checks it. Development keys, a development chain.")
    server = ListServer()
    options = replace(options, span_exporter=spans, allow_private_hosts=(*options.allow_private_hosts, server.host))
    async with server, LocalNetwork(options) as network:
        say(f"network up in {time.perf_counter() - started:.1f} s, chain {options.chain_id}")
        say(f"  gateway {network.gateway_url}, EVM node {network.anvil.url}")
        story = Story(network, say, server)
        async with network.client() as client:
            say("\n0. A vault whose assets leave only by attested intents")
            await story.set_up()
            say("\n1. An allowed withdrawal executes")
            used = await story.allowed(client, spans)
            say("\n2. A withdrawal to a blocked receiver is denied, and the denial is signed too")
            await story.denied(client)
            say("\n3. What an attacker does with valid attestations")
            await story.attacks(client, used)
            say("\n4. Of two attestations over one state, one executes")
            await story.one_of_many(client)
            say("\n5. The policy changes; no contract is redeployed")
            await story.new_limit(client)
            say("\n6. A policy over data: a WebAssembly component screens the receiver at every operator")
            await story.screened(client)
            say("\n7. One operator lies about its data; the result stands")
            await story.one_lies(client)
    say(f"\nall as told, in {time.perf_counter() - started:.1f} s")
