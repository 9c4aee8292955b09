"""Agreed data and groups as a pure function of batch and Proposal (threats 16)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from placet.core.agreement import AgreedTask, Component, agree, split_into_groups, whole_batch
from placet.core.consensus import Rule, RuleKind
from placet.core.decision import component_failure
from placet.core.messages import Observation, TaskObservation
from placet.core.types import Address, Hash32, Operator, OperatorSet

COMPONENT = Component({"/price": Rule(RuleKind.MEDIAN, relative_bps=1000)}, fractions=False)
BPS = 6667


def operators(*stakes: int) -> OperatorSet:
    return OperatorSet(
        1,
        tuple(Operator(Address(bytes([i + 1]) * 20), Hash32(bytes([i + 1]) * 32), b"", b"", stake) for i, stake in enumerate(stakes)),
    )


def who(index: int) -> Address:
    return Address(bytes([index + 1]) * 20)


def observation(*outputs: str | None) -> Observation:
    tasks = tuple(TaskObservation(i, (output.encode(),), (Hash32(bytes(32)),)) for i, output in enumerate(outputs) if output is not None)
    return Observation(tasks, (), "")


def test_tasks_with_the_same_agreeing_operators_form_one_group() -> None:
    seen = {who(i): observation('{"price":100}', '{"price":100}', '{"price":5}' if i == 3 else '{"price":100}') for i in range(4)}
    result = agree(3, seen, [COMPONENT], operators(100, 100, 100, 100), BPS)
    assert [group.tasks for group in result.groups] == [(0, 1), (2,)]
    assert result.groups[1].operators == {who(0), who(1), who(2)}
    assert result.agreed[2].outputs == (b'{"price":100}',)


def test_16_one_missed_fetch_fails_no_other_task() -> None:
    seen = {who(i): observation(*(None if (i, task) == (2, 17) else '{"price":100}' for task in range(64))) for i in range(4)}
    result = agree(64, seen, [COMPONENT], operators(100, 100, 100, 100), BPS)
    assert not result.failed
    assert sorted(task for group in result.groups for task in group.tasks) == list(range(64))
    assert result.group_of(17) is not result.group_of(16)


def test_16_one_liar_and_one_missed_fetch_fail_one_task_only() -> None:
    def seen_by(index: int, task: int) -> str | None:
        if index == 3:
            return '{"price":7}'
        return None if (index, task) == (2, 17) else '{"price":100}'

    seen = {who(i): observation(*(seen_by(i, task) for task in range(64))) for i in range(4)}
    result = agree(64, seen, [COMPONENT], operators(100, 100, 100, 100), BPS)
    assert [item.task for item in result.failed] == [17]
    assert sum(len(group.tasks) for group in result.groups) == 63


def test_an_operator_outside_the_epoch_counts_for_nothing() -> None:
    seen = {who(i): observation('{"price":100}') for i in (0, 1, 9)}
    result = agree(1, seen, [COMPONENT], operators(100, 100, 100, 100), BPS)
    assert [item.task for item in result.failed] == [0]


def test_output_that_is_no_exact_json_counts_for_nothing() -> None:
    bad = ['{"price":1e9}', '{"price":1.5}', '{"price":1,"price":2}', "{", '{"price":NaN}']
    for text in bad:
        seen = {who(i): observation(text if i == 0 else '{"price":100}') for i in range(4)}
        result = agree(1, seen, [COMPONENT], operators(100, 100, 100, 100), BPS)
        assert result.agreed[0].agreeing == {who(1), who(2), who(3)}, text


def test_denied_tasks_need_no_data_and_take_none() -> None:
    seen = {who(i): Observation((TaskObservation(0, (), ()),), (), "") for i in range(4)}
    result = agree(1, seen, [COMPONENT], operators(100, 100, 100, 100), BPS, frozenset({0}))
    assert result.agreed[0].outputs == ()
    assert result.agreed[0].agreeing == {who(i) for i in range(4)}


def test_beyond_sixteen_groups_the_smallest_are_put_off() -> None:
    tasks = [AgreedTask(task, (), frozenset({who(task % 20)})) for task in range(40 - 5)]
    groups, dropped = split_into_groups(tasks)
    assert len(groups) == 16
    assert sorted([task for group in groups for task in group.tasks] + list(dropped)) == list(range(35))
    assert min(len(group.tasks) for group in groups) >= max(sum(1 for t in dropped if t % 20 == k % 20) for k in dropped)


def test_a_batch_without_data_is_one_group_of_everyone() -> None:
    result = whole_batch(3, operators(1, 2, 3))
    assert [group.tasks for group in result.groups] == [(0, 1, 2)]
    assert result.groups[0].operators == {who(0), who(1), who(2)}


@given(
    st.lists(
        st.lists(st.sampled_from([None, '{"price":100}', '{"price":101}', '{"price":9}']), min_size=5, max_size=5), min_size=4, max_size=4
    ),
    st.randoms(),
)
def test_the_result_does_not_depend_on_the_order_of_observations(views: list[list[str | None]], random: object) -> None:
    seen = {who(i): observation(*view) for i, view in enumerate(views)}
    shuffled = dict(reversed(list(seen.items())))
    everyone = operators(100, 100, 100, 100)
    assert agree(5, seen, [COMPONENT], everyone, BPS) == agree(5, shuffled, [COMPONENT], everyone, BPS)


@given(st.lists(st.lists(st.sampled_from([None, '{"price":100}', '{"price":200}']), min_size=6, max_size=6), min_size=4, max_size=4))
def test_every_task_is_in_one_group_or_failed_and_every_group_can_reach_quorum(views: list[list[str | None]]) -> None:
    everyone = operators(100, 100, 100, 100)
    result = agree(6, {who(i): observation(*view) for i, view in enumerate(views)}, [COMPONENT], everyone, BPS)
    placed = [task for group in result.groups for task in group.tasks] + [item.task for item in result.failed]
    assert sorted(placed) == list(range(6))
    for group in result.groups:
        assert everyone.stake_of(group.operators) * 10_000 >= everyone.total_stake * BPS


def test_18_a_failure_of_the_component_itself_is_agreed_like_a_value() -> None:
    failure = component_failure("error", "no such token").decode()
    seen = {who(i): observation('{"price":100}' if i == 3 else failure) for i in range(4)}
    result = agree(1, seen, [COMPONENT], operators(100, 100, 100, 100), BPS)
    assert result.agreed[0].outputs == (failure.encode(),)
    assert result.agreed[0].agreeing == {who(0), who(1), who(2)}


def test_18_one_operators_failure_changes_nothing() -> None:
    failure = component_failure("error", "mine alone").decode()
    seen = {who(i): observation(failure if i == 3 else '{"price":100}') for i in range(4)}
    result = agree(1, seen, [COMPONENT], operators(100, 100, 100, 100), BPS)
    assert result.agreed[0].outputs == (b'{"price":100}',)
    assert result.agreed[0].agreeing == {who(0), who(1), who(2)}
