"""Consumers of the control and report topics, which pass messages to the service's event loop."""

import asyncio
import time
from collections import deque

from mev.bus.batch import PartitionBatch
from mev.bus.kafka import Brokers, BrokerUnavailableError
from mev.bus.tail import Tail
from mev.control.service import Control
from mev.core.tasks import Handover
from mev.wire.topics import CONTROL, REPORT

_PENDING = 64
_PENDING_REPORTS = 2
_SLICE_S = 0.004
_AT = (CONTROL, 0)


class Feed:
    """Passes messages of all replicas and agents to `control`.

    Commands are read from the first one retained, reports from `since_ms`. There are two clients,
    so that a flood of reports does not delay commands. Reports take at most half of the event loop,
    in slices of a few milliseconds, so that they do not delay requests: anyone with the agents'
    Kafka password can send them.
    """

    def __init__(
        self, brokers: Brokers, control: Control, *, since_ms: int, timeout_s: float
    ) -> None:
        self._control = control
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._order_handover = Handover(self._push, _PENDING)
        self._report_handover = Handover(self._push_reports, _PENDING_REPORTS)
        self._waiting: deque[tuple[bytes, int] | None] = deque()
        """Reports read, each with its arrival time if it is late; None ends a delivery."""
        self._is_taking = False
        self._came = asyncio.Event()
        self._orders = Tail(
            brokers,
            (CONTROL,),
            self._order_handover.put,
            timeout_s=timeout_s,
            from_beginning=(CONTROL,),
        )
        self._reports = Tail(
            brokers,
            (REPORT,),
            self._report_handover.put,
            timeout_s=timeout_s,
            since_ms={REPORT: since_ms},
        )

    async def start(self) -> None:
        """Start to follow commands; return once all existing ones have been read.

        :raises BrokerUnavailableError: if the brokers do not deliver them.
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
                raise BrokerUnavailableError(
                    f"{CONTROL} has {end} messages and was read up to {offset}", retry_after_s=5
                ) from None

    def start_reports(self) -> None:
        """Start to follow reports; blocks until the topic is found."""
        self._reports.start()

    def close(self) -> None:
        """Stop following the topics."""
        self._orders.close()
        self._reports.close()

    def _push(self, batches: list[PartitionBatch]) -> None:
        self._order_handover.release()
        for batch in batches:
            for value in batch.values:
                self._control.received(value)
            self._control.control_offset = batch.offsets[-1] + 1
            self._came.set()

    def _push_reports(self, batches: list[PartitionBatch]) -> None:
        for batch in batches:
            late_below = self._reports.ends.get((batch.topic, batch.partition), 0)
            late_at_ns = batch.timestamp_ms * 1_000_000
            read = zip(batch.offsets, batch.values, strict=True)
            self._waiting.extend(
                (value, late_at_ns if offset < late_below else 0) for offset, value in read
            )
        self._waiting.append(None)
        if not self._is_taking:
            self._is_taking = True
            self._take_reports()

    def _take_reports(self) -> None:
        """Apply reports for one time slice, then pause for as long."""
        until = time.perf_counter() + _SLICE_S
        while self._waiting:
            if (waiting := self._waiting.popleft()) is None:
                self._report_handover.release()
            else:
                self._control.received(*waiting)
            if time.perf_counter() >= until:
                self._loop.call_later(_SLICE_S, self._take_reports)
                return
        self._is_taking = False
