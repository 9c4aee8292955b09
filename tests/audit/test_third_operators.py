"""Third reading: one policy, source, wallet or refusal against all others, at one operator (threats 18, 20, 21, 26, 29)."""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from placet.core import jsonx, limits, topics, wire
from placet.core.batch import BatchContext
from placet.core.bundle import PolicyBundle, PolicyDataArtefact, store_bundle
from placet.core.bus import InProcessBus
from placet.core.envelope import Kind, LocalBusSigner, seal
from placet.core.errors import InvalidInput, NotFound, Unavailable
from placet.core.messages import Abstention, PolicyAnnouncement, TaskObservation
from placet.core.objects import ObjectStore
from placet.core.senders import WALLET_GAS
from placet.core.types import Address, Hash32, hex0x
from placet.operator import policies as policies_module
from placet.operator import senders as senders_module
from placet.operator import service as service_module
from placet.operator.components import Components
from placet.operator.config import OperatorSettings
from placet.operator.evaluation import BATCH_FUEL, Evaluator, OverBudget, TaskToDecide, Undecided
from placet.operator.evidence_store import EvidenceStore
from placet.operator.observing import ObservationFailed
from placet.operator.policies import LoadedPolicy, PolicyStore
from placet.operator.senders import unsigned
from placet.sandbox.errors import EvaluationFailed, SandboxUnavailable
from placet.sandbox.manifest import Manifest
from placet.sandbox.policydata import ComponentRun, RunContext, RunRequest
from placet.sandbox.rego import MAX_FUEL, Evaluation
from placet.sandbox.transcript import Transcript
from placet.sandbox.wire import run_to_wire
from placet.sandbox.workers import WorkerPool
from placet.sdk.packs import load_pack
from placet.sdk.policybuild.publish import _admissions
from tests.audit import rig
from tests.audit.test_operators import operator
from tests.support.authorization import CHAIN_ID, ROOT, World
from tests.unit.operator.test_evidence_store import DAY_S, NOW, objects_in, record, stores
from tests.unit.operator.test_service import Evidence, Stage, stage

__all__ = ["stage", "stores"]

ARTEFACT = load_pack(ROOT / "policies" / "sanctions-screen").bundle.policy_data[0]
REQUEST = RunRequest(RunContext(1, 1, "0x" + "00" * 32, 1, "0x" + "00" * 20), "{}", "{}", "{}")


def of_policy(context: BatchContext, policy_id: bytes) -> BatchContext:
    """The same tasks for another policy."""
    return BatchContext.of(replace(context.batch, policy_id=Hash32(policy_id)))


# --- workers that observe


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
    """A component was compiled in the worker that observes: up to 120 s each (10 s for an ordinary Python one), and a key may announce
    thirty at once. All that time every task of every policy with data was `observation_timeout`, at every operator."""
    components = _components(tmp_path, "admit")
    admitting = asyncio.create_task(components.admit(ARTEFACT))
    await asyncio.sleep(0.1)
    try:
        await _observes(components)
    finally:
        admitting.cancel()
        await asyncio.gather(admitting, return_exceptions=True)
        await components.stop()


@pytest.mark.parametrize("tasks", [1, 3])
async def test_21_a_slow_component_stops_no_other_policys_observation(tmp_path: Path, tasks: int) -> None:
    """Anybody's policy, whose own host drips its answer, for the deadline of its manifest: one task every few seconds was enough."""
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


_MANIFEST = b"""{"name":"feed","world":"placet:policydata@1.0.0","arguments":{"type":"object","properties":{}},"secrets":{"type":"object",
"properties":{}},"output":{"type":"object","properties":{}}}"""


