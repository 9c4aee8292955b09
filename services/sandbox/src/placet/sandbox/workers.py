"""A pool of worker processes for both sandboxes, for services that live in an event loop.

Workers give parallelism, and a way to stop what does not stop: fuel and memory limits already bound every run. A worker
runs one request at a time; it is killed when a request's deadline has passed, replaced when it dies or has served its
share, and dies with this process. Whatever a worker's death interrupts is `SandboxUnavailable`, never a decision. Those who
wait are served as `placet.sandbox.fair` says, so one policy or component leaves workers for the others.

    async with WorkerPool(cache_dir=Path("/var/lib/placet/sandbox"), size=4) as pool:
        result = await pool.evaluate(policy_id, source, input_json, data=sections, now_ns=timestamp * 10**9)
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from placet.sandbox import wire
from placet.sandbox.check import Finding
from placet.sandbox.errors import SandboxUnavailable
from placet.sandbox.fair import FairQueue
from placet.sandbox.manifest import Manifest
from placet.sandbox.policydata import AdmissionLimits, Admitted, ComponentRun, RunRequest
from placet.sandbox.rego import DataSection, Evaluation, Explanation, PolicySource
from placet.sandbox.transcript import Transcript
from placet.sandbox.wire import HostConfig

__all__ = ["HostConfig", "PoolBusy", "WorkerPool"]

_T = TypeVar("_T")

_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from placet.sandbox.worker import main; main(sys.argv[2:])"
_START_TIMEOUT_S = 60.0
_COMPONENT_GRACE_S = 2.0
BRIEF_FUEL = 2_000_000_000
"""An evaluation with at most this much is over within half a second on any machine worth using."""


class PoolBusy(SandboxUnavailable):
    """More requests are waiting than the pool takes. Ask again later."""


class WorkerPool:
    """`size` workers; at most `queue_limit` requests wait for one. A worker is replaced after `recycle_after` requests.

    `ready` workers are started at once (default: all), the others when they are needed; `keep` (default: all) stay when nothing is to do.
    A request's `owner` is whom it is counted for, its `line` what takes turns inside an owner: a policy and a batch, say.
    """

    def __init__(
        self,
        *,
        cache_dir: Path,
        size: int = 2,
        ready: int | None = None,
        keep: int | None = None,
        queue_limit: int = 1_024,
        recycle_after: int = 10_000,
        image_budget_bytes: int = 256 << 20,
        evaluation_deadline_s: float = 30.0,
    ) -> None:
        if size < 1:
            raise ValueError("a pool has at least one worker")
        self._cache_dir = cache_dir
        self._size = size
        self._ready = size if ready is None else ready
        self._keep = size if keep is None else keep
        self._queue_limit = queue_limit
        self._recycle_after = recycle_after
        self._image_budget_bytes = image_budget_bytes
        self._evaluation_deadline_s = evaluation_deadline_s
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(size)
        self._closed = False
        self.restarts = 0
        """Workers that were replaced because they died or were killed."""

    async def start(self) -> None:
        """Starts the workers. The first fills the caches alone, so that a cold start compiles the engine once."""
        self._cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._ready:
            return
        self._idle.append(await self._spawn())
        others = await asyncio.gather(*(self._spawn() for _ in range(self._ready - 1)), return_exceptions=True)
        self._idle.extend(process for process in others if isinstance(process, _Process))
        for failure in others:
            if isinstance(failure, BaseException):
                await self.close()
                raise failure

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return self._queue.waiting

    async def close(self) -> None:
        """Ends the workers. Requests that still run end as `SandboxUnavailable`."""
        self._closed = True
        busy = list(self._busy)
        await asyncio.gather(*(process.end(gently=False) for process in busy))
        while self._replacing:
            await asyncio.gather(*self._replacing, return_exceptions=True)
        idle, self._idle = self._idle, []
        await asyncio.gather(*(process.end(gently=True) for process in idle))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def evaluate(
        self,
        key: str,
        source: PolicySource,
        input_json: str,
        *,
        data: Sequence[DataSection] = (),
        now_ns: int | None = None,
        deadline_s: float | None = None,
    ) -> Evaluation:
        """As `CompiledPolicy.evaluate`. `key` is the policyId: it must name `source`, data and limits included."""
        message = _evaluation(key, input_json, data, now_ns, explain=False)
        deadline = deadline_s or self._evaluation_deadline_s
        return await self._ask(message, wire.evaluation_from_wire, deadline, owner=key, line=None, key=key, source=source)

    async def explain(
        self,
        key: str,
        source: PolicySource,
        input_json: str,
        *,
        data: Sequence[DataSection] = (),
        now_ns: int | None = None,
        deadline_s: float | None = None,
    ) -> Explanation:
        """As `CompiledPolicy.explain`."""
        message = _evaluation(key, input_json, data, now_ns, explain=True)
        deadline = deadline_s or self._evaluation_deadline_s
        return await self._ask(message, wire.explanation_from_wire, deadline, owner=key, line=None, key=key, source=source)

    async def check(self, modules: Mapping[str, str], entrypoint: str, *, owner: Hashable = "check") -> list[Finding]:
        """As `check_policy`."""
        message = {"do": "check", "modules": dict(modules), "entrypoint": entrypoint}
        return await self._ask(message, _findings, self._evaluation_deadline_s, owner=owner, line=None)

    async def syntax_json(self, modules: Mapping[str, str]) -> str:
        """As `RegoEngine.syntax_json`."""
        message = {"do": "syntax", "modules": dict(modules)}
        return await self._ask(message, lambda answer: str(answer["syntax"]), self._evaluation_deadline_s, owner="check", line=None)

    async def admit_component(
        self, component: bytes, manifest: bytes, limits: AdmissionLimits | None = None, *, owner: Hashable = "admission"
    ) -> Admitted:
        """As `ComponentEngine.admit`. `manifest` is the published bytes. Raises `ManifestError` too."""
        Manifest.parse(manifest)
        limits = limits or AdmissionLimits()
        message = {
            "do": "admit",
            "component": base64.b64encode(component).decode(),
            "manifest": manifest.decode(),
            "limits": asdict(limits),
        }
        return await self._ask(message, _admitted, limits.wall_s + 10, owner=owner, line=None)

    async def run_component(
        self,
        sha256: str,
        manifest: bytes,
        request: RunRequest,
        host: HostConfig | None = None,
        *,
        digest_key: bytes = b"",
        replay: Transcript | None = None,
        owner: Hashable | None = None,
        line: Hashable = None,
    ) -> ComponentRun:
        """As `ComponentEngine.run`; fetching happens in the worker. Killed two seconds after the manifest's deadline.

        Counted for `owner`, by default the component.
        """
        parsed = Manifest.parse(manifest)
        message = {
            "do": "run",
            "sha256": sha256,
            "manifest": manifest.decode(),
            "request": wire.request_to_wire(request),
            "host": wire.host_to_wire(host or HostConfig()),
            "digest_key": base64.b64encode(digest_key).decode(),
            "replay": replay.to_json() if replay is not None else None,
        }
        deadline = parsed.limits.deadline_ms / 1_000 + _COMPONENT_GRACE_S
        return await self._ask(message, wire.run_from_wire, deadline, owner=sha256 if owner is None else owner, line=line)

    async def _ask(
        self,
        message: wire.Message,
        decode: Callable[[wire.Message], _T],
        deadline_s: float,
        *,
        owner: Hashable,
        line: Hashable,
        key: str | None = None,
        source: PolicySource | None = None,
    ) -> _T:
        brief = source is not None and source.limits.fuel <= BRIEF_FUEL
        await self._place(owner, line, brief=brief)
        began = time.monotonic()
        try:
            process = await self._take(key)
        except BaseException:
            self._vacate(owner, began)
            raise
        sound = False
        self._busy.add(process)
        try:
            async with asyncio.timeout(deadline_s):
                answer = await process.ask(message)
                if "needs" in answer and source is not None:
                    answer = await process.ask({**message, "source": wire.source_to_wire(source)})
            sound = True
        except TimeoutError:
            raise SandboxUnavailable(f"no answer within {deadline_s:g} s") from None
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise SandboxUnavailable(f"the worker died ({type(error).__name__})") from None
        finally:
            # A cancelled request leaves its worker busy: it goes too.
            self._busy.discard(process)
            self._give_back(process, key, owner, began, sound=sound)
        try:
            if "error" not in answer:
                return decode(answer["ok"])
            failure = wire.error_from_wire(answer["error"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SandboxUnavailable("the worker answered in another form") from None
        raise failure

    async def _place(self, owner: Hashable, line: Hashable, *, brief: bool) -> None:
        """Wait for a place. Those that wait have places, too: an owner gets one while it has fewer than are left."""
        self._check_open()
        queue = self._queue
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.put(owner, line, turn, brief=brief)
        self._serve()
        if not turn.done() and queue.waiting_of(owner) > self._queue_limit + 1 - queue.waiting:
            queue.discard(owner, line, turn)
            raise PoolBusy(f"{queue.waiting} requests are waiting")
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                queue.discard(owner, line, turn)
            else:
                self._vacate(owner, time.monotonic())
            raise

    def _serve(self) -> None:
        while (following := self._queue.take()) is not None:
            owner, turn = following
            if turn.cancelled():
                self._queue.give_back(owner, 0.0)
            else:
                turn.set_result(None)

    def _vacate(self, owner: Hashable, began: float) -> None:
        self._queue.give_back(owner, time.monotonic() - began)
        self._serve()

    async def _take(self, key: str | None) -> _Process:
        """An idle worker, one that has the policy prepared if there is one; else a new one."""
        self._check_open()
        for position, process in enumerate(self._idle):
            if key is not None and key in process.keys:
                return self._idle.pop(position)
        if self._idle:
            return self._idle.pop()
        process = await self._spawn()
        try:
            self._check_open()
        except SandboxUnavailable:
            await process.end(gently=True)
            raise
        return process

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxUnavailable("the pool is closed")

    def _give_back(self, process: _Process, key: str | None, owner: Hashable, began: float, *, sound: bool) -> None:
        process.served += 1
        if sound and not self._closed and process.served < self._recycle_after and len(self._idle) < self._keep:
            if key is not None:
                process.keys.add(key)
            self._idle.append(process)
            self._vacate(owner, began)
            return
        self.restarts += not sound
        replacing = asyncio.create_task(self._replace(process, owner, began, gently=sound))
        self._replacing.add(replacing)
        replacing.add_done_callback(self._replacing.discard)

    async def _replace(self, process: _Process, owner: Hashable, began: float, *, gently: bool) -> None:
        """Ends a worker and starts another in its place, which is free only then."""
        try:
            await process.end(gently=gently)
            if not self._closed and len(self._idle) < self._keep:
                # If it does not start, the next request tries again and says why.
                with suppress(SandboxUnavailable):
                    self._idle.append(await self._spawn())
        finally:
            self._vacate(owner, began)

    async def _spawn(self) -> _Process:
        # An empty environment: nothing this service was configured with is in a process that runs strangers' code.
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _BOOT,
            json.dumps(sys.path),
            str(os.getpid()),
            str(self._cache_dir),
            str(self._image_budget_bytes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={"LANG": "C.UTF-8"},
        )
        process = _Process(child)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                answer = await process.read()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError) as error:
            await process.end(gently=False)
            raise SandboxUnavailable(f"a worker does not start ({type(error).__name__})") from None
        except asyncio.CancelledError:
            await process.end(gently=False)
            raise
        if "error" in answer:
            await process.end(gently=True)
            raise wire.error_from_wire(answer["error"])
        return process


def _evaluation(key: str, input_json: str, data: Sequence[DataSection], now_ns: int | None, *, explain: bool) -> wire.Message:
    return {
        "do": "evaluate",
        "key": key,
        "source": None,
        "input": input_json,
        "data": [asdict(section) for section in data],
        "now_ns": now_ns,
        "explain": explain,
    }


def _findings(answer: wire.Message) -> list[Finding]:
    return [Finding(*row) for row in answer["findings"]]


def _admitted(answer: wire.Message) -> Admitted:
    return Admitted(**{**answer, "imports": tuple(answer["imports"])})


class _Process:
    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self.served = 0
        self.keys: set[str] = set()
        """Policies that it has probably prepared: a hint for choosing a worker."""

    @property
    def pid(self) -> int:
        return self._child.pid

    async def ask(self, message: wire.Message) -> wire.Message:
        assert self._child.stdin is not None
        self._child.stdin.write(wire.pack(message))
        await self._child.stdin.drain()
        return await self.read()

    async def read(self) -> wire.Message:
        assert self._child.stdout is not None
        size = int.from_bytes(await self._child.stdout.readexactly(4), "big")
        if size > wire.MAX_FRAME_BYTES:
            raise ValueError("an answer that is too large")
        answer = json.loads(await self._child.stdout.readexactly(size))
        if not isinstance(answer, dict):
            raise ValueError("an answer of another form")
        return answer

    async def end(self, *, gently: bool) -> None:
        if gently and self._child.stdin is not None:
            self._child.stdin.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self._child.wait()
                    return
        with suppress(ProcessLookupError):
            self._child.kill()
        await asyncio.shield(self._child.wait())
