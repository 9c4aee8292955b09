"""Second reading: one API key against every policy with data, through the one worker that an operator has by default (threats 21, 28, 29)."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from placet.operator.components import Components
from placet.operator.config import OperatorSettings
from placet.operator.evaluation import Evaluator, TaskToDecide
from placet.operator.policies import LoadedPolicy
from placet.sandbox.errors import SandboxUnavailable
from placet.sandbox.policydata import RunContext, RunRequest
from placet.sandbox.rego import Evaluation
from placet.sdk.packs import load_pack
from tests.audit import rig
from tests.support.authorization import ROOT

ARTEFACT = load_pack(ROOT / "policies" / "sanctions-screen").bundle.policy_data[0]
REQUEST = RunRequest(RunContext(1, 1, "0x" + "00" * 32, 1, "0x" + "00" * 20), "{}", "{}", "{}")


class _Process:
    """A worker. What the test names is slow, the rest answers at once (in a form that ends the request)."""

    def __init__(self, slow: str) -> None:
        self.served = 0
        self.keys: set[str] = set()
        self.slow = slow

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.slow in (message["do"], message.get("sha256")):
            await asyncio.sleep(3.0)
        return {"neither": "ok nor error"}

    async def end(self, *, gently: bool) -> None:
        pass


def _components(folder: Path, slow: str) -> Components:
    """As an operator has them by default."""
    settings = SimpleNamespace(
        chains=[],
        secrets_file=None,
        allow_private_hosts=[],
        compiled_cache=folder,
        component_workers=OperatorSettings.model_fields["component_workers"].default,
    )
    made = Components(cast(Any, settings))

    async def spawn() -> Any:
        return _Process(slow)

    cast(Any, made._pool)._spawn = spawn
    return made


async def _observes(components: Components) -> None:
    """Alice's policy has its answer, whatever it is, well within the five seconds of a batch."""
    pool = await components._workers()
    async with asyncio.timeout(1.0):
        with suppress(SandboxUnavailable):
            await pool.run_component("alice", ARTEFACT.manifest, REQUEST)


async def test_29_admitting_a_component_stops_no_observation(tmp_path: Path) -> None:
    """A component is compiled in the worker that observes: up to 120 s each (10 s for an ordinary Python one), and a key may announce thirty
    at once. All that time every task of every policy with data is `observation_timeout`, at every operator."""
    components = _components(tmp_path, "admit")
    admitting = asyncio.create_task(components.admit(ARTEFACT))
    await asyncio.sleep(0.1)
    try:
        await _observes(components)
    finally:
        admitting.cancel()
        await asyncio.gather(admitting, return_exceptions=True)


@pytest.mark.parametrize("tasks", [1, 3])
async def test_21_a_slow_component_stops_no_other_policys_observation(tmp_path: Path, tasks: int) -> None:
    """Anybody's policy, whose own host drips its answer, for the deadline of its manifest: one task every few seconds is enough."""
    components = _components(tmp_path, "mallory")
    pool = await components._workers()
    running = [asyncio.create_task(pool.run_component("mallory", ARTEFACT.manifest, REQUEST)) for _ in range(tasks)]
    await asyncio.sleep(0.1)
    try:
        await _observes(components)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class _Compiled:
    """A policy whose evaluation takes as long as the test says (with the engine, 20 billion of fuel take many seconds)."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def evaluate(self, *_: Any, **__: Any) -> Evaluation:
        time.sleep(self._seconds)  # the engine releases the interpreter's lock, too
        return Evaluation("true", 1)


def _loaded(seconds: float) -> LoadedPolicy:
    return LoadedPolicy(cast(Any, SimpleNamespace(policy=rig.policy())), cast(Any, _Compiled(seconds)), ())


async def test_21_a_policy_that_burns_its_fuel_stops_no_other_policys_tasks() -> None:
    """Two threads decide the tasks of all policies, in order. One batch of anybody's policy holds both for tasks x fuel, also long after
    nothing of it can be signed any more: 256 tasks of 20 billion (2.2 s each here) are five minutes, at every operator, for two seconds of one key."""
    evaluator = Evaluator(OperatorSettings.model_fields["evaluation_threads"].default)
    mallory, alice = rig.batch(*(rig.task(number) for number in range(8))), rig.batch(rig.task(99))
    tasks = [TaskToDecide(index, 0, ()) for index in range(8)]
    busy = asyncio.create_task(evaluator.decide(_loaded(0.5), mallory, tasks, ()))
    await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(1.0):
            await evaluator.decide(_loaded(0.0), alice, tasks[:1], ())
    finally:
        await asyncio.gather(busy, return_exceptions=True)
        evaluator.close()
