"""Agreed data and groups: a pure function of TaskBatch and Proposal (architecture §4, steps 3 and 4; threats 2, 16).

Every operator and the aggregator compute it themselves; the aggregator's only freedom is which quorum of signed observations it lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from placet.core import jsonx, limits
from placet.core.consensus import Agreed, Disagreement, Rules, Threshold, agree_document, agree_exact
from placet.core.decision import FAILURE_KEY
from placet.core.errors import InvalidInput
from placet.core.messages import Observation
from placet.core.types import Address, OperatorSet

Parsed = dict[tuple[bytes, bool], tuple[Any] | None]
"""Documents by their bytes and whether fractions are allowed: what one agreement has parsed already."""


_FAILURE_BYTES = 1024
"""Room for an output that says that the component failed, however short the component's own may be."""


@dataclass(frozen=True, slots=True)
class Component:
    """What agreement needs to know of one PolicyData: its rules, whether its output may hold fractions (Newton's world), and how many
    bytes its manifest allows."""

    rules: Rules
    fractions: bool
    max_bytes: int = limits.MAX_OUTPUT_BYTES


@dataclass(frozen=True, slots=True)
class AgreedTask:
    """Agreed outputs of one task (canonical JSON a PolicyData) and the operators whose own observation agrees."""

    task: int
    outputs: tuple[bytes, ...]
    agreeing: frozenset[Address]


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A task on which no quorum agrees."""

    task: int
    message: str


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks (ascending) that one set of operators can certify together."""

    tasks: tuple[int, ...]
    operators: frozenset[Address]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a Proposal makes of a batch."""

    agreed: Mapping[int, AgreedTask]
    failed: tuple[FailedTask, ...]
    groups: tuple[Group, ...]

    def group_of(self, task: int) -> Group | None:
        """The group a task stands in."""
        return next((group for group in self.groups if task in group.tasks), None)


def whole_batch(task_count: int, operators: OperatorSet) -> Agreement:
    """The agreement of a batch without PolicyData before any Proposal: one group of all tasks, open to all operators."""
    everyone = frozenset(operator.address for operator in operators.operators)
    agreed = {task: AgreedTask(task, (), everyone) for task in range(task_count)}
    return Agreement(agreed, (), (Group(tuple(range(task_count)), everyone),))


def agree(
    task_count: int,
    observations: Mapping[Address, Observation],
    components: Sequence[Component],
    operators: OperatorSet,
    quorum_bps: int,
    denied: frozenset[int] = frozenset(),
) -> Agreement:
    """Agree every task of a batch, then split the tasks into groups. `denied` are tasks that need no data (`decision.early_denial`).

    `observations` are the opened ones of a Proposal, at most one an operator. `components` has one entry a PolicyData of the policy; with
    none, the operators that list a task vouch for it.
    """
    threshold = Threshold(operators.total_stake, quorum_bps)
    stake = {operator.address: operator.stake for operator in operators.operators}
    agreed: dict[int, AgreedTask] = {}
    failed: list[FailedTask] = []
    observed: dict[Address, dict[int, tuple[bytes, ...]]] = {
        address: {item.task: item.outputs for item in observation.tasks} for address, observation in observations.items()
    }
    parsed: Parsed = {}
    for task in range(task_count):
        needed = () if task in denied else components
        observers = sorted(
            address for address, tasks in observed.items() if address in stake and task in tasks and len(tasks[task]) == len(needed)
        )
        try:
            agreed[task] = _agree_task(task, observers, observed, needed, stake, threshold, parsed)
        except Disagreement as error:
            failed.append(FailedTask(task, f"operators do not agree: {error}"))
    groups, dropped = split_into_groups(agreed.values())
    for task in dropped:
        agreed.pop(task)
        failed.append(FailedTask(task, f"more than {limits.MAX_GROUPS} groups of agreeing operators in one batch; try again"))
    return Agreement(agreed, tuple(sorted(failed, key=lambda item: item.task)), groups)


def _agree_task(
    task: int,
    observers: list[Address],
    observed: Mapping[Address, Mapping[int, tuple[bytes, ...]]],
    components: Sequence[Component],
    stake: Mapping[Address, int],
    threshold: Threshold,
    parsed: Parsed,
) -> AgreedTask:
    agreeing = frozenset(observers)
    outputs: list[bytes] = []
    for position, component in enumerate(components):
        documents, stakes, members = [], [], []
        for address in observers:
            found = _document(observed[address][task][position], component, parsed)
            if found is None:
                continue
            document = found[0]
            documents.append(document)
            stakes.append(stake[address])
            members.append(address)
        result = _agree_outputs(documents, stakes, component, threshold)
        agreeing &= frozenset(members[index] for index in result.agreeing)
        outputs.append(jsonx.canonical(result.value))
    if not threshold.is_quorum(sum(stake[address] for address in agreeing)):
        raise Disagreement("", "the operators that agree hold less than quorum stake")
    return AgreedTask(task, tuple(outputs), agreeing)


def _document(output: bytes, component: Component, parsed: Parsed) -> tuple[Any] | None:
    """An output parsed, equal bytes once; None when it is not one that the component's manifest allows."""
    key = (output, component.fractions)
    if len(output) > max(component.max_bytes, _FAILURE_BYTES):
        return None
    if key not in parsed:
        try:
            parsed[key] = (
                jsonx.parse(
                    output,
                    field="output",
                    max_bytes=limits.MAX_OUTPUT_BYTES,
                    max_depth=limits.MAX_OUTPUT_DEPTH,
                    max_values=limits.MAX_OUTPUT_VALUES,
                    fractions=component.fractions,
                ),
            )
        except InvalidInput:
            parsed[key] = None
    return parsed[key]


def _agree_outputs(documents: list[Any], stakes: list[int], component: Component, threshold: Threshold) -> Agreed:
    """The component's output; or, when quorum stake saw it fail by itself in the same way, that failure."""
    failed = [index for index, document in enumerate(documents) if isinstance(document, dict) and FAILURE_KEY in document]
    if not failed:
        return agree_document(documents, stakes, component.rules, threshold)
    try:
        failure = agree_exact([documents[i] for i in failed], [stakes[i] for i in failed], threshold, "", majority=False)
        return Agreed(failure.value, frozenset(failed[position] for position in failure.agreeing))
    except Disagreement:
        rest = [index for index in range(len(documents)) if index not in set(failed)]
        found = agree_document([documents[i] for i in rest], [stakes[i] for i in rest], component.rules, threshold)
        return Agreed(found.value, frozenset(rest[position] for position in found.agreeing))


def split_into_groups(tasks: Iterable[AgreedTask]) -> tuple[tuple[Group, ...], tuple[int, ...]]:
    """Tasks with the same set of agreeing operators form a group; beyond MAX_GROUPS the smallest are dropped.

    Order: larger groups first, then by first task: the same for everybody.
    """
    by_set: dict[frozenset[Address], list[int]] = {}
    for item in tasks:
        by_set.setdefault(item.agreeing, []).append(item.task)
    groups = sorted((Group(tuple(sorted(members)), who) for who, members in by_set.items()), key=lambda g: (-len(g.tasks), g.tasks[0]))
    kept, dropped = groups[: limits.MAX_GROUPS], groups[limits.MAX_GROUPS :]
    return tuple(kept), tuple(task for group in dropped for task in group.tasks)
