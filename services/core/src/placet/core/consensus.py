"""How several operators' observations become one agreed value: the consensus rules of architecture §4 as pure functions.

A manifest gives one rule to each ruled place of a component's output (a JSON pointer); everything else must be `exact`. All thresholds
hold against f, the larger of (total - quorum stake) and a third of the total, so that whatever f stake reports, an honest observer
vouches for the result (threats 2). The agreed value is always one that somebody reported; nothing is averaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from placet.core.errors import InvalidInput
from placet.core.jsonx import Fraction, canonical, pointer
from placet.core.stake import meets, more_than_faulty


class RuleKind(StrEnum):
    """The rules a manifest may name."""

    EXACT = "exact"
    MAJORITY = "majority"
    MEDIAN = "median"
    MIN = "min"
    MAX = "max"
    UNION = "union"
    INTERSECTION = "intersection"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule at one place of the output.

    `absolute` (in the value's unit) or `relative_bps` is the tolerance of a median: |own - median| within it.
    """

    kind: RuleKind
    absolute: Decimal | None = None
    relative_bps: int | None = None


Rules = Mapping[str, Rule]
"""JSON pointer -> rule. Pointers must not lie inside each other."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Total stake of the epoch and the quorum asked for."""

    total_stake: int
    quorum_bps: int

    def is_quorum(self, stake: int) -> bool:
        """Whether `stake` meets the quorum."""
        return meets(stake, self.total_stake, self.quorum_bps)

    def exceeds_faulty(self, stake: int) -> bool:
        """Whether `stake` is more than f."""
        return more_than_faulty(stake, self.total_stake, self.quorum_bps)


@dataclass(frozen=True, slots=True)
class Agreed:
    """An agreed value and the observers (indices) whose own observation agrees with it."""

    value: Any
    agreeing: frozenset[int]


class Disagreement(Exception):
    """No value satisfies the rule. `place` is the JSON pointer."""

    def __init__(self, place: str, why: str) -> None:
        super().__init__(f"{place or '/'}: {why}")
        self.place = place
        self.why = why


_INTEGER_TEXT = re.compile(r"(0|-?[1-9][0-9]{0,77})\Z")


