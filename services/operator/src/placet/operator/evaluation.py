"""Evaluating tasks with Rego: from an agreed task to a decided one. Off the event loop, since the engine releases the GIL.

A policy's fuel is its author's choice and a task's use of it its caller's, so nobody's tasks may hold the threads for long: policies take
turns by the time they use (`placet.sandbox.fair`), a batch has an amount of fuel, and nothing is evaluated that cannot be signed any more.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from placet.core import limits
from placet.core.batch import BatchContext
from placet.core.decision import decide, decision_content, early_denial, failure_in, max_decision_bytes, task_input
from placet.core.errors import Unavailable
from placet.core.evidence import EvidenceRecord
from placet.core.messages import DecidedTask
from placet.operator.policies import LoadedPolicy
from placet.sandbox.decision import parse_decision
from placet.sandbox.errors import EvaluationFailed, SandboxUnavailable
from placet.sandbox.fair import FairQueue
from placet.sandbox.rego import DataSection
from placet.sandbox.workers import BRIEF_FUEL

BATCH_FUEL = 40_000_000_000
"""What one batch may use of one operator: five seconds of one thread, and 2.5 more for its last task, which with that fits into the eight
seconds that the aggregator waits for answers. Half of it is for all tasks in equal parts, which is all that up to 10 tasks of the default
2,000,000,000 can use; the other half for those that need more than their part, one after the other."""
Decided = tuple[DecidedTask, EvidenceRecord]


@dataclass(frozen=True, slots=True)
class TaskToDecide:
    """One task with what it is judged on. `outputs` are the agreed ones, canonical JSON a PolicyData. `until`: unix seconds, after which
    deciding it is of no use, at the latest the end of its batch."""

    index: int
    sequence: int
    outputs: tuple[bytes, ...]
    until: float = math.inf


class OverBudget(Exception):
    """The batch's fuel is used up by other tasks. A function of batch and policy: it is so at every operator."""


class Undecided(Exception):
    """Some of the tasks could not be decided here, each for its own reason; `decided` holds the others."""

    def __init__(self, failures: Mapping[int, Exception], decided: Sequence[Decided]) -> None:
        super().__init__(f"{len(failures)} tasks are not decided: {next(iter(failures.values()))}")
        self.failures = dict(failures)
        self.decided = tuple(decided)


class _NeedsMore(Exception):
    """A task used its part of the batch's fuel, and its policy grants it more."""


def verdict(loaded: LoadedPolicy, context: BatchContext, task: TaskToDecide) -> tuple[bool, bytes]:
    """The decision on one task and the content of its evidence part. Deterministic: false, undefined, wrong shape, engine error and a
    reached limit are all denials.

    Raises:
        SandboxUnavailable: this machine could not run it (abstain).
    """
    return _judge(loaded, context, task, loaded.policy.rego_fuel)[:2]


def _judge(loaded: LoadedPolicy, context: BatchContext, task: TaskToDecide, fuel: int) -> tuple[bool, bytes, int]:
    """As `verdict`, with the fuel it used. Raises _NeedsMore where `fuel`, less than the policy's, decided."""
    reason = early_denial(context, task.index, loaded.policy)
    if reason is not None:
        return False, decision_content(False, [reason], None), 0
    for output in task.outputs:
        failure = failure_in(output)
        if failure is not None:
            return False, decision_content(False, [failure], None), 0
    source = task_input(context, task.index, loaded.policy, task.sequence)
    sections = [DataSection("args", source.args_json), DataSection("task", source.task_json)]
    sections += [DataSection("wasm", output.decode(), info.newton) for output, info in zip(task.outputs, loaded.data, strict=True)]
    now_ns = context.batch.timestamp * 10**9
    try:
        evaluation = loaded.compiled.evaluate(source.input_json, data=sections, now_ns=now_ns, fuel=fuel)
    except EvaluationFailed as error:
        if error.kind == "fuel" and fuel < loaded.policy.rego_fuel:
            raise _NeedsMore from None
        # The engine's text may be long; its kind and a bounded prefix are equal everywhere.
        text = f"policy failed: {error}"[: limits.MAX_REASON_BYTES]
        return False, decision_content(False, [text], None), error.fuel or 0
    decision = parse_decision(evaluation.value_json)
    size = max_decision_bytes(len(context.batch.tasks))
    content = decision_content(decision.allow, decision.reasons, decision.output_json, evaluated=True, max_bytes=size)
    return decision.allow, content, evaluation.fuel


