"""Which networks can be proven, and how near their fixed point is to the float model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from placet.core.errors import InvalidInput
from placet.inference.proofs import network as module
from placet.inference.proofs.circuit import Circuit, Rows
from placet.inference.proofs.network import FRACTION_BITS, INPUT_BOUND, Network, constraints_of, network_of, sigmoid
from placet.verify.zk.field import ORDER
from tests.support.zk import network_model

SHAPES: list[tuple[tuple[int, ...], bool]] = [((4, 16, 3), False), ((5, 1), True), ((30, 16, 1), True), ((64, 64, 32, 10), False)]


def floats(model: Any, row: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": row[None]})[0][0]


@pytest.mark.parametrize(("sizes", "ends"), SHAPES)
def test_fixed_point_is_near_the_float_model(sizes: tuple[int, ...], ends: bool) -> None:
    model = network_model(sizes, sigmoid=ends)
    network, random = network_of(model), np.random.default_rng(1)
    for _ in range(20):
        row = (2 * random.standard_normal(sizes[0])).astype(np.float32)
        outputs, _ = network.run(network.quantise(row))
        assert np.abs(network.floats(outputs) - floats(model, row)).max() < 6e-3


def test_the_sigmoids_table_is_near_the_sigmoid() -> None:
    xs = np.arange(-12 << FRACTION_BITS, 12 << FRACTION_BITS, 37)
    found = np.array([sigmoid(int(x)) for x in xs]) / (1 << FRACTION_BITS)
    exact = 1 / (1 + np.exp(-xs / (1 << FRACTION_BITS)))
    assert np.abs(found - exact).max() < 1.5e-3
    assert found.min() >= 0
    assert found.max() <= 1


def satisfied(circuit: Circuit, witness: Sequence[int]) -> bool:
    def product(rows: Rows) -> list[int]:
        out = [0] * circuit.rows
        for row, variable, coefficient in rows.entries:
            out[row] += coefficient * witness[variable]
        return out

    a, b, c = map(product, (circuit.a, circuit.b, circuit.c))
    return all((x * y - z) % ORDER == 0 for x, y, z in zip(a, b, c, strict=True))


@pytest.mark.parametrize(("sizes", "ends"), SHAPES[:3])
def test_the_witness_satisfies_the_circuit_whatever_goes_in(sizes: tuple[int, ...], ends: bool) -> None:
    network = network_of(network_model(sizes, sigmoid=ends, scale=3.0))
    circuit = Circuit(network)
    most = INPUT_BOUND << FRACTION_BITS
    random = np.random.default_rng(2)
    corners = [np.full(sizes[0], value, dtype=np.int64) for value in (0, 1, -1, most, -most)]
    for row in [*corners, *(random.integers(-most, most + 1, sizes[0]) for _ in range(20))]:
        public, private = circuit.witness(row)
        assert satisfied(circuit, public + private)
    assert circuit.rows <= constraints_of(network)


@pytest.mark.parametrize(("sizes", "ends"), SHAPES[:2])
def test_no_single_change_of_a_witness_satisfies_the_circuit(sizes: tuple[int, ...], ends: bool) -> None:
    """Every variable but the helper of an unused case is fixed by the inputs: a prover has no choice."""
    network = network_of(network_model(sizes, sigmoid=ends))
    circuit = Circuit(network)
    public, private = circuit.witness(network.quantise(np.linspace(-3, 3, sizes[0]).astype(np.float32)))
    witness = public + private
    free = []
    for at in range(1, len(witness)):
        for change in (1, ORDER - 1):
            wrong = [*witness]
            wrong[at] = (wrong[at] + change) % ORDER
            if satisfied(circuit, wrong):
                free.append(at)
    # The inverse that shows a value to be beyond the sigmoid's range says nothing where it is inside.
    assert len(set(free)) <= (1 if ends else 0)


def test_a_wrong_output_satisfies_no_circuit() -> None:
    network = network_of(network_model((4, 8, 1), sigmoid=True))
    circuit = Circuit(network)
    public, private = circuit.witness(network.quantise(np.array([1, 2, 3, 4], dtype=np.float32)))
    for value in (0, 1, 1 << FRACTION_BITS, (public[-1] + 1) % ORDER):
        assert value == public[-1] or not satisfied(circuit, [*public[:-1], value, *private])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-16, 16, width=32), min_size=4, max_size=4))
def test_any_row_within_the_bound_is_provable(row: list[float]) -> None:
    circuit = CIRCUIT
    public, private = circuit.witness(circuit.network.quantise(np.array(row, dtype=np.float32)))
    assert satisfied(circuit, public + private)


CIRCUIT = Circuit(network_of(network_model((4, 6, 1), sigmoid=True, scale=5.0)))


@pytest.mark.parametrize("row", [[17.0, 0, 0, 0], [float("nan"), 0, 0, 0], [float("inf"), 0, 0, 0], [0.0, 0, 0], [[0.0] * 4] * 2])
def test_what_cannot_be_proven_is_refused(row: Any) -> None:
    with pytest.raises(InvalidInput):
        CIRCUIT.network.quantise(np.array(row, dtype=np.float32))


def graph(nodes: list[Any], weights: dict[str, Any], shape: Sequence[Any] = ("n", 4), output: str = "y") -> Any:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", None])],
        [numpy_helper.from_array(np.asarray(value, dtype=np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


W = np.arange(8).reshape(2, 4) / 8


def test_matmul_add_flatten_and_constants_are_read_as_gemm_is() -> None:
    plain = network_of(graph([helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], {"w": W, "b": [1, 2]}))
    split = network_of(
        graph(
            [
                helper.make_node("Flatten", ["x"], ["f"]),
                helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(np.array([1, 2], dtype=np.float32))),
                helper.make_node("MatMul", ["f", "w"], ["m"]),
                helper.make_node("Add", ["m", "b"], ["a"]),
                helper.make_node("Identity", ["a"], ["y"]),
            ],
            {"w": W.T},
            ("n", 2, 2),
        )
    )
    assert plain.digest() == split.digest()
    twice = network_of(
        graph(
            [helper.make_node("Gemm", ["x", "w"], ["g"], transB=1), helper.make_node("MatMul", ["g", "v"], ["y"])],
            {"w": W, "v": [[2], [1]]},
        )
    )
    assert twice.layers[0].weights.shape == (1, 4)


@pytest.mark.parametrize(
    ("nodes", "weights", "says"),
    [
        ([helper.make_node("Softmax", ["x"], ["y"])], {}, "Softmax"),
        ([helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Tanh", ["c"], ["y"])], {"w": W}, "Conv, Tanh"),
        ([helper.make_node("Relu", ["x"], ["y"])], {}, "after a linear layer"),
        ([helper.make_node("Gemm", ["x", "w"], ["g"], transB=1), helper.make_node("Relu", ["g"], ["y"])], {"w": W}, "last layer"),
        ([helper.make_node("Gemm", ["x", "w"], ["y"])], {"w": W}, "4 numbers"),
        ([helper.make_node("Gemm", ["x", "w"], ["g"], transB=1), helper.make_node("Add", ["g", "x"], ["y"])], {"w": W}, "chain"),
        ([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": np.full_like(W, np.inf)}, "finite"),
        ([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": W * 1e9}, "below"),
        ([helper.make_node("Identity", ["x"], ["y"])], {}, "no linear layer"),
    ],
)
def test_other_networks_are_refused_by_name(nodes: list[Any], weights: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        network_of(graph(nodes, weights))


def test_a_network_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PARAMETERS", 100)
    with pytest.raises(InvalidInput, match="100 weights"):
        network_of(network_model((10, 11)))
    monkeypatch.setattr(module, "MAX_PARAMETERS", 10**6)
    monkeypatch.setattr(module, "MAX_CONSTRAINTS", 100)
    with pytest.raises(InvalidInput, match="constraints"):
        network_of(network_model((10, 11, 2)))


def test_the_digest_names_the_network() -> None:
    found: dict[bytes, Network] = {}
    for seed in range(3):
        for ends in (False, True):
            network = network_of(network_model((4, 3, 1), sigmoid=ends, seed=seed))
            found[network.digest()] = network
    assert len(found) == 6
    assert network_of(network_model((4, 3, 1))).digest() in found
    assert network_of(onnx.load_from_string(network_model((4, 3, 1)).SerializeToString())).digest() in found
