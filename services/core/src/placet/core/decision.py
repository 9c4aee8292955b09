"""From a task and agreed data to what Rego is asked, and from Rego's answer to a leaf. Pure: everything here is a function of
TaskBatch, Proposal and policy, so every operator, a challenger years later, and the verifier compute the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from placet.core import jsonx, limits
from placet.core.batch import BatchContext
from placet.core.calls import NotGoverned, decode_intent, rego_input
from placet.core.digests import EVIDENCE_PARTS
from placet.core.errors import InvalidInput
from placet.core.evidence import EvidenceRecord, arguments_content, intent_content, observations_content
from placet.core.messages import DecidedTask
from placet.core.types import ZERO_HASH, BindingSource, Leaf, Policy, hex0x


class DeniedBeforeEvaluation(Exception):
    """A deny that needs no Rego: the intent is not one that the policy can judge. The text is the reason."""


@dataclass(frozen=True, slots=True)
class TaskInput:
    """What a task is judged on, derived from the raw intent."""

    input: dict[str, Any]
    args: dict[str, Any]
    task: dict[str, Any]

    @property
    def input_json(self) -> str:
        """The document `input`."""
        return jsonx.canonical(self.input).decode()

    @property
    def args_json(self) -> str:
        """The document `data.args`."""
        return jsonx.canonical(self.args).decode()

    @property
    def task_json(self) -> str:
        """The document `data.task`."""
        return jsonx.canonical(self.task).decode()


def task_input(context: BatchContext, index: int, policy: Policy, sequence: int) -> TaskInput:
    """Derive what task `index` is judged on.

    Raises:
        DeniedBeforeEvaluation: a deny, with its reason.
    """
    batch, task = context.batch, context.batch.tasks[index]
    intent = task.intent
    if intent.chain_id != batch.chain_id:
        raise DeniedBeforeEvaluation(f"the intent is for chain {intent.chain_id}, not {batch.chain_id}")
    if intent.deadline < batch.timestamp:
        raise DeniedBeforeEvaluation("the intent's deadline has passed")
    try:
        call = decode_intent(intent, task.policy_client, policy.calls)
    except NotGoverned as error:
        raise DeniedBeforeEvaluation(str(error)) from None
    try:
        args = jsonx.parse(task.args, field="args", max_bytes=limits.MAX_ARGS_BYTES, max_depth=limits.MAX_ARGS_DEPTH) if task.args else {}
    except InvalidInput as error:
        raise DeniedBeforeEvaluation(error.message) from None
    if not isinstance(args, dict):
        raise DeniedBeforeEvaluation("args: an object wanted")
    facts = {
        "taskId": hex0x(context.task_ids[index]),
        "policyId": hex0x(batch.policy_id),
        "policyClient": hex0x(task.policy_client),
        "chainId": batch.chain_id,
        "timestamp": batch.timestamp,
        "blockNumber": batch.block_number,
        "blockHash": hex0x(batch.block_hash),
        "sequence": sequence,
        "attachments": [{"kind": a.kind, "sha256": hex0x(a.sha256), "uri": a.uri} for a in task.attachments],
    }
    return TaskInput(rego_input(intent, context.intent_hashes[index], call), args, facts)


def bound_arguments(policy: Policy, position: int, source: TaskInput) -> bytes:
    """The argument object of PolicyData number `position`, built by the host from the policy's bindings (threats 3): canonical JSON.

    Raises:
        DeniedBeforeEvaluation: a binding points to nothing.
    """
    params = jsonx.parse(policy.params, field="params", max_bytes=limits.MAX_PARAMS_BYTES, max_depth=16)
    arguments: dict[str, Any] = {}
    for binding in policy.bindings:
        if binding.policy_data != position:
            continue
        try:
            match binding.source:
                case BindingSource.CONST:
                    arguments[binding.name] = jsonx.parse(binding.value.encode(), field="binding", max_bytes=4096, max_depth=8)
                case BindingSource.PARAMS:
                    arguments[binding.name] = jsonx.pointer(params, binding.value)
                case BindingSource.INTENT:
                    arguments[binding.name] = jsonx.pointer(source.input, binding.value)
                case BindingSource.CALLER:
                    arguments[binding.name] = source.args[binding.value]
        except KeyError:
            raise DeniedBeforeEvaluation(f"argument {binding.name} is bound to something that is not there") from None
    return jsonx.canonical(arguments)


def early_denial(context: BatchContext, index: int, policy: Policy) -> str | None:
    """Why task `index` is denied whatever the data says: the intent is none that the policy judges, or an argument is bound to nothing.

    Such a task is not observed; every operator comes to this by itself.
    """
    try:
        source = task_input(context, index, policy, 0)
        for position in range(len(policy.policy_data_ids)):
            bound_arguments(policy, position, source)
    except DeniedBeforeEvaluation as error:
        return str(error)
    return None


FAILURE_KEY = "placet:failed"
"""An observed output {FAILURE_KEY: kind, "message": …} says that the component itself failed, before it had asked the host for anything:
a function of the task alone, so every operator sees it, and the task is denied."""


def component_failure(kind: str, message: str) -> bytes:
    """The output that stands for a component's own failure; canonical JSON. Only an error the component itself answered has a message:
    other texts are the runtime's, and differ between its versions."""
    return jsonx.canonical({FAILURE_KEY: kind, "message": message[:200] if kind == "error" else ""})


