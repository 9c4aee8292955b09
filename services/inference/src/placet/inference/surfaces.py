"""What every public form of a request has in common on its way through a replica: an answer in pieces, and what the receipt is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from placet.core.errors import InvalidInput
from placet.core.receipts import Finish
from placet.core.types import Hash32
from placet.inference.engines.base import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a stream, JSON."""

    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer. `digested` is what the receipt's responseSha256 is over: the same for a stream and for one piece."""

    document: dict[str, Any]
    digested: Any
    finish: Finish
    prompt_tokens: int = 0
    completion_tokens: int = 0
    rows: int = 0
    tensors: tuple[Tensor, ...] = ()
    queued_s: float = 0.0
    computed_s: float = 0.0
    evidence_sha256: Hash32 | None = None
    """What the receipt names as evidence: for mode zkml the statement that is going to be proven."""


@dataclass(slots=True)
class Members:
    """Members of a request's JSON object, each taken once. What nobody took is refused by name: nothing is ignored."""

    left: dict[str, Any]
    where: str = ""
    known: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, value: Any, where: str = "") -> Members:
        """From JSON values. Raises InvalidInput."""
        if not isinstance(value, dict):
            raise InvalidInput(f"{where or 'body'}: an object wanted", field=where or "body")
        return cls(dict(value), where)

    def field(self, name: str) -> str:
        """The member's path, for errors."""
        return f"{self.where}/{name}" if self.where else name

    def take(self, name: str, default: Any = None) -> Any:
        """The member; null counts as not given."""
        self.known.append(name)
        value = self.left.pop(name, None)
        return default if value is None else value

    def number(self, name: str, least: float, most: float, default: float) -> float:
        """A number. Raises InvalidInput."""
        value = self.take(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidInput(f"{self.field(name)}: a number from {least:g} to {most:g} wanted", field=self.field(name))
        return float(value)

    def integer(self, name: str, least: int, most: int, default: int | None) -> int | None:
        """An integer. Raises InvalidInput."""
        value = self.take(name, default)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidInput(f"{self.field(name)}: an integer from {least} to {most} wanted", field=self.field(name))
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        """true or false. Raises InvalidInput."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise InvalidInput(f"{self.field(name)}: true or false wanted", field=self.field(name))
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """A parameter of which only these values are honoured. Raises InvalidInput."""
        value = self.take(name)
        if value is not None and value not in allowed:
            shown = " or ".join(map(repr, allowed)) if allowed else "nothing"
            raise InvalidInput(f"{self.field(name)}: only {shown} is honoured here", field=self.field(name))

    def done(self, refused: Mapping[str, str] | None = None) -> None:
        """Refuse what is left. Raises InvalidInput naming it, with a reason where there is one."""
        for name in sorted(self.left):
            if self.left[name] is None:
                continue
            reason = (refused or {}).get(name, "is not honoured here")
            raise InvalidInput(f"{self.field(name)}: {reason}", field=self.field(name))


def texts(value: Any, name: str, *, most: int, longest: int) -> tuple[str, ...]:
    """A text or a list of texts. Raises InvalidInput."""
    items: Sequence[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else ()
    if not items or len(items) > most or not all(isinstance(item, str) and 0 < len(item) <= longest for item in items):
        raise InvalidInput(f"{name}: a text, or a list of at most {most}, of 1 to {longest} characters wanted", field=name)
    return tuple(items)
