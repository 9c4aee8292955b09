"""What an engine is: one model version, loaded. The service knows engines only through this.

Engines run model code in native threads and never block the event loop. Every failure is a `PlacetError`: `InvalidInput` names the field
that does not fit the model, `RateLimited` says that there is no place, `DeadlineExceeded` that there was none in time, `Unavailable` that
the engine broke and is being rebuilt. An engine that failed rebuilds itself; one that cannot be loaded raises from `load`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from placet.core.receipts import Finish
from placet.core.tensors import DATATYPES, Tensor
from placet.core.types import Hash32

__all__ = [
    "DATATYPES",
    "ChatMessage",
    "EmbeddingEngine",
    "EmbeddingResult",
    "EngineInfo",
    "Sampling",
    "Tensor",
    "TensorEngine",
    "TensorResult",
    "TensorSpec",
    "TextEnd",
    "TextEngine",
    "TextPiece",
    "TextPrompt",
]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a model. -1 in `shape`: any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is told of a loaded model, in `Describe` and in receipts."""

    engine: str
    """Name and version, for instance "onnxruntime 1.31.1"."""
    provider: str
    """The execution provider that is really used."""
    profile: Hash32 | None
    """Execution profile, facts of what makes outputs equal bit for bit; None when equality is not claimed."""
    concurrency: int
    """Requests that run at once; more wait."""
    batches: bool
    """Whether requests of several callers may share a run."""
    warm_up_s: float
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class TensorResult:
    """Outputs in the order asked for, and how long it took."""

    outputs: tuple[Tensor, ...]
    rows: int
    batch_rows: int
    queued_s: float
    computed_s: float


class TensorEngine(Protocol):
    """A model of tensors."""

    info: EngineInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def check(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> int:
        """The request's rows, when it fits the model: the first dimension where every input has a free one, otherwise 1. Nothing runs.

        Raises:
            InvalidInput: as `infer`.
        """

    async def infer(self, inputs: Sequence[Tensor], outputs: Sequence[str], *, deadline: float, alone: bool = False) -> TensorResult:
        """Run. `outputs` empty: all. `deadline` in the loop's time. Cancelling gives the place back; what runs already runs on, unheard.

        Raises:
            InvalidInput: names, types, shapes or sizes do not fit the model.
            RateLimited: too many wait. DeadlineExceeded. Unavailable.
        """

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting)."""

    async def close(self) -> None:
        """Free the model. Requests that wait raise Unavailable."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How text is generated. `top_k` 0 and `temperature` 0: greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    guidance: tuple[str, str] | None = None
    """(kind, text): "json_schema", "regex" or "lark_grammar"."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt that was turned into tokens already."""

    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Some generated text; `tokens` of it are new."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class TextEnd:
    """The end: always the last event, unless the iterator is closed before."""

    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    queued_s: float
    computed_s: float


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message of a conversation, plain text."""

    role: str
    content: str
    name: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class TextEngine(Protocol):
    """A language model."""

    info: EngineInfo

    async def chat_prompt(self, messages: Sequence[ChatMessage]) -> TextPrompt:
        """Apply the model's chat template. Raises InvalidInput: the model has none, or it refuses the roles."""

    async def plain_prompt(self, text: str) -> TextPrompt:
        """Tokens of a text."""

    def generate(
        self, prompt: TextPrompt, sampling: Sampling, *, deadline: float, alone: bool = False
    ) -> AsyncIterator[TextPiece | TextEnd]:
        """Generate. Closing the iterator stops the work within one token. `alone`: share no batch, so that a greedy or seeded answer is a
        function of prompt, sampling and execution profile.

        Raises (from the iterator):
            InvalidInput: prompt and max_tokens exceed the context; a parameter the engine does not honour, by name.
            RateLimited, DeadlineExceeded (before the first piece; later the end says INTERRUPTED), Unavailable.
        """

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting)."""

    async def close(self) -> None:
        """Free the model; what runs ends as INTERRUPTED."""


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """One vector a text, float32 little-endian, all of `dimensions`."""

    vectors: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int
    queued_s: float
    computed_s: float


class EmbeddingEngine(Protocol):
    """A model that embeds texts."""

    info: EngineInfo

    async def embed(self, texts: Sequence[str | Sequence[int]], *, deadline: float, alone: bool = False) -> EmbeddingResult:
        """Embed texts, or texts as tokens. Raises as `TensorEngine.infer`; a text longer than the context is InvalidInput."""

    async def count(self, texts: Sequence[str | Sequence[int]]) -> int:
        """Tokens of all of them."""

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting)."""

    async def close(self) -> None:
        """Free the model."""


@dataclass(frozen=True, slots=True)
class RelayChunk:
    """JSON of an upstream: a part of a stream, or the whole answer when no stream was asked for. Its `model` is the upstream's name."""

    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RelayEnd:
    """The end. Tokens as the upstream says; of an answer that was cut, the parts that had content."""

    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    queued_s: float
    computed_s: float
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the upstream's headers those that callers may see."""


class RelayEngine(Protocol):
    """A model that somebody else runs, behind an OpenAI-style interface. Requests and answers pass whole."""

    info: EngineInfo
    relayed: str
    """The upstream's host: what receipts call `relayed`."""

    def check(self, body: Mapping[str, Any]) -> None:
        """Whether the request may be passed on. Raises InvalidInput, by the member's name."""

    def chat(
        self, body: Mapping[str, Any], *, deadline: float, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[RelayChunk | RelayEnd]:
        """Relay a request of chat/completions. Closing the iterator ends the connection.

        Raises (from the iterator):
            InvalidInput, RateLimited, DeadlineExceeded (before the first chunk; later the end says INTERRUPTED), Unavailable.
        """

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting)."""

    async def close(self) -> None:
        """End the connections."""
