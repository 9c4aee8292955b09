"""Payments for gateways: what they verified is verified again, sent once, and its outcome is what the chain says.

An authorization may be executed by anybody who has seen it, so a transaction of ours that fails says nothing by itself: a payment is
settled when its nonce is used and the token moved exactly what was due from payer to payTo, in whichever transaction.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import orjson
from eth_abi import abi

from placet.core.db import DATABASE_ERRORS
from placet.core.errors import Internal, InvalidInput, PaymentRefused, PlacetError, Unavailable
from placet.core.evm.contracts import encode_call, selector, split_types
from placet.core.evm.rpc import RpcClient, RpcError, call_request
from placet.core.gen import payment_pb2 as pb
from placet.core.gen import payment_pb2_grpc
from placet.core.keccak import keccak256
from placet.core.payment.calls import EXACT_CALL, TRANSFER_CALL, UPTO_CALL, settlement_call
from placet.core.payment.eip712 import PERMIT2
from placet.core.payment.offers import Scheme, offer_of
from placet.core.payment.payload import parse_json
from placet.core.payment.verify import key_of, verify
from placet.core.rpc_errors import abort
from placet.core.types import Address, Hash32, hash_from, hex0x
from placet.settlement.store import Job, Store

log = logging.getLogger(__name__)

_MAX_OFFER_BYTES = 4096
_MAX_ASKED = 256
_MAX_MESSAGE_BYTES = 64 << 10
_REFUND_VALID_S = 30 * 86_400
_BACK = 5_000
"""Blocks in which somebody else's transaction is looked for: more than an authorization is valid for, on chains of two seconds."""
_KEPT = 65_536
_TRANSFER_EVENT = hex0x(keccak256(b"Transfer(address,address,uint256)"))
_USED_EVENT = hex0x(keccak256(b"AuthorizationUsed(address,bytes32)"))
_CODES = (("expired", "expired"), ("balance", "insufficient_funds"), ("allowance", "insufficient_allowance"), ("budget", "gas_budget"))
State = pb.PaymentStatus
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Move:
    """What a payment's call moves, read from its calldata."""

    token: Address
    payer: Address
    pay_to: Address
    amount: int
    nonce: bytes
    permit2: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """What is settled: tokens by chain, and the vaults that refunds in a token are credited in."""

    assets: frozenset[tuple[int, Address]]
    vaults: Mapping[tuple[int, Address], Address]


def move_of(target: Address, calldata: bytes) -> Move | None:
    """Of a payment's call; None: it is another's."""
    for signature in (TRANSFER_CALL, EXACT_CALL, UPTO_CALL):
        if calldata[:4] != selector(signature):
            continue
        values: Any = abi.decode(split_types(signature[signature.index("(") :]), calldata[4:])
        if signature == TRANSFER_CALL:
            payer, to, amount, _, _, nonce, _ = values
            return Move(target, _address(payer), _address(to), amount, nonce, permit2=False)
        ((token, permitted), nonce, _), *rest = values
        amount, payer, witness = (rest[0], rest[1], rest[2]) if signature == UPTO_CALL else (permitted, rest[0], rest[1])
        return Move(_address(token), _address(payer), _address(witness[0]), amount, nonce.to_bytes(32, "big"), permit2=True)
    return None


def refund_reference(payment_id: Hash32) -> Hash32:
    """The job that credits a payment's refund."""
    return Hash32(keccak256(b"placet/refund/v1\x00" + payment_id))


