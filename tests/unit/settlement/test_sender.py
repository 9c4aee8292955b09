"""The sending loop against a real node, with its store on SQLite and on PostgreSQL: whatever dies, nothing is executed twice."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes

from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import RpcClient, RpcError
from placet.core.types import Address, Hash32, hex0x
from placet.sdk.devservices.anvil import Anvil
from placet.sdk.local.chain import DevChain
from placet.settlement.sender import Sender, SendingRules
from placet.settlement.signer import LocalTransactionSigner
from placet.settlement.store import Attempt, Job, Lease, LeaseLost, Store
from tests.support.authorization import Clock, eventually
from tests.support.databases import NewEngine

CHAIN_ID = 31337
GWEI = 10**9
RULES = SendingRules(
    confirmations=1,
    bump_after_s=30.0,
    max_fee=500 * GWEI,
    tip=GWEI,
    gas_ceiling=500_000,
    gas_per_payer_per_day=10_000_000,
    max_in_flight=16,
)
LEASE_S = 10.0
RECEIVER = Address(b"\x77" * 20)


class PausingRpc(RpcClient):
    """A node that broadcasts are held back from until the test lets them go."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(urls)
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.sent: list[str] = []

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            self.waiting.set()
            await self.gate.wait()
            self.sent.append(params[0])
        return await super().call(method, params)


@dataclass
class Desk:
    """One sending key, its node, and as many replicas as a test wants."""

    anvil: Anvil
    rpc: RpcClient
    token: Address
    signer: LocalTransactionSigner
    database: NewEngine
    clock: Clock
    opened: list[RpcClient] = field(default_factory=list)

    async def replica(self, name: str, **rules: Any) -> tuple[Sender, Store, PausingRpc]:
        rpc = PausingRpc([self.anvil.url])
        self.opened.append(rpc)
        store = Store(await self.database("placet.settlement.migrations"))
        changed = replace(RULES, **rules)
        return Sender(rpc=rpc, chain_id=CHAIN_ID, signer=self.signer, store=store, rules=changed, clock=self.clock), store, rpc

    async def lead(self, store: Store, name: str) -> Lease:
        lease = await store.acquire(self.signer.address, CHAIN_ID, name, self.clock.now, LEASE_S)
        assert lease is not None
        return lease

    def job(self, amount: int = 1, **changes: Any) -> Job:
        """Mint `amount` to the receiver: executed twice, it would show."""
        values: dict[str, Any] = {
            "reference": Hash32(secrets.token_bytes(32)),
            "chain_id": CHAIN_ID,
            "target": self.token,
            "calldata": encode_call("mint(address,uint256)", RECEIVER, amount),
            "value": 0,
            "payer": "tenant",
            "valid_until": int(self.clock.now) + 600,
            "state": "queued",
            "announced": "queued",
            "error": "",
            "transaction_hash": b"",
            "block_number": 0,
            "gas_used": 0,
            "created_at": self.clock.now,
            "trace": "",
        }
        return Job(**(values | changes))

    async def minted(self) -> int:
        return int.from_bytes(await self.rpc.eth_call(self.token, encode_call("balanceOf(address)", RECEIVER)), "big")

    async def chain_nonce(self) -> int:
        return int(await self.rpc.call("eth_getTransactionCount", [hex0x(self.signer.address), "latest"]), 16)

    async def automine(self, on: bool) -> None:
        await self.rpc.call("evm_setAutomine", [on])

    async def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            await self.rpc.call("evm_mine", [])

    async def pool(self) -> list[str]:
        """Hashes of this account's transactions in the node's pool."""
        content = await self.rpc.call("txpool_content", [])
        return [
            entry["hash"]
            for part in content.values()
            for account, by_nonce in part.items()
            if account.lower() == hex0x(self.signer.address)
            for entry in by_nonce.values()
        ]

    async def attempts(self, store: Store, lease: Lease) -> list[Attempt]:
        return [item for items in (await store.open_attempts(lease)).values() for item in items]


@pytest.fixture(scope="module")
def anvil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    with Anvil(tmp_path_factory.mktemp("anvil"), chain_id=CHAIN_ID) as node:
        yield node


