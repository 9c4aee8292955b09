from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_TASK_BATCH: _ClassVar[Kind]
    KIND_OBSERVATION: _ClassVar[Kind]
    KIND_PROPOSAL: _ClassVar[Kind]
    KIND_RESPONSE: _ClassVar[Kind]
    KIND_ATTESTATION_GROUP: _ClassVar[Kind]
    KIND_GROUP_FAILURE: _ClassVar[Kind]
    KIND_ADMISSION: _ClassVar[Kind]
    KIND_SETTLEMENT_EVENT: _ClassVar[Kind]
    KIND_POLICY_ANNOUNCEMENT: _ClassVar[Kind]
    KIND_INFERENCE_RECEIPT: _ClassVar[Kind]
KIND_UNSPECIFIED: Kind
KIND_TASK_BATCH: Kind
KIND_OBSERVATION: Kind
KIND_PROPOSAL: Kind
KIND_RESPONSE: Kind
KIND_ATTESTATION_GROUP: Kind
KIND_GROUP_FAILURE: Kind
KIND_ADMISSION: Kind
KIND_SETTLEMENT_EVENT: Kind
KIND_POLICY_ANNOUNCEMENT: Kind
KIND_INFERENCE_RECEIPT: Kind

class Envelope(_message.Message):
    __slots__ = ("kind", "chain_id", "batch_id", "proposal_digest", "sender", "payload", "signature")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    chain_id: int
    batch_id: bytes
    proposal_digest: bytes
    sender: bytes
    payload: bytes
    signature: bytes
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., chain_id: _Optional[int] = ..., batch_id: _Optional[bytes] = ..., proposal_digest: _Optional[bytes] = ..., sender: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Intent(_message.Message):
    __slots__ = ("to", "value", "data", "chain_id", "function_signature", "nonce", "deadline")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    to: bytes
    value: bytes
    data: bytes
    chain_id: int
    function_signature: str
    nonce: bytes
    deadline: int
    def __init__(self, to: _Optional[bytes] = ..., value: _Optional[bytes] = ..., data: _Optional[bytes] = ..., chain_id: _Optional[int] = ..., function_signature: _Optional[str] = ..., nonce: _Optional[bytes] = ..., deadline: _Optional[int] = ..., **kwargs) -> None: ...

class Attachment(_message.Message):
    __slots__ = ("kind", "sha256", "uri")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    kind: str
    sha256: bytes
    uri: str
    def __init__(self, kind: _Optional[str] = ..., sha256: _Optional[bytes] = ..., uri: _Optional[str] = ...) -> None: ...

