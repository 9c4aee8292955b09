"""What a request costs before it runs and after, as a pure function of a table of prices. Integers only; parts of a unit are rounded up.

Clients pay for the offer they were given, so a table that was replaced still holds until payments for its offers have run out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from placet.core.errors import InvalidInput
from placet.core.models import Prices, Rate

_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,38})(?:\.([0-9]{1,38}))?\Z")
MAX_DECIMALS = 36


@dataclass(frozen=True, slots=True)
class PriceTable:
    """A model's prices from a time on (unix seconds). `version` counts them, from 1."""

    version: int
    since: int
    prices: Prices


@dataclass(frozen=True, slots=True)
class Size:
    """How large a request is, or was. Before it runs: the prompt as it will be counted, or more, and the most that can be generated."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.completion_tokens, self.rows) < 0:
            raise ValueError("sizes are not negative")


def worst_case(rate: Rate, size: Size) -> int:
    """The most that a request can cost, in atomic units: what is offered for it. `size` is an upper bound."""
    return rate.amount(prompt_tokens=size.prompt_tokens, completion_tokens=size.completion_tokens, rows=size.rows)


def charge(rate: Rate, used: Size, *, maximum: int) -> int:
    """What was used costs, in atomic units; never more than was signed."""
    return min(maximum, worst_case(rate, used))


def standing(tables: Sequence[PriceTable], *, now: int, max_timeout_s: int) -> list[PriceTable]:
    """The tables whose offers may be paid now, newest first: the newest that has begun, and each that was replaced less than
    `max_timeout_s` ago. None, when none has begun."""
    begun = sorted((table for table in tables if table.since <= now), key=lambda table: (table.since, table.version), reverse=True)
    out = begun[:1]
    for newer, older in itertools.pairwise(begun):
        if newer.since + max_timeout_s <= now:
            break
        out.append(older)
    return out


def atomic(text: str, decimals: int) -> int:
    """Atomic units of an amount written in whole units of a token: `atomic("0.001", 6)` is 1000. Exact or refused.

    Raises:
        InvalidInput: not a plain decimal number, or finer than the token.
    """
    match = _DECIMAL.match(text)
    if match is None or not 0 <= decimals <= MAX_DECIMALS:
        raise InvalidInput("price: a plain decimal number wanted, for instance 0.001", field="price")
    fraction = (match[2] or "").rstrip("0")
    if len(fraction) > decimals:
        raise InvalidInput(f"price: the token has {decimals} decimals, fewer than this amount needs", field="price")
    return int(match[1] + fraction.ljust(decimals, "0"))


def per_million(text: str, decimals: int) -> int:
    """Atomic units a million tokens, from the price of one token in whole units: `per_million("0.0000015", 6)` is 1500000.

    Raises:
        InvalidInput: finer than a millionth of an atomic unit, or no number.
    """
    return atomic(text, decimals + 6)
