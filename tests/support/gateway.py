"""One gateway without sockets: real store, batcher, results and routes; chain, policies and the rest of the network played by the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core import topics, wire
from placet.core.batch import BatchContext
from placet.core.bundle import PolicyBundle
from placet.core.bus import InProcessBroker, InProcessBus
from placet.core.db import connect, migrate
from placet.core.envelope import open_envelope
from placet.core.errors import NotFound
from placet.core.intents import intent_json
from placet.core.messages import Admission
from placet.core.types import Address, Hash32, hex0x
from placet.gateway.api import Api
from placet.gateway.batcher import Batcher
from placet.gateway.intents import Intents
from placet.gateway.keys import Authenticator, new_key
from placet.gateway.results import Results
from placet.gateway.store import ApiKey, Store
from tests.support.authorization import AGGREGATOR, CHAIN_ID, CLIENT, GATEWAY, RunningClock, World, eventually, records_of

SETTLEMENT_KEY = b"\x00" * 32


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: Any


class Policies:
    """A policy book that knows one policy."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.known = True
        self.admitted = True
        self.said: dict[Address, Admission] = {}

    async def bundle(self, policy_id: Hash32) -> PolicyBundle:
        if not self.known:
            raise NotFound("nobody announced this policy")
        return self.world.bundle

    def is_admitted(self, *_: Any) -> bool:
        return self.admitted

    def admissions(self, *_: Any) -> dict[Address, Admission]:
        return self.said


async def _unchanged(answer: dict[str, Any], *_: Any) -> dict[str, Any]:
    return answer


class Replica:
    """One gateway replica."""

    def __init__(self, stage: Stage, engine: AsyncEngine, settlements: frozenset[bytes]) -> None:
        self.stage = stage
        self.store = Store(engine)
        self.bus = InProcessBus(stage.broker)
        chains: Any = {CHAIN_ID: stage.world.chain}
        self.results = Results(
            bus=self.bus,
            chains=chains,
            store=self.store,
            aggregators=frozenset({AGGREGATOR.public_key}),
            settlements=settlements,
            clock=stage.clock,
        )
        self.batcher = Batcher(
            bus=self.bus,
            chains=chains,
            reference_back={},
            signer=GATEWAY,
            store=self.store,
            on_batch=self.results.expect,
            is_open=self.results.is_open,
            wait_s=0.01,
            observe_for_ms=500,
            max_waiting=1000,
            clock=stage.clock,
        )
        policies: Any = stage.policies
        self.intents = Intents(
            chains=chains, store=self.store, policies=policies, batcher=self.batcher, results=self.results, clock=stage.clock
        )
        insight: Any = SimpleNamespace(with_places=_unchanged)
        api = Api(
            insight=insight,
            intents=self.intents,
            authenticator=Authenticator(self.store),
            policies=policies,
            chains=chains,
            answer_within_s=stage.answer_within_s,
        )
        self.app = api.app()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.bus.start()
        await self.results.start(self.batcher.send)
        self._task = asyncio.create_task(self.results.run())

    async def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self.bus.stop()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        chunks: list[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """A request straight into the ASGI application."""
        content = chunks if chunks is not None else [body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)]
        sent = [{"type": "http.request", "body": part, "more_body": at + 1 < len(content)} for at, part in enumerate(content)]
        named = dict(headers or {})
        key = self.stage.key if key is None else key
        if key:
            named["authorization"] = f"Bearer {key}"
        got: dict[str, Any] = {"body": b""}

        async def receive() -> Any:
            return sent.pop(0) if sent else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                got["status"] = message["status"]
                got["headers"] = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                got["body"] += message.get("body", b"")

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in named.items()],
            "scheme": "http",
            "server": ("test", 80),
            "client": ("test", 1),
            "http_version": "1.1",
        }
        with suppress(Exception):  # the outermost layer answers 500 and raises the error again, for the server's log
            await self.app(scope, receive, send)
        return Answer(got["status"], got["headers"], orjson.loads(got["body"]) if got["body"] else None)

    async def submit(self, number: int = 0, *, key: str | None = None, headers: dict[str, str] | None = None, **changes: Any) -> Answer:
        return await self.request("POST", "/api/v1/intents", self.stage.body(number, **changes), key=key, headers=headers)


