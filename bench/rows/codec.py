"""A request body to Kafka records, against the parsers alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import orjson

from bench import events
from bench.harness import Clock, Row, RowFigures, RowInput, Side, Sides, rate
from mev.realtime.websocket import protocol
from mev.realtime.websocket.deflate import negotiate
from mev.wire import codec
from mev.wire.encoding import encoder
from mev.wire.pb.events_pb2 import Opportunity
from mev.wire.render import renderer
from mev.wire.times import TimeBounds

EVENTS = 1000
_MAX_RECORD_BYTES = 900_000
_MESSAGES = 100
_MESSAGE_EVENTS = 256


@contextmanager
def _json(_: RowInput) -> Iterator[Sides]:
    body = events.json_body(events.opportunities(EVENTS))
    yield Sides(
        lambda: rate(lambda: convert(body), EVENTS, clock=Clock.CPU), _encode(body, codec.JSON)
    )


def convert(body: bytes) -> list[bytes]:
    """Convert a JSON body with the libraries alone."""
    return [Opportunity(**event).SerializeToString() for event in orjson.loads(body)]


@contextmanager
def _protobuf(_: RowInput) -> Iterator[Sides]:
    values = [event.SerializeToString() for event in events.opportunities(EVENTS)]
    parse = Opportunity.FromString

    def baseline() -> None:
        for value in values:
            parse(value)

    yield Sides(
        lambda: rate(baseline, EVENTS, clock=Clock.CPU),
        _encode(events.protobuf_body(values), codec.PROTOBUF),
    )


def _encode(body: bytes, content_type: str) -> Side:
    ours = encoder(
        events.EVENT,
        max_record_bytes=_MAX_RECORD_BYTES,
        times=TimeBounds(earliest_ns=1, ahead_s=3600),
    )

    def work() -> None:
        encoded = codec.Encoded()
        for _ in ours.encode(body, content_type, encoded):
            pass
        if len(encoded.records) != EVENTS:
            raise RuntimeError(f"records were refused: {encoded.rejected[:1]}")

    return lambda: rate(work, EVENTS, clock=Clock.CPU)


@contextmanager
def _deflate(_: RowInput) -> Iterator[Sides]:
    render = renderer(events.EVENT)
    found = [render(event.SerializeToString()) for event in events.opportunities(_MESSAGE_EVENTS)]
    text = b'{"op":"events","id":"s1","events":[%b],"dropped":0,"queued":0,"lag_ms":0}' % b",".join(
        found
    )
    deflate = negotiate("permessage-deflate")
    if deflate is None:
        raise RuntimeError("the plainest offer is refused")
    packed = deflate.compress(text) or b""

    def ours() -> None:
        for _ in range(_MESSAGES):
            protocol.frame(protocol.Opcode.TEXT, deflate.compress(text) or text, compressed=True)

    def baseline() -> None:
        for _ in range(_MESSAGES):
            protocol.frame(protocol.Opcode.TEXT, text)

    def notes(_: RowFigures) -> Sequence[str]:
        return [f"a message of {len(text)} bytes takes {len(packed)} compressed"]

    yield Sides(
        lambda: rate(baseline, _MESSAGES, clock=Clock.CPU),
        lambda: rate(ours, _MESSAGES, clock=Clock.CPU),
        notes,
    )


ROWS = (
    Row(
        name="json_bridge",
        unit="events/s",
        ours="a JSON body of 1,000 events to checked Kafka records",
        baseline="orjson.loads, then the Protobuf library, on the same body",
        clock=Clock.CPU,
        open=_json,
        expected_ratio=8.0,
    ),
    Row(
        name="json_deflate",
        unit="messages/s",
        ours="a JSON message of 256 rendered events, compressed for one client",
        baseline="the same message, not compressed",
        clock=Clock.CPU,
        open=_deflate,
    ),
    Row(
        name="protobuf_passthrough",
        unit="events/s",
        ours="a Protobuf body of 1,000 events to checked Kafka records",
        baseline="the Protobuf library's parser on the same messages, split before",
        clock=Clock.CPU,
        open=_protobuf,
        expected_ratio=2.5,
    ),
)
