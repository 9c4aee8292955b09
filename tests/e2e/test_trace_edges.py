"""One intent, one trace, over every service. The edges are pinned: each is (parent's service and span, child's service and span)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from placet.core import topics
from placet.core.telemetry import names
from placet.core.types import hex0x
from placet.sdk.devservices.jaeger import Jaeger
from tests.e2e.conftest import WITHDRAW, MakeVault, Vault
from tests.e2e.test_relay import ALICE_KEY, settled

REQUEST = "gateway: POST /api/v1/intents"
BATCH = "gateway: batch"
SEND_TASKS = f"gateway: send {topics.TASKS}"
OPERATOR = f"operator: process {topics.TASKS}"
SEND_RESPONSES = f"operator: send {topics.RESPONSES}"
SEND_ATTESTATIONS = f"aggregator: send {topics.ATTESTATIONS}"
SETTLE = f"settlement: process {topics.ATTESTATIONS}"
CONFIRMED = "settlement: settlement confirmed"
SEND_SETTLEMENTS = f"settlement: send {topics.SETTLEMENTS}"

EDGES = {
    ("caller", REQUEST),
    (REQUEST, BATCH),
    (BATCH, SEND_TASKS),
    (SEND_TASKS, OPERATOR),
    (OPERATOR, "operator: evaluate"),
    (OPERATOR, "operator: sign"),
    (OPERATOR, SEND_RESPONSES),
    (SEND_TASKS, f"aggregator: process {topics.TASKS}"),
    (SEND_RESPONSES, f"aggregator: process {topics.RESPONSES}"),
    (f"aggregator: process {topics.RESPONSES}", "aggregator: verify"),
    (SEND_TASKS, "aggregator: aggregate"),
    ("aggregator: aggregate", SEND_ATTESTATIONS),
    (SEND_ATTESTATIONS, f"gateway: process {topics.ATTESTATIONS}"),
    (SEND_ATTESTATIONS, SETTLE),
    (SETTLE, "settlement: eth_sendRawTransaction"),
    (SETTLE, CONFIRMED),
    (CONFIRMED, SEND_SETTLEMENTS),
    (SEND_SETTLEMENTS, f"gateway: process {topics.SETTLEMENTS}"),
}
SOMETIMES = {
    # Told only when an announcement falls between sending and confirmation.
    (SETTLE, "settlement: settlement submitted"),
    ("settlement: settlement submitted", SEND_SETTLEMENTS),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A span, from whichever exporter. Ids in hex."""

    id: str
    parent: str | None
    name: str
    links: frozenset[str]
    attributes: Any


def edges_of(spans: Iterable[Seen], caller: str) -> set[tuple[str, str]]:
    spans = list(spans)
    by_id = {span.id: span.name for span in spans} | {caller: "caller"}
    return {("none" if span.parent is None else by_id.get(span.parent, "missing"), span.name) for span in spans}


def check(spans: list[Seen], caller: str) -> None:
    found = edges_of(spans, caller)
    assert sorted(EDGES - found) == [], "edges that are missing"
    assert sorted(found - EDGES - SOMETIMES) == [], "edges that nobody has written down"
    counts = Counter(span.name for span in spans)
    assert counts[OPERATOR] == counts[SEND_RESPONSES] == 4
    assert counts[f"aggregator: process {topics.TASKS}"] == counts[SEND_ATTESTATIONS] == counts["aggregator: aggregate"] == 1
    assert counts[f"gateway: process {topics.ATTESTATIONS}"] == counts[SETTLE] == 1
    assert 3 <= counts["aggregator: verify"] <= 4
    responses = {span.id for span in spans if span.name == SEND_RESPONSES}
    aggregate = next(span for span in spans if span.name == "aggregator: aggregate")
    assert aggregate.links <= responses, "linked to the responses it was made from"
    assert len(aggregate.links) >= 3
    request = next(span for span in spans if span.name == REQUEST)
    assert request.attributes[names.HTTP_ROUTE] == "/api/v1/intents"
    assert int(request.attributes[names.HTTP_STATUS]) == 200
    assert request.attributes[names.OUTCOME] == "allow"


