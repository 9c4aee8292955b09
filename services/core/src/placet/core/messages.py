"""Domain types of what travels between services, beside the batch itself: observations, decisions, responses, groups, failures."""

from __future__ import annotations

from dataclasses import dataclass

from placet.core.types import Address, Certificate, Hash32, Intent, Leaf


@dataclass(frozen=True, slots=True)
class Abstention:
    """No leaf for a task, and why. Never a denial."""

    task: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class TaskObservation:
    """What one operator saw for one task: canonical JSON a PolicyData, in the policy's order (none in a policy without data)."""

    task: int
    outputs: tuple[bytes, ...]
    transcripts: tuple[Hash32, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """One operator's view of a batch."""

    tasks: tuple[TaskObservation, ...]
    abstentions: tuple[Abstention, ...]
    runtime_id: str
    blob_sha256: Hash32 | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """The signed messages a batch rests on: serialised Envelopes, and sha256 addresses of further ones in the object store."""

    observations: tuple[bytes, ...]
    observation_sha256: tuple[Hash32, ...] = ()


@dataclass(frozen=True, slots=True)
class DecidedTask:
    """A leaf, the hashes of its evidence parts in the order of `digests.EVIDENCE_PARTS`, and the decision part's content."""

    task: int
    leaf: Leaf
    evidence_parts: tuple[Hash32, ...]
    decision: bytes


@dataclass(frozen=True, slots=True)
class GroupResponse:
    """One operator's BLS signature over one group."""

    decided: tuple[DecidedTask, ...]
    bls_signature: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """One operator's signatures for a batch, or for a Proposal of it."""

    groups: tuple[GroupResponse, ...]
    abstentions: tuple[Abstention, ...]
    runtime_id: str


@dataclass(frozen=True, slots=True)
class RelayedTask:
    """What settlement needs to submit a task for its sender."""

    task: int
    intent: Intent
    intent_signature: bytes
    payer: str


@dataclass(frozen=True, slots=True)
class AttestationGroup:
    """A certified group. `signers` is a bitmap over the epoch's operators, ascending by key id."""

    chain_id: int
    validator: Address
    certificate: Certificate
    decided: tuple[DecidedTask, ...]
    signers: bytes
    aggregate_signature: bytes
    relayed: tuple[RelayedTask, ...] = ()


@dataclass(frozen=True, slots=True)
class OperatorReason:
    """What one operator said about a task that ended without a certificate."""

    operator: Address
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """A task that ended without a certificate: neither allowed nor denied."""

    task: int
    task_id: Hash32
    code: str
    message: str
    retryable: bool
    reasons: tuple[OperatorReason, ...]


@dataclass(frozen=True, slots=True)
class GroupFailure:
    """Tasks of a batch that ended without a certificate."""

    failures: tuple[TaskFailure, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """An operator's word on a policy. `said_at` (Unix milliseconds, its own clock) tells its newest word from an older one repeated."""

    policy_id: Hash32
    admitted: bool
    checker: str
    reason: str
    said_at: int = 0


@dataclass(frozen=True, slots=True)
class PolicyAnnouncement:
    """Where a policy's bundle lies in the object store."""

    policy_id: Hash32
    bundle_sha256: Hash32


@dataclass(frozen=True, slots=True)
class SettlementEvent:
    """What became of something settlement was asked to send. `status`: submitted, confirmed, reverted or refused."""

    reference: bytes
    status: str
    transaction_hash: bytes
    block_number: int
    gas_used: int
    error: str


def bitmap_of(positions: frozenset[int] | set[int], size: int) -> bytes:
    """Bitmap with the given bits set (bit i of byte i // 8, least significant first)."""
    out = bytearray((size + 7) // 8)
    for position in positions:
        out[position // 8] |= 1 << (position % 8)
    return bytes(out)


def positions_of(bitmap: bytes, size: int) -> list[int] | None:
    """Set bits of a bitmap over `size` members; None when its length is wrong or a bit beyond is set."""
    if len(bitmap) != (size + 7) // 8:
        return None
    positions = [8 * index + bit for index, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1]
    return positions if all(position < size for position in positions) else None
