"""Text out of tokens, piece by piece: whole characters only, and never a stop string or a part of one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Detokenizer", "StopFilter"]

_REPLACEMENT = "�"
_BYTES = 4
"""A character has at most so many bytes, and a token that is not text has at least one."""
_WINDOW = 16
_LONGEST_WINDOW = 64


class Detokenizer:
    """Tokens in, text out. A character is given out when it is whole; bytes that never become one, as U+FFFD once that is known.

    Only the last tokens are decoded, from a place on where all characters before were whole. Decoders differ in how they show bytes that
    are no character yet: as one replacement character, as one for every byte, or as several in place of whole characters before. In all
    three cases what was given out is no longer how the decoded text begins, or the text ends in replacement characters.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._given = ""
        self._whole = 0
        """How many of the tokens, from the first, are whole characters."""
        self._doubts = 0

    def push(self, token: int) -> str:
        """What became certain by this token."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if not text.startswith(self._given):
            self._doubts += 1
            if self._doubts < _BYTES:
                return ""
        else:
            self._doubts = 0
        certain = _certain(text)
        new = text[len(self._given) : certain]
        self._given = text[: max(certain, len(self._given))]
        self._shorten(whole=certain == len(text) and not self._doubts)
        return new

    def end(self) -> str:
        """What was held back."""
        text = self._decode(self._tokens) if self._tokens else ""
        new = text[len(self._given) :]
        self._tokens, self._given, self._whole, self._doubts = [], "", 0, 0
        return new

    def _shorten(self, *, whole: bool) -> None:
        if self._whole and len(self._tokens) > _WINDOW:
            self._restart(self._whole)
        elif len(self._tokens) > _LONGEST_WINDOW:  # nothing but bytes that make no character
            self._restart(len(self._tokens) - 2 * _BYTES)
        if whole:
            self._whole = len(self._tokens)

    def _restart(self, at: int) -> None:
        self._tokens = self._tokens[at:]
        text = self._decode(self._tokens)
        self._given = text[: _certain(text)]
        self._whole = 0


def _certain(text: str) -> int:
    """How much of a decoded text no further token changes."""
    end = len(text)
    while end > 0 and len(text) - end < _BYTES - 1 and text[end - 1] == _REPLACEMENT:
        end -= 1
    return end


class StopFilter:
    """Ends a text before the first of its stop strings. What could be the beginning of one is held back.

    The stop string that is complete first counts; of two that are complete at the same character, the longer one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be given out, and whether a stop string came: then nothing may follow."""
        if not self._stops:
            return text, False
        held = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if ends:
            self._held = ""
            return held[: min(ends)[1]], True
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def end(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
