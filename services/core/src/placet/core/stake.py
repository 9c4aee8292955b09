"""Quorum arithmetic. Integers only, multiplied and never divided, exactly as the contract does it."""

from __future__ import annotations

BPS = 10_000


def meets(signed_stake: int, total_stake: int, quorum_bps: int) -> bool:
    """Whether `signed_stake` reaches `quorum_bps` of the total. A set without stake never does."""
    return total_stake > 0 and signed_stake * BPS >= total_stake * quorum_bps


def quorum_stake(total_stake: int, quorum_bps: int) -> int:
    """The least stake that meets the quorum."""
    return -(-total_stake * quorum_bps // BPS)


def more_than_faulty(stake: int, total_stake: int, quorum_bps: int) -> bool:
    """Whether `stake` exceeds f, the larger of (total - quorum stake) and a third of the total.

    With more than f stake behind a value, at least one honest observer vouches for it (threats 2).
    """
    return stake > total_stake - quorum_stake(total_stake, quorum_bps) and 3 * stake > total_stake