class _Bundle:
    def __init__(self, **changes: Any) -> None:
        self.policy = replace(rig.policy(), **changes)


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
    """An operator had one worker for components, for all policies, first come first served. A component that waits for its author's web
    server had it for the whole time of observing; the next task of that batch had it for the next. Tasks of every other policy with data
    were not observed in time at any operator, as long as somebody sent such a task every five seconds."""
    components = Components.__new__(Components)
    pool = _Pool(cache_dir=tmp_path, size=OperatorSettings.model_fields["component_workers"].default)
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

    patched = cast(Any, module)
    genuine, patched.hashlib = patched.hashlib, type("hashlib", (), {"sha256": _Sha})
    parse, Manifest.parse = Manifest.parse, staticmethod(lambda _: type("M", (), {"limits": type("L", (), {"deadline_ms": 5000})})())  # type: ignore[method-assign,assignment]
    try:
        state = cast(Any, None)
        mallory = of_policy(rig.batch(*(rig.task(n) for n in range(8))), b"\x66" * 32)
        alice = rig.batch(rig.task(100))
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
        patched.hashlib, Manifest.parse = genuine, parse  # type: ignore[method-assign]
        await pool.close()


async def test_21_one_policys_requests_leave_places_in_the_queue_for_the_others(tmp_path: Path) -> None:
    """Four batches of one policy filled the queue of 1,024; everybody else heard that the pool is busy."""
    pool = _Pool(cache_dir=tmp_path, size=2, queue_limit=8)
    await pool.start()
    try:
        running = [asyncio.create_task(pool.run_component("00" * 32, ARTEFACT.manifest, REQUEST)) for _ in range(40)]
        await asyncio.sleep(0.05)
        refused = [task for task in running if task.done()]
        assert len(refused) >= 30
        result = await asyncio.wait_for(pool.run_component("11" * 32, ARTEFACT.manifest, REQUEST), 1.0)
        assert result.output_json == "{}"
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await pool.close()


# --- threads that evaluate


class _Compiled:
    """A policy whose evaluation takes a while. With the fuel that policies may have (20,000,000,000) a loop takes 3 s, measured."""

    def __init__(self, seconds: float, end: threading.Event | None = None) -> None:
        self._seconds, self._end = seconds, end or threading.Event()

    def evaluate(self, *_: Any, **__: Any) -> Evaluation:
        self._end.wait(self._seconds)  # the engine releases the interpreter's lock, too
        return Evaluation('{"allow":true}', 1)


def _loaded(compiled: Any, **changes: Any) -> LoadedPolicy:
    return LoadedPolicy(cast(Any, _Bundle(**changes)), compiled, ())


def _all(context: BatchContext) -> list[TaskToDecide]:
    return [TaskToDecide(index, 0, ()) for index in range(len(context.task_ids))]


async def test_21_a_policy_that_burns_its_fuel_stops_no_other_policys_tasks() -> None:
    """Two threads decided the tasks of all policies, in order. One batch of anybody's policy held both for tasks x fuel, also long after
    nothing of it could be signed any more: 256 tasks of 20 billion (2.2 s each) were five minutes, at every operator, for two seconds of
    one key."""
    evaluator = Evaluator(OperatorSettings.model_fields["evaluation_threads"].default)
    mallory, alice = rig.batch(*(rig.task(number) for number in range(8))), rig.batch(rig.task(99))
    busy = asyncio.create_task(evaluator.decide(_loaded(_Compiled(0.5)), mallory, _all(mallory), ()))
    await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(1.0):
            await evaluator.decide(_loaded(_Compiled(0.0)), alice, _all(alice), ())
    finally:
        await asyncio.gather(busy, return_exceptions=True)
        evaluator.close()


async def test_21_one_policys_fuel_leaves_threads_for_the_others() -> None:
    """256 tasks of a policy that burns its fuel occupied the operator's two threads for 256 × 3 / 2 s, first come first served, and long
    after nobody could use the answers. It cost one API key three seconds."""
    end = threading.Event()
    evaluator = Evaluator(2)
    mallory = rig.batch(*(rig.task(n) for n in range(64)))
    alice = rig.batch(rig.task(100))
    burning = asyncio.create_task(evaluator.decide(_loaded(_Compiled(1.0, end)), mallory, _all(mallory), ()))
    try:
        await asyncio.sleep(0.1)
        await asyncio.wait_for(evaluator.decide(_loaded(_Compiled(0.0, end)), alice, _all(alice), ()), 5.0)
    finally:
        end.set()
        await burning
        evaluator.close()


