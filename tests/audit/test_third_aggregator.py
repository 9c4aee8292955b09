"""Third reading: one operator of four before the aggregator, and what it can certify alone for a client that lets it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from placet.core import bls, jsonx, topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import Record
from placet.core.db import connect, migrate
from placet.core.decision import decide, decision_content
from placet.core.digests import certificate_digest, leaf_struct_hash
from placet.core.envelope import Kind, open_envelope, seal
from placet.core.errors import Unavailable
from placet.core.keccak import keccak256
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import DecidedTask, GroupResponse, Observation, Response
from placet.core.types import ZERO_HASH, Certificate, Hash32
from placet.gateway.results import Results
from placet.gateway.store import Store, TaskRow
from tests.audit import rig
from tests.support.waiting import until


def _answer(who: rig.Identity, context: BatchContext, decided: Sequence[DecidedTask], digest: Hash32 = ZERO_HASH) -> bytes:
    root, _ = root_and_proofs([leaf_hash(leaf_struct_hash(item.leaf)) for item in decided])
    certificate = Certificate(root, len(decided), context.batch.epoch, context.batch.timestamp)
    signature = bls.sign(who.secret, certificate_digest(certificate, rig.CHAIN, rig.VALIDATOR))
    payload = wire.encode_response(Response((GroupResponse(tuple(decided), signature),), (), "audit"))
    return seal(
        who.bus,
        kind=Kind.RESPONSE,
        chain_id=rig.CHAIN,
        sender=who.address,
        payload=payload,
        batch_id=context.id,
        proposal_digest=digest,
    )


def _decide(context: BatchContext, decision: bytes, *, allow: bool, observations: Sequence[bytes] = ()) -> DecidedTask:
    return decide(context, 0, rig.policy(), sequence=0, allow=allow, decision=decision, outputs=(), observations=observations)[0]


async def _result(network: rig.AggregatorRig, context: BatchContext) -> Kind | None:
    """What the first record on the attestations topic for this batch is."""
    for _ in range(150):
        for record in await network.published(topics.ATTESTATIONS):
            if record.key == context.id:
                return open_envelope(record.value or b"", lambda kind, sender: sender).kind
        await asyncio.sleep(0.02)
    return None


async def test_24_replayed_messages_do_not_silence_the_honest_who_sent_them() -> None:
    """The Proposal shows everybody the honest observations. One operator publishes them again, 16 times: nothing is forged. Then the honest
    answers count as "more than 16 messages of one operator" and are not looked at."""
    members, context = rig.identities(), rig.batch(rig.task(), observe_for_ms=300)
    liar, honest = members[0], members[1:]
    async with rig.aggregator(rig.operator_set(members), {rig.CLIENT: rig.pins()}, respond_within_s=1.0) as network:
        observations = [rig.sealed_observation(who, context, rig.observed(context)) for who in members]
        await rig.give(network, context, observations)
        proposal = await network.first(topics.PROPOSALS)
        assert proposal is not None
        digest = Hash32(keccak256(open_envelope(proposal.value or b"", lambda kind, sender: sender).payload))
        listed = wire.decode_proposal(open_envelope(proposal.value or b"", lambda kind, sender: sender).payload).observations
        assert len(listed) == 4
        for envelope in listed:  # what `liar` read off the proposals topic
            if (
                open_envelope(envelope, lambda kind, sender: next(m.operator.bus_key for m in members if m.address == sender)).sender
                != liar.address
            ):
                for _ in range(16):
                    await network.bus.publish(topics.OBSERVATIONS, context.id, envelope)
        item = _decide(context, decision_content(True, [], None), allow=True, observations=listed)
        for who in honest:
            await network.bus.publish(topics.RESPONSES, context.id, _answer(who, context, [item], digest))
        assert await _result(network, context) is Kind.ATTESTATION_GROUP


async def test_16_one_operators_early_messages_leave_room_for_the_others() -> None:
    """Partitions of two topics are fetched in any order: an answer may come before its batch. One operator's signed messages for batches
    that do not exist (64 of 1 MiB, every 45 s) take all the room for those, and the honest answers are dropped for good."""
    members, context = rig.identities(), rig.batch(rig.task())
    liar, honest = members[0], members[1:]
    async with rig.aggregator(rig.operator_set(members), {rig.CLIENT: rig.pins()}, respond_within_s=1.0) as network:
        network.service._mailboxes.learn(rig.operator_set(members))  # as it does after its first batch
        for number in range(66 + 300):
            filler = seal(
                liar.bus,
                kind=Kind.OBSERVATION,
                chain_id=rig.CHAIN,
                sender=liar.address,
                payload=bytes((1 << 20) - 4096 if number < 66 else 0),
                batch_id=Hash32((number + 1).to_bytes(32, "big")),
            )
            await network.bus.publish(topics.OBSERVATIONS, (number + 1).to_bytes(32, "big"), filler)
        await until(lambda: network.service._mailboxes.held_bytes > (62 << 20), "the room is full", 20.0)
        for who in honest:  # in time, and before the aggregator has fetched the batch
            await network.bus.publish(topics.RESPONSES, context.id, rig.sealed_response(who, context, rig.policy()))
        await asyncio.sleep(0.3)
        await network.bus.publish(topics.TASKS, context.id, rig.sealed_batch(context))
        assert await _result(network, context) is Kind.ATTESTATION_GROUP


async def test_records_of_a_batch_that_cannot_be_opened_yet_take_no_memory() -> None:
    """Audit 8 bounds what waits for a batch that was not read. What comes for one that was read, and whose state the node does not give
    just now, is kept whole and unseen, whoever sent it: a mebibyte a record, for 45 s, at the broker's rate."""
    members, context = rig.identities(), rig.batch(rig.task())
    with pytest.MonkeyPatch.context() as patch:

        async def away(*_: Any, **__: Any) -> Any:
            raise Unavailable("no RPC node answers")

        patch.setattr(rig.StubReader, "at", away)
        async with rig.aggregator(rig.operator_set(members), {rig.CLIENT: rig.pins()}) as network:
            await network.bus.publish(topics.TASKS, context.id, rig.sealed_batch(context))
            await until(lambda: context.id in network.service._actors, "the batch was read")
            actor = network.service._actors[context.id]
            for number in range(100):
                await network.bus.publish(topics.OBSERVATIONS, context.id, bytes([number]) * 1_000_000)
            waiting = network.service._waiting
            await until(lambda: sum(map(len, waiting.values())) >= 101, "every record was taken or dropped")
            assert len(actor.mailbox) == 0, "unsigned records wait"
            assert network.service._mailboxes.held_bytes == 0


