"""gRPC: payment.proto's service over the book. Inside a cluster only: who reaches it may have settled what payers signed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from placet.core.db import DATABASE_ERRORS
from placet.core.errors import InvalidInput, PlacetError, Unavailable
from placet.core.gen import payment_pb2 as pb
from placet.core.gen import payment_pb2_grpc
from placet.core.payment.reading import decimal
from placet.core.rpc_errors import abort
from placet.core.types import Address, Hash32
from placet.settlement.payments.balances import Balances
from placet.settlement.payments.book import PaymentBook, Status
from placet.settlement.payments.store import FAILED, IN_HAND, SETTLED
from placet.settlement.receipts.inclusion import Inclusion

MAX_MESSAGE_BYTES = 1 << 20
_STATES = {
    None: pb.PaymentStatus.STATE_NOT_KNOWN,
    IN_HAND: pb.PaymentStatus.STATE_IN_HAND,
    SETTLED: pb.PaymentStatus.STATE_SETTLED,
    FAILED: pb.PaymentStatus.STATE_FAILED,
}
T = TypeVar("T")
Context = Any
FindInclusion = Callable[[Hash32], Awaitable[Inclusion]]


async def _answered(context: Context, work: Awaitable[T]) -> T:
    """What `work` gives, or its error as the call's status."""
    try:
        return await work
    except PlacetError as error:
        await abort(context, error)
    except DATABASE_ERRORS as error:
        await abort(context, Unavailable(f"settlement's database: {type(error).__name__}"))
    raise AssertionError  # abort raises


class PaymentServicer(payment_pb2_grpc.PaymentServiceServicer):
    """Without a book (`book` None) only inclusion is served."""

    def __init__(self, book: PaymentBook | None, balances: Balances | None, inclusion: FindInclusion | None) -> None:
        self._book = book
        self._balances = balances
        self._inclusion = inclusion

    async def SettlePayment(self, request: pb.SettlePaymentRequest, context: Context) -> pb.SettlePaymentResponse:  # noqa: N802
        """Take a payment into the outbox."""

        async def settle() -> pb.SettlePaymentResponse:
            payment_id, charged = _id(request.payment_id), decimal(request.charged, "charged")
            status = await _there(self._book).settle(payment_id, request.authorization, request.offer, charged)
            return pb.SettlePaymentResponse(payment=_message(status))

        return await _answered(context, settle())

    async def GetPayments(self, request: pb.GetPaymentsRequest, context: Context) -> pb.GetPaymentsResponse:  # noqa: N802
        """What is known of payments."""

        async def look() -> pb.GetPaymentsResponse:
            found = await _there(self._book).statuses([_id(payment_id) for payment_id in request.payment_id])
            return pb.GetPaymentsResponse(payments=[_message(status) for status in found])

        return await _answered(context, look())

    async def RefundPayment(self, request: pb.RefundPaymentRequest, context: Context) -> pb.RefundPaymentResponse:  # noqa: N802
        """Credit a payment in the vault."""

        async def refund() -> pb.RefundPaymentResponse:
            payer, asset = _address(request.payer, "payer"), _address(request.asset, "asset")
            amount = decimal(request.amount, "amount")
            status = await _there(self._book).refund(_id(request.payment_id), payer, request.chain_id, asset, amount)
            return pb.RefundPaymentResponse(refund=_message(status))

        return await _answered(context, refund())

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> pb.GetBalanceResponse:  # noqa: N802
        """What a payer has."""

        async def look() -> pb.GetBalanceResponse:
            asset, payer = _address(request.asset, "asset"), _address(request.payer, "payer")
            found = await _there(self._balances).of(request.chain_id, asset, payer)
            return pb.GetBalanceResponse(balance=str(found.balance), permit2_allowance=str(found.permit2_allowance), at=found.at)

        return await _answered(context, look())

    async def GetInclusion(self, request: pb.GetInclusionRequest, context: Context) -> pb.GetInclusionResponse:  # noqa: N802
        """Under which root a receipt stands."""

        async def look() -> pb.GetInclusionResponse:
            found = await _there(self._inclusion)(_hash(request.receipt_id, "receiptId"))
            return pb.GetInclusionResponse(
                receipt_digest=found.digest,
                chain_id=found.chain_id,
                ledger=found.ledger,
                poster=found.poster,
                root=found.root,
                index=found.index,
                count=found.count,
                proof=found.proof,
                posted=found.root_index is not None,
                root_index=found.root_index or 0,
                object_name=found.object_name,
            )

        return await _answered(context, look())


def make_server(servicer: PaymentServicer) -> grpc.aio.Server:
    """A server; the caller gives it a port and starts it."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ],
        maximum_concurrent_rpcs=2048,
    )
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    return server


def _there(part: T | None) -> T:
    if part is None:
        raise Unavailable("this settlement is not set up for that")
    return part


def _message(status: Status) -> pb.PaymentStatus:
    return pb.PaymentStatus(payment_id=status.payment_id, state=_STATES[status.state], tx_hash=status.tx_hash, failure=status.failure)


def _hash(value: bytes, field: str) -> Hash32:
    if len(value) != 32:
        raise InvalidInput(f"{field}: 32 bytes wanted", field=field)
    return Hash32(value)


def _id(value: bytes) -> Hash32:
    return _hash(value, "paymentId")


def _address(value: bytes, field: str) -> Address:
    if len(value) != 20:
        raise InvalidInput(f"{field}: 20 bytes wanted", field=field)
    return Address(value)
