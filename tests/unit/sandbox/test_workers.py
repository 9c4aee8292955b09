"""The pool: both sandboxes from an event loop, and what happens when workers hang, die or are cut off."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from placet.sandbox import wire
from placet.sandbox.check import Finding
from placet.sandbox.errors import EvaluationFailed, PolicyRejected, SandboxUnavailable
from placet.sandbox.manifest import ManifestError
from placet.sandbox.policydata import ComponentFailed, ComponentRejected, ReplayDiverged
from placet.sandbox.rego import DataSection, PolicySource, RegoLimits
from placet.sandbox.transcript import Entry, Transcript
from placet.sandbox.workers import HostConfig, PoolBusy, WorkerPool
from tests.support.waiting import until

Kit = Any
POLICY = PolicySource(
    {"p.rego": "package p\nx := [data.params.limit, data.wasm.v, input.a, time.now_ns()]"},
    "data.p.x",
    (DataSection("params", '{"limit": 5}'),),
)
SLOW = PolicySource(
    {"p.rego": "package p\nr := numbers.range(1, 2000)\nx := count([1 | some a in r; some b in r; some c in r; a + b == c * 99999])"},
    "data.p.x",
    limits=RegoLimits(fuel=20_000_000_000),
)


@pytest.fixture
async def pool(sandbox_cache: Path) -> AsyncIterator[WorkerPool]:
    async with WorkerPool(cache_dir=sandbox_cache, size=2) as pool:
        yield pool


def pids(pool: WorkerPool) -> set[int]:
    return {process.pid for process in (*pool._idle, *pool._busy)}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_policy_is_evaluated_explained_and_checked_in_a_worker(pool: WorkerPool) -> None:
    data = (DataSection("wasm", '{"v": 1.5}', fractions=True),)
    seen = set()
    for _ in range(6):
        result = await pool.evaluate("policy", POLICY, '{"a": 7}', data=data, now_ns=9)
        seen.add((result.value_json, result.fuel))
    assert len(seen) == 1
    assert result.value_json == "[5,1.5,7,9]"
    explanation = await pool.explain("policy", POLICY, '{"a": 7}', data=data, now_ns=9)
    assert explanation.value_json == "[5,1.5,7,9]"
    assert explanation.coverage["p.rego"].covered == (2,)
    assert await pool.check({"p.rego": "package p\nx := http.send({})"}, "data.p.x") == [
        Finding("p.rego", 2, "unknown-function", "there is no function http.send")
    ]


async def test_18_failures_keep_their_class_and_their_kind(pool: WorkerPool) -> None:
    with pytest.raises(EvaluationFailed) as failed:
        await pool.evaluate("policy", POLICY, '{"a": 1.5}')
    assert failed.value.kind == "error"
    with pytest.raises(PolicyRejected):
        await pool.evaluate("broken", PolicySource({"p.rego": "nonsense"}, "data.p.x"), "{}")
    with pytest.raises(EvaluationFailed) as failed:
        await pool.evaluate("recursive", PolicySource({"p.rego": "package p\nf(n) := f(n)\nx := f(1)"}, "data.p.x"), "{}")
    assert failed.value.kind == "stack"
    assert pool.restarts == 0


async def test_many_requests_share_few_workers(pool: WorkerPool) -> None:
    data = (DataSection("wasm", '{"v": 1}'),)
    results = await asyncio.gather(*(pool.evaluate(f"policy {i % 5}", POLICY, f'{{"a": {i}}}', data=data, now_ns=1) for i in range(60)))
    assert [json.loads(str(r.value_json))[2] for r in results] == list(range(60))
    assert len(pids(pool)) <= 2


async def test_18_a_deadline_kills_the_worker_and_the_operator_abstains(pool: WorkerPool) -> None:
    before = pids(pool)
    with pytest.raises(SandboxUnavailable, match=r"within 0\.2 s"):
        await pool.evaluate("slow", SLOW, "{}", deadline_s=0.2)
    await until(lambda: len([pid for pid in before if alive(pid)]) == 1)
    assert pool.restarts == 1
    assert (await pool.evaluate("policy", POLICY, '{"a": 7}', data=(DataSection("wasm", '{"v": 1}'),), now_ns=9)).value_json == "[5,1,7,9]"


async def test_18_a_killed_worker_is_an_outage_and_is_replaced(pool: WorkerPool) -> None:
    running = asyncio.create_task(pool.evaluate("slow", SLOW, "{}"))
    await until(lambda: len(pool._busy) == 1)
    (busy,) = pool._busy
    await asyncio.sleep(0.05)
    os.kill(busy.pid, signal.SIGKILL)
    with pytest.raises(SandboxUnavailable, match="died"):
        await running
    for pid in pids(pool):  # idle ones too
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not any(alive(pid) for pid in pids(pool)))
    for _ in range(4):
        with contextlib.suppress(SandboxUnavailable):
            result = await pool.evaluate("policy", POLICY, '{"a": 7}', data=(DataSection("wasm", '{"v": 1}'),), now_ns=9)
    assert result.value_json == "[5,1,7,9]"


async def test_a_cancelled_request_does_not_leave_a_busy_worker(pool: WorkerPool) -> None:
    running = asyncio.create_task(pool.evaluate("slow", SLOW, "{}"))
    await until(lambda: len(pool._busy) == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not pool._busy
    assert (await pool.evaluate("one", PolicySource({"p.rego": "package p\nx := 1"}, "data.p.x"), "{}")).value_json == "1"


async def test_a_full_queue_says_so_at_once(sandbox_cache: Path) -> None:
    async with WorkerPool(cache_dir=sandbox_cache, size=1, queue_limit=1) as pool:
        first = asyncio.create_task(pool.evaluate("slow", SLOW, "{}", deadline_s=5))
        await until(lambda: len(pool._busy) == 1)
        second = asyncio.create_task(pool.evaluate("slow", SLOW, "{}", deadline_s=5))
        await until(lambda: pool.waiting == 1)
        with pytest.raises(PoolBusy):
            await pool.evaluate("slow", SLOW, "{}")
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def test_workers_are_replaced_after_their_share(sandbox_cache: Path) -> None:
    async with WorkerPool(cache_dir=sandbox_cache, size=1, recycle_after=2) as pool:
        source = PolicySource({"p.rego": "package p\nx := 1"}, "data.p.x")
        seen = set()
        for _ in range(6):
            assert (await pool.evaluate("one", source, "{}")).value_json == "1"
            await until(lambda: len(pids(pool)) == 1)
            seen |= pids(pool)
        assert len(seen) == 4
        assert pool.restarts == 0


async def test_a_closed_pool_leaves_no_process(sandbox_cache: Path) -> None:
    pool = WorkerPool(cache_dir=sandbox_cache, size=2)
    await pool.start()
    running = asyncio.create_task(pool.evaluate("slow", SLOW, "{}"))
    await until(lambda: len(pool._busy) == 1)
    workers = pids(pool)
    await pool.close()
    with pytest.raises(SandboxUnavailable):
        await running
    assert not any(alive(pid) for pid in workers)
    with pytest.raises(SandboxUnavailable, match="closed"):
        await pool.evaluate("slow", SLOW, "{}")


PARENT = """
import asyncio, json, sys
sys.path[:] = json.loads(sys.argv[1])
from pathlib import Path
from placet.sandbox.rego import PolicySource, RegoLimits
from placet.sandbox.workers import WorkerPool
text = "package p\\nr := numbers.range(1, 2000)\\nx := count([1 | some a in r; some b in r; some c in r; a + b == c * 99999])"
async def main():
    pool = WorkerPool(cache_dir=Path(sys.argv[2]), size=2)
    await pool.start()
    task = asyncio.create_task(pool.evaluate("slow", PolicySource({"p.rego": text}, "data.p.x", limits=RegoLimits(fuel=2 * 10**10)), "{}"))
    while not pool._busy:
        await asyncio.sleep(0.01)
    print(json.dumps([p.pid for p in (*pool._idle, *pool._busy)]), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_workers_die_with_their_parent_busy_or_not(sandbox_cache: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, json.dumps(sys.path), str(sandbox_cache)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = json.loads(await asyncio.to_thread(parent.stdout.readline))
    assert all(alive(pid) for pid in workers)
    parent.kill()
    parent.wait()
    await until(lambda: not any(alive(pid) for pid in workers), within_s=3.0)


async def test_28_a_worker_has_nothing_of_its_parent_s_environment(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid in pids(pool):
        names = {item.split("=")[0] for item in Path(f"/proc/{pid}/environ").read_text().split("\0") if item}
        assert names <= {"LANG", "LC_CTYPE"}


async def test_components_run_in_workers(pool: WorkerPool, kit: Kit) -> None:
    component = kit.placet("(call $answer (i32.const 100) (i32.const 7))", {100: '{"v":1}'})
    admitted = await pool.admit_component(component, kit.manifest())
    result = await pool.run_component(admitted.sha256, kit.manifest(), kit.request())
    assert (result.output_json, result.pure) == ('{"v":1}', True)
    trap = await pool.admit_component(kit.placet("unreachable"), kit.manifest())
    with pytest.raises(ComponentFailed) as failed:
        await pool.run_component(trap.sha256, kit.manifest(), kit.request())
    assert (failed.value.kind, failed.value.pure) == ("trap", True)
    with pytest.raises(ComponentRejected):
        await pool.admit_component(b"nonsense", kit.manifest())
    with pytest.raises(ManifestError):
        await pool.admit_component(component, b"{}")
    with pytest.raises(SandboxUnavailable, match="not admitted"):
        await pool.run_component("00" * 32, kit.manifest(), kit.request())
    replay = Transcript((Entry("http.fetch", ["GET", "https://a.test/", [], None], ["ok", 200, [], ""]),))
    with pytest.raises(ReplayDiverged):
        await pool.run_component(admitted.sha256, kit.manifest(), kit.request(), replay=replay)


async def test_28_the_worker_s_fetcher_follows_the_manifest_and_the_pool_s_configuration(pool: WorkerPool, kit: Kit) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"v":5}')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://localhost:{port}/"
    component = kit.placet(
        f"""(call $fetch (i32.const 0) (i32.const 100) (i32.const {len(url)}) (i32.const 0) (i32.const 0)
              (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 200))
            (if (i32.load8_u (i32.const 200)) (then unreachable))
            (call $answer (i32.load (i32.const 220)) (i32.load (i32.const 224)))""",
        {100: url},
        host=True,
    )
    manifest = kit.manifest(allowed_hosts=[f"localhost:{port}"])
    admitted = await pool.admit_component(component, manifest)
    local = HostConfig(private_hosts=(f"localhost:{port}",))
    result = await pool.run_component(admitted.sha256, manifest, kit.request(), local)
    assert result.output_json == '{"v":5}'
    assert not result.pure
    replayed = await pool.run_component(admitted.sha256, manifest, kit.request(), HostConfig(network=False), replay=result.transcript)
    assert (replayed.output_json, replayed.fuel) == (result.output_json, result.fuel)
    for host in (HostConfig(), HostConfig(private_hosts=("localhost:1",)), HostConfig(network=False)):
        with pytest.raises(ComponentFailed) as failed:
            await pool.run_component(admitted.sha256, manifest, kit.request(), host)
        assert not failed.value.pure
    with pytest.raises(ComponentFailed):
        await pool.run_component(admitted.sha256, kit.manifest(), kit.request(), local)
    server.close()
    await server.wait_closed()
    with pytest.raises(SandboxUnavailable, match="connect"):
        await pool.run_component(admitted.sha256, manifest, kit.request(), local)


@pytest.mark.parametrize(
    "error",
    [
        EvaluationFailed("fuel", "used", fuel=5),
        PolicyRejected("no", kind="size"),
        ComponentFailed("trap", "no", pure=False, fuel=1, transcript=Transcript((Entry("clock", None, 1),))),
        ComponentRejected("no"),
        ReplayDiverged(3, "a", "b"),
        SandboxUnavailable("no"),
    ],
)
def test_errors_cross_the_pipe_whole(error: Any) -> None:
    copy = wire.error_from_wire(json.loads(wire.pack(wire.error_to_wire(error))[4:]))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert wire.error_to_wire(copy) == wire.error_to_wire(error)


async def test_workers_that_are_not_kept_start_on_demand_and_end_with_their_work(sandbox_cache: Path) -> None:
    async with WorkerPool(cache_dir=sandbox_cache, size=2, ready=0, keep=0) as pool:
        assert pids(pool) == set()
        assert await pool.check({"p.rego": "package p\nx := 1"}, "data.p.x") == []
        await until(lambda: not pool._replacing)
        assert pids(pool) == set()
        assert await pool.check({"p.rego": "package p\nx := 1"}, "data.p.y") != []
        assert pool.restarts == 0


async def test_21_an_expensive_policy_leaves_a_worker_for_others(pool: WorkerPool) -> None:
    running = [asyncio.create_task(pool.evaluate("slow", SLOW, "{}", deadline_s=5)) for _ in range(3)]
    await until(lambda: len(pool._busy) == 1)
    assert (await pool.evaluate("one", PolicySource({"p.rego": "package p\nx := 1"}, "data.p.x"), "{}", deadline_s=2)).value_json == "1"
    assert not any(task.done() for task in running)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_requests_that_are_cancelled_while_they_wait_leave_all_places_behind(pool: WorkerPool) -> None:
    source = PolicySource({"p.rego": "package p\nx := 1"}, "data.p.x")
    for turns in range(12):
        requests = [asyncio.create_task(pool.evaluate("one", source, "{}")) for _ in range(8)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for request in requests[::2]:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await until(lambda: not pool._replacing)
    assert pool.waiting == 0
    assert pool._queue.free == 2
    assert (await pool.evaluate("one", source, "{}")).value_json == "1"