@pytest.fixture
async def desk(anvil: Anvil, database: NewEngine, tmp_path: Path) -> AsyncIterator[Desk]:
    key = tmp_path / "sender.key"
    key.write_text(secrets.token_hex(32))
    signer = LocalTransactionSigner(key)
    rpc = RpcClient([anvil.url])
    chain = DevChain(rpc)
    await rpc.call("evm_setAutomine", [True])
    token = await chain.deploy((await chain.accounts())[0], "TestToken", "Test", "TST", 18)
    await rpc.call("anvil_setBalance", [hex0x(signer.address), hex(10**20)])
    head = await rpc.block()
    made = Desk(anvil, rpc, token, signer, database, Clock(max(time.time(), head.timestamp + 1.0)))
    yield made
    await rpc.call("anvil_dropAllTransactions", [])
    await rpc.call("evm_setAutomine", [True])
    for client in (rpc, *made.opened):
        await client.close()


async def state(store: Store, job: Job) -> str:
    found = await store.job(job.reference)
    assert found is not None
    return found.state


async def reach(sender: Sender, store: Store, lease: Lease, job: Job, wanted: str) -> None:
    """Step until a job has come so far: the node may know of a block a moment later than of its own answer."""

    async def there() -> bool:
        await sender.step(lease)
        return await state(store, job) == wanted

    await eventually(there, f"the job is {wanted}")


async def test_a_job_is_written_down_sent_and_confirmed(desk: Desk) -> None:
    sender, store, _ = await desk.replica("one")
    job = desk.job(5)
    assert await store.add_job(job)
    assert not await store.add_job(job), "a redelivery"
    lease = await desk.lead(store, "one")
    await sender.step(lease)
    assert await state(store, job) == "sent"
    await reach(sender, store, lease, job, "confirmed")
    done = await store.job(job.reference)
    assert done is not None
    assert done.gas_used > 21_000
    assert await desk.minted() == 5
    await sender.step(lease)
    assert await desk.minted() == 5


# --- threats 15: split brain


async def test_15_a_leader_that_was_paused_after_choosing_a_nonce_writes_and_sends_nothing(desk: Desk) -> None:
    one, store_one, rpc_one = await desk.replica("one")
    two, store_two, _ = await desk.replica("two")
    job = desk.job(5)
    await store_one.add_job(job)
    lease_one = await desk.lead(store_one, "one")
    reached, go_on = asyncio.Event(), asyncio.Event()
    genuine = store_one.bind

    async def bind(*arguments: Any) -> None:
        reached.set()
        await go_on.wait()  # the nonce is chosen, the transaction is signed; now this process is paused
        await genuine(*arguments)

    store_one.bind = bind  # type: ignore[method-assign,assignment]
    paused = asyncio.create_task(one.step(lease_one))
    await asyncio.wait_for(reached.wait(), 10)

    desk.clock.now += LEASE_S + 1
    lease_two = await desk.lead(store_two, "two")
    await reach(two, store_two, lease_two, job, "confirmed")

    go_on.set()
    with pytest.raises(LeaseLost):
        await paused
    assert rpc_one.sent == []
    assert await desk.minted() == 5
    assert await desk.chain_nonce() == 1


async def test_15_a_leader_that_was_paused_after_writing_down_sends_what_its_successor_sent(desk: Desk) -> None:
    one, store_one, rpc_one = await desk.replica("one")
    two, store_two, rpc_two = await desk.replica("two")
    job = desk.job(5)
    await store_one.add_job(job)
    rpc_one.gate.clear()
    paused = asyncio.create_task(one.step(await desk.lead(store_one, "one")))
    await asyncio.wait_for(rpc_one.waiting.wait(), 10)

    desk.clock.now += LEASE_S + 1
    lease_two = await desk.lead(store_two, "two")
    await reach(two, store_two, lease_two, job, "confirmed")
    rpc_one.gate.set()
    await paused  # "nonce too low", which is fine
    assert set(rpc_one.sent) == set(rpc_two.sent)
    assert len(set(rpc_one.sent)) == 1
    assert await desk.minted() == 5
    assert await desk.chain_nonce() == 1


