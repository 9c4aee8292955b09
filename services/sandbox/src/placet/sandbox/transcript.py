"""What a component asked its host and what it was told, in order: enough to run it again without a network.

Secrets never stand in a transcript. Wherever a secret's text appears, plain or in one of its usual encodings, a keyed digest
stands instead: keyed, because a short secret could be guessed from a plain hash. In a replay the component gets the digest
as its secret, so it asks the same requests as far as they are recorded.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

from placet.sandbox.jsonguard import parse_json

MIN_SECRET_CHARS = 8
"""Shorter texts appear by chance, and replacing them would garble a transcript."""
MAX_TRANSCRIPT_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One host call. `request` and `answer` are JSON values; `function` is such as `http.fetch` or `chain.call`."""

    function: str
    request: Any
    answer: Any


@dataclass(frozen=True, slots=True)
class Transcript:
    entries: tuple[Entry, ...] = ()

    def to_json(self) -> str:
        """Canonical: sorted keys, no spaces. Entries hold strings, integers, lists and null, never fractions."""
        rows = [[entry.function, entry.request, entry.answer] for entry in self.entries]
        return json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Transcript:
        """Raises `JsonRejected` or `ValueError`."""
        rows = parse_json(text, max_bytes=MAX_TRANSCRIPT_BYTES)
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) for row in rows):
            raise ValueError("a transcript is a list of [function, request, answer]")
        return cls(tuple(Entry(*row) for row in rows))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class Redactor:
    """Replaces secrets by `hmac-sha256:…` in everything that is recorded."""

    def __init__(self, secrets: Mapping[str, str], key: bytes) -> None:
        for name, value in secrets.items():
            if len(value) < MIN_SECRET_CHARS:
                raise ValueError(f"secret {name} has fewer than {MIN_SECRET_CHARS} characters")
        if len(key) < 16:
            raise ValueError("the key for digests of secrets has fewer than 16 bytes")
        self._digests = {name: self._digest(key, value) for name, value in secrets.items()}
        replacements = [pair for name, value in secrets.items() for pair in _forms(value, self._digests[name])]
        # Longest first, so that a secret that holds another is replaced whole.
        self._replacements = sorted(replacements, key=lambda pair: -len(pair[0]))
        self._secrets = tuple(secrets.values())

    @staticmethod
    def _digest(key: bytes, value: str) -> str:
        return "hmac-sha256:" + hmac.new(key, value.encode(), hashlib.sha256).hexdigest()

    def digest_of(self, name: str) -> str | None:
        """What stands in a transcript for the secret `name`."""
        return self._digests.get(name)

    def redact(self, value: Any) -> Any:
        if isinstance(value, str):
            for text, digest in self._replacements:
                value = value.replace(text, digest)
            return value
        if isinstance(value, list | tuple):
            return [self.redact(item) for item in value]
        if isinstance(value, dict):
            return {str(self.redact(name)): self.redact(item) for name, item in value.items()}
        return value

    def leaks(self, text: str) -> bool:
        """Whether a secret stands in `text`, plain or encoded."""
        return any(form in text for form, _ in self._replacements)


class ReplayRedactor(Redactor):
    """For a replay, which knows the digests only: a digest in one of a secret's encodings becomes what the recording says."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._digests = dict(digests)
        replacements = [pair for digest in digests.values() for pair in _forms(digest, digest)]
        self._replacements = sorted((p for p in replacements if p[0] != p[1]), key=lambda pair: -len(pair[0]))
        self._secrets = ()

    def leaks(self, text: str) -> bool:
        return False


def _forms(secret: str, digest: str) -> Iterable[tuple[str, str]]:
    """The secret as components write it, each with what stands for it."""
    raw = secret.encode()
    forms: Sequence[tuple[str, str]] = (
        (secret, digest),
        (quote(secret, safe=""), digest + ";percent"),
        (quote_plus(secret), digest + ";percent"),
        (json.dumps(secret)[1:-1], digest + ";json"),
        (base64.b64encode(raw).decode().rstrip("="), digest + ";base64"),
        (base64.urlsafe_b64encode(raw).decode().rstrip("="), digest + ";base64url"),
        (raw.hex(), digest + ";hex"),
    )
    seen: set[str] = set()
    for text, stands_for in forms:
        if text not in seen:
            seen.add(text)
            yield text, stands_for