class PaymentServicer(payment_pb2_grpc.PaymentServiceServicer):
    """One replica; any may be asked."""

    def __init__(
        self,
        *,
        store: Store,
        chains: Mapping[int, RpcClient],
        confirmations: Mapping[int, int],
        sender: Address,
        terms: Terms,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._chains = chains
        self._confirmations = confirmations
        self._sender = sender
        self._terms = terms
        self._wake = wake
        self._clock = clock
        self._ended: OrderedDict[Hash32, pb.PaymentStatus] = OrderedDict()

    # --- the service

    async def SettlePayment(self, request: pb.SettlePaymentRequest, context: Any) -> pb.SettlePaymentResponse:
        return await _answer(context, self._settle(request))

    async def GetPayments(self, request: pb.GetPaymentsRequest, context: Any) -> pb.GetPaymentsResponse:
        return await _answer(context, self._get(request))

    async def RefundPayment(self, request: pb.RefundPaymentRequest, context: Any) -> pb.RefundPaymentResponse:
        return await _answer(context, self._refund(request))

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:
        return await _answer(context, self._balance(request))

    # --- payments

    async def _settle(self, request: pb.SettlePaymentRequest) -> pb.SettlePaymentResponse:
        """Raises InvalidInput, PaymentMalformed, PaymentRefused: it is no payment, or not that one."""
        payment_id = hash_from(request.payment_id, field="payment_id")
        known = await self._store.job(payment_id)
        if known is None:
            await self._store.add_job(self._job(payment_id, request))
            known = await self._store.job(payment_id)
            self._wake()
        assert known is not None
        return pb.SettlePaymentResponse(payment=await self._status(payment_id, known))

    def _job(self, payment_id: Hash32, request: pb.SettlePaymentRequest) -> Job:
        if len(request.offer) > _MAX_OFFER_BYTES:
            raise InvalidInput(f"offer: at most {_MAX_OFFER_BYTES} bytes", field="offer")
        try:
            offer = offer_of(orjson.loads(request.offer))
        except orjson.JSONDecodeError:
            raise InvalidInput("offer: not JSON", field="offer") from None
        payload = parse_json(request.authorization)
        key = key_of(payload)
        if key is None or key.id != payment_id:
            raise InvalidInput("payment_id: not the authorization's", field="payment_id")
        if (offer.chain_id, offer.asset) not in self._terms.assets or offer.chain_id not in self._chains:
            raise InvalidInput(f"offer: {hex0x(offer.asset)} on chain {offer.chain_id} is not settled here", field="offer")
        if offer.scheme is Scheme.UPTO and offer.facilitator != self._sender:
            raise InvalidInput(f"offer: `upto` is settled by its facilitator, and this is {hex0x(self._sender)}", field="offer")
        if not request.charged.isdigit() or len(request.charged) > 78:
            raise InvalidInput("charged: atomic units wanted", field="charged")
        now = int(self._clock())
        try:
            verified = verify(payload, [offer], now=now, needed_s=0)
        except PaymentRefused as refused:
            if refused.check != "valid_before":
                raise
            return self._new(payment_id, offer.chain_id, offer.asset, b"", hex0x(key.payer), 0, now, refused="expired before it came")
        try:
            target, calldata = settlement_call(verified, int(request.charged))
        except ValueError as error:
            raise InvalidInput(f"charged: {error}", field="charged") from None
        return self._new(payment_id, offer.chain_id, target, calldata, hex0x(key.payer), verified.valid_before, now)

    def _new(
        self, reference: Hash32, chain_id: int, target: Address, calldata: bytes, payer: str, until: int, now: int, refused: str = ""
    ) -> Job:
        # `announced` is the state already: gateways ask, and nobody else is told.
        state = "refused" if refused else "queued"
        trace = json.dumps({})
        return Job(reference, chain_id, target, calldata, 0, f"x402 {payer}", until, state, state, refused, b"", 0, 0, float(now), trace)

    async def _get(self, request: pb.GetPaymentsRequest) -> pb.GetPaymentsResponse:
        if len(request.payment_id) > _MAX_ASKED:
            raise InvalidInput(f"payment_id: at most {_MAX_ASKED} a call", field="payment_id")
        found = []
        for raw in request.payment_id:
            payment_id = hash_from(raw, field="payment_id")
            job = await self._store.job(payment_id)
            found.append(State(payment_id=payment_id, state=State.STATE_NOT_KNOWN) if job is None else await self._status(payment_id, job))
        return pb.GetPaymentsResponse(payments=found)

    async def _status(self, payment_id: Hash32, job: Job) -> pb.PaymentStatus:
        """Raises Unavailable: no node answers."""
        ended = self._ended.get(job.reference)
        if ended is not None:
            return ended
        if job.state not in ("confirmed", "reverted", "refused"):
            return State(payment_id=payment_id, state=State.STATE_IN_HAND, tx_hash=job.transaction_hash)
        move = move_of(job.target, job.calldata)
        if move is None:
            return self._failed(payment_id, job)
        tx_hash = await self._moved(job, move)
        if tx_hash is None:
            return self._failed(payment_id, job)
        status = State(payment_id=payment_id, state=State.STATE_SETTLED, tx_hash=tx_hash)
        self._keep(job.reference, status)
        return status

    def _failed(self, payment_id: Hash32, job: Job) -> pb.PaymentStatus:
        text = job.error.lower()
        code = next((code for word, code in _CODES if word in text), job.state)
        return State(payment_id=payment_id, state=State.STATE_FAILED, failure=code)

    def _keep(self, reference: Hash32, status: pb.PaymentStatus) -> None:
        self._ended[reference] = status
        while len(self._ended) > _KEPT:
            self._ended.popitem(last=False)

    async def _moved(self, job: Job, move: Move) -> bytes | None:
        """The final transaction in which the payment was executed, ours or another's."""
        rpc = self._chains[job.chain_id]
        try:
            if job.state == "confirmed" and job.transaction_hash and await self._holds(rpc, job, move, hex0x(job.transaction_hash)):
                return job.transaction_hash
            head = int(await rpc.call("eth_blockNumber", []), 16)
            topics = [_USED_EVENT, hex0x(bytes(12) + move.payer), hex0x(move.nonce)]
            if move.permit2:  # its nonce is in no event; what moved says who and how much
                topics = [_TRANSFER_EVENT, hex0x(bytes(12) + move.payer), hex0x(bytes(12) + move.pay_to)]
            wanted = {"address": hex0x(move.token), "topics": topics, "fromBlock": hex(max(0, head - _BACK)), "toBlock": hex(head)}
            for entry in await rpc.call("eth_getLogs", [wanted]):
                tx_hash = str(entry["transactionHash"])
                if move.permit2 and not await self._is_same_call(rpc, job, tx_hash):
                    continue
                if await self._holds(rpc, job, move, tx_hash):
                    return bytes.fromhex(tx_hash[2:])
        except (KeyError, TypeError, ValueError, RpcError) as error:
            raise Unavailable(f"the node says something odd: {type(error).__name__}") from None
        return None

    @staticmethod
    async def _is_same_call(rpc: RpcClient, job: Job, tx_hash: str) -> bool:
        """Whether a transaction is this payment's very call. Inside another contract's call it is not recognized: the payer could have
        used the permit's nonce for something else there."""
        sent = await rpc.call("eth_getTransactionByHash", [tx_hash])
        return sent is not None and str(sent["to"]).lower() == hex0x(job.target) and str(sent["input"]).lower() == hex0x(job.calldata)

    async def _holds(self, rpc: RpcClient, job: Job, move: Move, tx_hash: str) -> bool:
        """Whether a transaction is final, succeeded, and the token says that it moved exactly this."""
        receipt, head = await rpc.batch([("eth_getTransactionReceipt", [tx_hash]), ("eth_blockNumber", [])])
        if receipt is None or int(receipt["status"], 16) != 1:
            return False
        if int(head, 16) - int(receipt["blockNumber"], 16) + 1 < self._confirmations[job.chain_id]:
            return False
        topics = [_TRANSFER_EVENT, hex0x(bytes(12) + move.payer), hex0x(bytes(12) + move.pay_to)]
        return any(
            entry["address"].lower() == hex0x(move.token)
            and [topic.lower() for topic in entry["topics"]] == topics
            and int(entry["data"], 16) == move.amount
            for entry in receipt["logs"]
        )

    # --- refunds and balances

    async def _refund(self, request: pb.RefundPaymentRequest) -> pb.RefundPaymentResponse:
        """Only what was settled here, to who paid it, and no more than was paid."""
        payment_id = hash_from(request.payment_id, field="payment_id")
        asset = Address(request.asset)
        vault = self._terms.vaults.get((request.chain_id, asset))
        if vault is None:
            raise InvalidInput(f"asset: refunds of {hex0x(asset)} on chain {request.chain_id} have no vault here", field="asset")
        if not request.amount.isdigit() or len(request.amount) > 78 or not 0 < int(request.amount) < 2**96:
            raise InvalidInput("amount: more than 0 and less than 2^96 wanted", field="amount")
        reference = refund_reference(payment_id)
        job = await self._store.job(reference)
        if job is None:
            paid = await self._store.job(payment_id)
            status = None if paid is None else await self._status(payment_id, paid)
            move = None if paid is None else move_of(paid.target, paid.calldata)
            if paid is None or status is None or status.state != State.STATE_SETTLED or move is None:
                raise InvalidInput("payment_id: not settled here", field="payment_id")
            if (paid.chain_id, move.token, move.payer) != (request.chain_id, asset, Address(request.payer)):
                raise InvalidInput("payer: not who paid it, or another asset", field="payer")
            if int(request.amount) > move.amount:
                raise InvalidInput(f"amount: {move.amount} were paid", field="amount")
            calldata = encode_call("credit(bytes32,address,uint96)", payment_id, move.payer, int(request.amount))
            now = int(self._clock())
            await self._store.add_job(self._new(reference, paid.chain_id, vault, calldata, "refunds", now + _REFUND_VALID_S, now))
            self._wake()
            job = await self._store.job(reference)
        assert job is not None
        return pb.RefundPaymentResponse(refund=self._credited(payment_id, job))

    def _credited(self, payment_id: Hash32, job: Job) -> pb.PaymentStatus:
        if job.state == "confirmed":
            return State(payment_id=payment_id, state=State.STATE_SETTLED, tx_hash=job.transaction_hash)
        if job.state in ("reverted", "refused"):
            return self._failed(payment_id, job)
        return State(payment_id=payment_id, state=State.STATE_IN_HAND, tx_hash=job.transaction_hash)

    async def _balance(self, request: pb.GetBalanceRequest) -> pb.GetBalanceResponse:
        asset, payer = Address(request.asset), Address(request.payer)
        rpc = self._chains.get(request.chain_id)
        if rpc is None or (request.chain_id, asset) not in self._terms.assets or len(payer) != 20:
            raise InvalidInput("asset: not settled here", field="asset")
        now = int(self._clock())
        balance, allowance = await rpc.batch(
            [
                call_request(asset, encode_call("balanceOf(address)", payer)),
                call_request(asset, encode_call("allowance(address,address)", payer, PERMIT2)),
            ]
        )
        return pb.GetBalanceResponse(balance=str(int(balance, 16)), permit2_allowance=str(int(allowance, 16)), at=now)


async def _answer(context: Any, work: Awaitable[T]) -> T:
    try:
        return await work
    except PlacetError as error:
        await abort(context, error)
    except RpcError as error:
        await abort(context, Unavailable(f"node: {error.message}"))
    except DATABASE_ERRORS as error:
        log.error("database: %s", error)
        await abort(context, Unavailable("the database does not answer"))
    except (ValueError, TypeError, KeyError):
        log.exception("payments")
        await abort(context, Internal("something went wrong here; it has been logged"))
    raise AssertionError("abort returns never")


def make_server(servicer: PaymentServicer) -> grpc.aio.Server:
    """A server; the caller gives it a port and starts it."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)], maximum_concurrent_rpcs=512)
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    return server


def _address(text: str) -> Address:
    return Address(bytes.fromhex(text[2:]))
