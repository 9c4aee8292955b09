"""Small networks to prove."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def network_model(sizes: Sequence[int], *, sigmoid: bool = False, seed: int = 0, scale: float = 1.0) -> Any:
    """An ONNX model of Gemm and Relu, with random weights; the same for the same arguments."""
    random = np.random.default_rng(seed)
    nodes, weights, current = [], [], "x"
    for at, (inputs, outputs) in enumerate(pairwise(sizes)):
        matrix = scale * random.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{at}"))
        weights.append(numpy_helper.from_array((0.1 * random.standard_normal(outputs)).astype(np.float32), f"b{at}"))
        nodes.append(helper.make_node("Gemm", [current, f"w{at}", f"b{at}"], [f"g{at}"], transB=1))
        current = f"g{at}"
        if at < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [current], [f"r{at}"]))
            current = f"r{at}"
    if sigmoid:
        nodes.append(helper.make_node("Sigmoid", [current], ["score"]))
        current = "score"
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", sizes[0]])],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, ["n", sizes[-1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def saved(model: Any, path: Any) -> Any:
    """Write a model; returns the path."""
    onnx.save(model, str(path))
    return path
