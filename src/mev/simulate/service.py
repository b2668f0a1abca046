"""Publishing what the simulated market makes, at its rate or as fast as it is taken."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice

from mev.bus.publisher import Publisher
from mev.core.errors import UnavailableError
from mev.simulate.model import Market
from mev.wire.registry import EVENT_TYPES, EventType, Record

_BATCHES_PER_S = 20
_UNPACED = 1000
_TYPES: dict[str, EventType] = {event.descriptor.full_name: event for event in EVENT_TYPES.values()}
_PAUSE_S = 0.2


def batches(market: Market, opportunities: int | None, *, paced: bool) -> Iterator[dict[EventType, list[Record]]]:
    """Yield records by event type, up to `opportunities` in all: a twentieth of a second of `market` at a time when `paced`, else many."""
    size = max(1, round(market.rate_per_s / _BATCHES_PER_S)) if paced else _UNPACED
    steps = islice(iter(market), opportunities)
    while chunk := list(islice(steps, size)):
        records: dict[EventType, list[Record]] = defaultdict(list)
        for messages in chunk:
            for message in messages:
                event = _TYPES[message.DESCRIPTOR.full_name]
                records[event].append(event.record(message))
        yield records


def publish(market: Market, publisher: Publisher, opportunities: int | None, *, paced: bool, progress: Callable[[int], None]) -> None:
    """Publish `market` from a thread, in real time when `paced`; `progress` hears how many opportunities are acknowledged."""
    started, done = time.monotonic(), 0
    for records in batches(market, opportunities, paced=paced):
        for event, batch in records.items():
            publisher.publish_and_wait(event.topic, batch)
        done += len(records[EVENT_TYPES["opportunity"]])
        progress(done)
        if paced:
            time.sleep(max(0.0, started + done / market.rate_per_s - time.monotonic()))


async def demonstrate(market: Market, publisher: Publisher) -> None:
    """Publish `market` in real time until cancelled; what the brokers do not take is left out."""
    started, done = time.monotonic(), 0
    for records in batches(market, None, paced=True):
        try:
            await asyncio.gather(*(publisher.publish(event.topic, batch) for event, batch in records.items()))
        except UnavailableError:
            await asyncio.sleep(_PAUSE_S)
        done += len(records[EVENT_TYPES["opportunity"]])
        await asyncio.sleep(max(0.0, started + done / market.rate_per_s - time.monotonic()))
