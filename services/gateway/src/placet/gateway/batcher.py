"""Grouping waiting tasks into signed TaskBatches: one (chain, policy) a queue, closed when the oldest has waited a few milliseconds.

A lone task does not wait when nothing else is queued. The reference block and the clients' pins are read when a batch closes, so the epoch
and the policies in it are those of one block.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from placet.core import limits, topics, wire
from placet.core.batch import BatchContext
from placet.core.bus import Bus, BusError
from placet.core.bus.tracing import batch as batch_span
from placet.core.db import DATABASE_ERRORS
from placet.core.envelope import BusSigner, Kind, seal
from placet.core.errors import Internal, PlacetError, RateLimited, Unavailable, WrongPolicy
from placet.core.evm.reader import BlockState, ChainReader
from placet.core.evm.rpc import Block, RpcError
from placet.core.telemetry import metrics, names
from placet.core.types import Hash32, Task, TaskBatch
from placet.gateway.store import Store, TaskRow

log = logging.getLogger(__name__)

_AWAY: tuple[type[Exception], ...] = (BusError, RpcError, *DATABASE_ERRORS)
_OPEN_BATCHES = 2
"""Of one policy: more wait for one of them to be decided, as long as `_GATHER_AT_MOST_S`."""
_GATHER_AT_MOST_S = 0.25
_TASK_FRAMING_BYTES = 5
"""A field's tag, and a length below 256 MiB."""
_BATCH_FRAMING_BYTES = 1024
"""What a batch holds beside its tasks."""

_BATCH_TASKS = metrics.histogram("placet_gateway_batch_tasks", "Tasks a batch.", [], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))


class TakenElsewhere(Exception):
    """Another replica made this attempt of the same request into a task; nothing was recorded here."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One task waiting to be batched."""

    chain_id: int
    policy_id: Hash32
    task: Task
    tenant: str
    request_key: Hash32
    request_hash: Hash32
    attempt: int
    relay: bool
    submitted: asyncio.Future[Submitted]
    trace: Context = field(default_factory=otel_context.get_current)
    size: int = field(init=False)
    """Bytes it takes in an encoded batch."""

    def __post_init__(self) -> None:
        size = wire.task_to_pb(self.task, self.tenant if self.relay else None).ByteSize() + _TASK_FRAMING_BYTES
        object.__setattr__(self, "size", size)


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
        self._waiting_of: Counter[str] = Counter()

    async def submit(self, asked: Asked) -> Submitted:
        """Queue a task and wait until its batch is published.

        Raises:
            RateLimited: too many tasks are in hand.
            WrongPolicy: the client changed its policy meanwhile.
            Unavailable: node, database or bus do not answer.
            TakenElsewhere: another replica was faster with the same request.
        """
        # Places are shared: a tenant gets another one while it has fewer than are left. Nobody takes the last of everybody's.
        if self._waiting_of[asked.tenant] >= self._max_waiting - self._waiting_of.total():
            raise RateLimited("too many tasks are in hand; try again in a moment")
        key = (asked.chain_id, asked.policy_id)
        if sum(item.size for item in self._queues.get(key, ())) + asked.size > limits.MAX_BATCH_BYTES - _BATCH_FRAMING_BYTES:
            self._close(key)  # who reads a batch refuses a larger one, whole
        queue = self._queues.setdefault(key, [])
        queue.append(asked)
        self._waiting_of[asked.tenant] += 1
        try:
            if len(queue) >= limits.MAX_TASKS_PER_BATCH:
                self._close(key)
            elif len(queue) == 1:
                loop = asyncio.get_running_loop()
                idle = loop.time() - self._last_closed.get(key, float("-inf")) > self._wait_s
                loop.call_later(0 if idle else self._wait_s, self._close_when_due, key, queue, loop.time())
            return await asked.submitted
        finally:
            self._waiting_of[asked.tenant] -= 1
            if not self._waiting_of[asked.tenant]:
                del self._waiting_of[asked.tenant]

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
        with batch_span(names.BATCH, [item.trace for item in queue]):
            await self._or_tell(self._publish(key, queue), queue)

    @staticmethod
    async def _or_tell(publishing: Awaitable[None], concerned: list[Asked]) -> None:
        """Whatever goes wrong, those who wait are told."""
        failure: Exception
        try:
            await publishing
            return
        except PlacetError as error:
            failure = error
        except _AWAY as error:
            log.warning("a batch could not be published: %s", error)
            failure = Unavailable(f"{type(error).__name__}: try again")
        except Exception:
            log.exception("a batch could not be published")
            failure = Internal("the batch could not be published")
        for item in concerned:
            if not item.submitted.done():
                item.submitted.set_exception(failure)

    async def _publish(self, key: tuple[int, Hash32], queue: list[Asked]) -> None:
        chain_id, policy_id = key
        reader = self._chains[chain_id]
        block = await reader.latest_block(self._back.get(chain_id, 0))
        state = await reader.at(block.hash, clients=[item.task.policy_client for item in queue])
        by_quorum: dict[int, list[Asked]] = {}
        for item in queue:
            pins = state.pins.get(item.task.policy_client)
            if item.submitted.done():
                continue
            if pins is None or pins.policy_id != policy_id:
                item.submitted.set_exception(WrongPolicy("the client changed its policy meanwhile; ask again", field="/policyClient"))
            else:
                by_quorum.setdefault(pins.quorum_bps, []).append(item)
        # One threshold a batch: what one client demands of operators is not demanded for another's task.
        batches = (self._or_tell(self._publish_members(key, block, state, members), members) for members in by_quorum.values())
        await asyncio.gather(*batches)

    async def _publish_members(self, key: tuple[int, Hash32], block: Block, state: BlockState, members: list[Asked]) -> None:
        chain_id, policy_id = key
        batch = TaskBatch(
            chain_id=chain_id,
            validator=self._chains[chain_id].deployment.validator,
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
        now = batch.timestamp
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
                attempt=item.attempt,
            )
            for position, item in enumerate(members)
        ]
        if taken := await self._store.add_tasks(rows):
            for position in taken:
                if not members[position].submitted.done():
                    members[position].submitted.set_exception(TakenElsewhere())
            if rest := [item for position, item in enumerate(members) if position not in taken]:
                await self._publish_members(key, block, state, rest)
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


def new_salt() -> Hash32:
    """32 random bytes that salt a task's evidence and its id: the same action asked for twice in a second is two tasks."""
    return Hash32(secrets.token_bytes(32))
