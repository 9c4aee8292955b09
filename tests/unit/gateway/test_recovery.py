"""What was recorded ends: whatever a gateway was doing when it died, whoever else died with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from placet.core import limits, topics, wire
from placet.core.batch import BatchContext
from placet.core.envelope import Kind, LocalBusSigner, open_envelope, seal
from placet.core.messages import SettlementEvent
from placet.core.types import Hash32, hex0x
from placet.gateway.store import TaskRow
from tests.support.authorization import CHAIN_ID, GATEWAY, eventually, records_of
from tests.support.gateway import Stage

SETTLEMENT = LocalBusSigner(b"s" * 32)
ASYNC = {"prefer": "respond-async"}


def silent(_: BatchContext) -> None:
    return None


async def recorded(stage: Stage, tasks: int = 1, *, age_s: int = 0) -> BatchContext:
    """A batch as a gateway leaves it that dies between writing it down and publishing it."""
    context = stage.world.batch(tasks, timestamp=int(stage.clock.now) - age_s)
    payload = wire.encode_batch(context.batch, {})
    rows = [
        TaskRow(
            context.task_ids[at],
            stage.tenant.id,
            context.id,
            payload if at == 0 else b"",
            at,
            Hash32(bytes([at]) * 32),
            Hash32(bytes([at]) * 32),
            "submitted",
            None,
            context.batch.timestamp,
            context.batch.timestamp + limits.RESULT_WITHIN_S,
        )
        for at in range(tasks)
    ]
    assert not await stage.gateway.store.add_tasks(rows)
    return context


async def test_a_batch_that_was_recorded_and_not_published_is_published_by_the_restart(stage: Stage) -> None:
    context = await recorded(stage, 2)
    await stage.restart()
    for task_id in context.task_ids:
        assert (await stage.ended(hex0x(task_id)))["stage"] == "certified"
    assert [found.id for found in await stage.batches()] == [context.id]


async def test_one_that_operators_would_not_take_any_more_is_failed_at_once(stage: Stage) -> None:
    context = await recorded(stage, 2, age_s=limits.CLOCK_SKEW_PAST_S + 5)
    await stage.restart()
    task = await stage.ended(hex0x(context.task_ids[1]))
    assert (task["stage"], task["result"]["error"], task["result"]["retryable"]) == ("failed", "timeout", True)
    assert "could publish" in task["result"]["message"]
    assert await stage.batches() == []


async def test_one_that_was_published_is_not_published_again(stage: Stage) -> None:
    stage.answer = silent
    context = await recorded(stage)
    await stage.gateway.batcher.send(context, wire.encode_batch(context.batch, {}))
    await stage.restart()
    await asyncio.sleep(0)
    assert len(await records_of(stage.bus, topics.TASKS)) == 1
    await stage.bus.publish(topics.ATTESTATIONS, context.id, stage.world.certified(context))
    assert (await stage.ended(hex0x(context.task_ids[0])))["stage"] == "certified"


async def test_a_result_that_came_while_nobody_was_there_is_found(stage: Stage) -> None:
    stage.answer = silent
    answer = await stage.gateway.submit(headers=ASYNC)
    (context,) = await stage.batches()
    await stage.kill(stage.gateway)
    await stage.bus.publish(topics.ATTESTATIONS, context.id, stage.world.certified(context))
    stage.clock.now += 3600  # an hour's outage
    stage.gateway = await stage.replica()
    assert (await stage.ended(answer.body["taskId"]))["stage"] == "certified"


async def test_also_when_only_a_later_task_of_its_batch_is_open(stage: Stage) -> None:
    stage.answer = silent
    context = await recorded(stage, 3)
    await stage.gateway.batcher.send(context, wire.encode_batch(context.batch, {}))
    await stage.restart()
    await stage.bus.publish(topics.ATTESTATIONS, context.id, stage.world.failed(context, [0]))
    await stage.ended(hex0x(context.task_ids[0]))
    await stage.kill(stage.gateway)
    await stage.bus.publish(topics.ATTESTATIONS, context.id, stage.world.certified(context, tasks=[1, 2]))
    stage.gateway = await stage.replica()
    assert [(await stage.ended(hex0x(task_id)))["stage"] for task_id in context.task_ids] == ["failed", "certified", "certified"]


async def test_19_the_first_result_of_a_task_is_the_one_also_over_a_restart(stage: Stage) -> None:
    stage.answer = silent
    answer = await stage.gateway.submit(headers=ASYNC)
    (context,) = await stage.batches()
    await stage.bus.publish(topics.ATTESTATIONS, context.id, stage.world.failed(context))
    assert (await stage.ended(answer.body["taskId"]))["stage"] == "failed"
    await stage.bus.publish(topics.ATTESTATIONS, context.id, stage.world.certified(context))
    await stage.restart()
    await stage.gateway.submit(1, headers=ASYNC)
    assert (await stage.task(answer.body["taskId"]))["stage"] == "failed"


async def test_19_the_first_result_that_was_written_down_stands_and_is_what_everybody_is_told(stage: Stage) -> None:
    context = await recorded(stage)
    store, task_id = stage.gateway.store, context.task_ids[0]
    first, second = {"taskId": "0x", "error": "timeout"}, {"taskId": "0x", "decision": "allow"}
    assert await store.set_results([(task_id, "failed", first, 1)]) == {task_id: first}
    assert await store.set_results([(task_id, "certified", second, 2)]) == {task_id: first}
    row = await store.task_any(task_id)
    assert row is not None
    assert (row.stage, row.result) == ("failed", first)


async def test_a_task_without_any_result_is_failed_when_none_can_come_any_more(stage: Stage) -> None:
    stage.answer = silent
    answer = await stage.gateway.submit(headers=ASYNC)
    (context,) = await stage.batches()
    waiting = asyncio.create_task(stage.gateway.submit())
    stage.clock.now += limits.RESULT_WITHIN_S - 5
    await stage.gateway.results.sweep()
    assert (await stage.task(answer.body["taskId"]))["stage"] == "submitted"
    stage.clock.now += 10
    await stage.gateway.results.sweep()
    assert (await stage.ended(answer.body["taskId"]))["result"]["error"] == "timeout"
    assert (await waiting).status in (200, 504)
    await stage.bus.publish(topics.ATTESTATIONS, context.id, stage.world.certified(context))
    await stage.gateway.results.sweep()
    assert (await stage.task(answer.body["taskId"]))["stage"] == "failed"


async def test_open_batches_of_a_replica_that_is_gone_are_taken_up_by_another(stage: Stage) -> None:
    stage.answer = silent
    other = await stage.replica()  # which finds nothing open when it starts
    answer = await stage.gateway.submit(headers=ASYNC)
    (context,) = await stage.batches()
    await stage.kill(stage.gateway)
    await stage.bus.publish(topics.ATTESTATIONS, context.id, stage.world.certified(context))
    stage.gateway = other
    stage.clock.now += 20
    await other.results.sweep()
    assert (await stage.ended(answer.body["taskId"]))["stage"] == "certified"


async def test_25_two_replicas_asked_the_same_at_once_make_one_task(stage: Stage) -> None:
    """With and without a name for the request; both answer, and others in the loser's batch are not its losers."""
    other = await stage.replica()
    for headers, numbers in (({"idempotency-key": "order-1"}, (1, 2)), ({}, (3, 4))):
        same, alone = numbers
        for replica in (stage.gateway, other):
            replica.batcher._wait_s = 0.05
        answers = await asyncio.gather(
            *(replica.submit(same, headers=headers) for replica in (stage.gateway, other)),
            other.submit(alone),
        )
        assert [answer.body["decision"] for answer in answers] == ["allow"] * 3
        assert answers[0].body["taskId"] == answers[1].body["taskId"] != answers[2].body["taskId"]
    assert sum(len(context.task_ids) for context in await stage.batches()) == 4


