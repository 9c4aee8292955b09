"""From a request's JSON to domain types, with every bound. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from placet.core import jsonx, limits
from placet.core.calls import parse_signature
from placet.core.errors import InvalidInput, TooLarge
from placet.core.types import (
    UINT64_MAX,
    UINT256_MAX,
    Address,
    Attachment,
    Hash32,
    Intent,
    address_from,
    hash_from,
)

MAX_BODY_BYTES = 192 << 10
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,77})\Z")


@dataclass(frozen=True, slots=True)
class IntentRequest:
    """`POST /api/v1/intents`."""

    policy_client: Address
    intent: Intent
    signature: bytes
    args: bytes
    attachments: tuple[Attachment, ...]
    relay: bool


def _members(value: Any, field: str, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{field or 'body'}: an object wanted", field=field)
    missing, unknown = required - set(value), set(value) - required - optional
    if missing:
        raise InvalidInput(f"{field or 'body'}: {sorted(missing)[0]!r} is missing", field=f"{field}/{sorted(missing)[0]}")
    if unknown:
        raise InvalidInput(f"{field or 'body'}: {sorted(unknown)[0][:60]!r} is not known", field=f"{field}/{sorted(unknown)[0][:60]}")
    return value


def uint(value: Any, field: str, maximum: int) -> int:
    """A number from 0 to `maximum`, as a decimal string or a JSON integer. Raises InvalidInput."""
    if isinstance(value, str) and _DECIMAL.match(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise InvalidInput(f"{field}: a decimal string from 0 to {maximum} wanted", field=field)
    return value


def hex_bytes(value: Any, field: str, max_bytes: int) -> bytes:
    """Bytes from 0x hex. Raises InvalidInput or TooLarge."""
    if not isinstance(value, str) or not value.startswith("0x") or len(value) % 2:
        raise InvalidInput(f"{field}: 0x hex wanted", field=field)
    if len(value) > 2 + 2 * max_bytes:
        raise TooLarge(f"{field}: {len(value) // 2 - 1} bytes, at most {max_bytes}", field=field)
    try:
        raw = bytes.fromhex(value[2:])
    except ValueError:
        raise InvalidInput(f"{field}: 0x hex wanted", field=field) from None
    if 2 * len(raw) != len(value) - 2:  # fromhex passes over white space
        raise InvalidInput(f"{field}: 0x hex wanted", field=field)
    return raw


def _text(value: Any, field: str, max_bytes: int) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{field}: text wanted", field=field)
    if len(value.encode()) > max_bytes:
        raise TooLarge(f"{field}: at most {max_bytes} bytes", field=field)
    return value


def parse_intent(value: Any, field: str = "/intent") -> Intent:
    """An intent from its JSON form (amounts as decimal strings)."""
    names = {"from", "to", "value", "data", "chainId", "functionSignature", "nonce", "deadline"}
    item = _members(value, field, names, set())
    signature = _text(item["functionSignature"], f"{field}/functionSignature", limits.MAX_FUNCTION_SIGNATURE_BYTES)
    parse_signature(signature)
    return Intent(
        sender=address_from(item["from"], field=f"{field}/from"),
        to=address_from(item["to"], field=f"{field}/to"),
        value=uint(item["value"], f"{field}/value", UINT256_MAX),
        data=hex_bytes(item["data"], f"{field}/data", limits.MAX_INTENT_DATA_BYTES),
        chain_id=uint(item["chainId"], f"{field}/chainId", UINT64_MAX),
        function_signature=signature,
        nonce=uint(item["nonce"], f"{field}/nonce", UINT256_MAX),
        deadline=uint(item["deadline"], f"{field}/deadline", UINT64_MAX),
    )


def parse_body(raw: bytes) -> Any:
    """A request's JSON, bounded in size and depth."""
    return jsonx.parse(raw, field="body", max_bytes=MAX_BODY_BYTES, max_depth=limits.MAX_ARGS_DEPTH + 4)


def parse_args(value: Any) -> bytes:
    """Caller arguments: an object, kept as canonical JSON; nothing is empty."""
    if value is None:
        return b""
    if not isinstance(value, dict):
        raise InvalidInput("/args: an object wanted", field="/args")
    args = jsonx.canonical(value)
    if len(args) > limits.MAX_ARGS_BYTES:
        raise TooLarge(f"/args: {len(args)} bytes, at most {limits.MAX_ARGS_BYTES}", field="/args")
    return args


def parse_intent_request(raw: bytes) -> IntentRequest:
    """The body of `POST /api/v1/intents`."""
    body = _members(parse_body(raw), "", {"policyClient", "intent"}, {"signature", "args", "attachments", "submit"})
    submit = body.get("submit", "none")
    if submit not in ("none", "relay"):
        raise InvalidInput("/submit: none or relay wanted", field="/submit")
    signature = hex_bytes(body["signature"], "/signature", limits.MAX_INTENT_SIGNATURE_BYTES) if body.get("signature") else b""
    if submit == "relay" and not signature:
        raise InvalidInput("/signature: needed when somebody else submits", field="/signature")
    attachments = body.get("attachments", [])
    if not isinstance(attachments, list) or len(attachments) > limits.MAX_ATTACHMENTS:
        raise InvalidInput(f"/attachments: a list of at most {limits.MAX_ATTACHMENTS} wanted", field="/attachments")
    parsed = []
    for position, item in enumerate(attachments):
        field = f"/attachments/{position}"
        entry = _members(item, field, {"kind", "sha256", "uri"}, set())
        parsed.append(
            Attachment(
                _text(entry["kind"], f"{field}/kind", limits.MAX_ATTACHMENT_KIND_BYTES),
                hash_from(entry["sha256"], field=f"{field}/sha256"),
                _text(entry["uri"], f"{field}/uri", limits.MAX_ATTACHMENT_URI_BYTES),
            )
        )
    intent = parse_intent(body["intent"])
    if submit == "relay" and intent.value:
        raise InvalidInput("/intent/value: a relayed intent carries no value; its sender submits it", field="/intent/value")
    return IntentRequest(
        policy_client=address_from(body["policyClient"], field="/policyClient"),
        intent=intent,
        signature=signature,
        args=parse_args(body.get("args")),
        attachments=tuple(parsed),
        relay=submit == "relay",
    )


@dataclass(frozen=True, slots=True)
class SimulationRequest:
    """`POST /api/v1/simulate`. `policy_id` None: the client's own policy. `outputs` None: run the components."""

    policy_client: Address
    policy_id: Hash32 | None
    intent: Intent
    args: bytes
    outputs: list[Any] | None


def parse_simulation(raw: bytes) -> SimulationRequest:
    """The body of `POST /api/v1/simulate`."""
    body = _members(parse_body(raw), "", {"policyClient", "intent"}, {"policyId", "args", "data"})
    outputs = body.get("data")
    if outputs is not None and (not isinstance(outputs, list) or not all(isinstance(item, dict) for item in outputs)):
        raise InvalidInput("/data: a list of objects wanted, one a PolicyData", field="/data")
    return SimulationRequest(
        address_from(body["policyClient"], field="/policyClient"),
        hash_from(body["policyId"], field="/policyId") if "policyId" in body else None,
        parse_intent(body["intent"]),
        parse_args(body.get("args")),
        outputs,
    )
