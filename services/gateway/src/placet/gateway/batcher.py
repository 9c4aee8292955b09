"""Grouping waiting tasks into signed TaskBatches: one (chain, policy) a queue, closed when the oldest has waited a few milliseconds.

A lone task does not wait when nothing else is queued. The reference block and the clients' pins are read when a batch closes, so the epoch
and the policies in it are those of one block.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from placet.core import limits, topics, wire
from placet.core.batch import BatchContext, quorum_of
from placet.core.bus import Bus, BusError
from placet.core.bus.tracing import batch as batch_span
from placet.core.envelope import BusSigner, Kind, seal
from placet.core.errors import Internal, PlacetError, RateLimited, Unavailable, WrongPolicy
from placet.core.evm.reader import BlockState, ChainReader
from placet.core.evm.rpc import RpcError
from placet.core.telemetry import metrics, names
from placet.core.types import Hash32, Task, TaskBatch
from placet.gateway.store import Store, TaskRow

log = logging.getLogger(__name__)

_OPEN_BATCHES = 2
"""Of one policy: more wait for one of them to be decided, as long as `_GATHER_AT_MOST_S`."""
_GATHER_AT_MOST_S = 0.25

_BATCH_TASKS = metrics.histogram("placet_gateway_batch_tasks", "Tasks a batch.", [], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))


@dataclass(frozen=True, slots=True)
class Asked:
    """One task waiting to be batched."""

    chain_id: int
    policy_id: Hash32
    task: Task
    tenant: str
    request_key: Hash32
    request_hash: Hash32
    relay: bool
    submitted: asyncio.Future[Submitted]
    trace: Context = field(default_factory=otel_context.get_current)

    @property
    def size(self) -> int:
        """About how many bytes it takes in a batch."""
        task = self.task
        return 512 + len(task.intent.data) + len(task.args) + len(task.signature) + 600 * len(task.attachments)


@dataclass(frozen=True, slots=True)
class Submitted:
    """Where a task went. `state` is what the contracts said at the batch's reference block."""

    context: BatchContext
    position: int
    state: BlockState

    @property
    def task_id(self) -> Hash32:
        """The task's id."""
        return self.context.task_ids[self.position]


OnBatch = Callable[[BatchContext, BlockState], None]


