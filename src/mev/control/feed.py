"""From the control and report topics into the service, in the event loop."""

import asyncio
import threading

from mev.bus.batch import Batch
from mev.bus.errors import BrokerUnavailableError
from mev.bus.kafka import Brokers
from mev.bus.tail import Tail
from mev.control.service import Control
from mev.wire.topics import CONTROL, REPORT

_PENDING = 64
_AT = (CONTROL, 0)


class Feed:
    """Follows every replica's and agent's messages and gives them to `control`: orders from the first one that is kept on, reports from
    `since_ms` on. Two clients, so that no flood of reports stands before an order.
    """

    def __init__(self, brokers: Brokers, control: Control, *, since_ms: int, timeout_s: float) -> None:
        self._control = control
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(_PENDING)
        self._came = asyncio.Event()
        self._orders = Tail(brokers, (CONTROL,), self._deliver, timeout_s=timeout_s, from_beginning=(CONTROL,))
        # An embedded broker has none from before, and cannot look for a time.
        since = {} if brokers.embedded else {REPORT: since_ms}
        self._reports = Tail(brokers, (REPORT,), self._deliver, timeout_s=timeout_s, since_ms=since)

    async def start(self) -> None:
        """Begin to follow orders, and return when all are read that were there.

        :raises BrokerUnavailableError: when the brokers do not give them.
        """
        starts = await asyncio.to_thread(self._orders.start)
        end, start = self._orders.ends.get(_AT, 0), starts.get(_AT, 0)
        self._control.control_offset = max(self._control.control_offset, min(start, end))
        while self._control.control_offset < end:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), self._timeout_s)
            except TimeoutError:
                offset = self._control.control_offset
                raise BrokerUnavailableError(f"{CONTROL} has {end} messages and was read up to {offset}", retry_after_s=5) from None

    def start_reports(self) -> None:
        """Begin to follow reports. Blocks until the topic is found."""
        self._reports.start()

    def close(self) -> None:
        """Stop following."""
        self._orders.close()
        self._reports.close()

    def _deliver(self, batches: list[Batch]) -> None:
        self._room.acquire()
        self._loop.call_soon_threadsafe(self._push, batches)

    def _push(self, batches: list[Batch]) -> None:
        self._room.release()
        for batch in batches:
            late_below = self._reports.ends.get((batch.topic, batch.partition), 0)
            late_at_ns = batch.timestamp_ms * 1_000_000
            for offset, value in zip(batch.offsets, batch.values, strict=True):
                self._control.received(value, late_at_ns if offset < late_below else 0)
            if batch.topic == CONTROL:
                self._control.control_offset = batch.offsets[-1] + 1
                self._came.set()
