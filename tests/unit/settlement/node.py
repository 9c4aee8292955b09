"""A node with one token that pays by EIP-3009, in memory: it can be told to lie, to lag, and to hold a token of bad manners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eth_abi import abi
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes

from placet.core.errors import Unavailable
from placet.core.evm.contracts import selector
from placet.core.evm.rpc import Block, RpcError, block_of
from placet.core.keccak import keccak256
from placet.core.types import Address, Hash32, hex0x
from placet.settlement.payments.outcome import AUTHORIZATION_CANCELED, AUTHORIZATION_USED, TRANSFER
from tests.support.payment import NOW, TOKEN

_TRANSFER = selector("transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)")
_TYPES = ["address", "address", "uint256", "uint256", "uint256", "bytes32", "bytes"]
_REVERTED = RpcError(3, "execution reverted", "0x")


def _topic(value: bytes) -> str:
    return hex0x(value.rjust(32, b"\0"))


@dataclass
class Node:
    """Mines when it is told to. What is asked of it at a block is answered as it stood then."""

    reverts_on_used_nonce: bool = True
    events_are_hidden: bool = False
    receipts_are_hidden: bool = False
    status_of_receipts: int | None = None
    away: set[str] = field(default_factory=set)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    pool: dict[str, tuple[bytes, bytes, int]] = field(default_factory=dict)
    balances: dict[bytes, int] = field(default_factory=dict)
    used: dict[tuple[bytes, bytes], int] = field(default_factory=dict)
    counts: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict)
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    sender: str = ""

    def __post_init__(self) -> None:
        self.mine(timestamp=NOW - 3600)
        self.mine(timestamp=NOW)

    @property
    def number(self) -> int:
        return len(self.blocks) - 1

    @property
    def timestamp(self) -> int:
        return int(self.blocks[-1]["timestamp"], 16)

    @property
    def transfers(self) -> list[dict[str, Any]]:
        return [log for receipt in self.receipts.values() for log in receipt["logs"] if log["topics"][0] == hex0x(TRANSFER)]

    # --- the chain

    def mine(self, blocks: int = 1, *, seconds: int = 1, timestamp: int | None = None) -> None:
        for _ in range(blocks):
            number = len(self.blocks)
            time = self.timestamp + seconds if timestamp is None else timestamp
            digest = hex0x(keccak256(number.to_bytes(8, "big")))
            block = {"number": hex(number), "hash": digest, "parentHash": digest, "timestamp": hex(time), "baseFeePerGas": "0x1"}
            self.blocks.append(block)
            for key, (account, data, nonce) in list(self.pool.items()):
                if nonce == self._count(account, number):
                    del self.pool[key]
                    self.counts.setdefault(account, []).append((number, nonce + 1))
                    self._execute(key, [data] if data else [])

    def stranger(self, *calls: bytes) -> Hash32:
        """Somebody executes authorizations, in one transaction in a block of its own."""
        digest = keccak256(b"stranger" + b"".join(calls) + bytes([self.number]))
        self.mine()
        self._execute(hex0x(digest), list(calls))
        return Hash32(digest)

    def cancel(self, payer: Address, nonce: bytes) -> None:
        self.mine()
        self.used[payer, nonce] = self.number
        self._receipt(
            hex0x(keccak256(b"cancel" + nonce)), 1, [self._log([hex0x(AUTHORIZATION_CANCELED), _topic(payer), hex0x(nonce)], b"")]
        )

    def _execute(self, key: str, calls: list[bytes]) -> None:
        logs: list[dict[str, Any]] = []
        status = 1
        for data in calls:
            payer, to, value, nonce, problem = self._read(data)
            if problem:
                status = 0
            elif (payer, nonce) not in self.used:
                self.used[payer, nonce] = self.number
                self.balances[payer] -= value
                logs.append(self._log([hex0x(AUTHORIZATION_USED), _topic(payer), hex0x(nonce)], b""))
                logs.append(self._log([hex0x(TRANSFER), _topic(payer), _topic(to)], value.to_bytes(32, "big")))
        self.inputs[key] = hex0x(b"".join(calls))
        self._receipt(key, status, logs if status else [])

    def _read(self, data: bytes) -> tuple[bytes, bytes, int, bytes, bool]:
        assert data[:4] == _TRANSFER
        payer, to, value, _, before, nonce, _ = abi.decode(_TYPES, data[4:])
        account = bytes.fromhex(payer[2:])
        is_used = (account, nonce) in self.used
        problem = self.timestamp >= before or (is_used and self.reverts_on_used_nonce)
        problem = problem or (not is_used and self.balances.get(account, 0) < value)
        return account, bytes.fromhex(to[2:]), value, nonce, problem

    def _log(self, topics: list[str], data: bytes) -> dict[str, Any]:
        return {"address": hex0x(TOKEN), "topics": topics, "data": hex0x(data)}

    def _receipt(self, key: str, status: int, logs: list[dict[str, Any]]) -> None:
        number = hex(self.number)
        for index, log in enumerate(logs):
            log |= {"blockNumber": number, "transactionHash": key, "logIndex": hex(index)}
        self.receipts[key] = {"transactionHash": key, "blockNumber": number, "gasUsed": hex(60_000), "status": hex(status), "logs": logs}

    def _count(self, account: bytes, at: int) -> int:
        return max((count for number, count in self.counts.get(account, []) if number <= at), default=0)

    # --- what is asked

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        if method in self.away or "everything" in self.away:
            raise Unavailable("no RPC node answers")
        return getattr(self, method)(*params)

    async def batch(self, requests: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        return [await self.call(method, params) for method, params in requests]

    async def batch_settled(self, requests: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        out: list[Any] = []
        for method, params in requests:
            try:
                out.append(await self.call(method, params))
            except RpcError as error:
                out.append(error)
        return out

    async def block(self, which: str | int = "latest") -> Block:
        return block_of(await self.call("eth_getBlockByNumber", [which, False]))

    async def receipt(self, transaction_hash: Hash32) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self.call("eth_getTransactionReceipt", [hex0x(transaction_hash)])
        return found

    def eth_blockNumber(self) -> str:
        return hex(self.number)

    def _at(self, which: Any) -> int:
        if isinstance(which, dict):
            return next(number for number, block in enumerate(self.blocks) if block["hash"] == which["blockHash"])
        return self.number if which == "latest" else int(which, 16)

    def eth_getBlockByNumber(self, which: Any, _: bool) -> Any:
        number = self._at(which)
        return self.blocks[number] if number <= self.number else None

    def eth_getTransactionCount(self, account: str, which: Any) -> str:
        return hex(self._count(bytes.fromhex(account[2:]), self._at(which)))

    def eth_call(self, transaction: dict[str, Any], which: Any) -> str:
        data = bytes.fromhex(transaction["data"][2:])
        if data[:4] == selector("authorizationState(address,bytes32)"):
            at = self.used.get((data[16:36], data[36:68]))
            return hex0x(int(at is not None and at <= self._at(which)).to_bytes(32, "big"))
        if data[:4] == selector("balanceOf(address)"):
            return hex0x(self.balances.get(data[16:36], 0).to_bytes(32, "big"))
        if self._read(data)[-1]:
            raise _REVERTED
        return "0x"

    def eth_getBalance(self, account: str, _: Any) -> str:
        return hex(3 * 10**18)

    def eth_estimateGas(self, transaction: dict[str, Any]) -> str:
        self.eth_call(transaction, "latest")
        return hex(60_000)

    def eth_sendRawTransaction(self, raw: str) -> str:
        decoded = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        digest = hex0x(keccak256(bytes.fromhex(raw[2:])))
        account = bytes.fromhex(self.sender[2:])
        self.sent.append(digest)
        if digest not in self.receipts:
            self.pool = {key: entry for key, entry in self.pool.items() if entry[2] != decoded["nonce"]}
            self.pool[digest] = (account, bytes(decoded["data"]), decoded["nonce"])
        return digest

    def eth_getTransactionReceipt(self, digest: str) -> Any:
        found = None if self.receipts_are_hidden else self.receipts.get(digest)
        return found if found is None or self.status_of_receipts is None else found | {"status": hex(self.status_of_receipts)}

    def eth_getTransactionByHash(self, digest: str) -> Any:
        return {"input": self.inputs[digest]} if digest in self.inputs else None

    def eth_getLogs(self, query: dict[str, Any]) -> list[Any]:
        first, last = int(query["fromBlock"], 16), int(query["toBlock"], 16)
        wanted = query["topics"]

        def fits(log: dict[str, Any]) -> bool:
            pairs = zip(wanted, log["topics"], strict=False)
            return all(topic in want if isinstance(want, list) else topic == want for want, topic in pairs)

        logs = [log for receipt in self.receipts.values() for log in receipt["logs"]]
        return [] if self.events_are_hidden else [log for log in logs if first <= int(log["blockNumber"], 16) <= last and fits(log)]
