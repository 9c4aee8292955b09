from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime_genai as og
import pytest
from tokenizers import Tokenizer

from placet.core.errors import DeadlineExceeded, InvalidInput, RateLimited, TooLarge, Unavailable
from placet.core.receipts import Finish
from placet.inference.engines import genai
from placet.inference.engines.base import ChatMessage, Sampling, TextEnd, TextPiece, TextPrompt
from placet.inference.engines.decoding import Job, Step
from placet.inference.engines.genai import GenaiEngine, load_genai
from placet.inference.engines.ogdecoder import OgDecoder
from placet.inference.engines.remote import RemoteDecoder
from tests.support.models import CHAT_TEMPLATE
from tests.support.waiting import until, within

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["alice", "bob"]}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def folder(model: Callable[[str], Path]) -> Path:
    return model("language_model")


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[GenaiEngine]:
    """In this process: most tests are not about the child, which takes half a second to start."""
    async with loaded(folder, decoder=partial(OgDecoder, folder, template=CHAT_TEMPLATE)) as made:
        yield made


@asynccontextmanager
async def loaded(folder: Path, **options: Any) -> AsyncIterator[GenaiEngine]:
    made = load_genai(folder, **options)
    try:
        yield made
    finally:
        await made.close()


@dataclass
class Answer:
    pieces: list[str]
    end: TextEnd
    counted: int

    @property
    def text(self) -> str:
        return "".join(self.pieces)


async def ask(engine: GenaiEngine, sampling: Sampling, prompt: TextPrompt | None = None, *, alone: bool = False) -> Answer:
    pieces: list[str] = []
    counted = 0
    async for event in engine.generate(prompt or await hello(engine), sampling, deadline=within(), alone=alone):
        if isinstance(event, TextEnd):
            return Answer(pieces, event, counted)
        pieces.append(event.text)
        counted += event.tokens
    raise AssertionError("an answer without an end")


async def hello(engine: GenaiEngine) -> TextPrompt:
    return await engine.chat_prompt([ChatMessage("user", "hello")])


# --- decoders that do what a test needs


