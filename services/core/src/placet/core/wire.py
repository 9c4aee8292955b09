"""Protobuf to domain and back. Decoding is where bytes become types: every length, range and count is checked here, once.

All decoders raise InvalidInput (or TooLarge) naming the field and the limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from placet.core import limits
from placet.core.errors import InvalidInput, TooLarge
from placet.core.fieldcount import check_fields
from placet.core.gen import authorization_pb2 as pb
from placet.core.messages import (
    Abstention,
    Admission,
    AttestationGroup,
    DecidedTask,
    GroupFailure,
    GroupResponse,
    Observation,
    OperatorReason,
    PolicyAnnouncement,
    Proposal,
    RelayedTask,
    Response,
    SettlementEvent,
    TaskFailure,
    TaskObservation,
)
from placet.core.types import Attachment, Certificate, Intent, Leaf, Task, TaskBatch, address_from, hash_from

M = TypeVar("M", bound=Message)


def _parse(message: M, data: bytes, field: str) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise InvalidInput(f"{field}: not a protobuf message", field=field) from None
    return message


_MAX_FIELDS = 32 * limits.MAX_TASKS_PER_BATCH
"""Of an operator's message, those of its parts included."""


def _bounded(value: bytes | str, limit: int, field: str) -> None:
    size = len(value.encode()) if isinstance(value, str) else len(value)
    if size > limit:
        raise TooLarge(f"{field}: {size} bytes, at most {limit}", field=field)


def _count(items: object, limit: int, field: str) -> None:
    size = len(items)  # type: ignore[arg-type]
    if size > limit:
        raise TooLarge(f"{field}: {size} entries, at most {limit}", field=field)


def _ascending(indices: Iterable[int], size: int, field: str) -> None:
    previous = -1
    for index in indices:
        if index <= previous or index >= size:
            raise InvalidInput(f"{field}: task indices must ascend and be below {size}", field=field)
        previous = index


