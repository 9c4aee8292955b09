"""Models by name: language models, embeddings, tensors with proofs, and intents; each synchronous and asynchronous (`Async…`).

All of them use one `Access`, which pays and verifies. Needs the extra `inference` of placet-sdk.
"""

from __future__ import annotations

import asyncio
import math
import struct
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx
import orjson

from placet.core.errors import DeadlineExceeded, InvalidInput, VerificationFailed
from placet.core.models import parse_reference
from placet.core.receipts import Mode, Receipt, from_document
from placet.core.types import hex0x
from placet.sdk.access import Access
from placet.sdk.client import Client, problem_error
from placet.sdk.openai import AsyncOpenAI, OpenAI
from placet.verify.report import Report
from placet.verify.zk.statement import Accepted, ProofDocument, proof_of, verify_proof

__all__ = [
    "LLM",
    "AsyncEmbeddings",
    "AsyncIntents",
    "AsyncLLM",
    "AsyncModels",
    "Embeddings",
    "InferenceMode",
    "Intents",
    "Models",
    "ResponseFormat",
    "Tensors",
    "Text",
    "Vectors",
]

InferenceMode = Mode
_MIN_WAIT_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """How a text is to be formed. `json_schema`: `{"name": …, "schema": {…}, "strict": true}`."""

    type: Literal["text", "json_schema"] = "json_schema"
    json_schema: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """As OpenAI's surface has it."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise InvalidInput("response_format: json_schema goes with type json_schema", field="response_format")
        return {"type": self.type} if self.json_schema is None else {"type": self.type, "json_schema": dict(self.json_schema)}


@dataclass(frozen=True, slots=True)
class Text:
    """A text, and the receipt that stands for it. `message` is the assistant's, of a chat; `raw` the answer's JSON."""

    text: str
    finish_reason: str
    message: Mapping[str, Any] | None
    receipt: Receipt
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def chat_output(self) -> Mapping[str, Any] | None:
        """The message, under the name that OpenGradient's SDK has."""
        return self.message

    @property
    def completion_output(self) -> str:
        """The text, under the name that OpenGradient's SDK has."""
        return self.text


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of texts, in their order."""

    vectors: tuple[tuple[float, ...], ...]
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Tensors:
    """Outputs by name, flat, with their shapes. `proof`: in mode zkml, when it was waited for; `report` what was checked of it."""

    outputs: Mapping[str, Sequence[Any]]
    shapes: Mapping[str, tuple[int, ...]]
    receipt: Receipt
    proof: ProofDocument | None = None
    report: Report | None = None


# --- language models


def _asked(
    model: str,
    max_tokens: int,
    temperature: float,
    stop_sequence: Sequence[str] | None,
    mode: Mode | None,
    options: Mapping[str, Any],
    response_format: ResponseFormat | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": temperature, **options}
    if stop_sequence:
        body["stop"] = list(stop_sequence)
    if response_format is not None:
        body["response_format"] = response_format.document() if isinstance(response_format, ResponseFormat) else dict(response_format)
    if mode is not None:
        extra = dict(body.pop("extra_body", None) or {})
        body["extra_body"] = {**extra, "placet": {**extra.get("placet", {}), "mode": mode.value}}
    return body


def _text(answer: Any) -> Text:
    raw = orjson.loads(answer.model_dump_json(exclude_unset=True))
    (choice,) = raw["choices"]
    message = choice.get("message")
    text = choice["text"] if message is None else message.get("content") or ""
    return Text(text, choice["finish_reason"], message, from_document(raw["placet"]["receipt"]), raw)


class LLM:
    """Language models. A text that is returned is one whose receipt holds."""

    def __init__(self, access: Access) -> None:
        _demand_verifying(access)
        self._client = OpenAI(access=access, max_retries=0)

    def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 100,
        temperature: float = 0.0,
        stop_sequence: Sequence[str] | None = None,
        response_format: ResponseFormat | Mapping[str, Any] | None = None,
        mode: Mode | None = None,
        **options: Any,
    ) -> Text:
        """The next message of a conversation. Raises PlacetError, openai.APIStatusError."""
        body = _asked(model, max_tokens, temperature, stop_sequence, mode, options, response_format)
        return _text(self._client.chat.completions.create(messages=list(messages), **body))  # type: ignore[arg-type]

    def stream(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 100,
        temperature: float = 0.0,
        stop_sequence: Sequence[str] | None = None,
        mode: Mode | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The same in pieces. It ends without an error only when the receipt over all of them holds."""
        body = _asked(model, max_tokens, temperature, stop_sequence, mode, options)
        chunks: Any = self._client.chat.completions.create(messages=list(messages), stream=True, **body)  # type: ignore[arg-type]
        for chunk in chunks:
            for choice in chunk.choices:
                if choice.delta.content:
                    yield choice.delta.content

    def completion(
        self,
        model: str,
        prompt: str,
        *,
        max_tokens: int = 100,
        temperature: float = 0.0,
        stop_sequence: Sequence[str] | None = None,
        mode: Mode | None = None,
        **options: Any,
    ) -> Text:
        """A text's continuation."""
        body = _asked(model, max_tokens, temperature, stop_sequence, mode, options)
        return _text(self._client.completions.create(prompt=prompt, **body))

    def close(self) -> None:
        """Let connections go."""
        self._client.close()


