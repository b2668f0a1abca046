"""Trading: opportunities and scores to the strategy, allowed decisions to the bus."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from mev.agent.active_models import ModelInRole
from mev.agent.kafka_clients import KafkaClients
from mev.agent.level import Level
from mev.agent.scoring import MOST_ROWS, ScoredOpportunities, score
from mev.agent.strategy import Decision, Strategy
from mev.bus.kafka import PublishError, QueueFullError
from mev.wire.pb.events_pb2 import Opportunity
from mev.wire.registry import EVENT_TYPES, EventType, KafkaRecord

LOG = logging.getLogger(__name__)
TOPIC = EVENT_TYPES["opportunity"].topic
_BY_MESSAGE: dict[str, EventType] = {
    event.descriptor.full_name: event for event in EVENT_TYPES.values()
}


@dataclass(slots=True)
class DecisionCounts:
    """Counters since the start; `withheld`: not allowed by the level, `unpublished`: not sent."""

    opportunities: int = 0
    decisions: int = 0
    withheld: int = 0
    unpublished: int = 0
    failures: int = 0


class Trader:
    """Calls `strategy` for every opportunity with the score of the model in `place`.

    `decided` receives all opportunities afterwards.
    """

    def __init__(
        self,
        strategy: Strategy,
        level: Callable[[], Level],
        kafka: KafkaClients,
        place: ModelInRole,
        decided: Callable[[ScoredOpportunities], None],
    ) -> None:
        self._strategy = strategy
        self._level = level
        self._kafka = kafka
        self._place = place
        self._decided = decided
        self.counts = DecisionCounts()

    async def run(self) -> None:
        """Trade until cancelled."""
        while True:
            batches = await self._kafka.events.get()
            records, scored = self.decide([value for batch in batches for value in batch.values])
            await self._publish(records)
            for one in scored:
                self._decided(one)

    def decide(
        self, contents: Sequence[bytes]
    ) -> tuple[dict[str, list[KafkaRecord]], list[ScoredOpportunities]]:
        """Return the records to publish, by topic, and the scored opportunities.

        A decision directly follows its score.
        """
        records: dict[str, list[KafkaRecord]] = {}
        scored = []
        for start in range(0, len(contents), MOST_ROWS):
            scored.append(self._score(contents[start : start + MOST_ROWS]))
            for opportunity, each in zip(scored[-1].opportunities, scored[-1].each(), strict=True):
                try:
                    for decision in self._strategy.on_opportunity(opportunity, each):
                        self._add(decision, records)
                except Exception as error:  # noqa: BLE001 - must not end the agent
                    self._failed(error)
        return records, scored

    def _score(self, contents: Sequence[bytes]) -> ScoredOpportunities:
        self.counts.opportunities += len(contents)
        opportunities = []
        for content in contents:
            try:
                opportunities.append(Opportunity.FromString(content))
            except DecodeError as error:
                self._failed(error)
        return score(self._place, opportunities)

    def _add(self, decision: Decision, records: dict[str, list[KafkaRecord]]) -> None:
        # Checked for every decision: the level may fall between two of them.
        if self._level() < decision.exposure.value:
            self.counts.withheld += 1
            return
        event = _BY_MESSAGE[decision.event.DESCRIPTOR.full_name]
        records.setdefault(event.topic, []).append(event.record(decision.event))
        self.counts.decisions += 1

    async def _publish(self, records: dict[str, list[KafkaRecord]]) -> None:
        for topic, batch in records.items():
            try:
                await self._kafka.publish(topic, batch)
            except (PublishError, QueueFullError) as error:
                self.counts.unpublished += len(batch)
                LOG.warning(
                    "%d decisions not published: %s",
                    len(batch),
                    error.detail,
                    extra={"action": "decisions_lost"},
                )

    def _failed(self, error: Exception) -> None:
        self.counts.failures += 1
        if self.counts.failures in {1, 10, 100} or self.counts.failures % 1000 == 0:
            action = {"action": "strategy_failed"}
            LOG.error(
                "the strategy failed, %d times so far",
                self.counts.failures,
                exc_info=error,
                extra=action,
            )
