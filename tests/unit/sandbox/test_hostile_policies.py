"""Policies and inputs made to hang, crash or eat the machine. Each ends as an ordinary exception or answer, quickly, and the
same process then evaluates a good policy.
"""

import json
import time
from collections.abc import Callable

import pytest

from placet.sandbox.errors import EvaluationFailed, PolicyRejected
from placet.sandbox.rego import Evaluation, PolicySource, RegoEngine, RegoLimits

FUEL = 2 * 10**9
Evaluate = Callable[..., Evaluation]

DOUBLING = 'a0 := "aaaaaaaaaa"\n' + "".join(f'a{i + 1} := concat("", [a{i}, a{i}])\n' for i in range(40))
SQUARING = "a0 := 10\n" + "".join(f"a{i + 1} := a{i} * a{i}\n" for i in range(30))
CYCLIC = "g := {n: [m | some m in numbers.range(1, 14)] | some n in numbers.range(1, 14)}\n"

POLICIES = {
    "nested arrays 30 deep": ("x := " + "[" * 30 + "]" * 30, {"fuel"}),
    "nested objects 18 deep": ("x := " + '{"a":' * 18 + "1" + "}" * 18, {"fuel", "answer"}),
    "10,000 brackets": ("x := " + "[" * 10_000 + "]" * 10_000, {"stack", "compile"}),
    "brackets over many lines": ("x := " + "[\n" * 5_000 + "]\n" * 5_000, {"stack", "compile", "fuel"}),
    "function recursion": ("f(n) := f(n)\nx := f(1)", {"stack"}),
    "mutual recursion": ("f(n) := g(n)\ng(n) := f(n)\nx := f(1)", {"stack"}),
    "rule recursion": ("x := y\ny := x", {"error", "compile"}),
    "numbers.range of 2e8": ("x := numbers.range(1, 200000000)", {"panic", "memory", "fuel"}),
    "sprintf of a gigabyte": ('x := sprintf("%1000000000d", [1])', {"memory", "panic"}),
    "a billion comprehension": (
        "x := count([1 | some i in numbers.range(1, 40000); some j in numbers.range(1, 40000)])",
        {"memory", "fuel"},
    ),
    "a string that doubles 40 times": (DOUBLING + "x := count(a40)", {"memory", "panic"}),
    "replace that blows up": (
        'a := replace("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "a", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")\n'
        'x := count(replace(replace(replace(a, "b", a), "b", a), "b", a))',
        {"memory", "panic"},
    ),
    "a bignum squared 30 times": (SQUARING + "x := a30 > 0", {"fuel", "memory"}),
    "1e1000000000 in the text": ("x := 1e1000000000", {"fuel", "compile", "error"}),
    "to_number of 1e400000000": ('x := to_number("1e400000000")', {"fuel", "error"}),
    "paths of a complete graph": (CYCLIC + "x := count(graph.reachable_paths(g, [1]))", {"fuel", "memory"}),
    "1e10 turns of a loop": (
        "r := numbers.range(1, 2200)\nx := count([1 | some a in r; some b in r; some c in r; a + b == c * 99999])",
        {"fuel"},
    ),
    "regex (a+)+$": (f'x := regex.match("(a+)+$", "{"a" * 200}b")', {"answer"}),
    "regex of great size": ('x := regex.match("(((a{100}){100}){100}){100}", "a")', {"error", "memory", "compile"}),
    "bits.lsh by 2^40": ("x := bits.lsh(1, 1099511627776)", {"answer", "error", "memory"}),
    "strings.count of nothing": ('x := strings.count("abc", "")', {"answer"}),
    "the local time zone": ('x := time.clock([1, "Local"])', {"panic"}),
    "cidr_expand of the internet": ('x := count(net.cidr_expand("::/0"))', {"memory", "fuel", "error", "panic"}),
    "a module of 2 MB": ("# " + ("a" * 1_000 + "\n# ") * 2_000 + "\nx := 1", {"size"}),
}


def outcome(run: Callable[[], Evaluation]) -> str:
    try:
        run()
    except EvaluationFailed as failed:
        return failed.kind
    return "answer"


@pytest.mark.parametrize("name", POLICIES)
def test_28_a_hostile_policy_is_an_ordinary_failure_within_two_seconds(evaluate: Evaluate, name: str) -> None:
    body, expected = POLICIES[name]
    started = time.process_time()
    assert outcome(lambda: evaluate(body, fuel=FUEL)) in expected
    assert time.process_time() - started < 2.0
    assert evaluate("x := 1").value_json == "1"


INPUTS = {
    "5,000 levels": "[" * 5_000 + "]" * 5_000,
    "65 levels": "[" * 65 + "]" * 65,
    "an integer of a megabyte": "9" * (1 << 20),
    "1e400000000": "1e400000000",
    "-1e-400000000": "-1e-400000000",
    "a forged number": '{"$serde_json::private::Number": "12"}',
    "a forged number, escaped": '{"\\u0024serde_json::private::Number": "12"}',
    "a forged raw value": '{"a": {"$serde_json::private::RawValue": "12"}}',
    "duplicate keys": '{"a": 1, "a": 2}',
    "duplicate keys, one escaped": '{"a": 1, "\\u0061": 2}',
    "a lone surrogate": '{"a": "\\ud800"}',
    "NaN": '{"a": NaN}',
    "a comment": '{"a": 1 /* b */}',
    "two documents": "{} {}",
    "nothing": "",
    "a fraction": '{"a": 1.0}',
    "minus zero": '{"a": -0}',
    "a leading zero": '{"a": 01}',
    "a control character": '{"a": "\x01"}',
}


@pytest.mark.parametrize("name", INPUTS)
def test_28_an_input_that_parsers_disagree_on_is_an_error(evaluate: Evaluate, name: str) -> None:
    with pytest.raises(EvaluationFailed) as failed:
        evaluate("x := input", INPUTS[name])
    assert failed.value.kind == "error"


def test_text_that_is_not_unicode_cannot_enter(evaluate: Evaluate) -> None:
    with pytest.raises(EvaluationFailed, match="UTF-8"):
        evaluate("x := input", '"\ud800"')


def test_a_large_plain_input_is_fine(evaluate: Evaluate) -> None:
    text = json.dumps({"a": ["x" * 1_000] * 4_000, "n": list(range(100_000))})
    assert evaluate("x := count(input.a) + count(input.n)", text).value_json == "104000"
    assert evaluate("x := 1", "[" * 64 + "]" * 64).value_json == "1"


def test_walking_a_million_elements_ends_at_the_memory_limit(rego: RegoEngine) -> None:
    text = json.dumps([[[1] * 100] * 100] * 40)
    source = PolicySource({"p.rego": "package p\nx := count([n | walk(input, n)])"}, "data.p.x", limits=RegoLimits(memory_bytes=32 << 20))
    assert outcome(lambda: rego.prepare(source).evaluate(text)) in {"memory", "fuel"}


def test_parsing_is_bounded_by_its_own_fuel(rego: RegoEngine) -> None:
    with pytest.raises(PolicyRejected) as rejected:
        rego.prepare(PolicySource({"p.rego": "package p\nx := " + "[" * 30 + "]" * 30}, "data.p.x"))
    assert rejected.value.kind == "fuel"