class Relay(_message.Message):
    __slots__ = ("payer",)
    PAYER_FIELD_NUMBER: _ClassVar[int]
    payer: str
    def __init__(self, payer: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("policy_client", "intent", "intent_signature", "args", "attachments", "salt", "relay")
    POLICY_CLIENT_FIELD_NUMBER: _ClassVar[int]
    INTENT_FIELD_NUMBER: _ClassVar[int]
    INTENT_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    policy_client: bytes
    intent: Intent
    intent_signature: bytes
    args: bytes
    attachments: _containers.RepeatedCompositeFieldContainer[Attachment]
    salt: bytes
    relay: Relay
    def __init__(self, policy_client: _Optional[bytes] = ..., intent: _Optional[_Union[Intent, _Mapping]] = ..., intent_signature: _Optional[bytes] = ..., args: _Optional[bytes] = ..., attachments: _Optional[_Iterable[_Union[Attachment, _Mapping]]] = ..., salt: _Optional[bytes] = ..., relay: _Optional[_Union[Relay, _Mapping]] = ...) -> None: ...

class TaskBatch(_message.Message):
    __slots__ = ("chain_id", "validator", "policy_id", "epoch", "timestamp", "block_number", "block_hash", "observe_for_ms", "tasks")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATOR_FIELD_NUMBER: _ClassVar[int]
    POLICY_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    BLOCK_NUMBER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    OBSERVE_FOR_MS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    validator: bytes
    policy_id: bytes
    epoch: int
    timestamp: int
    block_number: int
    block_hash: bytes
    observe_for_ms: int
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    def __init__(self, chain_id: _Optional[int] = ..., validator: _Optional[bytes] = ..., policy_id: _Optional[bytes] = ..., epoch: _Optional[int] = ..., timestamp: _Optional[int] = ..., block_number: _Optional[int] = ..., block_hash: _Optional[bytes] = ..., observe_for_ms: _Optional[int] = ..., tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ...) -> None: ...

class Abstention(_message.Message):
    __slots__ = ("task", "code", "message")
    TASK_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    task: int
    code: str
    message: str
    def __init__(self, task: _Optional[int] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class TaskObservation(_message.Message):
    __slots__ = ("task", "outputs", "transcripts")
    TASK_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPTS_FIELD_NUMBER: _ClassVar[int]
    task: int
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    transcripts: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, task: _Optional[int] = ..., outputs: _Optional[_Iterable[bytes]] = ..., transcripts: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("tasks", "abstentions", "runtime_id", "blob_sha256")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    ABSTENTIONS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_ID_FIELD_NUMBER: _ClassVar[int]
    BLOB_SHA256_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskObservation]
    abstentions: _containers.RepeatedCompositeFieldContainer[Abstention]
    runtime_id: str
    blob_sha256: bytes
    def __init__(self, tasks: _Optional[_Iterable[_Union[TaskObservation, _Mapping]]] = ..., abstentions: _Optional[_Iterable[_Union[Abstention, _Mapping]]] = ..., runtime_id: _Optional[str] = ..., blob_sha256: _Optional[bytes] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("observations", "observation_sha256")
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_SHA256_FIELD_NUMBER: _ClassVar[int]
    observations: _containers.RepeatedScalarFieldContainer[bytes]
    observation_sha256: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, observations: _Optional[_Iterable[bytes]] = ..., observation_sha256: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Leaf(_message.Message):
    __slots__ = ("task_id", "policy_client", "policy_id", "intent_hash", "sequence", "allow", "output", "evidence", "expiration")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_CLIENT_FIELD_NUMBER: _ClassVar[int]
    POLICY_ID_FIELD_NUMBER: _ClassVar[int]
    INTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRATION_FIELD_NUMBER: _ClassVar[int]
    task_id: bytes
    policy_client: bytes
    policy_id: bytes
    intent_hash: bytes
    sequence: int
    allow: bool
    output: bytes
    evidence: bytes
    expiration: int
    def __init__(self, task_id: _Optional[bytes] = ..., policy_client: _Optional[bytes] = ..., policy_id: _Optional[bytes] = ..., intent_hash: _Optional[bytes] = ..., sequence: _Optional[int] = ..., allow: bool = ..., output: _Optional[bytes] = ..., evidence: _Optional[bytes] = ..., expiration: _Optional[int] = ...) -> None: ...

class DecidedTask(_message.Message):
    __slots__ = ("task", "leaf", "evidence_parts", "decision")
    TASK_FIELD_NUMBER: _ClassVar[int]
    LEAF_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_PARTS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    task: int
    leaf: Leaf
    evidence_parts: _containers.RepeatedScalarFieldContainer[bytes]
    decision: bytes
    def __init__(self, task: _Optional[int] = ..., leaf: _Optional[_Union[Leaf, _Mapping]] = ..., evidence_parts: _Optional[_Iterable[bytes]] = ..., decision: _Optional[bytes] = ...) -> None: ...

class GroupResponse(_message.Message):
    __slots__ = ("decided", "bls_signature")
    DECIDED_FIELD_NUMBER: _ClassVar[int]
    BLS_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    decided: _containers.RepeatedCompositeFieldContainer[DecidedTask]
    bls_signature: bytes
    def __init__(self, decided: _Optional[_Iterable[_Union[DecidedTask, _Mapping]]] = ..., bls_signature: _Optional[bytes] = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("groups", "abstentions", "runtime_id")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ABSTENTIONS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_ID_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GroupResponse]
    abstentions: _containers.RepeatedCompositeFieldContainer[Abstention]
    runtime_id: str
    def __init__(self, groups: _Optional[_Iterable[_Union[GroupResponse, _Mapping]]] = ..., abstentions: _Optional[_Iterable[_Union[Abstention, _Mapping]]] = ..., runtime_id: _Optional[str] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("root", "count", "epoch", "timestamp")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    root: bytes
    count: int
    epoch: int
    timestamp: int
    def __init__(self, root: _Optional[bytes] = ..., count: _Optional[int] = ..., epoch: _Optional[int] = ..., timestamp: _Optional[int] = ...) -> None: ...

class AttestationGroup(_message.Message):
    __slots__ = ("chain_id", "validator", "certificate", "decided", "signers", "aggregate_signature", "relayed")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATOR_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    DECIDED_FIELD_NUMBER: _ClassVar[int]
    SIGNERS_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    validator: bytes
    certificate: Certificate
    decided: _containers.RepeatedCompositeFieldContainer[DecidedTask]
    signers: bytes
    aggregate_signature: bytes
    relayed: _containers.RepeatedCompositeFieldContainer[RelayedTask]
    def __init__(self, chain_id: _Optional[int] = ..., validator: _Optional[bytes] = ..., certificate: _Optional[_Union[Certificate, _Mapping]] = ..., decided: _Optional[_Iterable[_Union[DecidedTask, _Mapping]]] = ..., signers: _Optional[bytes] = ..., aggregate_signature: _Optional[bytes] = ..., relayed: _Optional[_Iterable[_Union[RelayedTask, _Mapping]]] = ...) -> None: ...

class RelayedTask(_message.Message):
    __slots__ = ("task", "intent", "intent_signature", "relay")
    TASK_FIELD_NUMBER: _ClassVar[int]
    INTENT_FIELD_NUMBER: _ClassVar[int]
    INTENT_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    task: int
    intent: Intent
    intent_signature: bytes
    relay: Relay
    def __init__(self, task: _Optional[int] = ..., intent: _Optional[_Union[Intent, _Mapping]] = ..., intent_signature: _Optional[bytes] = ..., relay: _Optional[_Union[Relay, _Mapping]] = ...) -> None: ...

class OperatorReason(_message.Message):
    __slots__ = ("operator", "code", "message")
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    operator: bytes
    code: str
    message: str
    def __init__(self, operator: _Optional[bytes] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class TaskFailure(_message.Message):
    __slots__ = ("task", "task_id", "code", "message", "retryable", "reasons")
    TASK_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    task: int
    task_id: bytes
    code: str
    message: str
    retryable: bool
    reasons: _containers.RepeatedCompositeFieldContainer[OperatorReason]
    def __init__(self, task: _Optional[int] = ..., task_id: _Optional[bytes] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., retryable: bool = ..., reasons: _Optional[_Iterable[_Union[OperatorReason, _Mapping]]] = ...) -> None: ...

class GroupFailure(_message.Message):
    __slots__ = ("failures",)
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    failures: _containers.RepeatedCompositeFieldContainer[TaskFailure]
    def __init__(self, failures: _Optional[_Iterable[_Union[TaskFailure, _Mapping]]] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("policy_id", "admitted", "checker", "reason", "said_at_ms")
    POLICY_ID_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    CHECKER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SAID_AT_MS_FIELD_NUMBER: _ClassVar[int]
    policy_id: bytes
    admitted: bool
    checker: str
    reason: str
    said_at_ms: int
    def __init__(self, policy_id: _Optional[bytes] = ..., admitted: bool = ..., checker: _Optional[str] = ..., reason: _Optional[str] = ..., said_at_ms: _Optional[int] = ...) -> None: ...

class PolicyAnnouncement(_message.Message):
    __slots__ = ("policy_id", "bundle_sha256")
    POLICY_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    policy_id: bytes
    bundle_sha256: bytes
    def __init__(self, policy_id: _Optional[bytes] = ..., bundle_sha256: _Optional[bytes] = ...) -> None: ...

class SettlementEvent(_message.Message):
    __slots__ = ("reference", "status", "transaction_hash", "block_number", "gas_used", "error")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[SettlementEvent.Status]
        STATUS_SUBMITTED: _ClassVar[SettlementEvent.Status]
        STATUS_CONFIRMED: _ClassVar[SettlementEvent.Status]
        STATUS_REVERTED: _ClassVar[SettlementEvent.Status]
        STATUS_REFUSED: _ClassVar[SettlementEvent.Status]
    STATUS_UNSPECIFIED: SettlementEvent.Status
    STATUS_SUBMITTED: SettlementEvent.Status
    STATUS_CONFIRMED: SettlementEvent.Status
    STATUS_REVERTED: SettlementEvent.Status
    STATUS_REFUSED: SettlementEvent.Status
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_HASH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_NUMBER_FIELD_NUMBER: _ClassVar[int]
    GAS_USED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    reference: bytes
    status: SettlementEvent.Status
    transaction_hash: bytes
    block_number: int
    gas_used: int
    error: str
    def __init__(self, reference: _Optional[bytes] = ..., status: _Optional[_Union[SettlementEvent.Status, str]] = ..., transaction_hash: _Optional[bytes] = ..., block_number: _Optional[int] = ..., gas_used: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...
