"""The client of the gateway's REST interface. Small: every answer is the gateway's JSON, every failure a typed error."""

from __future__ import annotations

from collections.abc import AsyncIterable
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from placet.core.errors import ALL_ERRORS, Internal, NotFound, PlacetError, Unavailable

_LONG_S = 3600.0
"""Uploads, and checks of what was uploaded."""
_BY_CODE: dict[str, type[PlacetError]] = {kind.code: kind for kind in ALL_ERRORS}


class Client:
    """A connection to one gateway. Use as an async context manager."""

    def __init__(self, url: str, api_key: str, *, timeout_s: float = 40.0) -> None:
        self._url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}", "content-type": "application/json"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def url(self) -> str:
        """The gateway's."""
        return self._url

    async def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of a request.

        Raises:
            PlacetError: the gateway's problem, as the class its code names; `extra` holds its further members.
            Unavailable: the gateway does not answer.
        """
        data = None if body is None else orjson.dumps(body)
        status, content = await self._send(method, path, data, headers)
        return status, _json(content, status)

    async def raw(self, method: str, path: str, body: Any) -> bytes:
        """The very bytes of an answer. Raises as `request`."""
        return (await self._send(method, path, orjson.dumps(body), None, timeout_s=_LONG_S))[1]

    async def text(self, path: str, *, accept: str) -> str:
        """An answer as text of a kind, for instance text/csv. Raises as `request`."""
        return (await self._send("GET", path, None, {"accept": accept}))[1].decode()

    async def upload(self, path: str, chunks: AsyncIterable[bytes], size: int) -> Any:
        """PUT a stream of so many bytes; the answer's JSON. Raises as `request`."""
        headers = {"content-type": "application/octet-stream", "content-length": str(size)}
        status, content = await self._send("PUT", path, chunks, headers, timeout_s=_LONG_S)
        return _json(content, status)

    async def _send(
        self, method: str, path: str, data: Any, headers: dict[str, str] | None, *, timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        assert self._session is not None, "use `async with Client(…)`"
        timeout = self._timeout if timeout_s is None else aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, self._url + path, data=data, headers=headers, timeout=timeout) as answer:
                content = await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"the gateway does not answer ({type(error).__name__})") from None
        if status == 404 and not content:
            raise NotFound("no such thing")
        if status >= 400:
            raise problem_error(_json(content, status), status)
        return status, content

    async def prepare(self, policy_client: str, call: dict[str, Any], *, chain_id: int | None = None) -> dict[str, Any]:
        """`POST /api/v1/intents/prepare`: typed data, nonce, deadline."""
        body: dict[str, Any] = {"policyClient": policy_client, "call": call}
        if chain_id is not None:
            body["chainId"] = chain_id
        answer: dict[str, Any] = (await self.request("POST", "/api/v1/intents/prepare", body))[1]
        return answer

    async def submit(
        self,
        policy_client: str,
        intent: dict[str, Any],
        *,
        signature: str | None = None,
        args: dict[str, Any] | None = None,
        relay: bool = False,
        idempotency_key: str | None = None,
        respond_async: bool = False,
    ) -> dict[str, Any]:
        """`POST /api/v1/intents`: the signed decision (or, with `respond_async`, the task's id)."""
        body: dict[str, Any] = {"policyClient": policy_client, "intent": intent, "submit": "relay" if relay else "none"}
        if signature is not None:
            body["signature"] = signature
        if args is not None:
            body["args"] = args
        headers = {}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        if respond_async:
            headers["prefer"] = "respond-async"
        answer: dict[str, Any] = (await self.request("POST", "/api/v1/intents", body, headers))[1]
        return answer

    async def task(self, task_id: str) -> dict[str, Any]:
        """`GET /api/v1/tasks/{taskId}`."""
        answer: dict[str, Any] = (await self.request("GET", f"/api/v1/tasks/{task_id}"))[1]
        return answer

    async def announce_policy(self, policy_id: str, bundle_sha256: str) -> None:
        """`POST /api/v1/policies`."""
        await self.request("POST", "/api/v1/policies", {"policyId": policy_id, "bundleSha256": bundle_sha256})

    async def policy(self, policy_id: str) -> dict[str, Any]:
        """`GET /api/v1/policies/{policyId}`."""
        answer: dict[str, Any] = (await self.request("GET", f"/api/v1/policies/{policy_id}"))[1]
        return answer

    async def operators(self) -> dict[str, Any]:
        """`GET /api/v1/operators`."""
        answer: dict[str, Any] = (await self.request("GET", "/api/v1/operators"))[1]
        return answer


def _json(content: bytes, status: int) -> Any:
    try:
        return orjson.loads(content) if content else None
    except ValueError:
        raise Internal(f"the gateway answered {status} without JSON") from None


def problem_error(document: Any, status: int) -> PlacetError:
    """The typed error behind a problem document."""
    if not isinstance(document, dict):
        return Internal(f"the gateway answered {status}")
    known = {"type", "title", "status", "detail", "code", "retryable", "field"}
    extra = {name: value for name, value in document.items() if name not in known}
    kind = _BY_CODE.get(str(document.get("code")), Internal)
    return kind(str(document.get("detail", f"the gateway answered {status}")), field=document.get("field"), **extra)
