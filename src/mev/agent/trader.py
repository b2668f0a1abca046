"""Opportunities to the strategy, its decisions to the bus: only those that the level in force allows."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mev.agent.level import Level
from mev.agent.link import Link
from mev.agent.strategy import Decision, Strategy
from mev.bus.errors import PublishError, QueueFullError
from mev.wire.pb.events_pb2 import Opportunity
from mev.wire.registry import EVENT_TYPES, EventType, Record

LOG = logging.getLogger(__name__)
TOPIC = EVENT_TYPES["opportunity"].topic
_BY_MESSAGE: dict[str, EventType] = {event.descriptor.full_name: event for event in EVENT_TYPES.values()}


@dataclass(slots=True)
class Counts:
    """What was done since the start. `withheld` decisions were not allowed, `unpublished` ones could not be sent."""

    opportunities: int = 0
    decisions: int = 0
    withheld: int = 0
    unpublished: int = 0
    failures: int = 0


class Trader:
    """Asks `strategy` about every opportunity."""

    def __init__(self, strategy: Strategy, level: Callable[[], Level], link: Link) -> None:
        self._strategy = strategy
        self._level = level
        self._link = link
        self.counts = Counts()

    async def run(self) -> None:
        """Trade until cancelled."""
        while True:
            batches = await self._link.events.get()
            await self._publish(self.decide(value for batch in batches for value in batch.values))

    def decide(self, opportunities: Iterable[bytes]) -> dict[str, list[Record]]:
        """Return what to publish about `opportunities`, by topic."""
        records: dict[str, list[Record]] = {}
        for content in opportunities:
            self.counts.opportunities += 1
            try:
                for decision in self._strategy.on_opportunity(Opportunity.FromString(content)):
                    self._add(decision, records)
            except Exception as error:  # noqa: BLE001 - whatever a strategy raises must not end the agent
                self._failed(error)
        return records

    def _add(self, decision: Decision, records: dict[str, list[Record]]) -> None:
        # Asked for every decision: the level may fall between two of them.
        if self._level() < decision.exposure.value:
            self.counts.withheld += 1
            return
        event = _BY_MESSAGE[decision.event.DESCRIPTOR.full_name]
        records.setdefault(event.topic, []).append(event.record(decision.event))
        self.counts.decisions += 1

    async def _publish(self, records: dict[str, list[Record]]) -> None:
        for topic, batch in records.items():
            try:
                await self._link.publish(topic, batch)
            except (PublishError, QueueFullError) as error:
                self.counts.unpublished += len(batch)
                LOG.warning("%d decisions not published: %s", len(batch), error.detail, extra={"action": "decisions_lost"})

    def _failed(self, error: Exception) -> None:
        self.counts.failures += 1
        if self.counts.failures in {1, 10, 100} or self.counts.failures % 1000 == 0:
            action = {"action": "strategy_failed"}
            LOG.error("the strategy failed, %d times so far", self.counts.failures, exc_info=error, extra=action)
