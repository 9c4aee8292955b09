"""Language models on onnxruntime-genai.

The model lives in a child process (remote.py), driven by one thread (owner.py); what comes of it token by token is made into pieces of
text there and given to the loop that asked. Whoever waits for a piece is the watchdog of the thread it waits for.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from placet.core.errors import DeadlineExceeded, InvalidInput, TooLarge, Unavailable
from placet.core.receipts import Finish
from placet.inference.engines import profile
from placet.inference.engines.base import ChatMessage, EngineInfo, Sampling, TextEnd, TextPiece, TextPrompt
from placet.inference.engines.decoding import Decoder
from placet.inference.engines.owner import Ended, Event, Owner, Task
from placet.inference.engines.places import Places
from placet.inference.engines.remote import RemoteDecoder

__all__ = ["GenaiEngine", "load_genai"]

_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256
_MAX_GUIDANCE_BYTES = 65_536
_GUIDANCE = ("json_schema", "regex", "lark_grammar")
_WATCH_S = 1.0
_REBUILD_AFTER_S = 1.0
"""Between two tries to replace what failed; the first is at once."""


def load_genai(
    folder: Path,
    *,
    providers: Sequence[str] | None = None,
    threads: int = 1,
    concurrency: int = 8,
    max_waiting: int = 64,
    stuck_after_s: float = 60.0,
    build_within_s: float = 300.0,
    decoder: Callable[[], Decoder] | None = None,
) -> GenaiEngine:
    """Load a folder: model.onnx, genai_config.json, tokenizer.json, tokenizer_config.json. Blocks, up to minutes: call it in a thread.

    `providers` None: CUDA when it is there, then CPU. `concurrency` requests run at once. An engine that gives no sign of life for
    `stuck_after_s` is rebuilt. `decoder`: another one than a child process with onnxruntime-genai.

    Raises:
        InvalidInput: not such a folder. Unavailable: it did not load in time.
    """
    config = _json(folder / "genai_config.json")
    try:
        model = config["model"]
        context, vocabulary, graph_file = int(model["context_length"]), int(model["vocab_size"]), str(model["decoder"]["filename"])
    except (KeyError, TypeError, ValueError):
        raise InvalidInput("genai_config.json names no context_length, vocab_size or decoder", field="model") from None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 - the library raises plain exceptions
        raise InvalidInput(f"tokenizer.json does not load: {str(error)[:200]}", field="model") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    template = _template(folder)
    started = time.perf_counter()
    build = decoder or partial(
        RemoteDecoder, folder, providers=providers, threads=threads, max_batch=concurrency, template=template, ready_within_s=build_within_s
    )
    new_owner = partial(Owner, build, stuck_after_s=stuck_after_s, build_within_s=build_within_s, name="genai")
    owner = new_owner()
    owner.wait_until_built()
    try:
        info = _info(folder, graph_file, owner, concurrency=concurrency, context=context, warm_up_s=time.perf_counter() - started)
    except BaseException:
        owner.close()
        raise
    return GenaiEngine(
        tokenizer,
        info,
        owner,
        new_owner,
        vocabulary=vocabulary,
        places=Places(concurrency, max_waiting),
        chats=template is not None,
    )


def _info(folder: Path, graph_file: str, owner: Owner, *, concurrency: int, context: int, warm_up_s: float) -> EngineInfo:
    path = folder / graph_file
    graph = profile.graph_of(path)
    files = [path, *profile.external_files(path, graph), folder / "genai_config.json", folder / "tokenizer.json"]
    return EngineInfo(
        engine=owner.engine,
        provider=owner.provider,
        profile=profile.profile_id(
            [profile.sha256_of(file) for file in files],
            engine=owner.engine,
            provider=owner.provider,
            optimisation="all",
            quantisation=profile.quantisation_of(graph),
        ),
        concurrency=concurrency,
        batches=True,
        warm_up_s=warm_up_s,
        context_length=context,
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path.name} is not there or not JSON ({type(error).__name__})", field="model") from None


def _template(folder: Path) -> str | None:
    """The chat template, from where Hugging Face's tools put it."""
    beside = folder / "chat_template.jinja"
    found: Any = beside.read_text() if beside.exists() else _json(folder / "tokenizer_config.json").get("chat_template")
    if not isinstance(found, str | None):
        raise InvalidInput("tokenizer_config.json: chat_template is one text", field="model")
    return found or None


