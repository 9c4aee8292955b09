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
import contextlib
import platform
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

import orjson
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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


class _Server(uvicorn.Server):
    """uvicorn inside somebody else's loop: signals stay with their owner."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._port = 0
        self.app = Starlette(
            routes=[
                Route("/livez", self._livez),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Route("/version", self._get_version),
            ]
        )

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

    async def _livez(self, _: Request) -> Response:
        return _answer(await self._live.run())

    async def _readyz(self, _: Request) -> Response:
        reasons = await self._ready.run()
        if self._draining is not None:
            reasons["drain"] = self._draining
        return _answer(reasons)

    async def _metrics(self, _: Request) -> Response:
        await self._collect.run()  # one that fails leaves the value of the last time
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _get_version(self, _: Request) -> Response:
        return Response(
            orjson.dumps({**self._version, "uptime_s": round(time.monotonic() - self._started, 1)}), media_type="application/json"
        )

    # Life cycle.

    async def start(self) -> int:
        """Listens; returns the port. Raises OSError if it is taken."""
        listener = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._wanted_port))
            listener.listen(64)
            listener.setblocking(False)
            self._port = int(listener.getsockname()[1])
            config = uvicorn.Config(
                self.app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=2,
                server_header=False,
            )
            self._server = _Server(config)
            self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="admin server")
        except BaseException:
            listener.close()
            raise
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise OSError(f"the admin server on {self._host}:{self._port} ended while it started")
            await asyncio.sleep(0.005)
        return self._port

    async def stop(self) -> None:
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        task, self._server, self._task = self._task, None, None
        await asyncio.gather(task, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()


def _answer(reasons: Mapping[str, str | None]) -> Response:
    ok = all(reason is None for reason in reasons.values())
    body = {"ok": ok, "checks": {name: "ok" if reason is None else reason for name, reason in reasons.items()}}
    return Response(orjson.dumps(body), status_code=200 if ok else 503, media_type="application/json")