async def test_21_a_policy_of_much_fuel_never_has_all_threads() -> None:
    """Not even for the moment of one task, which may be three seconds."""
    end = threading.Event()
    evaluator = Evaluator(2)
    mallory = of_policy(rig.batch(*(rig.task(n) for n in range(8))), b"\x66" * 32)
    alice = rig.batch(*(rig.task(100 + n) for n in range(50)))
    burning = asyncio.create_task(evaluator.decide(_loaded(_Compiled(30.0, end), rego_fuel=MAX_FUEL), mallory, _all(mallory), ()))
    try:
        await asyncio.sleep(0.1)
        made = await asyncio.wait_for(evaluator.decide(_loaded(_Compiled(0.001, end)), alice, _all(alice), ()), 3.0)
        assert [item.task for item, _ in made] == list(range(50))
    finally:
        end.set()
        await burning
        evaluator.close()


async def test_21_nothing_is_evaluated_that_cannot_be_signed_any_more() -> None:
    now = time.time()
    calls = 0

    class _Counting:
        def evaluate(self, *_: Any, **__: Any) -> Evaluation:
            nonlocal now, calls
            calls += 1
            now += 1.0
            return Evaluation("true", 1)

    evaluator = Evaluator(2, clock=lambda: now)
    context = rig.batch(*(rig.task(n) for n in range(64)), timestamp=int(now) - limits.BATCH_LIFETIME_S + 10)
    try:
        with pytest.raises(Undecided) as undecided:
            await evaluator.decide(_loaded(_Counting()), context, _all(context), ())
    finally:
        evaluator.close()
    assert calls <= 12
    assert len(undecided.value.failures) == 64 - calls
    assert all(isinstance(error, Unavailable) for error in undecided.value.failures.values())


class _Metered:
    """Tasks named by their nonce: the expensive ones want all their fuel."""

    def __init__(self, expensive: int) -> None:
        self._expensive = expensive
        self.spent = 0

    def evaluate(self, input_json: str, *, fuel: int, **_: Any) -> Evaluation:
        nonce = int(jsonx.parse(input_json.encode(), field="input", max_bytes=1 << 20, max_depth=16)["nonce"])
        wanted = MAX_FUEL if nonce < self._expensive else 1_000_000
        self.spent += min(wanted, fuel)
        if wanted > fuel:
            raise EvaluationFailed("fuel", f"used all of {fuel} fuel", fuel=fuel)
        return Evaluation("true", wanted)


async def test_21_a_batchs_expensive_tasks_cost_its_cheap_ones_nothing() -> None:
    """Callers of one policy share its batches. Half of a batch's fuel is for everybody, so 200 tasks that want all they may have leave the
    other 56 theirs; which of the 200 are decided is the same at every operator, and what a part decided is no denial."""
    context = rig.batch(*(rig.task(n) for n in range(256)))
    left_out = []
    for threads in (2, 5):
        metered, evaluator = _Metered(200), Evaluator(threads)
        try:
            with pytest.raises(Undecided) as undecided:
                await evaluator.decide(_loaded(metered, rego_fuel=MAX_FUEL), context, _all(context), ())
        finally:
            evaluator.close()
        assert {item.task for item, _ in undecided.value.decided} >= set(range(200, 256))
        assert all(item.leaf.allow for item, _ in undecided.value.decided)
        assert all(isinstance(error, OverBudget) for error in undecided.value.failures.values())
        assert metered.spent <= BATCH_FUEL + MAX_FUEL
        left_out.append(sorted(undecided.value.failures))
    assert left_out[0] == left_out[1] == list(range(1, 200))