class GenaiEngine:
    """`TextEngine` over onnxruntime-genai."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        info: EngineInfo,
        owner: Owner,
        new_owner: Callable[[], Owner],
        *,
        vocabulary: int,
        places: Places,
        chats: bool,
    ) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._owner = owner
        self._new_owner = new_owner
        self._vocabulary = vocabulary
        self._places = places
        self._chats = chats
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)
        # Not the owner's thread, which must not wait for it.
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="genai-prompt")
        self._closed = False
        self.rebuilds = 0
        """Owners that hung or could not load, and were replaced."""

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting)."""
        return self._places.running, self._places.waiting

    async def chat_prompt(self, messages: Sequence[ChatMessage]) -> TextPrompt:
        """As `TextEngine.chat_prompt`."""
        if not self._chats:
            raise InvalidInput("the model has no chat template: use completions", field="/messages")
        if not messages:
            raise InvalidInput("at least one message is wanted", field="/messages")
        self._check_length(sum(len(message.content) for message in messages), "/messages")
        plain = [
            {**message.extra, "role": message.role, "content": message.content, **({} if message.name is None else {"name": message.name})}
            for message in messages
        ]
        owner = self._living_owner()
        rendered = owner.chat_text(json.dumps(plain))
        while not (await asyncio.wait([rendered], timeout=_WATCH_S))[0]:
            self._watch(owner)
        return await self._encoded(rendered.result(), special=False)

    async def plain_prompt(self, text: str) -> TextPrompt:
        """As `TextEngine.plain_prompt`."""
        self._check_length(len(text), "/prompt")
        return await self._encoded(text, special=True)

    async def _encoded(self, text: str, *, special: bool) -> TextPrompt:
        if self._closed:
            raise Unavailable("the model is being unloaded")

        def encode() -> TextPrompt:
            # Of the library's two ways only this one lets go of the interpreter's lock.
            return TextPrompt(tuple(self._tokenizer.encode_batch([text], add_special_tokens=special)[0].ids), text)

        return await asyncio.get_running_loop().run_in_executor(self._encoding, encode)

    def _check_length(self, characters: int, field: str) -> None:
        """What cannot fit is not even encoded."""
        if characters > (self.info.context_length or 0) * self._longest:
            raise TooLarge(f"{characters} characters cannot fit into the context of {self.info.context_length} tokens", field=field)

    async def generate(
        self, prompt: TextPrompt, sampling: Sampling, *, deadline: float, alone: bool = False
    ) -> AsyncIterator[TextPiece | TextEnd]:
        """As `TextEngine.generate`."""
        self._check(prompt, sampling)
        queued_s = await self._places.take(deadline)
        started = time.perf_counter()
        task = Task(prompt.tokens, sampling, alone=alone, decode=self._decode, loop=asyncio.get_running_loop())
        done = False
        told = given = 0
        try:
            owner = self._living_owner()
            owner.submit(task)
            while True:
                event = await self._next(task, owner, deadline)
                if isinstance(event, TextPiece):
                    told, given = told + event.tokens, given + 1
                    yield event
                    continue
                if event is None and not given:
                    raise DeadlineExceeded("the deadline passed before the first piece of text")
                if event is None:
                    event = Ended(Finish.INTERRUPTED, told)
                if not isinstance(event, Ended):
                    raise event
                took = time.perf_counter() - started
                task.cancelled = done = True
                self._places.give_back(took)  # now: who has read the end may never come back
                yield TextEnd(event.finish, len(prompt.tokens), event.completion_tokens, queued_s, took)
                return
        finally:
            if not done:
                task.cancelled = True
                self._places.give_back(time.perf_counter() - started)

    async def close(self) -> None:
        """As `TextEngine.close`."""
        self._closed = True
        self._places.close()
        self._owner.close()
        if not await asyncio.to_thread(self._owner.join, 5.0):
            self._owner.abandon(Unavailable("the model is being unloaded"))
        self._encoding.shutdown(wait=False, cancel_futures=True)

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens)
        return text

    async def _next(self, task: Task, owner: Owner, deadline: float) -> Event | None:
        """The next event; None: the deadline passed. Those who wait are the watchdog of the thread they wait for."""
        loop = asyncio.get_running_loop()
        while task.events.empty():
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + _WATCH_S)):
                    return await task.events.get()
            except TimeoutError:
                self._watch(owner)
                if loop.time() >= deadline and task.events.empty():
                    return None
        return task.events.get_nowait()

    def _watch(self, owner: Owner) -> None:
        if owner.failure is None and owner.overdue:
            owner.abandon(Unavailable("the engine hung and is being rebuilt", retry_after_ms=1_000))

    def _living_owner(self) -> Owner:
        if self._closed:
            raise Unavailable("the model is being unloaded")
        self._watch(self._owner)
        if self._owner.failure is not None:
            if time.monotonic() - self._owner.failed_at < _REBUILD_AFTER_S and self.rebuilds:
                raise Unavailable("the engine broke and is being rebuilt", retry_after_ms=1_000)
            self.rebuilds += 1
            self._owner = self._new_owner()
        return self._owner

    def _check(self, prompt: TextPrompt, sampling: Sampling) -> None:
        context = self.info.context_length or 0
        if not prompt.tokens:
            raise InvalidInput("the prompt is empty", field="/prompt")
        if not 0 <= min(prompt.tokens) <= max(prompt.tokens) < self._vocabulary:
            raise InvalidInput(f"the prompt holds a token outside the vocabulary of {self._vocabulary}", field="/prompt")
        if sampling.max_tokens < 1 or len(prompt.tokens) + sampling.max_tokens > context:
            left = max(context - len(prompt.tokens), 0)
            raise InvalidInput(
                f"{len(prompt.tokens)} tokens of prompt leave {left} of the context of {context}, not {sampling.max_tokens}",
                field="/max_tokens",
            )
        if not (math.isfinite(sampling.temperature) and 0 <= sampling.temperature <= 2):
            raise InvalidInput("temperature is a number from 0 to 2", field="/temperature")
        if not 0 < sampling.top_p <= 1:
            raise InvalidInput("top_p is a number above 0, up to 1", field="/top_p")
        if sampling.top_k < 0:
            raise InvalidInput("top_k is 0 or more", field="/top_k")
        if len(sampling.stop) > _MAX_STOPS or not all(1 <= len(stop) <= _MAX_STOP_CHARACTERS for stop in sampling.stop):
            raise InvalidInput(f"stop is up to {_MAX_STOPS} strings of 1 to {_MAX_STOP_CHARACTERS} characters", field="/stop")
        if sampling.guidance is not None:
            kind, text = sampling.guidance
            if kind not in _GUIDANCE:
                raise InvalidInput(f"guidance is one of {', '.join(_GUIDANCE)}, not {kind[:32]!r}", field="/response_format")
            if len(text.encode()) > _MAX_GUIDANCE_BYTES:
                raise TooLarge(f"guidance exceeds {_MAX_GUIDANCE_BYTES} bytes", field="/response_format")
