"""JSON-RPC to an EVM node, with failover between the URLs of one chain.

Small on purpose (docs/decisions/0006-rpc-client.md): every read names a block, every answer is bounded, and "the node says no" is never
mixed up with "no node answers".
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import orjson

from placet.core.errors import InvalidInput, Unavailable
from placet.core.types import Address, Hash32, hex0x

MAX_RESPONSE_BYTES = 8 << 20
DEFAULT_TIMEOUT_S = 5.0
_COOL_DOWN_S = 3.0
_EVM_WORDS = (
    "revert",
    "invalid opcode",
    "bad instruction",
    "invalid jump",
    "bad jump",
    "out of gas",
    "gas required exceeds",
    "outofgas",
    "stack underflow",
    "stack overflow",
    "stack limit",
    "stackunderflow",
    "stackoverflow",
    "write protection",
    "statechangeduringstaticcall",
    "evm error",
)


class RpcError(Exception):
    """The node answered with an error: it will answer so again. `data` holds revert data, when there is any."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{message} (code {code})")
        self.code = code
        self.message = message
        self.data = data

    @property
    def revert_data(self) -> bytes | None:
        """ABI-encoded revert reason of a failed call."""
        data = self.data.get("data") if isinstance(self.data, dict) else self.data
        if isinstance(data, str) and data.startswith("0x"):
            try:
                return bytes.fromhex(data[2:])
            except ValueError:
                return None
        return None

    @property
    def is_of_the_call(self) -> bool:
        """Whether it is the EVM's word on the call, rather than the node's on itself or on the account (behind, overloaded, no funds)."""
        text = self.message.lower()
        return self.revert_data is not None or any(words in text for words in _EVM_WORDS)


@dataclass(frozen=True, slots=True)
class Block:
    """A block's header, as far as it is used. `timestamp` in unix seconds, `base_fee` in wei."""

    number: int
    hash: Hash32
    parent_hash: Hash32
    timestamp: int
    base_fee: int


@dataclass(frozen=True, slots=True)
class Log:
    """One event of a contract."""

    address: Address
    topics: tuple[Hash32, ...]
    data: bytes
    block_number: int
    block_hash: Hash32
    transaction_hash: Hash32
    log_index: int


