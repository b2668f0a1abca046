"""Detection of stalled partitions from the offsets of the brokers."""

from collections.abc import Mapping
from contextlib import closing

from mev.bus.group import Offsets
from mev.bus.kafka import Position
from mev.sink.stall_detector import StallDetector
from tests.services.waits import until

AT = ("events", 0)


class FakeBrokers:
    """A partition with offsets behind the committed one, with or without messages."""

    def __init__(self, *, is_empty: bool) -> None:
        self.committed = 3
        self.is_empty = is_empty
        self.asked = 0

    def offsets(self) -> Offsets:
        self.asked += 1
        return {AT: (0, 9, self.committed)}

    def without_messages(self, positions: Mapping[Position, int]) -> frozenset[Position]:
        return frozenset(positions) if self.is_empty else frozenset()


def started(brokers: FakeBrokers) -> StallDetector:
    detector = StallDetector(brokers.offsets, brokers.without_messages, stall_s=0.04)
    detector.start()
    return detector


def test_partition_without_progress_is_stalled_and_stuck_until_it_moves() -> None:
    brokers = FakeBrokers(is_empty=False)
    with closing(started(brokers)) as detector:
        until(lambda: detector.still == {AT})
        detector.forget(detector.still)
        assert detector.stuck == {AT}
        until(lambda: detector.still == {AT})
        assert detector.stuck == {AT}
        brokers.committed = 4
        until(lambda: not detector.stuck)


def test_partition_with_offsets_of_lost_messages_only_is_not_stalled() -> None:
    brokers = FakeBrokers(is_empty=True)
    with closing(started(brokers)) as detector:
        until(lambda: brokers.asked > 10)
        assert detector.still == frozenset()
        detector.forget(frozenset({AT}))
        until(lambda: not detector.stuck)
