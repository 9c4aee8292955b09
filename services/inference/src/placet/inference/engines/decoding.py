"""What generates tokens, and what it is asked: the words that the owner, its child process and onnxruntime-genai share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from placet.core.errors import PlacetError
from placet.core.receipts import Finish
from placet.inference.engines.base import Sampling

__all__ = ["Decoder", "Job", "Step"]


class Job:
    """One generation. `alone`: it shares no batch."""

    def __init__(self, tokens: Sequence[int], sampling: Sampling, *, alone: bool) -> None:
        self.tokens = tokens
        self.sampling = sampling
        self.alone = alone


@dataclass(frozen=True, slots=True)
class Step:
    """What happened to a job: a token, its end (no more tokens), or an error that is its own."""

    job: Job
    token: int | None = None
    finish: Finish | None = None
    error: PlacetError | None = None


class Decoder(Protocol):
    """What generates tokens. All its methods but `kill` are called by the owner's thread. What it raises breaks it."""

    engine: str
    """Name and version."""
    provider: str
    """What really runs it."""

    def chat_text(self, messages: str) -> str:
        """The chat template's text of messages, which are JSON. Raises InvalidInput, which breaks nothing."""

    def begin(self, jobs: Sequence[Job]) -> Iterable[Step]:
        """New jobs; they came together. Steps: those that cannot begin."""

    def step(self) -> Iterable[Step]:
        """At most one token for every job. A job that ended or failed is forgotten."""

    def drop(self, job: Job) -> None:
        """The job is of no interest any more. It may have ended."""

    def close(self) -> None:
        """Free everything."""

    def kill(self) -> None:
        """End whatever hangs, if that can be done from outside. From any thread."""