async def test_15_two_who_think_they_lead_bind_a_job_once(desk: Desk) -> None:
    one, store_one, _ = await desk.replica("one")
    two, store_two, _ = await desk.replica("two")
    jobs = [desk.job(1) for _ in range(8)]
    for job in jobs:
        await store_one.add_job(job)
    lease_one = await desk.lead(store_one, "one")
    desk.clock.now += LEASE_S + 1
    lease_two = await desk.lead(store_two, "two")
    outcomes = await asyncio.gather(one.step(lease_one), two.step(lease_two), return_exceptions=True)
    assert isinstance(outcomes[0], LeaseLost)
    assert outcomes[1] is None
    for job in jobs:
        await reach(two, store_two, lease_two, job, "confirmed")
    assert await desk.minted() == 8
    assert await desk.chain_nonce() == 8


async def test_15_every_write_of_a_fenced_leader_is_refused(desk: Desk) -> None:
    _, store, _ = await desk.replica("one")
    job = desk.job()
    await store.add_job(job)
    old = await desk.lead(store, "one")
    attempt = Attempt(0, 0, "send", b"raw", Hash32(b"\x01" * 32), GWEI, desk.clock.now, job.reference)

    async def refused(now: float) -> None:
        for write in (
            store.bind(old, now, job.reference, attempt, 100_000),
            store.add_attempt(old, now, attempt, 100_000),
            store.put_off(old, now, job),
            store.set_state(old, now, job.reference, "sent"),
            store.close_nonce(old, now, 0, job.reference, "confirmed"),
        ):
            with pytest.raises(LeaseLost):
                await write

    await refused(desk.clock.now + LEASE_S)  # its own lease has run out, and it does not know
    desk.clock.now += LEASE_S + 1
    new = await desk.lead(store, "two")
    assert new.token > old.token
    await refused(desk.clock.now)
    assert await state(store, job) == "queued"
    await store.release(old)  # of no effect
    assert await store.acquire(desk.signer.address, CHAIN_ID, "three", desk.clock.now, LEASE_S) is None
    await store.release(new)
    assert await store.acquire(desk.signer.address, CHAIN_ID, "three", desk.clock.now, LEASE_S) is not None


async def test_15_of_many_who_ask_for_the_lead_one_gets_it(desk: Desk) -> None:
    stores = [(await desk.replica(str(number)))[1] for number in range(6)]
    asked = [store.acquire(desk.signer.address, CHAIN_ID, str(number), desk.clock.now, LEASE_S) for number, store in enumerate(stores)]
    assert len([lease for lease in await asyncio.gather(*asked) if lease is not None]) == 1


# --- restarts


async def test_15_a_restart_sends_the_same_bytes_again(desk: Desk) -> None:
    one, store, rpc_one = await desk.replica("one")
    job = desk.job(5)
    await store.add_job(job)
    await desk.automine(False)
    await one.step(await desk.lead(store, "one"))
    assert len(await desk.pool()) == 1
    await desk.rpc.call("anvil_dropAllTransactions", [])  # the node forgets it, and this process dies
    desk.clock.now += LEASE_S + 1

    two, store_two, rpc_two = await desk.replica("two")
    lease = await desk.lead(store_two, "two")
    await two.step(lease)
    assert rpc_two.sent == rpc_one.sent
    await desk.mine()
    await reach(two, store_two, lease, job, "confirmed")
    assert await desk.minted() == 5


async def test_15_what_was_mined_while_nobody_was_there_is_found(desk: Desk) -> None:
    one, store, _ = await desk.replica("one")
    job = desk.job(5)
    await store.add_job(job)
    await one.step(await desk.lead(store, "one"))
    desk.clock.now += LEASE_S + 1
    two, store_two, rpc_two = await desk.replica("two")
    await reach(two, store_two, await desk.lead(store_two, "two"), job, "confirmed")
    assert rpc_two.sent == []


# --- fees


async def test_a_transaction_that_is_not_mined_is_replaced_at_the_same_nonce(desk: Desk) -> None:
    sender, store, rpc = await desk.replica("one")
    job = desk.job(5)
    await store.add_job(job)
    await desk.automine(False)
    await sender.step(await desk.lead(store, "one"))
    desk.clock.now += RULES.bump_after_s + 1
    lease = await desk.lead(store, "one")
    await sender.step(lease)
    first, second = await desk.attempts(store, lease)
    assert first.nonce == second.nonce
    assert second.max_fee > first.max_fee * 11 // 10
    tips = [TypedTransaction.from_bytes(HexBytes(attempt.raw)).as_dict()["maxPriorityFeePerGas"] for attempt in (first, second)]
    assert tips[1] > tips[0] * 11 // 10, "or the usual nodes refuse it as underpriced"
    assert await desk.pool() == [hex0x(second.hash)], "the node took the replacement: tip and maximal fee were raised"
    assert len(rpc.sent) == 2
    await desk.mine()
    await reach(sender, store, lease, job, "confirmed")
    done = await store.job(job.reference)
    assert done is not None
    assert done.transaction_hash == second.hash
    assert await desk.minted() == 5


