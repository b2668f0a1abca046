"""A request body to Kafka records, against the parsers alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import orjson

from bench import events
from bench.harness import Clock, Row, Setting, Side, Sides, rate
from mev.wire import codec
from mev.wire.pb.events_pb2 import Opportunity

EVENTS = 1000
_MAX_RECORD_BYTES = 900_000


@contextmanager
def _json(_: Setting) -> Iterator[Sides]:
    body = events.json_body(events.opportunities(EVENTS))
    yield Sides(lambda: rate(lambda: convert(body), EVENTS, clock=Clock.CPU), _encode(body, codec.JSON))


def convert(body: bytes) -> list[bytes]:
    """Convert a JSON body with the libraries alone."""
    return [Opportunity(**event).SerializeToString() for event in orjson.loads(body)]


@contextmanager
def _protobuf(_: Setting) -> Iterator[Sides]:
    values = [event.SerializeToString() for event in events.opportunities(EVENTS)]
    parse = Opportunity.FromString

    def baseline() -> None:
        for value in values:
            parse(value)

    yield Sides(lambda: rate(baseline, EVENTS, clock=Clock.CPU), _encode(events.protobuf_body(values), codec.PROTOBUF))


def _encode(body: bytes, content_type: str) -> Side:
    encoder = codec.Encoder(events.EVENT, max_record_bytes=_MAX_RECORD_BYTES)

    def work() -> None:
        encoded = codec.Encoded()
        encoder.encode(codec.split(body, content_type), content_type, encoded)
        if len(encoded.records) != EVENTS:
            raise RuntimeError(f"records were refused: {encoded.rejected[:1]}")

    return lambda: rate(work, EVENTS, clock=Clock.CPU)


ROWS = (
    Row(
        name="json_bridge",
        unit="events/s",
        ours="a JSON body of 1,000 events to checked Kafka records",
        baseline="orjson.loads, then the Protobuf library, on the same body",
        clock=Clock.CPU,
        open=_json,
        expected_ratio=0.8,
    ),
    Row(
        name="protobuf_passthrough",
        unit="events/s",
        ours="a Protobuf body of 1,000 events to checked Kafka records",
        baseline="the Protobuf library's parser on the same messages, split before",
        clock=Clock.CPU,
        open=_protobuf,
    ),
)
