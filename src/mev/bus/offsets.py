"""How far a consumer group has come, beside what the brokers hold."""

from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaException, TopicPartition

from mev.bus.errors import BrokerUnavailableError
from mev.bus.kafka import Brokers, Position

Offsets = dict[Position, tuple[int, int, int]]


def group_offsets(member: Consumer, partitions: list[TopicPartition], *, timeout_s: float) -> Offsets:
    """Return (earliest, latest, committed) of `partitions` for the group of `member`; never committed counts as the earliest. Blocks."""
    offsets = {}
    for at in member.committed(partitions, timeout=timeout_s):
        earliest, latest = member.get_watermark_offsets(at, timeout=timeout_s)
        offsets[at.topic, at.partition] = earliest, latest, max(at.offset, earliest)
    return offsets


def all_group_offsets(brokers: Brokers, group: str, topics: Iterable[str], *, timeout_s: float) -> Offsets:
    """Return :func:`group_offsets` of every partition of `topics`. Blocks.

    :raises BrokerUnavailableError: when the brokers do not answer.
    """
    member = Consumer(brokers.config(group_id=group, enable_auto_commit=False))
    try:
        found = [(topic, member.list_topics(topic, timeout=timeout_s).topics[topic].partitions) for topic in topics]
        return group_offsets(member, [TopicPartition(topic, number) for topic, numbers in found for number in numbers], timeout_s=timeout_s)
    except KafkaException as error:
        raise BrokerUnavailableError(f"offsets cannot be read: {error.args[0].str()}", retry_after_s=5) from None
    finally:
        member.close()