async def test_a_replacement_never_pays_more_than_allowed(desk: Desk) -> None:
    sender, store, rpc = await desk.replica("one", max_fee=4 * GWEI)
    await store.add_job(desk.job())
    await desk.automine(False)
    await sender.step(await desk.lead(store, "one"))
    for _ in range(10):
        desk.clock.now += RULES.bump_after_s + 1
        await sender.step(await desk.lead(store, "one"))
    attempts = await desk.attempts(store, await desk.lead(store, "one"))
    assert max(attempt.max_fee for attempt in attempts) <= 4 * GWEI
    assert len(attempts) < 8
    assert len(rpc.sent) == 11, "at the bound it is sent again as it is"


# --- expiry and cancellation


async def expired(desk: Desk, store: Store, sender: Sender) -> tuple[Job, Lease]:
    """A job that was sent, not mined, and is not valid any more; its cancellation is on its way."""
    job = desk.job(5, valid_until=int(desk.clock.now) + 60)
    await store.add_job(job)
    await desk.automine(False)
    await sender.step(await desk.lead(store, "one"))
    desk.clock.now += 61
    lease = await desk.lead(store, "one")
    await sender.step(lease)
    kinds = [(attempt.nonce, attempt.kind) for attempt in await desk.attempts(store, lease)]
    assert [kind for _, kind in kinds] == ["send", "cancel"]
    assert len({nonce for nonce, _ in kinds}) == 1
    return job, lease


async def test_15_an_expired_job_is_refused_only_when_its_cancellation_is_final(desk: Desk) -> None:
    sender, store, _ = await desk.replica("one", confirmations=2)
    job, lease = await expired(desk, store, sender)
    assert await state(store, job) == "sent"
    await desk.mine()
    await sender.step(lease)
    assert await state(store, job) not in ("refused", "queued"), "one block may be reorganised away"
    await desk.mine()
    await sender.step(lease)
    done = await store.job(job.reference)
    assert done is not None
    assert done.state == "refused"
    assert "expired" in done.error
    assert done.gas_used == 21_000, "the payer's budget carries what it cost"
    assert await desk.minted() == 0
    assert await desk.chain_nonce() == 1


async def test_15_when_the_transaction_is_mined_in_place_of_its_cancellation_that_is_what_counts(desk: Desk) -> None:
    sender, store, rpc = await desk.replica("one")
    job, lease = await expired(desk, store, sender)
    await desk.rpc.call("anvil_dropAllTransactions", [])
    await desk.rpc.call("eth_sendRawTransaction", [rpc.sent[0]])
    await desk.mine()
    await reach(sender, store, lease, job, "confirmed")
    assert await desk.minted() == 5


async def test_a_cancellation_frees_the_nonces_after_it(desk: Desk) -> None:
    sender, store, _ = await desk.replica("one")
    job, lease = await expired(desk, store, sender)
    next_job = desk.job(7)
    await store.add_job(next_job)
    await sender.step(lease)
    await desk.mine()
    await reach(sender, store, lease, next_job, "confirmed")
    assert await state(store, job) == "refused"
    assert await desk.minted() == 7


async def test_15_a_nonce_that_somebody_else_used_gives_the_job_another_one(desk: Desk) -> None:
    sender, store, _ = await desk.replica("one")
    job = desk.job(5)
    await store.add_job(job)
    await desk.automine(False)
    await sender.step(await desk.lead(store, "one"))
    await desk.rpc.call("anvil_dropAllTransactions", [])
    foreign, _ = desk.signer.sign(
        {
            "type": 2,
            "chainId": CHAIN_ID,
            "nonce": 0,
            "to": bytes(desk.signer.address),
            "value": 0,
            "data": "0x",
            "gas": 21_000,
            "maxFeePerGas": 100 * GWEI,
            "maxPriorityFeePerGas": GWEI,
        }
    )
    await desk.rpc.call("eth_sendRawTransaction", [hex0x(foreign)])
    await desk.mine()
    lease = await desk.lead(store, "one")
    await sender.step(lease)
    assert await state(store, job) == "sent", "a node may only be behind with its receipts"
    desk.clock.now += RULES.bump_after_s + 1
    lease = await desk.lead(store, "one")
    await sender.step(lease)
    await sender.step(lease)
    await desk.mine()
    await reach(sender, store, lease, job, "confirmed")
    assert await desk.minted() == 5
    assert await desk.chain_nonce() == 2