async def test_a_task_that_uses_all_the_fuel_of_its_policy_is_denied_like_everywhere() -> None:
    class _Endless:
        def evaluate(self, *_: Any, fuel: int, **__: Any) -> Evaluation:
            raise EvaluationFailed("fuel", f"used all of {fuel} fuel", fuel=fuel)

    context = rig.batch(*(rig.task(n) for n in range(8)))
    evaluator = Evaluator(2)
    try:
        with pytest.raises(Undecided) as undecided:
            await evaluator.decide(_loaded(_Endless(), rego_fuel=MAX_FUEL), context, _all(context), ())
        (item, _), *_ = await evaluator.decide(_loaded(_Endless(), rego_fuel=MAX_FUEL), context, _all(context)[:1], ())
    finally:
        evaluator.close()
    assert [made.task for made, _ in undecided.value.decided] == [0]
    for made in (item, *(made for made, _ in undecided.value.decided)):
        assert not made.leaf.allow
        assert str(MAX_FUEL).encode() in made.decision


# --- one task that this machine cannot decide


class _Short:
    """A machine short of memory for one of a batch's tasks, however often it tries."""

    def __init__(self, nonce: int) -> None:
        self._nonce = nonce

    def evaluate(self, input_json: str, **_: Any) -> Evaluation:
        if int(jsonx.parse(input_json.encode(), field="input", max_bytes=1 << 20, max_depth=16)["nonce"]) == self._nonce:
            raise SandboxUnavailable("this machine has too little memory left for what the policy may use")
        return Evaluation("true", 1)


async def test_18_one_tasks_missing_memory_takes_no_other_task_along(tmp_path: Path) -> None:
    """The operator abstained from the whole batch, or group: from everybody's tasks in it."""
    evaluator = Evaluator(2)
    async with operator(tmp_path) as network:
        answers = cast(Any, network.service._answers)
        policies = cast(Any, network.service._policies)
        answers._evaluator = evaluator
        policies._loaded = LoadedPolicy(policies._loaded.bundle, cast(Any, _Short(1)), ())
        context = rig.batch(*(rig.task(n) for n in range(4)))
        try:
            await network.give(context)
            responses, observations = await network.answers(context, within_s=4.0)
        finally:
            evaluator.close()
        assert not responses
        assert [item.task for item in observations[0].tasks] == [0, 2, 3]
        assert [(item.task, item.code) for item in observations[0].abstentions] == [(1, "unavailable")]


async def test_18_memory_that_is_missing_for_a_moment_is_asked_for_again() -> None:
    class _Momentarily(_Short):
        def evaluate(self, input_json: str, **more: Any) -> Evaluation:
            nonce, self._nonce = self._nonce, -1
            try:
                return _Short(nonce).evaluate(input_json, **more)
            finally:
                self._nonce = -1

    evaluator, context = Evaluator(2), rig.batch(rig.task(0))
    try:
        ((item, _),) = await evaluator.decide(_loaded(_Momentarily(0)), context, _all(context), ())
    finally:
        evaluator.close()
    assert item.leaf.allow


# --- contract wallets


class _SlowRpc(rig.StubRpc):
    """A node on which a caller's contract burns the node's whole allowance (50 million gas by default): here 0.25 s a call."""

    async def eth_call(self, *_: Any, **__: Any) -> bytes:
        await asyncio.sleep(0.25)
        return b""


async def test_21_contract_accounts_that_burn_gas_fail_no_other_task(tmp_path: Path) -> None:
    """`isValidSignature` of each task's sender was asked one after the other and without a bound: 255 tasks of half a second outlasted a
    batch, and with it Alice's task. Policies with `retryAfter`, or with data behind secrets."""
    async with operator(tmp_path, retry_after=3_600) as honest:
        cast(Any, honest.service._chains[rig.CHAIN]).rpc = _SlowRpc()
        alice = rig.signed_batch(rig.task(1)).batch.tasks[0]
        mallory = [rig.task(number) for number in range(2, 34)]
        wallets = [
            replace(task, intent=replace(task.intent, sender=Address(bytes([number]) * 20)), signature=b"\x01")
            for number, task in enumerate(mallory, 2)
        ]
        context = rig.batch(alice, *wallets)
        await honest.give(context)
        responses, observations = await honest.answers(context, within_s=3.0)
        answered = {item.task for observation in observations for item in observation.tasks}
        answered |= {item.task for response in responses for group in response.groups for item in group.decided}
        assert 0 in answered, "nothing is said of Alice's task for as long as all the others' contracts take"


