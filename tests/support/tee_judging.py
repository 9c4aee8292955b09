"""What the tests of one sample share: a policy that accepts it, what it quotes, and a change at a place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from placet.verify.tee import Evidence, KindPolicy, Quoted, TeePolicy
from placet.verify.tee.checks import Claims
from placet.verify.tee.policy import PINNED_ROOTS
from placet.verify.tee.verify import _VENDORS


def claims_of(evidence: Evidence, at: int, *, roots: Iterable[bytes] | None = None, **rest: Any) -> Claims:
    """What the vendor's module makes of it, before anything is judged."""
    pinned = PINNED_ROOTS[evidence.kind] if roots is None else frozenset(roots)
    return _VENDORS[evidence.kind].verify(evidence, KindPolicy(roots=pinned, **rest), at)


def accepting(evidence: Evidence, at: int, *, roots: Iterable[bytes] | None = None, **changes: Any) -> TeePolicy:
    """A policy that names exactly this evidence's measurement, status and advisories; `changes` replace what it says of the kind."""
    claims = claims_of(evidence, at, roots=roots)
    kind = KindPolicy(
        measurements=(claims.measurement,),
        tcb_statuses=frozenset({claims.tcb_status or ""}),
        advisories=frozenset(claims.advisories),
        roots=PINNED_ROOTS[evidence.kind] if roots is None else frozenset(roots),
    )
    return TeePolicy({evidence.kind: replace(kind, **changes)})


def quoted_by(evidence: Evidence, at: int) -> Quoted:
    """The fields that the sample's own TEE chose."""
    claims = claims_of(evidence, at)
    return Quoted(claims.report_data, claims.nonce, claims.public_key)


def flipped(data: bytes, offset: int, mask: int = 1) -> bytes:
    """The bytes with bits of one of them flipped."""
    return data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :]
