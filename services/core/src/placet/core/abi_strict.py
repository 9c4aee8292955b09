"""A strict ABI decoder: it takes exactly one encoding of each value, and reads each byte once.

Solidity's and eth_abi's decoders follow any offsets, so one value has many encodings, and a few kilobytes of overlapping offsets can
decode to gigabytes. Here every offset must point to where the previous value ended, padding must be zero, booleans 0 or 1, integers in
range, strings UTF-8, and nothing may follow. So decoding is linear in the input and `encode(decode(data)) == data` holds by construction
(a property test says so against eth_abi). Source: Solidity ABI specification, "Strict Encoding Mode".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eth_abi.grammar import ABIType, BasicType, TupleType

from placet.core import limits


class NotCanonical(ValueError):
    """Not the canonical encoding of values of these types."""


def is_supported(kind: ABIType) -> bool:
    """Whether values of this type can be decoded: no fixed-point, no function pointers, nothing of size zero (a length bomb), nothing
    that no intent's data could hold."""
    return _has_supported_members(kind) and least_size(kind) <= limits.MAX_INTENT_DATA_BYTES


def least_size(kind: ABIType) -> int:
    """Bytes that the shortest encoding of a value takes, its offset included."""
    if kind.arrlist:
        dimension = kind.arrlist[-1]
        size = int(dimension[0]) * least_size(kind.item_type) if dimension else 32
    elif isinstance(kind, TupleType):
        size = sum(least_size(member) for member in kind.components)
    else:
        size = 32
    return size + 32 if kind.is_dynamic else size


def _has_supported_members(kind: ABIType) -> bool:
    if kind.arrlist:
        return all(dimension != (0,) for dimension in kind.arrlist) and _has_supported_members(kind.item_type)
    if isinstance(kind, TupleType):
        return bool(kind.components) and all(_has_supported_members(member) for member in kind.components)
    return isinstance(kind, BasicType) and kind.base in ("uint", "int", "address", "bool", "bytes", "string")


def _head_size(kind: ABIType) -> int:
    if kind.is_dynamic:
        return 32
    if kind.arrlist:
        return int(kind.arrlist[-1][0]) * _head_size(kind.item_type)
    if isinstance(kind, TupleType):
        return sum(_head_size(member) for member in kind.components)
    return 32


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def word(self, at: int) -> int:
        if at + 32 > len(self.data):
            raise NotCanonical("the data ends early")
        return int.from_bytes(self.data[at : at + 32], "big")

    def scalar(self, kind: BasicType, at: int) -> Any:
        value = self.word(at)
        match kind.base:
            case "uint":
                if value >> int(kind.sub):
                    raise NotCanonical("unsigned integer out of range")
                return value
            case "int":
                signed = value - (1 << 256) if value >> 255 else value
                bound = 1 << (int(kind.sub) - 1)
                if not -bound <= signed < bound:
                    raise NotCanonical("integer out of range")
                return signed
            case "address":
                if value >> 160:
                    raise NotCanonical("address with high bits set")
                return "0x" + self.data[at + 12 : at + 32].hex()
            case "bool":
                if value > 1:
                    raise NotCanonical("boolean is neither 0 nor 1")
                return bool(value)
            case _:
                size = int(kind.sub)
                if any(self.data[at + size : at + 32]):
                    raise NotCanonical("fixed bytes with non-zero padding")
                return self.data[at : at + size]

    def text(self, kind: BasicType, at: int) -> tuple[Any, int]:
        length = self.word(at)
        start, end = at + 32, at + 32 + length
        padded = at + 32 + (length + 31) // 32 * 32
        if padded > len(self.data) or any(self.data[end:padded]):
            raise NotCanonical("bytes end early or have non-zero padding")
        content = self.data[start:end]
        if kind.base == "bytes":
            return content, padded
        try:
            return content.decode("utf-8"), padded
        except UnicodeDecodeError:
            raise NotCanonical("a string is not UTF-8") from None

    def value(self, kind: ABIType, at: int) -> tuple[Any, int]:
        """The value whose encoding starts at `at`, and where it ends."""
        if kind.arrlist:
            item = kind.item_type
            if kind.arrlist[-1]:
                if int(kind.arrlist[-1][0]) * _head_size(item) > len(self.data) - at:
                    raise NotCanonical("an array is longer than the data")
                return self.sequence([item] * int(kind.arrlist[-1][0]), at)
            length = self.word(at)
            if length * _head_size(item) > len(self.data) - at - 32:
                raise NotCanonical("an array is longer than the data")
            return self.sequence([item] * length, at + 32)
        if isinstance(kind, TupleType):
            return self.sequence(kind.components, at)
        assert isinstance(kind, BasicType)
        if kind.is_dynamic:
            return self.text(kind, at)
        return self.scalar(kind, at), at + 32

    def sequence(self, kinds: Sequence[ABIType], base: int) -> tuple[list[Any], int]:
        """Values laid out as a tuple: heads, then tails in order and without gaps."""
        tail = base + sum(_head_size(kind) for kind in kinds)
        if tail > len(self.data):
            raise NotCanonical("the data ends early")
        values, head = [], base
        for kind in kinds:
            if kind.is_dynamic:
                if self.word(head) != tail - base:
                    raise NotCanonical("an offset does not point to where the previous value ended")
                value, tail = self.value(kind, tail)
                head += 32
            else:
                value, head = self.value(kind, head)
            values.append(value)
        return values, tail


def decode_strict(kinds: Sequence[ABIType], data: bytes) -> list[Any]:
    """Decode `data` (without selector): integers as int, addresses as lower-case 0x text, bytes as bytes, arrays and tuples as lists.

    Raises:
        NotCanonical: anything but the one canonical encoding.
    """
    values, end = _Reader(data).sequence(kinds, 0)
    if end != len(data):
        raise NotCanonical("bytes follow the arguments")
    return values
