"""Output and fuel are functions of the request: that is what lets operators sign a policy's outcome."""

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from wasmtime import Config

from placet.sandbox import rego as rego_module
from placet.sandbox.errors import EvaluationFailed
from placet.sandbox.rego import DataSection, PolicySource, RegoEngine, RegoLimits

POLICY = """package p
import rego.v1

x := {"allow": count(reasons) == 0, "reasons": sort([r | some r in reasons]), "hash": crypto.sha256(input.to), "at": time.now_ns()}

reasons contains msg if {
    some name, limit in data.params
    some h in input.history
    h.amount > limit
    msg := sprintf("%s %d %v", [name, h.amount, {k: v | some k, v in input}])
}

reasons contains "regex" if regex.match(`^0x[a-f0-9]+$`, input.to)
reasons contains "set" if {"c", "b", "a"} & {a | some a in data.wasm.list} != set()
reasons contains "deep" if f(120) > 0

f(n) := n if n == 0
f(n) := n * 2 if n > 0
"""
SOURCE = PolicySource({"p.rego": POLICY}, "data.p.x", (DataSection("params", '{"a": 5, "b": 10}'),))
INPUTS = [
    json.dumps({"to": f"0x{i:040x}", "history": [{"amount": j * i} for j in range(i)], **{f"k{j}": j for j in range(i)}})
    for i in range(1, 6)
]
DATA = (DataSection("wasm", '{"list": ["a", "x"]}'), DataSection("task", '{"timestamp": 1700000000}'))

# 200 fresh instances over five inputs; says one line per distinct (input, output, fuel).
PROGRAM = """
import importlib.util, json, sys
from pathlib import Path
sys.path[:] = json.loads(sys.argv[1])
from placet.sandbox.rego import RegoEngine
spec = importlib.util.spec_from_file_location("case", sys.argv[2])
case = importlib.util.module_from_spec(spec)
spec.loader.exec_module(case)
print(json.dumps(case.observe(RegoEngine(cache_dir=Path(sys.argv[3])), 20)))
"""


def observe(rego: RegoEngine, rounds: int) -> list[str]:
    seen = set()
    images = set()
    for _ in range(rounds):
        policy = rego.prepare(SOURCE)
        images.add(policy.image_sha256)
        for number, text in enumerate(INPUTS):
            for _ in range(2):  # a fresh instance, then the kept one
                result = policy.evaluate(text, data=DATA, now_ns=1_700_000_000_000_000_000)
                digest = hashlib.sha256(str(result.value_json).encode()).hexdigest()
                seen.add(f"{number} {digest} {result.fuel}")
    return [*sorted(images), *sorted(seen)]


def test_200_runs_in_each_of_two_processes_give_one_output_and_one_fuel_an_input(rego: RegoEngine, sandbox_cache: Path) -> None:
    here = observe(rego, 20)
    assert len(here) == 1 + len(INPUTS)
    there = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(sys.path), __file__, str(sandbox_cache / "rego")],
        capture_output=True, check=True, text=True,
        env={"PYTHONHASHSEED": "12345", "RUST_BACKTRACE": "1", "TZ": "Asia/Tokyo"},
    )  # fmt: skip
    assert json.loads(there.stdout) == here


def test_threads_do_not_disturb_each_other(rego: RegoEngine) -> None:
    policy = rego.prepare(SOURCE)
    want = policy.evaluate(INPUTS[0], data=DATA, now_ns=1)
    seen: list[object] = []

    def work() -> None:
        seen.extend(policy.evaluate(INPUTS[0], data=DATA, now_ns=1) for _ in range(25))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [want] * 100


def test_failures_are_deterministic_too(rego: RegoEngine) -> None:
    for body in (
        "f(n) := f(n)\nx := f(1)",
        'x := sprintf("%1000000000d", [1])',
        'x := u256.sub("1", "2")',
        "x := numbers.range(1, 200000000)",
    ):
        seen = set()
        for _ in range(5):
            policy = rego.prepare(PolicySource({"p.rego": f"package p\n{body}"}, "data.p.x"))
            for _ in range(2):
                try:
                    policy.evaluate("{}")
                except EvaluationFailed as failed:
                    seen.add((failed.kind, failed.message, failed.fuel))
        assert len(seen) == 1, body


def test_29_nothing_of_an_evaluation_is_left_for_the_next_one(rego: RegoEngine) -> None:
    policy = rego.prepare(PolicySource({"p.rego": "package p\nx := count(input)"}, "data.p.x"))
    policy.evaluate(json.dumps(["the secret of another tenant"] * 10))
    (kept,) = policy._idle
    assert b"the secret of another tenant" in kept.snapshot()
    kept.restore(policy._image)
    assert b"the secret of another tenant" not in kept.snapshot()
    assert kept.snapshot() == policy._image


