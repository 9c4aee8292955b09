"""What policies evaluate to: values, exact numbers, data sections, decisions, explanations, tests."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from placet.sandbox import rego as rego_module
from placet.sandbox.decision import Decision, parse_decision
from placet.sandbox.errors import EvaluationFailed, PolicyRejected, SandboxUnavailable
from placet.sandbox.rego import DataSection, Evaluation, PolicySource, RegoEngine, RegoLimits, engine_sha256

Evaluate = Callable[..., Evaluation]
MAX = 2**256 - 1


def value(result: Evaluation) -> object:
    return None if result.value_json is None else json.loads(result.value_json)


def test_the_engine_is_the_checked_in_one_and_imports_nothing(rego: RegoEngine) -> None:
    assert len(engine_sha256()) == 64
    assert rego.sha256 == engine_sha256()
    assert rego._module.imports == []


def test_the_engine_holds_no_path_of_the_machine_it_was_built_on() -> None:
    content = (Path(rego_module.__file__).with_name("engine") / "engine.wasm").read_bytes()
    for text in (b"/home/", b"/root/", b"/tmp/", b"/Users/"):
        assert text not in content


def test_an_engine_of_other_bytes_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "engine.wasm").write_bytes(b"\0asm\1\0\0\0")
    (tmp_path / "engine.wasm.sha256").write_text("00" * 32 + "  engine.wasm\n")
    monkeypatch.setattr(rego_module, "_engine_path", lambda: tmp_path / "engine.wasm")
    engine_sha256.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="reinstall"):
            engine_sha256()
    finally:
        monkeypatch.undo()
        engine_sha256.cache_clear()


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("x := input.a + 1", str(MAX + 1)),
        ("x := input.a - 1", str(MAX - 1)),
        ("x := input.a * input.a", str(MAX * MAX)),
        ("x if input.a > input.a - 1", "true"),
        ("x := max([input.a, input.a - 1])", str(MAX)),
        ("x := sort([input.a, input.a - 1])[0]", str(MAX - 1)),
        ("x := sum([input.a, input.a])", str(2 * MAX)),
        ("x := input.a % 1000", str(MAX % 1000)),
        ('x := sprintf("%d", [input.a])', f'"{MAX}"'),
        ("x := json.unmarshal(json.marshal(input.a))", str(MAX)),
        ("x := to_number(format_int(input.a, 10)) == input.a", "true"),
        ("x if input.a in {input.a}", "true"),
    ],
)
def test_integers_are_exact_far_beyond_64_bits(evaluate: Evaluate, body: str, want: str) -> None:
    assert evaluate(body, json.dumps({"a": MAX})).value_json == want


U256_CASES = [
    (f'u256.add("{MAX}", "0")', f'"{MAX}"'),
    ('u256.add("1", 2)', '"3"'),
    (f'u256.mul("{2**128}", "{2**127}")', f'"{2**255}"'),
    (f'u256.sub("{MAX}", "{MAX}")', '"0"'),
    (f'u256.div("{MAX}", "7")', f'"{MAX // 7}"'),
    (f'u256.mod("{MAX}", "7")', f'"{MAX % 7}"'),
    ('u256.gt("0xff", "254")', "true"),
    ('u256.lt("9", "10")', "true"),
    ('u256.lte("10", "10")', "true"),
    ('u256.gte("9", "10")', "false"),
    ('u256.eq("0x10", 16)', "true"),
    ('u256.cmp("1", "2")', "-1"),
    ('u256.min("9", "10")', '"9"'),
    ('u256.max("9", "10")', '"10"'),
    ('u256.to_hex("255")', '"0xff"'),
    (f'u256.parse("0x{"f" * 64}")', f'"{MAX}"'),
    (f"u256.parse({MAX})", f'"{MAX}"'),
]


@pytest.mark.parametrize(("call", "want"), U256_CASES)
def test_u256_computes_exactly(evaluate: Evaluate, call: str, want: str) -> None:
    assert evaluate(f"x := {call}").value_json == want


@pytest.mark.parametrize(
    "call",
    [
        f'u256.add("{MAX}", "1")',
        'u256.sub("1", "2")',
        f'u256.mul("{2**128}", "{2**128}")',
        'u256.div("1", "0")',
        'u256.mod("1", "0")',
        f'u256.parse("{MAX + 1}")',
        f'u256.parse("0x1{"0" * 64}")',
        f'u256.parse("{"9" * 79}")',
        'u256.parse("")',
        'u256.parse("0x")',
        'u256.parse("01")',
        'u256.parse("-1")',
        "u256.parse(-1)",
        'u256.parse("+1")',
        'u256.parse("1e3")',
        'u256.parse("1_000")',
        'u256.parse(" 1")',
        'u256.parse("１")',
        "u256.parse(1.5)",
        "u256.parse(true)",
        "u256.parse(null)",
        'u256.lt("a", "b")',
    ],
)
def test_u256_aborts_the_evaluation_instead_of_wrapping_or_guessing(evaluate: Evaluate, call: str) -> None:
    with pytest.raises(EvaluationFailed) as failed:
        evaluate(f"x := {call}")
    assert failed.value.kind == "error"


ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"


@pytest.mark.parametrize(
    ("call", "want"),
    [
        ('evm.keccak256("0x")', '"0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"'),
        ('evm.keccak256_text("")', '"0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"'),
        ('evm.keccak256_text("transfer(address,uint256)")', '"0xa9059cbb2ab09eb219583f4a59a5d0623ade346d962bcd4e46b11da047c9049b"'),
        (f'evm.checksum_address("{ADDRESS.lower()}")', f'"{ADDRESS}"'),
        (f'evm.is_checksum_address("{ADDRESS}")', "true"),
        (f'evm.is_checksum_address("{ADDRESS.lower()}")', "false"),
        ('evm.is_checksum_address("nonsense")', "false"),
        ('crypto.sha256("abc")', '"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"'),
        (
            'crypto.hmac.sha256("what do ya want for nothing?", "Jefe")',
            '"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"',
        ),
        ('crypto.hmac.equal("a", "a")', "true"),
        ('strings.count("aaaa", "aa")', "2"),
        ('strings.count("abc", "")', "4"),
    ],
)
def test_evm_and_crypto_builtins_give_the_published_vectors(evaluate: Evaluate, call: str, want: str) -> None:
    assert evaluate(f"x := {call}").value_json == want


def test_time_is_the_task_s_timestamp_and_without_one_asking_fails(evaluate: Evaluate) -> None:
    assert evaluate("x := time.now_ns()", now_ns=1_700_000_000_000_000_000).value_json == "1700000000000000000"
    with pytest.raises(EvaluationFailed, match="no timestamp"):
        evaluate("x := time.now_ns()")


@pytest.mark.parametrize("call", ["http.send({})", "opa.runtime()", 'uuid.rfc4122("a")', 'rand.intn("a", 5)', 'net.lookup_ip_addr("a")'])
def test_network_random_and_environment_are_not_there(evaluate: Evaluate, call: str) -> None:
    with pytest.raises(EvaluationFailed):
        evaluate(f"x := {call}")


def test_builtin_errors_abort_instead_of_becoming_undefined(evaluate: Evaluate) -> None:
    with pytest.raises(EvaluationFailed):
        evaluate('x if not to_number("abc")')


def test_static_and_per_task_data_meet_under_data(rego: RegoEngine) -> None:
    source = PolicySource(
        {"p.rego": "package p\nx := [data.params.limit, data.args.a, data.wasm.price, data.task.timestamp]"},
        "data.p.x",
        (DataSection("params", '{"limit": 5}'),),
    )
    data = (
        DataSection("args", '{"a": "b"}'),
        DataSection("wasm", f'{{"price": {MAX}}}'),
        DataSection("task", '{"timestamp": 1700000000}'),
    )
    policy = rego.prepare(source)
    assert policy.evaluate("{}", data=data).value_json == f'[5,"b",{MAX},1700000000]'
    # Nothing of one task's data is there in the next evaluation.
    assert policy.evaluate("{}", data=data[:1]).value_json is None


@pytest.mark.parametrize(
    "data",
    [
        (DataSection("params", '{"limit": 6}'),),
        (DataSection("params", '{"other": 6}'),),
        (DataSection("wasm", "[]"), DataSection("wasm", "[]")),
        (DataSection("", "{}"),),
        (DataSection("wasm", '{"a": 1.5}'),),
        (DataSection("wasm", "nonsense"),),
    ],
)
def test_data_that_hides_or_contradicts_other_data_denies(rego: RegoEngine, data: tuple[DataSection, ...]) -> None:
    policy = rego.prepare(PolicySource({"p.rego": "package p\nx := 1"}, "data.p.x", (DataSection("params", '{"limit": 5}'),)))
    with pytest.raises(EvaluationFailed) as failed:
        policy.evaluate("{}", data=data)
    assert failed.value.kind == "error"


def test_27_fractions_enter_only_where_a_newton_component_put_them(evaluate: Evaluate) -> None:
    body = "x if data.wasm.z < 0.2"
    fractions = '{"z": 0.125, "tiny": 5.551115123125783e-17}'
    assert evaluate(body, data=(DataSection("wasm", fractions, fractions=True),)).value_json == "true"
    with pytest.raises(EvaluationFailed, match="not an exact integer"):
        evaluate(body, data=(DataSection("wasm", fractions),))
    with pytest.raises(EvaluationFailed, match="not an exact integer"):
        evaluate("x := 1", '{"z": 0.125}')
    with pytest.raises(EvaluationFailed, match="exponent"):
        evaluate(body, data=(DataSection("wasm", '{"z": 1e400000000}', fractions=True),))


def test_27_one_pack_cannot_overwrite_another_s_finding(evaluate: Evaluate) -> None:
    sections = (DataSection("wasm", '{"sanctioned": true}'), DataSection("wasm", '{"price": 1, "sanctioned": false}', fractions=True))
    with pytest.raises(EvaluationFailed, match="given twice"):
        evaluate("x := data.wasm", data=sections)
    apart = (DataSection("wasm", '{"a": 1}'), DataSection("wasm", '{"b": 2.5}', fractions=True))
    assert evaluate("x := data.wasm", data=apart).value_json == '{"a":1,"b":2.5}'


@pytest.mark.parametrize(
    ("value_json", "want"),
    [
        ("true", Decision(True, (), "true")),
        ("false", Decision(False, (), "false")),
        ('{"allow": true, "reasons": []}', Decision(True, (), '{"allow": true, "reasons": []}')),
        (
            '{"allow": false, "reasons": ["limit"], "score_e6": 5}',
            Decision(False, ("limit",), '{"allow": false, "reasons": ["limit"], "score_e6": 5}'),
        ),
    ],
)
def test_a_decision_is_a_boolean_or_an_object_with_allow(value_json: str, want: Decision) -> None:
    assert parse_decision(value_json) == want


@pytest.mark.parametrize(
    "value_json",
    [
        None, "1", '"true"', "[]", "null", "[true]", "{}", '{"allow": "true"}', '{"allow": 1}', '{"allow": true, "reasons": "x"}',
        '{"allow": true, "reasons": [1]}', '{"allow": null}', "nonsense", "[" * 100_000, json.dumps({"allow": True, "reasons": ["x"] * 65}),
        json.dumps({"allow": True, "reasons": ["x" * 513]}),
    ],
)  # fmt: skip
def test_18_anything_else_is_a_deny_that_says_why(value_json: str | None) -> None:
    decision = parse_decision(value_json)
    assert not decision.allow
    assert len(decision.reasons) == 1


def test_undefined_false_and_errors_are_told_apart(rego: RegoEngine, evaluate: Evaluate) -> None:
    assert evaluate("x if false").value_json is None
    assert evaluate("x := false").value_json == "false"
    with pytest.raises(EvaluationFailed, match="not a valid rule path"):
        rego.prepare(PolicySource({"p.rego": "package p\ny := 1"}, "data.p.x")).evaluate("{}")
    with pytest.raises(EvaluationFailed):
        evaluate("x := 1 if true\nx := 2 if true")


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"p.rego": "package p\nx if { y == 1 }"}, "undefined variable"),
        ({"p.rego": "nonsense"}, "package"),
        ({"p.rego": "package p\nx = 1 { true }"}, "if"),
        ({"p.rego": "package p\nx := " + "1 + " * 500 + "1"}, "column"),
        ({"p.rego": "package p\n" + "# a\n" * 30_000}, "line count"),
        ({}, "no module"),
        ({f"p{i}.rego": "package p" for i in range(65)}, "more than 64"),
        ({"p.rego": "package p\n# " + "é" * (1 << 20)}, "bytes"),
        ({"p.rego": "package p\n# \ud800"}, "UTF-8"),
    ],
)
def test_a_policy_that_cannot_be_prepared_is_rejected(rego: RegoEngine, modules: dict[str, str], message: str) -> None:
    with pytest.raises(PolicyRejected, match=message):
        rego.prepare(PolicySource(modules, "data.p.x"))


@pytest.mark.parametrize("entrypoint", ["p.x", "data.p", "", "data", "input.x.y"])
def test_an_entrypoint_is_a_rule_below_data(rego: RegoEngine, entrypoint: str) -> None:
    with pytest.raises(PolicyRejected, match="entrypoint"):
        rego.prepare(PolicySource({"p.rego": "package p\nx := 1"}, entrypoint))


@pytest.mark.parametrize("limits", [(0, 64 << 20), (10**12, 64 << 20), (10**9, 1), (10**9, 1 << 40)])
def test_limits_outside_their_range_are_rejected(limits: tuple[int, int]) -> None:
    with pytest.raises(PolicyRejected):
        RegoLimits(*limits)


def test_13_the_limits_decide_outcomes_so_they_belong_to_the_policy(rego: RegoEngine) -> None:
    text = {"p.rego": "package p\nx := count(numbers.range(1, 2000))"}
    used = rego.prepare(PolicySource(text, "data.p.x")).evaluate("{}").fuel
    enough = rego.prepare(PolicySource(text, "data.p.x", limits=RegoLimits(fuel=used))).evaluate("{}")
    assert (enough.value_json, enough.fuel) == ("2000", used)
    with pytest.raises(EvaluationFailed) as failed:
        rego.prepare(PolicySource(text, "data.p.x", limits=RegoLimits(fuel=used // 2))).evaluate("{}")
    assert (failed.value.kind, failed.value.fuel) == ("fuel", used // 2)


POLICY = """package vault
import rego.v1

