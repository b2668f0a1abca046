"""Starting the streams: the tail of the log into the hub, and the pool that reads the past."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from prometheus_client import REGISTRY

from mev.bus.batch import Batch
from mev.bus.kafka import Brokers
from mev.bus.tail import Tail
from mev.realtime.hub import Hub
from mev.realtime.limits import Limits
from mev.realtime.past import Pool
from mev.wire.registry import EventType

_PENDING_HANDOVERS = 4


@asynccontextmanager
async def running_hub(
    types: Mapping[str, EventType], brokers: Brokers, limits: Limits, *, log: str, replays: int, timeout_s: float
) -> AsyncIterator[Hub]:
    """Yield a hub that is fed with what is published; `log` names the log that its offsets are of."""
    past = Pool(brokers, limit=replays, timeout_s=timeout_s)
    hub = Hub(types, limits, REGISTRY, log=log, past=past)
    handover = _Handover(asyncio.get_running_loop(), hub)
    tail = Tail(brokers, [type_.topic for type_ in types.values()], handover.deliver, timeout_s=timeout_s)
    try:
        hub.begin(await asyncio.to_thread(tail.start))
        yield hub
    finally:
        await asyncio.to_thread(tail.close)
        hub.close()
        await hub.settled()
        await past.close()


class _Handover:
    """Takes batches from the tail's thread into the event loop, a few at a time: a busy loop slows the reading, not the memory."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hub: Hub) -> None:
        self._loop = loop
        self._hub = hub
        self._room = threading.Semaphore(_PENDING_HANDOVERS)

    def deliver(self, batches: list[Batch]) -> None:
        """Hand `batches` over, waiting while too many are under way. Called in the tail's thread."""
        self._room.acquire()
        self._loop.call_soon_threadsafe(self._push, batches)

    def _push(self, batches: list[Batch]) -> None:
        self._room.release()
        for batch in batches:
            self._hub.push(batch)