def uint_to_bytes(value: int) -> bytes:
    """Big-endian without leading zeros; zero is empty."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def uint_from_bytes(value: bytes, field: str) -> int:
    """A uint256 as `uint_to_bytes` wrote it."""
    if len(value) > 32 or value[:1] == b"\0":
        raise InvalidInput(f"{field}: not a minimal uint256", field=field)
    return int.from_bytes(value, "big")


# --- intents, tasks, batches


def intent_to_pb(intent: Intent) -> pb.Intent:
    """Domain to wire."""
    message = pb.Intent(
        to=intent.to,
        value=uint_to_bytes(intent.value),
        data=intent.data,
        chain_id=intent.chain_id,
        function_signature=intent.function_signature,
        nonce=uint_to_bytes(intent.nonce),
        deadline=intent.deadline,
    )
    setattr(message, "from", intent.sender)
    return message


def intent_from_pb(message: pb.Intent, field: str = "intent") -> Intent:
    """Wire to domain, checked."""
    _bounded(message.data, limits.MAX_INTENT_DATA_BYTES, f"{field}.data")
    _bounded(message.function_signature, limits.MAX_FUNCTION_SIGNATURE_BYTES, f"{field}.functionSignature")
    return Intent(
        sender=address_from(getattr(message, "from"), field=f"{field}.from"),
        to=address_from(message.to, field=f"{field}.to"),
        value=uint_from_bytes(message.value, f"{field}.value"),
        data=message.data,
        chain_id=message.chain_id,
        function_signature=message.function_signature,
        nonce=uint_from_bytes(message.nonce, f"{field}.nonce"),
        deadline=message.deadline,
    )


def check_task(task: Task, field: str = "task") -> None:
    """Bounds of a task that the types do not carry."""
    _bounded(task.signature, limits.MAX_INTENT_SIGNATURE_BYTES, f"{field}.signature")
    _bounded(task.args, limits.MAX_ARGS_BYTES, f"{field}.args")
    _count(task.attachments, limits.MAX_ATTACHMENTS, f"{field}.attachments")
    for position, item in enumerate(task.attachments):
        _bounded(item.kind, limits.MAX_ATTACHMENT_KIND_BYTES, f"{field}.attachments/{position}/kind")
        _bounded(item.uri, limits.MAX_ATTACHMENT_URI_BYTES, f"{field}.attachments/{position}/uri")


def payer_from(text: str, field: str) -> str:
    """Who pays for a relay: a tenant's name, which settlement's database and logs must hold.

    Raises:
        InvalidInput: empty, longer than MAX_PAYER_BYTES, or anything but printable ASCII without spaces.
    """
    _bounded(text, limits.MAX_PAYER_BYTES, field)
    if not text or not all("!" <= letter <= "~" for letter in text):
        raise InvalidInput(f"{field}: 1 to {limits.MAX_PAYER_BYTES} printable ASCII characters, without spaces", field=field)
    return text


def task_to_pb(task: Task, relay_payer: str | None = None) -> pb.Task:
    """Domain to wire. `relay_payer` asks settlement to submit the result."""
    return pb.Task(
        policy_client=task.policy_client,
        intent=intent_to_pb(task.intent),
        intent_signature=task.signature,
        args=task.args,
        attachments=[pb.Attachment(kind=a.kind, sha256=a.sha256, uri=a.uri) for a in task.attachments],
        salt=task.salt,
        relay=pb.Relay(payer=relay_payer) if relay_payer is not None else None,
    )


def task_from_pb(message: pb.Task, field: str = "task") -> Task:
    """Wire to domain, checked."""
    task = Task(
        policy_client=address_from(message.policy_client, field=f"{field}.policyClient"),
        intent=intent_from_pb(message.intent, f"{field}.intent"),
        salt=hash_from(message.salt, field=f"{field}.salt"),
        signature=message.intent_signature,
        args=message.args,
        attachments=tuple(
            Attachment(a.kind, hash_from(a.sha256, field=f"{field}.attachments/{i}/sha256"), a.uri)
            for i, a in enumerate(message.attachments)
        ),
    )
    check_task(task, field)
    return task


def encode_batch(batch: TaskBatch, relays: dict[int, str] | None = None) -> bytes:
    """Serialise a batch; `relays` maps task index to the payer whose relay was asked for."""
    relays = relays or {}
    message = pb.TaskBatch(
        chain_id=batch.chain_id,
        validator=batch.validator,
        policy_id=batch.policy_id,
        epoch=batch.epoch,
        timestamp=batch.timestamp,
        block_number=batch.block_number,
        block_hash=batch.block_hash,
        observe_for_ms=batch.observe_for_ms,
        tasks=[task_to_pb(task, relays.get(index)) for index, task in enumerate(batch.tasks)],
    )
    return message.SerializeToString()


def decode_batch(payload: bytes) -> tuple[TaskBatch, dict[int, str]]:
    """A batch and its relay requests."""
    if len(payload) > limits.MAX_BATCH_BYTES + 4096:
        raise TooLarge(f"batch: {len(payload)} bytes, at most {limits.MAX_BATCH_BYTES}", field="batch")
    message = _parse(pb.TaskBatch(), payload, "batch")
    _count(message.tasks, limits.MAX_TASKS_PER_BATCH, "batch.tasks")
    if not message.tasks:
        raise InvalidInput("batch.tasks: empty", field="batch.tasks")
    if message.observe_for_ms > limits.MAX_OBSERVE_FOR_MS:
        raise InvalidInput(f"batch.observeForMs: at most {limits.MAX_OBSERVE_FOR_MS}", field="batch.observeForMs")
    batch = TaskBatch(
        chain_id=message.chain_id,
        validator=address_from(message.validator, field="batch.validator"),
        policy_id=hash_from(message.policy_id, field="batch.policyId"),
        epoch=message.epoch,
        timestamp=message.timestamp,
        block_number=message.block_number,
        block_hash=hash_from(message.block_hash, field="batch.blockHash"),
        observe_for_ms=message.observe_for_ms,
        tasks=tuple(task_from_pb(task, f"batch.tasks/{index}") for index, task in enumerate(message.tasks)),
    )
    relays = {
        index: payer_from(task.relay.payer, f"batch.tasks/{index}/relay.payer")
        for index, task in enumerate(message.tasks)
        if task.HasField("relay")
    }
    return batch, relays


# --- observations and proposals


def _abstentions_to_pb(items: Iterable[Abstention]) -> list[pb.Abstention]:
    return [pb.Abstention(task=a.task, code=a.code, message=a.message[: limits.MAX_REASON_BYTES]) for a in items]


def _abstentions_from_pb(items: Iterable[pb.Abstention], size: int, field: str) -> tuple[Abstention, ...]:
    out = tuple(Abstention(a.task, a.code[:64], a.message[: limits.MAX_REASON_BYTES]) for a in items)
    _ascending((a.task for a in out), size, field)
    return out


def encode_observation(observation: Observation) -> bytes:
    """Serialise an observation."""
    return pb.Observation(
        tasks=[pb.TaskObservation(task=t.task, outputs=list(t.outputs), transcripts=list(t.transcripts)) for t in observation.tasks],
        abstentions=_abstentions_to_pb(observation.abstentions),
        runtime_id=observation.runtime_id,
        blob_sha256=observation.blob_sha256 or b"",
    ).SerializeToString()


def decode_observation(payload: bytes, task_count: int) -> Observation:
    """An observation of a batch of `task_count` tasks."""
    check_fields(payload, pb.Observation, _MAX_FIELDS, "observation")
    message = _parse(pb.Observation(), payload, "observation")
    _count(message.tasks, task_count, "observation.tasks")
    _count(message.abstentions, task_count, "observation.abstentions")
    tasks = []
    for item in message.tasks:
        _count(item.outputs, limits.MAX_POLICY_DATA, "observation.outputs")
        if len(item.transcripts) != len(item.outputs):
            raise InvalidInput("observation.transcripts: one a PolicyData wanted", field="observation.transcripts")
        for output in item.outputs:
            _bounded(output, limits.MAX_OUTPUT_BYTES, "observation.outputs")
        transcripts = tuple(hash_from(t, field="observation.transcripts") for t in item.transcripts)
        tasks.append(TaskObservation(item.task, tuple(item.outputs), transcripts))
    _ascending((t.task for t in tasks), task_count, "observation.tasks")
    abstentions = _abstentions_from_pb(message.abstentions, task_count, "observation.abstentions")
    if {t.task for t in tasks} & {a.task for a in abstentions}:
        raise InvalidInput("observation: a task is both observed and abstained from", field="observation.tasks")
    blob = hash_from(message.blob_sha256, field="observation.blobSha256") if message.blob_sha256 else None
    if blob is not None and (tasks or abstentions):
        raise InvalidInput("observation: results stand inline or in a blob, not both", field="observation.blobSha256")
    return Observation(tuple(tasks), abstentions, message.runtime_id[:256], blob)


def encode_proposal(proposal: Proposal) -> bytes:
    """Serialise a proposal."""
    return pb.Proposal(observations=list(proposal.observations), observation_sha256=list(proposal.observation_sha256)).SerializeToString()


def decode_proposal(payload: bytes) -> Proposal:
    """A proposal; its envelopes are opened by `proposals`."""
    message = _parse(pb.Proposal(), payload, "proposal")
    _count([*message.observations, *message.observation_sha256], limits.MAX_OPERATORS, "proposal.observations")
    digests = tuple(hash_from(digest) for digest in message.observation_sha256)
    return Proposal(tuple(message.observations), digests)


# --- decisions and responses


def leaf_to_pb(leaf: Leaf) -> pb.Leaf:
    """Domain to wire."""
    return pb.Leaf(
        task_id=leaf.task_id,
        policy_client=leaf.policy_client,
        policy_id=leaf.policy_id,
        intent_hash=leaf.intent_hash,
        sequence=leaf.sequence,
        allow=leaf.allow,
        output=leaf.output,
        evidence=leaf.evidence,
        expiration=leaf.expiration,
    )


def leaf_from_pb(message: pb.Leaf) -> Leaf:
    """Wire to domain, checked."""
    return Leaf(
        task_id=hash_from(message.task_id, field="leaf.taskId"),
        policy_client=address_from(message.policy_client, field="leaf.policyClient"),
        policy_id=hash_from(message.policy_id, field="leaf.policyId"),
        intent_hash=hash_from(message.intent_hash, field="leaf.intentHash"),
        sequence=message.sequence,
        allow=message.allow,
        output=hash_from(message.output, field="leaf.output"),
        evidence=hash_from(message.evidence, field="leaf.evidence"),
        expiration=message.expiration,
    )


def _decided_to_pb(items: Iterable[DecidedTask]) -> list[pb.DecidedTask]:
    return [pb.DecidedTask(task=d.task, leaf=leaf_to_pb(d.leaf), evidence_parts=list(d.evidence_parts), decision=d.decision) for d in items]


def _decided_from_pb(items: Iterable[pb.DecidedTask], size: int, field: str) -> tuple[DecidedTask, ...]:
    out = []
    for item in items:
        _bounded(item.decision, limits.MAX_DECISION_BYTES, f"{field}.decision")
        if len(item.evidence_parts) != 6:
            raise InvalidInput(f"{field}.evidenceParts: six wanted", field=f"{field}.evidenceParts")
        parts = tuple(hash_from(part, field=f"{field}.evidenceParts") for part in item.evidence_parts)
        out.append(DecidedTask(item.task, leaf_from_pb(item.leaf), parts, item.decision))
    if not out:
        raise InvalidInput(f"{field}: empty", field=field)
    _ascending((d.task for d in out), size, field)
    return tuple(out)


def encode_response(response: Response) -> bytes:
    """Serialise a response."""
    return pb.Response(
        groups=[pb.GroupResponse(decided=_decided_to_pb(g.decided), bls_signature=g.bls_signature) for g in response.groups],
        abstentions=_abstentions_to_pb(response.abstentions),
        runtime_id=response.runtime_id,
    ).SerializeToString()


def decode_response(payload: bytes, task_count: int) -> Response:
    """A response to a batch of `task_count` tasks. Signatures are checked by the aggregator, not here."""
    check_fields(payload, pb.Response, _MAX_FIELDS, "response")
    message = _parse(pb.Response(), payload, "response")
    _count(message.groups, limits.MAX_GROUPS, "response.groups")
    groups = []
    seen: set[int] = set()
    for group in message.groups:
        _count(group.decided, task_count, "response.groups")
        decided = _decided_from_pb(group.decided, task_count, "response.groups")
        if seen & {d.task for d in decided}:
            raise InvalidInput("response.groups: a task stands in two groups", field="response.groups")
        seen |= {d.task for d in decided}
        if len(group.bls_signature) != 96:
            raise InvalidInput("response.groups: a BLS signature has 96 bytes", field="response.groups")
        groups.append(GroupResponse(decided, group.bls_signature))
    return Response(tuple(groups), _abstentions_from_pb(message.abstentions, task_count, "response.abstentions"), message.runtime_id[:256])


# --- results


def encode_attestation_group(group: AttestationGroup) -> bytes:
    """Serialise a certified group."""
    certificate = group.certificate
    return pb.AttestationGroup(
        chain_id=group.chain_id,
        validator=group.validator,
        certificate=pb.Certificate(
            root=certificate.root, count=certificate.count, epoch=certificate.epoch, timestamp=certificate.timestamp
        ),
        decided=_decided_to_pb(group.decided),
        signers=group.signers,
        aggregate_signature=group.aggregate_signature,
        relayed=[
            pb.RelayedTask(task=r.task, intent=intent_to_pb(r.intent), intent_signature=r.intent_signature, relay=pb.Relay(payer=r.payer))
            for r in group.relayed
        ],
    ).SerializeToString()


def decode_attestation_group(payload: bytes) -> AttestationGroup:
    """A certified group; `verify` checks what it claims."""
    message = _parse(pb.AttestationGroup(), payload, "group")
    _count(message.decided, limits.MAX_TASKS_PER_BATCH, "group.decided")
    _count(message.relayed, limits.MAX_TASKS_PER_BATCH, "group.relayed")
    if len(message.aggregate_signature) != 96:
        raise InvalidInput("group.aggregateSignature: 96 bytes wanted", field="group.aggregateSignature")
    certificate = Certificate(
        hash_from(message.certificate.root, field="certificate.root"),
        message.certificate.count,
        message.certificate.epoch,
        message.certificate.timestamp,
    )
    relayed = tuple(
        RelayedTask(r.task, intent_from_pb(r.intent, "relayed.intent"), r.intent_signature, payer_from(r.relay.payer, "relayed.payer"))
        for r in message.relayed
    )
    return AttestationGroup(
        chain_id=message.chain_id,
        validator=address_from(message.validator, field="group.validator"),
        certificate=certificate,
        decided=_decided_from_pb(message.decided, limits.MAX_TASKS_PER_BATCH, "group.decided"),
        signers=message.signers,
        aggregate_signature=message.aggregate_signature,
        relayed=relayed,
    )


def encode_group_failure(failure: GroupFailure) -> bytes:
    """Serialise failures."""
    return pb.GroupFailure(
        failures=[
            pb.TaskFailure(
                task=f.task,
                task_id=f.task_id,
                code=f.code,
                message=f.message,
                retryable=f.retryable,
                reasons=[
                    pb.OperatorReason(operator=r.operator, code=r.code, message=r.message[: limits.MAX_REASON_BYTES]) for r in f.reasons
                ],
            )
            for f in failure.failures
        ]
    ).SerializeToString()


def decode_group_failure(payload: bytes) -> GroupFailure:
    """Failures of a batch."""
    message = _parse(pb.GroupFailure(), payload, "failure")
    _count(message.failures, limits.MAX_TASKS_PER_BATCH, "failure.failures")
    failures = []
    for item in message.failures:
        _count(item.reasons, limits.MAX_OPERATORS, "failure.reasons")
        reasons = tuple(
            OperatorReason(address_from(r.operator, field="failure.operator"), r.code[:64], r.message[: limits.MAX_REASON_BYTES])
            for r in item.reasons
        )
        failures.append(
            TaskFailure(item.task, hash_from(item.task_id, field="failure.taskId"), item.code, item.message, item.retryable, reasons)
        )
    return GroupFailure(tuple(failures))


# --- admission, announcements, settlement


def encode_admission(admission: Admission) -> bytes:
    """Serialise an operator's word on a policy."""
    return pb.Admission(
        policy_id=admission.policy_id,
        admitted=admission.admitted,
        checker=admission.checker,
        reason=admission.reason[: limits.MAX_REASON_BYTES],
        said_at_ms=admission.said_at,
    ).SerializeToString()