class AsyncLLM:
    """Language models, asynchronous."""

    def __init__(self, access: Access) -> None:
        _demand_verifying(access)
        self._client = AsyncOpenAI(access=access, max_retries=0)

    async def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 100,
        temperature: float = 0.0,
        stop_sequence: Sequence[str] | None = None,
        response_format: ResponseFormat | Mapping[str, Any] | None = None,
        mode: Mode | None = None,
        **options: Any,
    ) -> Text:
        """The next message of a conversation. Raises PlacetError, openai.APIStatusError."""
        body = _asked(model, max_tokens, temperature, stop_sequence, mode, options, response_format)
        return _text(await self._client.chat.completions.create(messages=list(messages), **body))  # type: ignore[arg-type]

    async def stream(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 100,
        temperature: float = 0.0,
        stop_sequence: Sequence[str] | None = None,
        mode: Mode | None = None,
        **options: Any,
    ) -> AsyncIterator[str]:
        """The same in pieces. It ends without an error only when the receipt over all of them holds."""
        body = _asked(model, max_tokens, temperature, stop_sequence, mode, options)
        chunks: Any = await self._client.chat.completions.create(messages=list(messages), stream=True, **body)  # type: ignore[arg-type]
        async for chunk in chunks:
            for choice in chunk.choices:
                if choice.delta.content:
                    yield choice.delta.content

    async def completion(
        self,
        model: str,
        prompt: str,
        *,
        max_tokens: int = 100,
        temperature: float = 0.0,
        stop_sequence: Sequence[str] | None = None,
        mode: Mode | None = None,
        **options: Any,
    ) -> Text:
        """A text's continuation."""
        body = _asked(model, max_tokens, temperature, stop_sequence, mode, options)
        return _text(await self._client.completions.create(prompt=prompt, **body))

    async def close(self) -> None:
        """Let connections go."""
        await self._client.close()


# --- embeddings


def _vectors_body(model: str, texts: str | Sequence[str], mode: Mode | None) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "input": texts if isinstance(texts, str) else list(texts)}
    return body if mode is None else {**body, "placet": {"mode": mode.value}}


def _vectors(response: httpx.Response) -> Vectors:
    document = _document(response)
    found = sorted(document["data"], key=lambda item: item["index"])
    return Vectors(tuple(tuple(item["embedding"]) for item in found), from_document(document["placet"]["receipt"]))


class Embeddings:
    """Vectors of texts."""

    def __init__(self, access: Access) -> None:
        _demand_verifying(access)
        self._http = access.client()

    def create(self, model: str, texts: str | Sequence[str], *, mode: Mode | None = None) -> Vectors:
        """Embed. Raises PlacetError."""
        return _vectors(self._http.post("/v1/embeddings", json=_vectors_body(model, texts, mode)))

    def close(self) -> None:
        """Let connections go."""
        self._http.close()


class AsyncEmbeddings:
    """Vectors of texts, asynchronous."""

    def __init__(self, access: Access) -> None:
        _demand_verifying(access)
        self._http = access.async_client()

    async def create(self, model: str, texts: str | Sequence[str], *, mode: Mode | None = None) -> Vectors:
        """Embed. Raises PlacetError."""
        return _vectors(await self._http.post("/v1/embeddings", json=_vectors_body(model, texts, mode)))

    async def close(self) -> None:
        """Let connections go."""
        await self._http.aclose()


# --- models of tensors