async def test_21_contract_wallets_are_asked_together_and_spoil_no_others_task(tmp_path: Path) -> None:
    """An intent's sender may be a contract, whose `isValidSignature` may use all the gas a node gives it (half a second) and then say yes.
    The gateway asks for each request by itself; operators asked one task after the other. Forty such tasks of one caller, and everybody's
    in the batch was late. Policies with `retryAfter` or secrets."""
    asked: list[float] = []

    async def eth_call(self: Any, *_: Any, **__: Any) -> bytes:
        asked.append(time.monotonic())
        await asyncio.sleep(0.5)
        return bytes.fromhex("1626ba7e") + bytes(28)

    alice = rig.signed_batch(rig.task(0)).batch.tasks
    wallets = [replace(t, signature=b"\x01") for t in (rig.task(n + 1) for n in range(40))]
    context = rig.batch(*wallets, *alice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.StubRpc, "eth_call", eth_call, raising=False)
        async with operator(tmp_path, retry_after=60) as network:
            await network.give(context)
            responses, _ = await network.answers(context, within_s=8.0)
            assert responses, f"after 8 s it has asked {len(asked)} of 40 wallets"


class _Node:
    """A node with wallets that do not answer, that say yes, and that say no; it counts how many it is asked at once."""

    def __init__(self, silent: set[Address]) -> None:
        self._silent = silent
        self.gas: set[int] = set()
        self.at_once = self._now = 0

    async def eth_call(self, to: Address, data: bytes, *, block_hash: Hash32, gas: int) -> bytes:
        assert data
        assert block_hash == rig.BLOCK.hash
        self.gas.add(gas)
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        try:
            await asyncio.sleep(3600 if to in self._silent else 0.001)
        finally:
            self._now -= 1
        return bytes.fromhex("1626ba7e") + bytes(28)


def _wallet(number: int, sender: int) -> Any:
    task = rig.task(number)
    return replace(task, intent=replace(task.intent, sender=Address(bytes([sender]) * 20)), signature=b"\x01")


async def test_21_a_wallet_that_does_not_answer_delays_its_own_task_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders_module, "_ONE_S", 0.2)
    monkeypatch.setattr(senders_module, "_ALL_S", 0.5)
    mute = Address(b"\x66" * 20)
    context = rig.batch(*(_wallet(n, 0x66) for n in range(100)), *(_wallet(100 + n, n + 1) for n in range(50)), rig.task(200))
    node = _Node({mute})
    said = await asyncio.wait_for(unsigned(cast(Any, node), context, range(151)), 2.0)
    assert {item.task: item.code for item in said} == {**dict.fromkeys(range(100), "unavailable"), 150: "signature_required"}
    assert node.gas == {WALLET_GAS}
    assert 2 <= node.at_once <= 32


# --- pure components, after a restart


class _Pure:
    """Computes in no time, if there is any left: as `Components.observe` does."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    async def observe(self, loaded: LoadedPolicy, context: BatchContext, index: int, state: Any, deadline: float) -> TaskObservation:
        if self._clock() >= deadline:
            raise ObservationFailed("observation_timeout", "the data was not there in time")
        return TaskObservation(index, (b'{"n":%d}' % index,), (Hash32(bytes(32)),))


def _with_pure_data(stage: Stage, observer: _Pure) -> None:
    info = cast(Any, SimpleNamespace(pure=True, newton=False, needs_secrets=False, component=None))
    stage.policies.loaded = LoadedPolicy(stage.world.bundle, cast(Any, None), (info,))
    for service, _, _ in stage._running:
        cast(Any, service._answers)._observer = observer


async def test_20_a_policy_of_pure_components_answers_after_the_time_of_observing(stage: Stage) -> None:
    """Eight seconds after a batch's timestamp its outputs can be computed as well as before: nobody has to agree on them."""
    _with_pure_data(stage, _Pure(stage.clock))
    context = stage.world.batch(2)
    stage.clock.now = context.batch.timestamp + context.batch.observe_for_ms / 1000 + 1
    await stage.batch(context)
    assert [item.task for item in (await stage.response(context)).groups[0].decided] == [0, 1]


