from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from placet.core.errors import DeadlineExceeded, InvalidInput, PlacetError, RateLimited, TooLarge, Unavailable
from placet.inference.engines import profile
from placet.inference.engines.base import EmbeddingResult
from placet.inference.engines.embedding import EmbeddingEngine, load_embedding, padded_length
from tests.support.minilm import minilm
from tests.support.waiting import until, within

Models = Callable[[str], Path]
Vector = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddingEngine]:
    engine = load_embedding(minilm(tmp_path_factory.mktemp("minilm")), context_length=256, concurrency=1)
    yield engine
    asyncio.run(engine.close())


@asynccontextmanager
async def loaded(folder: Path, **options: Any) -> AsyncIterator[EmbeddingEngine]:
    engine = load_embedding(folder, concurrency=1, **options)
    try:
        yield engine
    finally:
        await engine.close()


def vectors(result: EmbeddingResult) -> list[Vector]:
    return [np.frombuffer(vector, "<f4") for vector in result.vectors]


class Gate:
    """Stands before the model's session: runs wait until they are let through."""

    def __init__(self, engine: EmbeddingEngine) -> None:
        model: Any = engine._runner._run
        self._session = model._session
        self._gate = threading.Event()
        self.shapes: list[tuple[int, ...]] = []
        model._session = self

    def run(self, names: Sequence[str], feed: dict[str, npt.NDArray[Any]]) -> Any:
        self.shapes.append(feed["input_ids"].shape)
        assert self._gate.wait(20)
        return self._session.run(names, feed)

    def open(self) -> None:
        self._gate.set()


async def test_a_cat_is_nearer_to_a_kitten_than_to_stocks(real: EmbeddingEngine) -> None:
    result = await real.embed(["cat", "kitten", "stocks"], deadline=within())
    cat, kitten, stocks = vectors(result)
    assert result.dimensions == len(cat) == 384
    assert result.prompt_tokens == 9
    assert np.allclose([np.linalg.norm(vector) for vector in (cat, kitten, stocks)], 1.0, atol=1e-6)
    assert float(cat @ kitten) > 0.5 > 0.4 > float(cat @ stocks)


async def test_the_real_models_integers_are_weights_only(real: EmbeddingEngine, tmp_path: Path) -> None:
    graph = profile.graph_of(minilm(tmp_path) / "model.onnx")
    assert not profile.dynamically_quantised(graph)
    assert real.info.context_length == 256
    assert real.info.profile is not None


async def test_a_text_has_the_same_vector_alone_and_in_any_company(real: EmbeddingEngine) -> None:
    texts = ["cat", "the cat sat", "a much longer text about kittens, dogs and " + "stocks " * 20, "cat", "日本 🎈"]
    together = vectors(await real.embed(texts, deadline=within()))
    for position, text in enumerate(texts):
        (alone,) = vectors(await real.embed([text], deadline=within(), alone=True))
        assert np.allclose(together[position], alone, atol=1e-5)
    assert np.allclose(together[0], together[3], atol=1e-6)


async def test_alone_is_bit_equal(real: EmbeddingEngine) -> None:
    first = await real.embed(["cat", "dog"], deadline=within(), alone=True)
    again = await real.embed(["dog", "stocks", "cat"], deadline=within(), alone=True)
    assert first.vectors == (again.vectors[2], again.vectors[0])


async def test_tokens_are_a_text_too(real: EmbeddingEngine) -> None:
    text, tokens = await real.embed(["cat"], deadline=within(), alone=True), [101, 4937, 102]
    assert (await real.embed([tokens], deadline=within(), alone=True)).vectors == text.vectors
    assert await real.count(["cat", tokens, "kitten"]) == 9


async def test_short_texts_of_two_callers_share_a_run_and_nothing_else_does(model: Models) -> None:
    async with loaded(model("encoder")) as engine:
        engine.shared_length = 64
        alone = [await engine.embed([text], deadline=within(), alone=True) for text in ("abc", "defg", "x" * 40)]
        gate = Gate(engine)
        first = asyncio.create_task(engine.embed(["zzzzzzzzzz"], deadline=within()))
        await until(lambda: gate.shapes == [(1, 12)])
        asked = [asyncio.create_task(engine.embed([text], deadline=within())) for text in ("abc", "defg", "x" * 40)]
        asked.append(asyncio.create_task(engine.embed(["abc"], deadline=within(), alone=True)))
        await until(lambda: engine._runner.load == (1, 4))
        gate.open()
        results = await asyncio.gather(first, *asked)
        assert sorted(gate.shapes[1:]) == [(1, 3), (1, 40), (2, 4)]
        for one, other in zip(alone, results[1:], strict=False):
            assert np.allclose(vectors(one), vectors(other), atol=1e-5)


