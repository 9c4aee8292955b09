"""Receipts: read from the bus, where they are also when an answer was cut, and given to whom they belong."""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from placet.core import receipts as core
from placet.core import topics
from placet.core.bus import Bus, BusError, NotAssigned, Record, Subscription, next_offsets
from placet.core.db import DATABASE_ERRORS, insert_new
from placet.core.envelope import Kind, open_envelope
from placet.core.errors import InvalidInput, NotFound, VerificationFailed
from placet.core.gen import inference_pb2 as pb
from placet.core.receipts import Receipt
from placet.core.types import Address, Hash32, hash_from, hex0x
from placet.gateway.http import reply
from placet.gateway.store import ApiKey

log = logging.getLogger(__name__)

GROUP = "gateway.receipts"
"""With the database's name behind it: each receipt is kept once in each of them."""
_METADATA = sa.MetaData()
_RECEIPT = sa.Table(
    "receipt",
    _METADATA,
    sa.Column("id", sa.LargeBinary(32), primary_key=True),
    sa.Column("tenant", sa.String(32)),
    sa.Column("payer", sa.LargeBinary(20)),
    sa.Column("finished_at", sa.BigInteger),
    sa.Column("receipt", sa.LargeBinary),
    sa.Column("payment_id", sa.String(80)),
)
_MAX_PAGE = 1000
_AFTER = re.compile(r"([0-9]{1,16})\.([0-9a-f]{64})\Z")


class ReceiptStore:
    """The gateway's copy of its tenants' receipts."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, found: Sequence[tuple[Receipt, str, bytes]]) -> None:
        """(receipt, tenant, its JSON). The first of an id stands."""
        rows = [
            {
                "id": receipt.id,
                "tenant": tenant,
                "payer": None if receipt.price is None else receipt.price.payer,
                "finished_at": receipt.finished_at,
                "receipt": raw,
                "payment_id": None if receipt.price is None else receipt.price.payment_id[:80],
            }
            for receipt, tenant, raw in found
        ]
        async with self._engine.begin() as connection:
            await connection.execute(insert_new(_RECEIPT, connection.dialect), rows)

    async def get(self, receipt_id: Hash32, tenant: str) -> bytes:
        """A tenant's receipt. Raises NotFound."""
        query = sa.select(_RECEIPT.c.receipt).where(_RECEIPT.c.id == receipt_id, _RECEIPT.c.tenant == tenant)
        async with self._engine.connect() as connection:
            found: bytes | None = (await connection.execute(query)).scalar_one_or_none()
        if found is None:
            raise NotFound("no such receipt", field="id")
        return found

    async def page(
        self, tenant: str, *, payer: Address | None, since: int, after: tuple[int, bytes] | None, limit: int
    ) -> list[tuple[int, bytes, bytes]]:
        """(finished at, id, JSON) of a tenant's receipts since a time (milliseconds), oldest first."""
        query = sa.select(_RECEIPT).where(_RECEIPT.c.tenant == tenant, _RECEIPT.c.finished_at >= since)
        if payer is not None:
            query = query.where(_RECEIPT.c.payer == payer)
        if after is not None:
            query = query.where(sa.tuple_(_RECEIPT.c.finished_at, _RECEIPT.c.id) > sa.tuple_(*map(sa.literal, after)))
        query = query.order_by(_RECEIPT.c.finished_at, _RECEIPT.c.id).limit(limit)
        async with self._engine.connect() as connection:
            return [(row.finished_at, row.id, row.receipt) for row in (await connection.execute(query)).all()]

    async def of_payment(self, payer: Address, payment_id: str, since_ms: int) -> Receipt | None:
        """The receipt of a payment, if there is one."""
        same = sa.and_(_RECEIPT.c.payment_id == payment_id, _RECEIPT.c.payer == payer, _RECEIPT.c.finished_at >= since_ms)
        query = sa.select(_RECEIPT.c.receipt).where(same).order_by(_RECEIPT.c.finished_at).limit(1)
        async with self._engine.connect() as connection:
            raw = (await connection.execute(query)).scalar_one_or_none()
        return None if raw is None else core.decode(raw)

    async def prune(self, before_ms: int) -> None:
        """Forget receipts that were made before a time."""
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(_RECEIPT).where(_RECEIPT.c.finished_at < before_ms))


