"""The check at admission, on policies that hide what they call."""

import json
import random
import time
from pathlib import Path

import pytest

from placet.sandbox.check import BUILTINS, DENIED, _on_cycles, check_policy
from placet.sandbox.errors import EvaluationFailed
from placet.sandbox.rego import RegoEngine

P = "package p\nimport rego.v1\n"


def findings(rego: RegoEngine, *sources: str, entrypoint: str = "data.p.x") -> list[tuple[str, int, str]]:
    found = check_policy(rego, {f"m{i}.rego": text for i, text in enumerate(sources)}, entrypoint)
    return [(finding.file, finding.line, finding.rule) for finding in found]


@pytest.mark.parametrize(
    "sources",
    [
        (P + "x := 1",),
        (P + "x if u256.gt(input.value, data.params.limit)",),
        (P + "default x := false\nx if { f(2) == 4 }\nf(n) := g(n) * 2\ng(n) := n",),
        (P + "import data.q as w\nx := w.h(1)", "package q\nh(a) := a"),
        (P + "import data.q.h\nx := h(1)", "package q\nh(a) := a"),
        (P + "x := data.q.h(2)", "package q\nh(a) := a"),
        (P + "x if { some k, v in input.m; v > 1 with input as {} with data.wasm as {} }",),
        (P + "x contains 1 if print(1)",),
        (P + "x if every v in input.m { v > 0 }",),
        (P + "x := count({1, 2} | {3}) - 1 + 2 * 3 % 4",),
        (P + "x := time.now_ns()",),
        (P + "default f(_) := 0\nf(n) := 1 if n > 1\nx := f(1)",),
    ],
)
def test_an_honest_policy_has_no_findings(rego: RegoEngine, sources: tuple[str, ...]) -> None:
    assert findings(rego, *sources) == []


@pytest.mark.parametrize(
    ("sources", "want"),
    [
        ((P + "x := 1\ny if { false; http.send({}) }",), [("m0.rego", 4, "unknown-function")]),
        ((P + 'x if not time["now_nanos"]()',), [("m0.rego", 3, "unknown-function")]),
        ((P + "x := 1 if opa.runtime()",), [("m0.rego", 3, "unknown-function")]),
        ((P + "x := [uuid.rfc4122(u) | some u in input.a]",), [("m0.rego", 3, "unknown-function")]),
        ((P + "x := 1\ny if every v in input.m { foo(v) }",), [("m0.rego", 4, "unknown-function")]),
        ((P + 'x := 1\ny := {"a": {foo(1) | true}}',), [("m0.rego", 4, "unknown-function")]),
        ((P + "x := 1 if {\n  input.a\n} else := foo(2)",), [("m0.rego", 5, "unknown-function")]),
        ((P + "x := 1\ny[foo(1)] := 1",), [("m0.rego", 4, "unknown-function")]),
        ((P + "import data.q as w\nx := w.h(1)", "package q\ng(a) := a"), [("m0.rego", 4, "unknown-function")]),
        ((P + 'x := rand.intn("a", 5)',), [("m0.rego", 3, "denied-function")]),
        ((P + 'x := trace("a")',), [("m0.rego", 3, "denied-function")]),
        ((P + "x := 6 / 3",), [("m0.rego", 3, "inexact-division")]),
        ((P + "x := 1\nf(n) := n / 2",), [("m0.rego", 4, "inexact-division")]),
        ((P + "x := f(1)\nf(n) := f(n)",), [("m0.rego", 4, "recursion")]),
        ((P + "x := f(1)\nf(n) := g(n)\ng(n) := f(n)\nh(n) := f(n)",), [("m0.rego", 4, "recursion"), ("m0.rego", 5, "recursion")]),
        (
            (P + "import data.q as w\nx := f(1)\nf(n) := w.g(n)", "package q\ng(n) := data.p.f(n)"),
            [("m0.rego", 5, "recursion"), ("m1.rego", 2, "recursion")],
        ),
        ((P + "f(n) := n\nx := z if { z := f(2) with u256.add as 5 }",), [("m0.rego", 4, "with-target")]),
        ((P + "x := 1 if { input.a with time.now_ns as 5 }",), [("m0.rego", 3, "with-target")]),
        ((P + "f(n) := n\nx := 1 if { input.a with data.p.f as 5 }",), [("m0.rego", 4, "with-target")]),
        ((P + 'import data.evil as u256\nx := u256.lt("2", "1")', "package evil\nlt(a, b) := true"), [("m0.rego", 3, "shadowed-name")]),
        (
            (P + 'import data.evil.u256\nx := u256.lt("2", "1")', "package evil\nu256 := 1"),
            [("m0.rego", 3, "shadowed-name"), ("m0.rego", 4, "unknown-function"), ("m1.rego", 2, "shadowed-name")],
        ),
        (
            (P + "import data.evil.count\nx := count([1])", "package evil\ncount(a) := 9"),
            [("m0.rego", 3, "shadowed-name"), ("m1.rego", 2, "shadowed-name")],
        ),
        ((P + 'u256.lt(a, b) := true\nx := u256.lt("2", "1")',), [("m0.rego", 3, "shadowed-name")]),
        ((P + "count(a) := 9\nx := count([1])",), [("m0.rego", 3, "shadowed-name")]),
        ((P + "default lower(_) := 1\nx := lower(1)",), [("m0.rego", 3, "shadowed-name")]),
        ((P + "x := 1\ntime.x contains 1",), [("m0.rego", 4, "shadowed-name")]),
        (("package p.u256\nlt(a, b) := true", P + 'x := u256.lt("2", "1")'), [("m0.rego", 1, "shadowed-name")]),
        ((P + "x := 1", "package wasm\nsanctioned := []"), [("m1.rego", 1, "reserved-package")]),
        ((P + "x := 1", "package params.limits\ny := 1"), [("m1.rego", 1, "reserved-package")]),
        ((P + "y := 1",), [("", 0, "entrypoint")]),
        ((P + "x(a) := 1",), [("", 0, "entrypoint")]),
        ((P + "x.allow := true\nx.reasons := []",), [("", 0, "entrypoint")]),
        ((P + "x := ",), [("", 0, "syntax")]),
        ((P + "x = 1 { true }",), [("", 0, "syntax")]),
        ((P + "x := " + "[" * 30 + "]" * 30,), [("", 0, "syntax")]),
        ((P + "x := " + "[" * 10_000,), [("", 0, "syntax")]),
        ((P + "a := 1\nx := a" + ".a" * 450,), [("", 0, "syntax")]),
        (("# " + "a\n# " * 600_000 + "\n" + P,), [("", 0, "syntax")]),
    ],
)
def test_29_a_policy_is_refused_with_the_place_and_the_rule(
    rego: RegoEngine, sources: tuple[str, ...], want: list[tuple[str, int, str]]
) -> None:
    assert findings(rego, *sources) == want


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd.rego", "../a.rego", "a/../b.rego", "policy.txt", "a b.rego", "a\n.rego", "x" * 300 + ".rego"]
)
def test_a_module_has_a_plain_relative_name(rego: RegoEngine, name: str) -> None:
    found = check_policy(rego, {name: P + "x := 1"}, "data.p.x")
    assert [finding.rule for finding in found] == ["file-name"]
    assert check_policy(rego, {"lib/tokens-1.rego": P + "x := 1"}, "data.p.x") == []


