"""Who may do what to a model, and what stands afterwards; on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from placet.core.errors import Conflict, Forbidden, InvalidInput, NotFound, VerificationFailed
from placet.core.models import Action, encode_manifest, manifest_digest, parse_reference
from placet.core.objects import ObjectStore
from placet.core.types import hex0x
from placet.inference.hub.inspector import Inspector
from placet.inference.hub.service import Hub, Signed
from placet.inference.hub.store import HubStore
from tests.support import onnx_files
from tests.support.databases import NewEngine
from tests.support.hub import HUB, Publisher

NOW = 1_800_000_000.0
PRICES = {
    "network": "eip155:31337",
    "asset": "0x" + "aa" * 20,
    "payTo": "0x" + "bb" * 20,
    "rate": {"request": "1000"},
    "modes": {"zkml": {"request": "5000"}},
}


@pytest.fixture
async def hub(database: NewEngine, tmp_path: Path) -> Hub:
    objects = ObjectStore((tmp_path / "objects").as_uri())
    engine = await database("placet.inference.migrations")
    return Hub(hub_id=HUB, store=HubStore(engine), objects=objects, inspector=Inspector(objects, tmp_path / "s"), clock=lambda: NOW)


@pytest.fixture
async def alice(hub: Hub) -> Publisher:
    publisher = Publisher("alice")
    await hub.act(publisher.says(Action.CLAIM, at=NOW))
    return publisher


async def move(hub: Hub, publisher: Publisher, version: int, *, alias: str = "prod", breaking: bool = False) -> dict[str, Any]:
    said = publisher.says(Action.ALIAS, at=NOW, name="m", alias=alias, version=version, breaking=breaking)
    return await hub.act(said)


async def resolved(hub: Hub, text: str) -> int:
    return (await hub.store.resolve(parse_reference(text))).manifest.version


async def test_a_name_belongs_to_who_claims_it_first(hub: Hub, alice: Publisher) -> None:
    mallory = Publisher("alice")
    with pytest.raises(Conflict, match="taken"):
        await hub.act(mallory.says(Action.CLAIM, at=NOW))
    await hub.act(alice.says(Action.CLAIM, at=NOW))  # once more changes nothing
    assert await hub.store.owner_of("alice") == alice.address
    for action, body in (
        (Action.PRICE, {"name": "m", "prices": PRICES}),
        (Action.ALIAS, {"name": "m", "alias": "prod", "version": 1, "breaking": False}),
        (Action.DELETE, {"name": "m", "version": 1}),
        (Action.TRANSFER, {"to": hex0x(mallory.address)}),
    ):
        with pytest.raises(Forbidden):
            await hub.act(mallory.says(action, at=NOW, **body))
    with pytest.raises(Forbidden):
        await mallory.publish(hub, "m", onnx_files.linear(), at=NOW)


async def test_a_statement_is_taken_once_by_one_hub_and_soon(hub: Hub, alice: Publisher) -> None:
    await alice.publish(hub, "m", onnx_files.linear(), at=NOW)
    said = alice.says(Action.ALIAS, at=NOW, name="m", alias="prod", version=1, breaking=False)
    await hub.act(said)
    with pytest.raises(Conflict, match="taken before"):
        await hub.act(said)
    for at in (NOW - 301, NOW + 31):
        with pytest.raises(InvalidInput, match="at:"):
            await hub.act(alice.says(Action.DELETE, at=at, name="m", version=1))
    with pytest.raises(InvalidInput, match="hub:"):
        await hub.act(alice.says(Action.DELETE, at=NOW, hub="placet:1", name="m", version=1))
    with pytest.raises(VerificationFailed):
        await hub.act(Signed(said.text, b"\0" * 65))
    with pytest.raises(InvalidInput, match="canonical"):
        await hub.act(Signed(said.text.replace(b'"at"', b' "at"'), said.signature))


async def test_replicas_take_a_statement_once(hub: Hub, alice: Publisher) -> None:
    await alice.publish(hub, "m", onnx_files.linear(), at=NOW)
    said = alice.says(Action.PRICE, at=NOW, name="m", prices=PRICES)
    outcomes = await asyncio.gather(*(hub.act(said) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(outcome, dict) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 3


async def test_a_refused_statement_changes_nothing_and_may_be_sent_again(hub: Hub, alice: Publisher) -> None:
    said = alice.says(Action.PRICE, at=NOW, name="m", prices=PRICES)
    with pytest.raises(NotFound):
        await hub.act(said)
    await alice.publish(hub, "m", onnx_files.linear(), at=NOW)
    await hub.act(said)
    assert (await hub.store.model("alice", "m")).prices is not None


async def test_versions_count_up_and_are_never_replaced(hub: Hub, alice: Publisher) -> None:
    first = await alice.publish(hub, "m", onnx_files.linear(), at=NOW)
    second = await alice.publish(hub, "m", onnx_files.linear(scale=2.0), at=NOW)
    assert (first.version, second.version) == (1, 2)
    again = alice.says(Action.PUBLISH, at=NOW, name="m", manifestSha256=hex0x(manifest_digest(second)))
    with pytest.raises(Conflict, match="the next is 3"):
        await hub.act(again, encode_manifest(second))
    assert [row.manifest for row in await hub.store.versions("alice", "m")] == [second, first]
    assert (await hub.store.by_digest(manifest_digest(first))).manifest == first


async def test_a_manifest_that_is_not_what_the_files_are_is_refused(hub: Hub, alice: Publisher) -> None:
    true = await alice.publish(hub, "m", onnx_files.dynamically_quantised(), at=NOW)
    lie = replace(true, version=2, dynamic_quantisation=False)
    said = alice.says(Action.PUBLISH, at=NOW, name="m", manifestSha256=hex0x(manifest_digest(lie)))
    with pytest.raises(InvalidInput, match="not what the files are"):
        await hub.act(said, encode_manifest(lie))
    with pytest.raises(InvalidInput, match="not the manifest's"):
        await hub.act(said, encode_manifest(replace(true, version=2)))


async def test_an_alias_moves_and_rolls_back_with_its_history(hub: Hub, alice: Publisher) -> None:
    for scale in (1.0, 2.0, 3.0):
        await alice.publish(hub, "m", onnx_files.linear(scale=scale), at=NOW)
    with pytest.raises(NotFound):
        await resolved(hub, "alice/m")
    for version in (1, 3, 2):
        await move(hub, alice, version)
        assert await resolved(hub, "alice/m") == await resolved(hub, "alice/m@prod") == version
    await move(hub, alice, 3, alias="canary")
    assert [(item.version, item.previous) for item in await hub.store.moves("alice", "m", "prod")] == [(2, 3), (3, 1), (1, None)]
    assert await resolved(hub, "alice/m@3") == await resolved(hub, "alice/m@canary") == 3
    with pytest.raises(NotFound):
        await move(hub, alice, 9)


async def test_an_alias_does_not_break_its_callers_unless_that_is_said(hub: Hub, alice: Publisher) -> None:
    await alice.publish(hub, "m", onnx_files.linear(), at=NOW)
    await alice.publish(hub, "m", onnx_files.linear(width=5, name="z"), at=NOW)
    await move(hub, alice, 1)
    with pytest.raises(Conflict, match="input x: is gone; input z: is new"):
        await move(hub, alice, 2)
    assert await resolved(hub, "alice/m") == 1
    await move(hub, alice, 2, breaking=True)
    assert await resolved(hub, "alice/m") == 2


async def test_a_version_in_use_is_not_deleted_and_a_deleted_number_is_not_given_again(hub: Hub, alice: Publisher) -> None:
    await alice.publish(hub, "m", onnx_files.linear(), at=NOW)
    await alice.publish(hub, "m", onnx_files.linear(scale=2.0), at=NOW)
    await move(hub, alice, 2)
    with pytest.raises(Conflict, match="in use: prod"):
        await hub.act(alice.says(Action.DELETE, at=NOW, name="m", version=2))
    await move(hub, alice, 1)
    await hub.act(alice.says(Action.DELETE, at=NOW, name="m", version=2))
    with pytest.raises(NotFound):
        await resolved(hub, "alice/m@2")
    with pytest.raises(NotFound):
        await move(hub, alice, 2)


async def test_prices_keep_the_ones_before_for_payments_under_way(hub: Hub, alice: Publisher) -> None:
    await alice.publish(hub, "m", onnx_files.linear(), at=NOW)
    await hub.act(alice.says(Action.PRICE, at=NOW, name="m", prices=PRICES))
    await hub.act(alice.says(Action.PRICE, at=NOW, name="m", prices={**PRICES, "rate": {"request": "2000"}}))
    model = await hub.store.model("alice", "m")
    assert model.prices is not None
    assert model.previous_prices is not None
    assert (model.prices.rate.request, model.previous_prices.rate.request, model.priced_at) == (2000, 1000, NOW)
    assert model.prices.rate_of("zkml").request == 5000
    for wrong in ({**PRICES, "rate": {"request": "-1"}}, {**PRICES, "rate": {"request": 1}}, {**PRICES, "extra": 1}):
        with pytest.raises(InvalidInput):
            await hub.act(alice.says(Action.PRICE, at=NOW, name="m", prices=wrong))


async def test_deprecation_says_why_and_can_be_taken_back(hub: Hub, alice: Publisher) -> None:
    await alice.publish(hub, "m", onnx_files.linear(), at=NOW)
    for reason in ("use 2", ""):
        await hub.act(alice.says(Action.DEPRECATE, at=NOW, name="m", version=1, reason=reason))
        assert (await hub.store.versions("alice", "m"))[0].deprecated == (reason or None)


async def test_a_name_can_be_given_away(hub: Hub, alice: Publisher) -> None:
    bob = Publisher("alice")
    await hub.act(alice.says(Action.TRANSFER, at=NOW, to=hex0x(bob.address)))
    with pytest.raises(Forbidden):
        await hub.act(alice.says(Action.TRANSFER, at=NOW, to=hex0x(alice.address)))
    await bob.publish(hub, "m", onnx_files.linear(), at=NOW)


async def test_models_are_paged_and_searched(hub: Hub, alice: Publisher) -> None:
    for name in ("aa", "bb", "cc"):
        await alice.publish(hub, name, onnx_files.linear(), at=NOW, description=f"Fraud 100% {name.upper()}")
    first = await hub.store.page(limit=2)
    rest = await hub.store.page(limit=2, after=(first[-1].publisher, first[-1].name))
    assert [row.name for row in (*first, *rest)] == ["aa", "bb", "cc"]
    assert [row.name for row in await hub.store.page(search="FRAUD bb")] == ["bb"]
    assert [row.name for row in await hub.store.page(search="100%")] == ["aa", "bb", "cc"]
    assert await hub.store.page(search="1%0") == []
    assert first[0].description == "Fraud 100% AA"
    assert await hub.store.page(publisher="bob") == []
