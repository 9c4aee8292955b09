"""The OpenAPI 3.1 description of `/api/v1`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from placet.core.errors import ALL_ERRORS

_HEX32 = {"type": "string", "pattern": "^0x[0-9a-f]{64}$"}
_ADDRESS = {"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$"}
_AMOUNT = {"type": "string", "pattern": "^(0|[1-9][0-9]{0,77})$"}
_HEX = {"type": "string", "pattern": "^0x([0-9a-fA-F]{2})*$"}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, **_json(schema)}


def _schemas() -> dict[str, Any]:
    intent_members = {
        "from": _ADDRESS,
        "to": _ADDRESS,
        "value": _AMOUNT,
        "data": _HEX,
        "chainId": {"type": "integer"},
        "functionSignature": {"type": "string", "maxLength": 512},
        "nonce": _AMOUNT,
        "deadline": {"type": "integer", "description": "unix seconds"},
    }
    reason = _object(["message"], message={"type": "string"}, rule={"type": "string"}, file={"type": "string"}, line={"type": "integer"})
    attestation = _object(
        ["chainId", "validator", "leaf", "index", "proof", "certificate", "signers", "aggregateSignature", "quorumProof", "salt"],
        chainId={"type": "integer"},
        validator=_ADDRESS,
        leaf={"type": "object"},
        index={"type": "integer"},
        proof={"type": "array", "items": _HEX32},
        certificate={"type": "object"},
        signers=_HEX,
        aggregateSignature=_HEX,
        quorumProof=_HEX,
        salt=_HEX32,
    )
    return {
        "Intent": {**_object(list(intent_members), **intent_members), "additionalProperties": False},
        "Attestation": attestation,
        "Decision": _object(
            ["taskId", "decision", "reasons", "expiresAt", "attestation", "call"],
            taskId=_HEX32,
            decision={"enum": ["allow", "deny"]},
            reasons={"type": "array", "items": reason},
            expiresAt={"type": "integer", "description": "unix seconds"},
            attestation=_ref("Attestation"),
            call=_object(["to", "data", "value"], to=_ADDRESS, data=_HEX, value=_AMOUNT),
        ),
        "Task": _object(
            ["taskId", "stage", "createdAt"],
            taskId=_HEX32,
            stage={"enum": ["submitted", "certified", "failed"]},
            createdAt={"type": "integer"},
            result={"type": "object"},
            settlement={"type": "object"},
        ),
        "Problem": _object(
            ["type", "title", "status", "detail", "code", "retryable"],
            type={"type": "string"},
            title={"type": "string"},
            status={"type": "integer"},
            detail={"type": "string"},
            code={"enum": sorted({kind.code for kind in ALL_ERRORS})},
            retryable={"type": "boolean"},
            field={"type": "string"},
            taskId=_HEX32,
            operators={"type": "array", "items": {"type": "object"}},
        ),
    }


def _inference_paths(operation: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The Model Hub and receipts; there where the gateway knows inference replicas. OpenAI's and Open Inference's surfaces have their own
    specifications."""
    anything = {"type": "object"}

    def named(described: dict[str, Any], *names: str, where: str = "path") -> dict[str, Any]:
        schema = {"type": "string"}
        given = [{"name": name, "in": where, "required": where == "path", "schema": schema} for name in names]
        return {**described, "parameters": [*described.get("parameters", []), *given]}

    file = _object(["path", "sha256", "bytes"], path={"type": "string"}, sha256=_HEX32, bytes={"type": "integer"})
    draft = _object(
        ["kind", "publisher", "name", "files"],
        kind={"enum": ["tensors", "text", "embedding", "upstream"]},
        publisher={"type": "string"},
        name={"type": "string"},
        files={"type": "array", "items": file},
        description={"type": "string"},
        license={"type": "string"},
    )
    statement = _object(["statement", "signature"], statement={"type": "string"}, signature=_HEX, manifest={"type": "string"})
    amount = _object(["amount"], amount={"type": "string"})
    order = _object(
        ["secretSha256", "amount"],
        secretSha256=_HEX32,
        amount={"type": "string"},
        name={"type": "string"},
        network={"type": "string"},
        asset=_ADDRESS,
        limit={"type": "string"},
        period={"enum": ["day", "week", "month"]},
        models={"type": "array", "items": {"type": "string"}},
    )
    page = operation("Models by name", {"200": _answer("a page", anything)})
    receipts = operation("Receipts of yours; CSV with `Accept: text/csv`", {"200": _answer("a page", anything)})
    of_model = ("publisher", "name")
    upload = operation("Upload a file under its sha-256", {"201": _answer("stored", anything)})
    upload["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    return {
        "/api/v1/models": {"get": named(page, "search", "publisher", "after", "limit", where="query")},
        "/api/v1/models/draft": {"post": operation("The manifest to sign", {"200": _answer("a manifest", anything)}, draft)},
        "/api/v1/models/statements": {
            "post": operation("Do what a publisher's statement says", {"200": _answer("done", anything)}, statement)
        },
        "/api/v1/models/{publisher}/{name}": {
            "get": named(operation("A model, its versions and usage", {"200": _answer("the model", anything)}), *of_model)
        },
        "/api/v1/models/{publisher}/{name}/aliases": {
            "get": named(operation("Every move of its aliases", {"200": _answer("moves", anything)}), *of_model)
        },
        "/api/v1/models/{publisher}/{name}/versions/{version}": {
            "get": named(operation("One version", {"200": _answer("the version", anything)}), *of_model, "version")
        },
        "/api/v1/blobs/{sha256}": {
            "put": named(upload, "sha256"),
            "head": named(operation("Whether a file is there", {"200": {"description": "it is"}}), "sha256"),
        },
        "/api/v1/nodes": {"get": operation("Replicas, and the keys they sign receipts with", {"200": _answer("nodes", anything)})},
        "/api/v1/keys": {"post": operation("Buy a prepaid key, paid by x402", {"201": _answer("the key's account", anything)}, order)},
        "/api/v1/keys/{id}": {"get": named(operation("What is left of your prepaid key", {"200": _answer("its account", anything)}), "id")},
        "/api/v1/keys/{id}/credit": {
            "post": named(operation("More money on a prepaid key, paid by x402", {"201": _answer("its account", anything)}, amount), "id")
        },
        "/api/v1/keys/{id}/close": {
            "post": named(operation("Close your prepaid key; what is left is refunded", {"200": _answer("refunds", anything)}), "id")
        },
        "/api/v1/receipts": {"get": named(receipts, "payer", "from", "after", "limit", where="query")},
        "/api/v1/receipts/{id}": {"get": operation("A receipt of yours", {"200": _answer("the receipt", anything)}, parameter="id")},
    }


