"""Texts as vectors: BERT-like encoders on onnxruntime.

Tokens come from tokenizer.json, vectors are pooled over the tokens that are not padding and have length 1. Short texts run with others of
about their length, of whatever caller, padded to the next multiple of four. Long ones run alone, where company no longer gains anything;
where that begins is measured at load. What padding and company change is measured too: above 1e-5, or when the model quantises its
activations, every text runs alone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

from placet.core.errors import InvalidInput, PlacetError, TooLarge, Unavailable
from placet.inference.engines import profile
from placet.inference.engines.base import EmbeddingResult, EngineInfo
from placet.inference.engines.batching import Runner, choose, processors
from placet.inference.engines.onnx import new_session, refusal
from placet.inference.engines.places import Places
from placet.inference.engines.tensors import Array

__all__ = ["EmbeddingEngine", "load_embedding", "padded_length"]

_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_TOLERANCE = 1e-5
_STEP = 4
_CHARACTERS_A_TOKEN = 64
"""Texts of more characters than so many a token of the context are refused unread."""
_MAX_ROWS = 32
_MEASURED_ROWS = 8
_MEASURED_LENGTHS = (8, 16, 32, 64, 128)
_PROBES = ("A cat.", "Kittens and dogs are animals that people keep, and stocks are not.", "the " * 30, "99 × Grüße, 日本")

Vectors = npt.NDArray[np.float32]


def load_embedding(
    folder: Path,
    *,
    model_file: str = "model.onnx",
    providers: Sequence[str] | None = None,
    threads: int = 1,
    concurrency: int | None = None,
    max_waiting: int = 64,
    max_texts: int = 2_048,
    context_length: int | None = None,
    pooling: str | None = None,
) -> EmbeddingEngine:
    """Load a folder: a graph, tokenizer.json and, where there are, config.json and 1_Pooling/config.json. Blocks: call it in a thread.

    `pooling`: "mean" or "cls"; None: as the folder says, mean when it does not. `context_length` None: what the folder says.

    Raises:
        InvalidInput: not such a folder; says why.
    """
    started = time.perf_counter()
    path = folder / model_file
    session, optimised = new_session(path, providers=providers, threads=threads)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 - the library raises plain exceptions
        raise InvalidInput(f"tokenizer.json does not load: {str(error)[:200]}", field="model") from None
    configured = _config(folder / "config.json")
    context = context_length or _context(folder, configured, tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    graph = profile.graph_of(path)
    quantisation = profile.quantisation_of(graph)
    provider = session.get_providers()[0]
    files = [path, *profile.external_files(path, graph), folder / "tokenizer.json"]
    model = _Model(session, pooling or _pooling(folder), padding=int(configured.get("pad_token_id") or 0))
    probes = [tokenizer.encode(text).ids[:context] for text in _PROBES]
    shared_length = 0
    if quantisation != "dynamic" and model.alike(probes):
        shared_length = model.gains_up_to([length for length in _MEASURED_LENGTHS if length <= context], probes[0][0])
    size = concurrency or max(1, processors() // threads)
    info = EngineInfo(
        engine=f"onnxruntime {ort.__version__}",
        provider=provider,
        profile=profile.profile_id(
            [profile.sha256_of(file) for file in files],
            engine=f"onnxruntime {ort.__version__}",
            provider=provider,
            optimisation=optimised,
            quantisation=quantisation,
        ),
        concurrency=size,
        batches=shared_length > 0,
        warm_up_s=time.perf_counter() - started,
        context_length=context,
    )
    return EmbeddingEngine(model, tokenizer, info, shared_length=shared_length, max_waiting=max_waiting, max_texts=max_texts)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise InvalidInput(f"{path.name} is not JSON", field="model") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{path.name} is not an object", field="model")
    return found


def _context(folder: Path, configured: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    """Tokens that a text may have: as sentence-transformers says, as the model says, as the tokenizer says; else what BERT has."""
    said = _config(folder / "sentence_bert_config.json").get("max_seq_length") or configured.get("max_position_embeddings")
    if isinstance(said, int):
        return said
    truncation = tokenizer.truncation
    return int(truncation["max_length"]) if truncation else 512


def _pooling(folder: Path) -> str:
    said = _config(folder / "1_Pooling" / "config.json")
    modes = [name.removeprefix("pooling_mode_") for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    if not modes or modes == ["mean_tokens"]:
        return "mean"
    if modes == ["cls_token"]:
        return "cls"
    raise InvalidInput(f"pooling by {', '.join(modes)} is not served: mean_tokens and cls_token are", field="model")


def padded_length(length: int, context: int) -> int:
    """The length that a text of so many tokens is padded to when it runs with others."""
    return min(-(-length // _STEP) * _STEP, max(context, length))


class _Model:
    """The session: tokens in, vectors out. Called in threads."""

    def __init__(self, session: Any, pooling: str, padding: int) -> None:
        self._session = session
        self._padding = padding
        self._inputs = [node.name for node in session.get_inputs()]
        if "input_ids" not in self._inputs or not set(self._inputs) <= _INPUTS:
            raise InvalidInput(f"inputs {', '.join(self._inputs)}: those of BERT are served: {', '.join(sorted(_INPUTS))}", field="model")
        if pooling not in ("mean", "cls"):
            raise InvalidInput("pooling is mean or cls", field="pooling")
        self._pooling = pooling
        outputs = {node.name: len(node.shape) for node in session.get_outputs()}
        pooled = [name for name, rank in outputs.items() if name == "sentence_embedding" and rank == 2]
        by_token = [name for name, rank in outputs.items() if rank == 3]
        if not pooled and not by_token:
            raise InvalidInput("no output has vectors by token [batch, length, width]", field="model")
        self._output = (pooled or by_token)[0]
        self._by_token = not pooled

    def vectors(self, texts: Sequence[Sequence[int]], length: int | None = None) -> Vectors:
        """Vectors [texts, width] of length 1; texts are padded to `length`, by default to the longest."""
        wide = max(length or 0, *(len(tokens) for tokens in texts))
        ids = np.full((len(texts), wide), self._padding, dtype=np.int64)
        mask = np.zeros((len(texts), wide), dtype=np.int64)
        for row, tokens in enumerate(texts):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feed: dict[str, Array] = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (out,) = self._session.run([self._output], {name: feed[name] for name in self._inputs})
        vectors = self._pooled(out.astype(np.float32, copy=False), mask)
        unit: Vectors = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        return unit

    def _pooled(self, out: Vectors, mask: Array) -> Vectors:
        if not self._by_token:
            return out
        if self._pooling == "cls":
            return out[:, 0]
        weights = mask.astype(np.float32)[:, :, None]
        pooled: Vectors = (out * weights).sum(axis=1) / weights.sum(axis=1)
        return pooled

    def alike(self, texts: Sequence[Sequence[int]]) -> bool:
        """Whether padding and company change nothing that counts."""
        try:
            together = self.vectors(texts, max(len(tokens) for tokens in texts) + _STEP)
            alone = np.concatenate([self.vectors([tokens]) for tokens in texts])
        except Exception:  # noqa: BLE001 - onnxruntime's errors have no base class
            return False
        return bool(np.allclose(together, alone, rtol=0, atol=_TOLERANCE))

    def gains_up_to(self, lengths: Sequence[int], token: int) -> int:
        """The longest of `lengths`, which ascend, up to which texts are worth running together; 0: none."""
        longest = 0
        for length in lengths:
            seconds = {rows: self._seconds([[token] * length] * rows) for rows in (1, _MEASURED_ROWS)}
            if choose(seconds).max_rows == 1:
                break
            longest = length
        return longest

    def _seconds(self, texts: Sequence[Sequence[int]]) -> float:
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            self.vectors(texts)
            best = min(best, time.perf_counter() - started)
        return best

    def __call__(self, feeds: Sequence[tuple[Sequence[Sequence[int]], int | None]]) -> list[Vectors | PlacetError]:
        """A run: chunks of texts, all padded to the same length."""
        texts = [tokens for chunk, _ in feeds for tokens in chunk]
        try:
            vectors = self.vectors(texts, feeds[0][1])
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no base class
            if len(feeds) > 1:
                return [out for feed in feeds for out in self([feed])]
            return [InvalidInput(f"the model cannot run on these tokens: {refusal(error)}", field="/input")]
        ends = np.cumsum([len(chunk) for chunk, _ in feeds])
        return [vectors[end - len(chunk) : end] for (chunk, _), end in zip(feeds, ends, strict=True)]


class EmbeddingEngine:
    """`EmbeddingEngine` of base.py over one onnxruntime session."""

    def __init__(
        self, model: _Model, tokenizer: Tokenizer, info: EngineInfo, *, shared_length: int, max_waiting: int, max_texts: int
    ) -> None:
        self.info = info
        self.shared_length = shared_length
        """Texts of up to so many tokens run with others."""
        self._tokenizer = tokenizer
        self._vocabulary = int(tokenizer.get_vocab_size())
        self._context = info.context_length or 512
        self._max_texts = max_texts
        self._closed = False
        # Places are for requests, the runner's queue for their chunks; a request has few of them on the way at once.
        self._places = Places(info.concurrency * _MAX_ROWS, max_waiting)
        self._in_flight = max(2 * info.concurrency, 2)
        self._runner: Runner[tuple[Sequence[Sequence[int]], int | None], Vectors] = Runner(
            model,
            concurrency=info.concurrency,
            max_waiting=self._places.size * self._in_flight,
            max_rows=_MAX_ROWS if info.batches else 1,
            name="embedding",
        )

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting)."""
        return self._places.running, self._places.waiting

    async def embed(self, texts: Sequence[str | Sequence[int]], *, deadline: float, alone: bool = False) -> EmbeddingResult:
        """As `EmbeddingEngine.embed` of base.py. `alone`: every text in its own run, without padding: bit-equal inside a profile."""
        tokens = await self._tokens(texts)
        queued_s = await self._places.take(deadline)
        started = time.perf_counter()
        try:
            vectors = await self._vectors(tokens, deadline, alone=alone)
        finally:
            self._places.give_back(time.perf_counter() - started)
        raw = tuple(np.ascontiguousarray(vector, dtype="<f4").tobytes() for vector in vectors)
        took = time.perf_counter() - started
        return EmbeddingResult(raw, len(vectors[0]), sum(map(len, tokens)), queued_s, took)

    async def count(self, texts: Sequence[str | Sequence[int]]) -> int:
        """As `EmbeddingEngine.count` of base.py."""
        return sum(map(len, await self._tokens(texts)))

    async def close(self) -> None:
        """As `EmbeddingEngine.close` of base.py."""
        self._closed = True
        self._places.close()
        await self._runner.close()

    async def _tokens(self, texts: Sequence[str | Sequence[int]]) -> list[Sequence[int]]:
        if self._closed:
            raise Unavailable("the model is being unloaded")
        if not texts:
            raise InvalidInput("at least one text is wanted", field="/input")
        if len(texts) > self._max_texts:
            raise TooLarge(f"{len(texts)} texts: {self._max_texts} at once", field="/input")
        return await asyncio.to_thread(self._encode, texts)

    def _encode(self, texts: Sequence[str | Sequence[int]]) -> list[Sequence[int]]:
        found: list[Sequence[int]] = []
        for position, text in enumerate(texts):
            most = self._context * (_CHARACTERS_A_TOKEN if isinstance(text, str) else 1)
            if len(text) > most:  # it is not even encoded
                raise TooLarge(f"text {position} is longer than {most}", field=f"/input/{position}")
            # Of the tokenizer's two ways only this one lets go of the interpreter's lock.
            tokens = self._tokenizer.encode_batch([text])[0].ids if isinstance(text, str) else list(text)
            if not 1 <= len(tokens) <= self._context:
                raise InvalidInput(f"text {position} has {len(tokens)} tokens: 1 to {self._context}", field=f"/input/{position}")
            if not 0 <= min(tokens) <= max(tokens) < self._vocabulary:
                raise InvalidInput(
                    f"text {position} holds a token outside the vocabulary of {self._vocabulary}", field=f"/input/{position}"
                )
            found.append(tokens)
        return found

    async def _vectors(self, tokens: Sequence[Sequence[int]], deadline: float, *, alone: bool) -> list[Vectors]:
        vectors: dict[int, Vectors] = {}
        free = asyncio.Semaphore(self._in_flight)

        async def run(chunk: list[int]) -> None:
            length = None if alone else self._padded(len(tokens[chunk[0]]))
            async with free:
                feed = ([tokens[position] for position in chunk], length)
                done = await self._runner.submit(feed, rows=len(chunk), key=length, deadline=deadline)
            vectors.update(zip(chunk, done.out, strict=True))

        try:
            async with asyncio.TaskGroup() as group:
                for chunk in self._chunks(tokens, alone=alone):
                    group.create_task(run(chunk))
        except* PlacetError as errors:
            raise errors.exceptions[0] from None
        return [vectors[position] for position in range(len(tokens))]

    def _chunks(self, tokens: Sequence[Sequence[int]], *, alone: bool) -> list[list[int]]:
        """Positions of texts that run together: of one padded length, not too many."""
        single: list[list[int]] = []
        by_length: dict[int, list[int]] = {}
        for position, text in enumerate(tokens):
            length = None if alone else self._padded(len(text))
            if length is None:
                single.append([position])
            else:
                by_length.setdefault(length, []).append(position)
        return single + [positions[at : at + _MAX_ROWS] for positions in by_length.values() for at in range(0, len(positions), _MAX_ROWS)]

    def _padded(self, length: int) -> int | None:
        """The length that a text of so many tokens is padded to; None: it runs alone."""
        return padded_length(length, self._context) if length <= self.shared_length else None