class _Failing(_Pure):
    """Fails some tasks, each as often as it says."""

    def __init__(self, clock: Callable[[], float], failures: dict[int, int]) -> None:
        super().__init__(clock)
        self._failures = failures

    async def observe(self, loaded: LoadedPolicy, context: BatchContext, index: int, state: Any, deadline: float) -> TaskObservation:
        if self._failures.get(index, 0):
            self._failures[index] -= 1
            raise ObservationFailed("data_unavailable", "no worker")
        return await super().observe(loaded, context, index, state, deadline)


@pytest.mark.parametrize("failures", [{0: 9}, {0: 9, 1: 1, 2: 1}], ids=["computed again", "computed when it is asked for"])
async def test_20_after_a_restart_a_proposal_over_pure_components_is_answered(stage: Stage, failures: dict[int, int]) -> None:
    """It has vouched for its tasks, dies, and comes back when the time of observing is over: then it had no outputs, and no answer."""
    _with_pure_data(stage, _Failing(stage.clock, {0: 9}))
    world, abstained = stage.world, Abstention(0, "data_unavailable", "no worker")
    context = world.batch(3)
    await stage.batch(context)
    assert [item.task for item in (await stage.observation(context)).tasks] == [1, 2]
    await stage.kill()
    stage.clock.now = context.batch.timestamp + context.batch.observe_for_ms / 1000 + 5
    await stage.start()
    _with_pure_data(stage, _Failing(stage.clock, failures))
    judged: dict[int, tuple[bytes, ...]] = {}
    decide = stage.evaluator.decide

    async def judge(loaded: LoadedPolicy, context: BatchContext, tasks: Sequence[TaskToDecide], observations: Sequence[bytes]) -> Any:
        judged.update({task.index: task.outputs for task in tasks})
        return await decide(loaded, context, tasks, observations)

    stage.evaluator.decide = judge  # type: ignore[method-assign]
    await stage.propose(context, [world.observation(member, context, [1, 2], [abstained]) for member in world.members])
    response = await stage.response(context)
    assert [item.task for item in response.groups[0].decided] == [1, 2]
    assert [item.task for item in response.abstentions] == [0]
    assert judged == {1: (b'{"n":1}',), 2: (b'{"n":2}',)}


# --- admission


def _announced(policy_id: bytes, address: Hash32) -> bytes:
    payload = wire.encode_policy_announcement(PolicyAnnouncement(Hash32(policy_id), address))
    return seal(rig.GATEWAY, kind=Kind.POLICY_ANNOUNCEMENT, chain_id=0, sender=rig.GATEWAY.public_key, payload=payload)


def _store(bus: InProcessBus, objects: ObjectStore, engine: Any = None, components: Any = None) -> PolicyStore:
    return PolicyStore(
        bus=bus,
        objects=objects,
        engine=engine,
        components=components,
        operator=rig.identities()[0].address,
        bus_signer=LocalBusSigner(b"\x05" * 32),
        publishers=frozenset({rig.GATEWAY.public_key}),
    )


