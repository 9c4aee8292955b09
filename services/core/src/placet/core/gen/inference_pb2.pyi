from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Surface(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SURFACE_UNSPECIFIED: _ClassVar[Surface]
    SURFACE_CHAT: _ClassVar[Surface]
    SURFACE_COMPLETIONS: _ClassVar[Surface]
    SURFACE_EMBEDDINGS: _ClassVar[Surface]
    SURFACE_TENSORS: _ClassVar[Surface]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_VANILLA: _ClassVar[Mode]
    MODE_TEE: _ClassVar[Mode]
    MODE_ZKML: _ClassVar[Mode]
    MODE_AUDITED: _ClassVar[Mode]
SURFACE_UNSPECIFIED: Surface
SURFACE_CHAT: Surface
SURFACE_COMPLETIONS: Surface
SURFACE_EMBEDDINGS: Surface
SURFACE_TENSORS: Surface
MODE_UNSPECIFIED: Mode
MODE_VANILLA: Mode
MODE_TEE: Mode
MODE_ZKML: Mode
MODE_AUDITED: Mode

class Tensor(_message.Message):
    __slots__ = ("name", "datatype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PaymentRate(_message.Message):
    __slots__ = ("request", "row", "million_prompt_tokens", "million_completion_tokens")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    MILLION_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MILLION_COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request: str
    row: str
    million_prompt_tokens: str
    million_completion_tokens: str
    def __init__(self, request: _Optional[str] = ..., row: _Optional[str] = ..., million_prompt_tokens: _Optional[str] = ..., million_completion_tokens: _Optional[str] = ...) -> None: ...

class PaymentTerms(_message.Message):
    __slots__ = ("payer", "network", "asset", "payment_id", "amount", "max_amount", "rate")
    PAYER_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    ASSET_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    payer: bytes
    network: str
    asset: bytes
    payment_id: str
    amount: str
    max_amount: str
    rate: PaymentRate
    def __init__(self, payer: _Optional[bytes] = ..., network: _Optional[str] = ..., asset: _Optional[bytes] = ..., payment_id: _Optional[str] = ..., amount: _Optional[str] = ..., max_amount: _Optional[str] = ..., rate: _Optional[_Union[PaymentRate, _Mapping]] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("receipt_id", "surface", "mode", "model_sha256", "model_name", "body", "tensors", "outputs", "client_nonce", "payment", "timeout_ms", "alone", "jurisdiction", "tenant", "without_receipt", "sealed")
    RECEIPT_ID_FIELD_NUMBER: _ClassVar[int]
    SURFACE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NONCE_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_RECEIPT_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    receipt_id: bytes
    surface: Surface
    mode: Mode
    model_sha256: bytes
    model_name: str
    body: bytes
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    client_nonce: bytes
    payment: PaymentTerms
    timeout_ms: int
    alone: bool
    jurisdiction: str
    tenant: str
    without_receipt: bool
    sealed: bytes
    def __init__(self, receipt_id: _Optional[bytes] = ..., surface: _Optional[_Union[Surface, str]] = ..., mode: _Optional[_Union[Mode, str]] = ..., model_sha256: _Optional[bytes] = ..., model_name: _Optional[str] = ..., body: _Optional[bytes] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[str]] = ..., client_nonce: _Optional[bytes] = ..., payment: _Optional[_Union[PaymentTerms, _Mapping]] = ..., timeout_ms: _Optional[int] = ..., alone: bool = ..., jurisdiction: _Optional[str] = ..., tenant: _Optional[str] = ..., without_receipt: bool = ..., sealed: _Optional[bytes] = ...) -> None: ...

class QuoteResponse(_message.Message):
    __slots__ = ("prompt_tokens", "max_completion_tokens", "rows")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    max_completion_tokens: int
    rows: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., max_completion_tokens: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "rows")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    rows: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "field", "retryable", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    field: str
    retryable: bool
    retry_after_ms: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retryable: bool = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("chunk", "finished", "failure")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    finished: Finished
    failure: Failure
    def __init__(self, chunk: _Optional[bytes] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("body", "tensors", "usage", "receipt", "queued_us", "computed_us", "evidence")
    BODY_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_US_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    usage: Usage
    receipt: bytes
    queued_us: int
    computed_us: int
    evidence: bytes
    def __init__(self, body: _Optional[bytes] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., receipt: _Optional[bytes] = ..., queued_us: _Optional[int] = ..., computed_us: _Optional[int] = ..., evidence: _Optional[bytes] = ...) -> None: ...

class LoadedModel(_message.Message):
    __slots__ = ("model_sha256", "publisher", "name", "version", "state", "reason", "provider", "profile", "modes", "running", "waiting", "concurrency", "first_ms", "last_ms")
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    FIRST_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_MS_FIELD_NUMBER: _ClassVar[int]
    model_sha256: bytes
    publisher: str
    name: str
    version: int
    state: str
    reason: str
    provider: str
    profile: bytes
    modes: _containers.RepeatedScalarFieldContainer[Mode]
    running: int
    waiting: int
    concurrency: int
    first_ms: float
    last_ms: float
    def __init__(self, model_sha256: _Optional[bytes] = ..., publisher: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., provider: _Optional[str] = ..., profile: _Optional[bytes] = ..., modes: _Optional[_Iterable[_Union[Mode, str]]] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., concurrency: _Optional[int] = ..., first_ms: _Optional[float] = ..., last_ms: _Optional[float] = ...) -> None: ...

class InferenceReceipt(_message.Message):
    __slots__ = ("receipt", "tenant")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    receipt: bytes
    tenant: str
    def __init__(self, receipt: _Optional[bytes] = ..., tenant: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("node", "receipt_key", "key_id", "jurisdiction", "models", "draining", "version", "modes")
    NODE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    node: bytes
    receipt_key: bytes
    key_id: bytes
    jurisdiction: str
    models: _containers.RepeatedCompositeFieldContainer[LoadedModel]
    draining: bool
    version: str
    modes: _containers.RepeatedScalarFieldContainer[Mode]
    def __init__(self, node: _Optional[bytes] = ..., receipt_key: _Optional[bytes] = ..., key_id: _Optional[bytes] = ..., jurisdiction: _Optional[str] = ..., models: _Optional[_Iterable[_Union[LoadedModel, _Mapping]]] = ..., draining: bool = ..., version: _Optional[str] = ..., modes: _Optional[_Iterable[_Union[Mode, str]]] = ...) -> None: ...

class QuoteRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: RunRequest
    def __init__(self, request: _Optional[_Union[RunRequest, _Mapping]] = ...) -> None: ...

class ProofRequest(_message.Message):
    __slots__ = ("id", "tenant")
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    tenant: str
    def __init__(self, id: _Optional[bytes] = ..., tenant: _Optional[str] = ...) -> None: ...

class ProofResponse(_message.Message):
    __slots__ = ("state", "document", "error")
    STATE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    state: str
    document: bytes
    error: str
    def __init__(self, state: _Optional[str] = ..., document: _Optional[bytes] = ..., error: _Optional[str] = ...) -> None: ...

class AttestRequest(_message.Message):
    __slots__ = ("nonce", "model_sha256")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    model_sha256: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., model_sha256: _Optional[bytes] = ...) -> None: ...

class AttestResponse(_message.Message):
    __slots__ = ("evidence", "receipt_key", "hpke_key", "failure")
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_KEY_FIELD_NUMBER: _ClassVar[int]
    HPKE_KEY_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    evidence: bytes
    receipt_key: bytes
    hpke_key: bytes
    failure: Failure
    def __init__(self, evidence: _Optional[bytes] = ..., receipt_key: _Optional[bytes] = ..., hpke_key: _Optional[bytes] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...
