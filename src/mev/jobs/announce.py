"""Job progress as events of type ``job``, published best-effort.

An event that cannot be published now is dropped, and no job waits for it. Every reader of the
stream gets these events, so they contain only the kind, state and progress of a job: not its owner,
its spec or the text of its error.
"""

import asyncio
import logging
from collections.abc import Callable

from mev.bus.publisher import Publisher
from mev.core.clock import now_ns
from mev.core.errors import MevError
from mev.jobs.model import Job, JobProgress
from mev.wire.pb import events_pb2
from mev.wire.registry import EVENT_TYPES

Announce = Callable[[Job, JobProgress | None], None]
LOG = logging.getLogger(__name__)
_EVENT = EVENT_TYPES["job"]


def no_announcement(_job: Job, _progress: JobProgress | None) -> None:
    """Announce nothing."""


class Announcer:
    """Publisher of job events, in the order of the calls. Confined to one event loop."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._under_way: set[asyncio.Task[None]] = set()

    def __call__(self, job: Job, progress: JobProgress | None) -> None:
        """Publish the current state; returns at once."""
        task = asyncio.create_task(self._publish(event(job, progress)))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _publish(self, message: events_pb2.Job) -> None:
        try:
            await self._publisher.publish(_EVENT.topic, [_EVENT.record(message)])
        except MevError as error:
            LOG.debug(
                "job %s: the event cannot be published: %s",
                message.id,
                error,
                extra={"action": "job_not_announced"},
            )


def event(job: Job, progress: JobProgress | None) -> events_pb2.Job:
    """Return the event for a job."""
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
