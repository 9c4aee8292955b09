"""What can go wrong on the bus, as types. Texts name the remedy; none holds a record's content."""

from __future__ import annotations


class BusError(Exception):
    """Root of every error this package raises."""


class BusUnavailable(BusError):
    """The broker could not be reached, or did not answer in time. Retrying later may help; a publish may or may not have happened."""


class RecordTooLarge(BusError):
    """Refused before sending: key, value and headers together exceed the topic's limit."""

    def __init__(self, topic: str, size: int, limit: int) -> None:
        super().__init__(f"a record of {size} bytes is larger than {topic} takes ({limit} bytes)")
        self.topic = topic
        self.size = size
        self.limit = limit


class UnknownTopic(BusError):
    """The topic is not in the table, or the broker does not have it (`placet topics apply` creates what is missing)."""


class NotAssigned(BusError):
    """The partition is not, or no longer, assigned to this subscription: another member of the group owns it now."""


class Fenced(NotAssigned):
    """A newer member took this one's static instance id; this one must end."""


class NotPermitted(BusError):
    """The broker's access rules forbid this to this service: its user lacks the ACL for the topic or the group."""


class Closed(BusError):
    """The subscription or the bus was closed."""
