"""The extension `payment-identifier`: a client's own name for a purchase, which stands for it whatever payment comes with it.

The same identifier with the same request is answered once and paid once; with another request it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from placet.core.payment.reading import Members, malformed

NAME = "payment-identifier"
MIN_LENGTH, MAX_LENGTH = 16, 128
_FORM = re.compile(r"[A-Za-z0-9_-]{16,128}\Z")


def declaration(*, required: bool = False) -> dict[str, Any]:
    """What a 402 says of the extension, under its name in `extensions`."""
    form = {"type": "string", "minLength": MIN_LENGTH, "maxLength": MAX_LENGTH, "pattern": "^[a-zA-Z0-9_-]+$"}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"required": {"type": "boolean"}, "id": form},
        "required": ["required"],
    }
    return {"info": {"required": required}, "schema": schema}


def identifier_of(extensions: Mapping[str, Any], *, required: bool = False) -> str | None:
    """The identifier among a payment's extensions; None when there is none. A client may echo the declaration without giving one.

    Raises:
        PaymentMalformed: it is not of its form, or required and missing.
    """
    field = f"extensions/{NAME}/info/id"
    given: Any = None
    if NAME in extensions:
        info = Members(extensions[NAME], f"extensions/{NAME}").inside("info")
        given = info.take("id") if info.has("id") else None
    if given is None:
        if required:
            raise malformed(field, "is missing, and required here")
        return None
    if not isinstance(given, str) or not _FORM.match(given):
        raise malformed(field, f"{MIN_LENGTH} to {MAX_LENGTH} characters of A-Z, a-z, 0-9, _ and - wanted")
    return given
