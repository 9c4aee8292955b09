"""What honest operators sign must not depend on how each of them is installed (threats 17)."""

from __future__ import annotations

from placet.core.consensus import Rule, RuleKind, Threshold, agree_document, check_rules
from placet.core.decision import early_denial
from placet.core.errors import InvalidInput
from tests.audit import rig


def test_17_a_signed_reason_does_not_depend_on_pythons_unicode_tables() -> None:
    """U+1FA75 came with Unicode 15: `repr` escapes it in Python 3.11 and prints it in 3.12, both of which are supported."""
    context = rig.batch(rig.task(signature="ping\U0001fa75()"))
    reason = early_denial(context, 0, rig.policy())
    assert reason is not None
    assert "\U0001fa75" not in reason
    assert "1fa75" not in reason


def test_a_rule_at_a_place_that_is_read_in_two_ways_is_refused_or_works() -> None:
    rules = {"/price/": Rule(RuleKind.MAJORITY)}
    try:
        check_rules(rules)
    except InvalidInput:
        return
    agree_document([{"price": 1}] * 4, [100] * 4, rules, Threshold(400, 6667))
