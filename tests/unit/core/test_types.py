"""Hex in: exactly the digits, nothing that is read leniently."""

from __future__ import annotations

import pytest

from placet.core.errors import InvalidInput
from placet.core.types import address_from, hash_from
from placet.gateway.requests import hex_bytes

WRONG = ["", "0x", "0x" + "00" * 19, "0x" + "00" * 21, "00" * 21, "0X" + "00" * 20, "0x" + "0g" * 20, "0x" + "00" * 19 + "  "]


@pytest.mark.parametrize("text", [*WRONG, "0x" + "00" * 18 + "\t\n00", "0x" + "\u0660" * 40])
def test_an_address_is_forty_digits(text: str) -> None:
    with pytest.raises(InvalidInput):
        address_from(text)


@pytest.mark.parametrize("text", ["0x" + "00" * 31 + "  ", "0x" + "00" * 31 + " 0", "0x" + "00" * 33])
def test_a_hash_is_sixty_four_digits(text: str) -> None:
    with pytest.raises(InvalidInput):
        hash_from(text)


@pytest.mark.parametrize("text", ["0x00 0 ", "0x  ", "0x0", "00"])
def test_bytes_of_a_request_are_digits_only(text: str) -> None:
    with pytest.raises(InvalidInput):
        hex_bytes(text, "/data", 100)
    assert hex_bytes("0x00fF", "/data", 100) == b"\x00\xff"
    assert hex_bytes("0x", "/data", 100) == b""
