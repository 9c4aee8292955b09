"""Streams of chat and text completions: their events, and the one-piece answer that their chunks add up to (docs/reference/receipts.md).

Members that are in no receipt are refused: what a caller reads is what was signed, or it reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from placet.core.errors import TooLarge

MAX_EVENT_BYTES: Final = 4 << 20
_MAX_TOOL_CALLS = 128
_HEAD: Final = ("id", "created", "model", "system_fingerprint")


class StreamRefused(ValueError):
    """A stream is not of its form, or says something that no receipt covers."""


class Events:
    """Server-sent events out of bytes, however they are cut. Only what they say counts (`data`): comments and names are passed over."""

    def __init__(self) -> None:
        self._left = bytearray()
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Events that are complete."""
        self._left += data
        while (end := self._left.find(b"\n")) >= 0:
            line = bytes(self._left[:end]).removesuffix(b"\r")
            del self._left[: end + 1]
            if b"\r" in line:
                raise StreamRefused("a line ends in a way that is read differently by different clients")
            if not line:
                if self._data:
                    event, self._data = b"\n".join(self._data), []
                    yield event
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        if len(self._left) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise TooLarge(f"stream: an event of more than {MAX_EVENT_BYTES} bytes", field="stream")


class Assembly:
    """Chunks, and the answer they add up to."""

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._object = "chat.completion.chunk" if chat else "text_completion"
        self._head: tuple[Any, ...] | None = None
        self._text = ""
        self._refusal: str | None = None
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish: str | None = None
        self._usage: Any = None

    def add(self, document: Mapping[str, Any], *, last: bool) -> None:
        """A chunk; the last one has no choices, and the usage. Raises StreamRefused."""
        _only(document, {*_HEAD, "object", "choices", "usage"}, "a chunk")
        head = tuple(document.get(name) for name in _HEAD)
        if document.get("object") != self._object or (self._head is not None and head != self._head):
            raise StreamRefused("chunks are not of one answer")
        self._head = head
        choices, usage = document.get("choices"), document.get("usage")
        if not isinstance(choices, list) or len(choices) > 1 or (last and choices):
            raise StreamRefused("one choice is wanted, and none in the last chunk")
        if last:
            self._usage = usage
            return
        if usage is not None:
            raise StreamRefused("usage is told before the last chunk")
        for choice in choices:
            self._add(choice)

    def _add(self, choice: Any) -> None:
        if not isinstance(choice, dict) or choice.get("index") != 0 or isinstance(choice.get("index"), bool):
            raise StreamRefused("the first choice, and no other, is wanted")
        _only(choice, {"index", "finish_reason", "delta" if self._chat else "text"}, "a choice")
        finish = choice.get("finish_reason")
        if finish is not None:
            if self._finish is not None or not isinstance(finish, str):
                raise StreamRefused("it is finished twice")
            self._finish = finish
        if not self._chat:
            self._text += _text(choice.get("text"))
            return
        delta = choice.get("delta") or {}
        if not isinstance(delta, dict):
            raise StreamRefused("a delta is no object")
        _only(delta, {"role", "content", "refusal", "tool_calls"}, "a delta")
        if delta.get("role") not in (None, "assistant"):
            raise StreamRefused("the assistant's answer is wanted")
        self._text += _text(delta.get("content"))
        if delta.get("refusal") is not None:
            self._refusal = (self._refusal or "") + _text(delta["refusal"])
        for call in delta.get("tool_calls") or []:
            self._call(call)

    def _call(self, call: Any) -> None:
        if not isinstance(call, dict):
            raise StreamRefused("a tool call is no object")
        _only(call, {"index", "id", "type", "function"}, "a tool call")
        at, function = call.get("index", 0), call.get("function") or {}
        if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < _MAX_TOOL_CALLS or not isinstance(function, dict):
            raise StreamRefused("a tool call is not of its form")
        _only(function, {"name", "arguments"}, "a function")
        if call.get("type") not in (None, "function"):
            raise StreamRefused("tools are functions")
        held = self._calls.setdefault(at, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        if (name := _text(call.get("id"))) and held["id"] not in ("", name):
            raise StreamRefused("a tool call has two ids")
        held["id"] = name or held["id"]
        for member in ("name", "arguments"):
            held["function"][member] += _text(function.get(member))

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._finish, "logprobs": None}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": self._text, "refusal": self._refusal}
            if self._calls:
                message["tool_calls"] = [self._calls[at] for at in sorted(self._calls)]
                message["content"] = self._text or None
            choice["message"] = message
        else:
            choice["text"] = self._text
        head = dict(zip(_HEAD, self._head or (None,) * len(_HEAD), strict=True))
        kind = "chat.completion" if self._chat else "text_completion"
        return {**head, "object": kind, "choices": [choice], "usage": self._usage}


def _only(document: Mapping[str, Any], known: set[str], what: str) -> None:
    for name, value in document.items():
        if name not in known and value not in (None, [], {}, ""):
            raise StreamRefused(f"{what} has {name[:40]!r}, which no receipt covers")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise StreamRefused("a text is none")
    return value
