"""Trace context over the bus: W3C headers on every record, PRODUCER and CONSUMER spans around it.

The published aiokafka instrumentation ends its span before the handler runs, which breaks every trace at the first hop (measured: 42
traces for 4 requests); these few functions give one connected trace a request on both buses.

* `send {topic}` is opened by `Bus.publish`; nobody else writes trace headers.
* `with processing(record, group)`: the handler of one record, a child of whoever sent it.
* `with fan_in(name, records)`: one thing made from several records of one trace: child of the first, linked to each.
* `with batch(name, contexts)`: one thing made for several requests, each with its own trace: linked to all of them, child of none
  (of the only one, if there is one); `with item(name, context)`: the part of it that belongs to one request, inside that request's trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from placet.core.bus.records import Headers, Record
from placet.core.telemetry import metrics, names
from placet.core.telemetry.scope import tracer

TRACE_HEADERS = frozenset({"traceparent", "tracestate"})
"""Baggage is not carried: what a caller put there would reach every operator."""

_PROCESS_SECONDS = metrics.histogram(names.BUS_PROCESS_SECONDS, "Time a handler took for one record.", ["topic", "group"])

_propagator = TraceContextTextMapPropagator()


def _tracer() -> trace.Tracer:
    return tracer("placet.bus")


def capture(context: Context | None = None) -> dict[str, str]:
    """The trace context (the current one, or `context`) as text, to be stored beside a task or written into a message."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context=context)
    return carrier


def restore(carrier: Mapping[str, str]) -> Context:
    """The context that `capture` wrote; an empty one if there was none or it is malformed."""
    return _propagator.extract({name: carrier[name] for name in TRACE_HEADERS if name in carrier}, context=Context())


def _texts(headers: Headers) -> dict[str, str]:
    """The trace headers. Other clients write some without a value, whatever the type here says."""
    return {name: value.decode("latin-1") for name, value in headers if name in TRACE_HEADERS and isinstance(value, bytes)}


def context_of(record: Record) -> Context:
    """The context of the span that sent `record`."""
    carrier = _texts(record.headers)
    return _propagator.extract(carrier, context=Context())


def with_context(headers: Headers) -> Headers:
    """`headers` with the current span's context in place of any trace headers they had (or as they are, outside of any span)."""
    carrier = capture()
    if not carrier:
        return headers
    kept = tuple(header for header in headers if header[0] not in TRACE_HEADERS)
    return (*kept, *((name, value.encode("latin-1")) for name, value in carrier.items()))


def _span_context(context: Context) -> trace.SpanContext:
    return trace.get_current_span(context).get_span_context()


def _links(contexts: Iterable[Context]) -> list[Link]:
    return [Link(found) for found in map(_span_context, contexts) if found.is_valid]


@contextmanager
def sending(topic: str, partition: int, key: bytes | None, headers: Headers) -> Iterator[Span]:
    """The PRODUCER span around one publish. Without a current span, trace headers already in `headers` (a replay) are its parent."""
    parent: Context | None = None
    if not trace.get_current_span().get_span_context().is_valid:
        carrier = _texts(headers)
        if carrier:
            parent = _propagator.extract(carrier, context=Context())
    attributes: dict[str, AttributeValue] = {
        names.MESSAGING_SYSTEM: "kafka",
        names.MESSAGING_OPERATION_NAME: names.SEND,
        names.MESSAGING_OPERATION_TYPE: "send",
        names.MESSAGING_DESTINATION_NAME: topic,
        names.MESSAGING_DESTINATION_PARTITION_ID: str(partition),
    }
    if key:
        attributes[names.MESSAGING_KAFKA_MESSAGE_KEY] = key.hex()
    with _tracer().start_as_current_span(names.send_span(topic), context=parent, kind=SpanKind.PRODUCER, attributes=attributes) as span:
        yield span


def _consumed(record: Record, group: str | None) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        names.MESSAGING_SYSTEM: "kafka",
        names.MESSAGING_OPERATION_NAME: names.PROCESS,
        names.MESSAGING_OPERATION_TYPE: "process",
        names.MESSAGING_DESTINATION_NAME: record.topic,
        names.MESSAGING_DESTINATION_PARTITION_ID: str(record.partition),
        names.MESSAGING_KAFKA_OFFSET: record.offset,
    }
    if group is not None:
        attributes[names.MESSAGING_CONSUMER_GROUP_NAME] = group
    if record.key:
        attributes[names.MESSAGING_KAFKA_MESSAGE_KEY] = record.key.hex()
    if record.value is None:
        attributes[names.MESSAGING_KAFKA_MESSAGE_TOMBSTONE] = True
    return attributes


@contextmanager
def processing(record: Record, group: str | None) -> Iterator[Span]:
    """The CONSUMER span of one record's handler, current inside the block."""
    with (
        _PROCESS_SECONDS.labels(record.topic, group or "").time(),
        _tracer().start_as_current_span(
            names.process_span(record.topic), context=context_of(record), kind=SpanKind.CONSUMER, attributes=_consumed(record, group)
        ) as span,
    ):
        yield span


@contextmanager
def fan_in(
    name: str, records: Sequence[Record], *, parent: Context | None = None, attributes: Mapping[str, AttributeValue] | None = None
) -> Iterator[Span]:
    """The span of a result made from several records: child of `parent` (the first record's sender if none), one link a record."""
    if not records and parent is None:
        raise ValueError("fan_in needs at least one record or a parent")
    with _tracer().start_as_current_span(
        name,
        context=parent if parent is not None else context_of(records[0]),
        kind=SpanKind.CONSUMER,
        links=_links(map(context_of, records)),
        attributes={names.MESSAGING_SYSTEM: "kafka", names.MESSAGING_BATCH_MESSAGE_COUNT: len(records), **(attributes or {})},
    ) as span:
        yield span


@contextmanager
def batch(name: str, contexts: Sequence[Context], *, attributes: Mapping[str, AttributeValue] | None = None) -> Iterator[Span]:
    """The span of work done at once for several requests: a trace of its own with a link to each; a lone request is its parent."""
    lone = len(contexts) == 1
    with _tracer().start_as_current_span(
        name,
        context=contexts[0] if lone else Context(),
        links=[] if lone else _links(contexts),  # Jaeger shows a link to the parent in the parent's place
        attributes={names.MESSAGING_BATCH_MESSAGE_COUNT: len(contexts), **(attributes or {})},
    ) as span:
        yield span


@contextmanager
def item(name: str, context: Context, *, attributes: Mapping[str, AttributeValue] | None = None) -> Iterator[Span]:
    """The part of a batch that belongs to one request, inside that request's trace, linked to the batch's span around it."""
    around = trace.get_current_span().get_span_context()
    links = [Link(around)] if around.is_valid else []
    with _tracer().start_as_current_span(name, context=context, links=links, attributes=dict(attributes or {})) as span:
        yield span
