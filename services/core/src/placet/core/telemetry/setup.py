"""Turns traces and logs on: called once by a service's main, before anything else.

Traces go to an OTLP/HTTP endpoint when one is set (none: spans are still made, so that trace ids stand in logs and on the bus, but go
nowhere). Logs are JSON lines on standard output with the ids of the current span. Nothing here knows any service.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

import orjson
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from placet.core.telemetry import metrics, names
from placet.core.telemetry.scope import current_service

_BUILD = metrics.gauge(names.BUILD_INFO, "1, with what runs as labels.", ["service", "version"])


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    otlp_endpoint: str | None = None
    """Base URL of an OTLP/HTTP receiver, e.g. http://127.0.0.1:4318; spans are posted to /v1/traces below it."""
    otlp_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    sample_ratio: float = 1.0
    """Share of the traces that begin here which are recorded; a caller's decision is followed."""
    export_delay_s: float = 1.0
    log_level: str = "INFO"
    log_json: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.sample_ratio <= 1.0:
            raise ValueError(f"sample_ratio is a share from 0 to 1, not {self.sample_ratio}")
        if self.log_level.upper() not in logging.getLevelNamesMapping():
            raise ValueError(f"log_level {self.log_level!r} is none of {', '.join(logging.getLevelNamesMapping())}")


class Telemetry:
    """What `configure` turned on; `shutdown` sends what is still waiting."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Sends the spans that have ended; blocking. False if the receiver did not take them in time."""
        return self._provider.force_flush(int(timeout_s * 1000))

    def shutdown(self) -> None:
        self._provider.shutdown()


def configure(
    service: str,
    version: str,
    settings: TelemetrySettings,
    *,
    instance: str | None = None,
    exporter: SpanExporter | None = None,
    stream: TextIO | None = None,
) -> Telemetry:
    """Installs the tracer provider and the log handler of this process and sets the build metric.

    `instance` names this replica (default: the host). `exporter` takes the place of OTLP in tests. The process-wide tracer provider can
    be set once; in one that runs several services (the all-in-one), `provider_for` and `scope.service_scope` give
    each its own.
    """
    provider = provider_for(service, version, settings, instance=instance, exporter=exporter)
    trace.set_tracer_provider(provider)
    configure_logging(service, settings, stream=stream)
    _BUILD.labels(service, version).set(1)
    return Telemetry(provider)


def provider_for(
    service: str, version: str, settings: TelemetrySettings, *, instance: str | None = None, exporter: SpanExporter | None = None
) -> TracerProvider:
    """A tracer provider that says it is `service`."""
    resource = Resource.create(
        {names.SERVICE_NAME: service, names.SERVICE_VERSION: version, names.SERVICE_INSTANCE_ID: instance or socket.gethostname()}
    )
    provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)), shutdown_on_exit=False)
    if exporter is None and settings.otlp_endpoint is not None:
        endpoint = settings.otlp_endpoint.rstrip("/")
        exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", headers=dict(settings.otlp_headers), timeout=5)
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=settings.export_delay_s * 1000))
    return provider


# Logs.


def configure_logging(service: str, settings: TelemetrySettings, *, stream: TextIO | None = None) -> None:
    """One handler on the root logger, in place of those that were there."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(JsonFormatter(service) if settings.log_json else TextFormatter(service))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())


MASK: Final = "***"

# What must not be printed, by the name it goes under ...
_SECRET_NAME: Final = re.compile(
    r"(?:^|[_\-.])(?:password|passwd|secret|token|api_?key|apikey|private_?key|priv_?key|mnemonic|seed|authorization|cookie|credentials?|signing_?key)s?$",
    re.IGNORECASE,
)
# ... or by what it looks like inside a text: credentials in a URL, Authorization values, name=value pairs, PEM blocks. Every repetition
# is bounded, and the text is cut first: a caller chooses what is logged, and must not choose how long that takes.
_PATTERNS: Final = (
    (re.compile(r"(?P<keep>://[^\s/:@]{0,128}:)[^\s/@]{1,1024}(?=@)"), rf"\g<keep>{MASK}"),
    (re.compile(r"(?P<keep>\b(?:bearer|basic)\s{1,4})[A-Za-z0-9._~+/=\-]{6,4096}", re.IGNORECASE), rf"\g<keep>{MASK}"),
    (
        re.compile(
            r"(?P<keep>(?:password|passwd|secret|token|api[_\-]?key|private[_\-]?key|mnemonic)s?[\"']?\s{0,4}[=:]\s{0,4}[\"']?)[^\s\"',;&}]{1,4096}",
            re.IGNORECASE,
        ),
        rf"\g<keep>{MASK}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,32}PRIVATE KEY-----|$)", re.DOTALL), MASK),
)
_MAX_TEXT: Final = 8192

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def masked(text: str) -> str:
    """`text` without what looks like a credential, and not longer than 8 KiB.

    A long text loses its last word with the rest, lest half a credential remain that no pattern knows.
    """
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT].rsplit(maxsplit=1)[0] + "…" if any(c.isspace() for c in text[:_MAX_TEXT]) else text[: _MAX_TEXT // 2] + "…"
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _safe(name: str, value: Any) -> Any:
    if _SECRET_NAME.search(name):
        return MASK
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _safe(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(name, inner) for inner in value]
    if isinstance(value, bytes):
        return "0x" + value[:256].hex()
    return masked(str(value))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, service, message, trace_id and span_id inside a span, `extra=` fields, error.

    Values under names that say secret, and texts that look like credentials, are masked. Bytes become hex.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        line: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "service": current_service() or self._service,
            "logger": record.name,
            "message": masked(record.getMessage()),
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = trace.format_trace_id(context.trace_id)
            line["span_id"] = trace.format_span_id(context.span_id)
        for name, value in vars(record).items():
            if name not in _STANDARD and name not in line:
                line[name] = _safe(name, value)
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["traceback"] = masked("".join(traceback.format_exception(*record.exc_info)))
        return line

    def format(self, record: logging.LogRecord) -> str:
        return orjson.dumps(self.fields(record), option=orjson.OPT_NON_STR_KEYS, default=str).decode()


class TextFormatter(JsonFormatter):
    """The same for a person's eyes: one line, then the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = self.fields(record)
        head = f"{line.pop('ts')[11:]} {line.pop('level'):<7} {line.pop('service')} {line.pop('logger')}: {line.pop('message')}"
        line.pop("span_id", None)
        error = line.pop("traceback", None)
        rest = " ".join(f"{name}={value}" for name, value in line.items())
        return "\n".join(part for part in (f"{head} {rest}".rstrip(), error) if part)