async def test_29_a_bundle_that_makes_no_id_ends_no_operator() -> None:
    """A gateway's announcement is enough. `validFor` of -1 raises OverflowError when the id is computed, before anything bounds it, and
    nobody caught that: the operator ended, and ended again whenever it was started, because the announcement stands. All operators did."""
    objects, bus = ObjectStore("memory:///"), InProcessBus()
    await bus.start()
    empty = "0x" + (await objects.put(b"{}")).hex()
    module = "0x" + (await objects.put(b"package a")).hex()
    document = {
        "version": 1,
        "modules": [{"name": "a.rego", "sha256": module}],
        "entrypoint": "data.a.decision",
        "params": empty,
        "schema": empty,
        "inference": empty,
        "policyData": [],
        "bindings": [],
        "calls": [{"self": True, "target": "0x" + "00" * 20, "signature": "ping()", "unpack": ""}],
        "ordering": 0,
        "validFor": -1,
        "retryAfter": 0,
        "engineSha256": "0x" + "00" * 32,
        "regoFuel": 10**9,
        "regoMemory": 1 << 26,
    }
    address = await objects.put(jsonx.canonical(document))
    await bus.publish(topics.POLICIES, b"\x01" * 32, _announced(b"\x01" * 32, address))
    store = _store(bus, objects)
    await store.start()
    running = asyncio.create_task(store.run())
    await asyncio.sleep(0.5)
    try:
        assert not running.done(), f"the operator ends: {running.exception()!r}"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.stop()
        await bus.stop()


class _Engine:
    sha256 = "02" * 32


class _Compiler:
    """Refuses, or never gets to the end."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.compiled = 0

    async def admit(self, artefact: PolicyDataArtefact) -> Any:
        self.compiled += 1
        raise self._error


def _bundle() -> PolicyBundle:
    artefact = PolicyDataArtefact(b"\0asm" + bytes(8), b'{"name":"a"}')
    return PolicyBundle(replace(rig.policy(), policy_data_ids=(artefact.id,), engine_sha256=Hash32(b"\x02" * 32)), (artefact,))


_NOT_YET = Unavailable("sandbox: not admitted here yet: the compiler ended with -9")


async def test_29_a_component_that_never_compiles_is_not_compiled_for_ever() -> None:
    """Out of the compiler's 60 CPU seconds is "not yet", and "not yet" was tried again two seconds later, for ever, by the operator's one
    component worker, which nobody's data was fetched with meanwhile. 400 kB of nested loops do it: announced once, at all operators, and
    again after every restart."""
    objects, bus, bundle, compiler = ObjectStore("memory:///"), InProcessBus(), _bundle(), _Compiler(_NOT_YET)
    await bus.start()
    await bus.publish(topics.POLICIES, bundle.id, _announced(bundle.id, await store_bundle(objects, bundle)))
    store = _store(bus, objects, _Engine(), compiler)
    await store.start()
    running = asyncio.create_task(store.run())
    await asyncio.sleep(9.5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.stop()
    await bus.stop()
    assert 1 <= compiler.compiled <= 3, f"{compiler.compiled} times in 9.5 s: the pauses do not grow"


async def test_29_neither_batches_nor_announcements_end_the_pause_after_a_failed_admission(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(policies_module, "time", SimpleNamespace(monotonic=lambda: now))
    objects, bus, bundle, compiler = ObjectStore("memory:///"), InProcessBus(), _bundle(), _Compiler(_NOT_YET)
    store = _store(bus, objects, _Engine(), compiler)
    store._announced[bundle.id] = await store_bundle(objects, bundle)
    tried = []
    for second in range(1_500):
        now = 1_000.0 + second
        before = compiler.compiled
        for _ in range(3):
            with pytest.raises(Unavailable, match="the compiler ended"):
                await store.get(bundle.id)
        if compiler.compiled > before:
            tried.append(second)
    assert tried == [0, 2, 6, 14, 30, 62, 126, 254, 510, 1022]
    await store.stop()


async def test_29_what_was_refused_is_not_checked_again() -> None:
    """A refusal is a function of the policy and the checker: whoever announces it again learns the same, at no cost."""
    objects, bus, bundle, compiler = ObjectStore("memory:///"), InProcessBus(), _bundle(), _Compiler(InvalidInput("component: no"))
    store = _store(bus, objects, _Engine(), compiler)
    with pytest.raises(NotFound):
        await store.get(bundle.id)
    store._announced[bundle.id] = await store_bundle(objects, bundle)
    for _ in range(3):
        with pytest.raises(InvalidInput, match="component: no"):
            await store.get(bundle.id)
    assert compiler.compiled == 1
    await store.stop()


# --- publishing


class _Client:
    def __init__(self, world: World, said: Sequence[bool | None]) -> None:
        self._admissions = [
            {"operator": hex0x(member.address), "stake": "100", "admitted": word, "reason": "" if word else "no"}
            for member, word in zip(world.members, said, strict=True)
        ]

    async def policy(self, policy_id: str) -> dict[str, Any]:
        return {"admissions": {str(CHAIN_ID): self._admissions}}


async def _publish(said: Sequence[bool | None]) -> list[dict[str, Any]]:
    world = World()
    return await _admissions(cast(Any, _Client(world, said)), cast(Any, SimpleNamespace(id=world.policy_id)), CHAIN_ID, 1.0)


async def test_29_one_operators_refusal_fails_no_publication() -> None:
    """Three of four admitted it, and gateways take tasks for it; the command ended as `policy_not_admitted`, for every policy there is."""
    said = await _publish([True, True, True, False])
    assert sum(bool(item["admitted"]) for item in said) == 3


async def test_29_a_publication_fails_as_soon_as_two_thirds_cannot_admit_it() -> None:
    from placet.core.errors import PolicyNotAdmitted

    with pytest.raises(PolicyNotAdmitted) as refused:
        await _publish([False, None, None, False])
    assert len(refused.value.extra["operators"]) == 2


# --- evidence, and the log's heart


async def test_26_a_second_group_with_the_same_decision_leaves_nothing_behind(tmp_path: Path, stores: list[EvidenceStore]) -> None:
    """The whole batch was decided, then somebody abstained and the Proposal's group was: the second object was written, no row named it,
    and nothing ever removed it. One operator that abstained from one task of every batch doubled what was kept, for ever."""
    store = stores[0]
    await store.put([record(1), record(2)], NOW)
    await store.put([record(1)], NOW)
    await store.prune(NOW + 91 * DAY_S)
    assert objects_in(tmp_path) == []


class _Hasty:
    """asyncio, but sleepers wake in their order, at their time by the stage's clock, which goes on when both of a service's loops sleep."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._slept = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        self._slept += 1
        wakes: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._stage.clock.now + seconds, self._slept, wakes))
        await wakes

    def pass_time(self) -> None:
        if len(self._sleepers) == 2:
            at, _, wakes = heapq.heappop(self._sleepers)
            self._stage.clock.now = max(self._stage.clock.now, at)
            if not wakes.done():
                wakes.set_result(None)