async def test_a_young_batch_of_a_living_replica_is_left_to_it(stage: Stage) -> None:
    stage.answer = silent
    await stage.gateway.submit(headers=ASYNC)
    other = await stage.replica()
    (context,) = await stage.batches()
    other.results._pending.clear()
    await other.results.sweep()
    assert context.id not in other.results._pending


async def test_a_result_waits_for_a_database_that_is_away(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError("gone"), OperationalError("update", {}, Exception("gone"))]
    genuine = stage.gateway.store.set_results

    async def set_results(results: Any) -> Any:
        if failures:
            raise failures.pop()
        return await genuine(results)

    monkeypatch.setattr(stage.gateway.store, "set_results", set_results)
    assert (await stage.gateway.submit()).body["decision"] == "allow"


async def test_what_is_no_attestation_is_passed_over(stage: Stage) -> None:
    stage.answer = silent
    answer = await stage.gateway.submit(headers=ASYNC)
    (context,) = await stage.batches()
    world = stage.world
    foreign = BatchContext.of(replace(context.batch, timestamp=context.batch.timestamp + 1))
    sender = SETTLEMENT.public_key
    for envelope in (
        b"\xff garbage",
        world.certified(foreign),
        world.certified(context, signers=2),
        world.by_aggregator(Kind.ATTESTATION_GROUP, context, b"\x0a\xff\xff"),
        seal(SETTLEMENT, kind=Kind.GROUP_FAILURE, chain_id=CHAIN_ID, sender=sender, payload=b"", batch_id=context.id),
    ):
        await stage.bus.publish(topics.ATTESTATIONS, context.id, envelope)
    await stage.bus.publish(topics.ATTESTATIONS, context.id, world.certified(context))
    assert (await stage.ended(answer.body["taskId"]))["stage"] == "certified"


