"""Which replica answers: a pure choice among what is known, with its reason. What was asked for is never weakened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from placet.core.errors import InvalidInput, ModeUnavailable, RateLimited, Unavailable
from placet.core.models import Reference, parse_reference
from placet.core.receipts import Mode
from placet.core.types import Hash32

_AMOUNT = re.compile(r"(?:0|[1-9][0-9]{0,38})\Z")
_MAX_MODELS = 8
_MAX_AUDITORS = 5


@dataclass(frozen=True, slots=True)
class Wants:
    """What a request's member `placet` asks for."""

    mode: Mode = Mode.VANILLA
    max_price: int | None = None
    """Atomic units of the first accepted asset; the worst case of the whole request must not exceed it."""
    max_latency_ms: int | None = None
    """To the first byte of a stream, else to the last."""
    jurisdiction: str | None = None
    fallbacks: tuple[Reference, ...] = ()
    nonce: Hash32 | None = None
    key_id: Hash32 | None = None
    """The replica that signs with this key, and no other: a prompt is sealed to it."""
    auditors: int = 2
    """Mode audited: how many replicas run it."""


def wants_of(value: Any) -> Wants:
    """The member `placet` of a request.

    Raises:
        InvalidInput: names the member.
    """
    if value is None:
        return Wants()
    if not isinstance(value, dict):
        raise InvalidInput("placet: an object wanted", field="placet")
    known = {"mode", "max_price", "max_latency_ms", "jurisdiction", "models", "nonce", "auditors", "key"}
    if unknown := value.keys() - known:
        raise InvalidInput(f"placet/{min(unknown)}: is not known; {', '.join(sorted(known))} are", field=f"placet/{min(unknown)}")
    try:
        mode = Mode(value.get("mode", "vanilla"))
    except ValueError:
        raise InvalidInput(f"placet/mode: one of {', '.join(Mode)}", field="placet/mode") from None
    price, latency = value.get("max_price"), value.get("max_latency_ms")
    if price is not None and (not isinstance(price, str) or not _AMOUNT.match(price)):
        raise InvalidInput("placet/max_price: a decimal string of atomic units wanted", field="placet/max_price")
    if latency is not None and (not isinstance(latency, int) or isinstance(latency, bool) or not 1 <= latency <= 3_600_000):
        raise InvalidInput("placet/max_latency_ms: an integer from 1 to 3600000 wanted", field="placet/max_latency_ms")
    jurisdiction, nonce = value.get("jurisdiction"), value.get("nonce")
    if jurisdiction is not None and (not isinstance(jurisdiction, str) or not re.fullmatch(r"[A-Z]{2}", jurisdiction)):
        raise InvalidInput("placet/jurisdiction: an ISO 3166-1 alpha-2 code wanted", field="placet/jurisdiction")
    if nonce is not None and (not isinstance(nonce, str) or not re.fullmatch(r"0x[0-9a-f]{64}", nonce)):
        raise InvalidInput("placet/nonce: 32 bytes in lower-case 0x hex wanted", field="placet/nonce")
    models = value.get("models", [])
    if not isinstance(models, list) or len(models) > _MAX_MODELS:
        raise InvalidInput(f"placet/models: a list of at most {_MAX_MODELS} wanted", field="placet/models")
    auditors = value.get("auditors", 2)
    if not isinstance(auditors, int) or isinstance(auditors, bool) or not 2 <= auditors <= _MAX_AUDITORS:
        raise InvalidInput(f"placet/auditors: an integer from 2 to {_MAX_AUDITORS} wanted", field="placet/auditors")
    if "auditors" in value and mode is not Mode.AUDITED:
        raise InvalidInput("placet/auditors: in mode audited only", field="placet/auditors")
    key = value.get("key")
    if key is not None and (not isinstance(key, str) or not re.fullmatch(r"0x[0-9a-f]{64}", key)):
        raise InvalidInput("placet/key: a key id, 32 bytes in lower-case 0x hex, wanted", field="placet/key")
    return Wants(
        key_id=None if key is None else Hash32(bytes.fromhex(key[2:])),
        auditors=auditors,
        mode=mode,
        max_price=None if price is None else int(price),
        max_latency_ms=latency,
        jurisdiction=jurisdiction,
        fallbacks=tuple(parse_reference(item, f"placet/models/{at}") for at, item in enumerate(models)),
        nonce=None if nonce is None else Hash32(bytes.fromhex(nonce[2:])),
    )


class Candidate(Protocol):
    """A replica, as far as a choice needs it."""

    @property
    def jurisdiction(self) -> str:
        """As declared; empty: none."""

    @property
    def key_id(self) -> bytes:
        """Of the key that it signs receipts with."""

    @property
    def modes(self) -> frozenset[Mode]:
        """Modes it offers for this model."""

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory there."""

    @property
    def busy(self) -> float:
        """Requests there, running and waiting, for each place."""

    @property
    def first_ms(self) -> float:
        """95th percentile to the first byte; 0: not measured."""

    @property
    def last_ms(self) -> float:
        """95th percentile to the last byte; 0: not measured."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the candidates, and why."""

    index: int
    why: str


def choose(candidates: Sequence[Candidate], wants: Wants, *, stream: bool) -> list[Choice]:
    """The candidates that may answer, best first.

    Raises:
        Unavailable: there are none. ModeUnavailable: none meets what was asked for. RateLimited: none is fast enough now.
    """
    if not candidates:
        raise Unavailable("no replica of the inference service answers")
    left = list(enumerate(candidates))
    if wants.jurisdiction is not None:
        left = [(index, item) for index, item in left if item.jurisdiction == wants.jurisdiction]
        if not left:
            raise ModeUnavailable(f"no replica declares {wants.jurisdiction}", field="placet/jurisdiction")
    if wants.key_id is not None:
        left = [(index, item) for index, item in left if item.key_id == wants.key_id]
        if not left:
            raise Unavailable("the replica that signs with this key does not answer", field="placet/key")
    left = [(index, item) for index, item in left if wants.mode in item.modes]
    if not left:
        raise ModeUnavailable(f"no replica offers {wants.mode.value} for this model", field="placet/mode")
    if wants.max_latency_ms is not None:
        limit = wants.max_latency_ms
        measured = [(index, item, item.first_ms if stream else item.last_ms) for index, item in left]
        left = [(index, item) for index, item, taken in measured if item.is_loaded and taken <= limit]
        if not left:
            best = min((taken for _, item, taken in measured if item.is_loaded), default=None)
            now = "the model is not loaded" if best is None else f"the fastest takes {best:.0f} ms"
            text = f"no replica answers within {limit} ms ({now}, 95th percentile)"
            raise RateLimited(text, field="placet/max_latency_ms")
    ordered = sorted(left, key=lambda entry: (not entry[1].is_loaded, entry[1].busy, entry[1].last_ms))
    return [Choice(index, _why(item, wants, len(left), stream=stream)) for index, item in ordered]


def _why(item: Candidate, wants: Wants, count: int, *, stream: bool) -> str:
    reasons = ["model loaded" if item.is_loaded else "model to be loaded", f"least busy of {count}"]
    if wants.jurisdiction is not None:
        reasons.append(f"declares {wants.jurisdiction}")
    if wants.max_latency_ms is not None:
        taken = item.first_ms if stream else item.last_ms
        reasons.append(f"95% within {taken:.0f} ms" if taken else "not measured yet")
    return ", ".join(reasons)
