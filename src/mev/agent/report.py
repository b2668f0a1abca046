"""Publishing of reports: signed, numbered, and buffered until acknowledged by the brokers.

Answers to commands are buffered in order, up to a limit; of status reports only the newest. Runs in
the event loop.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from mev.agent.folder import DurableCounter
from mev.bus.kafka import PublishError, QueueFullError
from mev.core.clock import Clock
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.wire.pb.control_pb2 import Report
from mev.wire.registry import KafkaRecord

LOG = logging.getLogger(__name__)
Publish = Callable[[list[KafkaRecord]], Awaitable[None]]
_KEPT_ANSWERS = 10_000
_RETRY_S = 0.5


class Reporter:
    """Signs and publishes reports in batches.

    `sent` receives the ids of commands whose answers were acknowledged.
    """

    def __init__(
        self,
        key: SigningKey,
        counter: DurableCounter,
        publish: Publish,
        sent: Callable[[set[str]], None],
        clock: Clock,
    ) -> None:
        self._key = key
        self._counter = counter
        self._publish = publish
        self._sent = sent
        self._clock = clock
        self._answers: deque[Report] = deque(maxlen=_KEPT_ANSWERS)
        self._status: Report | None = None
        self._due = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.published = 0

    def answer(self, report: Report) -> None:
        """Send an answer to a command."""
        self._answers.append(report)
        self._wake()

    def status(self, report: Report) -> None:
        """Send a status report; it replaces a waiting one."""
        self._status = report
        self._wake()

    @property
    def waiting(self) -> int:
        """Return the number of unacknowledged reports."""
        return len(self._answers) + (self._status is not None)

    async def run(self) -> None:
        """Publish reports until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            batch, self._status = [*self._answers, *([self._status] if self._status else [])], None
            self._answers.clear()
            await self._deliver(batch)
            if not self.waiting:
                self._idle.set()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all reports are acknowledged; return whether they are."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _deliver(self, batch: list[Report]) -> None:
        """Publish `batch` until it succeeds; duplicates have the same number."""
        records = await asyncio.to_thread(self._seal, batch)
        while True:
            try:
                await self._publish(records)
                break
            except (PublishError, QueueFullError) as error:
                LOG.debug("reports wait: %s", error.detail, extra={"action": "reports_wait"})
                await asyncio.sleep(_RETRY_S)
        self.published += len(batch)
        self._sent({report.command_id for report in batch if report.command_id})

    def _seal(self, batch: list[Report]) -> list[KafkaRecord]:
        records: list[KafkaRecord] = []
        for report in batch:
            report.agent_counter = self._counter.next()
            report.reported_at_ns = self._clock()
            records.append(
                {
                    "key": report.agent_id.encode(),
                    "value": seal(report, self._key).SerializeToString(),
                }
            )
        return records

    def _wake(self) -> None:
        self._idle.clear()
        self._due.set()