async def relayed(vault: Vault, traceparent: str) -> dict[str, Any]:
    """One relayed withdrawal of Alice's under the caller's trace; returns its answer after it was confirmed."""
    call = {"from": hex0x(vault.alice), "functionSignature": WITHDRAW, "arguments": ["40", hex0x(vault.alice), hex0x(vault.alice)]}
    prepared = await vault.client.prepare(hex0x(vault.address), call)
    signature = Account.sign_message(encode_typed_data(full_message=prepared["typedData"]), ALICE_KEY).signature
    body = {
        "policyClient": hex0x(vault.address),
        "intent": prepared["intent"],
        "signature": "0x" + bytes(signature).hex(),
        "submit": "relay",
    }
    status, answer = await vault.client.request("POST", "/api/v1/intents", body, {"traceparent": traceparent})
    assert status == 200
    outcome = await settled(vault, answer["taskId"])
    assert outcome["status"] == "confirmed", outcome
    return dict(answer)


async def test_one_intent_is_one_connected_trace_in_one_process(make_vault: MakeVault) -> None:
    exporter = InMemorySpanExporter()
    vault = await make_vault(span_exporter=exporter)
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    await relayed(vault, f"00-{trace_id}-{caller}-01")

    def spans() -> list[Any]:
        for provider in vault.network.providers:
            provider.force_flush()
        return [span for span in exporter.get_finished_spans() if f"{span.context.trace_id:032x}" == trace_id]

    def seen() -> list[Seen]:
        return [
            Seen(
                f"{span.context.span_id:016x}",
                None if span.parent is None else f"{span.parent.span_id:016x}",
                f"{span.resource.attributes['service.name']}: {span.name}",
                frozenset(f"{link.context.span_id:016x}" for link in span.links),
                span.attributes,
            )
            for span in spans()
        ]

    check(await until_whole(seen, caller), caller)
    kinds = {span.name: span.kind for span in spans()}
    assert kinds["POST /api/v1/intents"] is SpanKind.SERVER
    assert kinds["eth_sendRawTransaction"] is SpanKind.CLIENT
    assert kinds[f"send {topics.TASKS}"] is SpanKind.PRODUCER
    assert kinds[f"process {topics.ATTESTATIONS}"] is SpanKind.CONSUMER


@pytest.mark.kafka
@pytest.mark.slow
async def test_one_intent_is_one_connected_trace_over_processes_kafka_and_jaeger(make_vault: MakeVault, tmp_path: Path) -> None:
    jaeger = Jaeger(tmp_path / "jaeger")
    await asyncio.to_thread(jaeger.start)
    try:
        vault = await make_vault(separate=True, postgres=True, otlp_endpoint=jaeger.otlp_http)
        trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
        answer = await relayed(vault, f"00-{trace_id}-{caller}-01")

        def seen() -> list[Seen]:
            spans = jaeger.traces("gateway", tags={names.TASK_ID: answer["taskId"]}).get(trace_id, [])
            return [Seen(s.span_id, s.parent_id, s.name, frozenset(span_id for _, span_id in s.links), s.tags) for s in spans]

        check(await until_whole(seen, caller), caller)
        assert set(jaeger.services()) >= {"gateway", "operator", "aggregator", "settlement"}
    finally:
        await asyncio.to_thread(jaeger.stop)


async def until_whole(seen: Callable[[], list[Seen]], caller: str, within_s: float = 20.0) -> list[Seen]:
    """The spans, once the exporters have delivered all of them: none that is written down is missing, and no span's parent."""
    end = time.monotonic() + within_s
    while True:
        spans = await asyncio.to_thread(seen)
        found = edges_of(spans, caller)
        if time.monotonic() > end or (found >= EDGES and all(parent != "missing" for parent, _ in found)):
            return spans
        await asyncio.sleep(0.1)
