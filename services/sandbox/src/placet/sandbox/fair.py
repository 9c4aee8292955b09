"""Who gets the next place, when strangers' code waits for few of them. A data structure: it knows no threads, no event loop and no clock.

Owners (a policy, say) take turns by what they have used: next is who has used least since it began to wait, so an owner of long runs gets
no more time than one of short runs. Inside an owner its lines (batches) take turns. An owner gets another place while it has fewer than are
left, so one owner alone leaves half of the places free, two a quarter; only runs that are over in a moment may have all of them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

_REMEMBERED = 1_024


@dataclass(slots=True)
class _Owner(Generic[T]):
    used: float
    """On the queue's scale: it begins where those are who are served now, so that who was away has saved nothing up."""
    lines: OrderedDict[Hashable, deque[T]] = field(default_factory=OrderedDict)
    waiting: int = 0
    holding: int = 0
    brief: bool = False

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.holding


class FairQueue(Generic[T]):
    """Items that wait for one of `places`."""

    def __init__(self, places: int) -> None:
        if places < 1:
            raise ValueError("a queue has at least one place")
        self._places = places
        self._owners: dict[Hashable, _Owner[T]] = {}
        self._reached = 0.0
        self.free = places
        self.waiting = 0

    def waiting_of(self, owner: Hashable) -> int:
        """How many items of an owner wait."""
        known = self._owners.get(owner)
        return known.waiting if known is not None else 0

    def put(self, owner: Hashable, line: Hashable, item: T, *, brief: bool = False) -> None:
        """Let an item wait. `brief`: the owner's items give their places back in a moment, so it may have all places."""
        known = self._owners.get(owner)
        if known is None:
            if len(self._owners) >= _REMEMBERED:
                self._forget()
            known = self._owners[owner] = _Owner(self._reached)
        elif known.idle:
            known.used = max(known.used, self._reached)
        known.brief = brief
        known.lines.setdefault(line, deque()).append(item)
        known.waiting += 1
        self.waiting += 1

    def take(self) -> tuple[Hashable, T] | None:
        """The next item that may have a place, and its owner, who holds the place from now on. None: none is free, or nobody may."""
        if not self.free:
            return None
        entitled = [(item.used, name) for name, item in self._owners.items() if item.waiting and (item.brief or item.holding < self.free)]
        if not entitled:
            return None
        owner = min(entitled, key=lambda entry: entry[0])[1]
        known = self._owners[owner]
        line, items = known.lines.popitem(last=False)
        item = items.popleft()
        if items:
            known.lines[line] = items  # behind the owner's other lines
        known.waiting -= 1
        known.holding += 1
        self.waiting -= 1
        self.free -= 1
        self._reached = max(self._reached, known.used)
        return owner, item

    def give_back(self, owner: Hashable, used: float) -> None:
        """An item of this owner is done with its place, which it had for `used` (seconds, say)."""
        known = self._owners[owner]
        known.holding -= 1
        known.used += used
        self.free += 1
        if self.free == self._places and not self.waiting:
            self._forget()
        elif known.idle and known.used <= self._reached:
            del self._owners[owner]

    def discard(self, owner: Hashable, line: Hashable, item: T) -> bool:
        """Take an item that still waits out of its line. False: it does not wait."""
        known = self._owners.get(owner)
        items = known.lines.get(line) if known is not None else None
        if known is None or items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del known.lines[line]
        known.waiting -= 1
        self.waiting -= 1
        return True

    def _forget(self) -> None:
        for name in [name for name, item in self._owners.items() if item.idle]:
            del self._owners[name]
