"""Which service the running task belongs to.

One process is one service when deployed, and the process-wide tracer provider is enough. The all-in-one runs several in one loop: each
enters its own scope, and every task that it starts inherits it, so that spans and log lines name the right service.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry import trace


@dataclass(frozen=True, slots=True)
class Scope:
    service: str
    provider: trace.TracerProvider


_scope: ContextVar[Scope | None] = ContextVar("placet_service", default=None)


@contextmanager
def service_scope(service: str, provider: trace.TracerProvider) -> Iterator[None]:
    """Inside the block, and in tasks started there, `tracer` and the log formatter speak for `service`."""
    token = _scope.set(Scope(service, provider))
    try:
        yield
    finally:
        _scope.reset(token)


def current_service() -> str | None:
    scope = _scope.get()
    return None if scope is None else scope.service


def tracer(name: str) -> trace.Tracer:
    """The tracer to make spans with: the scope's service's, else the process's. Ask for it where it is used, not at import."""
    scope = _scope.get()
    return trace.get_tracer(name) if scope is None else scope.provider.get_tracer(name)
