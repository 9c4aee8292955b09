from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UploadRequest(_message.Message):
    __slots__ = ("sha256", "content")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    content: bytes
    def __init__(self, sha256: _Optional[bytes] = ..., content: _Optional[bytes] = ...) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ("size",)
    SIZE_FIELD_NUMBER: _ClassVar[int]
    size: int
    def __init__(self, size: _Optional[int] = ...) -> None: ...

class HasRequest(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sha256: _Optional[_Iterable[bytes]] = ...) -> None: ...

class HasResponse(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sha256: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("path", "sha256", "size")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: bytes
    size: int
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class DraftRequest(_message.Message):
    __slots__ = ("kind", "publisher", "name", "files", "description", "license", "zkml")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    ZKML_FIELD_NUMBER: _ClassVar[int]
    kind: str
    publisher: str
    name: str
    files: _containers.RepeatedCompositeFieldContainer[ModelFile]
    description: str
    license: str
    zkml: bool
    def __init__(self, kind: _Optional[str] = ..., publisher: _Optional[str] = ..., name: _Optional[str] = ..., files: _Optional[_Iterable[_Union[ModelFile, _Mapping]]] = ..., description: _Optional[str] = ..., license: _Optional[str] = ..., zkml: bool = ...) -> None: ...

class DraftResponse(_message.Message):
    __slots__ = ("manifest",)
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    def __init__(self, manifest: _Optional[bytes] = ...) -> None: ...

class ActRequest(_message.Message):
    __slots__ = ("statement", "signature", "manifest")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    signature: bytes
    manifest: bytes
    def __init__(self, statement: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., manifest: _Optional[bytes] = ...) -> None: ...

class ActResponse(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    def __init__(self, document: _Optional[bytes] = ...) -> None: ...

class RegisterSetupRequest(_message.Message):
    __slots__ = ("model_sha256", "made_by", "text", "signature")
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MADE_BY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    model_sha256: bytes
    made_by: str
    text: bytes
    signature: bytes
    def __init__(self, model_sha256: _Optional[bytes] = ..., made_by: _Optional[str] = ..., text: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RegisterSetupResponse(_message.Message):
    __slots__ = ("address", "vk_sha256")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VK_SHA256_FIELD_NUMBER: _ClassVar[int]
    address: bytes
    vk_sha256: bytes
    def __init__(self, address: _Optional[bytes] = ..., vk_sha256: _Optional[bytes] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class ResolveResponse(_message.Message):
    __slots__ = ("version", "prices", "previous_prices", "priced_at")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PRICES_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_PRICES_FIELD_NUMBER: _ClassVar[int]
    PRICED_AT_FIELD_NUMBER: _ClassVar[int]
    version: ModelVersion
    prices: bytes
    previous_prices: bytes
    priced_at: int
    def __init__(self, version: _Optional[_Union[ModelVersion, _Mapping]] = ..., prices: _Optional[bytes] = ..., previous_prices: _Optional[bytes] = ..., priced_at: _Optional[int] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("manifest", "sha256", "statement", "signature", "published_at", "deprecated")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    DEPRECATED_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    sha256: bytes
    statement: bytes
    signature: bytes
    published_at: int
    deprecated: str
    def __init__(self, manifest: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., statement: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., published_at: _Optional[int] = ..., deprecated: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("search", "publisher", "after", "limit")
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    search: str
    publisher: str
    after: str
    limit: int
    def __init__(self, search: _Optional[str] = ..., publisher: _Optional[str] = ..., after: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "hub")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    HUB_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    hub: str
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ..., hub: _Optional[str] = ...) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("publisher", "name", "kind", "description", "newest", "aliases", "prices")
    class AliasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    PRICES_FIELD_NUMBER: _ClassVar[int]
    publisher: str
    name: str
    kind: str
    description: str
    newest: int
    aliases: _containers.ScalarMap[str, int]
    prices: bytes
    def __init__(self, publisher: _Optional[str] = ..., name: _Optional[str] = ..., kind: _Optional[str] = ..., description: _Optional[str] = ..., newest: _Optional[int] = ..., aliases: _Optional[_Mapping[str, int]] = ..., prices: _Optional[bytes] = ...) -> None: ...

class DescribeModelRequest(_message.Message):
    __slots__ = ("publisher", "name")
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    publisher: str
    name: str
    def __init__(self, publisher: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DescribeModelResponse(_message.Message):
    __slots__ = ("model", "versions", "moves", "usage")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSummary
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    moves: _containers.RepeatedCompositeFieldContainer[AliasMove]
    usage: _containers.RepeatedCompositeFieldContainer[ModelUsage]
    def __init__(self, model: _Optional[_Union[ModelSummary, _Mapping]] = ..., versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., moves: _Optional[_Iterable[_Union[AliasMove, _Mapping]]] = ..., usage: _Optional[_Iterable[_Union[ModelUsage, _Mapping]]] = ...) -> None: ...

class AliasMove(_message.Message):
    __slots__ = ("alias", "version", "previous", "at")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    alias: str
    version: int
    previous: int
    at: int
    def __init__(self, alias: _Optional[str] = ..., version: _Optional[int] = ..., previous: _Optional[int] = ..., at: _Optional[int] = ...) -> None: ...

class ModelUsage(_message.Message):
    __slots__ = ("version", "day", "asset", "requests", "failures", "prompt_tokens", "completion_tokens", "rows", "revenue", "computed_ms")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DAY_FIELD_NUMBER: _ClassVar[int]
    ASSET_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    REVENUE_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_MS_FIELD_NUMBER: _ClassVar[int]
    version: int
    day: int
    asset: str
    requests: int
    failures: int
    prompt_tokens: int
    completion_tokens: int
    rows: int
    revenue: str
    computed_ms: int
    def __init__(self, version: _Optional[int] = ..., day: _Optional[int] = ..., asset: _Optional[str] = ..., requests: _Optional[int] = ..., failures: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., rows: _Optional[int] = ..., revenue: _Optional[str] = ..., computed_ms: _Optional[int] = ...) -> None: ...
