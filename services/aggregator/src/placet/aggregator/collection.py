"""What the aggregator knows of one batch, and what follows from it. No I/O and no clock: times are arguments.

A Response counts only after its leaves and its BLS signature were checked (`check_decided`, `verify_signature`): garbage never silences an
operator, and two different answers never add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from placet.core import bls
from placet.core.batch import BatchContext
from placet.core.decided import check_form
from placet.core.digests import EVIDENCE_PARTS, certificate_digest, evidence_hash, evidence_part_hash, leaf_struct_hash, part_salt
from placet.core.errors import VerificationFailed
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import Abstention, AttestationGroup, DecidedTask, Observation, OperatorReason, RelayedTask, TaskFailure, bitmap_of
from placet.core.stake import meets
from placet.core.types import Address, Certificate, Hash32, OperatorSet


def check_decided(context: BatchContext, decided: Sequence[DecidedTask]) -> Certificate:
    """Check that leaves are decisions on this batch's tasks, and return the certificate over exactly them.

    Raises:
        VerificationFailed: naming what does not hold.
    """
    batch = context.batch
    for item in decided:
        leaf, task = item.leaf, batch.tasks[item.task]
        if (leaf.task_id, leaf.policy_client, leaf.policy_id, leaf.intent_hash) != (
            context.task_ids[item.task],
            task.policy_client,
            batch.policy_id,
            context.intent_hashes[item.task],
        ):
            raise VerificationFailed("a leaf is for another task, client, policy or intent", field="leaf")
        if leaf.expiration > task.intent.deadline:
            raise VerificationFailed("a leaf outlives its intent", field="leaf.expiration")
        parts = dict(zip(EVIDENCE_PARTS, item.evidence_parts, strict=True))
        if evidence_hash(parts) != leaf.evidence:
            raise VerificationFailed("evidence parts do not make the leaf's digest", field="leaf.evidence")
        if evidence_part_hash("decision", part_salt(task.salt, "decision"), item.decision) != parts["decision"]:
            raise VerificationFailed("the decision shown is not the one committed to", field="decision")
    root, _ = root_and_proofs([leaf_hash(leaf_struct_hash(item.leaf)) for item in decided])
    certificate = Certificate(root, len(decided), batch.epoch, batch.timestamp)
    for item in decided:
        check_form(item, certificate)
    return certificate


@dataclass(slots=True)
class Ballot:
    """Signatures over one root of one list of tasks."""

    decided: tuple[DecidedTask, ...]
    certificate: Certificate
    threshold_bps: int
    signatures: dict[Address, bytes] = field(default_factory=dict)
    reached_at: float | None = None

    @property
    def tasks(self) -> tuple[int, ...]:
        """The tasks decided, ascending."""
        return tuple(item.task for item in self.decided)

    def is_signed_by_quorum(self, operators: OperatorSet) -> bool:
        """Whether the signers' stake meets the highest threshold of the clients concerned."""
        return meets(operators.stake_of(frozenset(self.signatures)), operators.total_stake, self.threshold_bps)


def verify_signature(context: BatchContext, operators: OperatorSet, operator: Address, certificate: Certificate, signature: bytes) -> bool:
    """Whether `operator` signed the certificate. One pairing, 1.5 ms: run it off the event loop."""
    found = operators.by_address(operator)
    digest = certificate_digest(certificate, context.batch.chain_id, context.batch.validator)
    return found is not None and bls.verify(found.bls_key, digest, signature)


