"""Members of JSON objects of x402, each in its one form: what is not of it is malformed, and named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from placet.core.errors import PaymentMalformed
from placet.core.types import UINT256_MAX, Address

_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,77})\Z")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*\Z")


def malformed(field: str, wanted: str) -> PaymentMalformed:
    """The error: a member is not of its form. Quotes nothing of what was sent."""
    return PaymentMalformed(f"{field}: {wanted}", field=field)


def decimal(value: Any, field: str) -> int:
    """An integer up to 2²⁵⁶-1 from its canonical decimal text: no sign, space, underscore, leading zero, or digit of another script."""
    if not isinstance(value, str) or not _DECIMAL.match(value) or (number := int(value)) > UINT256_MAX:
        raise malformed(field, "a decimal string without sign, spaces or leading zeros wanted, below 2^256")
    return number


class Members:
    """Members of an object, each taken once."""

    def __init__(self, value: Any, field: str) -> None:
        if not isinstance(value, dict):
            raise malformed(field, "an object wanted")
        self._left: dict[str, Any] = dict(value)
        self._field = field

    def path(self, name: str) -> str:
        """Where a member is."""
        return f"{self._field}/{name}" if self._field else name

    def has(self, name: str) -> bool:
        """Whether a member is there, and not taken yet."""
        return name in self._left

    def take(self, name: str) -> Any:
        """A member as it is. Like all that follow, raises PaymentMalformed."""
        try:
            return self._left.pop(name)
        except KeyError:
            raise malformed(self.path(name), "is missing") from None

    def text(self, name: str, longest: int = 128) -> str:
        """A text of at most so many characters."""
        value = self.take(name)
        if not isinstance(value, str) or len(value) > longest:
            raise malformed(self.path(name), f"a text of at most {longest} characters wanted")
        return value

    def integer(self, name: str, least: int, greatest: int) -> int:
        """A JSON number that is an integer."""
        value = self.take(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= greatest:
            raise malformed(self.path(name), f"an integer from {least} to {greatest} wanted")
        return value

    def decimal(self, name: str) -> int:
        """An integer written as text."""
        return decimal(self.take(name), self.path(name))

    def address(self, name: str) -> Address:
        """20 bytes in hex of any case."""
        value = self.take(name)
        if not isinstance(value, str) or not _ADDRESS.match(value):
            raise malformed(self.path(name), "an address wanted: 0x and 40 hex digits")
        return Address(bytes.fromhex(value[2:]))

    def data(self, name: str, least: int, greatest: int) -> bytes:
        """So many bytes in hex of any case."""
        value = self.take(name)
        if not isinstance(value, str) or not 2 + 2 * least <= len(value) <= 2 + 2 * greatest or not _HEX.match(value):
            size = f"{least}" if least == greatest else f"{least} to {greatest}"
            raise malformed(self.path(name), f"0x and {size} bytes in hex wanted")
        return bytes.fromhex(value[2:])

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object as it is."""
        value = self.take(name)
        if not isinstance(value, dict):
            raise malformed(self.path(name), "an object wanted")
        return value

    def inside(self, name: str) -> Members:
        """An object's members."""
        return Members(self.take(name), self.path(name))

    def done(self) -> None:
        """Nothing may be left."""
        if self._left:
            raise malformed(self._field or "payment", f"has {len(self._left)} member(s) that are not known")
