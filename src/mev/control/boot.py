"""Composition of control: keys, journal, topics, leases, and this replica's own enrolment.

A starting replica issues no command and serves no request before it has read the control topic.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import REGISTRY

from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.control.audit import SYSTEM, AuditWriter
from mev.control.command_store import CommandRecord
from mev.control.control_state import ControlState
from mev.control.feed import Feed
from mev.control.fleet import CONTROL_PLANE
from mev.control.journal import EnvelopeJournal
from mev.control.keys import Keys, is_announced, join_announced, open_keys
from mev.control.metrics import FleetCollector
from mev.control.runtime_config import Replica, RuntimeConfig
from mev.control.service import Control, ControlSettings
from mev.core.clock import now_ns
from mev.core.errors import UnavailableError
from mev.core.tasks import background
from mev.crypto.keys import load_or_create
from mev.settings import Settings
from mev.wire.pb.control_pb2 import Enrolment

LOG = logging.getLogger(__name__)
_FOLDER = "control"
_REPORTS_BACK_MS = 600_000  # reports sent while this replica was down; more would take too long
_OVERLAP_MS = 5_000


@asynccontextmanager
async def running_control(
    settings: Settings,
    folder: Path,
    brokers: Brokers,
    publisher: Publisher,
    audit: AuditWriter,
    runtime_config: RuntimeConfig,
) -> AsyncIterator[Control]:
    """Run control on the data folder `folder`; yield it once journal and topic are read.

    Until the end, the topics are followed and leases are renewed.

    :raises ForeignKeySetError: if the topic belongs to another control plane with the same signing
        key.
    """
    folder /= _FOLDER
    keys = await asyncio.to_thread(_open_keys, settings, folder)
    replica_key = load_or_create(folder / "replica-key")
    replica = Replica(f"api-{replica_key.key_id[:8]}", replica_key, runtime_config, publisher)
    tasks: set[asyncio.Task[None]] = set()

    def on_command(issued: CommandRecord) -> None:
        task = asyncio.create_task(replica.obey(issued))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    control_settings = _control_settings(settings)
    control_state = ControlState(keys, keep_sign_of_life_s=control_settings.forget_agents_s / 10)
    journal = EnvelopeJournal(folder / "journal")
    is_new, now_ms = not journal.size_bytes, now_ns() // 1_000_000
    since_ms = max(now_ms - _REPORTS_BACK_MS, 0 if is_new else journal.changed_ms - _OVERLAP_MS)
    control = Control(
        control_state,
        journal,
        publisher,
        audit,
        control_settings,
        mark=int(replica_key.key_id[-4:], 16),
    )
    await control.start()
    collector = FleetCollector(
        control_state.fleet,
        control_state.proposals,
        silent_after_s=3 * settings.report_interval_s,
    )
    feed = Feed(brokers, control, since_ms=since_ms, timeout_s=settings.service_timeout_s)
    try:
        await feed.start()
        await _share_keys(control, is_new=is_new)
        await control.begin()
        await control.enrolments.enrol(
            Enrolment(agent_id=replica.id, module=CONTROL_PLANE, public_key=replica.public_key),
            SYSTEM,
        )
        for issued in control_state.command_store.in_force(now_ns()):
            on_command(issued)
        control_state.on_command = on_command
        await asyncio.to_thread(feed.start_reports)
        async with background(
            control.renew_leases(),
            control.keep_waiting(),
            control.tidy(),
            _report(replica, settings.report_interval_s),
        ):
            REGISTRY.register(collector)
            try:
                yield control
            finally:
                REGISTRY.unregister(collector)
    finally:
        await asyncio.to_thread(feed.close)
        await control.close()


def _open_keys(settings: Settings, folder: Path) -> Keys:
    seed = settings.ctrl_sign_sk_hex.get_secret_value() if settings.ctrl_sign_sk_hex else None
    return open_keys(folder, seed_hex=seed, key_id=settings.ctrl_pubkey_id, now_ns=now_ns())


def _control_settings(settings: Settings) -> ControlSettings:
    return ControlSettings(
        approvals_required=settings.effective_approvals_required,
        command_ttl_s=settings.command_ttl_s,
        proposal_ttl_s=settings.approval_ttl_s,
        lease_ttl_s=settings.lease_ttl_s,
        lease_renew_s=settings.lease_renew_s,
        publish_wait_s=settings.command_publish_wait_s,
        forget_agents_s=settings.agent_forget_days * 86_400,
        compact_journal_bytes=settings.control_journal_bytes,
        action_check_s=settings.action_check_s,
        max_schema_bytes=settings.action_schema_max_bytes,
        max_params_bytes=settings.action_params_max_bytes,
    )


async def _share_keys(control: Control, *, is_new: bool) -> None:
    keys, announced = control.state.keys, control.state.key_sets
    join_announced(keys, announced, is_new=is_new)
    if not keys.is_retired and not is_announced(keys, announced):
        await control.announce_keys()
        # If several replicas start at once, the order in the topic decides.
        join_announced(keys, announced, is_new=is_new)


async def _report(replica: Replica, interval_s: float) -> None:
    while True:
        with contextlib.suppress(UnavailableError):  # the fleet view shows the missing reports
            await replica.report_status()
        await asyncio.sleep(interval_s)
