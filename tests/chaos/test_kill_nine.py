"""kill -9 of every service, of broker and database, once each, during a hundred intents: one result each, none executed twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from placet.core import topics, wire
from placet.core.batch import BatchContext
from placet.core.bus.kafka import KafkaBus
from placet.core.bus.kafka_client import KafkaSettings
from placet.core.digests import leaf_struct_hash
from placet.core.envelope import Kind, Message
from placet.core.errors import PlacetError
from placet.core.evm.contracts import encode_call
from placet.core.gen import authorization_pb2 as pb
from placet.core.keccak import keccak256
from placet.core.types import Address, Hash32, address_from, hex0x
from placet.sdk.local.network import LocalNetwork
from tests.e2e.conftest import BLOCKED, WITHDRAW, MakeVault, Vault

MNEMONIC = "test test test test test test test test test test test junk"  # the development node's
LIMIT = 1000
DEPOSIT = 10**6
ANSWER_WITHIN_S = 90.0
SETTLE_WITHIN_S = 60.0
CONSUMED = keccak256(b"AttestationConsumed(bytes32,address,bytes32,bytes32)")


@dataclass(slots=True)
class Sender:
    """An account with a deposit in the vault, and its key."""

    address: Address
    key: bytes


@dataclass(slots=True)
class Asked:
    """One intent: what is wanted of it, every final answer the client ever got for it, and what was in the way."""

    name: str
    sender: Sender
    amount: int
    receiver: str
    relay: bool
    expected: str
    body: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    tasks: set[str] = field(default_factory=set)
    trouble: list[str] = field(default_factory=list)
    settlement: dict[str, Any] = field(default_factory=dict)

    @property
    def task_id(self) -> str:
        return str(self.answers[-1]["taskId"])


def senders_of(accounts: list[Address]) -> list[Sender]:
    Account.enable_unaudited_hdwallet_features()
    out = []
    for index in (3, 4, 5, 6, 7, 8):
        account = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
        assert address_from(account.address) == accounts[index]
        out.append(Sender(accounts[index], bytes(account.key)))
    return out


async def until(condition: Callable[[], Awaitable[bool]], within_s: float, what: str) -> None:
    end = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {within_s:.0f} s: {what}")
        await asyncio.sleep(0.01)


class Crowd:
    """A client that retries whatever is retryable, with the intent's name as Idempotency-Key."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault

    async def _persist(self, asked: Asked, call: Callable[[], Awaitable[Any]]) -> Any:
        end = time.monotonic() + ANSWER_WITHIN_S
        while True:
            try:
                return await call()
            except PlacetError as error:
                asked.trouble.append(f"{error.code}: {error.message}")
                asked.tasks |= {str(error.extra["taskId"])} if "taskId" in error.extra else set()
                if not error.retryable:
                    raise
                if time.monotonic() > end:
                    raise AssertionError(f"{asked.name}: no answer within {ANSWER_WITHIN_S:.0f} s: {asked.trouble[-5:]}") from error
                await asyncio.sleep(0.1)

    async def ask(self, asked: Asked) -> None:
        vault = self.vault
        call = {
            "from": hex0x(asked.sender.address),
            "functionSignature": WITHDRAW,
            "arguments": [str(asked.amount), asked.receiver, hex0x(asked.sender.address)],
        }
        if not asked.body:
            prepared = await self._persist(asked, lambda: vault.client.prepare(hex0x(vault.address), call))
            signable = encode_typed_data(full_message=prepared["typedData"])
            signature = "0x" + bytes(Account.sign_message(signable, asked.sender.key).signature).hex()
            asked.body = {"intent": prepared["intent"], "signature": signature, "relay": asked.relay}
        answer = await self._persist(asked, lambda: vault.client.submit(hex0x(vault.address), idempotency_key=asked.name, **asked.body))
        asked.answers.append(answer)
        asked.tasks.add(str(answer["taskId"]))

    async def settled(self, asked: Asked) -> None:
        async def ended() -> bool:
            task = await self._persist(asked, lambda: self.vault.client.task(asked.task_id))
            asked.settlement = task.get("settlement", {})
            return asked.settlement.get("status") in ("confirmed", "reverted", "refused")

        await until(ended, SETTLE_WITHIN_S, f"settlement of {asked.name} (now {asked.settlement})")