def _address_of(url: str) -> str:
    """Host and port only: URLs often hold API keys, which must not reach logs."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


class RpcClient:
    """One chain's node, behind one or more URLs. Safe for use by many tasks of one event loop."""

    def __init__(self, urls: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        if not urls:
            raise InvalidInput("a chain needs at least one RPC URL", field="rpc")
        self._urls = list(urls)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(2.0, timeout_s))
        self._session: aiohttp.ClientSession | None = None
        self._ids = itertools.count(1)
        self._bad_until = dict.fromkeys(self._urls, 0.0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, json_serialize=lambda value: orjson.dumps(value).decode())
        return self._session

    async def _post(self, url: str, body: bytes) -> Any:
        async with self._http().post(url, data=body, headers={"content-type": "application/json"}) as answer:
            content = await answer.content.read(MAX_RESPONSE_BYTES + 1)
            while len(content) <= MAX_RESPONSE_BYTES and not answer.content.at_eof():
                content += await answer.content.read(MAX_RESPONSE_BYTES + 1 - len(content))
            if len(content) > MAX_RESPONSE_BYTES:
                raise aiohttp.ClientPayloadError(f"answer larger than {MAX_RESPONSE_BYTES} bytes")
            if answer.status >= 500 or answer.status == 429:
                raise aiohttp.ClientPayloadError(f"HTTP {answer.status}")
            return orjson.loads(content)

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        """One request, tried at each URL in turn.

        Raises:
            RpcError: a node answered with an error.
            Unavailable: no URL answered.
        """
        return (await self.batch([(method, params)]))[0]

    async def batch(self, requests: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Several requests in one HTTP call, results in order. Raises as `call`, for the first that failed."""
        results = await self.batch_settled(requests)
        for result in results:
            if isinstance(result, RpcError):
                raise result
        return results

    async def batch_settled(self, requests: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """As `batch`, with a node's errors returned in place of results.

        Raises:
            Unavailable: no URL answered, or the results together are more than MAX_RESPONSE_BYTES.
        """
        if not requests:
            return []
        calls = [{"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(params)} for method, params in requests]
        body = orjson.dumps(calls[0] if len(calls) == 1 else calls)
        now = asyncio.get_running_loop().time()
        failures = []
        for url in sorted(self._urls, key=lambda item: self._bad_until[item] > now):
            try:
                answers = await self._post(url, body)
                answers = answers if isinstance(answers, list) else [answers]
                by_id = {answer["id"]: answer for answer in answers}
                return [_result(by_id[call["id"]]) for call in calls]
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                self._bad_until[url] = now + _COOL_DOWN_S
                failures.append(f"{_address_of(url)}: {type(error).__name__}")
        raise Unavailable(f"no RPC node answers ({', '.join(failures)})")

    # Reads.

    async def chain_id(self) -> int:
        """The node's chain id."""
        return int(await self.call("eth_chainId", []), 16)

    async def block(self, which: str | int = "latest") -> Block:
        """A block by number or tag.

        Raises:
            RpcError: no such block.
        """
        return block_of(await self.call("eth_getBlockByNumber", [hex(which) if isinstance(which, int) else which, False]))

    async def block_by_hash(self, block_hash: Hash32) -> Block | None:
        """A block by hash; None when the node does not know it."""
        answer = await self.call("eth_getBlockByHash", [hex0x(block_hash), False])
        return None if answer is None else block_of(answer)

    async def eth_call(
        self, to: Address, data: bytes, *, block_hash: Hash32 | None = None, sender: Address | None = None, gas: int | None = None
    ) -> bytes:
        """A contract read, at a block by its hash (EIP-1898) or at the latest.

        Raises:
            RpcError: it reverted, or the block is unknown.
        """
        return _bytes(await self.call(*call_request(to, data, block_hash=block_hash, sender=sender, gas=gas)))

    async def logs(self, address: Address, from_block: int, to_block: int) -> list[Log]:
        """All events of a contract in a range of blocks."""
        query = {"address": hex0x(address), "fromBlock": hex(from_block), "toBlock": hex(to_block)}
        return [
            Log(
                address=Address(_bytes(item["address"])),
                topics=tuple(Hash32(_bytes(topic)) for topic in item["topics"]),
                data=_bytes(item["data"]),
                block_number=int(item["blockNumber"], 16),
                block_hash=Hash32(_bytes(item["blockHash"])),
                transaction_hash=Hash32(_bytes(item["transactionHash"])),
                log_index=int(item["logIndex"], 16),
            )
            for item in await self.call("eth_getLogs", [query])
        ]

    async def receipt(self, transaction_hash: Hash32) -> dict[str, Any] | None:
        """A transaction's receipt as the node gives it; None while it is not mined."""
        answer: dict[str, Any] | None = await self.call("eth_getTransactionReceipt", [hex0x(transaction_hash)])
        return answer


def call_request(
    to: Address, data: bytes, *, block_hash: Hash32 | None = None, sender: Address | None = None, value: int = 0, gas: int | None = None
) -> tuple[str, list[Any]]:
    """An eth_call as a request for `batch`. Without `gas` it may use what the node allows: contracts of strangers get a bound."""
    transaction: dict[str, Any] = {"to": hex0x(to), "data": hex0x(data)}
    if sender is not None:
        transaction["from"] = hex0x(sender)
    if value:
        transaction["value"] = hex(value)
    if gas is not None:
        transaction["gas"] = hex(gas)
    block: Any = "latest" if block_hash is None else {"blockHash": hex0x(block_hash)}
    return "eth_call", [transaction, block]


def _result(answer: dict[str, Any]) -> Any:
    if answer.get("error") is not None:
        error = answer["error"]
        return RpcError(int(error.get("code", 0)), str(error.get("message", ""))[:500], error.get("data"))
    return answer["result"]


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise Unavailable("the RPC node answered something that is not hex")
    return bytes.fromhex(value[2:])


def block_of(answer: Any) -> Block:
    """A header from a node's answer. Raises RpcError when there is none."""
    if answer is None:
        raise RpcError(-32001, "no such block")
    return Block(
        number=int(answer["number"], 16),
        hash=Hash32(_bytes(answer["hash"])),
        parent_hash=Hash32(_bytes(answer["parentHash"])),
        timestamp=int(answer["timestamp"], 16),
        base_fee=int(answer.get("baseFeePerGas") or "0x0", 16),
    )
