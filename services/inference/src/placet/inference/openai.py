"""The OpenAI forms of a request: checked, turned into what engines take, and answered. What is not honoured is refused by name.

The same document is digested for a stream and for one piece: a client that adds up the chunks of a stream has the document of the receipt.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from placet.core.errors import InvalidInput
from placet.core.receipts import Finish
from placet.core.types import Hash32, hex0x
from placet.inference.engines.base import ChatMessage, EmbeddingEngine, Sampling, TextEnd, TextEngine, TextPrompt
from placet.inference.surfaces import Answer, Members, Piece, texts

MAX_MESSAGES = 1024
MAX_TEXT = 2 << 20
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 128
MAX_INPUTS = 2048
MAX_SCHEMA_BYTES = 64 << 10
DEFAULT_MAX_TOKENS = 1024
_ROLES = frozenset({"system", "developer", "user", "assistant"})
_TOOLS = "this model has no tools"
_REFUSED: Mapping[str, str] = {
    "tools": _TOOLS,
    "tool_choice": _TOOLS,
    "functions": _TOOLS,
    "function_call": _TOOLS,
    "parallel_tool_calls": _TOOLS,
    "logit_bias": "is not honoured here",
    "audio": "only text is generated here",
    "modalities": "only text is generated here",
}


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A checked request for text."""

    prompt: TextPrompt
    sampling: Sampling
    stream: bool
    chat: bool


def is_stream(body: Mapping[str, Any]) -> bool:
    """Whether a request asks for a stream, before it is checked."""
    return body.get("stream") is True


async def text_request(body: Any, engine: TextEngine, *, chat: bool) -> TextRequest:
    """Check a request for text and count its prompt.

    Raises:
        InvalidInput: names the member.
    """
    members = Members.of(body)
    members.take("model"), members.take("placet")
    given = [members.integer("max_tokens", 1, 1 << 20, None), members.integer("max_completion_tokens", 1, 1 << 20, None) if chat else None]
    if None not in given and given[0] != given[1]:
        raise InvalidInput("max_tokens: says something else than max_completion_tokens", field="max_tokens")
    limit = next((value for value in given if value is not None), None)
    temperature = members.number("temperature", 0, 2, 1)
    top_p = members.number("top_p", 0, 1, 1)
    if top_p == 0:
        raise InvalidInput("top_p: a number above 0 wanted", field="top_p")
    seed = members.integer("seed", -(2**63), 2**63 - 1, None)
    raw_stop = members.take("stop")
    stop = () if raw_stop is None else texts(raw_stop, "stop", most=MAX_STOPS, longest=MAX_STOP_CHARACTERS)
    stream = members.boolean("stream")
    options = members.take("stream_options")
    if options is not None:
        if not stream:
            raise InvalidInput("stream_options: only with stream", field="stream_options")
        inner = Members.of(options, "stream_options")
        inner.boolean("include_usage")
        inner.only("include_obfuscation", False)
        inner.done()
    for name, allowed in (("n", 1), ("presence_penalty", 0), ("frequency_penalty", 0), ("logprobs", False), ("store", False)):
        members.only(name, allowed)
    members.only("service_tier", "auto", "default")
    guidance = _guidance(members.take("response_format")) if chat else None
    if chat:
        prompt = await engine.chat_prompt(_messages(members.take("messages")))
    else:
        for name, allowed in (("echo", False), ("best_of", 1)):
            members.only(name, allowed)
        (text,) = texts(members.take("prompt"), "prompt", most=1, longest=MAX_TEXT)
        prompt = await engine.plain_prompt(text)
    members.done(_REFUSED)
    context = engine.info.context_length or 0
    if len(prompt.tokens) >= context:
        where = "messages" if chat else "prompt"
        raise InvalidInput(f"{where}: {len(prompt.tokens)} tokens; the model's context has {context}", field=where)
    room = context - len(prompt.tokens)
    if limit is not None and limit > room:
        raise InvalidInput(
            f"max_tokens: {limit} after a prompt of {len(prompt.tokens)}; the model's context has {context}", field="max_tokens"
        )
    sampling = Sampling(
        max_tokens=min(room, DEFAULT_MAX_TOKENS) if limit is None else limit,
        temperature=temperature,
        top_p=top_p,
        seed=None if seed is None else seed % 2**31,
        stop=stop,
        guidance=guidance,
    )
    return TextRequest(prompt, sampling, stream, chat)