# --- reorganisations


async def test_a_reorganisation_puts_a_job_back_and_it_is_confirmed_once(desk: Desk) -> None:
    sender, store, _ = await desk.replica("one", confirmations=3)
    job = desk.job(5)
    await store.add_job(job)
    lease = await desk.lead(store, "one")
    before = await desk.rpc.call("evm_snapshot", [])
    await reach(sender, store, lease, job, "mined")
    assert await desk.minted() == 5

    await desk.rpc.call("evm_revert", [before])
    assert await desk.minted() == 0
    await sender.step(lease)
    assert await state(store, job) in ("sent", "mined")
    await reach(sender, store, lease, job, "mined")
    await desk.mine(2)
    await reach(sender, store, lease, job, "confirmed")
    assert await desk.minted() == 5
    assert await desk.chain_nonce() == 1


async def test_a_reorganisation_deeper_than_the_confirmations_is_repaired_with_the_same_bytes(desk: Desk) -> None:
    sender, store, rpc = await desk.replica("one")
    job = desk.job(5)
    await store.add_job(job)
    lease = await desk.lead(store, "one")
    before = await desk.rpc.call("evm_snapshot", [])
    await reach(sender, store, lease, job, "confirmed")
    await desk.rpc.call("evm_revert", [before])
    later = desk.job(7)
    await store.add_job(later)
    await reach(sender, store, lease, later, "confirmed")  # no gap of account nonces keeps it waiting for ever
    assert await desk.minted() == 12
    assert rpc.sent.count(rpc.sent[0]) == 2


# --- what is refused before gas is spent


async def test_a_dry_run_names_the_contracts_error_and_costs_no_nonce(desk: Desk) -> None:
    sender, store, rpc = await desk.replica("one")
    job = desk.job(calldata=encode_call("transfer(address,uint256)", RECEIVER, 10**30))
    await store.add_job(job)
    await sender.step(await desk.lead(store, "one"))
    done = await store.job(job.reference)
    assert done is not None
    assert done.state == "refused"
    assert done.error.startswith("would revert: ERC20InsufficientBalance(")
    assert rpc.sent == []


async def test_a_node_that_cannot_say_leaves_the_job_waiting(desk: Desk) -> None:
    sender, store, _ = await desk.replica("one")
    job = desk.job(5)
    await store.add_job(job)
    await desk.rpc.call("anvil_setBalance", [hex0x(desk.signer.address), "0x0"])
    lease = await desk.lead(store, "one")
    await sender.step(lease)
    assert await state(store, job) in ("queued", "sent"), "being short of funds says nothing of the job"
    await desk.rpc.call("anvil_setBalance", [hex0x(desk.signer.address), hex(10**20)])
    await reach(sender, store, lease, job, "confirmed")


async def test_28_more_gas_than_the_ceiling_is_refused(desk: Desk) -> None:
    sender, store, rpc = await desk.replica("one", gas_ceiling=40_000)
    job = desk.job()
    await store.add_job(job)
    await sender.step(await desk.lead(store, "one"))
    done = await store.job(job.reference)
    assert done is not None
    assert done.state == "refused"
    assert "the ceiling is 40000" in done.error
    assert rpc.sent == []


async def test_28_a_payers_budget_counts_what_is_still_on_its_way(desk: Desk) -> None:
    sender, store, _ = await desk.replica("one", gas_per_payer_per_day=150_000)
    mine = [desk.job(1, created_at=desk.clock.now + number) for number in range(5)]
    other = desk.job(1, payer="somebody else", created_at=desk.clock.now + 9)
    for job in (*mine, other):
        await store.add_job(job)
    await desk.automine(False)
    lease = await desk.lead(store, "one")
    await sender.step(lease)
    states = [await state(store, job) for job in mine]
    assert states.count("sent") == 2, "a mint may take some 60 000 with its reserve"
    assert states[2:] == ["refused"] * 3
    assert await state(store, other) == "sent"
    await desk.mine()
    await sender.step(lease)
    assert await store.gas_of_payer("tenant", desk.clock.now - 86_400) < 150_000


