"""Putting control together and running it: keys, journal, feed, leases, and this replica's own place in the fleet.

A replica that starts first learns what the others know: it orders nothing, and serves nobody, before it has read the control topic.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.control import joining
from mev.control.audit import SYSTEM, Audit
from mev.control.book import Book
from mev.control.feed import Feed
from mev.control.fleet import CONTROL_PLANE
from mev.control.hot import HotSettings, Replica
from mev.control.journal import Journal
from mev.control.keys import Keys
from mev.control.ledger import Issued
from mev.control.service import Control, Terms
from mev.core.clock import now_ns
from mev.core.errors import UnavailableError
from mev.crypto.keys import load_or_create
from mev.wire.pb.control_pb2 import Enrolment

LOG = logging.getLogger(__name__)
_REPORTS_BACK_MS = 600_000  # answers that came while this replica was away; more would take long where agents are many
_OVERLAP_MS = 5_000


@asynccontextmanager
async def running_control(
    folder: Path,
    keys: Keys,
    brokers: Brokers,
    publisher: Publisher,
    audit: Audit,
    hot: HotSettings,
    terms: Terms,
    *,
    report_interval_s: float,
    timeout_s: float,
) -> AsyncIterator[Control]:
    """Run control on `folder`: yield it when journal and topic are read, the topics are followed and leases are renewed.

    :raises ForeignKeySetError: when the topic belongs to another control plane of the same signing key.
    """
    replica_key = load_or_create(folder / "replica-key")
    replica = Replica(f"api-{replica_key.key_id[:8]}", replica_key, hot, publisher)
    tasks: set[asyncio.Task[None]] = set()

    def on_command(issued: Issued) -> None:
        task = asyncio.create_task(replica.obey(issued))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    book = Book(keys, keep_sign_of_life_s=terms.forget_agents_s / 10)
    journal = Journal(folder / "journal")
    is_new, now_ms = not journal.size_bytes, now_ns() // 1_000_000
    since_ms = max(now_ms - _REPORTS_BACK_MS, 0 if is_new else journal.changed_ms - _OVERLAP_MS)
    control = Control(book, journal, publisher, audit, terms, mark=int(replica_key.key_id[-4:], 16))
    await control.start()
    feed = Feed(brokers, control, since_ms=since_ms, timeout_s=timeout_s)
    background: list[asyncio.Task[None]] = []
    try:
        await feed.start()
        await _share_keys(control, is_new=is_new)
        await control.begin()
        await control.enrolments.enrol(Enrolment(agent_id=replica.id, module=CONTROL_PLANE, public_key=replica.public_key), SYSTEM)
        for issued in book.ledger.in_force(now_ns()):
            on_command(issued)
        book.on_command = on_command
        await asyncio.to_thread(feed.start_reports)
        background += [
            asyncio.create_task(control.renew_leases(), name="leases"),
            asyncio.create_task(control.keep_waiting(), name="control-journal"),
            asyncio.create_task(control.tidy(), name="control-tidy"),
            asyncio.create_task(_report(replica, report_interval_s), name="replica-reports"),
        ]
        yield control
    finally:
        for task in background:
            task.cancel()
        for task in background:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(feed.close)
        await control.close()


async def _share_keys(control: Control, *, is_new: bool) -> None:
    keys, announced = control.book.keys, control.book.key_sets
    joining.settle(keys, announced, is_new=is_new)
    if not keys.is_retired and not joining.is_announced(keys, announced):
        await control.announce_keys()
        joining.settle(keys, announced, is_new=is_new)  # of replicas that start at once, the topic says which was first


async def _report(replica: Replica, interval_s: float) -> None:
    while True:
        with contextlib.suppress(UnavailableError):  # silence is what the fleet view shows
            await replica.report_status()
        await asyncio.sleep(interval_s)