def _messages(value: Any) -> list[ChatMessage]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise InvalidInput(f"messages: a list of 1 to {MAX_MESSAGES} wanted", field="messages")
    out, total = [], 0
    for at, item in enumerate(value):
        members = Members.of(item, f"messages/{at}")
        role = members.take("role")
        if role not in _ROLES:
            raise InvalidInput(f"messages/{at}/role: one of {', '.join(sorted(_ROLES))}", field=f"messages/{at}/role")
        content = _content(members.take("content"), f"messages/{at}/content")
        total += len(content)
        if total > MAX_TEXT:
            raise InvalidInput(f"messages: more than {MAX_TEXT} characters", field="messages")
        members.only("refusal")
        members.done({"tool_calls": _TOOLS, "name": "names are not honoured here"})
        out.append(ChatMessage("system" if role == "developer" else role, content))
    return out


def _content(value: Any, field: str) -> str:
    if isinstance(value, str):
        return value
    if (
        isinstance(value, list)
        and value
        and all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) and len(part) == 2 for part in value
        )
    ):
        return "".join(part["text"] for part in value)
    raise InvalidInput(f"{field}: text, or a list of text parts, wanted; nothing else is read here", field=field)


def _guidance(value: Any) -> tuple[str, str] | None:
    if value is None:
        return None
    members = Members.of(value, "response_format")
    kind = members.take("type")
    if kind == "text":
        members.done()
        return None
    if kind != "json_schema":
        raise InvalidInput("response_format/type: text or json_schema is honoured here", field="response_format/type")
    inner = Members.of(members.take("json_schema"), "response_format/json_schema")
    members.done()
    inner.take("name"), inner.take("description")
    strict = inner.take("strict", False)
    schema = inner.take("schema")
    inner.done()
    if not isinstance(strict, bool) or not isinstance(schema, dict):
        raise InvalidInput(
            "response_format/json_schema: an object `schema`, and `strict` true or false", field="response_format/json_schema"
        )
    text = orjson.dumps(schema).decode()
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidInput(f"response_format/json_schema/schema: {len(text)} bytes, at most {MAX_SCHEMA_BYTES}", field="response_format")
    return ("json_schema", text)


@dataclass(slots=True)
class Progress:
    """What was generated so far, for the receipt of an answer that is cut."""

    parts: list[str] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """What all documents of one answer share."""

    receipt_id: Hash32
    created: int
    model: str
    fingerprint: str
    chat: bool

    @property
    def id(self) -> str:
        """OpenAI's id of the answer."""
        return ("chatcmpl-" if self.chat else "cmpl-") + self.receipt_id.hex()[:32]

    def whole(self, text: str, finish: str, usage: dict[str, Any]) -> dict[str, Any]:
        """The answer in one piece; also what a stream adds up to."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        return {**self._head("chat.completion" if self.chat else "text_completion"), "choices": [choice], "usage": usage}

    def chunk(self, text: str, finish: str | None = None, *, first: bool = False) -> dict[str, Any]:
        """A piece of a stream."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.chat:
            delta: dict[str, Any] = {"content": text} if text or first else {}
            choice["delta"] = {"role": "assistant", **delta} if first else delta
        else:
            choice["text"] = text
        return {**self._head("chat.completion.chunk" if self.chat else "text_completion"), "choices": [choice]}

    def last(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The usage chunk, always sent: it carries the receipt."""
        return {**self._head("chat.completion.chunk" if self.chat else "text_completion"), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": self.fingerprint}


def usage_document(prompt: int, completion: int) -> dict[str, Any]:
    """Usage as OpenAI has it."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


_FINISH = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.INTERRUPTED: "length"}