default decision := {"allow": false, "reasons": ["no rule matched"]}

reasons contains "over the limit" if {
    u256.gt(input.amount, data.params.limit)
}

reasons contains "sanctioned" if {
    input.to in data.wasm.sanctioned
}

decision := {"allow": count(reasons) == 0, "reasons": sort([r | some r in reasons])} if {
    print("amount", input.amount)
}
"""


def test_an_explanation_shows_the_lines_that_stopped_a_reason(rego: RegoEngine) -> None:
    source = PolicySource({"vault.rego": POLICY}, "data.vault.decision", (DataSection("params", '{"limit": "100"}'),))
    policy = rego.prepare(source)
    data = (DataSection("wasm", '{"sanctioned": []}'),)
    explanation = policy.explain('{"amount": "101", "to": "0x1"}', data=data)
    assert explanation.error is None
    assert parse_decision(explanation.value_json).reasons == ("over the limit",)
    assert explanation.prints == ("vault.rego:15: amount 101",)
    lines = explanation.coverage["vault.rego"]
    assert 6 in lines.covered
    assert 10 in lines.not_covered
    failing = rego.prepare(PolicySource({"p.rego": 'package p\nx := u256.sub("1", "2")'}, "data.p.x")).explain("{}")
    assert failing.value_json is None
    assert "underflow" in str(failing.error)


def test_policies_can_be_tested_as_with_opa_test(rego: RegoEngine) -> None:
    tests = """package vault_test