# --- what settlement says


async def settled(stage: Stage, task_id: str, status: str, signer: LocalBusSigner = SETTLEMENT) -> None:
    reference = bytes.fromhex(task_id[2:])
    event = SettlementEvent(reference, status, b"\x11" * 32, 7, 21_000, "")
    sender = signer.public_key
    envelope = seal(signer, kind=Kind.SETTLEMENT_EVENT, chain_id=CHAIN_ID, sender=sender, payload=wire.encode_settlement_event(event))
    await stage.bus.publish(topics.SETTLEMENTS, reference, envelope)


@pytest.fixture
async def settling(stage: Stage) -> Stage:
    stage.settlements = frozenset({SETTLEMENT.public_key})
    await stage.restart()
    return stage


async def settlement_of(stage: Stage, task_id: str, status: str) -> dict[str, Any]:
    async def there() -> dict[str, Any] | None:
        found = (await stage.task(task_id)).get("settlement")
        return dict(found) if found and found["status"] == status else None

    return dict(await eventually(there, f"settlement is {status}"))


async def test_an_event_that_came_while_nobody_was_there_is_noted(settling: Stage) -> None:
    task_id = (await settling.gateway.submit()).body["taskId"]
    await settling.kill(settling.gateway)
    await settled(settling, task_id, "submitted")
    await settled(settling, task_id, "confirmed")
    settling.clock.now += 3600
    settling.gateway = await settling.replica()
    assert (await settlement_of(settling, task_id, "confirmed"))["gasUsed"] == 21_000


async def test_a_final_outcome_is_not_overwritten_by_an_earlier_one_that_comes_late_nor_by_a_stranger(settling: Stage) -> None:
    task_id = (await settling.gateway.submit()).body["taskId"]
    await settled(settling, task_id, "reverted", LocalBusSigner(b"x" * 32))
    await settled(settling, task_id, "confirmed")
    await settlement_of(settling, task_id, "confirmed")
    await settled(settling, task_id, "submitted")
    await settled(settling, task_id, "refused")
    other = (await settling.gateway.submit(1)).body["taskId"]
    await settled(settling, other, "confirmed")
    await settlement_of(settling, other, "confirmed")
    assert (await settling.task(task_id))["settlement"]["status"] == "confirmed"


