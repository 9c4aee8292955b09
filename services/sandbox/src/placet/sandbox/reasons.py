"""Which rule said a reason, and where each rule of a policy stopped: read from an explanation and the policy's syntax trees.

    explanation = policy.explain(input_json, data=…)
    syntax = engine.syntax_json(modules)
    places = reason_places(syntax, explanation, decision.reasons)     # reason -> rule, file, line
    outcomes = rule_outcomes(syntax, explanation)                      # rule -> fired, stopped at a line, not reached

Pure: nothing is evaluated again. Coverage is by line, so a reason is found by what can make its text (a string, or the format of a
`sprintf`) on lines that were reached; of several candidates the most specific remain. It is for people: nothing here is signed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from placet.sandbox.check import Node, _head, _head_path, _line, _nodes, _path
from placet.sandbox.rego import Explanation, FileCoverage

Outcome = Literal["fired", "reached", "stopped", "not reached"]
"""fired: its conditions held and its value was made. reached: its last condition was evaluated; whether it held shows on no line of
its own. stopped: the condition at `line` did not hold, or was undefined. not reached: nothing asked for it."""

_VERB = re.compile(r"%%|%[-+# 0-9.]*[a-zA-Z]")
_MAX_RULES = 4_096


@dataclass(frozen=True, slots=True, order=True)
class ReasonPlace:
    """A place that makes a reason. `rule` is its full path, lines count from 1 and cover the whole rule."""

    message: str
    rule: str
    file: str
    line: int
    end_line: int


@dataclass(frozen=True, slots=True, order=True)
class RuleOutcome:
    """What became of one rule (one `if`, one `else`). `line` is where it stopped, or where it begins; `text` is that line."""

    file: str
    first_line: int
    rule: str
    outcome: Outcome
    line: int
    text: str


def reason_places(syntax_json: str, explanation: Explanation, reasons: Sequence[str]) -> tuple[ReasonPlace, ...]:
    """Places of `reasons`, in their order; a reason that no text of the policy can make (one that data brought) has none."""
    rules = _rules(syntax_json)
    found: list[ReasonPlace] = []
    for message in dict.fromkeys(reasons):
        best: dict[tuple[int, int], list[_Rule]] = {}
        for rule in rules:
            if (fits := rule.fits(message)) is not None and rule.may_have_fired(explanation.coverage):
                best.setdefault(fits, []).append(rule)
        if best:
            found += sorted(ReasonPlace(message, rule.path, rule.file, rule.first_line, rule.last_line) for rule in best[max(best)])
    return tuple(found)


def rule_outcomes(syntax_json: str, explanation: Explanation) -> tuple[RuleOutcome, ...]:
    """One entry a rule body, in the order of the files. A default counts as not reached when another body of its rule fired."""
    rules = _rules(syntax_json)
    outcomes = [rule.outcome(explanation.coverage) for rule in rules]
    fired = {rule.path for rule, item in zip(rules, outcomes, strict=True) if item.outcome == "fired" and not rule.default}
    return tuple(
        sorted(
            replace(item, outcome="not reached") if rule.default and rule.path in fired else item
            for rule, item in zip(rules, outcomes, strict=True)
        )
    )


@dataclass(frozen=True, slots=True)
class _Rule:
    """One body of a rule. `value_lines` are those of what it yields, `conditions` the first lines of its statements in order."""

    file: str
    path: str
    default: bool
    first_line: int
    last_line: int
    value_lines: frozenset[int]
    conditions: tuple[int, ...]
    texts: tuple[tuple[str, bool], ...]
    """Strings in it, and whether one is a format."""
    yields: frozenset[str]
    """Those of `texts` that stand in its value, or are assigned to the variable that is its value."""
    source: tuple[str, ...]

    def fits(self, message: str) -> tuple[int, int] | None:
        """How well it can make the message: (stands in its value, characters that are given); None if it cannot."""
        scores = [
            (int(text in self.yields), given) for text, is_format in self.texts if (given := _given(text, is_format, message)) is not None
        ]
        return max(scores, default=None)

    def may_have_fired(self, coverage: Mapping[str, FileCoverage]) -> bool:
        covered, reported = _lines_of(coverage, self.file)
        values = self.value_lines & reported
        if not reported:
            return True
        if values:
            return bool(values & covered)
        return not self.conditions or self.conditions[-1] in covered

    def outcome(self, coverage: Mapping[str, FileCoverage]) -> RuleOutcome:
        covered, reported = _lines_of(coverage, self.file)
        # The engine reports no line for some values (that of an `else`): then only the conditions speak.
        values = (self.value_lines - set(self.conditions)) & reported
        reached = [line for line in self.conditions if line in covered]
        if values & covered:
            return self._say("fired", self.first_line)
        if not reached:
            return self._say("not reached", self.first_line)
        if values or self.conditions[-1] not in covered:
            return self._say("stopped", reached[-1])
        return self._say("reached", self.conditions[-1])

    def _say(self, outcome: Outcome, line: int) -> RuleOutcome:
        text = self.source[line - 1].strip() if 0 < line <= len(self.source) else ""
        return RuleOutcome(self.file, self.first_line, self.path, outcome, line, text)


def _lines_of(coverage: Mapping[str, FileCoverage], file: str) -> tuple[frozenset[int], frozenset[int]]:
    """Lines that were covered, and all lines that are reported at all."""
    found = coverage.get(file)
    if found is None:
        return frozenset(), frozenset()
    return frozenset(found.covered), frozenset((*found.covered, *found.not_covered))


def _given(text: str, is_format: bool, message: str) -> int | None:
    """How many characters of the message the text gives; None if it cannot make it."""
    if not is_format:
        return len(text) if text == message else None
    parts = _VERB.split(text)
    literals = [parts[0]]
    for verb, part in zip(_VERB.findall(text), parts[1:], strict=True):
        if verb == "%%":
            literals[-1] += "%" + part
        else:
            literals.append(part)
    return sum(map(len, parts)) if _stand_in_order(literals, message) else None


def _stand_in_order(literals: list[str], message: str) -> bool:
    """Whether the message begins with the first, ends with the last, and holds the others between, in order: in linear time."""
    first, last = literals[0], literals[-1]
    if len(literals) == 1:
        return message == first
    at, end = len(first), len(message) - len(last)
    if not message.startswith(first) or not message.endswith(last) or at > end:
        return False
    for literal in literals[1:-1]:
        found = message.find(literal, at, end)
        if found < 0:
            return False
        at = found + len(literal)
    return True


def _rules(syntax_json: str) -> list[_Rule]:
    trees: list[Node] = json.loads(syntax_json)
    return [rule for tree in trees for rule in _rules_of(tree)][:_MAX_RULES]


def _rules_of(tree: Node) -> Iterator[_Rule]:
    file, contents = str(tree["source"]["file"]), str(tree["source"]["contents"])
    raw, lines = contents.encode(), tuple(contents.splitlines())
    package = "data." + (_path(tree["ast"]["package"]["refr"]) or "?")

    def end_line(span: Mapping[str, Any]) -> int:
        return raw[: int(span["end"])].count(b"\n") + 1

    def make(rule: Node, span: Mapping[str, Any], value: Any, statements: list[Node]) -> _Rule:
        texts = tuple(_texts([value, statements]))
        variable = (value or {}).get("Var", {}).get("value") if isinstance(value, dict) else None
        assigned = [item for statement in statements for item in _assigned(statement, variable)] if variable else []
        yields = frozenset(text for text, _ in _texts([value, assigned]))
        value_lines = frozenset(line for node, line in _nodes(value) if line) if isinstance(value, dict) else frozenset()
        conditions = tuple(_line(statement) for statement in statements)
        path = f"{package}.{_head_path(rule) or '?'}"
        return _Rule(
            file, path, _head(rule)[0] == "Default", int(span["line"]), end_line(span), value_lines, conditions, texts, yields, lines
        )

    for rule in tree["ast"]["rules"]:
        kind, head = _head(rule)
        if kind == "Default":
            yield make(rule, head["span"], head.get("value"), [])
            continue
        value = head.get("key") if kind == "Set" else (head.get("assign") or {}).get("value")
        bodies = rule["Spec"].get("bodies") or []
        if not bodies:
            yield make(rule, rule["Spec"]["span"], value, [])
        for body in bodies:
            own = value if not body.get("is_else") else (body.get("assign") or {}).get("value")
            span = body["span"] if body.get("is_else") else rule["Spec"]["span"]
            yield make(rule, span, own, list((body.get("query") or {}).get("stmts") or []))


def _assigned(statement: Node, variable: str) -> Iterator[Any]:
    """What a statement assigns to a variable."""
    for node, _ in _nodes(statement):
        assign = node.get("AssignExpr")
        if assign and (assign.get("lhs") or {}).get("Var", {}).get("value") == variable:
            yield assign.get("rhs")


def _texts(root: Any) -> Iterator[tuple[str, bool]]:
    """Strings of a tree, each with whether it is the format of a `sprintf`."""
    formats: set[int] = set()
    for node, _ in _nodes(root):
        call = node.get("Call")
        if call and _path(call["fcn"]) == "sprintf" and call.get("params"):
            text = _string(call["params"][0])
            if text is not None:
                formats.add(id(call["params"][0]))
                yield text, True
        text = _string(node)
        if text is not None and id(node) not in formats:
            yield text, False


def _string(node: Any) -> str | None:
    if not isinstance(node, dict):
        return None
    inner = node.get("String") or node.get("RawString")
    return str(inner["value"]) if isinstance(inner, dict) and "value" in inner else None
