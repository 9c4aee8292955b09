"""Taking turns: whoever asks for much, or for long, leaves places and time to the others."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable

import pytest

from placet.sandbox.fair import FairQueue


def taken(queue: FairQueue[str]) -> list[str]:
    out = []
    while (turn := queue.take()) is not None:
        out.append(turn[1])
    return out


def test_an_owner_gets_a_place_while_it_has_fewer_than_are_left() -> None:
    queue: FairQueue[str] = FairQueue(8)
    for owner in "abcd":
        for number in range(10):
            queue.put(owner, None, f"{owner}{number}")
        taken(queue)
    assert [10 - queue.waiting_of(owner) for owner in "abcd"] == [4, 2, 1, 1]
    assert queue.free == 0
    assert queue.waiting == 32


def test_brief_items_may_have_all_places() -> None:
    queue: FairQueue[str] = FairQueue(3)
    for number in range(5):
        queue.put("a", None, str(number), brief=True)
    assert taken(queue) == ["0", "1", "2"]


def test_one_place_is_for_everybody() -> None:
    queue: FairQueue[str] = FairQueue(1)
    queue.put("a", None, "x")
    assert taken(queue) == ["x"]
    queue.put("b", None, "y")
    assert taken(queue) == []
    queue.give_back("a", 1.0)
    assert taken(queue) == ["y"]


@pytest.mark.parametrize("places", [1, 2, 5])
def test_owners_get_equal_time_however_long_their_items_take(places: int) -> None:
    queue: FairQueue[Hashable] = FairQueue(places)
    costs = {"long": 3.0, "short": 0.01, "middle": 0.5}
    time_of: Counter[str] = Counter()
    for owner in costs:
        for number in range(20_000):
            queue.put(owner, None, number)
    running: list[tuple[float, str]] = []
    now = 0.0
    while now < 100.0:
        while (turn := queue.take()) is not None:
            running.append((now + costs[str(turn[0])], str(turn[0])))
        now, owner = min(running)
        running.remove((now, owner))
        queue.give_back(owner, costs[owner])
        time_of[owner] += costs[owner]  # type: ignore[assignment]
    assert max(time_of.values()) - min(time_of.values()) <= 6.1


def test_who_was_away_has_saved_nothing_up_and_who_was_served_owes_it() -> None:
    queue: FairQueue[str] = FairQueue(1)
    for number in range(3):
        queue.put("busy", None, f"busy{number}")
    for _ in range(2):
        assert queue.take() is not None
        queue.give_back("busy", 10.0)
    for number in range(30):
        queue.put("new", None, f"new{number}")
    order = []
    for _ in range(20):
        turn = queue.take()
        assert turn is not None
        order.append(str(turn[0]))
        queue.give_back(turn[0], 1.0)
    assert order.count("busy") == 1
    assert order.index("busy") == 10


def test_lines_of_an_owner_take_turns() -> None:
    queue: FairQueue[str] = FairQueue(1)
    for line, count in (("a", 4), ("b", 2), ("c", 1)):
        for number in range(count):
            queue.put("owner", line, f"{line}{number}")
    order = []
    while (turn := queue.take()) is not None:
        order.append(turn[1])
        queue.give_back("owner", 1.0)
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_what_is_discarded_is_not_served() -> None:
    queue: FairQueue[str] = FairQueue(1)
    queue.put("a", 1, "x")
    queue.put("a", 1, "y")
    assert queue.discard("a", 1, "x")
    assert not queue.discard("a", 1, "x")
    assert not queue.discard("b", 1, "x")
    assert taken(queue) == ["y"]
    assert not queue.discard("a", 1, "y")
    assert queue.waiting == 0


def test_a_queue_without_places_is_none() -> None:
    with pytest.raises(ValueError, match="at least one place"):
        FairQueue[str](0)


def test_every_item_is_served_once_and_places_are_kept_count_of() -> None:
    rng = random.Random(7)
    queue: FairQueue[int] = FairQueue(4)
    served: list[int] = []
    held: list[Hashable] = []
    put = 0
    for _ in range(5_000):
        if rng.random() < 0.5:
            queue.put(rng.randrange(2_000), rng.randrange(3), put, brief=rng.random() < 0.5)
            put += 1
        elif held and rng.random() < 0.6:
            queue.give_back(held.pop(rng.randrange(len(held))), rng.random())
        while (turn := queue.take()) is not None:
            held.append(turn[0])
            served.append(turn[1])
        assert queue.free == 4 - len(held)
        assert queue.waiting == put - len(served)
    while held:
        queue.give_back(held.pop(), 0.1)
        while (turn := queue.take()) is not None:
            held.append(turn[0])
            served.append(turn[1])
    assert sorted(served) == list(range(put))
    assert queue._owners == {}
