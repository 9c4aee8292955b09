"""The Open Inference Protocol's codec: JSON and binary data mean the same bytes, and what does not fit is refused by name."""

from __future__ import annotations

import math
import struct
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placet.core import tensors
from placet.core.errors import InvalidInput, TooLarge
from placet.core.tensors import DATATYPES, Tensor, WantedOutput, decode_request, encode_response


def body(**changes: Any) -> bytes:
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5], **changes}
    return orjson.dumps({"inputs": [{key: value for key, value in item.items() if value is not None}]})


def wanting(*outputs: dict[str, Any]) -> bytes:
    return orjson.dumps({**orjson.loads(body()), "outputs": list(outputs)})


def test_json_and_binary_data_mean_the_same_bytes() -> None:
    plain = decode_request(body())
    head = body(data=None, parameters={"binary_data_size": 8})
    binary = decode_request(head + struct.pack("<2f", 1, 2.5), len(head))
    assert bytes(plain.tensors[0].data) == bytes(binary.tensors[0].data) == struct.pack("<2f", 1, 2.5)
    assert decode_request(body(data=[[1, 2.5]])).tensors[0].data == plain.tensors[0].data


EVERY: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "BYTES": ["", "ä"],
    "FP16": [0.5, -2.0],
    "FP32": [0.5, 1e30],
    "FP64": [0.1, -1e300],
    **{f"INT{bits}": [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": [0, 2**bits - 1] for bits in (8, 16, 32, 64)},
}


@pytest.mark.parametrize("datatype", EVERY)
def test_every_datatype_goes_there_and_back(datatype: str) -> None:
    values = EVERY[datatype]
    (made,) = decode_request(body(datatype=datatype, data=values, shape=[2])).tensors
    tensors.check_size(made, "x")
    shown = tensors.to_json(made)
    assert shown == (values if datatype != "FP32" else [0.5, struct.unpack("<f", struct.pack("<f", 1e30))[0]])


WRONG: list[tuple[bytes, str]] = [
    (b"[]", "body"),
    (b"{", "body"),
    (b'{"inputs":[]}', "inputs"),
    (b'{"inputs":[1]}', "inputs/0"),
    (b'{"inputs":[{}],"model":1}', "model"),
    (body(name=""), "inputs/0/name"),
    (body(datatype="FP8"), "inputs/0/datatype"),
    (body(shape=[-1, 2]), "inputs/0/shape"),
    (body(shape=[1] * 17), "inputs/0/shape"),
    (body(shape=[3]), "inputs/0/data"),
    (body(data=["1", 2]), "inputs/0/data"),
    (body(data=[[1], 2]), "inputs/0/data"),
    (body(data=[[[1, 2]]]), "inputs/0/data"),
    (body(data=5), "inputs/0/data"),
    (body(datatype="UINT8", data=[256, 0]), "inputs/0/data"),
    (body(datatype="INT8", data=[0.5, 0]), "inputs/0/data"),
    (body(datatype="BOOL", data=[1, 0]), "inputs/0/data"),
    (body(datatype="BF16"), "inputs/0/data"),
    (body(datatype="BYTES", data=[1, 2]), "inputs/0/data"),
    (body(parameters={"priority": 1}), "inputs/0/parameters"),
    (body(parameters={"binary_data_size": 8}), "inputs/0/parameters/binary_data_size"),
    (wanting({"name": "y"}, {"name": "y"}), "outputs"),
    (wanting({"name": "y", "parameters": {"classification": 3}}), "outputs/0/parameters"),
]


@pytest.mark.parametrize(("raw", "field"), WRONG, ids=[field + str(at) for at, (_, field) in enumerate(WRONG)])
def test_what_does_not_fit_is_refused_by_name(raw: bytes, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_request(raw)
    assert caught.value.field == field


def test_binary_data_is_used_up_exactly() -> None:
    head = body(data=None, parameters={"binary_data_size": 8})
    for tail, declared in ((b"\0" * 9, len(head)), (b"\0" * 7, len(head)), (b"\0" * 8, len(head) + 100), (b"\0" * 8, 0)):
        with pytest.raises(InvalidInput):
            decode_request(head + tail, declared)
    short = body(data=None, parameters={"binary_data_size": 4})
    with pytest.raises(InvalidInput, match="4 bytes"):
        decode_request(short + b"\0" * 4, len(short))


def test_bytes_elements_have_their_lengths() -> None:
    assert tensors.split_bytes(tensors.join_bytes([b"a", b"", b"xyz"]), 3, "x") == [b"a", b"", b"xyz"]
    for data, elements in ((b"\1\0\0", 1), (b"\5\0\0\0abc", 1), (tensors.join_bytes([b"a"]), 2), (tensors.join_bytes([b"a", b"b"]), 1)):
        with pytest.raises(InvalidInput):
            tensors.split_bytes(data, elements, "x")


def test_answers_are_written_as_they_were_asked_for() -> None:
    request = decode_request(wanting({"name": "y"}, {"name": "z", "parameters": {"binary_data": True}}))
    assert request.wanted == (WantedOutput("y", False), WantedOutput("z", True))
    y, z = Tensor("y", "FP32", (1,), struct.pack("<f", 2)), Tensor("z", "INT64", (1,), struct.pack("<q", 3))
    raw, json_bytes = encode_response({"model_name": "m"}, [y, z], request, max_bytes=1000)
    assert json_bytes is not None
    document = orjson.loads(raw[:json_bytes])
    assert document["outputs"][0] == {"name": "y", "datatype": "FP32", "shape": [1], "data": [2.0]}
    assert document["outputs"][1]["parameters"] == {"binary_data_size": 8}
    assert raw[json_bytes:] == struct.pack("<q", 3)
    with pytest.raises(TooLarge):
        encode_response({}, [y, z], request, max_bytes=10)
    with pytest.raises(InvalidInput, match="binary data"):
        encode_response({}, [Tensor("y", "BYTES", (1,), tensors.join_bytes([b"\xff"]))], request, max_bytes=1000)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(-5, 400))
def test_any_bytes_are_answered_or_refused(raw: bytes, json_bytes: int) -> None:
    for declared in (None, json_bytes):
        try:
            found = decode_request(raw, declared)
        except InvalidInput:
            continue
        assert all(tensor.datatype in DATATYPES and math.prod(tensor.shape) >= 0 for tensor in found.tensors)