async def test_16_one_operators_hostile_blobs_do_not_stop_the_aggregator() -> None:
    """A blob of 4 MiB may hold two million empty entries: 0.18 s and 40 MB to parse, on the event loop, and it counts as not heard. Sixteen
    messages a batch are looked at. At one batch a second one operator takes three seconds of the aggregator in each."""
    members, context = rig.identities(), rig.batch(rig.task(), observe_for_ms=5_000)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            then = loop.time()
            await asyncio.sleep(0.005)
            longest = max(longest, loop.time() - then)

    async with rig.aggregator(rig.operator_set(members), {rig.CLIENT: rig.pins()}) as network:
        hostile = []
        for number in range(16):
            blob = b"\x0a\x00" * ((2 << 20) - 8) + b"\x0a\x01" + bytes([8 + 0]) * 1 + bytes([number])
            address = await network.objects.put(blob)
            hostile.append(rig.sealed_observation(members[0], context, Observation((), (), "", address)))
        await network.bus.publish(topics.TASKS, context.id, rig.sealed_batch(context))
        watching = asyncio.create_task(watch())
        started = asyncio.get_running_loop().time()
        for envelope in hostile:
            await network.bus.publish(topics.OBSERVATIONS, context.id, envelope)
        for who in members[1:]:
            await network.bus.publish(topics.OBSERVATIONS, context.id, rig.sealed_observation(who, context, rig.observed(context)))
        proposal = await network.first(topics.PROPOSALS, within_s=20.0)
        took = asyncio.get_running_loop().time() - started
        watching.cancel()
        assert proposal is not None
        assert took < 1.0, f"the Proposal took {took:.1f} s; the event loop stood still for {longest:.2f} s at a time"


