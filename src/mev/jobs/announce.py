"""How far jobs are, as events of type ``job``. Best effort: what cannot be published now is left out, and no job ever waits for it.

Everyone who may read the stream reads these events, so they say no more of a job than its kind, its state and how far it is: not
whose it is, not what was asked for, not why it failed in words.
"""

import asyncio
import logging
from collections.abc import Callable

from mev.bus.publisher import Publisher
from mev.core.clock import now_ns
from mev.core.errors import MevError
from mev.jobs.model import Job, Progress
from mev.wire.pb import events_pb2
from mev.wire.registry import EVENT_TYPES

Announce = Callable[[Job, Progress | None], None]
LOG = logging.getLogger(__name__)
_EVENT = EVENT_TYPES["job"]


def no_announcement(_job: Job, _progress: Progress | None) -> None:
    """Say nothing."""


class Announcer:
    """Publishes events of jobs, in the order in which it is called. Belongs to one event loop."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._under_way: set[asyncio.Task[None]] = set()

    def __call__(self, job: Job, progress: Progress | None) -> None:
        """Publish what is so now; returns at once."""
        task = asyncio.create_task(self._publish(event(job, progress)))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _publish(self, message: events_pb2.Job) -> None:
        try:
            await self._publisher.publish(_EVENT.topic, [_EVENT.record(message)])
        except MevError as error:
            LOG.debug("job %s: nobody hears of it: %s", message.id, error, extra={"action": "job_not_announced"})


def event(job: Job, progress: Progress | None) -> events_pb2.Job:
    """Return what is said of a job."""
    return events_pb2.Job(
        id=job.id,
        timestamp_ns=now_ns(),
        kind=job.kind,
        state=job.state.value,
        attempt=job.attempts,
        done=progress.done if progress else 0.0,
        total=progress.total if progress else 0.0,
        note=progress.note if progress else "",
        error_code=str(job.error["code"]) if job.error else "",
    )
