"""Creating topics on Apache Kafka, and finding those that differ from what is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    TopicAlreadyExistsError,
    for_code,
)

from placet.core.bus.kafka_client import KafkaSettings, typed_error
from placet.core.bus.quiet import quiet
from placet.core.topics import TOPICS, Topic

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.1


async def apply_topics(settings: KafkaSettings, topics: Mapping[str, Topic] = TOPICS) -> list[str]:
    """Creates the topics that are missing and sets the configuration of those that are there. Returns what was done, a line each.

    Never changes a partition count (keys would move): a wrong one raises ValueError. Raises BusUnavailable, NotPermitted.
    """
    quiet("aiokafka")
    context = await asyncio.to_thread(settings.ssl_context)
    admin = AIOKafkaAdminClient(**settings.client_options(context))
    try:
        await asyncio.wait_for(admin.start(), settings.connect_timeout_s)
        cluster = await admin.describe_cluster()
        brokers = len(cluster["brokers"])
        existing = {row["topic"]: len(row["partitions"]) for row in await admin.describe_topics()}
        wrong = [
            f"{t.name} has {existing[t.name]} partitions, not {t.partitions}"
            for t in topics.values()
            if existing.get(t.name, t.partitions) != t.partitions
        ]
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}: a partition count is fixed at creation")
        missing = [t for t in topics.values() if t.name not in existing]
        done = []
        if missing:
            answer = await admin.create_topics(
                [NewTopic(t.name, t.partitions, min(t.replication, brokers), topic_configs=t.config()) for t in missing]
            )
            for name, code, *rest in answer.topic_errors:  # errors stand in the answer, the library raises none
                if code and for_code(code) is not TopicAlreadyExistsError:
                    raise typed_error(for_code(code)(rest[0] if rest else ""), f"creating {name}")
            done += [f"created {t.name} with {t.partitions} partitions" for t in missing]
            await asyncio.wait_for(_until_led(admin, {t.name for t in missing}), settings.connect_timeout_s)
        present = [t for t in topics.values() if t.name in existing]
        if present:
            # Not incremental: whatever is not sent falls back to the broker's default, so all of a topic's settings go.
            answers = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, t.name, t.config()) for t in present])
            for code, text, _, name in (row for answer in answers for row in answer.resources):
                if code:
                    raise typed_error(for_code(code)(text), f"configuring {name}")
            done += [f"configured {t.name}" for t in present]
        return done
    except (KafkaError, OSError, TimeoutError, KeyError) as error:
        raise typed_error(error, f"applying topics at {settings.bootstrap_servers}") from error
    finally:
        with contextlib.suppress(Exception):
            await admin.close()


async def _until_led(admin: Any, names: set[str]) -> None:
    """Returns when every partition of the new topics has a leader, as this broker knows it: creation is answered before."""
    while True:
        rows = [row for row in await admin.describe_topics() if row["topic"] in names]
        if len(rows) == len(names) and all(partition["leader"] >= 0 for row in rows for partition in row["partitions"]):
            return
        await asyncio.sleep(_RETRY_S / 2)
