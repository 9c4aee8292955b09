"""One way into one gateway: who pays, what is verified, and httpx clients that do both. Needs the extra `inference` of placet-sdk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import httpx

from placet.core.errors import InvalidInput
from placet.core.receipts import Mode
from placet.core.types import Hash32
from placet.sdk.budget import Budget
from placet.sdk.paying import AsyncPayingTransport, Payer, PayingTransport, gateway_url
from placet.sdk.verified import AsyncVerifyingTransport, Keys, Verified, Verifier, VerifyingTransport
from placet.sdk.wallet import Rules, Wallet

FIRST_USE: Final = "first use"
TIMEOUT: Final = httpx.Timeout(600.0, connect=10.0)
NO_KEY: Final = "none"
"""What is sent as API key where there is none: no key of a gateway's, so it asks for payment."""


class Access:
    """How a gateway is used.

    `wallet` pays what has a price; without one it is paid by the API key, or not at all. `budget` is not optional where there is a wallet:
    without one it is 0.10 a payment, 1 a day. `keys`: the nodes' receipt keys, or "first use": those that the gateway names when it is
    asked first (which warns; kept in `pins`). `verify=False` hands answers over unchecked.
    """

    def __init__(
        self,
        gateway: str | None = None,
        *,
        api_key: str | None = None,
        wallet: Wallet | None = None,
        budget: Budget | None = None,
        rules: Rules | None = None,
        keys: Keys | Iterable[str] | Literal["first use"] | None = None,
        pins: Path | None = None,
        verify: bool = True,
        mode: Mode | None = None,
        models: Mapping[str, Hash32] | None = None,
        tee_policy: Any = None,
        on_verified: Callable[[Verified], None] | None = None,
        transport: httpx.BaseTransport | None = None,
        async_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        named = gateway or os.environ.get("PLACET_GATEWAY")
        if not named:
            raise InvalidInput("which gateway? give its URL, or PLACET_GATEWAY", field="gateway")
        self.gateway = str(gateway_url(named)).rstrip("/")
        self.api_key = api_key or os.environ.get("PLACET_API_KEY") or NO_KEY
        self._inner, self._async_inner = transport, async_transport
        self.payer: Payer | None = None
        if wallet is not None:
            budget = budget or Budget(per_payment="0.10", per_day="1")
            self.payer = Payer(self.gateway, wallet, budget, rules, trust_gateway=not verify)
        self.verifier: Verifier | None = None
        if verify:
            charged = None if self.payer is None else self.payer.charged
            self.verifier = Verifier(
                self.gateway,
                _keys(keys, pins),
                mode=mode,
                models=models,
                tee_policy=tee_policy,
                charged=charged,
                on_verified=on_verified,
            )
        elif keys is not None or models or tee_policy is not None or mode is not None:
            raise InvalidInput("keys, mode, models and tee_policy are of no use with verify=False", field="verify")

    def transport(self) -> httpx.BaseTransport:
        """A transport that pays and verifies."""
        inner = self._inner or httpx.HTTPTransport()
        if self.payer is not None:
            inner = PayingTransport(self.payer, inner)
        return inner if self.verifier is None else VerifyingTransport(self.verifier, inner)

    def async_transport(self) -> httpx.AsyncBaseTransport:
        """The same, asynchronous."""
        inner = self._async_inner or httpx.AsyncHTTPTransport()
        if self.payer is not None:
            inner = AsyncPayingTransport(self.payer, inner)
        return inner if self.verifier is None else AsyncVerifyingTransport(self.verifier, inner)

    def client(self) -> httpx.Client:
        """A client that pays and verifies. Raises what the transports raise."""
        return httpx.Client(base_url=self.gateway, transport=self.transport(), timeout=TIMEOUT, headers=self.headers(), trust_env=False)

    def async_client(self) -> httpx.AsyncClient:
        """The same, asynchronous."""
        transport = self.async_transport()
        return httpx.AsyncClient(base_url=self.gateway, transport=transport, timeout=TIMEOUT, headers=self.headers(), trust_env=False)

    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {} if self.api_key == NO_KEY else {"authorization": f"Bearer {self.api_key}"}


def _keys(keys: Keys | Iterable[str] | str | None, pins: Path | None) -> Keys:
    if isinstance(keys, Keys):
        return keys
    if keys == FIRST_USE:
        return Keys(first_use=True, path=pins)
    if isinstance(keys, str):
        raise InvalidInput(f'keys: a list of them, or "{FIRST_USE}"', field="keys")
    return Keys.of(keys or ())
