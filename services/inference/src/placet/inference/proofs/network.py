"""The networks that can be proven: chains of linear layers with ReLU between them and perhaps a sigmoid at the end, in fixed point.

Weights are constants of the circuit, so a linear layer costs nothing; each hidden value costs its bits. Every value is an integer:

    input, hidden value   x · 2^F, rounded; an input of a request lies within ± INPUT_BOUND
    weight                w · 2^F, rounded
    bias                  b · 2^2F, rounded
    before an activation  z = Σ w·x + b, at scale 2^2F, exactly
    after ReLU            max(0, floor(z / 2^F)), at scale 2^F
    output                z itself, at scale 2^2F, or the sigmoid's table at scale 2^F

How large each z can become is computed from the weights, so every input within the bound can be proven, and nothing wraps around.
Constants: FRACTION_BITS of 12 keeps outputs within a few thousandths of the float model's (docs/reference/zkml.md says how it is measured).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placet.core.errors import InvalidInput

FRACTION_BITS = 12
INPUT_BOUND = 16
"""Inputs beyond ± this are refused in this mode: scale them in the model's own preprocessing."""
MAX_PARAMETERS = 1_000_000
MAX_CONSTRAINTS = 1 << 17
MAX_BITS = 62
"""Of a value before its activation: it has to fit an int64."""
SIGMOID_SEGMENTS = 32
SIGMOID_RANGE = 8
"""Beyond ± this the sigmoid is taken for 0 or 1 (off by less than 0.0004)."""
OPS = frozenset({"Gemm", "MatMul", "Add", "Relu", "Flatten", "Reshape", "Identity", "Sigmoid"})

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layer:
    """`weights` (outputs, inputs) at scale 2^F, `bias` (outputs,) at scale 2^2F. `activation`: relu, sigmoid or none."""

    weights: Integers
    bias: Integers
    activation: str
    bits: tuple[int, ...]
    """Of each output: how many its value before the activation takes, sign included."""


@dataclass(frozen=True, slots=True)
class Network:
    """A quantised network. `input_shape` is one row's."""

    input_name: str
    output_name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]

    @property
    def inputs(self) -> int:
        """How many numbers go in."""
        return int(self.layers[0].weights.shape[1])

    @property
    def outputs(self) -> int:
        """How many come out."""
        return int(self.layers[-1].weights.shape[0])

    @property
    def output_bits(self) -> int:
        """Fraction bits of an output."""
        return FRACTION_BITS if self.layers[-1].activation == "sigmoid" else 2 * FRACTION_BITS

    def digest(self) -> bytes:
        """sha-256 of what the circuit is made of; anybody with the model's file computes the same."""
        out = hashlib.sha256(b"placet zk network v1")
        out.update(struct.pack(">III", FRACTION_BITS, INPUT_BOUND, len(self.layers)))
        for layer in self.layers:
            out.update(struct.pack(">II", *layer.weights.shape) + layer.activation.encode().ljust(8, b"\0"))
            out.update(layer.weights.astype("<i8").tobytes() + layer.bias.astype("<i8").tobytes())
        return out.digest()

    def quantise(self, values: NDArray[np.float32]) -> Integers:
        """A row of inputs as integers. Raises InvalidInput: beyond the bound, or not finite."""
        row = values.astype(np.float64).reshape(-1)
        if row.shape != (self.inputs,):
            raise InvalidInput(f"inputs: {row.size} numbers, {self.inputs} wanted: one row a proof", field="inputs")
        if not np.all(np.abs(row) <= INPUT_BOUND):  # also NaN
            raise InvalidInput(f"inputs: within -{INPUT_BOUND} to {INPUT_BOUND}, or they cannot be proven", field="inputs")
        return np.rint(row * (1 << FRACTION_BITS)).astype(np.int64)

    def run(self, row: Integers) -> tuple[Integers, list[Integers]]:
        """The outputs, and the values before each layer's activation."""
        before: list[Integers] = []
        for layer in self.layers:
            values = layer.weights @ row + layer.bias
            before.append(values)
            if layer.activation == "relu":
                row = np.maximum(values >> FRACTION_BITS, 0)
            elif layer.activation == "sigmoid":
                row = np.array([sigmoid(int(value) >> FRACTION_BITS) for value in values], dtype=np.int64)
            else:
                row = values
        return row, before

    def floats(self, outputs: Integers) -> NDArray[np.float32]:
        """Outputs as the numbers they stand for."""
        return (outputs.astype(np.float64) / (1 << self.output_bits)).astype(np.float32)


def sigmoid_table() -> list[tuple[int, int]]:
    """(value at the left end, slope · 2^F) of each segment for x ≥ 0, at scale 2^F. A pure function of the constants above."""
    width = SIGMOID_RANGE / SIGMOID_SEGMENTS
    scale = 1 << FRACTION_BITS
    ends = [round(scale / (1 + math.exp(-width * at))) for at in range(SIGMOID_SEGMENTS + 1)]
    return [(left, round((right - left) / width)) for left, right in itertools.pairwise(ends)]


