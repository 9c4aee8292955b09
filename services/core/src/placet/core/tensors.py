"""The Open Inference Protocol's tensors: JSON and the binary extension on one side, dense little-endian bytes on the other.

Source: https://github.com/kserve/open-inference-protocol and Triton's binary tensor data extension.
"""

from __future__ import annotations

import array
import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from placet.core.errors import InvalidInput, TooLarge

DATATYPES: Mapping[str, int] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}
"""Names of the Open Inference Protocol and bytes an element; BYTES elements have a 4-byte little-endian length before each."""
_CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
MAX_TENSORS = 64
MAX_RANK = 16
MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Tensor:
    """Values: dense, little-endian, row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output asked for, and whether its data is wanted as bytes."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferDocument:
    """A request. `wanted` empty: all outputs, as `all_binary` says."""

    id: str | None
    tensors: tuple[Tensor, ...]
    wanted: tuple[WantedOutput, ...]
    all_binary: bool
    parameters: Mapping[str, Any]


def decode_request(raw: bytes, json_bytes: int | None = None) -> InferDocument:
    """A request's JSON, and behind its first `json_bytes` bytes (header `Inference-Header-Content-Length`) its binary data.

    Raises:
        InvalidInput: names the member that does not fit.
    """
    if json_bytes is not None and not 0 < json_bytes <= len(raw):
        raise InvalidInput("Inference-Header-Content-Length: not within the body", field="Inference-Header-Content-Length")
    head, rest = (raw, memoryview(b"")) if json_bytes is None else (raw[:json_bytes], memoryview(raw)[json_bytes:])
    try:
        document = orjson.loads(head)
    except orjson.JSONDecodeError:
        raise InvalidInput("body: not JSON", field="body") from None
    if not isinstance(document, dict):
        raise InvalidInput("body: an object wanted", field="body")
    if unknown := document.keys() - {"id", "inputs", "outputs", "parameters"}:
        raise InvalidInput(f"{min(unknown)}: is not a member of an inference request", field=min(unknown))
    request_id = document.get("id")
    if request_id is not None and (not isinstance(request_id, str) or len(request_id) > MAX_NAME):
        raise InvalidInput(f"id: text of at most {MAX_NAME} characters wanted", field="id")
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidInput("parameters: an object wanted", field="parameters")
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= MAX_TENSORS:
        raise InvalidInput(f"inputs: a list of 1 to {MAX_TENSORS} wanted", field="inputs")
    tensors = []
    for at, item in enumerate(inputs):
        tensor, rest = _input(item, f"inputs/{at}", rest)
        tensors.append(tensor)
    if len(rest):
        raise InvalidInput(f"body: {len(rest)} bytes of binary data that no input names", field="body")
    all_binary = parameters.get("binary_data_output", False)
    if not isinstance(all_binary, bool):
        raise InvalidInput("parameters/binary_data_output: true or false wanted", field="parameters/binary_data_output")
    left = {name: value for name, value in parameters.items() if name != "binary_data_output"}
    return InferDocument(request_id, tuple(tensors), _wanted(document.get("outputs"), all_binary), all_binary, left)


def _input(item: Any, field: str, rest: memoryview) -> tuple[Tensor, memoryview]:
    if not isinstance(item, dict) or not item.keys() <= {"name", "shape", "datatype", "data", "parameters"}:
        raise InvalidInput(f"{field}: an object of name, shape, datatype, data and parameters wanted", field=field)
    name, datatype = item.get("name"), item.get("datatype")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise InvalidInput(f"{field}/name: text of 1 to {MAX_NAME} characters wanted", field=f"{field}/name")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise InvalidInput(f"{field}/datatype: one of {', '.join(DATATYPES)}", field=f"{field}/datatype")
    shape = shape_of(item.get("shape"), f"{field}/shape")
    parameters = item.get("parameters") or {}
    if not isinstance(parameters, dict) or not parameters.keys() <= {"binary_data_size"}:
        raise InvalidInput(f"{field}/parameters: only binary_data_size is honoured", field=f"{field}/parameters")
    if "binary_data_size" in parameters:
        size = parameters["binary_data_size"]
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
            raise InvalidInput(f"{field}/parameters/binary_data_size: not within the body", field=f"{field}/parameters/binary_data_size")
        if "data" in item:
            raise InvalidInput(f"{field}/data: given twice", field=f"{field}/data")
        tensor = Tensor(name, datatype, shape, rest[:size])
        check_size(tensor, field)
        return tensor, rest[size:]
    return Tensor(name, datatype, shape, from_json(datatype, shape, item.get("data"), f"{field}/data")), rest


def _wanted(value: Any, all_binary: bool) -> tuple[WantedOutput, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TENSORS:
        raise InvalidInput(f"outputs: a list of at most {MAX_TENSORS} wanted", field="outputs")
    out = []
    for at, item in enumerate(value):
        field = f"outputs/{at}"
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not item.keys() <= {"name", "parameters"}:
            raise InvalidInput(f"{field}: an object of name and parameters wanted", field=field)
        parameters = item.get("parameters") or {}
        if not isinstance(parameters, dict) or not parameters.keys() <= {"binary_data"}:
            raise InvalidInput(f"{field}/parameters: only binary_data is honoured", field=f"{field}/parameters")
        binary = parameters.get("binary_data", all_binary)
        if not isinstance(binary, bool):
            raise InvalidInput(f"{field}/parameters/binary_data: true or false wanted", field=f"{field}/parameters/binary_data")
        out.append(WantedOutput(item["name"][:MAX_NAME], binary))
    if len({item.name for item in out}) != len(out):
        raise InvalidInput("outputs: a name stands twice", field="outputs")
    return tuple(out)


def shape_of(value: Any, field: str) -> tuple[int, ...]:
    """A shape. Raises InvalidInput."""
    if (
        not isinstance(value, list)
        or len(value) > MAX_RANK
        or not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**31 for size in value)
    ):
        raise InvalidInput(f"{field}: a list of at most {MAX_RANK} sizes wanted", field=field)
    return tuple(value)


def check_size(tensor: Tensor, field: str) -> None:
    """Whether the data is as long as datatype and shape say. Raises InvalidInput."""
    elements, width = math.prod(tensor.shape), DATATYPES[tensor.datatype]
    if width:
        if len(tensor.data) != elements * width:
            text = f"{field}: {len(tensor.data)} bytes; {tensor.datatype}{list(tensor.shape)} has {elements * width}"
            raise InvalidInput(text, field=field)
        return
    split_bytes(tensor.data, elements, field)


def split_bytes(data: bytes | memoryview, elements: int, field: str) -> list[bytes]:
    """The elements of a BYTES tensor. Raises InvalidInput."""
    out: list[bytes] = []
    at, view = 0, memoryview(data)
    while at < len(view):
        if at + 4 > len(view) or len(out) == elements:
            break
        (size,) = struct.unpack_from("<I", view, at)
        if at + 4 + size > len(view):
            break
        out.append(bytes(view[at + 4 : at + 4 + size]))
        at += 4 + size
    if at != len(view) or len(out) != elements:
        raise InvalidInput(f"{field}: not {elements} elements with their lengths", field=field)
    return out


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """A BYTES tensor's data."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def from_json(datatype: str, shape: tuple[int, ...], data: Any, field: str) -> bytes:
    """Dense bytes of JSON values, flat or nested. Raises InvalidInput."""
    if not isinstance(data, list):
        raise InvalidInput(f"{field}: a list wanted", field=field)
    values = data
    depth = 0
    while values and isinstance(values[0], list):
        depth += 1
        if depth >= max(1, len(shape)) or not all(isinstance(item, list) for item in values):
            raise InvalidInput(f"{field}: nested otherwise than its shape", field=field)
        values = [value for item in values for value in item]
    elements = math.prod(shape)
    if len(values) != elements:
        raise InvalidInput(f"{field}: {len(values)} values; the shape {list(shape)} has {elements}", field=field)
    try:
        return _dense(datatype, values)
    except (TypeError, ValueError, OverflowError, struct.error):
        raise InvalidInput(f"{field}: a value is none of {datatype}", field=field) from None