def test_the_list_of_builtins_is_what_the_engine_has(rego: RegoEngine) -> None:
    def exists(name: str) -> bool:
        try:
            rego.query(f"{name}()", now_ns=1)
        except EvaluationFailed as failed:
            return "could not find function" not in failed.message
        return True

    assert [name for name in sorted(BUILTINS | DENIED) if not exists(name)] == []
    others = [
        "http.send",
        "opa.runtime",
        "uuid.rfc4122",
        "net.lookup_ip_addr",
        "io.jwt.decode",
        "crypto.md5",
        "crypto.sha1",
        "yaml.marshal",
        "urlquery.encode",
        "json.match_schema",
        "rego.parse_module",
        "rego.metadata.rule",
        "array.flatten",
        "strings.render_template",
        "graphql.parse",
        "time.format_local",
        "newton.crypto.ecdsa_recover_signer",
        "plus",
        "div",
        "cast_array",
    ]
    assert [name for name in others if exists(name)] == []


def test_checking_a_large_policy_takes_less_than_a_second(rego: RegoEngine) -> None:
    text = (
        P
        + "x := 1\n"
        + "".join(f"r{i} if {{ input.a{i} > {i}; f{i}(input.b) }}\nf{i}(n) := count([m | some m in n])\n" for i in range(1_000))
    )
    started = time.process_time()
    assert findings(rego, text) == []
    assert time.process_time() - started < 1.5


def test_the_documented_example_passes(rego: RegoEngine) -> None:
    readme = (Path(__file__).parents[3] / "services" / "sandbox" / "README.md").read_text(encoding="utf-8")
    text = readme.split("```rego\n")[1].split("```")[0]
    assert check_policy(rego, {"vault.rego": text}, "data.vault.decision") == []
    manifest = readme.split("```json\n")[1].split("```")[0]
    from placet.sandbox.manifest import Manifest

    assert Manifest.parse(manifest.encode()).consensus_rules
    assert json.loads(manifest)


def _reach_themselves(graph: dict[str, set[str]]) -> list[str]:
    """The definition, name by name."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        ahead = [name]
        while ahead:
            fresh = graph.get(ahead.pop(), set()) - seen
            seen |= fresh
            ahead += fresh
        return seen

    return sorted(name for name in graph if name in reached(name))


def test_names_on_cycles_are_those_that_reach_themselves() -> None:
    rng = random.Random(11)
    for _ in range(500):
        names = [f"f{number}" for number in range(rng.randrange(1, 12))]
        graph = {name: {rng.choice([*names, "elsewhere"]) for _ in range(rng.randrange(3))} for name in names}
        assert _on_cycles(graph) == _reach_themselves(graph)


@pytest.mark.parametrize("closed", [True, False])
def test_29_cycles_are_found_in_time_linear_in_the_calls(closed: bool) -> None:
    """A MiB of source holds some 50,000 functions; removing what calls nothing, round by round, took a round for each of a chain."""
    count = 50_000
    chain = {f"f{number}": {f"f{number + 1}"} for number in range(count)}
    chain[f"f{count}"] = {"f0"} if closed else set()
    began = time.process_time()
    assert len(_on_cycles(chain)) == (count + 1 if closed else 0)
    assert time.process_time() - began < 5.0
