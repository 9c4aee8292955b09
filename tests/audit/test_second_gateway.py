"""Second reading: one API key, or one replica, against the others (threats 23, 25)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from placet.core import limits, wire
from placet.core.bus import InProcessBus
from placet.core.calls import parse_signature
from placet.core.types import ZERO_HASH, Hash32
from placet.gateway.batcher import Asked
from placet.gateway.store import TaskRow
from tests.audit import rig
from tests.audit.test_gateway import _asked, _batcher, _Chain, _end
from tests.support.authorization import CLIENT
from tests.support.gateway import Stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path)
    await made.open()
    yield made
    await made.close()


def _long(asked: Asked, data_bytes: int) -> Asked:
    """The same with a long name of a function and calldata: 512 bytes for everything but data are not enough for it."""
    signature = "f" * (limits.MAX_FUNCTION_SIGNATURE_BYTES - 2) + "()"
    data = parse_signature(signature).selector + bytes(data_bytes - 4)
    intent = replace(asked.task.intent, function_signature=signature, data=data)
    return replace(asked, task=replace(asked.task, intent=intent))


async def test_23_a_batch_that_is_sent_is_one_that_readers_take() -> None:
    """`Asked.size` counts less than a task takes (a long signature text, attachments): the batch is refused whole, Alice's task with it."""
    bus = InProcessBus()
    await bus.start()
    batcher, sent = _batcher(_Chain(rig.operator_set(rig.identities()), {rig.CLIENT: rig.pins()}), bus)
    batcher._max_waiting = 1000
    mallory = [_long(_asked("mallory", number, number), (limits.MAX_BATCH_BYTES - 600) // 63 - 512) for number in range(63)]
    tasks = [asyncio.create_task(batcher.submit(asked)) for asked in (*mallory, _asked("alice", 99, 99))]
    try:
        await asyncio.wait(tasks, timeout=5.0)
        assert sum(len(context.task_ids) for context in sent) == 64
        for context in sent:
            wire.decode_batch(wire.encode_batch(context.batch))
    finally:
        await _end(batcher, tasks)
        await bus.stop()


async def test_23_a_recorded_batch_that_cannot_be_read_does_not_keep_the_gateway_down(stage: Stage) -> None:
    """What the test above leaves in the database: after a restart within 75 s the gateway never starts again: nobody fails the row."""
    context = stage.world.batch(1)
    unreadable = b"\x00" * (limits.MAX_BATCH_BYTES + 4097)
    now = int(stage.clock())
    row = TaskRow(
        context.task_ids[0], stage.tenant.id, context.id, unreadable, 0, Hash32(b"\x01" * 32), ZERO_HASH, "submitted", None, now, now + 75
    )
    await stage.gateway.store.add_tasks([row])
    await stage.restart()
    answer = await stage.gateway.submit(5)
    assert answer.status == 200


async def test_23_a_recorded_batch_that_cannot_be_read_stops_no_sweep(stage: Stage) -> None:
    """Another replica's unreadable batch, older than 15 s: each sweep ends there, before it fails what is long over here."""
    stage.answer = lambda context: None
    asked = await stage.gateway.submit(1, headers={"prefer": "respond-async"})
    context = stage.world.batch(1)
    now = int(stage.clock())
    row = TaskRow(
        context.task_ids[0], "other", context.id, b"\xff" * 64, 0, Hash32(b"\x01" * 32), ZERO_HASH, "submitted", None, now, now + 75
    )
    await stage.gateway.store.add_tasks([row])
    stage.clock.now += limits.RESULT_WITHIN_S + 5
    await stage.gateway.results.sweep()
    assert (await stage.task(asked.body["taskId"]))["stage"] == "failed"


async def test_25_a_repeated_request_has_its_answer_although_the_policy_changed(stage: Stage) -> None:
    """The answer was lost on its way, the owner's new policy became effective, and the caller sends the very same bytes again. It gets
    409 for ever: the hash of "the whole request" holds a policyId that is not in the request."""
    headers = {"idempotency-key": "once"}
    first = await stage.gateway.submit(1, headers=headers)
    assert first.status == 200
    stage.world.chain.pins[CLIENT] = replace(stage.world.chain.pins[CLIENT], policy_id=Hash32(b"\x99" * 32))
    await asyncio.sleep(0.25)  # pins are cached for 200 ms
    again = await stage.gateway.submit(1, headers=headers)
    assert again.status == 200, again.body
    assert again.body["taskId"] == first.body["taskId"]
