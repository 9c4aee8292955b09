"""Settlement's payment service as gateways see it, without a chain: what it settles, when, and how it fails is the test's to say."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import grpc

from placet.core.gen import payment_pb2 as pb
from placet.core.gen import payment_pb2_grpc

Status = pb.PaymentStatus


class FakeSettlement(payment_pb2_grpc.PaymentServiceServicer):
    """`outcome`: what becomes of a payment when it comes."""

    def __init__(self) -> None:
        self.outcome = Status.STATE_SETTLED
        self.balance = 10**12
        self.given: dict[bytes, pb.SettlePaymentRequest] = {}
        self.settled: dict[bytes, Any] = {}
        self.refunded: dict[bytes, pb.RefundPaymentRequest] = {}
        self.asked = 0
        self.away = False
        self._server: Any = None

    async def start(self) -> str:
        """Serve; returns host:port."""
        self._server = grpc.aio.server()
        payment_pb2_grpc.add_PaymentServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        await self._server.stop(0)

    async def _there(self, context: Any) -> None:
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")

    def _status(self, payment_id: bytes) -> pb.PaymentStatus:
        state = self.settled.get(payment_id, Status.STATE_NOT_KNOWN)
        tx = hashlib.sha256(payment_id).digest() if state in (Status.STATE_SETTLED, Status.STATE_IN_HAND) else b""
        failure = "insufficient_funds" if state == Status.STATE_FAILED else ""
        return pb.PaymentStatus(payment_id=payment_id, state=state, tx_hash=tx, failure=failure)

    async def SettlePayment(self, request: pb.SettlePaymentRequest, context: Any) -> pb.SettlePaymentResponse:
        await self._there(context)
        self.given.setdefault(request.payment_id, request)
        self.settled.setdefault(request.payment_id, self.outcome)
        return pb.SettlePaymentResponse(payment=self._status(request.payment_id))

    async def GetPayments(self, request: pb.GetPaymentsRequest, context: Any) -> pb.GetPaymentsResponse:
        await self._there(context)
        return pb.GetPaymentsResponse(payments=[self._status(payment_id) for payment_id in request.payment_id])

    async def RefundPayment(self, request: pb.RefundPaymentRequest, context: Any) -> pb.RefundPaymentResponse:
        await self._there(context)
        self.refunded[request.payment_id] = request
        return pb.RefundPaymentResponse(refund=pb.PaymentStatus(payment_id=request.payment_id, state=Status.STATE_SETTLED))

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:
        await self._there(context)
        self.asked += 1
        return pb.GetBalanceResponse(balance=str(self.balance), permit2_allowance=str(self.balance), at=int(time.time()))
