"""Prometheus metrics, defined once with their unit in the name.

A name is `placet_<area>_<what>_<unit>`; counters end in `_total`. `counter`, `gauge` and `histogram` refuse a name without a unit and
hand back the existing metric when the same one is asked for again, so a module may define its metrics at import.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

UNITS: Final = (
    "seconds",
    "bytes",
    "records",
    "tasks",
    "partitions",
    "lines",
    "requests",
    "ratio",
    "wei",
    "gas",
    "blocks",
    "stake",
    "fuel",
    "connections",
    "workers",
    "info",
    "timestamp_seconds",
)
"""What a gauge or a histogram may count. Counters of events end in `_total` and need no further unit."""

LATENCY_BUCKETS_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_NAME: Final = re.compile(r"placet(_[a-z0-9]+)+")
_M = TypeVar("_M", bound=MetricWrapperBase)
_defined: dict[tuple[int, str], MetricWrapperBase] = {}


def _define(kind: type[_M], name: str, text: str, labels: Sequence[str], registry: CollectorRegistry, **options: object) -> _M:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a metric's name is placet_<area>_<what>_<unit>, not {name!r}")
    existing = _defined.get((id(registry), name))
    if existing is not None:
        if not isinstance(existing, kind) or tuple(existing._labelnames) != tuple(labels):
            raise ValueError(f"metric {name} exists with another type or other labels")
        return existing
    metric = kind(name, text, labelnames=tuple(labels), registry=registry, **options)  # type: ignore[arg-type]
    _defined[(id(registry), name)] = metric
    return metric


def _with_unit(name: str) -> str:
    if not name.endswith(tuple(f"_{unit}" for unit in UNITS)):
        raise ValueError(f"metric {name!r} must end in a unit: one of {', '.join(UNITS)}")
    return name


def counter(name: str, text: str, labels: Sequence[str] = (), *, registry: CollectorRegistry = REGISTRY) -> Counter:
    if not name.endswith("_total"):
        raise ValueError(f"counter {name!r} must end in _total")
    return _define(Counter, name, text, labels, registry)


def gauge(name: str, text: str, labels: Sequence[str] = (), *, registry: CollectorRegistry = REGISTRY) -> Gauge:
    return _define(Gauge, _with_unit(name), text, labels, registry)


def histogram(
    name: str,
    text: str,
    labels: Sequence[str] = (),
    *,
    buckets: Sequence[float] = LATENCY_BUCKETS_SECONDS,
    registry: CollectorRegistry = REGISTRY,
) -> Histogram:
    return _define(Histogram, _with_unit(name), text, labels, registry, buckets=tuple(buckets))
