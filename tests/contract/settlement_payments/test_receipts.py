"""Receipts from the bus to a ledger on a chain: each under one root, included where settlement says, posted once."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

import grpc
import pytest

from placet.core import receipts as core
from placet.core import topics
from placet.core.bus import InProcessBus
from placet.core.envelope import Kind, LocalBusSigner, seal
from placet.core.errors import NotFound
from placet.core.evm.contracts import encode_call
from placet.core.gen import inference_pb2
from placet.core.gen import payment_pb2 as pb
from placet.core.keccak import keccak256
from placet.core.objects import ObjectStore
from placet.core.receipts import Execution, Finish, Mode, ModelRef, Receipt
from placet.core.rpc_errors import from_rpc
from placet.core.types import Hash32, hex0x
from tests.contract.settlement_payments.world import INFERENCE, World, waited
from tests.support.authorization import dead_letters

NODE = LocalBusSigner(b"n" * 32)


def receipt(*, finished_at: int | None = None) -> Receipt:
    now = int(time.time() * 1000) if finished_at is None else finished_at
    made = Receipt(
        id=Hash32(secrets.token_bytes(32)),
        surface="tensors",
        request_sha256=Hash32(b"\2" * 32),
        response_sha256=Hash32(b"\3" * 32),
        model=ModelRef("alice", "fraud", 1, Hash32(b"\4" * 32)),
        mode=Mode.VANILLA,
        execution=Execution("onnxruntime 1.31.0", "CPUExecutionProvider"),
        prompt_tokens=0,
        completion_tokens=0,
        rows=1,
        finish=Finish.COMPLETE,
        started_at=now - 5,
        finished_at=now,
        node=None,
        key_id=Hash32(bytes(32)),
    )
    return core.sign(made, NODE)


async def publish(world: World, *found: Receipt, signer: LocalBusSigner = INFERENCE) -> None:
    bus = InProcessBus(world.broker)
    await bus.start()
    for item in found:
        payload = inference_pb2.InferenceReceipt(receipt=core.encode(item), tenant="t").SerializeToString()
        envelope = seal(signer, kind=Kind.INFERENCE_RECEIPT, chain_id=0, sender=signer.public_key, payload=payload)
        await bus.publish(topics.RECEIPTS, item.model.sha256, envelope)
    await bus.stop()


async def posted(gateway: Any, item: Receipt) -> pb.GetInclusionResponse:
    async def look() -> Any:
        try:
            return await gateway.GetInclusion(pb.GetInclusionRequest(receipt_id=item.id))
        except grpc.aio.AioRpcError as error:
            assert isinstance(from_rpc(error), NotFound)
            return None

    found: pb.GetInclusionResponse = await waited(look, lambda answer: answer is not None and answer.posted)
    return found


async def is_included(world: World, found: pb.GetInclusionResponse, digest: bytes, index: int) -> bool:
    call = encode_call("verify(uint256,bytes32,uint256,bytes32[])", found.root_index, digest, index, list(found.proof))
    return int.from_bytes(await world.rpc.eth_call(world.ledger, call), "big") == 1


async def roots(world: World) -> int:
    return int.from_bytes(await world.rpc.eth_call(world.ledger, encode_call("rootCount()")), "big")


async def test_every_receipt_is_included_under_one_root(world: World) -> None:
    gateway = await world.start()
    made = [receipt() for _ in range(9)]
    await publish(world, *made)
    found = [await posted(gateway, item) for item in made]
    for item, place in zip(made, found, strict=True):
        assert place.receipt_digest == core.digest_of(item)
        assert place.poster == world.keys["receipts"]
        assert await is_included(world, place, place.receipt_digest, place.index)
        assert not await is_included(world, place, bytes(32), place.index)
        assert not await is_included(world, place, place.receipt_digest, place.index + 1)
    counts = {bytes(place.root): place.count for place in found}
    assert sum(counts.values()) == 9, "four and four by number, one by time"
    assert max(counts.values()) == 4
    assert await roots(world) == len(counts) == await world.sent_by("receipts")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.GetInclusion(pb.GetInclusionRequest(receipt_id=bytes(32)))
    assert isinstance(from_rpc(caught.value), NotFound)


async def test_the_leaves_lie_in_the_object_store_under_their_root(world: World) -> None:
    gateway = await world.start()
    made = [receipt() for _ in range(3)]
    await publish(world, *made)
    place = await posted(gateway, made[0])
    objects = ObjectStore((world.folder / "objects").as_uri())
    document = json.loads(await objects.get_named(place.object_name, max_bytes=1 << 20))
    assert document["root"] == hex0x(place.root)
    leaves = {leaf["receipt"]: leaf["digest"] for leaf in document["leaves"]}
    assert leaves == {hex0x(item.id): hex0x(core.digest_of(item)) for item in made}
    assert document["leaves"][place.index] == {"receipt": hex0x(made[0].id), "digest": hex0x(place.receipt_digest)}
    logs = await world.rpc.logs(world.ledger, 0, (await world.rpc.block()).number)
    event = next(log for log in logs if place.root in log.topics)
    assert event.data[-32:] == keccak256(place.object_name.encode())
    assert int.from_bytes(event.data[64:96], "big") == max(item.finished_at for item in made) // 1000


async def test_receipts_are_under_one_root_whatever_is_delivered_again_or_restarted(world: World) -> None:
    await world.rpc.call("evm_setAutomine", [False])
    gateway = await world.start()
    made = [receipt() for _ in range(4)]
    await publish(world, *made, *made)
    await waited(lambda: world.rpc.call("txpool_status", []), lambda pool: int(pool["pending"], 16) > 0)
    await world.kill()
    await world.rpc.call("anvil_dropAllTransactions", [])
    await world.rpc.call("evm_setAutomine", [True])
    await publish(world, *made)
    gateway, second = await world.start(), await world.start()
    found = [await posted(gateway, item) for item in made]
    assert [await posted(second, item) for item in made] == found
    assert {place.root_index for place in found} == {0}
    assert await roots(world) == 1 == await world.sent_by("receipts")


async def test_what_is_no_receipt_of_ours_or_from_the_future_holds_up_nobody(world: World) -> None:
    gateway = await world.start()
    foreign, future, good = receipt(), receipt(finished_at=int(time.time() * 1000) + 3_600_000), receipt()
    await publish(world, foreign, signer=LocalBusSigner(b"x" * 32))
    await publish(world, future, good)
    await posted(gateway, good)
    bus = InProcessBus(world.broker)
    await bus.start()
    assert len(await dead_letters(bus, topics.RECEIPTS)) == 2
    await bus.stop()


async def test_a_poster_that_is_not_admitted_waits_and_posts_when_it_is(world: World) -> None:
    await world.chain.send(world.owner, world.ledger, encode_call("setPoster(address,bool)", world.keys["receipts"], False))
    gateway = await world.start()
    made = [receipt() for _ in range(4)]
    await publish(world, *made)

    async def under_a_root() -> bool:
        try:
            return not (await gateway.GetInclusion(pb.GetInclusionRequest(receipt_id=made[0].id))).posted
        except grpc.aio.AioRpcError:
            return False

    await waited(under_a_root, bool)
    assert await roots(world) == 0
    await world.chain.send(world.owner, world.ledger, encode_call("setPoster(address,bool)", world.keys["receipts"], True))
    await posted(gateway, made[0])
    assert await world.sent_by("receipts") == 1, "what would revert was not sent"