@functools.cache
def openapi_document() -> dict[str, Any]:
    """The whole document."""
    problem = {"description": "a problem (RFC 9457)", "content": {"application/problem+json": {"schema": _ref("Problem")}}}
    failures = {"4XX": problem, "5XX": problem}

    def operation(
        summary: str, answers: dict[str, Any], body: dict[str, Any] | None = None, parameter: str | None = None
    ) -> dict[str, Any]:
        out: dict[str, Any] = {"summary": summary, "responses": {**answers, **failures}}
        if body is not None:
            out["requestBody"] = {"required": True, **_json(body)}
        if parameter is not None:
            out["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": _HEX32}]
        return out

    submit_body = _object(
        ["policyClient", "intent"],
        policyClient=_ADDRESS,
        intent=_ref("Intent"),
        signature=_HEX,
        args={"type": "object"},
        attachments={"type": "array", "maxItems": 8, "items": {"type": "object"}},
        submit={"enum": ["none", "relay"]},
    )
    prepare_body = _object(["policyClient", "call"], policyClient=_ADDRESS, chainId={"type": "integer"}, call={"type": "object"})
    simulate_body = _object(
        ["policyClient", "intent"],
        policyClient=_ADDRESS,
        policyId=_HEX32,
        intent=_ref("Intent"),
        args={"type": "object"},
        data={"type": "array", "items": {"type": "object"}},
    )
    announce_body = _object(["policyId", "bundleSha256"], policyId=_HEX32, bundleSha256=_HEX32)
    submit = operation(
        "Have operators decide on an intent",
        {
            "200": _answer("a signed decision: allow and deny alike", _ref("Decision")),
            "202": _answer("with `Prefer: respond-async`: ask for the task", _ref("Task")),
        },
        submit_body,
    )
    submit["parameters"] = [
        {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}},
        {"name": "Prefer", "in": "header", "schema": {"type": "string"}, "description": "respond-async, or wait=<seconds>"},
    ]
    anything = {"type": "object"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Placet", "version": "1", "description": "Decides whether a transaction may execute before it does."},
        "security": [{"apiKey": []}],
        "paths": {
            "/api/v1/intents/prepare": {
                "post": operation(
                    "EIP-712 typed data, an unused nonce and a deadline for a call", {"200": _answer("prepared", anything)}, prepare_body
                )
            },
            "/api/v1/intents": {"post": submit},
            "/api/v1/simulate": {
                "post": operation("What a policy would say; nothing is signed", {"200": _answer("simulated", anything)}, simulate_body)
            },
            "/api/v1/tasks/{taskId}": {"get": operation("A task of yours", {"200": _answer("the task", _ref("Task"))}, parameter="taskId")},
            "/api/v1/attestations/{taskId}": {
                "get": operation("A task's attestation", {"200": _answer("the attestation", _ref("Attestation"))}, parameter="taskId")
            },
            "/api/v1/evidence/{hash}": {
                "get": operation("The evidence behind a decision of yours", {"200": _answer("the record", anything)}, parameter="hash")
            },
            "/api/v1/policies": {
                "get": operation("Policies announced here", {"200": _answer("ids", anything)}),
                "post": operation("Announce a policy", {"202": _answer("announced", anything)}, announce_body),
            },
            "/api/v1/policies/{policyId}": {
                "get": operation("A policy and who admitted it", {"200": _answer("the policy", anything)}, parameter="policyId")
            },
            "/api/v1/operators": {"get": operation("Operators of the current epochs", {"200": _answer("operators", anything)})},
            **_inference_paths(operation),
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer", "bearerFormat": "placet_<id>_<secret>"}},
        },
    }