import rego.v1
test_small_amounts_pass if {
    data.vault.decision.allow with input as {"amount": "5", "to": "0x1"} with data.wasm as {"sanctioned": []}
}
test_wrong_on_purpose if data.vault.decision.allow with input as {"amount": "500", "to": "0x1"} with data.wasm as {"sanctioned": []}
test_error if u256.sub("1", "2")
todo_test_later if false
"""
    results = rego.run_tests({"vault.rego": POLICY}, {"vault_test.rego": tests}, data=(DataSection("params", '{"limit": "100"}'),))
    assert {r.name.rsplit(".", 1)[-1]: r.outcome for r in results} == {
        "test_small_amounts_pass": "pass",
        "test_wrong_on_purpose": "fail",
        "test_error": "error",
        "todo_test_later": "skipped",
    }


def test_a_value_or_a_request_over_its_limit_denies(evaluate: Evaluate) -> None:
    with pytest.raises(EvaluationFailed) as failed:
        evaluate("x := numbers.range(1, 100000)")
    assert failed.value.kind == "size"
    with pytest.raises(EvaluationFailed) as failed:
        evaluate("x := 1", json.dumps("a" * (9 << 20)))
    assert failed.value.kind == "size"


def test_17_a_first_try_with_less_fuel_gives_the_same_answer_or_none(rego: RegoEngine) -> None:
    policy = rego.prepare(PolicySource({"p.rego": "package p\nx := count(numbers.range(1, 2000))"}, "data.p.x"))
    whole = policy.evaluate("{}")
    assert policy.evaluate("{}", fuel=whole.fuel) == whole
    with pytest.raises(EvaluationFailed) as failed:
        policy.evaluate("{}", fuel=whole.fuel // 2)
    assert failed.value.kind == "fuel"
    assert policy.evaluate("{}", fuel=10**12) == whole, "never more than the policy's own"
    assert policy.evaluate("{}") == whole
