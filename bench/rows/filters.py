"""Cost of a filter per event, against decoding the event alone."""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson

from bench import events
from bench.harness import Clock, Row, RowFigures, RowInput, Side, Sides, rate
from mev.wire.filters import MAX_KEYS, Columns, Filter, parse
from mev.wire.pb.events_pb2 import Opportunity

EVENTS = 256
"""In a block: as many as a frame has at most."""
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@contextmanager
def _compare(_: RowInput) -> Iterator[Sides]:
    block = events.opportunities(EVENTS)
    values = _encoded(block)
    yield Sides(_decode(values), _new_block(_comparison(block), values), _cost)


@contextmanager
def _keys(_: RowInput) -> Iterator[Sides]:
    block = events.opportunities(EVENTS)
    values, condition = _encoded(block), _key_set(block)
    started = time.process_time()
    chosen = parse([condition], [events.EVENT])
    parse_ms = (time.process_time() - started) * 1000

    def notes(figures: RowFigures) -> list[str]:
        return [
            *_cost(figures),
            (
                f"{parse_ms:.0f} ms to parse the condition, {len(condition) / 1e6:.1f} MB of text,"
                " once"
            ),
        ]

    yield Sides(_decode(values), _new_block(chosen, values), notes)


@contextmanager
def _shared(_: RowInput) -> Iterator[Sides]:
    block = events.opportunities(EVENTS)
    values, chosen = _encoded(block), _comparison(block)
    columns = Columns(events.EVENT, values)
    yield Sides(_decode(values), _rate(lambda: chosen.select(columns)))


def _encoded(block: list[Opportunity]) -> list[bytes]:
    return [event.SerializeToString() for event in block]


def _comparison(block: list[Opportunity]) -> Filter:
    """Return a filter that half of the events pass."""
    middle = round(statistics.median(event.expected_profit_lamports for event in block))
    return parse([f"expected_profit_lamports >= {middle}"], [events.EVENT])


def _key_set(block: list[Opportunity]) -> str:
    """Return a condition with the maximum number of addresses, which matches half of the events."""
    draw = random.Random(1)
    known = [event.id for event in block[::2]]
    others = ("".join(draw.choices(_BASE58, k=44)) for _ in range(MAX_KEYS - len(known)))
    return f"id in {orjson.dumps([*known, *others]).decode()}"


def _decode(values: list[bytes]) -> Side:
    return _rate(lambda: list(map(Opportunity.FromString, values)))


def _new_block(chosen: Filter, values: list[bytes]) -> Side:
    if len(chosen.select(Columns(events.EVENT, values)) or ()) != EVENTS // 2:
        raise RuntimeError("not half of the events were selected")
    return _rate(lambda: chosen.select(Columns(events.EVENT, values)))


def _rate(work: Callable[[], object]) -> Side:
    return lambda: rate(work, EVENTS, clock=Clock.CPU)


def _cost(figures: RowFigures) -> list[str]:
    cost_ns = statistics.median(figures.costs_us) * 1000
    decode_ns = 1e9 / statistics.median(figures.baseline)
    return [
        (
            f"{cost_ns:.0f} ns an event more than the {decode_ns:.0f} ns of decoding it,"
            f" {cost_ns / decode_ns:.2f} of that"
        )
    ]


ROWS = (
    Row(
        name="filter_compare",
        unit="events/s",
        ours="a block of 256 events through a filter of one comparison, checks included",
        baseline="the Protobuf library's parser on the same events",
        clock=Clock.CPU,
        open=_compare,
        expected_ratio=0.75,
    ),
    Row(
        name="filter_keys",
        unit="events/s",
        ours="the same through a filter of one list of 100,000 strings",
        baseline="the same",
        clock=Clock.CPU,
        open=_keys,
        expected_ratio=0.75,
    ),
    Row(
        name="filter_shared",
        unit="events/s",
        ours="the same block through one more filter, of a field that another one has asked for",
        baseline="the same",
        clock=Clock.CPU,
        open=_shared,
        expected_ratio=10,
    ),
)
