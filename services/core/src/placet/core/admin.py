"""The admin port that every service has from its first commit: /livez, /readyz, /metrics, /version.

It is a port of its own, bound to 127.0.0.1 unless told otherwise, so that nothing of it is ever public. Liveness says "restart me would
help"; readiness says "send me work". Both are lists of named checks:

    admin = AdminServer("operator", "0.1.0", port=9102)
    admin.live("consumer", subscription.stuck)                    # async () -> reason or None
    admin.ready("bus", lambda: bus.not_ready([topics.TASKS]))
    admin.collect("lag", subscription.lag)
    async with admin: ...                                         # admin.port is the real one
"""

from __future__ import annotations

import asyncio
import platform
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, Self

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

Check = Callable[[], Awaitable[str | None]]
"""Returns why not, or None when all is well. Raising counts as a reason."""

CHECK_TIMEOUT_S: Final = 3.0


class Checks:
    """Named checks, run together, each with an end."""

    def __init__(self, timeout_s: float = CHECK_TIMEOUT_S) -> None:
        self._checks: dict[str, Check] = {}
        self._timeout_s = timeout_s

    def add(self, name: str, check: Check) -> None:
        if name in self._checks:
            raise ValueError(f"there is a check named {name} already")
        self._checks[name] = check

    async def run(self) -> dict[str, str | None]:
        """Each check's reason, None where it passed."""
        reasons = await asyncio.gather(*(self._run(check) for check in self._checks.values()))
        return dict(zip(self._checks, reasons, strict=True))

    async def _run(self, check: Check) -> str | None:
        try:
            return await asyncio.wait_for(check(), self._timeout_s)
        except TimeoutError:
            return f"no answer in {self._timeout_s:g} s"
        except Exception as error:  # noqa: BLE001 - a check that breaks is a reason, never a crash
            return f"{type(error).__name__}: {error}"


class AdminServer:
    def __init__(
        self,
        service: str,
        version: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        details: Mapping[str, str] | None = None,
        registry: CollectorRegistry = REGISTRY,
        check_timeout_s: float = CHECK_TIMEOUT_S,
    ) -> None:
        self._host = host
        self._wanted_port = port
        self._registry = registry
        self._version = {"service": service, "version": version, "python": platform.python_version(), **(details or {})}
        self._live = Checks(check_timeout_s)
        self._ready = Checks(check_timeout_s)
        self._collect = Checks(check_timeout_s)
        self._draining: str | None = None
        self._started = time.monotonic()
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._app = web.Application(client_max_size=1024)
        self.route("/livez", self._livez)
        self.route("/readyz", self._readyz)
        self.route("/metrics", self._metrics)
        self.route("/version", self._get_version)

    def route(self, path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
        """Adds a page that belongs on this port; before `start`. `{name}` in the path is `request.match_info["name"]`."""
        self._app.router.add_get(path, handler)

    def live(self, name: str, check: Check) -> None:
        """Adds a check whose failure a restart would repair. An unreachable broker or database is none."""
        self._live.add(name, check)

    def ready(self, name: str, check: Check) -> None:
        """Adds a check without which no work should come here."""
        self._ready.add(name, check)

    def collect(self, name: str, refresh: Callable[[], Awaitable[object]]) -> None:
        """Runs `refresh` before each answer of /metrics, for values that are asked for rather than counted (a consumer's lag)."""

        async def check() -> str | None:
            await refresh()
            return None

        self._collect.add(name, check)

    def drain(self, reason: str = "shutting down") -> None:
        """From now on not ready, whatever the checks say; called first when SIGTERM comes."""
        self._draining = reason

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        return self._port

    # The four pages.

    async def _livez(self, _: web.Request) -> web.Response:
        return _answer(await self._live.run())

    async def _readyz(self, _: web.Request) -> web.Response:
        reasons = await self._ready.run()
        if self._draining is not None:
            reasons["drain"] = self._draining
        return _answer(reasons)

    async def _metrics(self, _: web.Request) -> web.Response:
        await self._collect.run()  # one that fails leaves the value of the last time
        return web.Response(body=generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _get_version(self, _: web.Request) -> web.Response:
        return web.Response(
            body=orjson.dumps({**self._version, "uptime_s": round(time.monotonic() - self._started, 1)}), content_type="application/json"
        )

    # Life cycle.

    async def start(self) -> int:
        """Listens; returns the port. Raises OSError if it is taken."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, so that asyncio sets TCP_NODELAY
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._wanted_port))
            listener.listen(64)
            listener.setblocking(False)
            self._port = int(listener.getsockname()[1])
            self._runner = web.AppRunner(self._app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
            await self._runner.setup()
            await web.SockSite(self._runner, listener).start()
        except BaseException:
            listener.close()
            await self.stop()
            raise
        return self._port

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()


def _answer(reasons: Mapping[str, str | None]) -> web.Response:
    ok = all(reason is None for reason in reasons.values())
    body = {"ok": ok, "checks": {name: "ok" if reason is None else reason for name, reason in reasons.items()}}
    return web.Response(body=orjson.dumps(body), status=200 if ok else 503, content_type="application/json")
