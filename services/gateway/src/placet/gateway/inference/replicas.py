"""Replicas of the inference service: found by name, asked every second what they are and have."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from placet.core.errors import Unavailable
from placet.core.gen import hub_pb2_grpc, inference_pb2_grpc
from placet.core.gen import inference_pb2 as pb
from placet.core.rpc_errors import from_rpc
from placet.core.types import Hash32

log = logging.getLogger(__name__)

_POLL_S = 1.0
_RESOLVE_S = 5.0
_ANSWER_S = 2.0
_STALE_S = 5.0
"""A replica that has not answered for so long is not asked for anything."""
_MAX_MESSAGE_BYTES = 64 << 20
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(eq=False)
class Replica:
    """One replica, as it was last heard."""

    address: str
    channel: grpc.aio.Channel
    inference: Any
    hub: Any
    said: pb.DescribeResponse | None = None
    heard_at: float = float("-inf")
    sent: int = 0
    """Requests of this gateway that run there now: what the replica said of itself is a second old."""
    models: Mapping[Hash32, pb.LoadedModel] = field(default_factory=dict)


class Replicas:
    """All replicas behind some names."""

    def __init__(self, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._names = tuple(names)
        self._clock = clock
        self._found: dict[str, Replica] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Look once, and go on looking."""
        await self._resolve()
        await asyncio.gather(*(self._ask(replica) for replica in self._found.values()))
        for work in (self._resolving(), self._polling()):
            self._tasks.add(asyncio.create_task(work))

    async def stop(self) -> None:
        """Close every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for replica in self._found.values():
            await replica.channel.close()

    def living(self) -> list[Replica]:
        """Replicas that answered lately and are not about to stop."""
        now = self._clock()
        return [r for r in self._found.values() if r.said is not None and not r.said.draining and now - r.heard_at <= _STALE_S]

    def any(self) -> Replica:
        """One of them, for the hub: they share its database. Raises Unavailable."""
        living = sorted(self.living(), key=lambda replica: replica.sent)
        if not living:
            raise Unavailable("no replica of the inference service answers")
        return living[0]

    async def _resolving(self) -> None:
        while True:
            await asyncio.sleep(_RESOLVE_S)
            await self._resolve()

    async def _resolve(self) -> None:
        """Every address behind every name: a headless service has one for each replica."""
        addresses: set[str] = set()
        loop = asyncio.get_running_loop()
        for name in self._names:
            host, _, port = name.rpartition(":")
            try:
                found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            except OSError as error:
                log.warning("inference %s: %s", name, error)
                addresses |= {address for address in self._found if address.endswith(f":{port}")}  # what was known is kept
                continue
            addresses |= {f"[{entry[4][0]}]:{port}" if ":" in str(entry[4][0]) else f"{entry[4][0]}:{port}" for entry in found}
        for address in addresses - self._found.keys():
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
            stubs = inference_pb2_grpc.InferenceServiceStub(channel), hub_pb2_grpc.HubServiceStub(channel)  # type: ignore[no-untyped-call]
            self._found[address] = Replica(address, channel, *stubs)
        for address in self._found.keys() - addresses:
            replica = self._found.pop(address)
            closing = asyncio.create_task(replica.channel.close(grace=60))
            self._tasks.add(closing)
            closing.add_done_callback(self._tasks.discard)

    async def _polling(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            await asyncio.gather(*(self._ask(replica) for replica in list(self._found.values())))

    async def _ask(self, replica: Replica) -> None:
        try:
            said = await replica.inference.Describe(pb.DescribeRequest(), timeout=_ANSWER_S)
        except grpc.aio.AioRpcError as error:
            if replica.said is not None and not isinstance(from_rpc(error), Unavailable):
                log.warning("inference %s: %s", replica.address, error.code())
            return
        replica.said, replica.heard_at = said, self._clock()
        replica.models = {Hash32(model.model_sha256): model for model in said.models if len(model.model_sha256) == 32}
