"""Counting the fields of a protobuf message before it is parsed: a mebibyte may hold half a million empty messages, each of 40 bytes and
more once they are objects."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from placet.core.errors import InvalidInput, TooLarge

_DENSE_BYTES = 16 << 10
"""Smaller messages hold few enough."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types (https://protobuf.dev/programming-guides/encoding). Groups are not used here."""


class _Shape(dict[int, "_Shape"]):
    """Which fields of a message are messages themselves, by number."""


def check_fields(data: bytes, kind: type[Message], limit: int, field: str) -> None:
    """Raises:
    TooLarge: more than `limit` fields, those of messages within included.
    InvalidInput: not a protobuf message.
    """
    if len(data) <= _DENSE_BYTES:
        return
    left = limit
    todo = [(0, len(data), _shape_of(kind))]
    while todo:
        at, end, shape = todo.pop()
        while at < end:
            left -= 1
            if left < 0:
                raise TooLarge(f"{field}: more than {limit} fields", field=field)
            tag, at = _varint(data, at, end, field)
            wire_type = tag & 7
            if wire_type == _VARINT:
                _, at = _varint(data, at, end, field)
            elif wire_type == _BYTES:
                size, at = _varint(data, at, end, field)
                if (within := shape.get(tag >> 3)) is not None and at + size <= end:
                    todo.append((at, at + size, within))
                at += size
            elif wire_type in (_FIXED64, _FIXED32):
                at += 8 if wire_type == _FIXED64 else 4
            else:
                raise InvalidInput(f"{field}: not a protobuf message", field=field)
        if at != end:
            raise InvalidInput(f"{field}: not a protobuf message", field=field)


def _varint(data: bytes, at: int, end: int, field: str) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise InvalidInput(f"{field}: not a protobuf message", field=field)


_SHAPES: dict[str, _Shape] = {}


def _shape_of(kind: type[Message]) -> _Shape:
    name = kind.DESCRIPTOR.full_name
    if name not in _SHAPES:
        _SHAPES[name] = _shape(kind.DESCRIPTOR)
    return _SHAPES[name]


def _shape(descriptor: Any) -> _Shape:
    return _Shape({item.number: _shape(item.message_type) for item in descriptor.fields if item.message_type is not None})