async def test_what_expired_in_the_queue_is_never_sent(desk: Desk) -> None:
    sender, store, rpc = await desk.replica("one")
    job = desk.job(valid_until=int(desk.clock.now) - 1)
    await store.add_job(job)
    await sender.step(await desk.lead(store, "one"))
    assert await state(store, job) == "refused"
    assert rpc.sent == []


async def test_no_more_nonces_are_in_flight_than_allowed(desk: Desk) -> None:
    sender, store, _ = await desk.replica("one", max_in_flight=2)
    jobs = [desk.job(1, created_at=desk.clock.now + number) for number in range(5)]
    for job in jobs:
        await store.add_job(job)
    await desk.automine(False)
    lease = await desk.lead(store, "one")
    await sender.step(lease)
    await sender.step(lease)
    assert [await state(store, job) for job in jobs] == ["sent", "sent", "queued", "queued", "queued"]
    await desk.mine()
    await reach(sender, store, lease, jobs[1], "confirmed")
    await reach(sender, store, lease, jobs[3], "sent")
    assert [await state(store, job) for job in jobs] == ["confirmed", "confirmed", "sent", "sent", "queued"]


async def test_28_a_job_that_waits_lets_others_pass_and_is_looked_at_again_ever_less_often(desk: Desk) -> None:
    sender, store, rpc = await desk.replica("one", max_in_flight=2)
    genuine, asked = rpc.batch_settled, []

    async def batch_settled(requests: Any) -> Any:
        if len(requests) == 2 and requests[0][1][0]["data"] == hex0x(encode_call("mint(address,uint256)", RECEIVER, 666)):
            asked.append(desk.clock.now)
            return [RpcError(-32005, "limit exceeded")] * len(requests)
        return await genuine(requests)

    rpc.batch_settled = batch_settled  # type: ignore[method-assign]
    waiting = [desk.job(666, created_at=desk.clock.now + number) for number in range(3)]
    honest = desk.job(5, created_at=desk.clock.now + 9)
    for job in (*waiting, honest):
        await store.add_job(job)
    await sender.step(await desk.lead(store, "one"))
    await reach(sender, store, await desk.lead(store, "one"), honest, "confirmed")
    asked.clear()
    for _ in range(120):
        desk.clock.now += 1
        await sender.step(await desk.lead(store, "one"))
    assert 3 <= len(asked) <= 30, "not 360"
    assert [await state(store, job) for job in waiting] == ["queued"] * 3


async def test_28_places_are_shared_between_payers(desk: Desk) -> None:
    sender, store, _ = await desk.replica("one", max_in_flight=4)
    crowd = [desk.job(1, payer="crowd", created_at=desk.clock.now + number) for number in range(8)]
    others = [desk.job(1, payer=f"payer-{number}", created_at=desk.clock.now + 50 + number) for number in range(2)]
    for job in (*crowd, *others):
        await store.add_job(job)
    await desk.automine(False)
    lease = await desk.lead(store, "one")
    await sender.step(lease)
    assert [await state(store, job) for job in others] == ["sent", "sent"]
    assert [await state(store, job) for job in crowd] == ["sent"] * 2 + ["queued"] * 6


@pytest.mark.parametrize("words", ["invalid opcode: INVALID", "out of gas", "EVM error StackUnderflow", "execution reverted"])
async def test_28_the_evms_own_words_refuse_a_job(desk: Desk, words: str) -> None:
    sender, store, rpc = await desk.replica("one")

    genuine = rpc.batch_settled

    async def batch_settled(requests: Any) -> Any:
        dry_run = len(requests) == 2
        return [RpcError(-32000, words)] * 2 if dry_run else await genuine(requests)

    rpc.batch_settled = batch_settled  # type: ignore[method-assign]
    job = desk.job()
    await store.add_job(job)
    await sender.step(await desk.lead(store, "one"))
    assert await state(store, job) == "refused"
