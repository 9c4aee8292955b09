"""Key → partition, and partition → member: the same two functions for every bus.

`partition_for` is Kafka's default partitioner (murmur2, sign bit cleared, modulo), so that records written by any other Kafka
client with the same key land in the same place. `range_assignment` is Kafka's RangeAssignor: members of a group that subscribe to
the same topics of equal partition counts get the same partition numbers of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from placet.core.bus.records import TopicPartition

_MASK = 0xFFFFFFFF
_M = 0x5BD1E995


@lru_cache(maxsize=8192)
def murmur2(data: bytes) -> int:
    """The 32-bit hash of org.apache.kafka.common.utils.Utils.murmur2, as an unsigned number."""
    length = len(data)
    h = 0x9747B28C ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if length > whole:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


def partition_for(key: bytes, partitions: int) -> int:
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def range_assignment(members: Mapping[str, Iterable[str]], partitions: Mapping[str, int]) -> dict[str, frozenset[TopicPartition]]:
    """Shares the partitions of every topic among the members that subscribe to it.

    `members` maps a member's id to its topics, `partitions` a topic to its partition count. Members are taken in order of id; the
    first `count % members` get one partition more.
    """
    wanted = {member: frozenset(topics) for member, topics in members.items()}
    shares: dict[str, set[TopicPartition]] = {member: set() for member in wanted}
    for topic in sorted(frozenset().union(*wanted.values())):
        takers = sorted(member for member, topics in wanted.items() if topic in topics)
        each, extra = divmod(partitions[topic], len(takers))
        start = 0
        for place, member in enumerate(takers):
            count = each + (1 if place < extra else 0)
            shares[member].update(TopicPartition(topic, number) for number in range(start, start + count))
            start += count
    return {member: frozenset(share) for member, share in shares.items()}
