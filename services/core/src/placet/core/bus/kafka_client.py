"""What every Kafka client here has in common: how to reach the brokers, its errors as ours, and an end that is one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from aiokafka import AIOKafkaProducer
from aiokafka import TopicPartition as KafkaTopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    GroupAuthorizationFailedError,
    ProducerClosed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from placet.core.bus.errors import BusError, BusUnavailable, Closed, NotPermitted, UnknownTopic
from placet.core.bus.records import Record, TopicPartition

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSettings:
    """How to reach the brokers. File names are read when the bus starts; the password is never printed."""

    bootstrap_servers: str
    client_id: str = "placet"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    session_timeout_ms: int = 30_000
    """How long the group waits for a member it does not hear from; also how long a static member may be away."""
    heartbeat_interval_ms: int = 1_000
    """Bounds how long a rebalance takes to be noticed."""
    rebalance_timeout_ms: int = 60_000
    """How long the group waits for a member's callbacks; set above the longest handler."""
    max_poll_interval_ms: int = 300_000
    metadata_max_age_ms: int = 10_000
    request_timeout_ms: int = 10_000
    connect_timeout_s: float = 10.0
    publish_timeout_s: float = 30.0
    commit_timeout_s: float = 30.0
    read_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.bootstrap_servers:
            raise ValueError("bootstrap_servers is empty: name at least one broker as host:port")
        if self.heartbeat_interval_ms * 3 > self.session_timeout_ms:
            raise ValueError("heartbeat_interval_ms must be at most a third of session_timeout_ms")
        if self.security_protocol.startswith("SASL") and (self.sasl_username is None or self.sasl_password is None):
            raise ValueError(f"{self.security_protocol} needs sasl_username and sasl_password")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")

    def ssl_context(self) -> ssl.SSLContext | None:
        """Reads the certificate files (blocking)."""
        if self.security_protocol not in ("SSL", "SASL_SSL"):
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context

    def client_options(self, context: ssl.SSLContext | None) -> dict[str, Any]:
        """What every aiokafka client takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "client_id": self.client_id,
            "security_protocol": self.security_protocol,
            "ssl_context": context,
            "metadata_max_age_ms": self.metadata_max_age_ms,
            "request_timeout_ms": self.request_timeout_ms,
        }
        if self.security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        return options


def typed_error(error: Exception, doing: str) -> BusError:
    """The bus error for an error of the client library."""
    if isinstance(error, BusError):
        return error
    if isinstance(error, TopicAuthorizationFailedError | GroupAuthorizationFailedError):
        return NotPermitted(f"{doing}: {error}")
    if isinstance(error, UnknownTopicOrPartitionError):
        return UnknownTopic(f"{doing}: the broker does not have it; `placet topics apply` creates what is missing")
    if isinstance(error, ConsumerStoppedError | ProducerClosed):
        return Closed(f"{doing}: the client was closed")
    if isinstance(error, TimeoutError):
        return BusUnavailable(f"{doing}: no answer in time")
    return BusUnavailable(f"{doing}: {type(error).__name__}: {error}")


async def stop_client(client: Any) -> None:
    """Stops a client; never raises and never takes long, whatever state it is in.

    While a broker is away the library's own `stop` may wait for it, or end with the CancelledError of one of its inner tasks and leave
    its connections open; those are closed here then.
    """
    stopping = asyncio.create_task(client.stop())
    done, _ = await asyncio.wait({stopping}, timeout=_CLOSE_TIMEOUT_S)
    if done and not stopping.cancelled() and stopping.exception() is None:
        return
    stopping.cancel()
    log.warning(
        "a Kafka client did not close by itself: %s",
        "no end in time" if not done else "cancelled" if stopping.cancelled() else repr(stopping.exception()),
    )
    connections = client.client if isinstance(client, AIOKafkaProducer) else client._client
    with contextlib.suppress(Exception):
        await asyncio.wait_for(connections.close(), _CLOSE_TIMEOUT_S)


def to_kafka(at: TopicPartition) -> KafkaTopicPartition:
    return KafkaTopicPartition(at.topic, at.partition)


def records_of(fetched: Mapping[KafkaTopicPartition, list[Any]]) -> list[Record]:
    return [
        Record(m.topic, m.partition, m.offset, m.key, m.value, tuple(m.headers), m.timestamp) for batch in fetched.values() for m in batch
    ]
