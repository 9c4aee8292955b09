"""Reading chain state at one block, for components: `eth_call`, balance and code by block *hash* (EIP-1898)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from placet.sandbox.fetch import Fetcher, FetchError, FetchPolicy, HttpRequest

ChainFunction = Literal["call", "get-balance", "get-code"]

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_HEX = re.compile(r"0x([0-9a-fA-F]{2})*")
MAX_CALLDATA_CHARS = 64 << 10


class ChainRefused(Exception):
    """The chain's own answer is an error: the call reverts, or its form is wrong. Every node says so."""


class ChainUnavailable(Exception):
    """No node gave an answer."""


@dataclass(frozen=True, slots=True)
class ChainEndpoint:
    """Nodes to ask in order, and the block: its 32-byte hash as 0x hex."""

    urls: tuple[str, ...]
    block_hash: str
    timeout_s: float = 3.0

    def read(self, function: ChainFunction, address: str, data: str = "0x") -> str:
        """`call`: return data as 0x hex. `get-balance`: wei as a decimal string. `get-code`: code as 0x hex.

        Raises `ChainRefused` (same on every machine) or `ChainUnavailable`.
        """
        if not _ADDRESS.fullmatch(address):
            raise ChainRefused("not an address")
        if len(data) > MAX_CALLDATA_CHARS or not _HEX.fullmatch(data):
            raise ChainRefused("data is not hex")
        block = {"blockHash": self.block_hash, "requireCanonical": False}
        match function:
            case "call":
                return _hex(self._ask("eth_call", [{"to": address, "data": data}, block]))
            case "get-balance":
                return str(int(_hex(self._ask("eth_getBalance", [address, block]), quantity=True), 16))
            case "get-code":
                return _hex(self._ask("eth_getCode", [address, block]))

    def _ask(self, method: str, params: Sequence[Any]) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        last = "no node is configured"
        for url in self.urls:
            try:
                answer = _post(url, body, self.timeout_s)
            except (FetchError, ValueError) as failure:
                last = str(failure)
                continue
            if not isinstance(answer, dict):
                last = "not a JSON-RPC answer"
                continue
            error = answer.get("error")
            if error is None:
                return answer.get("result")
            if _is_revert(error):
                raise ChainRefused(str(error.get("message", "execution reverted"))[:200])
            last = str(error.get("message", "error"))[:200] if isinstance(error, dict) else "error"
        raise ChainUnavailable(f"{method}: {last}")


def _post(url: str, body: bytes, timeout_s: float) -> Any:
    parts = urlsplit(url)
    host = str(parts.hostname) + (f":{parts.port}" if parts.port else "")
    # The operator's own node: may be private, may be plain HTTP.
    policy = FetchPolicy((host.lower(),), allow_http=True, allow_private=True, total_timeout_s=timeout_s, max_response_bytes=4 << 20)
    response = Fetcher(policy).fetch(HttpRequest("POST", url, (("content-type", "application/json"),), body))
    if response.status != 200:
        raise ValueError(f"HTTP {response.status}")
    return json.loads(response.body)


def _is_revert(error: Any) -> bool:
    """Geth and most nodes: code 3; others say it in words. Anything else may be this node's own trouble."""
    return isinstance(error, dict) and (error.get("code") == 3 or "revert" in str(error.get("message", "")).lower())


def _hex(value: Any, *, quantity: bool = False) -> str:
    pattern = re.compile(r"0x[0-9a-fA-F]{1,64}") if quantity else _HEX
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ChainUnavailable("a node answered something that is not hex")
    return value
