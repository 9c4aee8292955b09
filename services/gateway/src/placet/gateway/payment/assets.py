"""Which tokens are taken, and what is offered for a request. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from placet.core.errors import InvalidInput
from placet.core.models import Prices, Rate
from placet.core.payment.offers import Method, Offer, Scheme, chain_id_of
from placet.core.payment.prices import PriceTable, Size, standing, worst_case
from placet.core.types import Address, address_from, hex0x


class PaymentAsset(BaseModel):
    """A token that payments are taken in, with its EIP-712 domain."""

    network: str = Field(description="CAIP-2, for instance eip155:8453")
    asset: str = Field(description="the token's address")
    name: str = Field(description="the token's EIP-712 name")
    version: str = Field(default="2", description="the token's EIP-712 version")
    methods: list[Literal["eip3009", "permit2"]] = Field(default=["eip3009"], min_length=1)
    decimals: int = Field(default=6, ge=0, le=36, description="for people: amounts here are in atomic units")
    facilitator: str | None = Field(default=None, description="settlement's address; with it `upto` is offered, through Permit2")


@dataclass(frozen=True, slots=True)
class Asset:
    """The same, in types."""

    chain_id: int
    address: Address
    name: str
    version: str
    methods: tuple[Method, ...]
    facilitator: Address | None


def assets_of(settings: Sequence[PaymentAsset]) -> dict[tuple[str, Address], Asset]:
    """By network and address. Raises InvalidInput."""
    found: dict[tuple[str, Address], Asset] = {}
    for item in settings:
        asset = Asset(
            chain_id_of(item.network),
            address_from(item.asset, field="payment_assets/asset"),
            item.name,
            item.version,
            tuple(Method(method) for method in item.methods),
            None if item.facilitator is None else address_from(item.facilitator, field="payment_assets/facilitator"),
        )
        if found.setdefault((item.network, asset.address), asset) is not asset:
            raise InvalidInput(f"payment_assets: {item.asset} on {item.network} stands twice", field="payment_assets")
    return found


@dataclass(frozen=True, slots=True)
class Priced:
    """What a request is offered for, newest prices first; `rate` by the offer's own prices is what is metered."""

    offers: tuple[Offer, ...]
    prices: tuple[Prices, ...]
    """Of each offer."""

    def prices_of(self, offer: Offer) -> Prices:
        """By which an offer was made."""
        return self.prices[self.offers.index(offer)]


def price(
    assets: dict[tuple[str, Address], Asset],
    tables: Sequence[PriceTable],
    size: Size,
    mode: str,
    *,
    now: int,
    max_timeout_s: int,
    is_metered: bool,
) -> Priced | None:
    """The offers for a request of this size. None: it costs nothing.

    Raises:
        InvalidInput: the model's token is not taken here.
    """
    offers: list[Offer] = []
    prices: list[Prices] = []
    for table in standing(tables, now=now, max_timeout_s=max_timeout_s):
        rate = table.prices.rate_of(mode)
        amount = worst_case(rate, size)
        if not amount:
            if not offers:
                return None
            continue
        asset = assets.get((table.prices.network, table.prices.asset))
        if asset is None:
            if offers:
                continue
            raise InvalidInput(
                f"model: it is priced in {hex0x(table.prices.asset)} on {table.prices.network}, which is not taken here", field="model"
            )
        for offer in _offers(asset, table.prices.pay_to, amount, max_timeout_s, is_metered=is_metered):
            if offer not in offers:
                offers.append(offer)
                prices.append(table.prices)
    return Priced(tuple(offers), tuple(prices)) if offers else None


def topup(assets: dict[tuple[str, Address], Asset], network: str, token: Address, amount: int, pay_to: Address, timeout_s: int) -> Priced:
    """The offers for filling a prepaid key. Raises InvalidInput: the token is not taken here."""
    asset = assets.get((network, token))
    if asset is None:
        raise InvalidInput(f"asset: {hex0x(token)} on {network} is not taken here", field="asset")
    offers = tuple(_offers(asset, pay_to, amount, timeout_s, is_metered=False))
    return Priced(offers, (Prices(network, token, pay_to, Rate(request=amount)),) * len(offers))


def _offers(asset: Asset, pay_to: Address, amount: int, max_timeout_s: int, *, is_metered: bool) -> list[Offer]:
    """`upto` first where what is used may be less than what is offered."""

    def offer(scheme: Scheme, method: Method) -> Offer:
        facilitator = asset.facilitator if scheme is Scheme.UPTO else None
        return Offer(scheme, method, asset.chain_id, asset.address, amount, pay_to, max_timeout_s, asset.name, asset.version, facilitator)

    exact = [offer(Scheme.EXACT, method) for method in asset.methods]
    if not is_metered or asset.facilitator is None:
        return exact
    return [*exact, offer(Scheme.UPTO, Method.PERMIT2)]
