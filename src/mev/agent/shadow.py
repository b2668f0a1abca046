"""What the model in the shadow says, beside the one that decides: events of both, for a share of the opportunities.

It has a thread for its scores and a bound on what waits: nobody who decides waits for it, and it fails alone.
"""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from mev.agent.clock import Clock
from mev.agent.scoring import Scored, score
from mev.agent.seats import Place
from mev.agent.thread import in_thread
from mev.bus.errors import PublishError, QueueFullError
from mev.wire.pb.events_pb2 import Score
from mev.wire.registry import EVENT_TYPES, Record

LOG = logging.getLogger(__name__)
EVENT = EVENT_TYPES["score"]
_WAITING_BATCHES = 64


class Shadow:
    """Scores what was decided, in `place`, and publishes."""

    def __init__(self, agent_id: str, place: Place, publish: Callable[[str, list[Record]], Awaitable[None]], clock: Clock) -> None:
        self._agent_id = agent_id
        self._place = place
        self._publish = publish
        self._clock = clock
        self._waiting: deque[Scored] = deque(maxlen=_WAITING_BATCHES)
        self._due = asyncio.Event()
        self.published = 0

    def offer(self, decided: Scored) -> None:
        """Take what was decided; the oldest goes when too much waits."""
        if self._place.seat.model is not None and self._place.share > 0:
            self._waiting.append(decided)
            self._due.set()

    async def run(self) -> None:
        """Score and publish until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            while self._waiting:
                await self._tell(self._waiting.popleft())

    async def _tell(self, decided: Scored) -> None:
        try:
            records = await in_thread("shadow", lambda: self._records(decided))
            if records:
                await self._publish(EVENT.topic, records)
                self.published += len(records)
        except (PublishError, QueueFullError) as error:
            LOG.debug("%d scores not published: %s", len(records), error.detail, extra={"action": "scores_lost"})
        except Exception:  # whatever a model does must not end the agent
            LOG.exception("the model in the shadow failed", extra={"action": "shadow_failed"})

    def _records(self, decided: Scored) -> list[Record]:
        chosen = [index for index, one in enumerate(decided.opportunities) if is_chosen(one.id, self._place.share)]
        if not chosen:
            return []
        beside = score(self._place, [decided.opportunities[index] for index in chosen])
        if not beside.model_id:  # it has left its place meanwhile
            return []
        now_ns = self._clock()
        return [EVENT.record(self._event(decided, index, beside, at, now_ns)) for at, index in enumerate(chosen)]

    def _event(self, decided: Scored, index: int, beside: Scored, at: int, now_ns: int) -> Score:
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
    """Say whether an opportunity is one of that share: the same at every agent, and in a smaller share only when in a larger."""
    digest = hashlib.blake2b(opportunity_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64
