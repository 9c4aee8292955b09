from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SettlePaymentRequest(_message.Message):
    __slots__ = ("payment_id", "authorization", "offer", "charged")
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    CHARGED_FIELD_NUMBER: _ClassVar[int]
    payment_id: bytes
    authorization: bytes
    offer: bytes
    charged: str
    def __init__(self, payment_id: _Optional[bytes] = ..., authorization: _Optional[bytes] = ..., offer: _Optional[bytes] = ..., charged: _Optional[str] = ...) -> None: ...

class PaymentStatus(_message.Message):
    __slots__ = ("payment_id", "state", "tx_hash", "failure")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[PaymentStatus.State]
        STATE_NOT_KNOWN: _ClassVar[PaymentStatus.State]
        STATE_IN_HAND: _ClassVar[PaymentStatus.State]
        STATE_SETTLED: _ClassVar[PaymentStatus.State]
        STATE_FAILED: _ClassVar[PaymentStatus.State]
    STATE_UNSPECIFIED: PaymentStatus.State
    STATE_NOT_KNOWN: PaymentStatus.State
    STATE_IN_HAND: PaymentStatus.State
    STATE_SETTLED: PaymentStatus.State
    STATE_FAILED: PaymentStatus.State
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TX_HASH_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    payment_id: bytes
    state: PaymentStatus.State
    tx_hash: bytes
    failure: str
    def __init__(self, payment_id: _Optional[bytes] = ..., state: _Optional[_Union[PaymentStatus.State, str]] = ..., tx_hash: _Optional[bytes] = ..., failure: _Optional[str] = ...) -> None: ...

class SettlePaymentResponse(_message.Message):
    __slots__ = ("payment",)
    PAYMENT_FIELD_NUMBER: _ClassVar[int]
    payment: PaymentStatus
    def __init__(self, payment: _Optional[_Union[PaymentStatus, _Mapping]] = ...) -> None: ...

class GetPaymentsRequest(_message.Message):
    __slots__ = ("payment_id",)
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    payment_id: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, payment_id: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GetPaymentsResponse(_message.Message):
    __slots__ = ("payments",)
    PAYMENTS_FIELD_NUMBER: _ClassVar[int]
    payments: _containers.RepeatedCompositeFieldContainer[PaymentStatus]
    def __init__(self, payments: _Optional[_Iterable[_Union[PaymentStatus, _Mapping]]] = ...) -> None: ...

class RefundPaymentRequest(_message.Message):
    __slots__ = ("payment_id", "payer", "chain_id", "asset", "amount")
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    PAYER_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    ASSET_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    payment_id: bytes
    payer: bytes
    chain_id: int
    asset: bytes
    amount: str
    def __init__(self, payment_id: _Optional[bytes] = ..., payer: _Optional[bytes] = ..., chain_id: _Optional[int] = ..., asset: _Optional[bytes] = ..., amount: _Optional[str] = ...) -> None: ...

class RefundPaymentResponse(_message.Message):
    __slots__ = ("refund",)
    REFUND_FIELD_NUMBER: _ClassVar[int]
    refund: PaymentStatus
    def __init__(self, refund: _Optional[_Union[PaymentStatus, _Mapping]] = ...) -> None: ...

class GetBalanceRequest(_message.Message):
    __slots__ = ("chain_id", "asset", "payer")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    ASSET_FIELD_NUMBER: _ClassVar[int]
    PAYER_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    asset: bytes
    payer: bytes
    def __init__(self, chain_id: _Optional[int] = ..., asset: _Optional[bytes] = ..., payer: _Optional[bytes] = ...) -> None: ...

class GetBalanceResponse(_message.Message):
    __slots__ = ("balance", "permit2_allowance", "at")
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    PERMIT2_ALLOWANCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    balance: str
    permit2_allowance: str
    at: int
    def __init__(self, balance: _Optional[str] = ..., permit2_allowance: _Optional[str] = ..., at: _Optional[int] = ...) -> None: ...

class GetInclusionRequest(_message.Message):
    __slots__ = ("receipt_id",)
    RECEIPT_ID_FIELD_NUMBER: _ClassVar[int]
    receipt_id: bytes
    def __init__(self, receipt_id: _Optional[bytes] = ...) -> None: ...

class GetInclusionResponse(_message.Message):
    __slots__ = ("receipt_digest", "chain_id", "ledger", "poster", "root", "index", "count", "proof", "posted", "root_index", "object_name")
    RECEIPT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    POSTER_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    POSTED_FIELD_NUMBER: _ClassVar[int]
    ROOT_INDEX_FIELD_NUMBER: _ClassVar[int]
    OBJECT_NAME_FIELD_NUMBER: _ClassVar[int]
    receipt_digest: bytes
    chain_id: int
    ledger: bytes
    poster: bytes
    root: bytes
    index: int
    count: int
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    posted: bool
    root_index: int
    object_name: str
    def __init__(self, receipt_digest: _Optional[bytes] = ..., chain_id: _Optional[int] = ..., ledger: _Optional[bytes] = ..., poster: _Optional[bytes] = ..., root: _Optional[bytes] = ..., index: _Optional[int] = ..., count: _Optional[int] = ..., proof: _Optional[_Iterable[bytes]] = ..., posted: bool = ..., root_index: _Optional[int] = ..., object_name: _Optional[str] = ...) -> None: ...