def wave_of(number: int, senders: list[Sender]) -> list[Asked]:
    """Ten intents: one relayed a sender (of attestations over one state only one executes), two denied, two that nobody submits."""
    out = []
    for index, sender in enumerate(senders):
        out.append(Asked(f"wave-{number}-relay-{index}", sender, 1 + number, hex0x(sender.address), True, "allow"))
    out.append(Asked(f"wave-{number}-blocked", senders[0], 5, BLOCKED, True, "deny"))
    out.append(Asked(f"wave-{number}-too-much", senders[1], LIMIT + 1, hex0x(senders[1].address), False, "deny"))
    out.append(Asked(f"wave-{number}-kept-0", senders[2], 7, hex0x(senders[2].address), False, "allow"))
    out.append(Asked(f"wave-{number}-kept-1", senders[3], 8, hex0x(senders[3].address), False, "allow"))
    return out


async def fund(vault: Vault, senders: Iterable[Sender]) -> None:
    chain, owner = vault.network.chain, vault.network.owner
    for sender in senders:
        if sender.address == vault.alice:
            continue
        await chain.send(owner, vault.token, encode_call("mint(address,uint256)", sender.address, DEPOSIT))
        await chain.send(sender.address, vault.token, encode_call("approve(address,uint256)", vault.address, DEPOSIT))
        await chain.send(sender.address, vault.address, encode_call("deposit(uint256,address)", DEPOSIT, sender.address))


async def balance(network: LocalNetwork, contract: Address, owner: Address) -> int:
    return int.from_bytes(await network.rpc.eth_call(contract, encode_call("balanceOf(address)", owner)), "big")


@pytest.mark.kafka
@pytest.mark.slow
async def test_every_intent_ends_once_and_none_is_executed_twice_though_everything_is_killed(make_vault: MakeVault) -> None:
    vault = await make_vault(limit=LIMIT, separate=True, postgres=True)
    network, crowd = vault.network, Crowd(vault)
    senders = senders_of(network.accounts)
    await fund(vault, senders)
    before = {
        s.address: (await balance(network, vault.address, s.address), await balance(network, vault.token, s.address)) for s in senders
    }
    victims = ["gateway", "aggregator", *(f"operator-{i}" for i in range(4)), "settlement", "broker", "database"]
    everything: list[Asked] = []
    killed: list[str] = []
    in_the_middle = 0

    for number in range(10):
        wave = wave_of(number, senders)
        everything += wave
        running = [asyncio.create_task(crowd.ask(asked)) for asked in wave]
        if number < len(victims):
            in_the_middle += await strike(network, victims[number], number, running, wave)
            killed.append(victims[number])
        await asyncio.gather(*running)
        await asyncio.gather(*(crowd.settled(asked) for asked in wave if asked.relay and asked.expected == "allow"))

    assert sorted(killed) == sorted(victims)
    assert in_the_middle >= len(victims) - 2, "nearly all were killed while intents waited"
    assert network.kafka is not None
    assert network.kafka.restarts == 1
    assert [name for name, process in network.processes.items() if process.poll() is not None] == [], "a service died of another's death"

    # Every intent has its decision, and asking again gives the very same.
    assert len(everything) == 100
    assert {asked.name: asked.answers[-1]["decision"] for asked in everything} == {asked.name: asked.expected for asked in everything}
    await asyncio.gather(*(crowd.ask(asked) for asked in everything))
    assert [asked.name for asked in everything if asked.answers[0] != asked.answers[-1]] == []

    await check_bus(network, everything)
    await check_chain(vault, senders, everything, before)


async def strike(network: LocalNetwork, victim: str, number: int, running: list[asyncio.Task[None]], wave: list[Asked]) -> bool:
    """kill -9 in the middle of a wave: when one, five or all of its intents are about to be submitted; settlement when answers are there.

    Returns whether some of them had no answer yet.
    """
    wanted = (1, 5, len(wave))[number % 3]

    async def under_way() -> bool:
        if victim == "settlement":
            return sum(task.done() for task in running) >= 4
        return sum(bool(asked.body) for asked in wave) >= wanted

    await until(under_way, 30, "the wave is under way")
    in_the_middle = not all(task.done() for task in running)
    await kill_and_start(network, victim)
    return in_the_middle


async def kill_and_start(network: LocalNetwork, victim: str) -> None:
    if victim == "database":
        assert network.postgres is not None
        await asyncio.to_thread(network.postgres.kill)
        await asyncio.to_thread(network.postgres.start)
        return
    if victim == "broker":
        assert network.kafka is not None
        network.kafka.kill()  # its watchdog starts it again
        return
    network.processes[victim].kill()
    network.launch(victim)
    await network.wait_ready(victim)