class Stepped(OgDecoder):
    """onnxruntime-genai, a step at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, template=CHAT_TEMPLATE)
        self.may_step = threading.Semaphore(0)
        self.steps = 0
        self.dropped: list[Job] = []
        self.in_generators = 0

    def step(self) -> Iterable[Step]:
        assert self.may_step.acquire(timeout=20)
        self.steps += 1
        self.in_generators = len(self._generators)
        return super().step()

    def drop(self, job: Job) -> None:
        self.dropped.append(job)
        super().drop(job)


@asynccontextmanager
async def stepped(folder: Path, **options: Any) -> AsyncIterator[tuple[GenaiEngine, Stepped]]:
    made: list[Stepped] = []

    def build() -> Stepped:  # by the owner's thread
        made.append(Stepped(folder))
        return made[0]

    async with loaded(folder, decoder=build, **options) as engine:
        try:
            yield engine, made[0]
        finally:
            made[0].may_step.release(10_000)


class Scripted:
    """Says what it is told to say, a token a step."""

    engine = "script 1"
    provider = "CPUExecutionProvider"

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._left: dict[Job, Iterator[int]] = {}

    def chat_text(self, messages: str) -> str:
        return messages

    def begin(self, jobs: Sequence[Job]) -> Iterable[Step]:
        self._left |= {job: iter(self._tokens) for job in jobs}
        return []

    def step(self) -> Iterable[Step]:
        for job, left in list(self._left.items()):
            token = next(left, None)
            yield Step(job, token=token, finish=Finish.STOP if token is None else None)

    def drop(self, job: Job) -> None:
        self._left.pop(job, None)

    def close(self) -> None:
        self._left.clear()

    def kill(self) -> None:
        pass


def saying(folder: Path, text: str) -> Callable[[], Scripted]:
    return lambda: Scripted(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)


# --- what it says


async def test_greedy_is_what_the_model_says_token_for_token(engine: GenaiEngine, folder: Path) -> None:
    prompt = await hello(engine)
    answer = await ask(engine, Sampling(40), prompt)
    params = og.GeneratorParams(model := og.Model(str(folder)))
    params.set_search_options(do_sample=False, max_length=len(prompt.tokens) + 40)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(prompt.tokens, dtype=np.int32))
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    assert answer.text == Tokenizer.from_file(str(folder / "tokenizer.json")).decode(tokens)
    assert answer.end.finish is Finish.LENGTH
    assert (answer.end.prompt_tokens, answer.end.completion_tokens) == (len(prompt.tokens), 40)
    assert answer.counted <= 40
    assert answer.end.computed_s > 0


async def test_what_it_is(engine: GenaiEngine) -> None:
    assert engine.info.engine == f"onnxruntime-genai {og.__version__}"
    assert engine.info.provider == "CPUExecutionProvider"
    assert engine.info.context_length == 2048
    assert engine.info.profile is not None


async def test_requests_that_come_together_get_what_each_gets_alone(engine: GenaiEngine) -> None:
    prompts = [await engine.chat_prompt([ChatMessage("user", "the dog " * count)]) for count in range(1, 7)]
    alone = [await ask(engine, Sampling(60), prompt, alone=True) for prompt in prompts]
    together = await asyncio.gather(*(ask(engine, Sampling(60), prompt) for prompt in prompts))
    assert [answer.text for answer in together] == [answer.text for answer in alone]


async def test_the_same_seed_says_the_same_and_another_seed_another(engine: GenaiEngine) -> None:
    def sampling(seed: int | None) -> Sampling:
        return Sampling(30, temperature=1.0, seed=seed)

    seeds: list[int | None] = [1, 1, 2, 2**63 - 1, 2**63 - 1, -5, None, None]
    texts = [answer.text for answer in await asyncio.gather(*(ask(engine, sampling(seed)) for seed in seeds))]
    assert texts[0] == texts[1]
    assert texts[3] == texts[4]
    assert len(set(texts)) == 6


async def test_unseeded_requests_that_share_a_batch_sample_differently(engine: GenaiEngine) -> None:
    answers = await asyncio.gather(*(ask(engine, Sampling(30, temperature=1.0)) for _ in range(4)))
    assert len({answer.text for answer in answers}) == 4


async def test_top_k_of_one_and_no_temperature_are_greedy(engine: GenaiEngine) -> None:
    greedy = await ask(engine, Sampling(20))
    assert (await ask(engine, Sampling(20, temperature=1.0, top_k=1, seed=3))).text == greedy.text
    assert (await ask(engine, Sampling(20, temperature=1.0, top_p=1e-6, seed=3))).text == greedy.text
    assert (await ask(engine, Sampling(20, temperature=0.0, seed=3))).text == greedy.text
    assert (await ask(engine, Sampling(20, temperature=1.0, top_k=10**6, seed=3))).text != greedy.text


async def test_guidance_gives_valid_json_or_says_that_it_was_cut(engine: GenaiEngine) -> None:
    for seed in range(6):
        answer = await ask(engine, Sampling(60, temperature=1.0, seed=seed, guidance=("json_schema", json.dumps(SCHEMA))))
        if answer.end.finish is Finish.STOP:
            value = json.loads(answer.text)
            assert value["name"] in ("alice", "bob")
            assert isinstance(value["ok"], bool)
        else:
            assert answer.end.finish is Finish.LENGTH
    whole = await ask(engine, Sampling(60, guidance=("json_schema", json.dumps(SCHEMA))))
    assert whole.end.finish is Finish.STOP
    cut = await ask(engine, Sampling(3, guidance=("json_schema", json.dumps(SCHEMA))))
    assert cut.end.finish is Finish.LENGTH


@pytest.mark.parametrize(
    ("guidance", "choices"), [(("regex", "(yes|no)"), {"yes", "no"}), (("lark_grammar", 'start: "A" ("1" | "2")'), {"A1", "A2"})]
)
async def test_regexes_and_grammars_guide_too(engine: GenaiEngine, guidance: tuple[str, str], choices: set[str]) -> None:
    answer = await ask(engine, Sampling(20, guidance=guidance))
    assert answer.text in choices
    assert answer.end.finish is Finish.STOP


@pytest.mark.parametrize("guidance", [("json_schema", "{"), ("json_schema", '{"type": "nonsense"}'), ("regex", "("), ("lark_grammar", "?")])
async def test_guidance_that_is_wrong_is_refused(engine: GenaiEngine, guidance: tuple[str, str]) -> None:
    with pytest.raises(InvalidInput, match="cannot follow the guidance") as refused:
        await ask(engine, Sampling(20, guidance=guidance))
    assert refused.value.field == "/response_format"


async def test_guidance_that_fails_on_the_way_fails_nobody_else(engine: GenaiEngine) -> None:
    alone = await ask(engine, Sampling(100))
    hostile = Sampling(30, guidance=("regex", "[é-ü]{3}🎈"))
    *neighbours, wrong = await asyncio.gather(*(ask(engine, Sampling(100)) for _ in range(3)), ask(engine, hostile), return_exceptions=True)
    assert [cast(Answer, neighbour).text for neighbour in neighbours] == [alone.text] * 3
    assert isinstance(wrong, InvalidInput)
    assert engine._owner.builds == 1


# --- pieces


async def test_characters_and_stop_strings_over_many_tokens_come_out_whole_or_not_at_all(folder: Path) -> None:
    text = "Grüße 🎈🎈 the end. ST and STOP and more"
    async with loaded(folder, decoder=saying(folder, text)) as engine:
        answer = await ask(engine, Sampling(500, stop=("STOP", "never")))
        assert answer.text == "Grüße 🎈🎈 the end. ST and "
        assert answer.end.finish is Finish.STOP
        assert all(piece and "�" not in piece for piece in answer.pieces)
        assert len(answer.pieces) > 10
        whole = await ask(engine, Sampling(500))
        assert whole.text == text
        assert whole.end.finish is Finish.STOP
        assert whole.end.completion_tokens == whole.counted


async def test_what_was_held_for_a_stop_string_that_did_not_come_is_told_at_the_end(folder: Path) -> None:
    async with loaded(folder, decoder=saying(folder, "all ST")) as engine:
        answer = await ask(engine, Sampling(500, stop=("STOP",)))
        assert answer.text == "all ST"


async def test_a_stop_string_of_a_real_answer_ends_it(engine: GenaiEngine) -> None:
    whole = (await ask(engine, Sampling(60))).text
    stop = whole[20:23]
    answer = await ask(engine, Sampling(60, stop=(stop,)))
    assert answer.text == whole[: whole.index(stop)]
    assert answer.end.finish is Finish.STOP
    assert answer.end.completion_tokens < 60


# --- who waits for whom


async def test_leaving_stops_the_work_within_a_token(folder: Path) -> None:
    async with stepped(folder) as (engine, decoder):
        answer = cast(AsyncGenerator[TextPiece | TextEnd], engine.generate(await hello(engine), Sampling(2_000), deadline=within()))
        first = asyncio.create_task(anext(answer))
        decoder.may_step.release(10)
        assert isinstance(await first, TextPiece)
        await until(lambda: decoder.steps == 10)
        await answer.aclose()
        assert engine.load == (0, 0)
        decoder.may_step.release(100)
        await until(lambda: len(decoder.dropped) == 1)
        assert decoder.steps <= 11


async def test_who_comes_later_does_not_wait_for_the_longest_of_the_batch(folder: Path) -> None:
    async with stepped(folder) as (engine, decoder):
        prompt = await hello(engine)
        first = asyncio.create_task(ask(engine, Sampling(2), prompt))
        await until(lambda: engine.load == (1, 0))
        long = [asyncio.create_task(ask(engine, Sampling(1_000), prompt)) for _ in range(2)]
        await until(lambda: engine.load == (3, 0))
        decoder.may_step.release(3)
        await first
        await until(lambda: decoder.steps == 3)
        assert decoder.in_generators == 0, "those who came together share a batch"
        late = asyncio.create_task(ask(engine, Sampling(3), prompt))
        await until(lambda: engine.load == (3, 0))
        decoder.may_step.release(6)
        assert (await late).end.completion_tokens == 3
        assert not any(task.done() for task in long)
        decoder.may_step.release(2_000)
        assert [answer.end.completion_tokens for answer in await asyncio.gather(*long)] == [1_000, 1_000]


async def test_nobody_waits_inside_a_batch_however_many_come_together(folder: Path) -> None:
    async with stepped(folder, concurrency=16) as (engine, decoder):
        prompt = await hello(engine)
        first = asyncio.create_task(ask(engine, Sampling(1), prompt))
        await until(lambda: engine.load == (1, 0))
        many = [asyncio.create_task(ask(engine, Sampling(count), prompt)) for count in (900, 900, 900, 900, 900, 900, 900, 900, 2, 2, 2)]
        await until(lambda: engine.load == (12, 0))
        decoder.may_step.release(3)
        await first
        assert [answer.end.completion_tokens for answer in await asyncio.gather(*many[8:])] == [2, 2, 2]
        assert not any(task.done() for task in many[:8])
        assert decoder.in_generators == 0
        decoder.may_step.release(2_000)
        assert {answer.end.completion_tokens for answer in await asyncio.gather(*many[:8])} == {900}


async def test_who_leaves_a_batch_changes_nothing_for_those_who_stay(folder: Path) -> None:
    async with stepped(folder) as (engine, decoder):
        prompt = await hello(engine)
        decoder.may_step.release(100)
        alone = await ask(engine, Sampling(100), prompt, alone=True)
        await until(lambda: decoder.may_step.acquire(blocking=False) is False)
        first = asyncio.create_task(ask(engine, Sampling(2), prompt))
        await until(lambda: engine.load == (1, 0))
        leaves, *stay = [asyncio.create_task(ask(engine, Sampling(100), prompt)) for _ in range(3)]
        await until(lambda: engine.load == (4, 0))
        before = decoder.steps
        decoder.may_step.release(5)
        await first
        await until(lambda: decoder.steps == before + 5)
        assert decoder.in_generators == 0
        leaves.cancel()
        await until(lambda: engine.load == (2, 0))
        decoder.may_step.release(1_000)
        assert [answer.text for answer in await asyncio.gather(*stay)] == [alone.text] * 2
        assert engine._owner.builds == 1


async def test_a_deadline_before_the_first_piece_is_an_error_and_later_an_end(folder: Path) -> None:
    async with stepped(folder) as (engine, decoder):
        prompt = await hello(engine)
        with pytest.raises(DeadlineExceeded):
            await anext(aiter(engine.generate(prompt, Sampling(10), deadline=within(0.02))))
        with pytest.raises(DeadlineExceeded):
            await anext(aiter(engine.generate(prompt, Sampling(10), deadline=within(-1))))
        decoder.may_step.release(1)
        answer = engine.generate(prompt, Sampling(1_000), deadline=within(0.3))
        decoder.may_step.release(8)
        events = [event async for event in answer]
        assert isinstance(events[0], TextPiece)
        end = events[-1]
        assert isinstance(end, TextEnd)
        assert end.finish is Finish.INTERRUPTED
        assert 0 < end.completion_tokens <= 9
        assert engine.load == (0, 0)
        decoder.may_step.release(100)


async def test_a_full_queue_refuses_and_who_leaves_it_frees_a_place(folder: Path) -> None:
    async with stepped(folder, concurrency=1, max_waiting=1) as (engine, decoder):
        prompt = await hello(engine)
        runs = asyncio.create_task(ask(engine, Sampling(3), prompt))
        await until(lambda: engine.load == (1, 0))
        waits = asyncio.create_task(ask(engine, Sampling(3), prompt))
        await until(lambda: engine.load == (1, 1))
        with pytest.raises(RateLimited) as refused:
            await ask(engine, Sampling(3), prompt)
        assert refused.value.extra["retry_after_ms"] > 0
        waits.cancel()
        await until(lambda: engine.load == (1, 0))
        waits = asyncio.create_task(ask(engine, Sampling(3), prompt))
        await until(lambda: engine.load == (1, 1))
        decoder.may_step.release(100)
        assert (await runs).end.queued_s == 0
        assert (await waits).end.queued_s > 0


# --- what breaks


class Breaking(OgDecoder):
    broken = threading.Event()

    def step(self) -> Iterable[Step]:
        if self.broken.is_set():
            self.broken.clear()
            raise RuntimeError("Static-batch execution failed and the Engine is no longer healthy")
        return super().step()


async def test_an_engine_that_breaks_fails_what_is_open_and_is_built_anew(folder: Path) -> None:
    async with loaded(folder, decoder=partial(Breaking, folder, template=CHAT_TEMPLATE)) as engine:
        before = await ask(engine, Sampling(20))
        Breaking.broken.set()
        failed = await asyncio.gather(*(ask(engine, Sampling(20)) for _ in range(3)), return_exceptions=True)
        assert any(isinstance(failure, Unavailable) for failure in failed)
        assert all(isinstance(failure, Unavailable | Answer) for failure in failed)
        assert (await ask(engine, Sampling(20))).text == before.text
        assert engine._owner.builds == 2
        assert engine.load == (0, 0)


async def test_a_token_outside_the_vocabulary_never_reaches_the_engine(engine: GenaiEngine) -> None:
    for tokens in ((5, 308), (-1,), (), (2**40,)):
        with pytest.raises(InvalidInput) as refused:
            await ask(engine, Sampling(5), TextPrompt(tokens, ""))
        assert refused.value.field == "/prompt"
    assert engine._owner.builds == 1


class Hanging(OgDecoder):
    hangs = threading.Event()
    goes_on = threading.Event()

    def step(self) -> Iterable[Step]:
        if self.hangs.is_set():
            self.hangs.clear()
            self.goes_on.wait(20)
        return super().step()


async def test_an_engine_that_hangs_fails_what_is_open_and_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai, "_WATCH_S", 0.02)
    Hanging.goes_on.clear()
    build = partial(Hanging, folder, template=CHAT_TEMPLATE)
    async with loaded(folder, decoder=build, stuck_after_s=0.2) as engine:
        before = await ask(engine, Sampling(20))
        hung = engine._owner
        Hanging.hangs.set()
        failed = await asyncio.gather(*(ask(engine, Sampling(20)) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(failure, Unavailable) for failure in failed)
        assert (await ask(engine, Sampling(20))).text == before.text
        assert engine._owner is not hung
        assert engine.rebuilds == 1
        Hanging.goes_on.set()
        assert await asyncio.to_thread(hung.join, 10), "the thread that hung ends when it can"


async def test_an_engine_that_cannot_be_rebuilt_yet_says_so_and_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai, "_REBUILD_AFTER_S", 0.0)
    builds = iter([Breaking, None, Breaking])

    def build() -> OgDecoder:
        kind = next(builds)
        if kind is None:
            raise RuntimeError("out of memory")
        return kind(folder, template=CHAT_TEMPLATE)

    async with loaded(folder, decoder=build) as engine:
        before = await ask(engine, Sampling(20))
        Breaking.broken.set()
        with pytest.raises(Unavailable):
            await ask(engine, Sampling(20))
        await until(lambda: engine._owner.failure is not None)
        assert (await ask(engine, Sampling(20))).text == before.text
        assert engine.rebuilds == 1


async def test_between_two_tries_to_rebuild_nobody_waits(folder: Path) -> None:
    builds = iter([Breaking])

    def build() -> OgDecoder:
        kind = next(builds, None)
        if kind is None:
            raise RuntimeError("out of memory")
        return kind(folder, template=CHAT_TEMPLATE)

    async with loaded(folder, decoder=build) as engine:
        Breaking.broken.set()
        for _ in range(3):
            with pytest.raises(Unavailable) as failed:
                await ask(engine, Sampling(20))
            assert failed.value.extra["retry_after_ms"] > 0
            await until(lambda: engine._owner.failure is not None)
        assert engine.rebuilds == 1


async def test_closing_interrupts_what_runs_and_fails_what_waits(folder: Path) -> None:
    async with stepped(folder, concurrency=1) as (engine, decoder):
        prompt = await hello(engine)
        runs = asyncio.create_task(ask(engine, Sampling(1_000), prompt))
        decoder.may_step.release(5)
        await until(lambda: decoder.steps == 5)
        waits = asyncio.create_task(ask(engine, Sampling(1_000), prompt))
        await until(lambda: engine.load == (1, 1))
        closing = asyncio.create_task(engine.close())
        with pytest.raises(Unavailable):
            await waits
        decoder.may_step.release(1)
        end = (await runs).end
        assert end.finish is Finish.INTERRUPTED
        assert 5 <= end.completion_tokens <= 6
        await closing
        assert await asyncio.to_thread(engine._owner.join, 5)
        with pytest.raises(Unavailable):
            await ask(engine, Sampling(5), prompt)
        with pytest.raises(Unavailable):
            await hello(engine)


# --- the child process


def child(engine: GenaiEngine) -> int:
    decoder = engine._owner._decoder
    assert isinstance(decoder, RemoteDecoder)
    return decoder._child.pid


async def test_a_child_process_says_what_the_same_decoder_says_here(engine: GenaiEngine, folder: Path) -> None:
    samplings = [
        Sampling(60),
        Sampling(60, temperature=0.9, top_k=50, top_p=0.95, seed=7),
        Sampling(60, guidance=("json_schema", json.dumps(SCHEMA))),
        Sampling(60, stop=("e", "o")),
    ]
    here = [await ask(engine, sampling, alone=True) for sampling in samplings]
    async with loaded(folder) as remote:
        assert remote.info.provider == engine.info.provider
        assert remote.info.profile == engine.info.profile
        there = await asyncio.gather(*(ask(remote, sampling) for sampling in samplings))
        assert [answer.text for answer in there] == [answer.text for answer in here]
        assert [answer.end.finish for answer in there] == [answer.end.finish for answer in here]
        for guidance in (("regex", "("), ("regex", "[é-ü]{3}🎈")):
            with pytest.raises(InvalidInput) as refused:
                await ask(remote, Sampling(20, guidance=guidance))
            assert refused.value.field == "/response_format"
        with pytest.raises(InvalidInput) as refused:
            await remote.chat_prompt([ChatMessage("tool", "x")])
        assert refused.value.field == "/messages"
        assert remote._owner.builds == 1
        pid = child(remote)
    assert not Path(f"/proc/{pid}").exists()


async def test_the_child_knows_no_secret(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACET_SIGNING_KEY", "very-secret")
    async with loaded(folder) as engine:
        environment = Path(f"/proc/{child(engine)}/environ").read_bytes()
        assert b"LANG=" in environment
        assert b"secret" not in environment


async def test_a_child_that_dies_fails_what_is_open_and_another_is_born(folder: Path) -> None:
    async with loaded(folder) as engine:
        prompt = await hello(engine)
        before = await ask(engine, Sampling(20), prompt)
        answer = engine.generate(prompt, Sampling(2_000), deadline=within())
        assert isinstance(await anext(aiter(answer)), TextPiece)
        dead = child(engine)
        os.kill(dead, signal.SIGKILL)
        with pytest.raises(Unavailable):
            async for _ in answer:
                pass
        assert (await ask(engine, Sampling(20), prompt)).text == before.text
        assert child(engine) != dead
        assert engine.load == (0, 0)


async def test_a_child_that_hangs_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai, "_WATCH_S", 0.02)
    async with loaded(folder, stuck_after_s=0.3) as engine:
        prompt = await hello(engine)
        before = await ask(engine, Sampling(20), prompt)
        hung, owner = child(engine), engine._owner
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(Unavailable):
            await ask(engine, Sampling(20), prompt)
        assert await asyncio.to_thread(owner.join, 10)
        assert not Path(f"/proc/{hung}").exists()
        await until(lambda: engine._owner.overdue is False)
        assert (await ask(engine, Sampling(20), prompt)).text == before.text


async def test_a_chat_template_that_never_ends_hurts_only_its_own_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genai, "_WATCH_S", 0.02)
    loop_for_ever = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    async with loaded(copied(folder, tmp_path / "m", chat_template=loop_for_ever), stuck_after_s=0.3) as engine:
        with pytest.raises(Unavailable):
            await hello(engine)
        prompt = await engine.plain_prompt("the dog")
        assert (await ask(engine, Sampling(20), prompt)).end.completion_tokens == 20


async def test_a_model_that_does_not_load_in_time_is_given_up(folder: Path) -> None:
    with pytest.raises(Unavailable, match="did not load in time"):
        load_genai(folder, build_within_s=0.001)


# --- what is asked


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(2_048), "/max_tokens"),
        (Sampling(0), "/max_tokens"),
        (Sampling(5, temperature=float("nan")), "/temperature"),
        (Sampling(5, temperature=-0.1), "/temperature"),
        (Sampling(5, temperature=2.1), "/temperature"),
        (Sampling(5, top_p=0.0), "/top_p"),
        (Sampling(5, top_p=1.1), "/top_p"),
        (Sampling(5, top_p=float("nan")), "/top_p"),
        (Sampling(5, top_k=-1), "/top_k"),
        (Sampling(5, stop=("",)), "/stop"),
        (Sampling(5, stop=("x",) * 17), "/stop"),
        (Sampling(5, stop=("x" * 257,)), "/stop"),
        (Sampling(5, guidance=("gbnf", "root ::= x")), "/response_format"),
        (Sampling(5, guidance=("regex", "x" * 65_537)), "/response_format"),
    ],
)
async def test_what_the_engine_does_not_do_is_refused_by_name(engine: GenaiEngine, sampling: Sampling, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await ask(engine, sampling)
    assert refused.value.field == field
    assert engine.load == (0, 0)


async def test_the_context_is_used_to_its_last_token(engine: GenaiEngine) -> None:
    prompt = await engine.plain_prompt("dog" * 500)
    left = 2_048 - len(prompt.tokens)
    answer = await ask(engine, Sampling(left), prompt)
    assert answer.end.completion_tokens == left
    with pytest.raises(InvalidInput, match=rf"leave {left} of the context"):
        await ask(engine, Sampling(left + 1), prompt)


async def test_the_chat_template_is_the_models(engine: GenaiEngine) -> None:
    prompt = await engine.chat_prompt([ChatMessage("system", "be kind"), ChatMessage("user", 'Grüße\n"{{ x }}"')])
    assert prompt.text == '<|system|>be kind<|end|><|user|>Grüße\n"{{ x }}"<|end|><|assistant|>'
    assert prompt.tokens[0] == 2
    assert prompt.tokens[-1] == 4


async def test_what_cannot_fit_is_not_even_encoded(engine: GenaiEngine) -> None:
    long = "x" * 1_000_000
    for prompt, field in ((engine.plain_prompt(long), "/prompt"), (engine.chat_prompt([ChatMessage("user", long)]), "/messages")):
        with pytest.raises(TooLarge) as refused:
            await prompt
        assert refused.value.field == field


async def test_a_role_the_template_does_not_know_is_refused(engine: GenaiEngine) -> None:
    for messages in ([ChatMessage("tool", "x")], []):
        with pytest.raises(InvalidInput) as refused:
            await engine.chat_prompt(messages)
        assert refused.value.field == "/messages"
        assert "{%" not in refused.value.message


def copied(folder: Path, to: Path, **tokenizer_config: Any) -> Path:
    shutil.copytree(folder, to)
    (to / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return to


async def test_a_model_without_a_template_completes_and_does_not_chat(folder: Path, tmp_path: Path) -> None:
    async with loaded(copied(folder, tmp_path / "m", tokenizer_class="PreTrainedTokenizerFast")) as engine:
        with pytest.raises(InvalidInput, match="no chat template"):
            await hello(engine)
        assert (await ask(engine, Sampling(5), await engine.plain_prompt("the dog"))).end.completion_tokens == 5


async def test_a_template_may_stand_beside(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "m", tokenizer_class="PreTrainedTokenizerFast")
    (copy / "chat_template.jinja").write_text("{{ messages[0].name }} said {{ messages[0].content }}, {{ messages[0].mood }}")
    async with loaded(copy) as engine:
        assert (await engine.chat_prompt([ChatMessage("user", "x", name="bob", extra={"mood": "kind"})])).text == "bob said x, kind"


def test_templates_by_name_are_not_guessed_among(folder: Path, tmp_path: Path) -> None:
    named = [{"name": "default", "template": "x"}]
    copy = copied(folder, tmp_path / "m", tokenizer_class="PreTrainedTokenizerFast", chat_template=named)
    with pytest.raises(InvalidInput, match="chat_template is one text"):
        load_genai(copy)


@pytest.mark.parametrize("broken", ["genai_config.json", "tokenizer.json", "tokenizer_config.json", "model.onnx"])
def test_a_folder_that_is_not_whole_does_not_load(folder: Path, tmp_path: Path, broken: str) -> None:
    copy = tmp_path / "m"
    shutil.copytree(folder, copy)
    (copy / broken).write_bytes(b"{")
    with pytest.raises(InvalidInput) as refused:
        load_genai(copy)
    assert refused.value.field == "model"
    assert str(tmp_path) not in refused.value.message
