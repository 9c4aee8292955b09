"""What a policy's value means."""

from __future__ import annotations

import json
from dataclasses import dataclass

from placet.sandbox.jsonguard import nests_deeper_than

MAX_REASONS = 64
MAX_REASON_CHARS = 512
MAX_VALUE_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Decision:
    """`reasons` is what the policy said, sorted as it gave them. `output_json` is the value as the engine wrote it, for the
    evidence; None when the entrypoint was undefined or the value has another shape than a decision."""

    allow: bool
    reasons: tuple[str, ...] = ()
    output_json: str | None = None


def parse_decision(value_json: str | None) -> Decision:
    """Reads an entrypoint's value: a boolean, or an object with a boolean `allow`, optionally `reasons` (a list of strings),
    and any other keys. Everything else denies and says why. Never raises."""
    if value_json is None:
        return _deny("the policy's entrypoint is undefined")
    if nests_deeper_than(value_json.encode("utf-8", "surrogatepass"), MAX_VALUE_DEPTH):
        return _deny(f"the policy's value is nested deeper than {MAX_VALUE_DEPTH}")
    try:
        value = json.loads(value_json, parse_float=_number, parse_int=_number)
    except (ValueError, RecursionError):
        return _deny("the policy's value is not JSON")
    if isinstance(value, bool):
        return Decision(value, (), value_json)
    if not isinstance(value, dict):
        return _deny("the policy's value is neither a boolean nor an object")
    allow, reasons = value.get("allow"), value.get("reasons", [])
    if not isinstance(allow, bool):
        return _deny("the policy's value has no boolean `allow`")
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        return _deny("the policy's `reasons` are not a list of strings")
    if len(reasons) > MAX_REASONS or any(len(reason) > MAX_REASON_CHARS for reason in reasons):
        return _deny(f"the policy gives more than {MAX_REASONS} reasons, or one over {MAX_REASON_CHARS} characters")
    return Decision(allow, tuple(reasons), value_json)


def _number(_: str) -> int:
    """No number of a decision is looked at here, and one may have any number of digits."""
    return 0


def _deny(reason: str) -> Decision:
    return Decision(False, (reason,))
