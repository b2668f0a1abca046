"""Request bodies to acknowledged Kafka messages, on the embedded broker in a process of its own."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import repeat
from typing import Any, cast

import uvloop
from confluent_kafka import Producer

from bench import events
from bench.children import Pipe, child, wait_for_end
from bench.harness import Clock, Row, Setting, Side, Sides
from mev.bus.embedded import EmbeddedBroker
from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.ingest.service import Ingest
from mev.wire import codec

EVENTS = 1000
_BODIES = 300
_IN_FLIGHT = 4
_QUEUE_MESSAGES = 500_000
_QUEUE_KBYTES = 262_144
_LINGER_MS = 2.0
_TIMEOUT_S = 30.0


@contextmanager
def broker() -> Iterator[Brokers]:
    """Run an embedded broker in another process."""
    with child(_broker) as pipe:
        yield pipe.recv()


def _broker(pipe: Pipe) -> None:
    with closing(EmbeddedBroker(timeout_s=_TIMEOUT_S)) as running:
        pipe.send(running.brokers)
        wait_for_end(pipe)


@contextmanager
def _protobuf(_: Setting) -> Iterator[Sides]:
    values = [event.SerializeToString() for event in events.opportunities(EVENTS)]
    with _sides(events.protobuf_body(values), codec.PROTOBUF) as sides:
        yield sides


@contextmanager
def _json(_: Setting) -> Iterator[Sides]:
    with _sides(events.json_body(events.opportunities(EVENTS)), codec.JSON) as sides:
        yield sides


@contextmanager
def _sides(body: bytes, content_type: str) -> Iterator[Sides]:
    with (
        broker() as brokers,
        closing(_producer(brokers)) as producer,
        closing(_publisher(brokers)) as publisher,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        ingest = Ingest(publisher, max_record_bytes=900_000)

        def ours() -> float:
            started = time.perf_counter()
            runner.run(_take_all(ingest, body, content_type))
            return _BODIES * EVENTS / (time.perf_counter() - started)

        yield Sides(_bare(producer), ours)


def _publisher(brokers: Brokers) -> Publisher:
    return Publisher(brokers, queue_messages=_QUEUE_MESSAGES, queue_kbytes=_QUEUE_KBYTES, linger_ms=_LINGER_MS, timeout_s=_TIMEOUT_S)


async def _take_all(ingest: Ingest, body: bytes, content_type: str) -> None:
    bodies = repeat(body, _BODIES)

    async def client() -> None:
        for each in bodies:
            await ingest.take(events.EVENT.name, each, content_type)

    await asyncio.gather(*(client() for _ in range(_IN_FLIGHT)))


def _producer(brokers: Brokers) -> Producer:
    """Return a producer configured as :class:`Publisher` configures its own."""
    return Producer(
        brokers.config(
            enable_idempotence=True,
            linger_ms=_LINGER_MS,
            message_timeout_ms=int(_TIMEOUT_S * 1000),
            queue_buffering_max_messages=_QUEUE_MESSAGES,
            queue_buffering_max_kbytes=_QUEUE_KBYTES,
        )
    )


def _bare(producer: Producer) -> Side:
    """Return a side that publishes ready records and waits for the last one."""
    records = cast("list[dict[str, Any]]", [events.EVENT.record(event) for event in events.opportunities(EVENTS)])

    def side() -> float:
        started = time.perf_counter()
        for _ in range(_BODIES):
            if producer.produce_batch(events.EVENT.topic, records) < EVENTS:
                raise RuntimeError("the producer's queue is full")
        if producer.flush(_TIMEOUT_S):
            raise RuntimeError("messages were not acknowledged")
        return _BODIES * EVENTS / (time.perf_counter() - started)

    return side


def _row(name: str, ours: str, opened: Callable[[Setting], Any], expected: float | None) -> Row:
    return Row(
        name=name,
        unit="events/s",
        ours=ours,
        baseline="librdkafka's produce_batch of ready records, then flush, configured the same",
        clock=Clock.WALL,
        open=opened,
        expected_ratio=expected,
    )


ROWS = (
    _row("publish_protobuf", "Protobuf bodies of 1,000 events, 4 in flight, to acknowledged messages", _protobuf, 0.6),
    _row("publish_json", "JSON bodies of 1,000 events, 4 in flight, to acknowledged messages", _json, None),
)
