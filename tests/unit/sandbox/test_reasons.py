"""Reasons are found back in the policy, and rules say where they stopped."""

from __future__ import annotations

import json

import pytest

from placet.sandbox.reasons import reason_places, rule_outcomes
from placet.sandbox.rego import Explanation, PolicySource, RegoEngine

POLICY = """package p

import rego.v1

default decision := {"allow": false, "reasons": ["not judged here"]}

decision := {"allow": count(reasons) == 0, "reasons": reasons} if {
	input.judged
}

reasons contains "over" if input.amount > 5

reasons contains sprintf("amount %d is over %d%%", [input.amount, 5]) if {
	input.strict
	input.amount > 5
}

reasons contains sprintf("amount %d is%s", [input.amount, " over 5%"]) if {
	input.loose
	input.amount > 5
}

reasons contains message if {
	some item in input.items
	item > 3
	message := sprintf("item %d", [item])
}

reasons contains from_data if some from_data in input.said

tiered := {"allow": false, "reasons": ["first"]} if {
	input.amount > 100
} else := {"allow": false, "reasons": ["second"]} if {
	input.amount > 5
}
"""
DECISION = "data.p.decision"


@pytest.fixture(scope="module")
def syntax(rego: RegoEngine) -> str:
    return rego.syntax_json({"p.rego": POLICY})


def explain(rego: RegoEngine, entrypoint: str = DECISION, **document: object) -> tuple[Explanation, list[str]]:
    explanation = rego.prepare(PolicySource({"p.rego": POLICY}, entrypoint)).explain(json.dumps(document))
    return explanation, json.loads(explanation.value_json or "{}").get("reasons", [])


def places(rego: RegoEngine, syntax: str, entrypoint: str = DECISION, **document: object) -> dict[str, list[tuple[str, int, int]]]:
    explanation, reasons = explain(rego, entrypoint, **document)
    found: dict[str, list[tuple[str, int, int]]] = {reason: [] for reason in reasons}
    for place in reason_places(syntax, explanation, reasons):
        assert place.file == "p.rego"
        found[place.message].append((place.rule, place.line, place.end_line))
    return found


def test_each_reason_names_the_rule_and_the_lines_that_said_it(rego: RegoEngine, syntax: str) -> None:
    assert places(rego, syntax, judged=True, amount=6, strict=True, items=[1, 4]) == {
        "over": [("data.p.reasons", 11, 11)],
        "amount 6 is over 5%": [("data.p.reasons", 13, 16)],
        "item 4": [("data.p.reasons", 23, 27)],
    }


def test_of_two_rules_with_the_same_text_the_one_that_was_reached_is_named(rego: RegoEngine, syntax: str) -> None:
    assert places(rego, syntax, judged=True, amount=6, loose=True)["amount 6 is over 5%"] == [("data.p.reasons", 18, 21)]


def test_a_default_and_an_else_are_places_too(rego: RegoEngine, syntax: str) -> None:
    assert places(rego, syntax, amount=1) == {"not judged here": [("data.p.decision", 5, 5)]}
    assert places(rego, syntax, "data.p.tiered", amount=6) == {"second": [("data.p.tiered", 33, 35)]}


def test_a_reason_that_data_brought_has_no_place(rego: RegoEngine, syntax: str) -> None:
    assert places(rego, syntax, judged=True, amount=1, said=["because"]) == {"because": []}


def test_rules_say_where_they_stopped(rego: RegoEngine, syntax: str) -> None:
    explanation, _ = explain(rego, judged=True, amount=4, strict=True, items=[9])
    outcomes = {(item.first_line, item.outcome, item.line) for item in rule_outcomes(syntax, explanation)}
    assert (5, "not reached", 5) in outcomes
    assert (7, "fired", 7) in outcomes
    assert (13, "stopped", 15) in outcomes
    assert (18, "stopped", 19) in outcomes
    assert (23, "fired", 23) in outcomes
    assert (31, "not reached", 31) in outcomes
    stopped = next(item for item in rule_outcomes(syntax, explanation) if item.first_line == 13)
    assert stopped.text == "input.amount > 5"
    assert stopped.rule == "data.p.reasons"


def test_a_condition_on_the_line_of_its_value_is_only_known_to_be_reached(rego: RegoEngine, syntax: str) -> None:
    explanation, _ = explain(rego, judged=True, amount=4)
    assert {item.outcome for item in rule_outcomes(syntax, explanation) if item.first_line == 11} == {"reached"}
