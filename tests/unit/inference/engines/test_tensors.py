from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placet.core.errors import InvalidInput, TooLarge
from placet.inference.engines.base import Tensor, TensorSpec
from placet.inference.engines.tensors import array_of, arrays_of, tensor_of, wanted_outputs

X = TensorSpec("x", "FP32", (-1, 4))
TEXT = TensorSpec("text", "BYTES", (-1,))
ROW = Tensor("x", "FP32", (1, 4), bytes(16))


def elements(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


@pytest.mark.parametrize(
    ("inputs", "field", "said"),
    [
        ([], "/inputs", "'x' is missing"),
        ([ROW, Tensor("z", "FP32", (1, 4), bytes(16))], "/inputs/1/name", "no input 'z': it has x"),
        ([ROW, ROW], "/inputs/1/name", "given twice"),
        ([Tensor("x", "FP64", (1, 4), bytes(32))], "/inputs/0/datatype", "is FP32, not FP64"),
        ([Tensor("x", "FP32", (1, 5), bytes(20))], "/inputs/0/shape", "has shape [-1, 4] (-1: any size), not [1, 5]"),
        ([Tensor("x", "FP32", (4,), bytes(16))], "/inputs/0/shape", "not [4]"),
        ([Tensor("x", "FP32", (-1, 4), bytes(16))], "/inputs/0/shape", "not [-1, 4]"),
        ([Tensor("x", "FP32", (2, 4), bytes(16))], "/inputs/0/data", "is 32 bytes of FP32, not 16"),
        ([Tensor("x", "FP32", (2**62, 4), bytes(16))], "/inputs/0/data", "not 16"),
    ],
)
def test_a_wrong_input_is_refused_by_the_name_of_the_field(inputs: list[Tensor], field: str, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        arrays_of(inputs, [X], 1_000)
    assert refused.value.field == field
    assert said in refused.value.message


def test_all_inputs_together_are_bounded() -> None:
    with pytest.raises(TooLarge) as refused:
        arrays_of([ROW], [X], 15)
    assert refused.value.field == "/inputs"


@pytest.mark.parametrize(
    ("data", "shape", "said"),
    [
        (elements(b"a"), (2,), "2 BYTES elements do not fit into 5 bytes"),
        (elements(b"abcdefgh") + b"\x01", (2,), "element 1: its length is cut off"),
        (struct.pack("<I", 9) + b"abcd", (1,), "element 0: 9 bytes announced, 4 left"),
        (struct.pack("<I", 2**32 - 1), (1,), "announced, 0 left"),
        (elements(b"a", b"b"), (1,), "5 bytes behind the last element"),
        (elements(b"\xff"), (1,), "element 0 is not UTF-8"),
        (b"", (2**40,), "do not fit"),
    ],
)
def test_bytes_elements_are_read_within_their_bounds(data: bytes, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        array_of(Tensor("text", "BYTES", shape, data), TEXT, "/inputs/3")
    assert refused.value.field == "/inputs/3/data"
    assert said in refused.value.message


@given(st.lists(st.text(), max_size=6))
def test_bytes_in_are_bytes_out(values: list[str]) -> None:
    tensor = Tensor("text", "BYTES", (len(values),), elements(*(value.encode() for value in values)))
    assert tensor_of("text", "BYTES", array_of(tensor, TEXT, "")) == tensor


@given(st.binary(max_size=64), st.integers(0, 5))
def test_no_bytes_make_anything_but_an_array_or_a_refusal(data: bytes, count: int) -> None:
    with suppress(InvalidInput):
        assert array_of(Tensor("text", "BYTES", (count,), data), TEXT, "").shape == (count,)


@pytest.mark.parametrize(
    "datatype", ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BOOL"]
)
def test_every_datatype_goes_in_and_out_unchanged(datatype: str) -> None:
    width = {"BOOL": 1}.get(datatype) or int(datatype.lstrip("UINTFP")) // 8
    data = bytes([1, 0] * 3 * width) if datatype == "BOOL" else bytes(range(6 * width))
    tensor = Tensor("x", datatype, (2, 3), data[: 6 * width])
    out = tensor_of("x", datatype, array_of(tensor, TensorSpec("x", datatype, (-1, 3)), ""))
    assert (out.shape, bytes(out.data)) == ((2, 3), tensor.data)


def test_a_bool_is_zero_or_one() -> None:
    with pytest.raises(InvalidInput, match="0 or 1"):
        array_of(Tensor("b", "BOOL", (2,), b"\x01\x02"), TensorSpec("b", "BOOL", (-1,)), "")


def test_scalars_and_empty_tensors_have_their_shapes() -> None:
    scalar = array_of(Tensor("s", "INT64", (), (7).to_bytes(8, "little")), TensorSpec("s", "INT64", ()), "")
    assert scalar.shape == ()
    assert int(scalar) == 7
    out = tensor_of("s", "INT64", scalar)
    assert (out.shape, bytes(out.data)) == ((), (7).to_bytes(8, "little"))
    empty = array_of(Tensor("x", "FP32", (0, 4), b""), X, "")
    assert empty.shape == (0, 4)
    assert bytes(tensor_of("x", "FP32", empty).data) == b""


def test_what_is_not_contiguous_becomes_dense() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert bytes(tensor_of("x", "INT32", array).data) == np.ascontiguousarray(array).tobytes()


def test_outputs_are_named_once_and_known() -> None:
    specs = [TensorSpec("a", "FP32", ()), TensorSpec("b", "FP32", ())]
    assert wanted_outputs([], specs) == ("a", "b")
    assert wanted_outputs(["b"], specs) == ("b",)
    with pytest.raises(InvalidInput) as unknown:
        wanted_outputs(["b", "c"], specs)
    assert unknown.value.field == "/outputs/1/name"
    with pytest.raises(InvalidInput) as twice:
        wanted_outputs(["b", "b"], specs)
    assert twice.value.field == "/outputs/1/name"
