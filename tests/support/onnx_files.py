"""Small ONNX files, sound and hostile, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


def model(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Sequence[Any] = (), domain: str | None = None
) -> Any:
    """A ModelProto."""
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    opsets = {"": OPSET} if domain is None else {"": OPSET, domain: 1}
    imports = [helper.make_opsetid(name, version) for name, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def floats(name: str, *shape: int | str) -> Any:
    """An input or output of floats; a text is a size that varies."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def linear(width: int = 4, out: int = 3, scale: float = 1.0, *, name: str = "x", result: str = "y") -> bytes:
    """y = relu(x·W + b), any number of rows."""
    rng = np.random.default_rng(7)
    weights = [
        numpy_helper.from_array((scale * rng.normal(size=(width, out))).astype(np.float32), "w"),
        numpy_helper.from_array(np.zeros(out, np.float32), "b"),
    ]
    nodes = [helper.make_node("Gemm", [name, "w", "b"], ["h"]), helper.make_node("Relu", ["h"], [result])]
    return bytes(model(nodes, [floats(name, "n", width)], [floats(result, "n", out)], weights).SerializeToString())


def dynamically_quantised() -> bytes:
    """Scales are taken over the whole tensor."""
    weights = [numpy_helper.from_array(np.ones((4, 3), np.uint8), "w"), numpy_helper.from_array(np.array(0, np.uint8), "z")]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "zp"]),
        helper.make_node("MatMulInteger", ["q", "w", "zp", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    return bytes(model(nodes, [floats("x", "n", 4)], [floats("y", "n", 3)], weights).SerializeToString())


def custom_operator() -> bytes:
    """Needs code that nobody has."""
    node = helper.make_node("Evil", ["x"], ["y"], domain="com.example")
    return bytes(model([node], [floats("x", 1)], [floats("y", 1)], domain="com.example").SerializeToString())


def external(location: str, offset: int = 0, length: int = 48) -> bytes:
    """Weights in another file."""
    tensor = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return bytes(model(nodes, [floats("x", "n", 4)], [floats("y", "n", 3)], [tensor]).SerializeToString())


def shape_bomb() -> bytes:
    """Four gigabytes of zeros, folded while it is loaded."""
    weights = [numpy_helper.from_array(np.array([1 << 15, 1 << 15], np.int64), "shape")]
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["s"]),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    return bytes(model(nodes, [floats("x", 1, 1)], [floats("y", 1, 1)], weights).SerializeToString())


def declared_bomb() -> bytes:
    """A tensor whose declared size overflows."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 40])
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    return bytes(model(nodes, [floats("x", 1)], [floats("y", 1)], [tensor]).SerializeToString())


def nested(depth: int) -> bytes:
    """If inside If inside If."""
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["leaf"])], "leaf", [], [floats("leaf", 1)])
    for level in range(depth):
        node = helper.make_node("If", ["c"], [f"o{level}"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], f"g{level}", [], [floats(f"o{level}", 1)])
        if level > 10:
            break  # both branches hold everything below: the file doubles with each level
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [1])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return bytes(model([node], [floats("x", 1), condition], [floats("y", 1)]).SerializeToString())


def local_function() -> bytes:
    """An operator defined inside the file."""
    made = model([helper.make_node("F", ["x"], ["y"], domain="local")], [floats("x", 1)], [floats("y", 1)], domain="local")
    body = helper.make_function("local", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", OPSET)])
    made.functions.append(body)
    return bytes(made.SerializeToString())


def sequence_output() -> bytes:
    """Gives a sequence, which no client of tensors can take."""
    value = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    return bytes(model([helper.make_node("SequenceConstruct", ["x"], ["y"])], [floats("x", 1)], [value]).SerializeToString())
