"""Which replica answers: what was asked for is met or refused, never weakened; and the reason is said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from placet.core.errors import InvalidInput, ModeUnavailable, RateLimited, Unavailable
from placet.core.models import Reference
from placet.core.receipts import Mode
from placet.gateway.inference.routing import Wants, choose, wants_of


@dataclass(frozen=True)
class Replica:
    jurisdiction: str = ""
    modes: frozenset[Mode] = field(default_factory=lambda: frozenset({Mode.VANILLA}))
    is_loaded: bool = True
    busy: float = 0.0
    first_ms: float = 0.0
    last_ms: float = 0.0
    key_id: bytes = b""


def order(candidates: list[Replica], wants: Wants | None = None, *, stream: bool = False) -> list[int]:
    return [choice.index for choice in choose(candidates, wants or Wants(), stream=stream)]


def test_the_least_busy_one_that_has_the_model_is_first() -> None:
    assert order([Replica(busy=2), Replica(busy=1), Replica(is_loaded=False)]) == [1, 0, 2]
    assert order([Replica(busy=1, last_ms=9), Replica(busy=1, last_ms=3)]) == [1, 0]


def test_a_jurisdiction_is_declared_or_not_served() -> None:
    wants = Wants(jurisdiction="DE")
    assert order([Replica(), Replica("FR"), Replica("DE", busy=99)], wants) == [2]
    with pytest.raises(ModeUnavailable) as caught:
        order([Replica(), Replica("FR")], wants)
    assert caught.value.field == "placet/jurisdiction"


def test_a_mode_is_delivered_or_refused() -> None:
    both = frozenset({Mode.VANILLA, Mode.TEE})
    assert order([Replica(), Replica(modes=both, busy=9)], Wants(mode=Mode.TEE)) == [1]
    with pytest.raises(ModeUnavailable) as caught:
        order([Replica()], Wants(mode=Mode.TEE))
    assert caught.value.field == "placet/mode"


def test_latency_is_measured_to_the_byte_that_counts() -> None:
    slow_start, fast_start = Replica(first_ms=500, last_ms=600), Replica(first_ms=50, last_ms=2000)
    wants = Wants(max_latency_ms=700)
    assert order([slow_start, fast_start], wants, stream=False) == [0]
    assert order([slow_start, fast_start], Wants(max_latency_ms=100), stream=True) == [1]
    with pytest.raises(RateLimited, match="the fastest takes 50 ms"):
        order([slow_start, fast_start], Wants(max_latency_ms=10), stream=True)
    with pytest.raises(RateLimited, match="not loaded"):
        order([Replica(is_loaded=False)], wants)


def test_nobody_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        order([])


def test_the_reason_is_said() -> None:
    (choice,) = choose([Replica("DE", last_ms=40)], Wants(jurisdiction="DE", max_latency_ms=50), stream=False)
    assert choice.why == "model loaded, least busy of 1, declares DE, 95% within 40 ms"


def test_wants_are_read() -> None:
    wants = wants_of(
        {"mode": "tee", "max_price": "12", "max_latency_ms": 5, "jurisdiction": "DE", "models": ["a/b@2"], "nonce": "0x" + "ab" * 32}
    )
    assert wants == Wants(Mode.TEE, 12, 5, "DE", (Reference("a", "b", None, 2),), wants.nonce)
    assert wants_of(None) == Wants()


WRONG: list[tuple[Any, str]] = [
    ([], "placet"),
    ({"fast": True}, "placet/fast"),
    ({"mode": "best"}, "placet/mode"),
    ({"max_price": 5}, "placet/max_price"),
    ({"max_price": "01"}, "placet/max_price"),
    ({"max_latency_ms": 0}, "placet/max_latency_ms"),
    ({"max_latency_ms": True}, "placet/max_latency_ms"),
    ({"jurisdiction": "Germany"}, "placet/jurisdiction"),
    ({"nonce": "0x12"}, "placet/nonce"),
    ({"models": ["a"]}, "placet/models/0"),
    ({"models": ["a/b"] * 9}, "placet/models"),
]


@pytest.mark.parametrize(("value", "name"), WRONG, ids=[name for _, name in WRONG])
def test_what_is_not_understood_is_refused_by_name(value: Any, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        wants_of(value)
    assert caught.value.field == name
