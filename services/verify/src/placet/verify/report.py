"""What a verification answers: every check, what it rests on, and what nobody checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from placet.core.errors import VerificationFailed


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its number, what it says, whether it held, and why not."""

    number: int
    what: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All checks made, what they rest on, and what nobody checked."""

    checks: tuple[Check, ...]
    trusts: tuple[str, ...]
    not_checked: tuple[str, ...]
    subject: str = "attestation"
    ok: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ok", bool(self.checks) and all(check.ok for check in self.checks))

    def raise_for_failure(self) -> None:
        """Raise VerificationFailed naming the first check that did not hold."""
        for check in self.checks:
            if not check.ok:
                raise VerificationFailed(f"check {check.number} ({check.what}): {check.detail}", field=self.subject)