class _Pruning(Evidence):
    """5,000 objects of a bucket that takes 30 ms to remove one: ten minutes at eight batches a second."""

    def __init__(self, hasty: _Hasty) -> None:
        self._hasty = hasty
        self.removed = 0

    async def prune(self, now: int) -> None:
        for _ in range(50):
            await self._hasty.sleep(3.0)
            self.removed += 100


async def test_20_the_logs_heart_beats_while_evidence_is_pruned(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Housekeeping waited for the pruning; after 120 s without a heartbeat the log takes itself for a restored copy, and every batch of the
    next seconds is refused as `signing_log_young`: at every operator, every ten minutes."""
    await stage.kill()
    await stage.log.open(int(stage.clock.now))
    since, began, hasty = stage.log.not_before, stage.clock.now, _Hasty(stage)
    monkeypatch.setattr(service_module, "asyncio", hasty)
    service = await stage.start()
    evidence = _Pruning(hasty)
    service._evidence = cast(Any, evidence)
    ends = time.monotonic() + 20
    while stage.clock.now < began + 900 and time.monotonic() < ends:
        await asyncio.sleep(0.001)
        hasty.pass_time()
    assert stage.clock.now >= began + 800
    assert evidence.removed == 5_000
    assert stage.log.not_before == since


# --- what a denial starts


async def test_11_an_undefined_entrypoint_denies_for_a_while_too(tmp_path: Path) -> None:
    """`allow if …` without a default is undefined when it denies: an ordinary way to write a policy. Since only what the policy "gave"
    starts `retryAfter` (audit 4), and undefined counts as given by nobody, such a policy's `retryAfter` does nothing: the denied
    action is asked for again every second until a feed flips."""

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
