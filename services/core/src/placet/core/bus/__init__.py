"""The message bus: one interface, two implementations. See `interface` for what both promise."""

from placet.core.bus.errors import BusError, BusUnavailable, Closed, Fenced, NotAssigned, NotPermitted, RecordTooLarge, UnknownTopic
from placet.core.bus.inprocess import InProcessBroker, InProcessBus
from placet.core.bus.interface import Bus, PartitionsCallback, Subscription
from placet.core.bus.records import Headers, Record, RecordId, TopicPartition, next_offsets
from placet.core.bus.snapshot import Snapshot

__all__ = [
    "Bus",
    "BusError",
    "BusUnavailable",
    "Closed",
    "Fenced",
    "Headers",
    "InProcessBroker",
    "InProcessBus",
    "NotAssigned",
    "NotPermitted",
    "PartitionsCallback",
    "Record",
    "RecordId",
    "RecordTooLarge",
    "Snapshot",
    "Subscription",
    "TopicPartition",
    "UnknownTopic",
    "next_offsets",
]
