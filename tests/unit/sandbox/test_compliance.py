"""Open Policy Agent's own suite, run against the engine. `known_failures.json` lists what differs; any change fails, both ways.

`error`: a builtin or a syntax that the engine does not have (admission refuses such policies), or that aborts where OPA says
undefined. `wrong`: another answer than OPA's; the README of the service explains each of these.
To write the list anew: PLACET_WRITE_KNOWN_FAILURES=1.
"""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from placet.sandbox.errors import EvaluationFailed
from placet.sandbox.rego import DataSection, RegoEngine

SUITE = Path(__file__).parents[2] / "fixtures" / "opa" / "compliance_v1.json.gz"
KNOWN = Path(__file__).with_name("known_failures.json")


def normal(value: Any) -> Any:
    """1.0 and 1 are one number in Rego."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    return value


def rows(results: list[Any]) -> list[str]:
    return sorted(json.dumps(normal(row), sort_keys=True) for row in results)


def outcome(rego: RegoEngine, case: dict[str, Any]) -> str:
    wants_error = "want_error" in case or "want_error_code" in case
    input_json = json.dumps(case["input"]) if "input" in case else None
    if "input_term" in case:
        term = json.loads(rego.query(case["input_term"]))
        input_json = json.dumps(term["result"][0]["expressions"][0]["value"])
    try:
        answer = rego.query(
            case["query"],
            modules={f"module{i}.rego": text for i, text in enumerate(case.get("modules") or [])},
            input_json=input_json,
            data=[DataSection(root, json.dumps(value), fractions=True) for root, value in (case.get("data") or {}).items()],
            now_ns=1_700_000_000_000_000_000,
        )
    except EvaluationFailed:
        return "pass" if wants_error else "error"
    if wants_error:
        return "no error"
    if "want_result" not in case:
        return "pass"
    got = [row.get("bindings", {}) for row in json.loads(answer).get("result") or []]
    return "pass" if rows(got) == rows(case["want_result"]) else "wrong"


def test_the_compliance_suite_fails_exactly_where_it_is_known_to(rego: RegoEngine) -> None:
    with gzip.open(SUITE) as file:
        cases = json.load(file)
    assert len(cases) == 2_067
    failures: dict[str, str] = {}
    for case in cases:
        result = outcome(rego, case)
        if result != "pass":
            failures[f"{case['dir']}: {case['note']}"] = result
    if os.environ.get("PLACET_WRITE_KNOWN_FAILURES"):
        KNOWN.write_text(json.dumps(failures, indent=0, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    known = json.loads(KNOWN.read_text(encoding="utf-8"))
    changed = {name: (known.get(name, "pass"), failures.get(name, "pass")) for name in known.keys() | failures.keys()}
    assert {name: pair for name, pair in changed.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize("name", ["sum", "count"])
def test_a_case_of_the_suite_is_compared_and_not_only_run(rego: RegoEngine, name: str) -> None:
    case = {"query": "data.g.p = x", "modules": [f"package g\np := {name}([1, 2])"], "want_result": [{"x": 99}]}
    assert outcome(rego, case) == "wrong"
