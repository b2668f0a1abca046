"""Following one partition, on a real broker."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka import Producer

from mev.bus.follow import PartitionFollower
from mev.bus.kafka import Brokers, BrokerUnavailableError
from tests.services.embedded import TemporaryBroker
from tests.services.waits import until
from tests.unit.agent.site import Read

TOPIC = "followed"
TIMEOUT_S = 10.0


class Broker:
    """A broker, and a way to put messages on it."""

    def __init__(self) -> None:
        self.embedded = TemporaryBroker(timeout_s=TIMEOUT_S)
        self.brokers = self.embedded.brokers
        self._producer = Producer(self.brokers.config())

    def put(self, *values: bytes, partition: int = 0) -> None:
        """Put messages on a partition."""
        for value in values:
            self._producer.produce(TOPIC, value, partition=partition)
        assert self._producer.flush(TIMEOUT_S) == 0

    def close(self) -> None:
        """End it."""
        self.embedded.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    """Give a broker."""
    with closing(Broker()) as found:
        yield found


@pytest.fixture
def read() -> Read:
    """Give what a follower delivered."""
    return Read()


@pytest.fixture
def follower(read: Read) -> Iterator[PartitionFollower]:
    """Give a follower that does not read yet."""
    with closing(
        PartitionFollower(TOPIC, read.deliver, read.down.append, timeout_s=TIMEOUT_S)
    ) as found:
        yield found


def test_it_reads_one_partition_from_an_offset_on(
    broker: Broker, follower: PartitionFollower, read: Read
) -> None:
    broker.put(b"0", b"1", b"2")
    broker.put(b"elsewhere", partition=1)
    follower.follow(broker.brokers, 1)
    until(lambda: len(read.values) == 2)
    broker.put(b"3")
    until(lambda: len(read.values) == 3)
    assert read.values == [b"1", b"2", b"3"]
    assert set(read.lost) == {0}
    assert read.down == []


def test_an_offset_that_is_not_there_is_reported(
    broker: Broker, follower: PartitionFollower, read: Read
) -> None:
    broker.put(b"0")
    follower.follow(broker.brokers, 7)
    until(lambda: read.down)
    assert "offset 7 is not there" in read.down[0]
    follower.follow(broker.brokers, 0)
    until(lambda: read.values == [b"0"])


def test_it_moves_to_other_brokers(broker: Broker, follower: PartitionFollower, read: Read) -> None:
    follower.follow(broker.brokers, 0)
    broker.put(b"here")
    until(lambda: read.values == [b"here"])
    broker.close()
    until(lambda: read.down)
    with closing(Broker()) as other:
        follower.follow(other.brokers, 0)
        other.put(b"there")
        until(lambda: read.values == [b"here", b"there"])
        follower.close()


def test_brokers_that_are_not_there_are_refused(follower: PartitionFollower, read: Read) -> None:
    quick = PartitionFollower(TOPIC, read.deliver, read.down.append, timeout_s=0.2)
    with pytest.raises(BrokerUnavailableError):
        quick.follow(Brokers(servers="127.0.0.1:1"), 0)
    quick.close()
