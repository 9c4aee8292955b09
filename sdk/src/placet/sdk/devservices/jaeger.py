"""Jaeger v2, all in one, in memory, on 127.0.0.1: what traces are shown in on a laptop, and what the end-to-end tests ask.

    with Jaeger(folder) as jaeger:
        ... PLACET_OTLP_ENDPOINT=jaeger.otlp_http ...
        spans = jaeger.traces("gateway")

    python -m placet.sdk.devservices.jaeger FOLDER

Built once from its Go module, pinned by tools/jaeger/go.mod and go.sum (about four minutes on two cores; needs Go). The module lacks the
assets of the web page, so its page is a placeholder: the query API is what is used here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from placet.sdk.devservices.process import DevServiceError, OwnedProcess, free_ports, installing, repository, run_tool, tools_folder

VERSION: Final = "1.76.0"
_PACKAGE: Final = "github.com/jaegertracing/jaeger/cmd/jaeger"

_CONFIG: Final = """\
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [jaeger_storage_exporter]
  telemetry:
    metrics: {{level: none}}
    logs: {{level: warn}}
extensions:
  jaeger_storage:
    backends:
      memory: {{memory: {{max_traces: 100000}}}}
  jaeger_query:
    storage: {{traces: memory}}
    http: {{endpoint: "127.0.0.1:{query_http}"}}
    grpc: {{endpoint: "127.0.0.1:{query_grpc}"}}
receivers:
  otlp:
    protocols:
      http: {{endpoint: "127.0.0.1:{otlp_http}"}}
      grpc: {{endpoint: "127.0.0.1:{otlp_grpc}"}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"""


def install() -> Path:
    """The jaeger binary, built on first use. Raises DevServiceError when Go is missing or the build fails."""
    home = tools_folder() / f"jaeger-{VERSION}"
    binary = home / "jaeger"
    with installing(f"jaeger-{VERSION}"):
        if not binary.exists():
            if shutil.which("go") is None:
                raise DevServiceError("building Jaeger needs Go: go is not on PATH")
            home.mkdir(parents=True, exist_ok=True)
            fresh = home / "jaeger.new"
            run_tool(
                ["nice", "go", "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", fresh, _PACKAGE],
                what="building Jaeger",
                cwd=repository() / "tools" / "jaeger",
            )
            fresh.rename(binary)
    return binary


@dataclass(frozen=True, slots=True)
class Span:
    """One span as Jaeger stored it. Ids are hex."""

    trace_id: str
    span_id: str
    parent_id: str | None
    service: str
    operation: str
    links: tuple[tuple[str, str], ...]
    """(trace id, span id) of each link."""
    tags: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.service}: {self.operation}"


def edges(spans: Iterable[Span]) -> set[tuple[str | None, str]]:
    """(parent's name, span's name) for every span; None for a root, "?" for a parent that is missing."""
    spans = list(spans)
    by_id = {span.span_id: span for span in spans}
    return {(None if s.parent_id is None else by_id[s.parent_id].name if s.parent_id in by_id else "?", s.name) for s in spans}


class Jaeger:
    def __init__(self, folder: Path, *, start_timeout_s: float = 30.0) -> None:
        self._folder = folder
        self._start_timeout_s = start_timeout_s
        self._process: OwnedProcess | None = None
        self.otlp_http = ""
        """Base URL for OTLP over HTTP (services post to /v1/traces below it)."""
        self.otlp_grpc = ""
        self.query = ""
        """Base URL of the query API and the page."""

    def start(self) -> None:
        binary = install()
        self._folder.mkdir(parents=True, exist_ok=True)
        names = ("query_http", "query_grpc", "otlp_http", "otlp_grpc")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        config = self._folder / "jaeger.yaml"
        config.write_text(_CONFIG.format(**ports))
        log_file = self._folder / "jaeger.out"
        log_file.unlink(missing_ok=True)
        process = OwnedProcess([binary, "--config", config], log_file=log_file)
        self.query = f"http://127.0.0.1:{ports['query_http']}"
        self.otlp_http = f"http://127.0.0.1:{ports['otlp_http']}"
        self.otlp_grpc = f"127.0.0.1:{ports['otlp_grpc']}"
        deadline = time.monotonic() + self._start_timeout_s
        try:
            while not self._answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise DevServiceError(f"Jaeger did not start; the end of {log_file}:\n{process.tail()}")
                time.sleep(0.05)
        except BaseException:
            process.stop()
            raise
        self._process = process

    def _answers(self) -> bool:
        json_type = {"content-type": "application/json"}
        empty = urllib.request.Request(f"{self.otlp_http}/v1/traces", data=b"{}", headers=json_type)  # noqa: S310 - as below
        try:
            with urllib.request.urlopen(empty, timeout=2), urllib.request.urlopen(f"{self.query}/api/services", timeout=2):  # noqa: S310
                return True
        except (OSError, urllib.error.URLError):
            return False

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        url = f"{self.query}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own, on this machine
            return json.load(answer)["data"]

    def services(self) -> list[str]:
        return sorted(self._get("/api/services", {}) or [])

    def traces(self, service: str, *, limit: int = 1000, tags: Mapping[str, str] | None = None) -> dict[str, list[Span]]:
        """Every stored trace in which `service` took part, by trace id, whole (all services' spans)."""
        parameters = {"service": service, "limit": str(limit)}
        if tags:
            parameters["tags"] = json.dumps(dict(tags))
        return {trace["traceID"]: _spans(trace) for trace in self._get("/api/traces", parameters) or []}

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _spans(trace: Mapping[str, Any]) -> list[Span]:
    found = []
    for span in trace["spans"]:
        references = span.get("references") or []
        parent = next((r["spanID"] for r in references if r["refType"] == "CHILD_OF" and r["traceID"] == span["traceID"]), None)
        found.append(
            Span(
                trace_id=span["traceID"],
                span_id=span["spanID"],
                parent_id=parent,
                service=trace["processes"][span["processID"]]["serviceName"],
                operation=span["operationName"],
                links=tuple((r["traceID"], r["spanID"]) for r in references if r["spanID"] != parent),
                tags={tag["key"]: tag["value"] for tag in span.get("tags") or []},
            )
        )
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m placet.sdk.devservices.jaeger", description="Jaeger v2 in memory on 127.0.0.1.")
    parser.add_argument("folder", type=Path, help="for its configuration and log; made if missing")
    chosen = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        with Jaeger(chosen.folder) as jaeger:
            sys.stdout.write(f"OTLP over HTTP {jaeger.otlp_http}\nquery {jaeger.query}\n")
            sys.stdout.flush()
            ended.wait()
    except DevServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
