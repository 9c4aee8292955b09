"""The REST surface `/api/v1` (RFC 9457 problem documents). Thin: parses, calls, renders."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from eth_abi import abi
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from placet.core import calls
from placet.core.bus import BusError
from placet.core.db import DATABASE_ERRORS
from placet.core.errors import Forbidden, Internal, InvalidInput, MethodNotAllowed, NotFound, PlacetError, Unavailable
from placet.core.evm.reader import ChainReader
from placet.core.evm.rpc import RpcError
from placet.core.types import UINT64_MAX, UINT256_MAX, address_from, hash_from, hex0x
from placet.gateway import requests as parsing
from placet.gateway.http import bounded_body, problem, reply
from placet.gateway.insight import Insight
from placet.gateway.intents import Intents
from placet.gateway.keys import Authenticator
from placet.gateway.openapi import openapi_document
from placet.gateway.policybook import PolicyBook
from placet.gateway.store import ApiKey
from placet.gateway.tracing import RequestSpans, note_outcome

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,3})(?:$|[,;\s])")
MAX_IDEMPOTENCY_KEY = 255


class Api:
    """The routes of `/api/v1`."""

    def __init__(
        self,
        *,
        intents: Intents,
        authenticator: Authenticator,
        policies: PolicyBook,
        chains: dict[int, ChainReader],
        answer_within_s: float,
        insight: Insight,
    ) -> None:
        self._insight = insight
        self._intents = intents
        self._auth = authenticator
        self._policies = policies
        self._chains = chains
        self._answer_within_s = answer_within_s

    def app(self, extra: list[Route] | None = None) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/api/v1/intents/prepare", self.guard(self.prepare), methods=["POST"]),
            Route("/api/v1/intents", self.guard(self.submit), methods=["POST"]),
            Route("/api/v1/tasks/{task_id}", self.guard(self.task), methods=["GET"]),
            Route("/api/v1/attestations/{task_id}", self.guard(self.attestation), methods=["GET"]),
            Route("/api/v1/simulate", self.guard(self.simulate), methods=["POST"]),
            Route("/api/v1/evidence/{digest}", self.guard(self.evidence), methods=["GET"]),
            Route("/api/v1/openapi.json", self.openapi, methods=["GET"]),
            Route("/api/v1/policies", self.guard(self.policies), methods=["GET"]),
            Route("/api/v1/policies", self.guard(self.announce), methods=["POST"]),
            Route("/api/v1/policies/{policy_id}", self.guard(self.policy), methods=["GET"]),
            Route("/api/v1/operators", self.guard(self.operators), methods=["GET"]),
            *(extra or []),
        ]
        handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _unexpected}
        return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(RequestSpans, routes=routes)])

    def guard(self, handler: Callable[[Request, ApiKey], Awaitable[Response]], *, prepaid: bool = False) -> Handler:
        """A handler that knows its caller, and whose errors are problem documents. `prepaid`: also for keys that anybody may buy."""

        async def guarded(request: Request) -> Response:
            try:
                key = await self._auth.authenticate(request.headers.get("authorization"), _announced_bytes(request))
                if key.prepaid and not prepaid:
                    raise Forbidden("a prepaid key calls models, and nothing else")
                return await handler(request, key)
            except PlacetError as error:
                return problem(error)
            except BusError as error:
                log.error("bus: %s", error)
                return problem(Unavailable("the message bus does not answer"))
            except RpcError as error:
                log.error("node: %s", error)
                return problem(Unavailable("the chain's node refuses; it may be behind"))
            except DATABASE_ERRORS as error:
                log.error("database: %s", error)
                return problem(Unavailable("the database does not answer"))

        return guarded

    async def prepare(self, request: Request, key: ApiKey) -> Response:
        """Typed data, an unused nonce and a default deadline for a call."""
        body = parsing.parse_body(await bounded_body(request))
        if not isinstance(body, dict) or not isinstance(body.get("call"), dict):
            raise InvalidInput("an object with policyClient and call wanted", field="/call")
        call = body["call"]
        client = address_from(body.get("policyClient", ""), field="/policyClient")
        chain_id = body.get("chainId", next(iter(self._chains)) if len(self._chains) == 1 else None)
        if not isinstance(chain_id, int) or not 0 <= chain_id <= UINT64_MAX:
            raise InvalidInput(f"which of the chains {sorted(self._chains)}?", field="/chainId")
        signature = call.get("functionSignature", "()")
        function = calls.parse_signature(signature if isinstance(signature, str) else "")
        prepared = {
            "sender": address_from(call.get("from", ""), field="/call/from"),
            "to": address_from(call.get("to", body.get("policyClient", "")), field="/call/to"),
            "value": parsing.uint(call.get("value", "0"), "/call/value", UINT256_MAX),
            "function_signature": signature,
            "data": _calldata(call, function),
        }
        return reply(await self._intents.prepare(chain_id, client, prepared, key))

    async def submit(self, request: Request, key: ApiKey) -> Response:
        """Submit an intent; 200 for allow and deny alike, 202 with `Prefer: respond-async`."""
        parsed = parsing.parse_intent_request(await bounded_body(request))
        name = request.headers.get("idempotency-key")
        if name is not None and not 1 <= len(name) <= MAX_IDEMPOTENCY_KEY:
            raise InvalidInput(f"Idempotency-Key: 1 to {MAX_IDEMPOTENCY_KEY} characters", field="Idempotency-Key")
        prefer = request.headers.get("prefer", "")
        wait_s = self._answer_within_s
        if "respond-async" in prefer:
            wait_s = 0.0
        elif match := _WAIT.search(prefer):
            wait_s = min(wait_s, float(match[1]))
        accepted = await self._intents.submit(parsed, key, name, wait_s)
        note_outcome(accepted.stage if accepted.answer is None else accepted.answer["decision"], hex0x(accepted.task_id))
        location = {"location": f"/api/v1/tasks/{hex0x(accepted.task_id)}"}
        if accepted.answer is None:
            return reply({"taskId": hex0x(accepted.task_id), "stage": accepted.stage}, 202, location)
        return reply(await self._insight.with_places(accepted.answer), 200, location)

    async def task(self, request: Request, key: ApiKey) -> Response:
        """A task with its stage, and its answer once there is one."""
        row = await self._intents.task(hash_from(request.path_params["task_id"], field="taskId"), key)
        content: dict[str, Any] = {"taskId": hex0x(row.task_id), "stage": row.stage, "createdAt": row.created_at}
        if row.result is not None:
            content["result"] = row.result
        if row.settlement is not None:
            content["settlement"] = row.settlement
        return reply(content)

    async def attestation(self, request: Request, key: ApiKey) -> Response:
        """The attestation of a task."""
        row = await self._intents.task(hash_from(request.path_params["task_id"], field="taskId"), key)
        if row.result is None or "attestation" not in row.result:
            raise NotFound("this task has no attestation", taskId=hex0x(row.task_id), stage=row.stage)
        return reply(row.result["attestation"])

    async def simulate(self, request: Request, key: ApiKey) -> Response:
        """What the client's policy, or the one named, would say of an intent; nothing is signed."""
        asked = parsing.parse_simulation(await bounded_body(request))
        self._intents.check_client(key, asked.policy_client)
        return reply(await self._insight.simulate(asked, key))

    async def evidence(self, request: Request, key: ApiKey) -> Response:
        """The evidence record behind a decision of this tenant."""
        digest = hash_from(request.path_params["digest"], field="evidence")
        return reply(await self._insight.evidence(digest, key))

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI 3.1 description of this surface."""
        return reply(openapi_document())

    async def policies(self, request: Request, key: ApiKey) -> Response:
        """Ids of the policies announced here."""
        return reply({"policies": [hex0x(policy_id) for policy_id in sorted(self._policies.known())]})

    async def announce(self, request: Request, key: ApiKey) -> Response:
        """Announce a policy whose bundle lies in the object store."""
        body = parsing.parse_body(await bounded_body(request))
        if not isinstance(body, dict):
            raise InvalidInput("an object wanted", field="body")
        policy_id = hash_from(body.get("policyId", ""), field="/policyId")
        bundle = hash_from(body.get("bundleSha256", ""), field="/bundleSha256")
        await self._policies.announce(policy_id, bundle, charge=lambda: self._auth.announcing(key))
        return reply({"policyId": hex0x(policy_id)}, 202, {"location": f"/api/v1/policies/{hex0x(policy_id)}"})

    async def policy(self, request: Request, key: ApiKey) -> Response:
        """A policy, and which operators have admitted it."""
        policy_id = hash_from(request.path_params["policy_id"], field="policyId")
        policy = (await self._policies.bundle(policy_id)).policy
        admissions: dict[str, Any] = {}
        for chain_id, reader in self._chains.items():
            block = await reader.latest_block()
            operators = (await reader.at(block.hash)).operators
            said = self._policies.admissions(policy_id, operators)
            admissions[str(chain_id)] = [
                {
                    "operator": hex0x(operator.address),
                    "stake": str(operator.stake),
                    "admitted": said[operator.address].admitted if operator.address in said else None,
                    "reason": said[operator.address].reason if operator.address in said else "nothing heard yet",
                }
                for operator in operators.operators
            ]
        return reply(
            {
                "policyId": hex0x(policy_id),
                "entrypoint": policy.entrypoint,
                "modules": [{"name": m.name, "source": m.source.decode("utf-8", "replace")} for m in policy.modules],
                "params": json.loads(policy.params),
                "ordering": policy.ordering.name.lower(),
                "validFor": policy.valid_for,
                "retryAfter": policy.retry_after,
                "policyDataIds": [hex0x(item) for item in policy.policy_data_ids],
                "calls": [{"target": "self" if c.to_self else hex0x(c.target), "functionSignature": c.signature} for c in policy.calls],
                "engineSha256": policy.engine_sha256.hex(),
                "admissions": admissions,
            }
        )

    async def operators(self, request: Request, key: ApiKey) -> Response:
        """The operators of every chain's current epoch."""
        content = {}
        for chain_id, reader in self._chains.items():
            block = await reader.latest_block()
            state = await reader.at(block.hash)
            content[str(chain_id)] = {
                "epoch": state.epoch,
                "totalStake": str(state.operators.total_stake),
                "operators": [
                    {
                        "operator": hex0x(operator.address),
                        "keyId": hex0x(operator.key_id),
                        "blsKey": hex0x(operator.bls_key),
                        "busKey": hex0x(operator.bus_key),
                        "stake": str(operator.stake),
                    }
                    for operator in state.operators.operators
                ],
            }
        return reply({"chains": content})


