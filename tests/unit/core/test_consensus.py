"""Consensus rules: what f stake of liars can and cannot do (threats 2)."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placet.core.consensus import Disagreement, Rule, RuleKind, Threshold, agree_at, agree_document, check_rules
from placet.core.errors import InvalidInput
from placet.core.jsonx import Fraction, canonical

FOUR = Threshold(total_stake=400, quorum_bps=6667)
EQUAL = [100, 100, 100, 100]
EXACT, MAJORITY = Rule(RuleKind.EXACT), Rule(RuleKind.MAJORITY)
MIN, MAX = Rule(RuleKind.MIN), Rule(RuleKind.MAX)
UNION, INTERSECTION = Rule(RuleKind.UNION), Rule(RuleKind.INTERSECTION)
MEDIAN = Rule(RuleKind.MEDIAN, relative_bps=1000)


def agreed(rule: Rule, *values: Any, stakes: list[int] | None = None, threshold: Threshold = FOUR) -> Any:
    return agree_at(list(values), stakes or [100] * len(values), threshold, "/x", rule)


def test_exact_is_the_value_of_quorum_stake() -> None:
    result = agreed(EXACT, "a", "a", "a", "b")
    assert (result.value, result.agreeing) == ("a", {0, 1, 2})
    with pytest.raises(Disagreement):
        agreed(EXACT, "a", "a", "b", "b")


def test_majority_needs_more_than_half_and_more_than_f() -> None:
    assert agreed(MAJORITY, "a", "a", "a", "b").value == "a"
    with pytest.raises(Disagreement):
        agreed(MAJORITY, "a", "a", "b", "b")


def test_02_one_liar_cannot_empty_an_intersection() -> None:
    assert agreed(INTERSECTION, [], ["x", "y"], ["x", "y", "z"], ["x", "y"]).value == ["x", "y"]


def test_02_one_liar_cannot_ban_anyone_through_a_union() -> None:
    assert agreed(UNION, ["victim", "a"], ["a"], ["a"], []).value == ["a"]


def test_02_one_liar_cannot_set_a_minimum_or_a_maximum() -> None:
    assert agreed(MAX, 10**30, 100, 101, 99).value == 101
    assert agreed(MIN, 0, 100, 101, 99).value == 99


def test_02_a_median_goes_by_stake_and_is_a_reported_value() -> None:
    assert agreed(MEDIAN, 100, 103, stakes=[196, 204], threshold=Threshold(400, 5000)).value == 103
    assert agreed(MEDIAN, 100, 101, 99, 102).value == 100
    lying = agreed(MEDIAN, 1, 1, 100, stakes=[1, 1, 98], threshold=Threshold(100, 6667))
    assert (lying.value, lying.agreeing) == (100, {2})


def test_02_observers_outside_the_tolerance_stop_nothing_unless_they_hold_quorum_away() -> None:
    result = agreed(MEDIAN, 100, 101, 99, 10**9)
    assert (result.value, result.agreeing) == (100, {0, 1, 2})
    with pytest.raises(Disagreement, match="tolerance"):
        agreed(MEDIAN, 100, 200, 300, 400)


def test_amounts_of_any_size_are_compared_exactly() -> None:
    big = 2**256 - 1
    assert agreed(MAX, big, big, big - 1, 0).value == big
    assert agreed(MIN, str(big), str(big), str(big - 1), str(big - 1)).value == str(big - 1)


def test_fractions_are_compared_as_written() -> None:
    rule = Rule(RuleKind.MEDIAN, absolute=Decimal("0.01"))
    values = [Fraction("0.1"), Fraction("0.10"), Fraction("0.11"), Fraction("0.3")]
    result = agreed(rule, *values)
    assert canonical(result.value) == b"0.10"
    assert result.agreeing == {0, 1, 2}


def test_numbers_and_number_strings_are_not_mixed() -> None:
    result = agreed(MAX, "5", "5", "5", 9)
    assert (result.value, result.agreeing) == ("5", {0, 1, 2})


STAKES = st.lists(st.integers(1, 50), min_size=4, max_size=9)


@st.composite
def honest_and_lying(draw: st.DrawFn) -> tuple[list[int], int, set[int]]:
    """Stakes, a quorum, and liars holding at most f."""
    stakes = draw(STAKES)
    bps = draw(st.integers(5001, 10_000))
    threshold = Threshold(sum(stakes), bps)
    liars: set[int] = set()
    for index in draw(st.permutations(range(len(stakes)))):
        if not threshold.exceeds_faulty(sum(stakes[i] for i in liars | {index})):
            liars.add(index)
    return stakes, bps, liars


@given(honest_and_lying(), st.data())
def test_02_whatever_f_stake_reports_a_number_stays_within_what_honest_observers_saw(case: Any, data: st.DataObject) -> None:
    stakes, bps, liars = case
    honest = st.integers(95, 105)
    values = [data.draw(st.integers(-(10**40), 10**40) if i in liars else honest) for i in range(len(stakes))]
    seen = [value for index, value in enumerate(values) if index not in liars]
    for rule in (MIN, MAX, Rule(RuleKind.MEDIAN, absolute=Decimal(10))):
        try:
            value = agreed(rule, *values, stakes=stakes, threshold=Threshold(sum(stakes), bps)).value
        except Disagreement:
            continue
        if rule.kind is RuleKind.MIN:
            assert value >= min(seen) or value in seen, "a lie below everything honest is not the minimum"
            assert min(seen) <= value
        elif rule.kind is RuleKind.MAX:
            assert value <= max(seen)
        else:
            assert min(seen) - 10 <= value <= max(seen) + 10


@given(honest_and_lying(), st.data())
def test_02_whatever_f_stake_reports_a_set_holds_to_honest_observers(case: Any, data: st.DataObject) -> None:
    stakes, bps, liars = case
    sets = st.lists(st.sampled_from("abcdef"), unique=True)
    values = [data.draw(sets) for _ in stakes]
    threshold = Threshold(sum(stakes), bps)
    honest = [set(value) for index, value in enumerate(values) if index not in liars]
    union = set(agreed(UNION, *values, stakes=stakes, threshold=threshold).value)
    assert union <= set().union(*honest), "an element only liars reported"
    kept = set(agreed(INTERSECTION, *values, stakes=stakes, threshold=threshold).value)
    assert set.intersection(*honest) <= kept, "an element every honest observer reported was lost"


@given(honest_and_lying(), st.data())
def test_02_liars_with_f_stake_never_make_an_exact_or_majority_value(case: Any, data: st.DataObject) -> None:
    stakes, bps, liars = case
    values = ["lie" if index in liars else "truth" for index in range(len(stakes))]
    for rule in (EXACT, MAJORITY):
        try:
            assert agreed(rule, *values, stakes=stakes, threshold=Threshold(sum(stakes), bps)).value == "truth"
        except Disagreement:
            continue


# --- whole documents


def document(price: Any, source: str = "x") -> dict[str, Any]:
    return {"price": price, "source": source}


def test_what_has_no_rule_must_be_equal_and_what_has_one_may_differ() -> None:
    result = agree_document([document(100), document(101), document(99), document(100, "y")], EQUAL, {"/price": MEDIAN}, FOUR)
    assert result.value == document(100)
    assert result.agreeing == {0, 1, 2}


def test_an_observer_without_a_ruled_place_agrees_with_nobody() -> None:
    result = agree_document([document(100), document(101), document(99), {"source": "x"}], EQUAL, {"/price": MEDIAN}, FOUR)
    assert result.agreeing == {0, 1, 2}
    with pytest.raises(Disagreement):
        agree_document([document(1), document(1), {}, {}], EQUAL, {"/price": MEDIAN}, FOUR)


def test_observers_that_agree_in_different_places_make_no_quorum() -> None:
    rules = {"/a": MEDIAN, "/b": MEDIAN}
    documents = [{"a": 100, "b": 100}, {"a": 100, "b": 900}, {"a": 900, "b": 100}, {"a": 100, "b": 100}]
    with pytest.raises(Disagreement, match="everywhere"):
        agree_document(documents, EQUAL, rules, FOUR)


def test_rules_inside_lists_and_escaped_names_work() -> None:
    documents = [{"a/b": [1, {"n": value}]} for value in (10, 10, 11, 10)]
    result = agree_document(documents, EQUAL, {"/a~1b/1/n": MEDIAN}, FOUR)
    assert result.value == {"a/b": [1, {"n": 10}]}


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"/a": MEDIAN, "/a/b": EXACT}, "inside each other"),
        ({"": EXACT, "/a": EXACT}, "inside each other"),
        ({"a": EXACT}, "JSON pointer"),
        ({"/a": Rule(RuleKind.MEDIAN)}, "one tolerance"),
        ({"/a": Rule(RuleKind.MEDIAN, Decimal(1), 1)}, "one tolerance"),
        ({"/a": Rule(RuleKind.MAX, relative_bps=1)}, "only a median"),
        ({"/a": Rule(RuleKind.MEDIAN, relative_bps=10_001)}, "out of range"),
        ({"/a": Rule(RuleKind.MEDIAN, absolute=Decimal(-1))}, "out of range"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: dict[str, Rule], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        check_rules(rules)
