"""onnxruntime-genai as a decoder.

What was measured with 0.18, and shapes this module
- The library has telemetry: it is switched off before anything else.
- `og.Engine` must be created and driven by one thread. With ordinary exports it batches statically: who comes while a batch runs waits
  until the longest answer of the batch is complete; and it runs four at once, whatever size is configured. Several Engines over one model
  do not disturb each other and cost next to nothing. So requests that arrive together share Engines, as many as each really runs at once,
  and whoever comes alone gets a `og.Generator`. All are stepped in turn: nobody waits for somebody else's answer.
- A seed needs a Generator. So does guidance: a grammar that does not fit the vocabulary makes an Engine useless for everybody in it, a
  Generator only for its own request. So does a request that must run alone.
- A token outside the vocabulary breaks the Engine too: prompts are checked before they come here.
- Sampling keeps the top logit unless top_k is set as well.
- A Generator holds the interpreter's lock while it reads a prompt, as do loading a model and chat templates: see remote.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og

from placet.core.errors import InvalidInput
from placet.core.receipts import Finish
from placet.inference.engines import profile
from placet.inference.engines.base import Sampling
from placet.inference.engines.decoding import Job, Step
from placet.inference.engines.onnx import CUDA, refusal

__all__ = ["OgDecoder"]

_EVENTS = 256


class _Batch:
    """Requests that came together, and their Engine."""

    def __init__(self, model: Any) -> None:
        self.engine = og.Engine(model)
        self.buffer = self.engine.create_event_buffer(_EVENTS)
        self.requests: dict[Job, Any] = {}
        self.jobs: dict[Any, Job] = {}

    def begin(self, job: Job, top_k: int) -> None:
        """A request more; only before the first run."""
        request = self.engine.create_request()
        options = og.TurnOptions(request)
        sampling = job.sampling
        options.set_max_generated_tokens(sampling.max_tokens)
        greedy = sampling.temperature == 0
        options.set_do_sample(not greedy)
        if not greedy:
            options.set_temperature(sampling.temperature)
            options.set_top_k(top_k)
            options.set_top_p(sampling.top_p)
        request.begin_turn(np.asarray(job.tokens, dtype=np.int32), options)
        self.requests[job] = request
        self.jobs[request] = job

    def run(self) -> Iterator[Step]:
        """A token for every request."""
        for event in self.engine.run(self.buffer):
            reason = event.finish_reason
            if reason == og.FinishReason.FAILED:
                raise RuntimeError(f"the Engine failed a turn: {event.error_code}")
            job = self.jobs.get(event.request)
            if job is None:
                continue
            if event.flags.value & og.EngineEventFlags.TOKEN.value:
                yield Step(job, token=int(event.token))
            if reason == og.FinishReason.EOS:
                yield Step(job, finish=Finish.STOP)
            elif reason in (og.FinishReason.MAX_GENERATED_TOKENS, og.FinishReason.MAX_SESSION_TOKENS):
                yield Step(job, finish=Finish.LENGTH)
            elif reason != og.FinishReason.NONE:
                yield Step(job, finish=Finish.INTERRUPTED)

    def drop(self, job: Job) -> None:
        """The request is of no interest any more."""
        request = self.requests.pop(job)
        del self.jobs[request]
        request.close()


class OgDecoder:
    """A model, with Engines for requests that come together and Generators for the others."""

    def __init__(
        self, folder: Path, *, providers: Sequence[str] | None = None, threads: int = 1, max_batch: int = 8, template: str | None = None
    ) -> None:
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
            self._processor = None if template is None else og.Tokenizer(str(folder))
        except RuntimeError as error:
            raise InvalidInput(f"onnxruntime-genai does not load the model: {refusal(error)}", field="model") from None
        self.engine = f"onnxruntime-genai {og.__version__}"
        self.provider = f"{self._model.device_type}ExecutionProvider"
        self._template = template
        model = json.loads((folder / "genai_config.json").read_bytes())["model"]
        self._vocabulary = int(model["vocab_size"])
        self._ends = _end_tokens(model)
        self._batches: dict[Job, _Batch] = {}
        self._generators: dict[Job, Any] = {}
        self._generator([0], Sampling(max_tokens=1)).generate_next_token()
        self.width = self._measured_width(max_batch)
        """Requests that one Engine runs at once; more would wait in it."""

    def chat_text(self, messages: str) -> str:
        """As `Decoder.chat_text`."""
        if self._processor is None:
            raise InvalidInput("the model has no chat template: use completions", field="/messages")
        try:
            text: str = self._processor.apply_chat_template(messages, template_str=self._template, add_generation_prompt=True)
        except RuntimeError as error:
            said = str(error).partition(" at row ")[0].splitlines()
            raise InvalidInput(f"the model's chat template refuses: {said[0][:200] if said else 'it fails'}", field="/messages") from None
        return text

    def begin(self, jobs: Sequence[Job]) -> Iterator[Step]:
        """As `Decoder.begin`."""
        sharing = [job for job in jobs if _may_share(job)]
        for at in range(0, len(sharing), self.width):
            group = sharing[at : at + self.width]
            if len(group) > 1:
                batch = _Batch(self._model)
                for job in group:
                    batch.begin(job, self._top_k(job.sampling))
                    self._batches[job] = batch
        for job in jobs:
            if job not in self._batches:
                yield from self._begin_generator(job)

    def _measured_width(self, most: int) -> int:
        batch = _Batch(self._model)
        for _ in range(most):
            batch.begin(Job([0], Sampling(max_tokens=1), alone=False), 0)
        width = len({step.job for step in batch.run()})
        for job in list(batch.requests):
            batch.drop(job)
        return max(width, 1)

    def _begin_generator(self, job: Job) -> Iterator[Step]:
        try:
            self._generators[job] = self._generator(job.tokens, job.sampling)
        except RuntimeError as error:
            if job.sampling.guidance is None:
                raise
            yield Step(job, error=_guidance_refused(error))

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
        for batch in set(self._batches.values()):
            steps.extend(batch.run())
        for job, generator in list(self._generators.items()):
            steps.append(self._generator_step(job, generator))
        return steps

    def _generator_step(self, job: Job, generator: Any) -> Step:
        try:
            generator.generate_next_token()
        except RuntimeError as error:
            if job.sampling.guidance is None:
                raise
            return Step(job, error=_guidance_refused(error))
        token = int(generator.get_next_tokens()[0])
        if token in self._ends:
            return Step(job, finish=Finish.STOP)
        return Step(job, token=token, finish=Finish.LENGTH if generator.is_done() else None)

    def drop(self, job: Job) -> None:
        """As `Decoder.drop`."""
        self._generators.pop(job, None)
        batch = self._batches.pop(job, None)
        if batch is not None:
            batch.drop(job)

    def close(self) -> None:
        """As `Decoder.close`."""
        for job in [*self._batches, *self._generators]:
            self.drop(job)
        del self._model

    def kill(self) -> None:
        """As `Decoder.kill`: native code in this process cannot be ended."""

    def _top_k(self, sampling: Sampling) -> int:
        """0 is no limit, and so is any number as large as the vocabulary, which the library would refuse."""
        return sampling.top_k if sampling.top_k < self._vocabulary else 0


def _may_share(job: Job) -> bool:
    sampling = job.sampling
    return not job.alone and sampling.guidance is None and (sampling.seed is None or sampling.temperature == 0)


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
