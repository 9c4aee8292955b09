"""Logs and traces as a service emits them."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context

from placet.core.telemetry.scope import service_scope, tracer
from placet.core.telemetry.setup import JsonFormatter, TelemetrySettings, TextFormatter, masked, provider_for


@pytest.fixture
def logged() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("gateway"))
    logger = logging.Logger("placet.test")
    logger.addHandler(handler)
    return logger, stream


def test_a_log_line_is_one_json_object_with_the_ids_of_its_span(logged: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = logged
    provider = provider_for("gateway", "1", TelemetrySettings())
    with provider.get_tracer("t").start_as_current_span("s") as span:
        logger.info("batch %s closed", b"\x01".hex(), extra={"batch_id": b"\xab\xcd", "tasks": 3})
    line = json.loads(stream.getvalue())
    assert line["message"] == "batch 01 closed"
    assert (line["level"], line["service"], line["logger"]) == ("INFO", "gateway", "placet.test")
    assert (line["batch_id"], line["tasks"]) == ("0xabcd", 3)
    assert line["trace_id"] == trace.format_trace_id(span.get_span_context().trace_id)
    assert line["span_id"] == trace.format_span_id(span.get_span_context().span_id)
    assert line["ts"].endswith("Z")


def test_outside_of_a_span_there_are_no_ids(logged: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = logged
    logger.info("started")
    assert "trace_id" not in json.loads(stream.getvalue())


def test_an_exception_stays_one_line_and_keeps_its_traceback(logged: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = logged
    try:
        raise ValueError("postgresql://placet:hunter2@db/x is away")
    except ValueError:
        logger.exception("failed")
    assert stream.getvalue().count("\n") == 1
    line = json.loads(stream.getvalue())
    assert line["error"] == "ValueError"
    assert "test_setup.py" in line["traceback"]
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "postgresql+asyncpg://placet:s3cr3tvalue@127.0.0.1/db",
        "Authorization: Bearer s3cr3tvalue",
        "kafka_password=s3cr3tvalue and more",
        '{"api_key": "s3cr3tvalue"}',
        "PLACET_SIGNER__PRIVATE_KEY=s3cr3tvalue",
        "-----BEGIN EC PRIVATE KEY-----\ns3cr3tvalue\n-----END EC PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_credential_is_masked(text: str) -> None:
    assert "s3cr3tvalue" not in masked(text)
    assert "***" in masked(text)


def test_fields_whose_names_say_secret_are_masked_at_any_depth(logged: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = logged
    logger.info("config", extra={"settings": {"kafka": {"password": "p1"}, "tokens": ["p2"], "url": "https://u:p3@h"}, "mnemonic": "p4"})
    line = stream.getvalue()
    assert not any(secret in line for secret in ("p1", "p2", "p3", "p4"))


def test_what_only_resembles_a_secret_stays_readable() -> None:
    for text in ("https://example.org/a@b", "task 0xabc denied: quota", "secret sharing is fun", "http://127.0.0.1:8545 answered"):
        assert masked(text) == text


def test_a_very_long_message_is_cut_without_leaving_half_a_credential() -> None:
    assert len(masked("x" * 100_000)) < 10_000
    assert "s3cr3t" not in masked("x " * 4080 + "postgresql://placet:s3cr3t" + "s3cr3t" * 1000 + "@db/x")


@pytest.mark.parametrize(
    "piece", ["x", "-", "a-", "://", "://a:", "password", "password=", "bearer ", "-----BEGIN PRIVATE KEY-----", "token: '", "a b"]
)
def test_a_caller_cannot_make_masking_slow(piece: str) -> None:
    started = time.process_time()
    masked(piece * (1_000_000 // len(piece)))
    assert time.process_time() - started < 0.5


def test_text_logs_are_for_people() -> None:
    record = logging.LogRecord("placet.x", logging.WARNING, "", 0, "hello", (), None)
    record.__dict__["tasks"] = 3
    assert TextFormatter("gateway").format(record).endswith("WARNING gateway placet.x: hello tasks=3")


def test_several_services_in_one_process_keep_their_names(logged: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = logged
    exporter = InMemorySpanExporter()
    providers = {name: provider_for(name, "1", TelemetrySettings(), exporter=exporter) for name in ("gateway", "operator")}
    with (
        service_scope("gateway", providers["gateway"]),
        tracer("t").start_as_current_span("outer"),
        service_scope("operator", providers["operator"]),
        tracer("t").start_as_current_span("inner"),
    ):
        logger.info("x")
    for provider in providers.values():
        provider.force_flush()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["outer"].resource.attributes["service.name"] == "gateway"
    assert spans["inner"].resource.attributes["service.name"] == "operator"
    assert spans["inner"].parent is not None
    assert json.loads(stream.getvalue())["service"] == "operator"


def test_sampling_begins_by_ratio_and_follows_the_caller() -> None:
    never = provider_for("gateway", "1", TelemetrySettings(sample_ratio=0.0)).get_tracer("t")
    assert not never.start_span("root").get_span_context().trace_flags.sampled
    for sampled in (True, False):
        parent = trace.NonRecordingSpan(SpanContext(1, 1, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED if sampled else 0)))
        child = never.start_span("child", context=set_span_in_context(parent))
        assert child.get_span_context().trace_flags.sampled is sampled


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError):
        TelemetrySettings(sample_ratio=1.5)
    with pytest.raises(ValueError):
        TelemetrySettings(log_level="LOUD")
    assert "k3y" not in repr(TelemetrySettings(otlp_headers={"authorization": "k3y"}))


def test_spans_reach_an_otlp_receiver() -> None:
    received: list[ExportTraceServiceRequest] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        provider = provider_for("gateway", "1.2.3", TelemetrySettings(otlp_endpoint=f"http://127.0.0.1:{server.server_port}/"))
        provider.get_tracer("t").start_span("request").end()
        assert provider.force_flush()
        provider.shutdown()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    resource = {a.key: a.value.string_value for a in received[0].resource_spans[0].resource.attributes}
    assert (resource["service.name"], resource["service.version"]) == ("gateway", "1.2.3")
    assert received[0].resource_spans[0].scope_spans[0].spans[0].name == "request"
