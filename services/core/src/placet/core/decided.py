"""The form of a decided task, which neither its signature nor its digests vouch for. Pure; for everybody who reads Responses or groups."""

from __future__ import annotations

from placet.core import jsonx, limits
from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.messages import DecidedTask
from placet.core.types import Certificate

_MAX_REASONS = 1024


def check_form(decided: DecidedTask, certificate: Certificate) -> None:
    """Check what no signature vouches for: that a leaf ends within the longest validity there is, and that the decision shown is one.

    A client may ask for little stake, so one operator can certify for a client of its own whatever it likes. Services read this without
    further ado: an expiration goes into a column, reasons into answers.

    Raises:
        VerificationFailed: naming what does not hold.
    """
    if decided.leaf.expiration > certificate.timestamp + limits.MAX_VALID_FOR_S:
        raise VerificationFailed("a leaf outlives the longest validity", field="leaf.expiration")
    try:
        decision = jsonx.parse(decided.decision, field="decision", max_bytes=limits.MAX_DECISION_BYTES)
    except InvalidInput as error:
        raise VerificationFailed(error.message, field="decision") from None
    reasons = decision.get("reasons", []) if isinstance(decision, dict) else None
    if not isinstance(reasons, list) or len(reasons) > _MAX_REASONS or not all(isinstance(reason, str) for reason in reasons):
        raise VerificationFailed("the decision's reasons are no texts", field="decision")
    if decision.get("allow") is not decided.leaf.allow:
        raise VerificationFailed("the decision shown is not the leaf's", field="decision")
