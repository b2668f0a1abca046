"""Replay rate of a lossless subscription, against the Kafka client alone on the same log.

The embedded broker runs in another process and is filled to its retention. Each pass begins with a
new consumer and ends with the last event. The subscription's connection accepts every frame at once
and discards it.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import uvloop
from confluent_kafka import Consumer, Producer, TopicPartition

from bench import events
from bench.harness import Clock, Row, RowInput, Sides
from bench.rows.publish import broker
from mev.bus.kafka import PARTITIONS, Brokers, KafkaCluster
from mev.bus.replay import OffsetRange, Replay
from mev.realtime.batch import EncodedFrame, Encoding
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.realtime.options import Earliest, OnSlow, SubscriptionOptions
from mev.realtime.replay_pool import ReplayPool
from mev.wire.filters import Filter
from mev.wire.registry import EVENT_TYPES

_TOPIC = events.EVENT.topic
_KEPT_BYTES = 4 << 20  # of a partition: less than the broker would drop
_PASSES = 5  # in one round
_READ_MESSAGES = 1000
_TIMEOUT_S = 30.0
_LOOK_S = 0.001


@contextmanager
def _open(_: RowInput) -> Iterator[Sides]:
    with broker() as brokers, _catching_up(brokers) as catching_up:
        total = _fill(brokers)

        def bare() -> float:
            started = time.perf_counter()
            for _ in range(_PASSES):
                _consume(brokers, total)
            return _PASSES * total / (time.perf_counter() - started)

        def ours() -> float:
            started = time.perf_counter()
            for _ in range(_PASSES):
                catching_up.run(total)
            return _PASSES * total / (time.perf_counter() - started)

        yield Sides(bare, ours)


def _fill(brokers: Brokers) -> int:
    """Publish as much as the broker keeps; return how many events that is."""
    KafkaCluster(brokers, timeout_s=_TIMEOUT_S).ensure_topics([_TOPIC])
    values = [event.SerializeToString() for event in events.opportunities(_READ_MESSAGES)]
    count = _KEPT_BYTES * len(values) // sum(map(len, values))
    with closing(Producer(brokers.config(linger_ms=5))) as producer:
        for partition in range(PARTITIONS):
            for number in range(count):
                producer.produce(_TOPIC, values[number % len(values)], b"key", partition)
            producer.flush(_TIMEOUT_S)
    with closing(Replay(brokers, timeout_s=_TIMEOUT_S)) as replay:
        if set(replay.bounds([_TOPIC]).values()) != {OffsetRange(0, count)}:
            raise RuntimeError("the broker has not kept everything")
    return count * PARTITIONS


def _consume(brokers: Brokers, total: int) -> None:
    """Read everything with the settings of :class:`Replay`."""
    config = brokers.config(
        group_id="bench",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        queued_max_messages_kbytes=4096,
    )
    with closing(Consumer(config)) as consumer:
        consumer.assign([TopicPartition(_TOPIC, number, 0) for number in range(PARTITIONS)])
        while total > 0:
            # Not `consume` alone: it waits for as many messages as it was asked for.
            first = consumer.poll(_TIMEOUT_S)
            if first is None:
                raise RuntimeError("the log cannot be read")
            total -= len(
                [message.value() for message in (first, *consumer.consume(_READ_MESSAGES - 1, 0))]
            )


class _CatchingUp:
    """Subscribes from the earliest event until all have been sent."""

    def __init__(self, pool: ReplayPool, runner: asyncio.Runner) -> None:
        self._pool = pool
        self._runner = runner

    def run(self, total: int) -> None:
        """Do it once, in a hub of its own."""
        self._runner.run(self._run(total))

    async def _run(self, total: int) -> None:
        hub = Hub(EVENT_TYPES, HubLimits(), replay_pool=self._pool)
        client = hub.admit(_Taking(), Encoding.PROTOBUF, "bench")
        reader = self._pool.reader()
        beginning = await reader.begin(Earliest(), [events.EVENT], "")
        hub.begin({at: bounds.latest for at, bounds in beginning.bounds.items()})
        terms = SubscriptionOptions(
            topics=frozenset({events.EVENT.name}), filter=Filter(), on_slow=OnSlow.LOSSLESS
        )
        hub.subscribe_from(client, "b", terms, dict(beginning.positions), self._pool, reader)
        async with asyncio.timeout(_TIMEOUT_S):
            while self._pool.open:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(_LOOK_S)
        if client.sent != total:
            raise RuntimeError(f"{client.sent} of {total} events were sent")
        hub.release(client)
        hub.close()


class _Taking:
    """A connection that is never behind."""

    transport = "websocket"

    def send_text(self, text: bytes, resume: str = "") -> None:
        """Take a message."""
        del resume  # it is in the text

    def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
        """Take a frame."""

    def send_datagram(self, payload: bytes) -> None:
        """Take a datagram."""

    def datagram_bytes(self) -> int:
        """Say that there are none."""
        return 0

    def backlog(self) -> int:
        """Say that nothing waits."""
        return 0

    def taken(self) -> int:
        """Say nothing of it."""
        return 0

    def ping(self) -> None:
        """Be there."""

    def close(self, code: int, reason: str) -> None:
        """Go."""

    def abort(self, code: int, reason: str) -> None:
        """Go."""


@contextmanager
def _catching_up(brokers: Brokers) -> Iterator[_CatchingUp]:
    pool = ReplayPool(brokers, limit=1, timeout_s=_TIMEOUT_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield _CatchingUp(pool, runner)
        runner.run(pool.close())


ROW = Row(
    name="catch_up",
    unit="events/s",
    ours="a lossless subscription from the earliest event of a full log to the live end",
    baseline="librdkafka's consume of the same log, configured the same",
    clock=Clock.WALL,
    open=_open,
)
