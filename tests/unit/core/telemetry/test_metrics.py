"""Metric definitions: a unit in every name, one definition a name."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from placet.core.telemetry import metrics, names


def test_a_name_without_a_unit_is_refused() -> None:
    registry = CollectorRegistry()
    for wrong in ("placet_bus_latency", "latency_seconds", "placet_Bus_seconds", "placet_"):
        with pytest.raises(ValueError):
            metrics.histogram(wrong, "x", registry=registry)
        with pytest.raises(ValueError):
            metrics.gauge(wrong, "x", registry=registry)
    with pytest.raises(ValueError, match="_total"):
        metrics.counter("placet_bus_sent_records", "x", registry=registry)


def test_asking_twice_gives_the_same_metric_and_another_shape_is_refused() -> None:
    registry = CollectorRegistry()
    first = metrics.counter("placet_x_total", "x", ["a"], registry=registry)
    assert metrics.counter("placet_x_total", "x", ["a"], registry=registry) is first
    with pytest.raises(ValueError, match="exists"):
        metrics.counter("placet_x_total", "x", ["b"], registry=registry)


def test_every_metric_name_of_the_vocabulary_has_a_unit() -> None:
    values = [value for name, value in vars(names).items() if isinstance(value, str) and value.startswith("placet_")]
    assert values
    for value in values:
        assert value.endswith(("_total", *(f"_{unit}" for unit in metrics.UNITS))), value
    assert len(set(values)) == len(values)