@dataclass(slots=True)
class Collection:
    """One open batch."""

    context: BatchContext
    operators: OperatorSet
    quorum_bps: int
    heard: dict[Address, bytes] = field(default_factory=dict)
    """Operator -> envelope that vouches for tasks: its Observation, or its Response to the whole batch."""
    vouched: dict[Address, frozenset[int]] = field(default_factory=dict)
    outputs: dict[Address, dict[int, tuple[bytes, ...]]] = field(default_factory=dict)
    """Operator -> what it observed, task by task. A Response to the whole batch has none."""
    whole: set[Address] = field(default_factory=set)
    """Operators that vouch by a Response to the whole batch, which counts only where the policy needs no data."""
    counted: bool = False
    abstentions: dict[tuple[Address, int], Abstention] = field(default_factory=dict)
    proposal_digest: Hash32 | None = None
    proposed: frozenset[Address] = frozenset()
    responded: set[Address] = field(default_factory=set)
    """Operators that answered the Proposal."""
    ballots: dict[tuple[tuple[int, ...], Hash32], Ballot] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)
    messages: dict[Address, int] = field(default_factory=dict)
    """How many messages of an operator were worked on; bounded, so that one cannot keep the aggregator busy."""
    pairings: dict[Address, int] = field(default_factory=dict)
    """How many BLS signatures of an operator were verified; bounded likewise."""
    seen: dict[Address, set[bytes]] = field(default_factory=dict)
    """Digests of an operator's messages: what anybody repeats does not use up what the operator may say."""
    repeats: dict[Address, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of tasks."""
        return len(self.context.batch.tasks)

    @property
    def open_tasks(self) -> list[int]:
        """Tasks without a result."""
        return [task for task in range(self.size) if task not in self.closed]

    @property
    def with_outputs(self) -> bool:
        """Whether the policy needs data, as far as can be seen from here: then Responses come only after a Proposal."""
        observers = frozenset(address for address, tasks in self.outputs.items() if any(tasks.values()))
        return self.operators.stake_of(observers) > self.operators.stake_of(frozenset(self.whole))

    def ballot_for(self, decided: tuple[DecidedTask, ...], certificate: Certificate) -> Ballot:
        """The ballot for these leaves, made when it is new."""
        tasks = tuple(item.task for item in decided)
        key = (tasks, certificate.root)
        if key not in self.ballots:
            self.ballots[key] = Ballot(decided, certificate, self.quorum_bps)
        return self.ballots[key]

    def note_observation(self, operator: Address, envelope: bytes, observation: Observation) -> None:
        """Remember what an operator observed."""
        self.heard[operator] = envelope
        self.vouched[operator] = frozenset(item.task for item in observation.tasks)
        self.outputs[operator] = {item.task: item.outputs for item in observation.tasks}
        self.note_abstentions(operator, observation.abstentions)

    def note_whole_response(self, operator: Address, envelope: bytes, observation: Observation) -> None:
        """Remember that an operator answered the whole batch."""
        self.heard[operator] = envelope
        self.vouched[operator] = frozenset(item.task for item in observation.tasks)
        self.whole.add(operator)

    def note_abstentions(self, operator: Address, abstentions: Iterable[Abstention]) -> None:
        """Remember reasons; the first of an operator for a task stands."""
        for item in abstentions:
            self.abstentions.setdefault((operator, item.task), item)

    def has_heard_all(self) -> bool:
        """Whether every operator has vouched or abstained."""
        return all(operator.address in self.heard for operator in self.operators.operators)

    def heard_quorum(self, without: frozenset[Address] = frozenset()) -> bool:
        """Whether those heard, `without` these, hold quorum stake: with data Observations count, without it also Responses to the whole
        batch, and then no Observations of data."""
        observers = {address for address, tasks in self.outputs.items() if any(tasks.values())}
        heard = frozenset(self.heard) - without
        stake = max(self.operators.stake_of(heard - self.whole), self.operators.stake_of(heard - observers))
        return meets(stake, self.operators.total_stake, self.quorum_bps)

    def is_settled(self, doubted: frozenset[Address] = frozenset()) -> bool:
        """Whether quorum stake reported the same bytes for every open task, so that nobody still to be heard can change the outcome. What
        `doubted` operators say does not count: they may say it and not sign."""
        for task in self.open_tasks:
            stakes: dict[tuple[bytes, ...], int] = {}
            for address, tasks in self.vouched.items():
                if task in tasks and address not in doubted:
                    said = self.outputs.get(address, {}).get(task, ())
                    stakes[said] = stakes.get(said, 0) + self.operators.stake_of(frozenset({address}))
            if not any(meets(stake, self.operators.total_stake, self.quorum_bps) for stake in stakes.values()):
                return False
        return True

    def hopeless(self) -> list[int]:
        """Open tasks that can reach no quorum any more, everybody having been heard."""
        out = []
        for task in self.open_tasks:
            possible = frozenset(address for address, tasks in self.vouched.items() if task in tasks)
            if not meets(self.operators.stake_of(possible), self.operators.total_stake, self.quorum_bps):
                out.append(task)
        return out

    def abandoned(self) -> list[int]:
        """Open tasks that can reach no quorum, because everyone a Proposal rests on has answered it."""
        if self.proposal_digest is None or not self.proposed <= self.responded:
            return []
        return [task for task in self.open_tasks if not any(task in b.tasks and b.reached_at is not None for b in self.ballots.values())]

    def ready(self, now: float, straggler_s: float) -> list[Ballot]:
        """Ballots to publish: signed by quorum, and by everyone or long enough ago."""
        out = []
        for ballot in self.ballots.values():
            if self.closed.intersection(ballot.tasks) or not ballot.is_signed_by_quorum(self.operators):
                continue
            if ballot.reached_at is None:
                ballot.reached_at = now
            if len(ballot.signatures) == len(self.operators.operators) or now >= ballot.reached_at + straggler_s:
                out.append(ballot)
        return out

    def group_of(self, ballot: Ballot) -> AttestationGroup:
        """The certified group."""
        batch = self.context.batch
        positions = {index for index, operator in enumerate(self.operators.operators) if operator.address in ballot.signatures}
        signatures = [ballot.signatures[self.operators.operators[index].address] for index in sorted(positions)]
        relayed = tuple(
            RelayedTask(task, batch.tasks[task].intent, batch.tasks[task].signature, self.context.relays[task])
            for task in ballot.tasks
            if task in self.context.relays
        )
        return AttestationGroup(
            chain_id=batch.chain_id,
            validator=batch.validator,
            certificate=ballot.certificate,
            decided=ballot.decided,
            signers=bitmap_of(positions, len(self.operators.operators)),
            aggregate_signature=bls.aggregate(signatures),
            relayed=relayed,
        )

    def failure_of(self, task: int, code: str, message: str) -> TaskFailure:
        """Why a task ended without a certificate, operator by operator."""
        reasons = []
        voted = {address: ballot for ballot in self.ballots.values() if task in ballot.tasks for address in ballot.signatures}
        for operator in self.operators.operators:
            abstained = self.abstentions.get((operator.address, task))
            if abstained is not None:
                reasons.append(OperatorReason(operator.address, abstained.code, abstained.message))
            elif operator.address in voted:
                root = voted[operator.address].certificate.root
                reasons.append(OperatorReason(operator.address, "signed", f"signed root 0x{root.hex()[:16]}…"))
            elif operator.address in self.heard:
                reasons.append(OperatorReason(operator.address, "no_signature", "observed, but signed no group with this task"))
            else:
                reasons.append(OperatorReason(operator.address, "silent", "nothing was heard in time"))
        return TaskFailure(task, self.context.task_ids[task], code, message, retryable=True, reasons=tuple(reasons))