_SEGMENT_BITS = FRACTION_BITS + (SIGMOID_RANGE.bit_length() - 1) - (SIGMOID_SEGMENTS.bit_length() - 1)
"""Low bits of |x| that say where inside its segment it lies."""


def sigmoid(x: int) -> int:
    """The piecewise linear sigmoid of x, both at scale 2^F: exactly what the circuit computes."""
    scale = 1 << FRACTION_BITS
    size = abs(x)
    if size >> (FRACTION_BITS + SIGMOID_RANGE.bit_length() - 1):
        positive = scale
    else:
        start, slope = sigmoid_table()[size >> _SEGMENT_BITS]
        positive = start + (slope * (size & ((1 << _SEGMENT_BITS) - 1)) >> FRACTION_BITS)
    return positive if x >= 0 else scale - positive


def segment_bits() -> int:
    """See `_SEGMENT_BITS`."""
    return _SEGMENT_BITS


def network_of(model: Any) -> Network:
    """The network of an ONNX model (with its weights loaded).

    Raises:
        InvalidInput: it is not of this class; names the operators that are not supported.
    """
    import onnx.numpy_helper

    graph = model.graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            weights[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    unsupported = sorted({node.op_type for node in nodes if node.op_type not in OPS or node.domain not in ("", "ai.onnx")})
    if unsupported:
        raise InvalidInput(f"zkml: cannot be proven: {', '.join(unsupported)[:400]}; supported are {', '.join(sorted(OPS))}", field="ops")
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise InvalidInput("zkml: one input and one output wanted", field="graph")
    builder = _Builder(inputs[0].name, _row_shape(inputs[0]))
    for node in nodes:
        builder.add(node, weights)
    if builder.current != graph.output[0].name:
        raise InvalidInput("zkml: the operators are not one chain from input to output", field="graph")
    return builder.network(inputs[0].name, graph.output[0].name)


def _row_shape(value: Any) -> tuple[int, ...]:
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    if tensor.elem_type != 1 or len(shape) < 2 or shape[0] not in (-1, 0, 1) or any(size < 1 for size in shape[1:]):
        raise InvalidInput("zkml: the input is FP32 of shape [1 or batch, …], all other sizes fixed", field="inputs")
    return tuple(shape[1:])


class _Builder:
    """Follows the chain of operators."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.current = name
        self.shape = shape
        self.size = math.prod(shape)
        self.layers: list[tuple[NDArray[np.float64], NDArray[np.float64], str]] = []
        self.flat = len(shape) == 1

    def add(self, node: Any, weights: dict[str, NDArray[Any]]) -> None:
        constants = [name for name in node.input if name in weights]
        if [name for name in node.input if name and name not in weights] != [self.current] or len(node.output) != 1:
            raise InvalidInput("zkml: the operators are not one chain from input to output", field="graph")
        attributes = {item.name: item for item in node.attribute}
        getattr(self, f"_{node.op_type.lower()}")(node, [weights[name] for name in constants], attributes)
        self.current = node.output[0]

    def _gemm(self, node: Any, constants: list[NDArray[Any]], attributes: dict[str, Any]) -> None:
        def number(name: str, default: float, read: Callable[[Any], float]) -> float:
            return read(attributes[name]) if name in attributes else default

        alpha, beta = number("alpha", 1.0, lambda a: a.f), number("beta", 1.0, lambda a: a.f)
        if number("transA", 0, lambda a: a.i) or node.input[0] != self.current:
            raise InvalidInput("zkml: Gemm with its input transposed, or in the second place", field="Gemm")
        matrix = constants[0] if number("transB", 0, lambda a: a.i) else constants[0].T
        bias = constants[1] if len(constants) > 1 else np.zeros(1)
        self._linear(alpha * matrix.astype(np.float64), beta * bias.astype(np.float64), "Gemm")

    def _matmul(self, node: Any, constants: list[NDArray[Any]], attributes: dict[str, Any]) -> None:
        if node.input[0] != self.current or len(constants) != 1:
            raise InvalidInput("zkml: MatMul of the value with a constant matrix wanted", field="MatMul")
        self._linear(constants[0].T.astype(np.float64), np.zeros(1), "MatMul")

    def _linear(self, matrix: NDArray[np.float64], bias: NDArray[np.float64], what: str) -> None:
        if not self.flat or matrix.ndim != 2 or matrix.shape[1] != self.size:
            raise InvalidInput(f"zkml: {what}: the value before has {self.size} numbers and must be flat", field=what)
        self.size = matrix.shape[0]
        bias = bias.reshape(-1)
        if bias.size not in (1, self.size):
            raise InvalidInput(f"zkml: {what}: a bias of {bias.size} numbers", field=what)
        bias = np.broadcast_to(bias, (self.size,)).astype(np.float64)
        if self.layers and self.layers[-1][2] == "none":  # two linear layers in a row are one
            before, offset, _ = self.layers.pop()
            matrix, bias = matrix @ before, matrix @ offset + bias
        self._ends("sigmoid", what)
        self.layers.append((matrix, bias, "none"))

    def _add(self, node: Any, constants: list[NDArray[Any]], attributes: dict[str, Any]) -> None:
        if len(constants) != 1 or constants[0].size not in (1, self.size) or not self.layers or self.layers[-1][2] != "none":
            raise InvalidInput("zkml: Add of a constant bias after a linear layer wanted", field="Add")
        matrix, bias, _ = self.layers[-1]
        self.layers[-1] = matrix, bias + constants[0].astype(np.float64).reshape(-1), "none"

    def _relu(self, node: Any, constants: list[NDArray[Any]], attributes: dict[str, Any]) -> None:
        self._activate("relu")

    def _sigmoid(self, node: Any, constants: list[NDArray[Any]], attributes: dict[str, Any]) -> None:
        self._activate("sigmoid")

    def _activate(self, activation: str) -> None:
        if not self.layers or self.layers[-1][2] != "none":
            raise InvalidInput(f"zkml: {activation} after a linear layer wanted", field="graph")
        matrix, bias, _ = self.layers[-1]
        self.layers[-1] = matrix, bias, activation

    def _ends(self, activation: str, what: str) -> None:
        if self.layers and self.layers[-1][2] == activation:
            raise InvalidInput(f"zkml: {what} after a {activation}: it stands at the end only", field="graph")

    def _flatten(self, node: Any, constants: list[NDArray[Any]], attributes: dict[str, Any]) -> None:
        if "axis" in attributes and attributes["axis"].i != 1:
            raise InvalidInput("zkml: Flatten along axis 1 wanted", field="Flatten")
        self.flat = True

    def _reshape(self, node: Any, constants: list[NDArray[Any]], attributes: dict[str, Any]) -> None:
        shape = [int(size) for size in constants[0].reshape(-1)] if constants else []
        if len(shape) != 2 or shape[0] not in (-1, 0, 1) or shape[1] not in (-1, self.size) or shape == [-1, -1]:
            raise InvalidInput("zkml: Reshape to [batch, all] wanted", field="Reshape")
        self.flat = True

    def _identity(self, node: Any, constants: list[NDArray[Any]], attributes: dict[str, Any]) -> None:
        pass

    def network(self, input_name: str, output_name: str) -> Network:
        if not self.layers:
            raise InvalidInput("zkml: no linear layer", field="graph")
        if sum(matrix.size for matrix, _, _ in self.layers) > MAX_PARAMETERS:
            raise InvalidInput(f"zkml: at most {MAX_PARAMETERS} weights", field="parameters")
        layers: list[Layer] = []
        bounds = [INPUT_BOUND << FRACTION_BITS] * int(self.layers[0][0].shape[1])
        for matrix, bias, activation in self.layers:
            layer, bounds = _quantised(matrix, bias, activation, bounds)
            layers.append(layer)
        if layers[-1].activation == "relu":
            raise InvalidInput("zkml: the last layer is linear, or has a sigmoid", field="graph")
        network = Network(input_name, output_name, self.shape, tuple(layers))
        if (needed := constraints_of(network)) > MAX_CONSTRAINTS:
            raise InvalidInput(f"zkml: {needed} constraints, at most {MAX_CONSTRAINTS}", field="parameters")
        return network


def _quantised(matrix: NDArray[np.float64], bias: NDArray[np.float64], activation: str, bounds: list[int]) -> tuple[Layer, list[int]]:
    """A layer in integers, and how large its results can become, given how large its inputs can."""
    scale = 1 << FRACTION_BITS
    if not (
        np.all(np.isfinite(matrix)) and np.all(np.isfinite(bias)) and np.all(np.abs(matrix) < 1 << 20) and np.all(np.abs(bias) < 1 << 30)
    ):
        raise InvalidInput("zkml: weights are finite, below 2^20, biases below 2^30", field="weights")
    weights, offsets = np.rint(matrix * scale).astype(np.int64), np.rint(bias * scale * scale).astype(np.int64)
    reach = [
        sum(size * bound for size, bound in zip(row, bounds, strict=True)) + abs(offset)  # Python integers: nothing overflows here
        for row, offset in zip(np.abs(weights).tolist(), offsets.tolist(), strict=True)
    ]
    least = FRACTION_BITS + (16 if activation == "sigmoid" else 2)
    bits = tuple(max(least, largest.bit_length() + 1) for largest in reach)
    if max(bits) > MAX_BITS:
        raise InvalidInput(f"zkml: a value takes {max(bits)} bits, at most {MAX_BITS}: the weights are too large", field="weights")
    return Layer(weights, offsets, activation, bits), [(largest >> FRACTION_BITS) + 1 for largest in reach]


def constraints_of(network: Network) -> int:
    """How many constraints the circuit has."""
    count = 0
    for layer in network.layers:
        match layer.activation:
            case "relu":
                count += sum(bits + 2 for bits in layer.bits)
            case "sigmoid":
                count += sum(2 * bits + 2 * SIGMOID_SEGMENTS + 32 for bits in layer.bits)  # at most
            case _:
                count += len(layer.bits)
    return count