async def test_answers_are_forgotten_a_month_after_they_expired(stage: Stage) -> None:
    ended = Hash32(bytes.fromhex((await stage.gateway.submit(1)).body["taskId"][2:]))
    stage.answer = silent
    still_open = Hash32(bytes.fromhex((await stage.gateway.submit(2, headers=ASYNC)).body["taskId"][2:]))
    store = stage.gateway.store
    expired = (await store.task_any(ended)).expires_at  # type: ignore[union-attr]
    await store.prune(expired)
    assert await store.task_any(ended) is not None
    await store.prune(expired + 1)
    assert await store.task_any(ended) is None
    assert await store.task_any(still_open) is not None, "what has no answer is kept"


# --- batches


async def test_11_one_task_id_is_never_in_two_batches(stage: Stage) -> None:
    taken = await recorded(stage, 1)  # another replica has sent this very task in this second
    body = stage.body(0, intent={"deadline": taken.batch.tasks[0].intent.deadline})
    answer = await stage.gateway.request("POST", "/api/v1/intents", body)
    assert answer.body["decision"] == "allow"
    assert answer.body["taskId"] != hex0x(taken.task_ids[0])


async def test_tasks_of_the_largest_size_never_make_a_batch_that_nobody_reads(stage: Stage) -> None:
    stage.answer = silent
    stage.gateway.batcher._wait_s = 0.3  # so that many wait for one batch
    assert (await stage.gateway.submit(99, headers=ASYNC)).status == 202
    large: dict[str, Any] = {"args": {"a": "x" * 60_000}, "signature": ""}
    data = "0x" + (stage.world.intent().data[:4] + b"\x00" * 30_000).hex()
    answers = await asyncio.gather(
        *(stage.gateway.submit(number, headers=ASYNC, intent={"nonce": str(number), "data": data}, **large) for number in range(14))
    )
    assert {answer.status for answer in answers} == {202}
    sizes = []
    for record in await records_of(stage.bus, topics.TASKS):
        message = open_envelope(record.value or b"", lambda kind, sender: GATEWAY.public_key)
        batch, _ = wire.decode_batch(message.payload)  # every reader's own limit
        sizes.append(len(batch.tasks))
    assert sum(sizes) == 15
    assert max(sizes) > 2


async def test_many_tasks_travel_together(stage: Stage) -> None:
    stage.answer = silent
    answers = await asyncio.gather(*(stage.gateway.submit(number, headers=ASYNC) for number in range(200)))
    assert {answer.status for answer in answers} == {202}
    sizes = [len(context.batch.tasks) for context in await stage.batches()]
    assert sum(sizes) == 200
    assert max(sizes) <= limits.MAX_TASKS_PER_BATCH
    assert len(sizes) < 60


@pytest.mark.parametrize("trouble", [OSError("10.1.2.3"), OperationalError("insert", {}, Exception("secret"))], ids=["socket", "database"])
async def test_a_database_that_is_away_when_a_batch_is_written_down_is_a_503(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    genuine, failures = stage.gateway.store.add_tasks, [trouble]

    async def add_tasks(rows: Any) -> Any:
        if failures:
            raise failures.pop()
        return await genuine(rows)

    monkeypatch.setattr(stage.gateway.store, "add_tasks", add_tasks)
    named = {"idempotency-key": "order-1"}
    answer = await stage.gateway.submit(headers=named)
    assert (answer.status, answer.body["code"], answer.body["retryable"]) == (503, "unavailable", True)
    assert not any(inside in str(answer.body) for inside in ("10.1.2.3", "secret"))
    assert (await stage.gateway.submit(headers=named)).body["decision"] == "allow"
