"""Key → partition is Kafka's, bit for bit; partition → member keeps topics of equal counts together."""

from __future__ import annotations

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.partitioner import murmur2 as reference_murmur2
from hypothesis import given
from hypothesis import strategies as st

from placet.core.bus.partitioner import murmur2, partition_for, range_assignment
from placet.core.bus.records import TopicPartition


@pytest.mark.parametrize(
    ("key", "signed"),
    [  # org.apache.kafka.common.utils.UtilsTest#testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_kafkas_own_test_vectors(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed % 2**32


@given(st.binary(max_size=100))
def test_murmur2_agrees_with_the_client_library(key: bytes) -> None:
    assert murmur2(key) == reference_murmur2(key) % 2**32


@given(st.binary(max_size=40), st.integers(1, 100))
def test_a_partition_is_always_in_range(key: bytes, count: int) -> None:
    assert 0 <= partition_for(key, count) < count


members = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4), st.sets(st.sampled_from(["s", "t", "u"]), min_size=1), min_size=1, max_size=7
)


@given(members, st.integers(1, 20), st.integers(1, 20))
def test_20_range_deals_every_partition_once_and_keeps_numbers_together(wanted: dict[str, set[str]], count: int, other: int) -> None:
    counts = {"s": count, "t": count, "u": other}
    shares = range_assignment(wanted, counts)
    for topic in {topic for topics in wanted.values() for topic in topics}:
        dealt = sorted(at.partition for share in shares.values() for at in share if at.topic == topic)
        assert dealt == list(range(counts[topic]))
    if all({"s", "t"} <= topics for topics in wanted.values()):
        for share in shares.values():
            assert {at.partition for at in share if at.topic == "s"} == {at.partition for at in share if at.topic == "t"}


@given(members, st.integers(1, 13))
def test_the_in_process_bus_deals_as_the_client_library_does(wanted: dict[str, set[str]], count: int) -> None:
    cluster = ClusterMetadata()
    cluster._partitions = {topic: dict.fromkeys(range(count)) for topic in "stu"}
    theirs = RangePartitionAssignor.assign(
        cluster, {member: RangePartitionAssignor.metadata(sorted(topics)) for member, topics in wanted.items()}
    )
    ours = range_assignment(wanted, dict.fromkeys("stu", count))
    for member, share in ours.items():
        assert share == {TopicPartition(topic, number) for topic, numbers in theirs[member].assignment for number in numbers}
