"""From the control and report topics into the service, in the event loop."""

import asyncio
import threading

from mev.bus.batch import Batch
from mev.bus.kafka import Brokers
from mev.bus.tail import Tail
from mev.control.service import Control
from mev.wire.topics import CONTROL, REPORT

_PENDING = 64


class Feed:
    """Follows every replica's and agent's messages and gives them to `control`."""

    def __init__(self, brokers: Brokers, control: Control, *, timeout_s: float) -> None:
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(_PENDING)
        self._tail = Tail(brokers, (CONTROL, REPORT), self._deliver, timeout_s=timeout_s, from_beginning=(CONTROL,))

    def start(self) -> None:
        """Begin to follow. Blocks until the topics are found."""
        self._tail.start()

    def close(self) -> None:
        """Stop following."""
        self._tail.close()

    def _deliver(self, batches: list[Batch]) -> None:
        self._room.acquire()
        self._loop.call_soon_threadsafe(self._push, batches)

    def _push(self, batches: list[Batch]) -> None:
        self._room.release()
        for batch in batches:
            for value in batch.values:
                self._control.received(value)
            if batch.topic == CONTROL:
                self._control.control_offset = batch.offsets[-1] + 1
