"""How operators have behaved in earlier batches: for whom a Proposal waits, and whose word alone settles nothing (docs/decisions/0009).

It changes when a Proposal is cast, never what it may hold. Nothing of it outlives the process.
"""

from __future__ import annotations

from placet.aggregator.collection import Collection
from placet.core.types import Address

_SILENT_AFTER = 3
"""Batches in a row that an operator missed, after which a Proposal does not wait for it."""
_WITHHELD_FOR_S = 600.0


class Conduct:
    """Of all operators, over all batches of this replica."""

    def __init__(self) -> None:
        self._silences: dict[Address, int] = {}
        """Of how many batches in a row nothing was heard from an operator."""
        self._withheld: dict[Address, float] = {}
        """Operators that observed and then signed nothing in a batch that failed, until when that is held against them."""

    def note_heard(self, collection: Collection) -> None:
        """Remember, once a batch, who was heard in time."""
        if collection.counted:
            return
        collection.counted = True
        for operator in collection.operators.operators:
            silences = self._silences.get(operator.address, 0)
            self._silences[operator.address] = 0 if operator.address in collection.heard else silences + 1

    def has_silent(self) -> bool:
        """Whether any operator is not waited for."""
        return any(missed >= _SILENT_AFTER for missed in self._silences.values())

    def note_present(self, operator: Address) -> None:
        """Remember that an operator was heard, be it after its batch's end: it is not silent."""
        if self._silences.get(operator, 0) >= _SILENT_AFTER:
            self._silences[operator] = 0

    def note_signed(self, collection: Collection, now: float) -> None:
        """Remember, of a batch that fails under its Proposal, who is in it and has not signed what most signed. To sign anything else is
        to sign nothing."""
        signed: set[Address] = set()
        for task in collection.open_tasks:
            ballots = [ballot for ballot in collection.ballots.values() if task in ballot.tasks]
            if ballots:
                signed |= max(ballots, key=lambda b: collection.operators.stake_of(frozenset(b.signatures))).signatures.keys()
        self._withheld |= dict.fromkeys(collection.proposed - signed, now + _WITHHELD_FOR_S)

    def waited_for(self, collection: Collection) -> frozenset[Address]:
        """Operators of a batch that have been answering."""
        return frozenset(o.address for o in collection.operators.operators if self._silences.get(o.address, 0) < _SILENT_AFTER)

    def doubted(self, now: float) -> frozenset[Address]:
        """Operators whose word alone settles nothing now."""
        return frozenset(address for address, until in self._withheld.items() if now < until)
