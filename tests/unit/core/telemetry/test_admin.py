"""The admin port: what each page says, and that a bad check harms nobody."""

from __future__ import annotations

import asyncio
import signal
import urllib.error
import urllib.request
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from placet.core.admin import AdminServer
from placet.core.telemetry import metrics


async def get(admin: AdminServer, path: str) -> tuple[int, bytes]:
    def fetch() -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin.port}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    return await asyncio.to_thread(fetch)


async def fine() -> str | None:
    return None


async def test_a_service_is_live_and_ready_when_every_check_passes() -> None:
    admin = AdminServer("operator", "0.1.0", details={"commit": "abc"})
    admin.live("consumer", fine)
    admin.ready("topics", fine)
    async with admin:
        assert await get(admin, "/livez") == (200, b'{"ok":true,"checks":{"consumer":"ok"}}')
        assert await get(admin, "/readyz") == (200, b'{"ok":true,"checks":{"topics":"ok"}}')
        status, body = await get(admin, "/version")
        assert status == 200
        assert {"service": "operator", "version": "0.1.0", "commit": "abc"}.items() <= orjson.loads(body).items()
        assert (await get(admin, "/other"))[0] == 404


async def test_each_failing_check_says_why_and_a_broken_or_slow_one_counts_as_failing() -> None:
    admin = AdminServer("operator", "0.1.0", check_timeout_s=0.05)

    async def absent() -> str | None:
        return "placet.tasks.v1 does not exist"

    async def broken() -> str | None:
        raise ConnectionError("refused")

    async def slow() -> str | None:
        await asyncio.Event().wait()
        return None

    for name, check in {"topics": absent, "database": broken, "node": slow, "schema": fine}.items():
        admin.ready(name, check)
    with pytest.raises(ValueError, match="already"):
        admin.ready("topics", fine)
    async with admin:
        status, body = await get(admin, "/readyz")
        assert status == 503
        assert orjson.loads(body) == {
            "ok": False,
            "checks": {
                "topics": "placet.tasks.v1 does not exist",
                "database": "ConnectionError: refused",
                "node": "no answer in 0.05 s",
                "schema": "ok",
            },
        }
        assert (await get(admin, "/livez"))[0] == 200


async def test_a_draining_service_is_live_but_not_ready() -> None:
    admin = AdminServer("gateway", "1")
    admin.ready("topics", fine)
    async with admin:
        admin.drain()
        status, body = await get(admin, "/readyz")
        assert (status, orjson.loads(body)["checks"]["drain"]) == (503, "shutting down")
        assert (await get(admin, "/livez"))[0] == 200


async def test_metrics_are_those_of_its_registry() -> None:
    registry = CollectorRegistry()
    metrics.counter("placet_admin_test_total", "x", registry=registry).inc(3)
    async with AdminServer("gateway", "1", registry=registry) as admin:
        status, body = await get(admin, "/metrics")
    assert status == 200
    assert b"placet_admin_test_total 3.0" in body


async def test_values_that_are_asked_for_are_refreshed_at_each_scrape_and_a_failing_one_harms_nobody() -> None:
    registry = CollectorRegistry()
    lag = metrics.gauge("placet_admin_lag_records", "x", registry=registry)
    admin = AdminServer("operator", "1", registry=registry)

    async def refresh() -> dict[str, int]:
        lag.inc()
        return {}

    async def broken() -> None:
        raise ConnectionError

    admin.collect("lag", refresh)
    admin.collect("broken", broken)
    async with admin:
        assert b"placet_admin_lag_records 1.0" in (await get(admin, "/metrics"))[1]
        assert b"placet_admin_lag_records 2.0" in (await get(admin, "/metrics"))[1]


async def test_it_listens_on_loopback_on_the_port_it_says_and_a_taken_port_is_an_error() -> None:
    async with AdminServer("gateway", "1") as admin:
        assert admin.port > 0
        with pytest.raises(OSError):
            await AdminServer("gateway", "1", port=admin.port).start()
    async with AdminServer("gateway", "1", port=admin.port) as again:  # free again once stopped
        assert again.port == admin.port


async def test_signals_stay_with_the_service() -> None:
    before: Any = signal.getsignal(signal.SIGTERM)
    async with AdminServer("gateway", "1"):
        assert signal.getsignal(signal.SIGTERM) is before
