"""The checks of TEE evidence, in their order, and how one of them fails. Every vendor's module and `verify` speak through this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NoReturn

from placet.core.errors import TeeRejected, TeeUnverifiable
from placet.verify.tee.evidence import EvidenceKind


class Step(StrEnum):
    """Names of the checks. Their order here is the order in which they are made, and gives their numbers."""

    KIND = "kind"
    DOCUMENT = "document"
    COLLATERAL = "collateral"
    CHAIN = "chain"
    SIGNATURE = "signature"
    DEBUG = "debug"
    ISOLATION = "isolation"
    TCB = "tcb"
    ADVISORIES = "advisories"
    MEASUREMENT = "measurement"
    PLATFORM = "platform"
    AGE = "age"
    BINDING = "binding"
    GPU = "gpu"


CHECKS: tuple[Step, ...] = tuple(Step)


def reject(step: Step, message: str) -> NoReturn:
    """Raise TeeRejected: this evidence is not acceptable, and no other collateral would make it so."""
    raise TeeRejected(f"check {CHECKS.index(step) + 1} ({step}): {message}", field="evidence", check=str(step))


def unverifiable(step: Step, message: str) -> NoReturn:
    """Raise TeeUnverifiable: what the check rests on is missing or out of date."""
    raise TeeUnverifiable(f"check {CHECKS.index(step) + 1} ({step}): {message}", field="evidence", check=str(step))


@dataclass(frozen=True, slots=True)
class Claims:
    """What a vendor vouches for, once document, collateral, chain and signature hold. Nothing of it has been judged yet.

    Attributes:
        report_data: what the code in the TEE had signed: 64 bytes; for Nitro `user_data` (up to 512), None where it has none.
        nonce: Nitro's own field, and a GPU's 32 bytes; None for the others.
        public_key: Nitro's own field; None for the others.
        measurement: register name to its bytes. Names are those of the policy file (docs/reference/tee.md).
        tcb_status: the vendor's word for how current firmware and microcode are; None where a vendor says nothing.
        platform_id: ppid, chip_id, digest of a GPU's identity key; None where the vendor names no platform.
        made_at: unix seconds by the document's own clock; None where it bears no time.
        debug: why this is a TEE that its host can look into; empty when it is not.
        exposed: why other software on the machine could act for this TEE; empty when none can.
        details: what a check that held has to say.
    """

    kind: EvidenceKind
    report_data: bytes | None
    measurement: Mapping[str, bytes]
    nonce: bytes | None = None
    public_key: bytes | None = None
    tcb_status: str | None = None
    advisories: tuple[str, ...] = ()
    platform_id: bytes | None = None
    made_at: int | None = None
    debug: str = ""
    exposed: str = ""
    details: Mapping[Step, str] = field(default_factory=dict)
