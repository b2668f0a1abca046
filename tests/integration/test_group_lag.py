"""Tests of the lag of a consumer group, read from the brokers."""

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from mev.bus.kafka import Brokers
from mev.bus.lag import group_lag
from tests.integration.brokers import BOTH, TIMEOUT_S, new_topic, opened


@pytest.fixture(params=BOTH)
def brokers(request: pytest.FixtureRequest) -> Iterator[Brokers]:
    with opened(request) as found:
        yield found


def test_lag_counts_uncommitted_messages_and_the_age_of_the_oldest(brokers: Brokers) -> None:
    topic, group = new_topic(brokers), f"group-{time.time_ns()}"
    now_ms = time.time_ns() // 1_000_000
    producer = Producer(brokers.config())
    for number, age_s in enumerate((900, 600, 300, 1)):
        producer.produce(topic, b"%d" % number, partition=1, timestamp=now_ms - age_s * 1000)
    producer.produce(topic, b"stored", partition=0)
    producer.flush(TIMEOUT_S)
    with closing(Consumer(brokers.config(group_id=group, enable_auto_commit=False))) as member:
        positions = [TopicPartition(topic, 1, 1), TopicPartition(topic, 0, 1)]
        member.commit(offsets=positions, asynchronous=False)

    found = {
        each.partition: each for each in group_lag(brokers, group, [topic], timeout_s=TIMEOUT_S)
    }
    assert {number: each.messages for number, each in found.items()} == {0: 0, 1: 3, 2: 0, 3: 0}
    assert found[0].seconds == 0
    assert found[1].committed == 1
    assert found[1].seconds is not None
    assert 590 < found[1].seconds < 899
