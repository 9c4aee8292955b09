"""Language models on onnxruntime-genai.

What was measured with 0.18, and shapes this module
- The library has telemetry: it is switched off before anything else.
- `og.Engine` must be created and driven by one thread (owner.py). With ordinary exports it batches statically: who comes while a batch runs
  waits until the longest answer of the batch is complete. So requests that arrive together share a batch, and whoever comes later gets a
  `og.Generator`, which is stepped in turn with the batch.
- A seed needs a Generator. So does guidance: a grammar that does not fit the vocabulary makes an Engine useless for everybody in it, a
  Generator only for its own request. So does a request that must run alone.
- A token outside the vocabulary breaks the Engine too: prompts are checked before.
- Sampling keeps the top logit unless top_k is set as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
from tokenizers import Tokenizer

from placet.core.errors import DeadlineExceeded, InvalidInput, TooLarge, Unavailable
from placet.core.receipts import Finish
from placet.inference.engines import profile
from placet.inference.engines.base import ChatMessage, EngineInfo, Sampling, TextEnd, TextPiece, TextPrompt
from placet.inference.engines.onnx import CUDA, refusal
from placet.inference.engines.owner import Decoder, Ended, Event, Owner, Step, Task
from placet.inference.engines.places import Places

__all__ = ["GenaiEngine", "OgDecoder", "load_genai"]

_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256
_MAX_GUIDANCE_BYTES = 65_536
_GUIDANCE = ("json_schema", "regex", "lark_grammar")
_EVENTS = 256
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
    `stuck_after_s` is rebuilt. `decoder`: another one than onnxruntime-genai's, for tests.

    Raises:
        InvalidInput: not such a folder. Unavailable: it did not load in time.
    """
    og.disable_telemetry_events()
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
    try:
        processor = None if template is None else og.Tokenizer(str(folder))
    except RuntimeError as error:
        raise InvalidInput(f"onnxruntime-genai does not load the tokenizer: {refusal(error)}", field="model") from None
    started = time.perf_counter()
    build = decoder or partial(OgDecoder, folder, providers=providers, threads=threads, max_batch=concurrency)
    new_owner = partial(Owner, build, stuck_after_s=stuck_after_s, build_within_s=build_within_s, name="genai")
    owner = new_owner()
    owner.wait_until_built()
    path = folder / graph_file
    graph = profile.graph_of(path)
    files = [path, *profile.external_files(path, graph), folder / "genai_config.json", folder / "tokenizer.json"]
    engine = f"onnxruntime-genai {og.__version__}"
    info = EngineInfo(
        engine=engine,
        provider=owner.provider,
        profile=profile.profile_id(
            [profile.sha256_of(file) for file in files],
            engine=engine,
            provider=owner.provider,
            optimisation="all",
            quantisation=profile.quantisation_of(graph),
        ),
        concurrency=concurrency,
        batches=True,
        warm_up_s=time.perf_counter() - started,
        context_length=context,
    )
    return GenaiEngine(
        tokenizer,
        info,
        owner,
        new_owner,
        vocabulary=vocabulary,
        places=Places(concurrency, max_waiting),
        template=template,
        processor=processor,
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
        template: str | None,
        processor: Any,
    ) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._owner = owner
        self._new_owner = new_owner
        self._vocabulary = vocabulary
        self._places = places
        self._template = template
        # The template processor is not known to be safe for threads: one thread, and it is not the owner's, which must not wait for it.
        self._prompts = ThreadPoolExecutor(1, thread_name_prefix="genai-prompt")
        self._processor = processor
        self._closed = False
        self.rebuilds = 0
        """Owners that hung or could not load, and were replaced."""

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting)."""
        return self._places.running, self._places.waiting

    async def chat_prompt(self, messages: Sequence[ChatMessage]) -> TextPrompt:
        """As `TextEngine.chat_prompt`."""
        if self._template is None:
            raise InvalidInput("the model has no chat template: use completions", field="/messages")
        if not messages:
            raise InvalidInput("at least one message is wanted", field="/messages")
        plain = [
            {**message.extra, "role": message.role, "content": message.content, **({} if message.name is None else {"name": message.name})}
            for message in messages
        ]
        return await self._in_thread(lambda: self._chat(json.dumps(plain)))

    async def plain_prompt(self, text: str) -> TextPrompt:
        """As `TextEngine.plain_prompt`."""
        return await self._in_thread(lambda: TextPrompt(tuple(self._tokenizer.encode(text).ids), text))

    async def _in_thread(self, call: Callable[[], TextPrompt]) -> TextPrompt:
        if self._closed:
            raise Unavailable("the model is being unloaded")
        return await asyncio.get_running_loop().run_in_executor(self._prompts, call)

    def _chat(self, messages: str) -> TextPrompt:
        assert self._processor is not None
        try:
            text = self._processor.apply_chat_template(messages, template_str=self._template, add_generation_prompt=True)
        except RuntimeError as error:
            said = str(error).partition(" at row ")[0].splitlines()
            raise InvalidInput(f"the model's chat template refuses: {said[0][:200] if said else 'it fails'}", field="/messages") from None
        return TextPrompt(tuple(self._tokenizer.encode(text, add_special_tokens=False).ids), text)

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
        self._prompts.shutdown(wait=False, cancel_futures=True)

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
                if owner.overdue:
                    owner.abandon(Unavailable("the engine hung and is being rebuilt", retry_after_ms=1_000))
                if loop.time() >= deadline and task.events.empty():
                    return None
        return task.events.get_nowait()

    def _living_owner(self) -> Owner:
        if self._closed:
            raise Unavailable("the model is being unloaded")
        if self._owner.failure is None and self._owner.overdue:
            self._owner.abandon(Unavailable("the engine hung and is being rebuilt", retry_after_ms=1_000))
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


# --- onnxruntime-genai, in the owner's thread


class OgDecoder:
    """A model with an Engine for requests that come together and Generators for the others."""

    def __init__(self, folder: Path, *, providers: Sequence[str] | None, threads: int, max_batch: int) -> None:
        og.disable_telemetry_events()
        ort.disable_telemetry_events()
        config = og.Config(str(folder))
        config.clear_providers()
        if (providers is None or CUDA in providers) and og.is_cuda_available():
            config.append_provider("cuda")
        elif providers is not None and profile.CPU not in providers:
            raise InvalidInput(f"none of {', '.join(providers)} is in this build of onnxruntime-genai", field="providers")
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1, "session.intra_op.allow_spinning": "0"}
        config.overlay(
            json.dumps({"model": {"decoder": {"session_options": session}}, "engine": {"static_batching": {"max_batch_size": max_batch}}})
        )
        try:
            self._model = og.Model(config)
            self._engine = og.Engine(self._model)
        except RuntimeError as error:
            raise InvalidInput(f"onnxruntime-genai does not load the model: {refusal(error)}", field="model") from None
        self.provider = f"{self._model.device_type}ExecutionProvider"
        model = _json(folder / "genai_config.json")["model"]
        self._vocabulary = int(model["vocab_size"])
        self._ends = _end_tokens(model)
        self._max_batch = max_batch
        self._buffer = self._engine.create_event_buffer(_EVENTS)
        self._turns: dict[Task, Any] = {}
        self._tasks: dict[Any, Task] = {}
        self._generators: dict[Task, Any] = {}
        generator = self._generator([0], Sampling(max_tokens=1))
        generator.generate_next_token()

    def begin(self, tasks: Sequence[Task]) -> Iterator[Step]:
        """As `Decoder.begin`."""
        together = [] if self._turns else [task for task in tasks if _may_share(task)][: self._max_batch]
        if len(together) < 2:
            together = []
        for task in together:
            self._begin_turn(task)
        for task in tasks:
            if task not in self._turns:
                yield from self._begin_generator(task)

    def _begin_turn(self, task: Task) -> None:
        request = self._engine.create_request()
        options = og.TurnOptions(request)
        sampling = task.sampling
        options.set_max_generated_tokens(sampling.max_tokens)
        greedy = sampling.temperature == 0
        options.set_do_sample(not greedy)
        if not greedy:
            options.set_temperature(sampling.temperature)
            options.set_top_k(self._top_k(sampling))
            options.set_top_p(sampling.top_p)
        request.begin_turn(np.asarray(task.tokens, dtype=np.int32), options)
        self._turns[task] = request
        self._tasks[request] = task

    def _begin_generator(self, task: Task) -> Iterator[Step]:
        try:
            self._generators[task] = self._generator(task.tokens, task.sampling)
        except RuntimeError as error:
            if task.sampling.guidance is None:
                raise
            yield Step(task, error=_guidance_refused(error))

    def _generator(self, tokens: Sequence[int], sampling: Sampling) -> Any:
        params = og.GeneratorParams(self._model)
        options: dict[str, Any] = {"max_length": len(tokens) + sampling.max_tokens, "do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_k": self._top_k(sampling), "top_p": sampling.top_p}
            if sampling.seed is not None:
                options["random_seed"] = _seed(sampling.seed)
        params.set_search_options(**options)
        if sampling.guidance is not None:
            kind, text = sampling.guidance
            params.set_guidance(kind, _without_white_space(text) if kind == "json_schema" else text)
        generator = og.Generator(self._model, params)
        generator.append_tokens(np.asarray(tokens, dtype=np.int32))
        return generator

    def step(self) -> Iterable[Step]:
        """As `Decoder.step`."""
        steps: list[Step] = []
        if self._turns:
            for event in self._engine.run(self._buffer):
                steps.extend(self._turn_steps(event))
        for task, generator in list(self._generators.items()):
            steps.append(self._generator_step(task, generator))
        return steps

    def _turn_steps(self, event: Any) -> Iterator[Step]:
        task = self._tasks.get(event.request)
        reason = event.finish_reason
        if reason == og.FinishReason.FAILED:
            raise RuntimeError(f"the Engine failed a turn: {event.error_code}")
        if task is None or task not in self._turns:
            return
        if event.flags.value & og.EngineEventFlags.TOKEN.value:
            yield Step(task, token=int(event.token))
        if reason == og.FinishReason.EOS:
            yield Step(task, finish=Finish.STOP)
        elif reason in (og.FinishReason.MAX_GENERATED_TOKENS, og.FinishReason.MAX_SESSION_TOKENS):
            yield Step(task, finish=Finish.LENGTH)
        elif reason != og.FinishReason.NONE:
            yield Step(task, finish=Finish.INTERRUPTED)

    def _generator_step(self, task: Task, generator: Any) -> Step:
        try:
            generator.generate_next_token()
        except RuntimeError as error:
            if task.sampling.guidance is None:
                raise
            return Step(task, error=_guidance_refused(error))
        token = int(generator.get_next_tokens()[0])
        if token in self._ends:
            return Step(task, finish=Finish.STOP)
        return Step(task, token=token, finish=Finish.LENGTH if generator.is_done() else None)

    def drop(self, task: Task) -> None:
        """As `Decoder.drop`."""
        self._generators.pop(task, None)
        request = self._turns.pop(task, None)
        if request is not None:
            del self._tasks[request]
            request.close()

    def close(self) -> None:
        """As `Decoder.close`."""
        for task in [*self._turns, *self._generators]:
            self.drop(task)
        del self._buffer, self._engine, self._model

    def _top_k(self, sampling: Sampling) -> int:
        """0 is no limit, and so is any number as large as the vocabulary, which the library would refuse."""
        return sampling.top_k if sampling.top_k < self._vocabulary else 0


def _may_share(task: Task) -> bool:
    sampling = task.sampling
    return not task.alone and sampling.guidance is None and (sampling.seed is None or sampling.temperature == 0)


def _end_tokens(model: Mapping[str, Any]) -> frozenset[int]:
    ends = model.get("eos_token_id", [])
    return frozenset(ends if isinstance(ends, list) else [ends])


def _seed(seed: int) -> int:
    """The library takes 31 bits; other seeds are folded into them."""
    if 0 <= seed < 2**31:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big") >> 1


def _without_white_space(schema: str) -> str:
    """The schema, with white space between JSON's tokens forbidden unless it says otherwise: models can spend all their tokens on it."""
    try:
        document = json.loads(schema)
    except ValueError:
        return schema  # the library says what is wrong with it
    if isinstance(document, dict):
        document.setdefault("x-guidance", {"whitespace_flexible": False})
    return json.dumps(document)


def _guidance_refused(error: RuntimeError) -> InvalidInput:
    said = " ".join(str(error).partition("<state>")[0].split())
    return InvalidInput(f"this model cannot follow the guidance: {said[:300]}", field="/response_format")