def _infer_path(model: str) -> str:
    reference = parse_reference(model)
    if reference.version is not None:
        return f"/v2/models/{reference.publisher}/{reference.name}/versions/{reference.version}/infer"
    if "@" in model:
        raise InvalidInput("model: tensors are sent to publisher/model, or to one of its versions", field="model")
    return f"/v2/models/{reference.publisher}/{reference.name}/infer"


def _infer_body(inputs: Mapping[str, Any], mode: Mode | None) -> dict[str, Any]:
    tensors = [{"name": name, "datatype": "FP32", "shape": _shape(value), "data": _flat(value)} for name, value in inputs.items()]
    return (
        {"inputs": tensors} if mode is None else {"inputs": tensors, "parameters": {"placet": orjson.dumps({"mode": mode.value}).decode()}}
    )


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, Sequence) and not isinstance(value, str):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _flat(value: Any) -> list[float]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [number for item in value for number in _flat(item)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput("inputs: lists of numbers wanted", field="inputs")
    return [value]


def _tensors(response: httpx.Response) -> Tensors:
    document = _document(response)
    outputs = {item["name"]: item["data"] for item in document["outputs"]}
    shapes = {item["name"]: tuple(item["shape"]) for item in document["outputs"]}
    return Tensors(outputs, shapes, from_document(orjson.loads(document["parameters"]["placet_receipt"])))


def _proven(answer: Tensors, inputs: Mapping[str, Any], document: Any, setups: Accepted) -> Tensors:
    """The answer with its proof. Raises VerificationFailed."""
    proof = proof_of(document)
    report = verify_proof(proof, accepted=setups, receipt=answer.receipt, model_sha256=answer.receipt.model.sha256)
    for check in report.checks:
        if not check.ok:
            raise VerificationFailed(f"the proof does not hold: check {check.number} ({check.what}): {check.detail}", check=check.number)
    statement = proof.statement
    told = [number for name in answer.outputs for number in answer.outputs[name]]
    if list(answer.outputs) != [statement.output_name] or [_single(item) for item in statement.values()] != [
        _single(item) for item in told
    ]:
        raise VerificationFailed("the proof is about other outputs than the answer's")
    asked = [_single(number) for number in _flat(inputs.get(statement.input_name, []))]
    half = 0.5 / (1 << statement.fraction_bits)
    proven = [number / (1 << statement.fraction_bits) for number in statement.inputs]
    close = len(asked) == len(proven) and all(math.isclose(a, b, rel_tol=0, abs_tol=half) for a, b in zip(asked, proven, strict=True))
    if len(inputs) != 1 or not close:
        raise VerificationFailed("the proof is about other inputs than those that were sent")
    return Tensors(answer.outputs, answer.shapes, answer.receipt, proof, report)


def _single(number: float) -> float:
    value: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return value


def _query(search: str, publisher: str, after: str, limit: int) -> dict[str, str]:
    given = {"search": search, "publisher": publisher, "after": after, "limit": str(limit)}
    return {name: value for name, value in given.items() if value}


class Models:
    """The hub's models, and answers of those that take tensors."""

    def __init__(self, access: Access) -> None:
        _demand_verifying(access)
        self._http = access.client()

    def list(self, *, search: str = "", publisher: str = "", after: str = "", limit: int = 50) -> Sequence[Mapping[str, Any]]:
        """Models by name. Raises PlacetError; without an API key Unauthenticated."""
        found: Sequence[Mapping[str, Any]] = _document(self._http.get("/api/v1/models", params=_query(search, publisher, after, limit)))[
            "models"
        ]
        return found

    def describe(self, model: str) -> Mapping[str, Any]:
        """A model with its versions, aliases and usage."""
        reference = parse_reference(model)
        return _document(self._http.get(f"/api/v1/models/{reference.publisher}/{reference.name}"))

    def infer(
        self, model: str, inputs: Mapping[str, Any], *, mode: Mode | None = None, setups: Accepted | None = None, wait_s: float = 120.0
    ) -> Tensors:
        """Run a model on lists of numbers (FP32). In mode zkml with `setups`, whose keys are accepted, the proof is waited for and checked.

        Raises:
            VerificationFailed: the proof does not hold. DeadlineExceeded: it is not there in time; the answer's receipt stands.
        """
        answer = _tensors(self._http.post(_infer_path(model), json=_infer_body(inputs, mode)))
        if mode is not Mode.ZKML or setups is None:
            return answer
        until, path = time.monotonic() + wait_s, f"/api/v1/proofs/{hex0x(answer.receipt.id)}"
        while (response := self._http.get(path)).status_code == 202:
            if time.monotonic() > until:
                raise DeadlineExceeded(f"the proof is not there yet; ask {path} again")
            time.sleep(_MIN_WAIT_S)
        return _proven(answer, inputs, _document(response), setups)

    def close(self) -> None:
        """Let connections go."""
        self._http.close()


class AsyncModels:
    """The hub's models, asynchronous."""

    def __init__(self, access: Access) -> None:
        _demand_verifying(access)
        self._http = access.async_client()

    async def list(self, *, search: str = "", publisher: str = "", after: str = "", limit: int = 50) -> Sequence[Mapping[str, Any]]:
        """Models by name. Raises PlacetError; without an API key Unauthenticated."""
        response = await self._http.get("/api/v1/models", params=_query(search, publisher, after, limit))
        found: Sequence[Mapping[str, Any]] = _document(response)["models"]
        return found

    async def describe(self, model: str) -> Mapping[str, Any]:
        """A model with its versions, aliases and usage."""
        reference = parse_reference(model)
        return _document(await self._http.get(f"/api/v1/models/{reference.publisher}/{reference.name}"))

    async def infer(
        self, model: str, inputs: Mapping[str, Any], *, mode: Mode | None = None, setups: Accepted | None = None, wait_s: float = 120.0
    ) -> Tensors:
        """As `Models.infer`."""
        answer = _tensors(await self._http.post(_infer_path(model), json=_infer_body(inputs, mode)))
        if mode is not Mode.ZKML or setups is None:
            return answer
        until, path = time.monotonic() + wait_s, f"/api/v1/proofs/{hex0x(answer.receipt.id)}"
        while (response := await self._http.get(path)).status_code == 202:
            if time.monotonic() > until:
                raise DeadlineExceeded(f"the proof is not there yet; ask {path} again")
            await asyncio.sleep(_MIN_WAIT_S)
        return _proven(answer, inputs, _document(response), setups)

    async def close(self) -> None:
        """Let connections go."""
        await self._http.aclose()


# --- intents


class AsyncIntents:
    """Intents and their decisions: prepared, submitted, looked up."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def prepare(self, policy_client: str, call: dict[str, Any], *, chain_id: int | None = None) -> dict[str, Any]:
        """Typed data to sign, nonce, deadline. Raises PlacetError."""
        async with Client(self._access.gateway, self._access.api_key) as client:
            return await client.prepare(policy_client, call, chain_id=chain_id)

    async def submit(self, policy_client: str, intent: dict[str, Any], **options: Any) -> dict[str, Any]:
        """The signed decision; options as `Client.submit` has them. Raises PlacetError."""
        async with Client(self._access.gateway, self._access.api_key) as client:
            return await client.submit(policy_client, intent, **options)

    async def task(self, task_id: str) -> dict[str, Any]:
        """What became of one. Raises NotFound."""
        async with Client(self._access.gateway, self._access.api_key) as client:
            return await client.task(task_id)


class Intents:
    """Intents and their decisions, synchronous; not inside a running event loop."""

    def __init__(self, access: Access) -> None:
        self._intents = AsyncIntents(access)

    def prepare(self, policy_client: str, call: dict[str, Any], *, chain_id: int | None = None) -> dict[str, Any]:
        """Typed data to sign, nonce, deadline. Raises PlacetError."""
        return asyncio.run(self._intents.prepare(policy_client, call, chain_id=chain_id))

    def submit(self, policy_client: str, intent: dict[str, Any], **options: Any) -> dict[str, Any]:
        """The signed decision. Raises PlacetError."""
        return asyncio.run(self._intents.submit(policy_client, intent, **options))

    def task(self, task_id: str) -> dict[str, Any]:
        """What became of one. Raises NotFound."""
        return asyncio.run(self._intents.task(task_id))


def _demand_verifying(access: Access) -> None:
    if access.verifier is None:
        raise InvalidInput("these hand over verified answers only: leave verify=True", field="verify")


def _document(response: httpx.Response) -> dict[str, Any]:
    """An answer's JSON. Raises the gateway's problem as a PlacetError."""
    try:
        document = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        document = None
    if response.status_code != 200 or not isinstance(document, dict):
        error = document.get("error") if isinstance(document, dict) else None
        if isinstance(error, dict):
            document = {"code": error.get("code"), "detail": error.get("message", ""), "field": error.get("param")}
        elif isinstance(error, str):
            code, _, text = error.partition(": ")
            document = {"code": code, "detail": text or error}
        raise problem_error(document, response.status_code)
    return document
