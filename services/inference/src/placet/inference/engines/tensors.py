"""Tensors of the Open Inference Protocol as arrays, checked once, at the edge; and arrays as tensors. Pure."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from placet.core.errors import InvalidInput, TooLarge
from placet.inference.engines.base import DATATYPES, Tensor, TensorSpec

__all__ = ["Array", "array_of", "arrays_of", "tensor_of", "wanted_outputs"]

Array = npt.NDArray[Any]

_MAX_RANK = 16

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("bool"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


def arrays_of(inputs: Sequence[Tensor], specs: Sequence[TensorSpec], max_bytes: int) -> dict[str, Array]:
    """Arrays by the inputs' names, in the model's order.

    Raises:
        InvalidInput: names the field, for instance `/inputs/0/shape`. TooLarge: all together exceed `max_bytes`.
    """
    if sum(memoryview(tensor.data).nbytes for tensor in inputs) > max_bytes:
        raise TooLarge(f"the inputs exceed {max_bytes} bytes together", field="/inputs")
    by_name = {spec.name: spec for spec in specs}
    found: dict[str, Array] = {}
    for position, tensor in enumerate(inputs):
        here = f"/inputs/{position}"
        spec = by_name.get(tensor.name)
        if spec is None:
            raise InvalidInput(f"the model has no input {tensor.name[:64]!r}: it has {', '.join(by_name)}", field=f"{here}/name")
        if tensor.name in found:
            raise InvalidInput(f"input {tensor.name!r} is given twice", field=f"{here}/name")
        found[tensor.name] = array_of(tensor, spec, here)
    for spec in specs:
        if spec.name not in found:
            raise InvalidInput(f"input {spec.name!r} is missing", field="/inputs")
    return {spec.name: found[spec.name] for spec in specs}


def array_of(tensor: Tensor, spec: TensorSpec, field: str) -> Array:
    """One input. Raises InvalidInput, naming a member of `field`."""
    if tensor.datatype != spec.datatype:
        raise InvalidInput(f"input {spec.name!r} is {spec.datatype}, not {tensor.datatype[:16]}", field=f"{field}/datatype")
    shape = tensor.shape
    fits = len(shape) == len(spec.shape) <= _MAX_RANK and all(
        size >= 0 and wanted in (-1, size) for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidInput(
            f"input {spec.name!r} has shape {list(spec.shape)} (-1: any size), not {list(shape[:_MAX_RANK])}", field=f"{field}/shape"
        )
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        return _strings(tensor.data, count, field).reshape(shape)
    size = count * DATATYPES[spec.datatype]
    data = memoryview(tensor.data)
    if data.nbytes != size:
        raise InvalidInput(
            f"input {spec.name!r} of shape {list(shape)} is {size} bytes of {spec.datatype}, not {data.nbytes}", field=f"{field}/data"
        )
    if not size:
        return np.empty(shape, _DTYPES[spec.datatype])
    array = np.frombuffer(data, np.uint8 if spec.datatype == "BOOL" else _DTYPES[spec.datatype]).reshape(shape)
    if spec.datatype == "BOOL":
        if int(array.max()) > 1:
            raise InvalidInput(f"input {spec.name!r}: a BOOL is a byte 0 or 1", field=f"{field}/data")
        return array.view(np.bool_)
    return array


def _strings(data: bytes | memoryview, count: int, field: str) -> Array:
    """Elements, each behind its length of 4 bytes. onnxruntime's strings are UTF-8, so others are refused."""
    raw = bytes(data)
    if count * 4 > len(raw):
        raise InvalidInput(f"{count} BYTES elements do not fit into {len(raw)} bytes", field=f"{field}/data")
    array = np.empty(count, dtype=object)
    at = 0
    for number in range(count):
        if at + 4 > len(raw):
            raise InvalidInput(f"element {number}: its length is cut off", field=f"{field}/data")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + size > len(raw):
            raise InvalidInput(f"element {number}: {size} bytes announced, {len(raw) - at} left", field=f"{field}/data")
        try:
            array[number] = raw[at : at + size].decode()
        except UnicodeDecodeError:
            raise InvalidInput(f"element {number} is not UTF-8, which this engine's strings are", field=f"{field}/data") from None
        at += size
    if at != len(raw):
        raise InvalidInput(f"{len(raw) - at} bytes behind the last element", field=f"{field}/data")
    return array


def wanted_outputs(names: Sequence[str], specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The outputs asked for; all when none is named. Raises InvalidInput."""
    known = tuple(spec.name for spec in specs)
    if not names:
        return known
    for position, name in enumerate(names):
        if name not in known:
            raise InvalidInput(f"the model has no output {name[:64]!r}: it has {', '.join(known)}", field=f"/outputs/{position}/name")
        if name in names[:position]:
            raise InvalidInput(f"output {name!r} is asked for twice", field=f"/outputs/{position}/name")
    return tuple(names)


def tensor_of(name: str, datatype: str, array: Array) -> Tensor:
    """An output: dense, little-endian."""
    if datatype == "BYTES":
        parts = []
        for element in array.reshape(-1):
            raw = element if isinstance(element, bytes) else str(element).encode()
            parts.append(struct.pack("<I", len(raw)) + raw)
        return Tensor(name, datatype, array.shape, b"".join(parts))
    dense = np.ascontiguousarray(array, dtype=_DTYPES[datatype])
    return Tensor(name, datatype, array.shape, dense.reshape(-1).view(np.uint8).data)