class Stage:
    """The world, the bus, one database, and replicas that come and go. `answer` says what the network makes of each batch."""

    def __init__(self, folder: Path, answer_within_s: float = 5.0) -> None:
        self.folder = folder
        self.world = World()
        self.clock = RunningClock()
        self.broker = InProcessBroker()
        self.bus = InProcessBus(self.broker)
        self.policies = Policies(self.world)
        self.answer_within_s = answer_within_s
        self.settlements: frozenset[bytes] = frozenset()
        self.key = ""
        self.tenant: ApiKey
        self.gateway: Replica
        self._replicas: list[Replica] = []
        self._engines: list[AsyncEngine] = []
        self._network: asyncio.Task[None] | None = None
        self.answer: Callable[[BatchContext], bytes | None] = self.world.certified
        self.deadline = int(time.time()) + 600

    async def open(self) -> None:
        await self.bus.start()
        self._network = asyncio.create_task(self._answer_batches())
        self.gateway = await self.replica()
        self.tenant, self.key = new_key("tenant", requests_per_s=100_000)
        await self.gateway.store.add_key(self.tenant)

    async def close(self) -> None:
        for replica in list(self._replicas):
            await self.kill(replica)
        if self._network is not None:
            self._network.cancel()
            with suppress(asyncio.CancelledError):
                await self._network
        await self.bus.stop()
        await self.broker.stop()
        for engine in self._engines:
            await engine.dispose()

    async def engine(self) -> AsyncEngine:
        engine = connect(f"sqlite+aiosqlite:///{self.folder / 'gateway.db'}")
        await migrate(engine, "placet.gateway.migrations")
        self._engines.append(engine)
        return engine

    async def replica(self, *, start: bool = True) -> Replica:
        replica = Replica(self, await self.engine(), self.settlements)
        if start:
            await replica.start()
            self._replicas.append(replica)
        return replica

    async def kill(self, replica: Replica) -> None:
        self._replicas.remove(replica)
        await replica.kill()

    async def restart(self) -> None:
        await self.kill(self.gateway)
        self.gateway = await self.replica()

    async def another_key(self, **options: Any) -> str:
        made, text = new_key("another", **({"requests_per_s": 100_000} | options))
        await self.gateway.store.add_key(made)
        return text

    async def _answer_batches(self) -> None:
        subscription = await self.bus.subscribe([topics.TASKS], None)
        async for records in subscription:
            for record in records:
                message = open_envelope(record.value or b"", lambda kind, sender: GATEWAY.public_key)
                context = BatchContext.of(*wire.decode_batch(message.payload))
                envelope = self.answer(context)
                if envelope is not None:
                    await self.bus.publish(topics.ATTESTATIONS, context.id, envelope)

    def body(self, number: int = 0, **changes: Any) -> dict[str, Any]:
        intent_changes = changes.pop("intent", {})
        intent = {**intent_json(self.world.intent(number, deadline=self.deadline)), **intent_changes}
        return {"policyClient": hex0x(CLIENT), "intent": intent, **changes}

    async def batches(self) -> list[BatchContext]:
        """Every batch that was published, in order of their ids' partitions."""
        out = []
        for record in await records_of(self.bus, topics.TASKS):
            message = open_envelope(record.value or b"", lambda kind, sender: GATEWAY.public_key)
            out.append(BatchContext.of(*wire.decode_batch(message.payload)))
        return out

    async def task(self, task_id: str, key: str | None = None) -> dict[str, Any]:
        answer = await self.gateway.request("GET", f"/api/v1/tasks/{task_id}", key=key)
        assert answer.status == 200, answer
        return dict(answer.body)

    async def ended(self, task_id: str, within_s: float = 5.0) -> dict[str, Any]:
        """The task, once it has a result."""

        async def found() -> dict[str, Any] | None:
            task = await self.task(task_id)
            return task if "result" in task else None

        return dict(await eventually(found, "the task has a result", within_s))

    @staticmethod
    async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
        return await eventually(condition)