async def check_bus(network: LocalNetwork, everything: list[Asked]) -> None:
    """The whole of the attestations topic: one first result a task, nothing after it that says otherwise."""
    assert network.kafka is not None
    async with KafkaBus(KafkaSettings(bootstrap_servers=network.kafka.bootstrap, client_id="auditor")) as bus:
        records = {
            name: [record for found in (await bus.read_many_to_end(dict.fromkeys(bus.partitions(name)))).values() for record in found]
            for name in (topics.TASKS, topics.RESPONSES, topics.ATTESTATIONS, *(name for name in bus.topics if name.endswith(".dlq")))
        }
    dead = {name: [record.header("x-error") for record in found] for name, found in records.items() if name.endswith(".dlq") and found}
    assert dead == {}

    published: Counter[Hash32] = Counter()
    sizes: dict[Hash32, int] = {}
    for record in records[topics.TASKS]:
        context = BatchContext.of(*wire.decode_batch(_open(record).payload))
        if context.id not in sizes:
            published.update(context.task_ids)
        sizes[context.id] = len(context.task_ids)
    assert {task: count for task, count in published.items() if count > 1} == {}, "one task id in two batches"

    results: dict[Hash32, list[str]] = defaultdict(list)
    for record in records[topics.ATTESTATIONS]:
        message = _open(record)
        if message.kind is Kind.ATTESTATION_GROUP:
            for item in wire.decode_attestation_group(message.payload).decided:
                results[item.leaf.task_id].append(f"{'allow' if item.leaf.allow else 'deny'} {leaf_struct_hash(item.leaf).hex()}")
        else:
            for failure in wire.decode_group_failure(message.payload).failures:
                results[failure.task_id].append("failed")
    assert sorted(set(published) - set(results)) == [], "tasks without a result"
    assert {hex0x(task): found for task, found in results.items() if len(set(found)) > 1} == {}, "results that contradict each other"

    for asked in everything:
        final = bytes.fromhex(asked.task_id[2:])
        assert results[Hash32(final)][0].startswith(asked.expected)
        others = [results[Hash32(bytes.fromhex(task[2:]))] for task in asked.tasks - {asked.task_id}]
        assert all(set(found) == {"failed"} for found in others), f"{asked.name} has more than one decision"

    leaves: dict[tuple[bytes, Hash32], set[bytes]] = defaultdict(set)
    for record in records[topics.RESPONSES]:
        message = _open(record)
        for group in wire.decode_response(message.payload, sizes[message.batch_id]).groups:
            for item in group.decided:
                leaves[message.sender, item.leaf.task_id].add(leaf_struct_hash(item.leaf))
    assert [key for key, found in leaves.items() if len(found) > 1] == [], "an operator equivocated"


def _open(record: Any) -> Any:
    """The content of an envelope; here nobody's word is doubted."""

    envelope = pb.Envelope.FromString(record.value)
    zero = bytes(32)
    batch, proposal = Hash32(envelope.batch_id or zero), Hash32(envelope.proposal_digest or zero)
    return Message(Kind(envelope.kind), envelope.chain_id, batch, proposal, envelope.sender, envelope.payload, record.value)


async def check_chain(vault: Vault, senders: list[Sender], everything: list[Asked], before: dict[Address, tuple[int, int]]) -> None:
    """Each relayed and allowed intent was executed once, nothing else was, and the balances say the same."""
    network = vault.network
    head = await network.rpc.block("latest")
    events = [log for log in await network.rpc.logs(network.addresses["validator"], 0, head.number) if log.topics[0] == CONSUMED]
    executed = Counter(hex0x(log.topics[1]) for log in events)
    wanted = [asked for asked in everything if asked.relay and asked.expected == "allow"]
    assert {asked.name: asked.settlement["status"] for asked in wanted} == dict.fromkeys((a.name for a in wanted), "confirmed")
    assert executed == Counter(asked.task_id for asked in wanted)
    for sender in senders:
        moved = sum(asked.amount for asked in wanted if asked.sender is sender)
        shares, tokens = before[sender.address]
        assert await balance(network, vault.address, sender.address) == shares - moved
        assert await balance(network, vault.token, sender.address) == tokens + moved
