"""Traces over the bus: one connected trace a request, with links where several records become one thing."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from placet.core.bus import next_offsets, tracing

tracer = trace.get_tracer("test")


async def test_one_request_over_all_hops_is_one_trace_without_orphans(world: Any, spans: Any, collect: Any) -> None:
    bus = await world.bus()
    operators = [await bus.subscribe([world.tasks], f"{world.group}.op{number}") for number in range(3)]
    aggregator = await bus.subscribe([world.proposals], f"{world.group}.aggregator")

    with tracer.start_as_current_span("POST /api/v1/intents"):
        await bus.publish(world.tasks, b"batch", b"task")
    for operator in operators:
        task = (await collect(operator, 1))[0]
        with tracing.processing(task, operator.group):
            await bus.publish(world.proposals, b"batch", b"response")
        await operator.commit(next_offsets([task]))
    responses = await collect(aggregator, 3)
    with tracing.fan_in("aggregate", responses):
        await bus.publish(world.policies, b"batch", b"attestation")

    ended = spans.get_finished_spans()
    assert len({span.context.trace_id for span in ended}) == 1
    ids = {span.context.span_id: span for span in ended}
    edges = sorted((ids[span.parent.span_id].name if span.parent else "", span.name) for span in ended)
    assert edges == sorted(
        [
            ("", "POST /api/v1/intents"),
            ("POST /api/v1/intents", f"send {world.tasks}"),
            *[(f"send {world.tasks}", f"process {world.tasks}")] * 3,
            *[(f"process {world.tasks}", f"send {world.proposals}")] * 3,
            (f"send {world.proposals}", "aggregate"),
            ("aggregate", f"send {world.policies}"),
        ]
    )
    aggregate = next(span for span in ended if span.name == "aggregate")
    assert {link.context.span_id for link in aggregate.links} == {s.context.span_id for s in ended if s.name == f"send {world.proposals}"}
    processed = next(span for span in ended if span.name == f"process {world.tasks}")
    assert processed.kind is SpanKind.CONSUMER
    assert processed.attributes["messaging.operation.type"] == "process"
    assert processed.attributes["messaging.consumer.group.name"].startswith(world.group)
    assert processed.attributes["messaging.kafka.offset"] == 0


async def test_a_batch_is_linked_to_its_requests_and_each_item_stays_in_its_own_trace(world: Any, spans: Any, collect: Any) -> None:
    bus = await world.bus()
    requests = []
    for _ in range(3):
        with tracer.start_as_current_span("request"):
            requests.append(tracing.restore(tracing.capture()))
    with tracing.batch("form batch", requests):
        await bus.publish(world.tasks, b"batch", b"three tasks")
        for request in requests:
            with tracing.item("task", request):
                pass
    record = (await collect(await bus.subscribe([world.tasks], None), 1))[0]
    with tracing.processing(record, None):
        pass

    ended = spans.get_finished_spans()
    of = {name: [span for span in ended if span.name == name] for name in {span.name for span in ended}}
    batch = of["form batch"][0]
    assert batch.parent is None
    assert {link.context.trace_id for link in batch.links} == {span.context.trace_id for span in of["request"]}
    assert {span.context.trace_id for span in of["task"]} == {span.context.trace_id for span in of["request"]}
    assert all(span.links[0].context.span_id == batch.context.span_id for span in of["task"])
    assert of[f"process {world.tasks}"][0].context.trace_id == batch.context.trace_id


async def test_a_lone_request_keeps_one_trace_through_its_batch(world: Any, spans: Any) -> None:
    bus = await world.bus()
    with tracer.start_as_current_span("request"):
        context = tracing.restore(tracing.capture())
    with tracing.batch("form batch", [context]):
        await bus.publish(world.tasks, b"batch", b"one task")
    assert len({span.context.trace_id for span in spans.get_finished_spans()}) == 1


async def test_a_dead_letter_stays_in_the_trace_of_its_record(world: Any, spans: Any, collect: Any) -> None:
    bus = await world.bus()
    with tracer.start_as_current_span("request") as request:
        await bus.publish(world.tasks, b"k", b"broken")
    record = (await collect(await bus.subscribe([world.tasks], None), 1))[0]
    await bus.publish_dlq(record, ValueError("broken"), consumer="operator")
    letter = (await bus.read_to_end(world.tasks_dlq, 0))[0]
    assert [name for name, _ in letter.headers].count("traceparent") == 1
    with tracing.processing(letter, None) as span:
        assert span.get_span_context().trace_id == request.get_span_context().trace_id


async def test_forged_or_broken_trace_headers_harm_nobody(world: Any, spans: Any, collect: Any) -> None:
    bus = await world.bus()
    await bus.publish(world.tasks, b"k", b"v", (("traceparent", b"\xff not a context"), ("tracestate", b"\x00")))
    record = (await collect(await bus.subscribe([world.tasks], None), 1))[0]
    with tracing.processing(record, None) as span:
        assert span.get_span_context().is_valid
