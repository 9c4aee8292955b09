"""The SERVER span of each request: where a trace of Placet begins, or goes on from the caller's `traceparent`."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from placet.core.bus.tracing import TRACE_HEADERS, restore
from placet.core.telemetry import names
from placet.core.telemetry.scope import tracer


class RequestSpans:
    """ASGI middleware. A span is named by method and route, never by the path, which holds ids."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = [route for route in routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = next((found.path for found in self._routes if found.matches(scope)[0] is not Match.NONE), None)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {names.HTTP_METHOD: scope["method"]} | ({names.HTTP_ROUTE: route} if route is not None else {})
        with tracer("placet.gateway").start_as_current_span(
            names.request_span(scope["method"], route),
            context=restore({name: headers[name] for name in TRACE_HEADERS if name in headers}),
            kind=SpanKind.SERVER,
            attributes=attributes,
        ) as span:

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute(names.HTTP_STATUS, message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await self._app(scope, receive, noting)


def note_outcome(outcome: str, task_id: str | None = None) -> None:
    """What a request came to: a decision, a stage, or an error's code. Written to the request's span."""
    span = trace.get_current_span()
    span.set_attribute(names.OUTCOME, outcome)
    if task_id is not None:
        span.set_attribute(names.TASK_ID, task_id)
