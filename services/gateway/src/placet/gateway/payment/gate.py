"""The gate before paid work: a payment is taken once, for one request, before anything runs. No HTTP here."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from placet.core.errors import PaymentMalformed, PaymentPending, PaymentRefused, Unavailable
from placet.core.models import Rate
from placet.core.payment import identifier
from placet.core.payment.offers import PaymentRequired, Scheme
from placet.core.payment.payload import PaymentPayload, parse_header
from placet.core.payment.prices import PriceTable, Size
from placet.core.payment.verify import verify
from placet.core.types import Address, Hash32
from placet.gateway.payment.assets import Asset, Priced, price
from placet.gateway.payment.ledger import Ledger
from placet.gateway.payment.prepaid import Prepaid
from placet.gateway.payment.records import Answer, Answered, InProgress, Outcome, PaidRequest, Payment, Unanswered
from placet.gateway.payment.settler import Settler


@dataclass(frozen=True, slots=True)
class Rules:
    """What is taken, and how much is risked for a payer. Times in seconds, amounts in atomic units.

    No paid answer takes longer than `longest_s`. A payment stays valid for that, a sweep and a settlement (`needed_s`).
    """

    longest_s: int = 120
    settle_within_s: int = 60
    max_timeout_s: int = 300
    credit_limit: int = 1_000_000
    max_open: int = 16
    wait_s: float = 5.0

    @property
    def needed_s(self) -> int:
        """How long a payment must stay valid."""
        return self.longest_s + self.settle_within_s


@dataclass(frozen=True, slots=True)
class Taken:
    """A payment that was taken for this request: run it, once. `rate` is what is metered."""

    payment: Payment
    rate: Rate


@dataclass(frozen=True, slots=True)
class Replayed:
    """The request was paid and answered before: give that answer again."""

    payment: Payment
    answer: Answer


class Gate:
    """Of one replica."""

    def __init__(
        self,
        *,
        assets: dict[tuple[str, Address], Asset],
        ledger: Ledger,
        settler: Settler,
        rules: Rules,
        prepaid: Prepaid | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.assets = assets
        self.prepaid = prepaid
        self.ledger = ledger
        self.settler = settler
        self.rules = rules
        self._clock = clock

    def now(self) -> int:
        """Unix seconds."""
        return int(self._clock())

    def price(self, tables: Sequence[PriceTable], size: Size, mode: str, *, is_metered: bool) -> Priced | None:
        """What a request of this size is offered for; None: nothing. Raises InvalidInput: the model's token is not taken here."""
        return price(
            self.assets,
            tables,
            size,
            mode,
            now=self.now(),
            max_timeout_s=self.rules.max_timeout_s,
            is_metered=is_metered,
        )

    @staticmethod
    def read(values: Sequence[str]) -> PaymentPayload | None:
        """The payment in a request's headers. Raises PaymentMalformed."""
        if not values:
            return None
        if len(values) > 1:
            raise PaymentMalformed("PAYMENT-SIGNATURE stands more than once", field="PAYMENT-SIGNATURE")
        return parse_header(values[0])

    async def replayed(self, payload: PaymentPayload, request: PaidRequest) -> Replayed | None:
        """What stands for a payment that was taken before; None: it was not.

        Raises:
            PaymentPending, PaymentConflict, PaymentRefused.
        """
        found = await self.ledger.find(payload, request, now=self.now())
        return None if found is None else self._standing(found)

    def wanted(self, priced: Priced, url: str, description: str, error: str = "payment_required") -> str:
        """The value of PAYMENT-REQUIRED."""
        current = [offer for offer, prices in zip(priced.offers, priced.prices, strict=True) if prices == priced.prices[0]]
        extensions = {identifier.NAME: identifier.declaration()}
        return PaymentRequired(current, url, description, error=error, extensions=extensions).header()

    async def take(
        self, payload: PaymentPayload, request: PaidRequest, priced: Priced, mode: str, *, risked: bool = True
    ) -> Taken | Replayed:
        """Take a payment for a request. Not `risked`: nothing is done before it is settled, so no credit is given.

        Raises:
            PaymentRefused: names the check and what to do. PaymentConflict, PaymentPending.
            Unavailable: settlement does not answer, so nothing is taken.
        """
        if not self.settler.is_there:
            raise Unavailable("payments cannot be settled at the moment, so none is taken; send the same one again later")
        verified = verify(payload, priced.offers, now=self.now(), needed_s=self.rules.needed_s)
        limit = self.rules.credit_limit + (0 if risked else verified.maximum)
        exposure = await self.settler.exposure(verified.offer, verified.payer, limit=limit, max_open=self.rules.max_open)
        outcome = await self.ledger.reserve(verified, request, exposure, now=self.now())
        if isinstance(outcome, Answered | InProgress | Unanswered):
            return self._standing(outcome)
        return Taken(outcome.payment, priced.prices_of(verified.offer).rate_of(mode))

    @staticmethod
    def _standing(outcome: Outcome) -> Replayed:
        if isinstance(outcome, Answered):
            if outcome.answer.body is None:
                raise PaymentRefused(
                    f"this payment was answered, and the answer is too large to be kept; its receipt is {_text(outcome.answer.receipt_id)}",
                    check="answered",
                )
            return Replayed(outcome.payment, outcome.answer)
        if isinstance(outcome, Unanswered):
            raise PaymentPending("what served this payment was lost; what was taken is credited to its payer", retryAfter=30)
        raise PaymentPending("this payment's request is being answered; send the same payment again", retryAfter=1)

    # --- what becomes of it

    async def began(self, taken: Taken) -> None:
        """Before the first byte leaves. All of an `exact` payment is due then, and is settled while the answer is made."""
        now = self.now()
        await self.ledger.serve(taken.payment.id, now=now)
        if taken.payment.scheme is Scheme.EXACT:
            self.settler.settle_soon(await self.ledger.due(taken.payment.id, taken.payment.maximum, now=now))

    async def gave_up(self, taken: Taken) -> None:
        """Nothing was sent, and nothing will be: the payment may be used again."""
        await self.ledger.release(taken.payment.id)

    async def ended(self, taken: Taken, charged: int, answer: Answer) -> Payment:
        """The answer is complete. Returns the payment as it stands, after a little patience with the chain where all of it was known."""
        now, payment_id = self.now(), taken.payment.id
        if taken.payment.scheme is Scheme.UPTO:
            payment = await self.ledger.due(payment_id, min(charged, taken.payment.maximum), now=now, answer=answer)
            if payment.charged:
                self.settler.settle_soon(payment)
            else:
                return payment
        else:
            payment = await self.ledger.answer(payment_id, answer, now=now)
        return await self.settler.ended(payment_id, self.rules.wait_s) if self.rules.wait_s else payment


def answer_of(body: bytes, media_type: str, receipt_id: Hash32, status: int = 200) -> Answer:
    """An answer to be kept."""
    return Answer(Hash32(hashlib.sha256(body).digest()), receipt_id, body, media_type, status)


def _text(receipt_id: Hash32 | None) -> str:
    return "not known" if receipt_id is None else "0x" + receipt_id.hex()