def number_of(value: Any) -> Decimal | None:
    """A JSON number, or a string holding a decimal integer, as an exact number; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Fraction):
        return Decimal(value.text)
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, str) and _INTEGER_TEXT.match(value):
        return Decimal(value)
    return None


def _kind_of_number(value: Any) -> str:
    return "string" if isinstance(value, str) else "number"


def agree_exact(values: Sequence[Any], stakes: Sequence[int], threshold: Threshold, place: str, *, majority: bool) -> Agreed:
    """The value reported by quorum stake, or for `majority` by more than half of the total and more than f."""
    by_bytes: dict[bytes, list[int]] = {}
    for index, value in enumerate(values):
        by_bytes.setdefault(canonical(value), []).append(index)
    for members in by_bytes.values():
        stake = sum(stakes[index] for index in members)
        enough = 2 * stake > threshold.total_stake and threshold.exceeds_faulty(stake) if majority else threshold.is_quorum(stake)
        if enough:
            return Agreed(values[members[0]], frozenset(members))
    raise Disagreement(place, f"{len(by_bytes)} different values, none by enough stake")


def _within(value: Decimal, centre: Decimal, rule: Rule) -> bool:
    distance = abs(value - centre)
    if rule.absolute is not None:
        return distance <= rule.absolute
    return distance * 10_000 <= abs(centre) * (rule.relative_bps or 0)


def _numbers(values: Sequence[Any], stakes: Sequence[int], threshold: Threshold, place: str) -> tuple[list[Decimal | None], list[int]]:
    """Numbers of the observers that reported one, of the representation (number or string) with most stake."""
    numbers = [number_of(value) for value in values]
    stake_of: dict[str, int] = {}
    for value, number, stake in zip(values, numbers, stakes, strict=True):
        if number is not None:
            kind = _kind_of_number(value)
            stake_of[kind] = stake_of.get(kind, 0) + stake
    if not stake_of:
        raise Disagreement(place, "no observer reported a number")
    kind = max(sorted(stake_of), key=lambda name: stake_of[name])
    usable = [
        i for i, (value, number) in enumerate(zip(values, numbers, strict=True)) if number is not None and _kind_of_number(value) == kind
    ]
    return numbers, usable


def agree_number(values: Sequence[Any], stakes: Sequence[int], threshold: Threshold, place: str, rule: Rule) -> Agreed:
    """`median`, `min` and `max`.

    median: stake-weighted lower median of those that reported; observers within tolerance of it must hold quorum stake, and they agree.
    min / max: the least / greatest v such that observers reporting <= v / >= v hold more than f; all that reported a number agree.
    """
    numbers, usable = _numbers(values, stakes, threshold, place)

    def number(index: int) -> Decimal:
        found = numbers[index]
        assert found is not None
        return found

    ordered = sorted(usable, key=lambda index: (number(index), index))
    if rule.kind is RuleKind.MEDIAN:
        reported = sum(stakes[index] for index in ordered)
        running = 0
        centre_index = ordered[-1]
        for index in ordered:
            running += stakes[index]
            if 2 * running >= reported:
                centre_index = index
                break
        centre = number(centre_index)
        near = frozenset(index for index in usable if _within(number(index), centre, rule))
        if not threshold.is_quorum(sum(stakes[index] for index in near)):
            raise Disagreement(place, "observers within tolerance of the median hold less than quorum stake")
        return Agreed(values[centre_index], near)
    if rule.kind is RuleKind.MAX:
        ordered.reverse()
    running = 0
    for position, index in enumerate(ordered):
        running += stakes[index]
        following = ordered[position + 1] if position + 1 < len(ordered) else None
        if following is not None and number(following) == number(index):
            continue
        if threshold.exceeds_faulty(running):
            return Agreed(values[index], frozenset(usable))
    raise Disagreement(place, "too little stake reported a number")


def agree_set(values: Sequence[Any], stakes: Sequence[int], threshold: Threshold, place: str, rule: Rule) -> Agreed:
    """`union`: elements reported by more than f. `intersection`: elements that no more than f of the total lack.

    What did not report counts as lacking. All that reported a list agree. The result is sorted by canonical bytes.
    """
    usable = [index for index, value in enumerate(values) if isinstance(value, list)]
    if not threshold.is_quorum(sum(stakes[index] for index in usable)):
        raise Disagreement(place, "lists were reported by less than quorum stake")
    having: dict[bytes, int] = {}
    element: dict[bytes, Any] = {}
    for index in usable:
        for key, item in {canonical(item): item for item in values[index]}.items():
            having[key] = having.get(key, 0) + stakes[index]
            element[key] = item
    if rule.kind is RuleKind.UNION:
        kept = [key for key, stake in having.items() if threshold.exceeds_faulty(stake)]
    else:
        kept = [key for key, stake in having.items() if not threshold.exceeds_faulty(threshold.total_stake - stake)]
    return Agreed([element[key] for key in sorted(kept)], frozenset(usable))


def agree_at(values: Sequence[Any], stakes: Sequence[int], threshold: Threshold, place: str, rule: Rule) -> Agreed:
    """Apply one rule to the values several observers reported at one place."""
    match rule.kind:
        case RuleKind.EXACT | RuleKind.MAJORITY:
            return agree_exact(values, stakes, threshold, place, majority=rule.kind is RuleKind.MAJORITY)
        case RuleKind.MEDIAN | RuleKind.MIN | RuleKind.MAX:
            return agree_number(values, stakes, threshold, place, rule)
        case RuleKind.UNION | RuleKind.INTERSECTION:
            return agree_set(values, stakes, threshold, place, rule)


_RULED = "ruled"


def _replace(document: Any, path: str, make: Callable[[Any], Any]) -> Any:
    """A copy of `document` with the value at `path` replaced. Raises KeyError when there is none."""
    if path == "":
        return make(document)
    first, _, rest = path[1:].partition("/")
    key = first.replace("~1", "/").replace("~0", "~")
    if isinstance(document, dict):
        return {**document, key: _replace(document[key], f"/{rest}" if rest else "", make)}
    if isinstance(document, list):
        value = pointer(document, f"/{first}")
        position = int(key)
        return [*document[:position], _replace(value, f"/{rest}" if rest else "", make), *document[position + 1 :]]
    raise KeyError(path)


def check_rules(rules: Rules) -> None:
    """Refuse rules that overlap or lack what they need.

    Raises:
        InvalidInput: naming the pointer.
    """
    places = sorted(rules)
    for place in places:
        if place and not place.startswith("/"):
            raise InvalidInput(f"consensus: {place!r} is not a JSON pointer", field=place)
        if place.endswith("/"):
            raise InvalidInput(f"consensus: {place!r} ends in an empty name", field=place)
        if any(other != place and (place == "" or other.startswith(place + "/")) for other in places):
            raise InvalidInput(f"consensus: rules lie inside each other at {place!r}", field=place)
        rule = rules[place]
        tolerances = (rule.absolute is not None) + (rule.relative_bps is not None)
        if rule.kind is RuleKind.MEDIAN and tolerances != 1:
            raise InvalidInput(f"consensus: median at {place!r} needs one tolerance, absolute or relative", field=place)
        if rule.kind is not RuleKind.MEDIAN and tolerances:
            raise InvalidInput(f"consensus: only a median has a tolerance ({place!r})", field=place)
        if (rule.absolute is not None and rule.absolute < 0) or (rule.relative_bps is not None and not 0 <= rule.relative_bps <= 10_000):
            raise InvalidInput(f"consensus: tolerance out of range at {place!r}", field=place)


def agree_document(documents: Sequence[Any], stakes: Sequence[int], rules: Rules, threshold: Threshold) -> Agreed:
    """Agree one component's whole output.

    1. Cut the ruled places out of each document; the rest (the skeleton) must be exact. 2. Among the observers whose skeleton is the
    agreed one, apply each place's rule. 3. The agreeing observers are those that agree everywhere; they must hold quorum stake.

    Raises:
        Disagreement: naming the place.
    """
    usable: list[int] = []
    skeletons: list[Any] = []
    for index, document in enumerate(documents):
        skeleton = document
        try:
            for place in rules:
                skeleton = _replace(skeleton, place, lambda _: _RULED)
        except KeyError:
            continue  # lacks a ruled place: this observer agrees with nobody
        usable.append(index)
        skeletons.append(skeleton)
    shape = agree_exact(skeletons, [stakes[index] for index in usable], threshold, "", majority=False)
    members = sorted(usable[position] for position in shape.agreeing)
    result = shape.value
    agreeing = set(members)
    own_stakes = [stakes[index] for index in members]
    for place, rule in rules.items():
        values = [pointer(documents[index], place) for index in members]
        agreed = agree_at(values, own_stakes, threshold, place, rule)
        value = agreed.value
        result = _replace(result, place, lambda _, value=value: value)  # type: ignore[misc]
        agreeing &= {members[position] for position in agreed.agreeing}
    if not threshold.is_quorum(sum(stakes[index] for index in agreeing)):
        raise Disagreement("", "observers that agree everywhere hold less than quorum stake")
    return Agreed(result, frozenset(agreeing))
