"""Evaluating tasks with Rego: from an agreed task to a decided one. Off the event loop, since the engine releases the GIL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from placet.sandbox.rego import DataSection


@dataclass(frozen=True, slots=True)
class TaskToDecide:
    """One task with what it is judged on. `outputs` are the agreed ones, canonical JSON a PolicyData."""

    index: int
    sequence: int
    outputs: tuple[bytes, ...]


def verdict(loaded: LoadedPolicy, context: BatchContext, task: TaskToDecide) -> tuple[bool, bytes]:
    """The decision on one task and the content of its evidence part. Deterministic: false, undefined, wrong shape, engine error and a
    reached limit are all denials.

    Raises:
        SandboxUnavailable: this machine could not run it (abstain).
    """
    reason = early_denial(context, task.index, loaded.policy)
    if reason is not None:
        return False, decision_content(False, [reason], None)
    for output in task.outputs:
        failure = failure_in(output)
        if failure is not None:
            return False, decision_content(False, [failure], None)
    source = task_input(context, task.index, loaded.policy, task.sequence)
    sections = [DataSection("args", source.args_json), DataSection("task", source.task_json)]
    sections += [DataSection("wasm", output.decode(), info.newton) for output, info in zip(task.outputs, loaded.data, strict=True)]
    try:
        evaluation = loaded.compiled.evaluate(source.input_json, data=sections, now_ns=context.batch.timestamp * 10**9)
    except EvaluationFailed as error:
        # The engine's text may be long; its kind and a bounded prefix are equal everywhere.
        return False, decision_content(False, [f"policy failed: {error}"[: limits.MAX_REASON_BYTES]], None)
    decision = parse_decision(evaluation.value_json)
    size = max_decision_bytes(len(context.batch.tasks))
    return decision.allow, decision_content(decision.allow, decision.reasons, decision.output_json, evaluated=True, max_bytes=size)


class Evaluator:
    """Decides tasks in threads."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rego")
        self._threads = threads

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def decide(
        self, loaded: LoadedPolicy, context: BatchContext, tasks: Sequence[TaskToDecide], observations: Sequence[bytes]
    ) -> list[tuple[DecidedTask, EvidenceRecord]]:
        """Decide tasks, in order.

        Raises:
            Unavailable: this machine could not.
        """

        def run(part: Sequence[TaskToDecide]) -> list[tuple[DecidedTask, EvidenceRecord]]:
            decided = []
            for task in part:
                allow, content = verdict(loaded, context, task)
                decided.append(
                    decide(
                        context,
                        task.index,
                        loaded.policy,
                        sequence=task.sequence,
                        allow=allow,
                        decision=content,
                        outputs=task.outputs,
                        observations=observations,
                    )
                )
            return decided

        size = max(1, -(-len(tasks) // self._threads))
        loop = asyncio.get_running_loop()
        parts = [loop.run_in_executor(self._pool, run, tasks[start : start + size]) for start in range(0, len(tasks), size)]
        try:
            return [item for part in await asyncio.gather(*parts) for item in part]
        except SandboxUnavailable as error:
            raise Unavailable(f"sandbox: {error}") from None