def decode_admission(payload: bytes) -> Admission:
    """An operator's word on a policy."""
    message = _parse(pb.Admission(), payload, "admission")
    return Admission(
        hash_from(message.policy_id, field="admission.policyId"), message.admitted, message.checker[:64], message.reason, message.said_at_ms
    )


def encode_policy_announcement(announcement: PolicyAnnouncement) -> bytes:
    """Serialise where a policy lies."""
    return pb.PolicyAnnouncement(policy_id=announcement.policy_id, bundle_sha256=announcement.bundle_sha256).SerializeToString()


def decode_policy_announcement(payload: bytes) -> PolicyAnnouncement:
    """Where a policy lies."""
    message = _parse(pb.PolicyAnnouncement(), payload, "policy")
    return PolicyAnnouncement(
        hash_from(message.policy_id, field="policy.policyId"), hash_from(message.bundle_sha256, field="policy.bundleSha256")
    )


_STATUS = {
    "submitted": pb.SettlementEvent.STATUS_SUBMITTED,
    "confirmed": pb.SettlementEvent.STATUS_CONFIRMED,
    "reverted": pb.SettlementEvent.STATUS_REVERTED,
    "refused": pb.SettlementEvent.STATUS_REFUSED,
}
_STATUS_NAME: dict[int, str] = {int(number): name for name, number in _STATUS.items()}


def encode_settlement_event(event: SettlementEvent) -> bytes:
    """Serialise a settlement event."""
    return pb.SettlementEvent(
        reference=event.reference,
        status=_STATUS[event.status],
        transaction_hash=event.transaction_hash,
        block_number=event.block_number,
        gas_used=event.gas_used,
        error=event.error[: limits.MAX_REASON_BYTES],
    ).SerializeToString()


def decode_settlement_event(payload: bytes) -> SettlementEvent:
    """A settlement event."""
    message = _parse(pb.SettlementEvent(), payload, "settlement")
    if message.status not in _STATUS_NAME:
        raise InvalidInput("settlement.status: unknown", field="settlement.status")
    return SettlementEvent(
        message.reference,
        _STATUS_NAME[message.status],
        message.transaction_hash,
        message.block_number,
        message.gas_used,
        message.error,
    )
