"""What became of a payment, from what the chain shows at a block that is final here, and from nothing else.

Paid is the token's Transfer from payer to payTo of exactly the charged amount, in the transaction that used the payer's nonce, whoever
sent it. A transaction's status says nothing: some tokens do not revert on a used nonce. Failed is what was not executed and never will be:
its nonce was used for something else, or it is over at a final block. Everything else is in hand, however long that takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from placet.core.errors import Unavailable
from placet.core.evm.contracts import encode_call
from placet.core.evm.rpc import Block, RpcClient, block_of, call_request
from placet.core.keccak import keccak256
from placet.core.payment.eip712 import PERMIT2
from placet.core.types import Hash32, hex0x
from placet.settlement.payments.store import Payment

TRANSFER = keccak256(b"Transfer(address,address,uint256)")
AUTHORIZATION_USED = keccak256(b"AuthorizationUsed(address,bytes32)")
AUTHORIZATION_CANCELED = keccak256(b"AuthorizationCanceled(address,bytes32)")
NONCE_INVALIDATED = keccak256(b"UnorderedNonceInvalidation(address,uint256,uint256)")

MAX_BLOCKS = 2000
"""Of one search for events; nodes refuse much wider ones."""
_A_BATCH = 64
_EVENT_ALONE = "the node knows an event and not its transaction"
DOUBT_S = 600
"""So long after a payment's end a node has to show what used its nonce. Until then that it shows nothing is taken for its own delay."""


class Failure:
    """Why a payment failed: stable codes."""

    AUTHORIZATION_USED = "authorization_used"
    """The payer cancelled it, or used its nonce for something else."""
    INSUFFICIENT_FUNDS = "insufficient_funds"
    INSUFFICIENT_ALLOWANCE = "insufficient_allowance"
    EXPIRED = "expired"


class Use(Enum):
    """What is known of a nonce that is used."""

    PAID = "paid"
    OTHERWISE = "otherwise"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Transfer:
    """The event that settles a payment."""

    tx_hash: Hash32
    log_index: int


@dataclass(frozen=True, slots=True)
class State:
    """A payment's nonce at a final block."""

    block: Block
    is_used: bool


def _topic(value: bytes) -> str:
    return hex0x(value.rjust(32, b"\0"))


def _word(value: Any) -> int:
    if not isinstance(value, str) or len(value) != 66:
        raise Unavailable("the node did not answer with one word: is the token deployed?")
    return int(value, 16)


