"""Publishing of a simulated market, in real time or as fast as possible."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice

from mev.bus.publisher import Publisher
from mev.core.clock import now_ns
from mev.core.errors import UnavailableError
from mev.core.tasks import background
from mev.simulate.model import Market
from mev.wire.registry import EVENT_TYPES, EventType, KafkaRecord

_BATCHES_PER_S = 20
_UNPACED = 1000
_TYPES: dict[str, EventType] = {event.descriptor.full_name: event for event in EVENT_TYPES.values()}
_PAUSE_S = 0.2
_DEMO_RATE_PER_S = 20.0


def batches(
    market: Market, opportunities: int | None, *, paced: bool
) -> Iterator[dict[EventType, list[KafkaRecord]]]:
    """Yield batches of records by event type, up to `opportunities` in all.

    When `paced`, a batch covers a twentieth of a second of `market`; otherwise it is larger.
    """
    size = max(1, round(market.rate_per_s / _BATCHES_PER_S)) if paced else _UNPACED
    steps = islice(iter(market), opportunities)
    while chunk := list(islice(steps, size)):
        records: dict[EventType, list[KafkaRecord]] = defaultdict(list)
        for messages in chunk:
            for message in messages:
                event = _TYPES[message.DESCRIPTOR.full_name]
                records[event].append(event.record(message))
        yield records


def publish(
    market: Market,
    publisher: Publisher,
    opportunities: int | None,
    *,
    paced: bool,
    progress: Callable[[int], None],
) -> None:
    """Publish `market` from a thread, in real time when `paced`.

    `progress` is called with the number of acknowledged opportunities.
    """
    started, done = time.monotonic(), 0
    for records in batches(market, opportunities, paced=paced):
        for event, batch in records.items():
            publisher.publish_and_wait(event.topic, batch)
        done += len(records[EVENT_TYPES["opportunity"]])
        progress(done)
        if paced:
            time.sleep(max(0.0, started + done / market.rate_per_s - time.monotonic()))


@asynccontextmanager
async def running_demo(publisher: Publisher) -> AsyncIterator[None]:
    """Publish a simulated market in real time until the context ends."""
    market = Market(now_ns(), _DEMO_RATE_PER_S, now_ns())
    async with background(_publish_live(market, publisher)):
        yield


async def _publish_live(market: Market, publisher: Publisher) -> None:
    """Publish `market` in real time until cancelled; refused records are dropped."""
    started, done = time.monotonic(), 0
    for records in batches(market, None, paced=True):
        try:
            await asyncio.gather(
                *(publisher.publish(event.topic, batch) for event, batch in records.items())
            )
        except UnavailableError:
            await asyncio.sleep(_PAUSE_S)
        done += len(records[EVENT_TYPES["opportunity"]])
        await asyncio.sleep(max(0.0, started + done / market.rate_per_s - time.monotonic()))
