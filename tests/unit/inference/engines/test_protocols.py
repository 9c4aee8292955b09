from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from placet.inference.engines import base
from placet.inference.engines.embedding import EmbeddingEngine
from placet.inference.engines.genai import GenaiEngine
from placet.inference.engines.onnx import OnnxEngine
from placet.inference.engines.upstream import Upstream

# What the type checker says of these functions is the better half of this test.


def tensors(engine: OnnxEngine) -> base.TensorEngine:
    return engine


def text(engine: GenaiEngine) -> base.TextEngine:
    return engine


def embeddings(engine: EmbeddingEngine) -> base.EmbeddingEngine:
    return engine


def relay(engine: Upstream) -> base.RelayEngine:
    return engine


@pytest.mark.parametrize("pair", [tensors, text, embeddings, relay])
def test_an_engine_has_the_methods_by_which_the_service_knows_it(pair: Callable[..., Any]) -> None:
    told = inspect.get_annotations(pair, eval_str=True)
    promised = {name for name, value in vars(told["return"]).items() if callable(value) and not name.startswith("_")}
    assert promised
    for name in promised:
        promise, kept = (inspect.signature(getattr(kind, name)).parameters for kind in (told["return"], told["engine"]))
        assert list(promise) == list(kept), name
