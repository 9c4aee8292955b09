"""OpenAI's own client, with payment and verification underneath: what takes an `openai.OpenAI` takes these.

    client = OpenAI(base_url="https://gateway.example/v1", wallet=Wallet.from_env(), keys=["0x…"])

Arguments that are not `openai`'s are those of `Access`. What fails is a typed error of Placet's (`BudgetExceeded`, `ReceiptRejected`,
`PaymentPending`, …), raised through. Needs the extra `inference` of placet-sdk.
"""

from __future__ import annotations

from typing import Any

import httpx
import openai

from placet.core.errors import InvalidInput
from placet.sdk.access import Access

_OURS = frozenset({"wallet", "budget", "rules", "keys", "pins", "verify", "mode", "models", "tee_policy", "on_verified"})


def _arguments(kind: type[Any], given: dict[str, Any]) -> tuple[dict[str, Any], Access | None]:
    """What is `openai`'s, and the way in; None where the caller brings a client of its own (as `with_options` does)."""
    stock = {name: value for name, value in given.items() if name not in _OURS | {"access"}}
    ours = {name: value for name, value in given.items() if name in _OURS}
    access = given.get("access")
    if stock.get("http_client") is not None:
        if ours or access is not None:
            raise InvalidInput("http_client: a client of your own neither pays nor verifies; leave it out", field="http_client")
        return stock, None
    if access is None:
        base_url, api_key = stock.get("base_url"), stock.get("api_key")
        if api_key is not None and not isinstance(api_key, str):
            raise InvalidInput("api_key: text wanted", field="api_key")
        access = Access(None if base_url is None else str(base_url), api_key=api_key, **ours)
    elif ours:
        raise InvalidInput(f"{min(ours)}: is part of the access that was given", field=min(ours))
    client: httpx.Client | httpx.AsyncClient
    client = access.async_client() if kind is openai.AsyncOpenAI else access.client()
    stock |= {"base_url": f"{access.gateway}/v1", "api_key": access.api_key, "http_client": client}
    return stock, access


class OpenAI(openai.OpenAI):
    """`openai.OpenAI` that pays and verifies."""

    access: Access | None
    """How the gateway is used; None for one with a client of its own."""

    def __init__(self, **arguments: Any) -> None:
        stock, access = _arguments(openai.OpenAI, arguments)
        super().__init__(**stock)
        self.access = access


class AsyncOpenAI(openai.AsyncOpenAI):
    """`openai.AsyncOpenAI` that pays and verifies."""

    access: Access | None
    """How the gateway is used; None for one with a client of its own."""

    def __init__(self, **arguments: Any) -> None:
        stock, access = _arguments(openai.AsyncOpenAI, arguments)
        super().__init__(**stock)
        self.access = access