async def test_16_who_signs_something_else_is_not_counted_on_either() -> None:
    """Decision 9.3: who observed what the others did and then signed nothing is not counted among "the same bytes" for ten minutes. A liar
    that signs any other leaf of the task (here: the opposite) has signed something, so it is counted on again, in every batch: with one
    honest operator a quarter of a second slower than the rest, it fails all of them."""
    members = rig.identities()
    liar, quick, slow = members[0], members[1:3], members[3]
    async with rig.aggregator(rig.operator_set(members), {rig.CLIENT: rig.pins()}, respond_within_s=1.0) as network:
        for number in range(2):
            context = rig.batch(rig.task(number), observe_for_ms=3_000)
            await rig.give(network, context, [rig.sealed_observation(who, context, rig.observed(context)) for who in (liar, *quick)])
            await asyncio.sleep(0.8)
            await network.bus.publish(topics.OBSERVATIONS, context.id, rig.sealed_observation(slow, context, rig.observed(context)))
            found: list[Record] = []
            for _ in range(200):
                found = [record for record in await network.published(topics.PROPOSALS) if record.key == context.id]
                if found:
                    break
                await asyncio.sleep(0.02)
            payload = open_envelope(found[0].value or b"", lambda kind, sender: sender).payload
            listed, digest = wire.decode_proposal(payload).observations, Hash32(keccak256(payload))
            lie = _decide(context, decision_content(False, [], None), allow=False, observations=listed)
            await network.bus.publish(topics.RESPONSES, context.id, _answer(liar, context, [lie], digest))
            item = _decide(context, decision_content(True, [], None), allow=True, observations=listed)
            senders = {
                open_envelope(raw, lambda k, s: next(m.operator.bus_key for m in members if m.address == s)).sender for raw in listed
            }
            for who in (*quick, slow):
                if who.address in senders:
                    await network.bus.publish(topics.RESPONSES, context.id, _answer(who, context, [item], digest))
            ended = await _result(network, context)
        assert ended is Kind.ATTESTATION_GROUP, "the second batch fails like the first"


# --- one operator and a client of the attacker's own, whose quorum that operator is


class _Chain(rig.StubReader):
    pass


@pytest.mark.parametrize("poison", ["reasons", "numbers", "expiration"])
async def test_16_what_one_operator_certifies_for_its_own_client_ends_no_gateway(tmp_path: Path, poison: str) -> None:
    """A client of quorum 2500 bps is anybody's to deploy, and one operator of four is its quorum. What that operator signs for it is
    "certified", so the gateway shows it: reasons that are no list, numbers that fit no JSON, an expiration that fits no column."""
    members = rig.identities()
    liar = members[0]
    clients = {rig.CLIENT: rig.pins(2500), rig.OTHER_CLIENT: rig.pins()}
    context = rig.batch(rig.task(deadline=2**64 - 1))
    document: dict[str, Any] = {"allow": False, "reasons": [], "value": None}
    if poison == "reasons":
        document["reasons"] = 7
    elif poison == "numbers":
        document["reasons"] = [2**70]
    item = _decide(context, jsonx.canonical(document), allow=False)
    if poison == "expiration":
        item = replace(item, leaf=replace(item.leaf, expiration=2**64 - 1))
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}")
    await migrate(engine, "placet.gateway.migrations")
    store = Store(engine)
    async with rig.aggregator(rig.operator_set(members), clients) as network:
        reader = _Chain(rig.operator_set(members), clients)
        results = Results(
            bus=network.bus, chains={rig.CHAIN: cast(Any, reader)}, store=store, aggregators=frozenset({rig.AGGREGATOR.public_key})
        )

        async def resend(context: BatchContext, payload: bytes) -> None: ...

        await results.start(resend)
        running = asyncio.create_task(results.run())
        try:
            bad, good = context, rig.batch(rig.task(1, client=rig.OTHER_CLIENT))
            for batch in (bad, good):
                row = TaskRow(
                    batch.task_ids[0], "t", batch.id, wire.encode_batch(batch.batch, {}), 0, batch.id, batch.id, "submitted", None, 1, 2**40
                )
                await store.add_tasks([row])
                results.expect(batch, reader.state)
            await network.bus.publish(topics.TASKS, bad.id, rig.sealed_batch(bad))
            await network.bus.publish(topics.RESPONSES, bad.id, _answer(liar, bad, [item]))
            assert await _result(network, bad) is not Kind.ATTESTATION_GROUP  # the honest aggregator certifies no such thing
            await network.bus.publish(topics.TASKS, good.id, rig.sealed_batch(good))
            for who in members:
                await network.bus.publish(topics.RESPONSES, good.id, rig.sealed_response(who, good, rig.policy()))
            assert await _result(network, good) is Kind.ATTESTATION_GROUP
            for _ in range(100):
                if running.done() or not results.is_open(good.id):
                    break
                await asyncio.sleep(0.02)
            assert not running.done(), f"the gateway's results ended: {running.exception()!r}"
            assert not results.is_open(good.id), "the other tenant has its answer"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await results.stop()
            await engine.dispose()
