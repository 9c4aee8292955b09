"""Lanes keep to themselves: each key takes its own jobs, spends its own budget, and has no other use."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from placet.core.bus import InProcessBroker, InProcessBus
from placet.core.db import connect
from placet.core.errors import InvalidInput
from placet.core.objects import ObjectStore
from placet.core.payment.calls import settlement_call
from placet.core.runtime import Resources, connect_chains
from placet.core.types import Hash32, hex0x
from placet.settlement.config import SettlementSettings
from placet.settlement.main import Settlement
from placet.settlement.sender import Sender, SendingRules
from placet.settlement.signer import LocalTransactionSigner
from placet.settlement.store import ATTESTATIONS, FOR_EVER, PAYMENTS, REFUNDS, Store, new_job
from tests.support.authorization import Clock
from tests.support.databases import NewEngine
from tests.support.payment import NOW, TOKEN, Payer
from tests.unit.settlement.node import Node

GWEI = 10**9
RULES = SendingRules(1, 30.0, 500 * GWEI, GWEI, 500_000, 10_000_000, 16)


async def sender_of(node: Node, store: Store, folder: Path, **rules: Any) -> Sender:
    key = folder / f"{secrets.token_hex(4)}.key"
    key.write_text(secrets.token_hex(32))
    signer = LocalTransactionSigner(key)
    node.sender = hex0x(signer.address)
    return Sender(rpc=node, chain_id=31337, signer=signer, store=store, rules=replace(RULES, **rules), clock=Clock(NOW + 0.5))  # type: ignore[arg-type]


async def test_a_key_sends_only_what_is_of_its_lane_and_attestations_alone_are_announced(database: NewEngine, tmp_path: Path) -> None:
    node, payer = Node(), Payer()
    node.balances[payer.address] = 10_000
    store = Store(await database("placet.settlement.migrations"))
    jobs = {}
    for number, lane in enumerate((ATTESTATIONS, PAYMENTS, REFUNDS)):
        call = settlement_call(payer.pays(nonce=number), 1000)
        jobs[lane] = new_job(Hash32(bytes([number]) * 32), lane, 31337, call, "payer", FOR_EVER, NOW)
        assert await store.add_job(jobs[lane])
    for lane, sent in ((PAYMENTS, 1), (REFUNDS, 2), (ATTESTATIONS, 3)):
        sender = await sender_of(node, store, tmp_path, lane=lane)
        lease = await store.acquire(sender.address, 31337, lane, NOW, 1e9)
        assert lease is not None
        await sender.step(lease)
        assert len(set(node.sent)) == sent
        node.mine()
        await sender.step(lease)
        done = await store.job(jobs[lane].reference)
        assert done is not None
        assert done.state == "confirmed"
        assert await store.gas_of_payer("payer", 0, lane) == 60_000
        shown = {"chain": "31337", "account": hex0x(sender.address)}
        assert REGISTRY.get_sample_value("placet_settlement_account_wei", shown) == 3e18
    assert [job.lane for job in await store.unannounced()] == [ATTESTATIONS]


@pytest.mark.parametrize(("repeats", "state"), [(False, "reverted"), (True, "queued")])
async def test_what_reverted_is_over_or_tried_again_as_its_lane_says(
    database: NewEngine, tmp_path: Path, repeats: bool, state: str
) -> None:
    node, payer = Node(), Payer()
    node.balances[payer.address] = 1000
    store = Store(await database("placet.settlement.migrations"))
    sender = await sender_of(node, store, tmp_path, lane=REFUNDS, patient=True, repeats=repeats)
    job = new_job(Hash32(b"\1" * 32), REFUNDS, 31337, settlement_call(payer.pays(), 1000), "refunds", FOR_EVER, NOW)
    await store.add_job(job)
    lease = await store.acquire(sender.address, 31337, "one", NOW, 1e9)
    assert lease is not None
    await sender.step(lease)
    node.balances[payer.address] = 0
    node.mine()
    await sender.step(lease)
    found = await store.job(job.reference)
    assert found is not None
    assert found.state == state
    assert await store.open_attempts(lease) == {}
    assert "revert" in found.error
    assert (found.not_before > NOW) is repeats, "and not at once"


# --- settings


def settings(folder: Path, **changes: Any) -> SettlementSettings:
    for name in ("sender", "facilitator", "refunds", "receipts"):
        (folder / f"{name}.key").write_text(secrets.token_hex(32))
    (folder / "bus.key").write_text("11" * 32)
    zero, asset = hex0x(bytes(20)), hex0x(TOKEN)
    deployment = {"chainId": 31337, "blockNumber": 0, "validator": zero, "operatorRegistry": zero, "policyRegistry": zero}
    (folder / "deployments.json").write_text(json.dumps(deployment))
    values: dict[str, Any] = {
        "chains": [{"id": 31337, "rpc": ["http://127.0.0.1:1"], "deployments": folder / "deployments.json"}],
        "bus": "inprocess",
        "object_store": "memory://",
        "database": f"sqlite+aiosqlite:///{folder / 'settlement.db'}",
        "bus_key_file": folder / "bus.key",
        "sender_key_file": folder / "sender.key",
        "trusted_aggregators": ["0x" + "22" * 32],
        "grpc_port": 0,
        "accepted_payments": [{"scheme": "exact", "network": "eip155:31337", "asset": asset}],
        "facilitator_key_file": folder / "facilitator.key",
        "refund_key_file": folder / "refunds.key",
        "refund_vaults": [{"network": "eip155:31337", "asset": asset, "vault": zero}],
        "receipts_key_file": folder / "receipts.key",
        "receipt_ledger": {"network": "eip155:31337", "address": zero},
        "trusted_inference": ["0x" + "33" * 32],
    }
    return SettlementSettings(**(values | changes))


async def build(made: SettlementSettings) -> Settlement:
    service = Settlement(made, Resources(InProcessBus(InProcessBroker()), connect_chains(made), ObjectStore(made.object_store)))
    await service.stop()
    return service


async def test_without_settings_for_it_there_is_no_server_and_no_key(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {
        "grpc_port": None,
        "accepted_payments": [],
        "facilitator_key_file": None,
        "refund_key_file": None,
        "refund_vaults": [],
        "receipts_key_file": None,
        "receipt_ledger": None,
        "trusted_inference": [],
    }
    service = await build(settings(tmp_path, **nothing))
    await service.start()
    assert service.grpc_port == 0
    assert service.parts.loops() == []
    await service.stop()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"grpc_port": None}, "grpc_port"),
        ({"facilitator_key_file": None}, "facilitator_key_file"),
        ({"facilitator_key_file": "sender.key"}, "facilitator_key_file"),
        ({"refund_key_file": "facilitator.key"}, "refund_key_file"),
        ({"receipts_key_file": "refunds.key"}, "receipts_key_file"),
        ({"receipts_key_file": None}, "receipts_key_file"),
        ({"facilitator_key_file": "nowhere.key"}, "facilitator_key_file"),
        ({"accepted_payments": []}, "refund_vaults"),
        ({"accepted_payments": [{"scheme": "exact", "network": "eip155:1", "asset": "0x" + "70" * 20}]}, "accepted_payments"),
        ({"refund_vaults": [{"network": "eip155:31337", "asset": "0x" + "71" * 20, "vault": "0x" + "01" * 20}]}, "refund_vaults"),
        ({"receipt_ledger": {"network": "eip155:5", "address": "0x" + "01" * 20}}, "receipt_ledger"),
        ({"trusted_inference": []}, "trusted_inference"),
    ],
)
async def test_settings_that_contradict_each_other_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    paths = {name: tmp_path / value if isinstance(value, str) and value.endswith(".key") else value for name, value in changes.items()}
    with pytest.raises(InvalidInput) as caught:
        await build(settings(tmp_path, **paths))
    assert caught.value.field == field
    await connect(f"sqlite+aiosqlite:///{tmp_path / 'settlement.db'}").dispose()