def failure_in(output: bytes) -> str | None:
    """Why a component failed, when its output says so; else None."""
    if not output.startswith(b'{"message":') or b'"placet:failed"' not in output:
        return None
    try:
        value = jsonx.parse(output, field="output", max_bytes=limits.MAX_OUTPUT_BYTES, fractions=True)
    except InvalidInput:
        return None  # nothing that `component_failure` wrote; the engine's guard will judge it, for this task alone
    if set(value) != {FAILURE_KEY, "message"} or not all(isinstance(member, str) for member in value.values()):
        return None
    return f"a component failed ({value[FAILURE_KEY]}) {value['message']}".strip()


def decision_content(
    allow: bool, reasons: Sequence[str], value_json: str | None, *, evaluated: bool = False, max_bytes: int = limits.MAX_DECISION_BYTES
) -> bytes:
    """The `decision` part of the evidence: canonical JSON of the verdict, its reasons, and the policy's value as the engine wrote it.

    A policy that was `evaluated` to no decision (its entrypoint is undefined, or has another shape) denies by itself: `noDecision`.

    What exceeds `max_bytes` is shown by its digest: first the value (`valueSha256`), then the reasons (`reasonsSha256`). The verdict does
    not change.
    """
    document: dict[str, Any] = {"allow": allow, "reasons": list(reasons), "value": value_json}
    if evaluated and value_json is None:
        document["noDecision"] = True
    content = jsonx.canonical(document)
    if len(content) > max_bytes and value_json is not None:
        digest = hashlib.sha256(value_json.encode()).digest()
        document |= {"value": None, "valueSha256": hex0x(digest)}
        content = jsonx.canonical(document)
    if len(content) > max_bytes:
        digest = hashlib.sha256(jsonx.canonical(list(reasons))).digest()
        document |= {"reasons": [], "reasonsSha256": hex0x(digest)}
        content = jsonx.canonical(document)
    return content


def is_of_policy(decision: bytes) -> bool:
    """Whether a decision is one that the policy itself gave, and not what stands in its place (malformed input, a limit, a failure)."""
    document = jsonx.parse(decision, field="decision", max_bytes=limits.MAX_DECISION_BYTES)
    return document["value"] is not None or "valueSha256" in document or "noDecision" in document


def max_decision_bytes(task_count: int) -> int:
    """How much of each decision travels in a batch of `task_count` tasks, so that the answer to the whole batch fits one message."""
    return min(limits.MAX_DECISION_BYTES, limits.MAX_DECISIONS_BYTES // task_count)


def decide(
    context: BatchContext,
    index: int,
    policy: Policy,
    *,
    sequence: int,
    allow: bool,
    decision: bytes,
    outputs: Sequence[bytes],
    observations: Sequence[bytes],
) -> tuple[DecidedTask, EvidenceRecord]:
    """The leaf of a decided task and the record behind it.

    `outputs` are the agreed ones (canonical JSON a PolicyData), `observations` the Proposal's envelopes; both empty without PolicyData.
    """
    batch, task = context.batch, context.batch.tasks[index]
    record = EvidenceRecord(
        salt=task.salt,
        parts={
            "intent": intent_content(task.intent, task.policy_client),
            "arguments": arguments_content(task.args, task.attachments),
            "params": policy.params,
            "data": b"[" + b",".join(outputs) + b"]",
            "observations": observations_content(observations),
            "decision": decision,
        },
    )
    hashes = record.part_hashes()
    leaf = Leaf(
        task_id=context.task_ids[index],
        policy_client=task.policy_client,
        policy_id=batch.policy_id,
        intent_hash=context.intent_hashes[index],
        sequence=sequence,
        allow=allow,
        output=ZERO_HASH,
        evidence=record.digest(),
        expiration=min(task.intent.deadline, batch.timestamp + policy.valid_for),
    )
    return DecidedTask(index, leaf, tuple(hashes[name] for name in EVIDENCE_PARTS), decision), record
