"""A payment's states and the moves between them. Pure; `ledger` makes the moves, in the database.

    reserved → serving → due → broadcast → settled | failed

besides: reserved → due (nothing is sent before the transfer), due and broadcast → unknown → broadcast | settled | failed, due → settled or
failed (somebody else's transaction, or none), failed → settled (the debt was paid). `BEFORE` says it exactly.

`reserved`: taken, nothing sent, nothing charged. `serving`: the first byte may have left. `due`: how much is charged is decided; what
serves may go on. `broadcast`: a transaction was sent. `unknown`: it may have been executed, and nobody can say. `settled`: the transfer is
final, or none was needed. `failed`: it never will be, by that authorization; who was served then owes, until it is settled otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a payment is."""

    RESERVED = "reserved"
    SERVING = "serving"
    DUE = "due"
    BROADCAST = "broadcast"
    UNKNOWN = "unknown"
    SETTLED = "settled"
    FAILED = "failed"


OPEN = frozenset({State.RESERVED, State.SERVING, State.DUE, State.BROADCAST, State.UNKNOWN})
"""A payer's money that may still be taken counts as gone."""

BEFORE: Mapping[State, frozenset[State]] = {
    State.SERVING: frozenset({State.RESERVED}),
    State.DUE: frozenset({State.RESERVED, State.SERVING}),
    State.BROADCAST: frozenset({State.DUE, State.BROADCAST, State.UNKNOWN}),
    State.UNKNOWN: frozenset({State.DUE, State.BROADCAST}),
    State.SETTLED: frozenset({State.DUE, State.BROADCAST, State.UNKNOWN, State.FAILED}),
    State.FAILED: frozenset({State.DUE, State.BROADCAST, State.UNKNOWN}),
}
"""From where a state may be reached."""


class IllegalMove(RuntimeError):
    """A move that a payment's state does not allow: a defect of the caller. Nothing was changed."""
