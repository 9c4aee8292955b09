"""What a request costs: exact, rounded up once, and the same for the same request as long as its offer holds."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placet.core.errors import InvalidInput
from placet.core.models import Prices, Rate
from placet.core.payment.prices import PriceTable, Size, atomic, charge, per_million, standing, worst_case
from tests.support.payment import PAY_TO, TOKEN

PER_TOKEN = Rate(request=100, row=7, million_prompt_tokens=1_500_000, million_completion_tokens=6_000_000)
COUNTS = st.integers(0, 10**7)


def test_the_worst_case_counts_every_token_that_may_be_generated() -> None:
    assert worst_case(PER_TOKEN, Size(prompt_tokens=1000, completion_tokens=256)) == 100 + 1500 + 1536
    assert worst_case(PER_TOKEN, Size(rows=3)) == 121
    assert worst_case(PER_TOKEN, Size()) == 100


def test_a_part_of_a_unit_is_a_unit_and_is_rounded_once() -> None:
    cheap = Rate(million_prompt_tokens=1, million_completion_tokens=1)
    assert worst_case(cheap, Size(prompt_tokens=1)) == 1
    assert worst_case(cheap, Size(prompt_tokens=500_000, completion_tokens=500_000)) == 1
    assert worst_case(cheap, Size(prompt_tokens=500_000, completion_tokens=500_001)) == 2


@given(prompt=COUNTS, completion=COUNTS, rows=COUNTS, price=st.integers(0, 10**20))
def test_a_price_is_never_below_its_exact_value_and_less_than_a_unit_above(prompt: int, completion: int, rows: int, price: int) -> None:
    rate = Rate(request=price, row=3, million_prompt_tokens=price, million_completion_tokens=price + 1)
    exact = price + 3 * rows + Fraction(prompt * price + completion * (price + 1), 1_000_000)
    assert 0 <= worst_case(rate, Size(prompt, completion, rows)) - exact < 1


@given(maximal=COUNTS, used=COUNTS)
def test_what_was_used_costs_no_more_than_the_worst_case(maximal: int, used: int) -> None:
    offered = worst_case(PER_TOKEN, Size(10, maximal))
    charged = charge(PER_TOKEN, Size(10, min(used, maximal)), maximum=offered)
    assert charged <= offered
    assert charge(PER_TOKEN, Size(10, used), maximum=offered) <= offered


def test_a_size_is_not_negative() -> None:
    with pytest.raises(ValueError):
        Size(prompt_tokens=-1)


def _table(version: int, since: int) -> PriceTable:
    return PriceTable(version, since, Prices("eip155:31337", TOKEN, PAY_TO, Rate(request=version)))


def test_a_replaced_table_holds_until_payments_for_it_have_run_out() -> None:
    tables = [_table(1, 100), _table(2, 1000)]

    def versions(now: int) -> list[int]:
        return [table.version for table in standing(tables, now=now, max_timeout_s=120)]

    assert versions(99) == []
    assert versions(100) == [1]
    assert versions(999) == [1]
    assert versions(1000) == [2, 1]
    assert versions(1119) == [2, 1]
    assert versions(1120) == [2]


def test_tables_replaced_in_quick_succession_all_hold() -> None:
    tables = [_table(3, 1010), _table(1, 100), _table(2, 1000)]
    assert [table.version for table in standing(tables, now=1050, max_timeout_s=120)] == [3, 2, 1]
    assert [table.version for table in standing(tables, now=1125, max_timeout_s=120)] == [3, 2]
    assert [table.version for table in standing(tables, now=1130, max_timeout_s=120)] == [3]


@pytest.mark.parametrize(
    ("text", "decimals", "units"),
    [("0.001", 6, 1000), ("1", 6, 10**6), ("0", 6, 0), ("0.0", 0, 0), ("1.50", 1, 15), ("12.345678", 6, 12345678), ("0.1", 18, 10**17)],
)
def test_a_decimal_price_is_exact(text: str, decimals: int, units: int) -> None:
    assert atomic(text, decimals) == units


@pytest.mark.parametrize(
    "text", ["", ".", "1.", ".5", "-1", "+1", "1e3", "$1", "1,000", "01", " 1", "1\n", "0.0000001", "１", "NaN", "9" * 40]
)
def test_a_price_that_is_finer_than_the_token_or_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        atomic(text, 6)


def test_a_token_has_a_sensible_number_of_decimals() -> None:
    for decimals in (-1, 37):
        with pytest.raises(InvalidInput):
            atomic("1", decimals)


@given(units=st.integers(0, 10**30), decimals=st.integers(0, 24))
def test_every_amount_has_a_decimal_that_means_it(units: int, decimals: int) -> None:
    digits = str(units).rjust(decimals + 1, "0")
    text = f"{digits[: len(digits) - decimals]}.{digits[len(digits) - decimals :]}" if decimals else digits
    assert atomic(text, decimals) == units


def test_a_price_of_a_token_may_be_finer_than_a_unit() -> None:
    assert per_million("0.0000015", 6) == 1_500_000
    assert per_million("0.000000000001", 6) == 1
    with pytest.raises(InvalidInput):
        per_million("0.0000000000001", 6)
