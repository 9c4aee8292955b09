"""The signing log, on SQLite and PostgreSQL: what was committed is what leaves, and one leaf a task is all that is ever signed."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from placet.core import limits
from placet.core.envelope import Kind
from placet.core.types import ZERO_HASH, Address, Hash32
from placet.operator.signing_log import STALE_AFTER_S, LeafConflict, LeafEntry, SigningLog
from tests.support.databases import NewEngine

MIGRATIONS = "placet.operator.migrations"
ME, OTHER = Address(b"\x01" * 20), Address(b"\x02" * 20)
NOW = 1_800_000_000


def h(number: int) -> Hash32:
    return Hash32(number.to_bytes(32, "big"))


def leaf(task: int, content: int, **changes: object) -> LeafEntry:
    return LeafEntry(h(task), h(content), NOW + 300, **changes)  # type: ignore[arg-type]


async def replicas(database: NewEngine, count: int = 2) -> list[SigningLog]:
    logs = [SigningLog(await database(MIGRATIONS), ME) for _ in range(count)]
    for log in logs:
        await log.open(NOW)
    return logs


async def test_20_two_replicas_cannot_sign_two_leaves_for_one_task(database: NewEngine) -> None:
    first, second = await replicas(database)
    for task in range(20):
        outcomes = await asyncio.gather(
            first.commit_leaves([leaf(task, 1000 + task)]), second.commit_leaves([leaf(task, 2000 + task)]), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert len(refused) == 1
        assert isinstance(refused[0], LeafConflict)
        assert refused[0].tasks == {h(task)}


async def test_20_two_replicas_with_the_same_leaf_may_both_sign_it(database: NewEngine) -> None:
    first, second = await replicas(database)
    await asyncio.gather(first.commit_leaves([leaf(1, 5)]), second.commit_leaves([leaf(1, 5)]))


async def test_20_a_conflict_on_one_task_commits_none_of_the_others(database: NewEngine) -> None:
    first, second = await replicas(database)
    await first.commit_leaves([leaf(1, 1)])
    with pytest.raises(LeafConflict) as caught:
        await second.commit_leaves([leaf(0, 7), leaf(1, 2), leaf(2, 7)])
    assert caught.value.tasks == {h(1)}
    await first.commit_leaves([leaf(0, 8), leaf(2, 8)])  # nothing stands for these


async def test_20_overlapping_groups_in_any_order_do_not_block_each_other(database: NewEngine) -> None:
    first, second = await replicas(database)
    async with asyncio.timeout(20):
        for start in range(0, 100, 10):
            entries = [leaf(task, task) for task in range(start, start + 10)]
            await asyncio.gather(first.commit_leaves(entries), second.commit_leaves(entries[::-1]))


async def test_20_identities_do_not_share_leaves(database: NewEngine) -> None:
    engine = await database(MIGRATIONS)
    mine, others = SigningLog(engine, ME), SigningLog(engine, OTHER)
    await mine.commit_leaves([leaf(1, 1)])
    await others.commit_leaves([leaf(1, 2)])


async def test_20_a_redelivery_gets_the_bytes_that_were_committed_first(database: NewEngine) -> None:
    first, second = await replicas(database)
    stood = await asyncio.gather(
        first.commit_sent(h(1), Kind.OBSERVATION, b"mine", NOW), second.commit_sent(h(1), Kind.OBSERVATION, b"yours", NOW)
    )
    assert stood[0] == stood[1]
    assert await first.sent(h(1), Kind.OBSERVATION) == stood[0]
    assert await second.commit_sent(h(1), Kind.OBSERVATION, b"later", NOW) == stood[0]
    assert await first.sent(h(1), Kind.RESPONSE) is None
    assert await first.sent(h(2), Kind.OBSERVATION) is None


async def test_20_responses_to_different_proposals_are_kept_apart(database: NewEngine) -> None:
    (log,) = await replicas(database, 1)
    assert await log.commit_sent(h(1), Kind.RESPONSE, b"whole", NOW, ZERO_HASH) == b"whole"
    assert await log.commit_sent(h(1), Kind.RESPONSE, b"to nine", NOW, h(9)) == b"to nine"
    assert await log.sent(h(1), Kind.RESPONSE) == b"whole"


# --- an empty or older log


async def test_20_an_empty_log_signs_nothing_an_earlier_one_could_have_signed(database: NewEngine) -> None:
    log = SigningLog(await database(MIGRATIONS), ME)
    await log.open(NOW)
    # The earlier log may have signed until the end of this very second, and then a batch that was stamped two seconds ahead.
    assert log.not_before > NOW + limits.CLOCK_SKEW_FUTURE_S


async def test_20_a_log_in_use_is_opened_by_another_replica_without_delay(database: NewEngine) -> None:
    (first,) = await replicas(database, 1)
    await first.heartbeat(NOW + 60)
    second = SigningLog(await database(MIGRATIONS), ME)
    await second.open(NOW + 100)
    assert second.not_before == first.not_before <= NOW + 60


async def test_20_a_log_that_was_idle_for_long_is_treated_like_an_empty_one(database: NewEngine) -> None:
    await replicas(database, 1)
    restored = SigningLog(await database(MIGRATIONS), ME)
    later = NOW + STALE_AFTER_S + 1
    await restored.open(later)
    assert restored.not_before > later + limits.CLOCK_SKEW_FUTURE_S


async def test_20_a_replica_that_was_paused_does_not_undo_what_another_found(database: NewEngine) -> None:
    (paused,) = await replicas(database, 1)
    later = NOW + STALE_AFTER_S + 1
    other = SigningLog(await database(MIGRATIONS), ME)
    await other.open(later)
    await paused.heartbeat(later + 1)
    assert paused.not_before == other.not_before, "and heeds it itself"
    third = SigningLog(await database(MIGRATIONS), ME)
    await third.open(later + 2)
    assert third.not_before == other.not_before


async def test_20_a_replica_that_wakes_up_after_long_guards_itself(database: NewEngine) -> None:
    (paused,) = await replicas(database, 1)
    later = NOW + STALE_AFTER_S + 1
    await paused.heartbeat(later)
    assert paused.not_before > later


# --- denials


async def test_11_a_denied_action_is_remembered_until_its_time_is_over(database: NewEngine) -> None:
    (log,) = await replicas(database, 1)
    await log.commit_leaves([leaf(1, 1, denial=(h(50), NOW + 100)), leaf(2, 2)])
    assert await log.denied_until([h(50), h(51)]) == {h(50): (NOW + 100, h(1))}
    assert await log.denied_until([]) == {}


async def test_11_a_later_denial_prolongs_and_an_earlier_one_does_not_shorten(database: NewEngine) -> None:
    (log,) = await replicas(database, 1)
    await log.commit_leaves([leaf(1, 1, denial=(h(50), NOW + 100))])
    await log.commit_leaves([leaf(2, 2, denial=(h(50), NOW + 200))])
    await log.commit_leaves([leaf(3, 3, denial=(h(50), NOW + 150))])
    assert await log.denied_until([h(50)]) == {h(50): (NOW + 200, h(2))}


async def test_11_a_refused_leaf_leaves_no_denial(database: NewEngine) -> None:
    (log,) = await replicas(database, 1)
    await log.commit_leaves([leaf(1, 1)])
    with pytest.raises(LeafConflict):
        await log.commit_leaves([leaf(1, 2, denial=(h(50), NOW + 100))])
    assert await log.denied_until([h(50)]) == {}


# --- pruning


async def test_pruning_forgets_only_what_can_never_be_asked_for_again(database: NewEngine) -> None:
    (log,) = await replicas(database, 1)
    await log.commit_sent(h(1), Kind.RESPONSE, b"r", NOW)
    await log.commit_leaves([leaf(1, 1, denial=(h(50), NOW + 100))])
    await log.prune(NOW + limits.BATCH_LIFETIME_S)
    assert await log.sent(h(1), Kind.RESPONSE) == b"r"
    with pytest.raises(LeafConflict):
        await log.commit_leaves([leaf(1, 2)])
    await log.prune(NOW + 1000)
    assert await log.sent(h(1), Kind.RESPONSE) is None
    assert await log.denied_until([h(50)]) == {}
    with pytest.raises(LeafConflict):
        await log.commit_leaves([leaf(1, 2)])  # a leaf outlives its batch by the longest validity
    await log.prune(NOW + 300 + limits.MAX_VALID_FOR_S + 1)
    await log.commit_leaves([leaf(1, 2)])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=4))))
def test_20_whatever_the_order_no_task_ever_has_two_leaves(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:  # type: ignore[type-arg]
    from placet.core.db import connect, migrate

    async def run() -> None:
        url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('log') / 'log.db'}"
        engines = [connect(url), connect(url)]
        await migrate(engines[0], MIGRATIONS)
        logs = [SigningLog(engine, ME) for engine in engines]
        signed: dict[int, int] = {}
        for replica, wanted in steps:
            entries = dict(wanted)
            try:
                await logs[replica].commit_leaves([leaf(task, content) for task, content in entries.items()])
            except LeafConflict as error:
                assert error.tasks == {h(task) for task, content in entries.items() if signed.get(task, content) != content}
            else:
                for task, content in entries.items():
                    assert signed.setdefault(task, content) == content
        for engine in engines:
            await engine.dispose()

    asyncio.run(run())


async def test_now_is_what_the_operator_waits_for(database: NewEngine) -> None:
    """The guard of a new log is a few seconds, which the operator waits before it takes part."""
    log = SigningLog(await database(MIGRATIONS), ME)
    await log.open(int(time.time()))
    assert 0 < log.not_before - time.time() <= 4
