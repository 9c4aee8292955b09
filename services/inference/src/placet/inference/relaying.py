"""Answers of an upstream under our names: its texts pass as they are, its ids do not. The receipt is over what a stream adds up to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import orjson

from placet.core.errors import InvalidInput
from placet.core.receipts import Finish
from placet.inference.engines.base import RelayChunk, RelayEngine
from placet.inference.openai import Shape, usage_document
from placet.inference.surfaces import Answer, Piece

_MAX_TOOL_CALLS = 128
_REASONS = {Finish.LENGTH: "length", Finish.TOOL_CALLS: "tool_calls", Finish.INTERRUPTED: "length"}


class Relayed:
    """An answer as it comes in, and what there is of it."""

    def __init__(self, shape: Shape, *, stream: bool) -> None:
        self._shape = shape
        self._stream = stream
        self.text = ""
        self.refusal: str | None = None
        self.calls: dict[int, dict[str, Any]] = {}
        self.parts = 0
        self._document: dict[str, Any] | None = None

    def take(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """A document of the upstream's, under our names."""
        named = {**document, "id": self._shape.id, "created": self._shape.created, "model": self._shape.model}
        named["system_fingerprint"] = self._shape.fingerprint
        named.pop("placet", None)
        if not self._stream:
            self._document = named
            return named
        for choice in document.get("choices") or []:
            if isinstance(choice, dict) and choice.get("index") not in (None, 0):
                raise InvalidInput("n: one answer a request", field="n")
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if isinstance(delta, dict):
                self._add(delta)
        return named

    def _add(self, delta: Mapping[str, Any]) -> None:
        if isinstance(delta.get("content"), str):
            self.text += delta["content"]
            self.parts += bool(delta["content"])
        if isinstance(delta.get("refusal"), str):
            self.refusal = (self.refusal or "") + delta["refusal"]
        for call in delta.get("tool_calls") or []:
            at = call.get("index", 0) if isinstance(call, dict) else None
            if not isinstance(at, int) or not 0 <= at < _MAX_TOOL_CALLS:
                continue
            self.parts += 1
            held = self.calls.setdefault(at, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            held["id"] = call.get("id") or held["id"]
            function = call.get("function")
            if isinstance(function, dict):
                held["function"]["name"] += function.get("name") or ""
                held["function"]["arguments"] += function.get("arguments") or ""

    def answer(self, finish: Finish, prompt: int, completion: int, queued_s: float = 0.0, computed_s: float = 0.0) -> Answer:
        """The end: what was passed on, in one piece."""
        usage = usage_document(prompt, completion)
        if self._document is not None:
            whole = {**self._document, "usage": usage}
        else:
            whole = self._shape.whole(self.text, _REASONS.get(finish, "stop"), usage)
            message = whole["choices"][0]["message"]
            message["refusal"] = self.refusal
            if self.calls:
                message["tool_calls"] = [self.calls[at] for at in sorted(self.calls)]
                message["content"] = self.text or None
        return Answer(
            document=self._shape.last(usage) if self._stream else whole,
            digested=whole,
            finish=finish,
            prompt_tokens=prompt,
            completion_tokens=completion,
            queued_s=queued_s,
            computed_s=computed_s,
        )


def size_of(body: Any, context_length: int | None) -> tuple[int, int]:
    """(prompt tokens, completion tokens) at most: a token has a byte at least; without `max_tokens` as many as the model's context holds.

    Raises:
        InvalidInput: it could be any number.
    """
    most = body.get("max_completion_tokens", body.get("max_tokens", context_length)) if isinstance(body, dict) else None
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise InvalidInput("max_tokens: needed where a model is paid for by what it generates", field="max_tokens")
    return len(orjson.dumps([body.get("messages"), body.get("tools")])), most


async def relay(body: Mapping[str, Any], engine: RelayEngine, seen: Relayed, *, deadline: float) -> AsyncIterator[Piece | Answer]:
    """Pass a request on. The last event is an Answer."""
    stream = bool(body.get("stream"))
    async with aclosing(engine.chat(body, deadline=deadline)) as events:  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, RelayChunk):
                document = seen.take(event.document)
                if stream and document.get("choices"):  # the usage is ours to tell, in the last chunk
                    yield Piece(document)
                continue
            yield seen.answer(event.finish, event.prompt_tokens, event.completion_tokens, event.queued_s, event.computed_s)
            return
    raise InvalidInput("the upstream ended without an end", field="body")
