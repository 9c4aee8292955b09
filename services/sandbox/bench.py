"""What the sandboxes cost. `python services/sandbox/bench.py`; runs in about 20 s.

Each line: microseconds per call, least and median of the calls; calls are made one after the other in this process, or
through a pool of two workers where it says so.
"""
# ruff: noqa: T201

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from wasmtime import wat2wasm

from placet.sandbox.policydata import ComponentEngine, LiveHost, RunContext, RunRequest
from placet.sandbox.rego import DataSection, PolicySource, RegoEngine
from placet.sandbox.workers import WorkerPool

POLICY = """package bench
import rego.v1

default decision := {"allow": false, "reasons": ["no rule matched"]}

limits := {"transfer": 1000000, "approve": 50000, "swap": 200000}

sanctioned contains to if {
	to := lower(input.tx.to)
	some a in data.params.sanctions
	a == to
}

reasons contains msg if {
	some a in sanctioned
	msg := sprintf("recipient %s is sanctioned", [a])
}

reasons contains msg if {
	limit := limits[input.tx.method]
	input.tx.amount > limit
	msg := sprintf("amount %d over the %s limit %d", [input.tx.amount, input.tx.method, limit])
}

reasons contains "unknown method" if not limits[input.tx.method]
reasons contains "daily limit" if sum([h.amount | some h in input.history]) + input.tx.amount > 5000000

decision := {"allow": true, "reasons": []} if count(reasons) == 0
decision := {"allow": false, "reasons": sort([r | some r in reasons])} if count(reasons) > 0
"""
SANCTIONS = json.dumps({"sanctions": [f"0x{i:040x}" for i in range(1_000)]})
INPUT = json.dumps({"tx": {"to": "0xABC", "method": "transfer", "amount": 10}, "history": [{"amount": 5}]})
LARGE = PolicySource({"p.rego": POLICY}, "data.bench.decision", (DataSection("params", SANCTIONS),))
SMALL = PolicySource({"p.rego": "package p\nimport rego.v1\ndefault allow := false\nallow if input.tx.amount < 100\n"}, "data.p.allow")
TASK = (DataSection("task", '{"timestamp": 1700000000}'), DataSection("wasm", '{"price_e6": 1}'))

COMPONENT = """(component
  (import "placet:policydata/types@1.0.0" (instance $t (type $c (record (field "timestamp" u64) (field "block-number" u64)
    (field "block-hash" string) (field "chain-id" u64) (field "policy-client" string))) (export "context" (type (eq $c)))))
  (alias export $t "context" (type $context))
  (core module $m (memory (export "memory") 2) (global $next (mut i32) (i32.const 65536))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.get $next) (global.set $next (i32.add (global.get $next) (i32.add (local.get 3) (i32.const 8)))))
    (func (export "run") (param i64 i64 i32 i32 i64 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (i32.store (i32.const 20) (local.get 11)) (i32.store (i32.const 24) (local.get 12)) (i32.const 16)))
  (core instance $i (instantiate $m))
  (func $run (param "context" $context) (param "intent" string) (param "params" string) (param "arguments" string)
    (result (result string (error string)))
    (canon lift (core func $i "run") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
  (export "run" (func $run)))"""


def measure(name: str, call: Callable[[], object], number: int = 1_000) -> None:
    times = []
    for _ in range(number):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    print(f"{name:<58} {min(times) * 1e6:8.0f} {statistics.median(times) * 1e6:8.0f} us")


async def measure_pool(cache: Path, number: int = 2_000) -> None:
    started = time.perf_counter()
    async with WorkerPool(cache_dir=cache, size=2, queue_limit=number) as pool:
        print(f"{'pool of 2: ready after':<58} {(time.perf_counter() - started) * 1e3:17.0f} ms")
        for name, source in (("1,000 addresses", LARGE), ("one comparison", SMALL)):
            await asyncio.gather(*(pool.evaluate(name, source, INPUT, data=TASK) for _ in range(8)))
            started = time.perf_counter()
            for _ in range(300):
                await pool.evaluate(name, source, INPUT, data=TASK)
            alone = (time.perf_counter() - started) / 300
            started = time.perf_counter()
            await asyncio.gather(*(pool.evaluate(name, source, INPUT, data=TASK) for _ in range(number)))
            rate = number / (time.perf_counter() - started)
            print(f"{'pool of 2: ' + name:<58} {alone * 1e6:8.0f} us one by one, {rate:6.0f}/s together")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache.mkdir(mode=0o700)
        for name in ("engine: first load (compiles)", "engine: load from cache"):
            started = time.perf_counter()
            engine = RegoEngine(cache_dir=cache / "rego")
            print(f"{name:<58} {(time.perf_counter() - started) * 1e3:17.0f} ms")
        for name, source in (("1,000 addresses", LARGE), ("one comparison", SMALL)):
            measure(f"rego, {name}: prepare", lambda source=source: engine.prepare(source), 100)  # type: ignore[misc]
            policy = engine.prepare(source)
            fuels = {policy.evaluate(INPUT).fuel for _ in range(3)}
            measure(f"rego, {name}: evaluate ({fuels} fuel)", lambda policy=policy: policy.evaluate(INPUT))  # type: ignore[misc]
            measure(f"rego, {name}: with task data", lambda policy=policy: policy.evaluate(INPUT, data=TASK))  # type: ignore[misc]
            measure(f"rego, {name}: explain", lambda policy=policy: policy.explain(INPUT, data=TASK), 200)  # type: ignore[misc]
        components = ComponentEngine(cache / "components")
        text = {"name": "bench", "world": "placet:policydata@1.0.0", "output": {"type": "object", "properties": {"v": {"type": "json"}}}}
        from placet.sandbox.manifest import Manifest

        manifest = Manifest.parse(json.dumps(text).encode())
        started = time.perf_counter()
        admitted = components.admit(bytes(wat2wasm(COMPONENT)), manifest)
        print(f"{'component: admit a trivial one':<58} {(time.perf_counter() - started) * 1e3:17.0f} ms")
        request = RunRequest(RunContext(1, 1, "0x" + "00" * 32, 1, "0x" + "00" * 20))
        measure("component: run a trivial one", lambda: components.run(admitted.sha256, manifest, request, LiveHost()))
        components.close()
        asyncio.run(measure_pool(cache))


if __name__ == "__main__":
    main()
