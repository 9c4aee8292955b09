"""Third reading: one policy's tasks against all other policies', at one operator."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any, cast

from placet.core.batch import BatchContext
from placet.core.messages import TaskObservation
from placet.operator.components import Components
from placet.operator.evaluation import Evaluator, TaskToDecide
from placet.operator.observing import ObservationFailed
from placet.operator.policies import LoadedPolicy
from placet.sandbox.manifest import Manifest
from placet.sandbox.policydata import ComponentRun
from placet.sandbox.rego import Evaluation
from placet.sandbox.transcript import Transcript
from placet.sandbox.wire import run_to_wire
from placet.sandbox.workers import WorkerPool
from tests.audit import rig
from tests.audit.test_operators import operator


class _Bundle:
    policy = rig.policy()


class _Compiled:
    """A policy whose evaluation takes a while. With the fuel that policies may have (20,000,000,000) a loop takes 3 s here, measured."""

    def __init__(self, seconds: float, end: threading.Event) -> None:
        self._seconds, self._end = seconds, end

    def evaluate(self, *_: Any, **__: Any) -> Evaluation:
        self._end.wait(self._seconds)
        return Evaluation('{"allow":true}', 1)


async def test_21_one_policys_fuel_leaves_threads_for_the_others() -> None:
    """256 tasks of a policy that burns its fuel occupy the operator's two threads for 256 × 3 / 2 s, first come first served, and long after
    nobody can use the answers: whatever else operators decide is late for more than six minutes. It costs one API key three seconds."""
    end = threading.Event()
    evaluator = Evaluator(2)
    slow = LoadedPolicy(cast(Any, _Bundle()), cast(Any, _Compiled(1.0, end)), ())
    fast = LoadedPolicy(cast(Any, _Bundle()), cast(Any, _Compiled(0.0, end)), ())
    mallory = rig.batch(*(rig.task(n) for n in range(64)))
    alice = rig.batch(rig.task(100))

    def tasks(context: BatchContext) -> list[TaskToDecide]:
        return [TaskToDecide(index, 0, ()) for index in range(len(context.task_ids))]

    burning = asyncio.create_task(evaluator.decide(slow, mallory, tasks(mallory), ()))
    try:
        await asyncio.sleep(0.1)
        await asyncio.wait_for(evaluator.decide(fast, alice, tasks(alice), ()), 5.0)
    finally:
        end.set()
        await burning
        evaluator.close()


# --- components


_MANIFEST = b"""{"name":"feed","world":"placet:policydata@1.0.0","arguments":{"type":"object","properties":{}},"secrets":{"type":"object",
"properties":{}},"output":{"type":"object","properties":{}}}"""


class _Worker:
    """What `WorkerPool` needs of a process. Mallory's component waits for Mallory's web server until its deadline."""

    def __init__(self) -> None:
        self.served = 0
        self.keys: set[str] = set()

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["sha256"] == "00" * 32:
            await asyncio.sleep(3600)
        return {"ok": run_to_wire(ComponentRun("{}", 1, Transcript(), False))}

    async def end(self, *, gently: bool) -> None: ...


class _Pool(WorkerPool):
    async def _spawn(self) -> Any:
        return _Worker()


async def test_21_one_policys_slow_source_leaves_a_worker_for_the_others(tmp_path: Path) -> None:
    """An operator has one worker for components (`component_workers` = 1), for all policies, first come first served. A component that waits
    for its author's web server has it for the whole time of observing; the next task of that batch has it for the next. Tasks of every other
    policy with data are not observed in time at any operator, as long as somebody sends such a task every five seconds."""
    components = Components.__new__(Components)
    pool = _Pool(cache_dir=tmp_path, size=1)
    await pool.start()
    components._pool, components._started = pool, True
    components._secrets, components._private_hosts, components._digest_key = {}, (), bytes(32)
    components._rpc_urls = {rig.CHAIN: ()}

    def loaded(component: bytes) -> LoadedPolicy:
        class _Artefact:
            manifest = _MANIFEST
            id = bytes(32)

        class _Info:
            artefact = _Artefact()
            newton = False

        info = cast(Any, _Info())
        info.artefact.component = component
        return LoadedPolicy(cast(Any, _Bundle()), cast(Any, None), (info,))

    import placet.operator.components as module

    class _Sha:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def hexdigest(self) -> str:
            return "00" * 32 if self._content == b"mallory" else "11" * 32

        def digest(self) -> bytes:
            return bytes(32)

    genuine, module.hashlib = module.hashlib, cast(Any, type("hashlib", (), {"sha256": _Sha}))
    parse, Manifest.parse = Manifest.parse, staticmethod(lambda _: type("M", (), {"limits": type("L", (), {"deadline_ms": 5000})})())  # type: ignore[method-assign,assignment]
    try:
        state = cast(Any, None)
        mallory, alice = rig.batch(*(rig.task(n) for n in range(8))), rig.batch(rig.task(100))
        deadline = time.time() + 2.0
        slow = [asyncio.create_task(components.observe(loaded(b"mallory"), mallory, n, state, deadline)) for n in range(8)]
        await asyncio.sleep(0.05)
        seen: TaskObservation | None = None
        try:
            seen = await components.observe(loaded(b"alice"), alice, 0, state, time.time() + 1.9)
        except ObservationFailed as error:
            raise AssertionError(f"Alice's task was not observed: {error.code}") from None
        finally:
            await asyncio.gather(*slow, return_exceptions=True)
        assert seen is not None
    finally:
        module.hashlib, Manifest.parse = genuine, parse  # type: ignore[method-assign]
        await pool.close()


async def test_11_an_undefined_entrypoint_denies_for_a_while_too(tmp_path: Path) -> None:
    """`allow if …` without a default is undefined when it denies: an ordinary way to write a policy. Since only what the policy "gave" starts
    `retryAfter` (audit 4), and undefined counts as given by nobody, such a policy's `retryAfter` does nothing: the denied action is asked for
    again every second until a feed flips."""

    class _Undefined:
        def evaluate(self, *_: Any, **__: Any) -> Evaluation:
            return Evaluation(None, 1)

    async with operator(tmp_path, retry_after=600) as network:
        loaded = cast(Any, network.service._policies)._loaded
        cast(Any, network.service._policies)._loaded = LoadedPolicy(loaded.bundle, cast(Any, _Undefined()), ())
        first = rig.signed_batch(rig.task(0, salt=1))
        await network.give(first)
        responses, _ = await network.answers(first, within_s=3.0)
        assert responses
        assert not responses[0].groups[0].decided[0].leaf.allow
        again = rig.signed_batch(rig.task(0, salt=2))
        await network.give(again)
        responses, observations = await network.answers(again, within_s=3.0)
        assert not responses, "the denied action is judged again at once"
        assert observations[0].abstentions[0].code == "retry_after"