class Batcher:
    """Queues of one gateway replica."""

    def __init__(
        self,
        *,
        bus: Bus,
        chains: Mapping[int, ChainReader],
        reference_back: Mapping[int, int],
        signer: BusSigner,
        store: Store,
        on_batch: OnBatch,
        is_open: Callable[[Hash32], bool],
        wait_s: float,
        observe_for_ms: int,
        max_waiting: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._chains = chains
        self._back = reference_back
        self._signer = signer
        self._store = store
        self._on_batch = on_batch
        self._wait_s = wait_s
        self._observe_for_ms = observe_for_ms
        self._max_waiting = max_waiting
        self._clock = clock
        self._queues: dict[tuple[int, Hash32], list[Asked]] = {}
        self._last_closed: dict[tuple[int, Hash32], float] = {}
        self._is_open = is_open
        self._sent: dict[tuple[int, Hash32], list[Hash32]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._recent: dict[Hash32, int] = {}
        self._waiting = 0

    async def submit(self, asked: Asked) -> Submitted:
        """Queue a task and wait until its batch is published.

        Raises:
            RateLimited: too many tasks are in hand.
            WrongPolicy: the client changed its policy meanwhile.
            Unavailable: node, database or bus do not answer.
        """
        if self._waiting >= self._max_waiting:
            raise RateLimited("too many tasks are in hand; try again in a moment")
        key = (asked.chain_id, asked.policy_id)
        if sum(item.size for item in self._queues.get(key, ())) + asked.size > limits.MAX_BATCH_BYTES:
            self._close(key)  # who reads a batch refuses a larger one, whole
        queue = self._queues.setdefault(key, [])
        queue.append(asked)
        self._waiting += 1
        try:
            if len(queue) >= limits.MAX_TASKS_PER_BATCH:
                self._close(key)
            elif len(queue) == 1:
                loop = asyncio.get_running_loop()
                idle = loop.time() - self._last_closed.get(key, float("-inf")) > self._wait_s
                loop.call_later(0 if idle else self._wait_s, self._close_when_due, key, queue, loop.time())
            return await asked.submitted
        finally:
            self._waiting -= 1

    def _close_when_due(self, key: tuple[int, Hash32], queue: list[Asked], since: float) -> None:
        """Close a queue, unless batches of its policy are still being decided: then it gathers more for a while.

        So the size of batches follows the load: operators sign once a batch, whatever its size.
        """
        if self._queues.get(key) is not queue:
            return  # closed already
        loop = asyncio.get_running_loop()
        undecided = [batch_id for batch_id in self._sent.get(key, ()) if self._is_open(batch_id)]
        self._sent[key] = undecided
        if len(undecided) >= _OPEN_BATCHES and loop.time() - since < _GATHER_AT_MOST_S:
            loop.call_later(self._wait_s, self._close_when_due, key, queue, since)
        else:
            self._close(key)

    def _close(self, key: tuple[int, Hash32]) -> None:
        queue = self._queues.pop(key, [])
        if not queue:
            return
        self._last_closed[key] = asyncio.get_running_loop().time()
        task = asyncio.create_task(self._send(key, queue))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def drain(self) -> None:
        """Publish what is queued."""
        for key in list(self._queues):
            self._close(key)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _send(self, key: tuple[int, Hash32], queue: list[Asked]) -> None:
        try:
            with batch_span(names.BATCH, [item.trace for item in queue]):
                await self._publish(key, queue)
        except (PlacetError, BusError, RpcError) as error:
            failure = error if isinstance(error, PlacetError) else Unavailable(f"{type(error).__name__}: {error}")
            for item in queue:
                if not item.submitted.done():
                    item.submitted.set_exception(failure)
        except Exception:
            log.exception("a batch could not be published")
            for item in queue:
                if not item.submitted.done():
                    item.submitted.set_exception(Internal("the batch could not be published"))

    async def _publish(self, key: tuple[int, Hash32], queue: list[Asked]) -> None:
        chain_id, policy_id = key
        reader = self._chains[chain_id]
        block = await reader.latest_block(self._back.get(chain_id, 0))
        state = await reader.at(block.hash, clients=[item.task.policy_client for item in queue])
        members = []
        for item in queue:
            pins = state.pins.get(item.task.policy_client)
            if pins is None or pins.policy_id != policy_id:
                item.submitted.set_exception(WrongPolicy("the client changed its policy meanwhile; ask again", field="/policyClient"))
            elif not item.submitted.done():
                members.append(item)
        if not members:
            return
        batch = TaskBatch(
            chain_id=chain_id,
            validator=reader.deployment.validator,
            policy_id=policy_id,
            epoch=state.epoch,
            timestamp=int(self._clock()),
            block_number=block.number,
            block_hash=block.hash,
            observe_for_ms=self._observe_for_ms,
            tasks=tuple(item.task for item in members),
        )
        relays = {position: item.tenant for position, item in enumerate(members) if item.relay}
        context = await asyncio.to_thread(BatchContext.of, batch, relays)
        if len(set(context.task_ids)) < len(members) or any(task in self._recent for task in context.task_ids):
            await self._separate(members, context)
            return
        now = batch.timestamp
        self._recent = {task: at for task, at in self._recent.items() if at >= now - 2} | dict.fromkeys(context.task_ids, now)
        assert quorum_of(state.pins, policy_id) is not None
        payload = wire.encode_batch(batch, relays)
        rows = [
            TaskRow(
                context.task_ids[position],
                item.tenant,
                context.id,
                payload if position == 0 else b"",
                position,
                item.request_key,
                item.request_hash,
                "submitted",
                None,
                now,
                now + limits.RESULT_WITHIN_S,
            )
            for position, item in enumerate(members)
        ]
        if not await self._store.add_tasks(rows):  # another replica, or this one before a restart, has sent one of them this second
            await self._next_second(now)
            await self._publish(key, members)
            return
        self._on_batch(context, state)
        self._sent.setdefault(key, []).append(context.id)
        await self.send(context, payload)
        _BATCH_TASKS.observe(len(members))
        for position, item in enumerate(members):
            if not item.submitted.done():
                item.submitted.set_result(Submitted(context, position, state))

    async def send(self, context: BatchContext, payload: bytes) -> None:
        """Publish a batch that was recorded. Doing it twice changes nothing: readers know the batch by its content."""
        envelope = seal(
            self._signer,
            kind=Kind.TASK_BATCH,
            chain_id=context.batch.chain_id,
            sender=self._signer.public_key,
            payload=payload,
            batch_id=context.id,
        )
        await self._bus.publish(topics.TASKS, context.id, envelope)

    async def _next_second(self, now: int) -> None:
        await asyncio.sleep(max(0.0, now + 1.01 - self._clock()))

    async def _separate(self, members: list[Asked], context: BatchContext) -> None:
        """The same action asked for twice within a second would be one task with two salts: the later one waits for the next second."""
        now = int(self._clock())
        first: dict[Hash32, Asked] = {}
        again: list[Asked] = []
        for item, task in zip(members, context.task_ids, strict=True):
            if task in first or task in self._recent:
                again.append(item)
            else:
                first[task] = item
        key = (context.batch.chain_id, context.batch.policy_id)
        if first:
            await self._publish(key, list(first.values()))
        await self._next_second(now)
        await self._publish(key, again)


def new_salt() -> Hash32:
    """32 random bytes that salt a task's evidence."""
    return Hash32(secrets.token_bytes(32))
