"""Readers of a partition with a batch that cannot be parsed say so; the sink is not ready then."""

from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import REGISTRY

from mev.broker import log as log_module
from mev.bus import progress
from mev.bus.batch import PartitionBatch
from mev.bus.follow import Followed, PartitionFollower
from mev.bus.kafka import Brokers
from mev.bus.progress import ReadProgress
from mev.bus.tail import Tail
from mev.core.errors import UnavailableError
from mev.sink.block import InsertBlock
from mev.sink.partition import BlockLimits
from mev.sink.readiness import check_sink
from mev.sink.service import Sink
from mev.sink.writer import Writer
from tests.services.broker_thread import broker_thread
from tests.services.waits import until
from tests.unit.broker.client import batch

TOPIC = "events"
TIMEOUT_S = 10.0
UNREADABLE = batch(content=b"\xff" * 40)


def stuck() -> float:
    return REGISTRY.get_sample_value("mev_bus_stuck_total", {"topic": TOPIC}) or 0.0


def test_progress_names_a_partition_once_until_it_moves(caplog: pytest.LogCaptureFixture) -> None:
    now, at, before = 0.0, (TOPIC, 0), stuck()
    watch = ReadProgress(stuck_s=30, clock=lambda: now)
    for now, following, expected in [
        (0, 5, 0), (29, 5, 0), (30, 5, 1), (99, 5, 1), (100, 6, 1), (129, 6, 1), (131, 6, 2),
        (200, 9, 2), (300, 9, 2),
    ]:  # fmt: skip
        watch.note(at, following, 9)
        assert stuck() - before == expected, now
    assert "events[0]: offsets 5 to 8 are published" in caplog.text


def test_tail_and_follower_count_a_partition_that_they_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "problem", lambda *_: "")
    monkeypatch.setattr(progress, "STUCK_S", 0.5)
    batches, followed = list[PartitionBatch](), list[Followed]()
    with broker_thread(tmp_path) as running:
        running.broker.topics.create(TOPIC, 1)
        tail = Tail(running.brokers, [TOPIC], batches.extend, timeout_s=TIMEOUT_S)
        follower = PartitionFollower(TOPIC, followed.append, lambda _: None, timeout_s=TIMEOUT_S)
        with closing(tail), closing(follower):
            tail.start()
            follower.follow(running.brokers, 0)
            running.append(TOPIC, 0, batch())
            until(lambda: batches and followed)
            before = stuck()
            running.append(TOPIC, 0, UNREADABLE)
            until(lambda: stuck() >= before + 2, what="the readers did not notice")


class Stored:
    """A writer that keeps the values."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def prepare(self) -> None:
        pass

    def write(self, block: InsertBlock) -> None:
        self.values += block.values


def opened(brokers: Brokers, stored: Stored) -> Sink:
    sink = Sink(
        brokers,
        [TOPIC],
        cast("Writer", stored),
        limits=BlockLimits(rows=100, size_bytes=1 << 20, age_s=0.01),
        buffer_bytes=1 << 20,
        insert_threads=1,
        retry_max_s=0.1,
        timeout_s=TIMEOUT_S,
        stall_s=0.8,
    )
    sink.start()
    return sink


def is_ready(sink: Sink) -> bool:
    try:
        check_sink(sink)
    except UnavailableError:
        return False
    return True


@pytest.mark.slow
def test_sink_is_not_ready_while_it_cannot_read_a_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Stored()
    with monkeypatch.context() as patch, broker_thread(tmp_path) as running:
        patch.setattr(log_module, "problem", lambda *_: "")
        running.broker.topics.create(TOPIC, 1)
        running.append(TOPIC, 0, batch(payload=b"one"))
        sink = opened(running.brokers, stored)
        until(lambda: stored.values == [b"one"] and is_ready(sink))
        running.append(TOPIC, 0, UNREADABLE)
        until(lambda: sink.stalled == {(TOPIC, 0)}, what="the sink did not notice")
        with pytest.raises(UnavailableError, match=r"no message of events\[0\] is read"):
            check_sink(sink)
        sink.close(TIMEOUT_S)
    # The broker replaces what is damaged: nothing is left to read, and the sink is ready.
    with broker_thread(tmp_path) as running:
        sink = opened(running.brokers, stored)
        until(lambda: is_ready(sink) and sink._watch._progress.still())
        running.append(TOPIC, 0, batch(payload=b"two"))
        until(lambda: stored.values == [b"one", b"two"])
        assert is_ready(sink)
        sink.close(TIMEOUT_S)