def _announced_bytes(request: Request) -> int:
    """How large a body is said to be; as large as it may be when it is not said."""
    if request.method in ("GET", "HEAD"):
        return 0
    announced = request.headers.get("content-length", "")
    return min(int(announced), parsing.MAX_BODY_BYTES) if announced.isdigit() and len(announced) < 12 else parsing.MAX_BODY_BYTES


def _calldata(call: dict[str, Any], function: calls.Function) -> bytes:
    """Calldata as given, or encoded from `arguments`."""
    if "data" in call:
        return parsing.hex_bytes(call["data"], "/call/data", 32 << 10)
    arguments = call.get("arguments", [])
    if not isinstance(arguments, list) or len(arguments) != len(function.types):
        raise InvalidInput(f"/call/arguments: {len(function.types)} wanted", field="/call/arguments")
    try:
        values = [_argument(kind, value) for kind, value in zip(function.type_names, arguments, strict=True)]
        return function.selector + abi.encode(list(function.type_names), values)
    except Exception as error:  # noqa: BLE001 - eth_abi raises many kinds for wrong values
        raise InvalidInput(f"/call/arguments: {type(error).__name__}: {error}"[:300], field="/call/arguments") from None


def _argument(kind: str, value: Any) -> Any:
    if isinstance(value, list):
        inner = kind[: kind.rindex("[")] if kind.endswith("]") else kind
        return [_argument(inner, item) for item in value]
    if kind.startswith(("uint", "int")) and isinstance(value, str):
        return int(value)
    if kind.startswith("bytes") and isinstance(value, str):
        return bytes.fromhex(value.removeprefix("0x"))
    return value


async def _http_error(request: Request, error: HTTPException) -> Response:
    kind: type[PlacetError] = {404: NotFound, 405: MethodNotAllowed}.get(error.status_code, InvalidInput)
    return problem(kind(str(error.detail)))


async def _unexpected(request: Request, error: Exception) -> Response:
    log.exception("unexpected error", exc_info=error)
    return problem(Internal("something went wrong here; it has been logged"))
