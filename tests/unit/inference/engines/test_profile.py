from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from placet.core.types import Hash32
from placet.inference.engines.profile import (
    CPU,
    dynamically_quantised,
    external_files,
    graph_of,
    isa_class,
    profile_document,
    profile_id,
    quantisation_of,
    sha256_of,
)

FACTS = {"engine": "e 1", "provider": CPU, "optimisation": "all", "quantisation": "none"}


@pytest.mark.parametrize(
    ("name", "quantisation"), [("mlp", "none"), ("conv", "none"), ("strings", "none"), ("dynamically_quantised", "dynamic")]
)
def test_the_graph_says_how_it_is_quantised(model: Callable[[str], Path], name: str, quantisation: str) -> None:
    graph = graph_of(model(name))
    assert quantisation_of(graph) == quantisation
    assert dynamically_quantised(graph) == (quantisation == "dynamic")


def test_integers_as_weights_are_told_from_integers_as_activations(tmp_path: Path) -> None:
    weights = helper.make_tensor("w", TensorProto.INT8, [2], [1, 2])
    node = helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])], [weights])
    assert quantisation_of(helper.make_model(graph)) == "weights"


def test_a_quantised_branch_is_found(model: Callable[[str], Path]) -> None:
    inner = graph_of(model("dynamically_quantised")).graph
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    outer = helper.make_graph([branch], "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, [])], [])
    assert dynamically_quantised(helper.make_model(outer))


def test_the_profile_is_that_of_the_facts_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placet.inference.engines.profile.isa_class", lambda: "x86_64 avx2")
    one, two = Hash32(bytes(32)), Hash32(b"\x01" * 32)
    same = profile_id([one, two], **FACTS)
    assert same is not None
    assert same == profile_id([two, one], **FACTS)
    for fact in ("engine", "optimisation", "quantisation"):
        assert profile_id([one, two], **{**FACTS, fact: "other"}) != same
    assert profile_id([one], **FACTS) != same
    monkeypatch.setattr("placet.inference.engines.profile.isa_class", lambda: "x86_64 avx2 avx512f")
    assert profile_id([one, two], **FACTS) != same


def test_equality_is_not_claimed_where_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert profile_id([Hash32(bytes(32))], **{**FACTS, "provider": "CUDAExecutionProvider"}) is None
    monkeypatch.setattr("placet.inference.engines.profile.isa_class", lambda: None)
    assert profile_id([Hash32(bytes(32))], **FACTS) is None


def test_the_document_names_everything_that_changes_last_bits() -> None:
    document = profile_document([Hash32(bytes(32))], isa="x86_64 avx2", **FACTS)
    assert set(document) == {"v", "files", "engine", "onnxruntime", "provider", "isa", "optimisation", "batch", "quantisation"}
    assert document["batch"] == 1


def test_the_instructions_are_those_that_every_core_has() -> None:
    core = "processor\t: 0\nflags\t\t: fpu sse4_1 avx avx2 fma avx512f\n"
    small = "processor\t: 1\nflags\t\t: fpu sse4_1 avx avx2 fma\n"
    assert isa_class(core + small) == isa_class(small)
    assert isa_class(core) != isa_class(small)
    assert (isa_class(small) or "").endswith(" sse4_1 avx fma avx2")
    assert (isa_class("Features\t: fp asimd asimddp\n") or "").endswith(" asimd asimddp")
    assert isa_class("nothing: here\n") is None


def test_weights_beside_the_graph_are_files_of_the_model(tmp_path: Path, model: Callable[[str], Path]) -> None:
    whole = onnx.load(str(model("mlp")))
    path = tmp_path / "model.onnx"
    onnx.save(whole, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert external_files(path, graph_of(path)) == [tmp_path / "weights.bin"]
    assert sha256_of(path) != sha256_of(tmp_path / "weights.bin")