def test_29_an_instance_is_dropped_after_a_trap_and_when_its_memory_grew(rego: RegoEngine) -> None:
    policy = rego.prepare(
        PolicySource({"p.rego": "package p\nf(n) := f(n)\nx := f(1) if input.trap\nx := 1 if not input.trap"}, "data.p.x")
    )
    policy.evaluate('{"trap": false}')
    assert len(policy._idle) == 1
    with pytest.raises(EvaluationFailed, match="stack"):
        policy.evaluate('{"trap": true}')
    assert policy._idle == []
    policy.evaluate(json.dumps({"trap": False, "large": "a" * (4 << 20)}))
    assert policy._idle == []
    assert policy.evaluate('{"trap": false}').value_json == "1"


def test_29_images_are_kept_by_policy_and_within_a_budget(rego: RegoEngine, sandbox_cache: Path) -> None:
    engine = RegoEngine(cache_dir=sandbox_cache / "rego", image_budget_bytes=12 << 20)
    loads: list[int] = []

    def evaluate(limit: int) -> str | None:
        return engine.policy(f"policy {limit}", lambda: source(limit)).evaluate("{}").value_json

    def source(limit: int) -> PolicySource:
        loads.append(limit)
        return PolicySource({"p.rego": "package p\nx := data.params.limit"}, "data.p.x", (DataSection("params", f'{{"limit": {limit}}}'),))

    # The same Rego with other params is another policy: keyed by policyId, they never mix.
    for limit in (1, 2, 1, 2):
        assert evaluate(limit) == str(limit)
    assert loads == [1, 2]
    for limit in range(3, 20):
        evaluate(limit)
    assert len(engine._images) <= 4
    assert evaluate(1) == "1"
    assert loads.count(1) == 2


def test_the_module_s_own_stack_ends_before_the_host_s(rego: RegoEngine) -> None:
    """Otherwise the depth at which a policy fails would depend on the code generator."""
    rules = "".join(f"r{i} := r{i + 1} + 1\n" for i in range(400)) + "r400 := 1\nx := r0"
    policy = rego.prepare(PolicySource({"p.rego": f"package p\n{rules}"}, "data.p.x", limits=RegoLimits(fuel=10**10)))
    with pytest.raises(EvaluationFailed, match="stack"):  # SandboxUnavailable would mean the host's stack
        policy.evaluate("{}")


CASES = {
    "a value": 'x := sprintf("%v %s", [input, crypto.sha256("a")])',
    "floats": "x := [0.1 + 0.2, 100 * 1.1, 10000000000 * 1.5]",
    "recursion": "f(n) := f(n)\nx := f(1)",
    "nested rules": "".join(f"r{i} := r{i + 1} + 1\n" for i in range(400)) + "r400 := 1\nx := r0",
    "brackets": "x := " + "[" * 10_000,
    "a panic": "x := numbers.range(1, 200000000)",
    "memory": 'x := sprintf("%1000000000d", [1])',
    "fuel": "x := count([1 | some i in numbers.range(1, 3000); some j in numbers.range(1, 3000)])",
}


def outcomes(rego: RegoEngine) -> dict[str, object]:
    seen: dict[str, object] = {}
    for name, body in CASES.items():
        try:
            policy = rego.prepare(PolicySource({"p.rego": f"package p\n{body}"}, "data.p.x", limits=RegoLimits(fuel=200_000_000)))
            result = policy.evaluate('{"a": [1, 2, {"b": null}]}')
            seen[name] = (policy.image_sha256, result.value_json, result.fuel)
        except EvaluationFailed as failed:
            seen[name] = (type(failed), failed.kind, failed.message, failed.fuel)
    return seen


@pytest.mark.parametrize("changes", [{"cranelift_opt_level": "none"}, {"target": "pulley64"}], ids=["unoptimised", "interpreter"])
def test_17_another_code_generator_gives_the_same_outcomes_and_the_same_fuel(
    rego: RegoEngine, changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for other processors: optimised native code, unoptimised code and wasmtime's portable interpreter agree."""
    plain = rego_module.engine_config

    def config() -> Config:
        made = plain()
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    monkeypatch.setattr(rego_module, "engine_config", config)
    assert outcomes(RegoEngine()) == outcomes(rego)


_SHORT_OF_MEMORY = """
import resource
from placet.sandbox.rego import PolicySource, RegoEngine

engine = RegoEngine()
module = "package p\\nimport rego.v1\\nlarge := count(numbers.range(1, 400000))\\nendless := sprintf(\\"%1000000000d\\", [1])"
policies = [engine.prepare(PolicySource({"p.rego": module}, f"data.p.{rule}")) for rule in ("large", "endless")]


def outcome(policy):
    try:
        return policy.evaluate("{}").value_json
    except Exception as error:
        return type(error).__name__


print(*map(outcome, policies))
held = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (held + (4 << 20),) * 2)
print(*map(outcome, policies))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA does not bound mapped memory elsewhere")
def test_17_a_machine_short_of_memory_abstains_and_does_not_deny() -> None:
    """What a policy may use is a denial everywhere; what this machine cannot give is not."""
    done = subprocess.run([sys.executable, "-c", _SHORT_OF_MEMORY], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["400000 EvaluationFailed", "SandboxUnavailable SandboxUnavailable"]