class Look:
    """One look at one payment. `confirmations` make a block final. Raises Unavailable and RpcError: nothing can be said now."""

    def __init__(self, rpc: RpcClient, confirmations: int, payment: Payment) -> None:
        self._rpc = rpc
        self._confirmations = confirmations
        self._payment = payment

    async def state(self) -> State | None:
        """The nonce at the newest final block; None while no block is final. Block and answer are one node's."""
        head = int(await self._rpc.call("eth_blockNumber", []), 16)
        number = head + 1 - self._confirmations
        if number < 0:
            return None
        payment = self._payment
        if payment.is_permit2:
            nonce = int.from_bytes(payment.nonce, "big")
            call = encode_call("nonceBitmap(address,uint256)", payment.payer, nonce >> 8)
            bit = 1 << (nonce & 0xFF)
        else:
            call = encode_call("authorizationState(address,bytes32)", payment.payer, payment.nonce)
            bit = 1
        method, (transaction, _) = call_request(payment.contract, call)
        block, answer = await self._rpc.batch([("eth_getBlockByNumber", [hex(number), False]), (method, [transaction, hex(number)])])
        return State(block_of(block), bool(_word(answer) & bit))

    async def why_not(self, block: Block) -> str:
        """Why a payment that ended was not executed, as far as the payer's funds show it."""
        payment = self._payment
        reads = [(payment.asset, encode_call("balanceOf(address)", payment.payer), Failure.INSUFFICIENT_FUNDS)]
        if payment.is_permit2:
            allowance = encode_call("allowance(address,address)", payment.payer, PERMIT2)
            reads.append((payment.asset, allowance, Failure.INSUFFICIENT_ALLOWANCE))
        answers = await self._rpc.batch([call_request(to, data, block_hash=block.hash) for to, data, _ in reads])
        for (_, _, failure), answer in zip(reads, answers, strict=True):
            if _word(answer) < payment.charged:
                return failure
        return Failure.EXPIRED

    async def transfers(self, final: Block, own: Sequence[Hash32]) -> tuple[Use, list[Transfer]]:
        """What used the nonce: the Transfers that pay it, those of our own transactions first."""
        found: list[Transfer] = []
        for digest in own:
            receipt = await self._rpc.receipt(digest)
            found += self._paid_by(receipt, final, is_own=True)
        if found:
            return Use.PAID, found
        is_shown = final.timestamp > self._payment.valid_before + DOUBT_S
        last = final.number
        while True:
            first = max(0, last - MAX_BLOCKS + 1)
            events, start = await self._events(final, first, last)
            is_shown = is_shown or any(event["topics"][0] != hex0x(TRANSFER) for event in events)
            moving = [event for event in events if event["topics"][0] in (hex0x(TRANSFER), hex0x(AUTHORIZATION_USED))]
            for theirs in await self._using([event["transactionHash"] for event in moving]):
                found += self._paid_by(await self._known_receipt(theirs), final, is_own=False)
            if found:
                return Use.PAID, found
            if first == 0 or start.timestamp < self._payment.signed_after:
                return (Use.OTHERWISE if is_shown else Use.UNCLEAR), []
            last = first - 1

    async def _events(self, final: Block, first: int, last: int) -> tuple[list[dict[str, Any]], Block]:
        """Events that tell of the nonce, newest first, and the range's first block. All of one node, which has the final block too."""
        payment = self._payment
        bounds = {"fromBlock": hex(first), "toBlock": hex(last)}
        if payment.is_permit2:
            nonce = int.from_bytes(payment.nonce, "big")
            queries: list[dict[str, Any]] = [
                {"address": hex0x(payment.asset), "topics": [hex0x(TRANSFER), _topic(payment.payer), _topic(payment.pay_to)]},
                {"address": hex0x(PERMIT2), "topics": [hex0x(NONCE_INVALIDATED), _topic(payment.payer)]},
            ]
        else:
            kinds = [hex0x(AUTHORIZATION_USED), hex0x(AUTHORIZATION_CANCELED)]
            queries = [{"address": hex0x(payment.asset), "topics": [kinds, _topic(payment.payer), hex0x(payment.nonce)]}]
        answers = await self._rpc.batch(
            [
                ("eth_getBlockByNumber", [hex(final.number), False]),
                ("eth_getBlockByNumber", [hex(first), False]),
                *(("eth_getLogs", [query | bounds]) for query in queries),
            ]
        )
        if block_of(answers[0]).hash != final.hash:
            raise Unavailable("another node answers than before")
        events: list[dict[str, Any]] = [event for answer in answers[2:] for event in answer]
        if payment.is_permit2:
            events = [event for event in events if _tells(event, payment, nonce)]
        events.sort(key=lambda event: (int(event["blockNumber"], 16), int(event["logIndex"], 16)), reverse=True)
        return events, block_of(answers[1])

    async def _using(self, digests: Sequence[str]) -> list[str]:
        """Those of these transactions that can have used the nonce. Permit2 tells nobody which nonce it took, and a payer may pay the same
        amount often: only what carries this very signature."""
        distinct = list(dict.fromkeys(digests))
        if not self._payment.is_permit2:
            return distinct
        mark, out = self._payment.signature[:64].hex(), []
        for start in range(0, len(distinct), _A_BATCH):
            part = distinct[start : start + _A_BATCH]
            transactions = await self._rpc.batch([("eth_getTransactionByHash", [digest]) for digest in part])
            if any(transaction is None for transaction in transactions):
                raise Unavailable(_EVENT_ALONE)
            out += [digest for digest, item in zip(part, transactions, strict=True) if mark in str(item["input"]).lower()]
        return out

    async def _known_receipt(self, digest: str) -> dict[str, Any]:
        receipt = await self._rpc.receipt(Hash32(bytes.fromhex(digest[2:])))
        if receipt is None:
            raise Unavailable(_EVENT_ALONE)
        return receipt

    def _paid_by(self, receipt: dict[str, Any] | None, final: Block, *, is_own: bool) -> list[Transfer]:
        """The Transfers that pay this payment in a receipt. Where several authorizations are used, what follows this one's use counts."""
        payment = self._payment
        if receipt is None or int(receipt["blockNumber"], 16) > final.number:
            return []
        logs = [log for log in receipt["logs"] if log["address"].lower() == hex0x(payment.asset) and log["topics"]]
        logs.sort(key=lambda log: int(log["logIndex"], 16))
        uses = [log["topics"][1:] for log in logs if log["topics"][0] == hex0x(AUTHORIZATION_USED)]
        is_alone = is_own or payment.is_permit2 or len(uses) == 1
        counts, found = is_alone, []
        for log in logs:
            if log["topics"][0] == hex0x(AUTHORIZATION_USED):
                counts = is_alone or log["topics"][1:] == [_topic(payment.payer), hex0x(payment.nonce)]
            elif counts and log["topics"] == [hex0x(TRANSFER), _topic(payment.payer), _topic(payment.pay_to)] and _is_amount(log, payment):
                found.append(Transfer(Hash32(bytes.fromhex(receipt["transactionHash"][2:])), int(log["logIndex"], 16)))
        return found


def _is_amount(log: dict[str, Any], payment: Payment) -> bool:
    return len(log["data"]) == 66 and int(log["data"], 16) == payment.charged


def _tells(event: dict[str, Any], payment: Payment, nonce: int) -> bool:
    """Whether an event may be this payment's: a transfer of its amount, or that its very nonce was given up."""
    if event["topics"][0] == hex0x(TRANSFER):
        return _is_amount(event, payment)
    data = bytes.fromhex(event["data"][2:])
    if len(data) != 64:
        return False
    word, mask = int.from_bytes(data[:32], "big"), int.from_bytes(data[32:], "big")
    return word == nonce >> 8 and bool(mask & 1 << (nonce & 0xFF))