class ReceiptReader:
    """Follows the topic. Each receipt is stored once, by some replica of the gateway."""

    def __init__(
        self, bus: Bus, store: ReceiptStore, trusted: frozenset[bytes], instance_id: str | None, identity: Callable[[], Awaitable[str]]
    ) -> None:
        self._identity = identity
        self._bus = bus
        self._store = store
        self._trusted = trusted
        self._instance_id = instance_id
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Subscribe."""
        self._subscription = await self._bus.subscribe(
            [topics.RECEIPTS], f"{GROUP}.{await self._identity()}", instance_id=self._instance_id
        )

    async def run(self) -> None:
        """Store until cancelled. What the database does not take yet is not passed over."""
        assert self._subscription is not None
        async for records in self._subscription:
            found = [item for item in map(self._open, records) if item is not None]
            while found:
                try:
                    await self._store.add(found)
                    break
                except DATABASE_ERRORS as error:
                    log.warning("receipts wait: %s", error)
                    await asyncio.sleep(0.5)
            try:
                await self._subscription.commit(next_offsets(records))
            except NotAssigned:
                pass  # stored again by whoever reads them next, which changes nothing
            except BusError as error:
                log.warning("commit: %s", error)

    async def stop(self) -> None:
        """Stop following."""
        if self._subscription is not None:
            await self._subscription.close()

    def _open(self, record: Record) -> tuple[Receipt, str, bytes] | None:
        try:
            message = open_envelope(
                record.value or b"", lambda kind, sender: sender if kind is Kind.INFERENCE_RECEIPT and sender in self._trusted else None
            )
            payload = pb.InferenceReceipt.FromString(message.payload)
            return core.decode(payload.receipt), payload.tenant, payload.receipt
        except (InvalidInput, VerificationFailed, ValueError) as error:
            log.warning("%s: record ignored: %s", record.topic, error)
            return None


Guard = Callable[[Callable[[Request, ApiKey], Awaitable[Response]]], Callable[[Request], Awaitable[Response]]]


class ReceiptsApi:
    """`/api/v1/receipts`."""

    def __init__(self, store: ReceiptStore) -> None:
        self._store = store

    def routes(self, guard: Guard) -> list[Route]:
        """For the gateway's application."""
        return [
            Route("/api/v1/receipts", guard(self.page), methods=["GET"]),
            Route("/api/v1/receipts/{id}", guard(self.one), methods=["GET"]),
        ]

    async def one(self, request: Request, key: ApiKey) -> Response:
        """A receipt of yours, as it was signed."""
        return Response(await self._store.get(hash_from(request.path_params["id"], field="id"), key.id), media_type="application/json")

    async def page(self, request: Request, key: ApiKey) -> Response:
        """Your receipts: `payer`, `from` (unix seconds), `after` and `limit`; as CSV with `Accept: text/csv`."""
        query = request.query_params
        since, limit = query.get("from", "0"), query.get("limit", "100")
        if not since.isdigit() or len(since) > 12:
            raise InvalidInput("from: unix seconds wanted", field="from")
        if not limit.isdigit() or not 1 <= int(limit) <= _MAX_PAGE:
            raise InvalidInput(f"limit: 1 to {_MAX_PAGE} wanted", field="limit")
        payer = query.get("payer")
        if payer is not None and not re.fullmatch(r"0x[0-9a-fA-F]{40}", payer):
            raise InvalidInput("payer: an address wanted", field="payer")
        after = _AFTER.match(query["after"]) if "after" in query else None
        if "after" in query and after is None:
            raise InvalidInput("after: what the page before said", field="after")
        rows = await self._store.page(
            key.id,
            payer=None if payer is None else Address(bytes.fromhex(payer[2:])),
            since=1000 * int(since),
            after=None if after is None else (int(after[1]), bytes.fromhex(after[2])),
            limit=int(limit),
        )
        following = f"{rows[-1][0]}.{rows[-1][1].hex()}" if len(rows) == int(limit) else None
        if "text/csv" in request.headers.get("accept", ""):
            headers = {"placet-after": following} if following else {}
            return Response(_csv([core.decode(raw) for _, _, raw in rows]), media_type="text/csv", headers=headers)
        return reply({"receipts": [orjson.loads(raw) for _, _, raw in rows], "after": following})


_COLUMNS: Sequence[tuple[str, Callable[[Receipt], Any]]] = (
    ("id", lambda r: hex0x(r.id)),
    ("finishedAt", lambda r: r.finished_at),
    ("surface", lambda r: r.surface),
    ("model", lambda r: f"{r.model.publisher}/{r.model.name}@{r.model.version}"),
    ("mode", lambda r: r.mode.value),
    ("promptTokens", lambda r: r.prompt_tokens),
    ("completionTokens", lambda r: r.completion_tokens),
    ("rows", lambda r: r.rows),
    ("finishReason", lambda r: r.finish.value),
    ("amount", lambda r: "" if r.price is None else str(r.price.amount)),
    ("asset", lambda r: "" if r.price is None else hex0x(r.price.asset)),
    ("network", lambda r: "" if r.price is None else r.price.network),
    ("payer", lambda r: "" if r.price is None else hex0x(r.price.payer)),
)


def _csv(found: Sequence[Receipt]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([name for name, _ in _COLUMNS])
    for receipt in found:
        writer.writerow([value(receipt) for _, value in _COLUMNS])
    return out.getvalue()