async def answer_text(
    request: TextRequest, engine: TextEngine, shape: Shape, progress: Progress, *, deadline: float
) -> AsyncIterator[Piece | Answer]:
    """Generate. The last event is an Answer; when the iterator is closed before, `cut_answer` is made of the progress."""
    end: TextEnd | None = None
    if request.stream:
        yield Piece(shape.chunk("", first=True))
    async with aclosing(engine.generate(request.prompt, request.sampling, deadline=deadline)) as events:  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, TextEnd):
                end = event
                break
            progress.parts.append(event.text)
            progress.tokens += event.tokens
            if request.stream and event.text:
                yield Piece(shape.chunk(event.text))
    if end is None:
        raise InvalidInput("the engine ended without an end", field="body")
    if request.stream:
        yield Piece(shape.chunk("", _FINISH[end.finish]))
    usage = usage_document(end.prompt_tokens, end.completion_tokens)
    whole = shape.whole("".join(progress.parts), _FINISH[end.finish], usage)
    yield Answer(
        document=shape.last(usage) if request.stream else whole,
        digested=whole,
        finish=end.finish,
        prompt_tokens=end.prompt_tokens,
        completion_tokens=end.completion_tokens,
        queued_s=end.queued_s,
        computed_s=end.computed_s,
    )


def cut_answer(request: TextRequest, shape: Shape, progress: Progress) -> Answer:
    """The answer of which the caller did not wait for the end."""
    prompt = len(request.prompt.tokens)
    whole = shape.whole("".join(progress.parts), "length", usage_document(prompt, progress.tokens))
    return Answer(whole, whole, Finish.INTERRUPTED, prompt_tokens=prompt, completion_tokens=progress.tokens)


# --- embeddings


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A checked request for embeddings."""

    inputs: tuple[str | tuple[int, ...], ...]
    base64: bool


def embedding_request(body: Any, engine: EmbeddingEngine, dimensions: int | None) -> EmbeddingRequest:
    """Check a request for embeddings. Raises InvalidInput."""
    members = Members.of(body)
    members.take("model"), members.take("placet")
    encoding = members.take("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise InvalidInput("encoding_format: float or base64 wanted", field="encoding_format")
    wanted = members.integer("dimensions", 1, 1 << 20, None)
    if wanted is not None and wanted != dimensions:
        raise InvalidInput(f"dimensions: this model has {dimensions}", field="dimensions")
    inputs = _inputs(members.take("input"))
    members.done()
    return EmbeddingRequest(inputs, encoding == "base64")


def _inputs(value: Any) -> tuple[str | tuple[int, ...], ...]:
    items: Sequence[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else ()
    if items and all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        items = [items]
    if not 1 <= len(items) <= MAX_INPUTS:
        raise InvalidInput(f"input: a text, tokens, or a list of 1 to {MAX_INPUTS} of either wanted", field="input")
    out: list[str | tuple[int, ...]] = []
    total = 0
    for at, item in enumerate(items):
        if isinstance(item, str) and item:
            out.append(item)
        elif isinstance(item, list) and item and all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < 2**31 for t in item):
            out.append(tuple(item))
        else:
            raise InvalidInput(f"input/{at}: a text or tokens, not empty, wanted", field=f"input/{at}")
        total += len(item)
    if total > MAX_TEXT:
        raise InvalidInput(f"input: more than {MAX_TEXT} characters or tokens", field="input")
    return tuple(out)


async def answer_embeddings(
    request: EmbeddingRequest, engine: EmbeddingEngine, model: str, *, deadline: float, alone: bool
) -> AsyncIterator[Piece | Answer]:
    """Embed. The digest is over the vectors' bytes, so it does not depend on how they are written."""
    result = await engine.embed(request.inputs, deadline=deadline, alone=alone)
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    head = {"object": "list", "model": model, "usage": usage}
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(vector, as_base64=request.base64)}
        for index, vector in enumerate(result.vectors)
    ]
    digests = [{"index": index, "embeddingSha256": hex0x(hashlib.sha256(vector).digest())} for index, vector in enumerate(result.vectors)]
    yield Answer(
        document={**head, "data": data},
        digested={**head, "data": digests},
        finish=Finish.COMPLETE,
        prompt_tokens=result.prompt_tokens,
        rows=len(result.vectors),
        queued_s=result.queued_s,
        computed_s=result.computed_s,
    )


def _vector(raw: bytes, *, as_base64: bool) -> Any:
    return base64.b64encode(raw).decode() if as_base64 else list(struct.unpack(f"<{len(raw) // 4}f", raw))