class Evaluator:
    """Decides tasks in threads."""

    def __init__(self, threads: int, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._queue: FairQueue[Callable[[], None]] = FairQueue(threads)
        self._change = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"rego-{number}", daemon=True) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads. What waits is not decided any more."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _serve(self) -> None:
        while True:
            with self._change:
                while not self._closed and (turn := self._queue.take()) is None:
                    self._change.wait()
                if self._closed:
                    return
            assert turn is not None
            owner, work = turn
            began = time.perf_counter()
            work()
            with self._change:
                self._queue.give_back(owner, time.perf_counter() - began)
                self._change.notify_all()

    async def decide(
        self, loaded: LoadedPolicy, context: BatchContext, tasks: Sequence[TaskToDecide], observations: Sequence[bytes]
    ) -> list[Decided]:
        """Decide tasks, in order.

        First all of them, each with an equal part of half the batch's fuel; then, one by one, those that need more, and those that this
        machine could not run beside the others. So the fuel that decides which tasks are left out is the same at every operator.

        Raises:
            Undecided: some, or all, could not be.
        """
        ends = context.batch.timestamp + limits.BATCH_LIFETIME_S

        def judge(task: TaskToDecide, fuel: int) -> tuple[Decided, int]:
            if self._clock() > min(ends, task.until):
                raise Unavailable("this operator could not decide it in time")
            try:
                allow, content, used = _judge(loaded, context, task, fuel)
            except SandboxUnavailable as error:
                raise Unavailable(f"sandbox: {error}") from None
            made = decide(
                context,
                task.index,
                loaded.policy,
                sequence=task.sequence,
                allow=allow,
                decision=content,
                outputs=task.outputs,
                observations=observations,
            )
            return made, used

        granted, half = loaded.policy.rego_fuel, BATCH_FUEL // 2
        part = min(granted, half // max(1, len(tasks)))
        first_try = await self._each(loaded, context, tasks, lambda task: judge(task, part))
        found = {task.index: outcome for task, outcome in zip(tasks, first_try, strict=True)}
        left = half
        for task in tasks:
            first = found[task.index]
            if not isinstance(first, _NeedsMore | Unavailable):
                continue
            if isinstance(first, _NeedsMore) and left <= 0:
                found[task.index] = OverBudget("the batch's fuel was used up by other tasks; ask again")
                continue
            (again,) = await self._each(loaded, context, [task], lambda task: judge(task, granted))
            found[task.index] = again
            if isinstance(first, _NeedsMore):
                left -= granted if isinstance(again, Exception) else again[1]
        decided = [item[0] for item in found.values() if not isinstance(item, Exception)]
        failures = {index: item for index, item in found.items() if isinstance(item, Exception)}
        if failures:
            raise Undecided(failures, decided)
        return decided

    async def _each(
        self,
        loaded: LoadedPolicy,
        context: BatchContext,
        tasks: Sequence[TaskToDecide],
        judge: Callable[[TaskToDecide], tuple[Decided, int]],
    ) -> list[tuple[Decided, int] | Exception]:
        """What `judge` returns or raises for every task, each when it is its turn."""
        if not tasks:
            return []
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        outcomes: list[tuple[Decided, int] | Exception] = [Unavailable("not decided")] * len(tasks)
        left, lock = len(tasks), threading.Lock()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        def work(position: int) -> None:
            nonlocal left
            if not done.cancelled():
                try:
                    outcomes[position] = judge(tasks[position])
                except Exception as error:  # noqa: BLE001 - each task fails alone
                    outcomes[position] = error
            with lock:
                left -= 1
                last = not left
            if last:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(finish)

        def turn(position: int) -> Callable[[], None]:
            return lambda: work(position)

        brief = loaded.policy.rego_fuel <= BRIEF_FUEL
        with self._change:
            for position in range(len(tasks)):
                self._queue.put(context.batch.policy_id, context.id, turn(position), brief=brief)
            self._change.notify_all()
        await done
        return outcomes