def _dense(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BOOL":
        if not all(isinstance(value, bool) for value in values):
            raise ValueError
        return bytes(values)
    if datatype == "BYTES":
        return join_bytes([value.encode() if isinstance(value, str) else _refuse() for value in values])
    if datatype == "FP16":
        return struct.pack(f"<{len(values)}e", *values)
    if datatype == "BF16":
        raise ValueError  # the protocol has no JSON form of it
    packed = array.array(_CODES[datatype], values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _refuse() -> bytes:
    raise ValueError


def to_json(tensor: Tensor, field: str = "outputs") -> list[Any]:
    """JSON values of a tensor, flat.

    Raises:
        InvalidInput: it has no JSON form (BF16, BYTES that are no UTF-8): ask for binary data.
    """
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in split_bytes(tensor.data, math.prod(tensor.shape), field)]
        except UnicodeDecodeError:
            raise InvalidInput(f"{tensor.name}: is no text; ask for binary data", field=field) from None
    if tensor.datatype == "BOOL":
        return [byte != 0 for byte in bytes(tensor.data)]
    if tensor.datatype == "FP16":
        return list(struct.unpack(f"<{len(tensor.data) // 2}e", tensor.data))
    if tensor.datatype == "BF16":
        raise InvalidInput(f"{tensor.name}: BF16 has no JSON form; ask for binary data", field=field)
    values = array.array(_CODES[tensor.datatype])
    values.frombytes(tensor.data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def encode_response(
    head: Mapping[str, Any], outputs: Sequence[Tensor], request: InferDocument, *, max_bytes: int
) -> tuple[bytes, int | None]:
    """An answer's body, and how many of its bytes are JSON when it holds binary data.

    Raises:
        TooLarge: more than `max_bytes`. InvalidInput: an output has no JSON form.
    """
    binary = {item.name: item.binary for item in request.wanted}
    described, blobs = [], []
    for tensor in outputs:
        member: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary.get(tensor.name, request.all_binary):
            member["parameters"] = {"binary_data_size": len(tensor.data)}
            blobs.append(bytes(tensor.data))
        else:
            member["data"] = to_json(tensor)
        described.append(member)
    document = {**head, "outputs": described}
    raw = orjson.dumps(document)  # NaN becomes null, as in every JSON answer of this protocol
    total = len(raw) + sum(map(len, blobs))
    if total > max_bytes:
        raise TooLarge(f"the answer has {total} bytes, at most {max_bytes}", field="outputs")
    return (raw, None) if not blobs else (b"".join((raw, *blobs)), len(raw))
