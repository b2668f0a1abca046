"""Scores of the shadow model beside the production scores, for a share of the opportunities.

It scores in a separate thread with a bounded queue, and does not delay or affect decisions.
"""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from mev.agent.active_models import ModelInRole
from mev.agent.scoring import ScoredOpportunities, score
from mev.bus.kafka import PublishError, QueueFullError
from mev.core.clock import Clock
from mev.core.tasks import in_thread
from mev.wire.pb.events_pb2 import Score
from mev.wire.registry import EVENT_TYPES, KafkaRecord

LOG = logging.getLogger(__name__)
EVENT = EVENT_TYPES["score"]
_MOST_WAITING = 65_536
"""Opportunities that wait for the shadow model; batches differ in size with the load."""


class Shadow:
    """Scores decided opportunities with the model in `place`, and publishes the scores."""

    def __init__(
        self,
        agent_id: str,
        place: ModelInRole,
        publish: Callable[[str, list[KafkaRecord]], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._agent_id = agent_id
        self._place = place
        self._publish = publish
        self._clock = clock
        self._waiting: deque[ScoredOpportunities] = deque()
        self._waiting_count = 0
        self._due = asyncio.Event()
        self.published = 0

    def offer(self, decided: ScoredOpportunities) -> None:
        """Queue decided opportunities; the oldest are dropped when the queue is full."""
        if self._place.active_model.model is not None and self._place.share > 0:
            self._waiting.append(decided)
            self._waiting_count += len(decided.opportunities)
            while self._waiting_count > _MOST_WAITING:
                self._take()
            self._due.set()

    async def run(self) -> None:
        """Score and publish until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            while self._waiting:
                await self._tell(self._take())

    def _take(self) -> ScoredOpportunities:
        decided = self._waiting.popleft()
        self._waiting_count -= len(decided.opportunities)
        return decided

    async def _tell(self, decided: ScoredOpportunities) -> None:
        try:
            records = await in_thread("shadow", lambda: self._records(decided))
            if records:
                await self._publish(EVENT.topic, records)
                self.published += len(records)
        except (PublishError, QueueFullError) as error:
            LOG.debug(
                "%d scores not published: %s",
                len(records),
                error.detail,
                extra={"action": "scores_lost"},
            )
        except Exception:  # exceptions of a model must not end the agent
            LOG.exception("the model in the shadow failed", extra={"action": "shadow_failed"})

    def _records(self, decided: ScoredOpportunities) -> list[KafkaRecord]:
        chosen = [
            index
            for index, one in enumerate(decided.opportunities)
            if is_chosen(one.id, self._place.share)
        ]
        if not chosen:
            return []
        beside = score(self._place, [decided.opportunities[index] for index in chosen])
        if not beside.model_id:  # the model was replaced meanwhile
            return []
        now_ns = self._clock()
        return [
            EVENT.record(self._event(decided, index, beside, at, now_ns))
            for at, index in enumerate(chosen)
        ]

    def _event(
        self,
        decided: ScoredOpportunities,
        index: int,
        beside: ScoredOpportunities,
        at: int,
        now_ns: int,
    ) -> Score:
        opportunity = decided.opportunities[index]
        return Score(
            id=f"{self._agent_id}:{opportunity.id}",
            opportunity_id=opportunity.id,
            agent_id=self._agent_id,
            slot=opportunity.slot,
            scored_at_ns=now_ns,
            model_id=decided.model_id,
            score=decided.scores[index],
            shadow_model_id=beside.model_id,
            shadow_score=beside.scores[at],
            simulated=opportunity.simulated,
        )


def is_chosen(opportunity_id: str, share: float) -> bool:
    """Return whether an opportunity belongs to the share.

    The result is the same at every agent, and a smaller share is a subset of a larger one.
    """
    digest = hashlib.blake2b(opportunity_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64