async def test_dynamically_quantised_texts_never_share_a_run(model: Models) -> None:
    async with loaded(model("dynamically_quantised_encoder")) as engine:
        assert engine.info.batches is False
        (alone,) = (await engine.embed(["!!!"], deadline=within())).vectors
        gate = Gate(engine)
        asked = [asyncio.create_task(engine.embed([text], deadline=within())) for text in ("abc", "!!!", "the")]
        await until(lambda: engine._runner.load == (1, 2))
        gate.open()
        results = await asyncio.gather(*asked)
        assert all(shape[0] == 1 for shape in gate.shapes)
        assert results[1].vectors == (alone,)


async def test_mean_is_over_the_tokens_that_are_not_padding_and_cls_is_the_first(model: Models, tmp_path: Path) -> None:
    folder = model("encoder")
    table = numpy_helper.to_array(onnx.load(str(folder / "model.onnx")).graph.initializer[0])
    wanted = {"mean": table[[70, 80, 90]].mean(axis=0), "cls": table[70]}
    copy = tmp_path / "m"
    shutil.copytree(folder, copy)
    (copy / "1_Pooling").mkdir()
    for pooling, mode in (("mean", "pooling_mode_mean_tokens"), ("cls", "pooling_mode_cls_token")):
        (copy / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, mode: True}))
        async with loaded(copy) as engine:
            (vector,) = vectors(await engine.embed([[70, 80, 90]], deadline=within()))
            assert np.allclose(vector, wanted[pooling] / np.linalg.norm(wanted[pooling]), atol=1e-6)
    (copy / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InvalidInput, match="pooling by max_tokens is not served"):
        load_embedding(copy)


async def test_what_does_not_fit_is_refused_by_position(model: Models) -> None:
    async with loaded(model("encoder"), context_length=20, max_texts=3) as engine:
        for texts, field in (
            (["a", "b" * 21], "/input/1"),
            (["c" * 1_281], "/input/0"),
            ([[5] * 21], "/input/0"),
            ([""], "/input/0"),
            ([[1, 308]], "/input/0"),
            ([[-1]], "/input/0"),
            ([], "/input"),
        ):
            with pytest.raises(InvalidInput) as refused:
                await engine.embed(texts, deadline=within())
            assert refused.value.field == field
        with pytest.raises(TooLarge):
            await engine.embed(["a"] * 4, deadline=within())
        assert engine.load == (0, 0)


async def test_many_texts_come_back_in_their_order(model: Models) -> None:
    async with loaded(model("encoder")) as engine:
        texts = [[number % 300] * (1 + number % 23) for number in range(500)]
        result = await engine.embed(texts, deadline=within())
        singles = [await engine.embed([[number % 300]], deadline=within(), alone=True) for number in range(0, 500, 61)]
        for position, single in zip(range(0, 500, 61), singles, strict=True):
            assert np.allclose(vectors(result)[position], vectors(single)[0], atol=1e-5)


async def test_a_full_queue_a_deadline_and_closing(model: Models) -> None:
    engine = load_embedding(model("encoder"), concurrency=1, max_waiting=0)
    gate = Gate(engine)
    asked = [asyncio.create_task(engine.embed(["a"], deadline=within())) for _ in range(32)]
    await until(lambda: engine.load == (32, 0))
    with pytest.raises(RateLimited):
        await engine.embed(["a"], deadline=within())
    asked.pop().cancel()
    await until(lambda: engine.load == (31, 0))
    with pytest.raises(DeadlineExceeded):
        await engine.embed(["a"], deadline=within(0.02))
    closing = asyncio.create_task(engine.close())
    await until(lambda: engine._runner._closed)
    gate.open()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, Unavailable | EmbeddingResult) for one in ended)
    await closing
    with pytest.raises(PlacetError):
        await engine.embed(["a"], deadline=within())


def test_a_folder_that_is_not_whole_does_not_load(model: Models, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(model("encoder"), copy)
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(InvalidInput, match="tokenizer"):
        load_embedding(copy)
    shutil.copytree(model("encoder"), tmp_path / "n")
    shutil.copy(model("mlp"), tmp_path / "n" / "model.onnx")
    with pytest.raises(InvalidInput, match="those of BERT are served"):
        load_embedding(tmp_path / "n")


@given(st.integers(1, 600), st.integers(1, 600))
def test_padding_is_short_and_stays_in_the_context(length: int, context: int) -> None:
    padded = padded_length(length, context)
    assert length <= padded < length + 4
    assert padded <= max(context, length)
