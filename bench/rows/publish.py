"""Request bodies to acknowledged Kafka messages, on the embedded broker in a process of its own."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import uvloop
from confluent_kafka import Producer

from bench import events
from bench.children import Pipe, child, wait_for_end
from bench.harness import Clock, Row, RowInput, Side, Sides, rate
from bench.rows.codec import convert
from mev.bus.embedded import EmbeddedBroker
from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.ingest.raw_route import Ingest
from mev.wire import codec
from mev.wire.times import TimeBounds

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
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(EmbeddedBroker(Path(folder), timeout_s=_TIMEOUT_S)) as running,
    ):
        pipe.send(running.brokers)
        wait_for_end(pipe)


@contextmanager
def _protobuf(_: RowInput) -> Iterator[Sides]:
    values = [event.SerializeToString() for event in events.opportunities(EVENTS)]
    with (
        broker() as brokers,
        _bare(brokers) as bare,
        _whole(brokers, events.protobuf_body(values), codec.PROTOBUF) as ours,
    ):
        yield Sides(bare, ours)


@contextmanager
def _json(_: RowInput) -> Iterator[Sides]:
    with (
        broker() as brokers,
        _bare(brokers) as bare,
        _whole(brokers, _json_body(), codec.JSON) as ours,
    ):
        yield Sides(bare, ours)


@contextmanager
def _json_against_parsing(_: RowInput) -> Iterator[Sides]:
    body = _json_body()
    with broker() as brokers, _whole(brokers, body, codec.JSON) as ours:
        yield Sides(
            lambda: rate(lambda: convert(body), EVENTS, clock=Clock.WALL, at_least_s=1), ours
        )


def _json_body() -> bytes:
    return events.json_body(events.opportunities(EVENTS))


@contextmanager
def _whole(brokers: Brokers, body: bytes, content_type: str) -> Iterator[Side]:
    """Give a side that takes bodies as the HTTP endpoint does."""
    with (
        closing(_publisher(brokers)) as publisher,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        ingest = Ingest(
            publisher,
            max_record_bytes=900_000,
            times=TimeBounds(earliest_ns=1, ahead_s=3600),
        )

        def side() -> float:
            started = time.perf_counter()
            runner.run(_take_all(ingest, body, content_type))
            return _BODIES * EVENTS / (time.perf_counter() - started)

        yield side


def _publisher(brokers: Brokers) -> Publisher:
    return Publisher(
        brokers,
        queue_messages=_QUEUE_MESSAGES,
        queue_kbytes=_QUEUE_KBYTES,
        linger_ms=_LINGER_MS,
        timeout_s=_TIMEOUT_S,
    )


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


@contextmanager
def _bare(brokers: Brokers) -> Iterator[Side]:
    """Give a side that publishes ready records and waits for the last one."""
    records = cast(
        "list[dict[str, Any]]",
        [events.EVENT.record(event) for event in events.opportunities(EVENTS)],
    )
    with closing(_producer(brokers)) as producer:

        def side() -> float:
            started = time.perf_counter()
            for _ in range(_BODIES):
                if producer.produce_batch(events.EVENT.topic, records) < EVENTS:
                    raise RuntimeError("the producer's queue is full")
            if producer.flush(_TIMEOUT_S):
                raise RuntimeError("messages were not acknowledged")
            return _BODIES * EVENTS / (time.perf_counter() - started)

        yield side


def _row(
    name: str,
    content: str,
    baseline: str,
    opened: Callable[[RowInput], Any],
    expected: float | None,
) -> Row:
    return Row(
        name=name,
        unit="events/s",
        ours=f"{content} bodies of 1,000 events, {_IN_FLIGHT} in flight, to acknowledged messages",
        baseline=baseline,
        clock=Clock.WALL,
        open=opened,
        expected_ratio=expected,
    )


_PRODUCE = "librdkafka's produce_batch of ready records, then flush, configured the same"
_PARSE = "orjson.loads, then the Protobuf library, on the same body"
ROWS = (
    _row("publish_protobuf", "Protobuf", _PRODUCE, _protobuf, 0.6),
    _row("publish_json", "JSON", _PRODUCE, _json, None),
    _row("publish_json_parse", "JSON", _PARSE, _json_against_parsing, 0.8),
)
